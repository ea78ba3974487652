//! Networks that services have their addresses from: a free address is nowhere (KP-29).

use std::net::IpAddr;

use datapath_common::{Feature, FrontendFlags, Hook, Network, Reason};

use super::Case;
use super::fixture::LOCAL_ID;
use super::uplink::{OPENERS, SYN, Uplink};
use crate::model::World;
use crate::packet::{Piece, Spec, Upper};
use crate::strategies::external_ip;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = dropped(u);
    cases.extend(kept(u));
    cases
}

/// The balancer's address and its neighbours are services', two of them with rules of their own.
fn world(u: &Uplink) -> World {
    let flow = u.pod_flow(SYN, LOCAL_ID);
    let mut world = u.world(&flow, 0);
    world.config.features |= Feature::MASQUERADE | Feature::SERVICE_NETWORKS;
    let bits = if u.base.v6 { 128 } else { 32 };
    world.networks.extend([
        (external_ip(u.base.v6, 0), bits - 8, Network::SERVICES),
        (external_ip(u.base.v6, FOREIGN), bits, 0),
        (external_ip(u.base.v6, EXCLUDED), bits - 1, Network::DIRECT),
    ]);
    world
}

/// No Service of ours has it.
const FREE: u8 = 77;
/// Another proxy serves it.
const FOREIGN: u8 = 99;
/// The first of two that the operator keeps from masquerade and from services.
const EXCLUDED: u8 = 100;

/// Who asks, and at which hook they are met.
fn clients(u: &Uplink) -> [(Hook, &'static str, IpAddr); 5] {
    [
        (Hook::PodFrom, "a pod", u.base.client),
        (Hook::NicIn, "outside", u.client),
        (Hook::NicOut, "the node", u.own),
        (Hook::NicOut, "a pod behind a bridge", u.base.client),
        (Hook::NicOut, "another address of the node", u.client),
    ]
}

fn dropped(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let world = world(u);
    for (hook, who, src) in clients(u) {
        let to = |upper| Spec::new(upper, src, 4000, external_ip(u.base.v6, FREE), 80);
        let mut drops = |name: &str, spec: &Spec| {
            let name = format!("KP-29 {name} of {who} to a free address");
            let case = u.case(hook, &name, &world, spec.build());
            cases.push(case.drops(Reason::FreeServiceAddress));
        };
        for kind in OPENERS {
            drops(kind.name, &to(kind.upper));
        }
        let echo = Upper::Icmp(if u.base.v6 { 128 } else { 8 });
        drops("an echo request", &to(echo));
        drops("GRE", &to(Upper::Other(47)));
        let late = Some(Piece {
            offset: 64,
            more: false,
        });
        drops(
            "a later fragment",
            &Spec {
                piece: late,
                ..to(Upper::Udp)
            },
        );
        // Nobody is told of it, so that nobody is told of the last hop either.
        let last = Spec {
            ttl: 1,
            ..to(SYN.upper)
        };
        drops("TTL 1", &last);
    }
    cases
}

fn kept(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let world = world(u);
    let at = |number| external_ip(u.base.v6, number);
    for (hook, who, src) in clients(u) {
        for (number, what) in [(FOREIGN, "another proxy's"), (EXCLUDED + 1, "a direct")] {
            let spec = Spec::new(SYN.upper, src, 0, at(number), 80);
            let name = format!("KP-29 {who} to {what} address");
            let case = u.case(hook, &name, &world, spec.build());
            // Without a source port, so that no pod's flow is masqueraded.
            cases.push(case.passes(Reason::NotOurs));
        }
    }
    // Without the feature no network is services'.
    let mut off = world.clone();
    off.config.features &= !Feature::SERVICE_NETWORKS;
    for (hook, who, src) in clients(u) {
        let spec = Spec::new(SYN.upper, src, 0, at(FREE), 80);
        let name = format!("KP-29 {who} to a free address where services have no networks");
        cases.push(
            u.case(hook, &name, &off, spec.build())
                .passes(Reason::NotOurs),
        );
    }
    // An address in use is served, or refuses what it does not know.
    let flow = u.pod_flow(SYN, LOCAL_ID);
    let mut served = u.opens(Hook::PodFrom, "KP-29 an address in use", &flow, 0);
    served.world.networks.clone_from(&world.networks);
    cases.push(served);
    // The tables' own address row counts, not what the hook would do with it.
    let mut behind = u.case(
        Hook::NicOut,
        "KP-29 a pod behind a bridge to an address in use",
        &world,
        Spec::new(SYN.upper, u.base.client, 0, u.vip, 80).build(),
    );
    cases.push(behind.clone().passes(Reason::NotOurs));
    let row = behind.world.frontends.remove(&(u.vip, 0, 0));
    assert_eq!(row.map(|row| row.flags), Some(FrontendFlags::ADDRESS));
    behind.name += " no more";
    cases.push(behind.drops(Reason::FreeServiceAddress));
    cases
}
