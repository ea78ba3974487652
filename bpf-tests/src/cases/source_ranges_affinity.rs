//! Who may use a service, and who comes back to the same backend.

use std::net::IpAddr;

use datapath_common::{FlowState, FrontendFlags, Hook, Reason, TICK_NANOS};

use super::Case;
use super::fixture::{LOCAL_ID, NOW, OUTSIDE_ID, REMOTE_ID, SPORT};
use super::uplink::{Flow, MASQUERADE, SYN, Uplink};
use crate::model::AffinityRow;
use crate::packet::tcp_flag::ACK;
use crate::packet::{Spec, Upper};

const RANGES: u16 = FrontendFlags::SOURCE_RANGES;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = source_ranges(u);
    cases.extend(affinity(u));
    cases
}

/// The three clients, and where their packets are seen.
fn clients(u: &Uplink, id: u32) -> [(&'static str, Hook, Flow); 3] {
    [
        ("outside", Hook::NicIn, u.outside_flow(SYN, id)),
        ("a pod", Hook::PodFrom, u.pod_flow(SYN, id)),
        ("the node", Hook::NicOut, u.node_flow(SYN, id)),
    ]
}

fn source_ranges(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let bits = if u.base.v6 { 128 } else { 32 };
    for (who, hook, flow) in clients(u, LOCAL_ID) {
        let (service, source) = (flow.service(), flow.client.0);
        let allowed = |name: &str, sources: &[(u32, IpAddr, u8)]| {
            let mut case = u.opens(hook, &format!("{name}: {who}"), &flow, RANGES);
            case.world.sources.extend(sources);
            case
        };
        let refused = |name: &str, sources: &[(u32, IpAddr, u8)]| {
            let case = allowed(name, sources);
            Case {
                flows: Vec::new(),
                ..case.drops(Reason::SourceNotAllowed)
            }
        };
        let network = |length: u8| (service, masked(source, length), length);
        cases.extend([
            allowed("KP-46 its own address", &[network(bits)]),
            allowed("KP-46 its network", &[network(20)]),
            allowed("every network", &[network(0)]),
            refused("KP-46 no network", &[]),
            refused("another service's network", &[(service + 1, source, bits)]),
            refused(
                "KP-46 other networks",
                &[(service, neighbour(source), bits)],
            ),
        ]);
        // What is not said is not asked.
        let mut case = u.opens(hook, &format!("KP-45 without ranges: {who}"), &flow, 0);
        case.world.sources.push((service, neighbour(source), bits));
        cases.push(case);

        let mut empty = refused("KP-49 before an empty list", &[]);
        for row in empty.world.frontends.values_mut() {
            (row.len, row.out_len) = (0, 0);
        }
        cases.push(empty);

        let data = Spec {
            upper: Upper::Tcp(ACK),
            ..u.sent(&flow)
        };
        let (reason, verdict, out) = u.leaving(hook, &flow, &u.translated(&flow, &data));
        let name = format!("KP-50 an open flow goes on: {who}");
        let mut open = u
            .case(hook, &name, &u.world(&flow, RANGES), data.build())
            .leaves(reason, verdict, out);
        open.world
            .flows
            .extend(u.rows(&flow, FlowState::Established, 1));
        let mut unknown = refused("data of no flow", &[]);
        unknown.frame = data.build();
        cases.extend([open, unknown]);
    }
    cases
}

/// The network of an address.
fn masked(addr: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match addr {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            IpAddr::from((a.to_bits() & mask).to_be_bytes())
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            IpAddr::from((a.to_bits() & mask).to_be_bytes())
        }
    }
}

/// The address beside an address.
fn neighbour(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(a) => IpAddr::from((a.to_bits() ^ 1).to_be_bytes()),
        IpAddr::V6(a) => IpAddr::from((a.to_bits() ^ 1).to_be_bytes()),
    }
}

const SECONDS: u32 = 30;

fn affinity(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    // Whole ticks within the time.
    let limit = (u64::from(SECONDS) * 1_000_000_000 / TICK_NANOS) as u32;
    let list = [LOCAL_ID, OUTSIDE_ID];
    // Both of two: the row decides, not the slot.
    for id in list {
        for (who, hook, flow) in clients(u, id) {
            let mut flow = flow;
            let flags = if hook == Hook::NicOut { 0 } else { MASQUERADE };
            flow.nat = (flags != 0).then(|| u.masquerade(&flow));
            // One number for both, whatever the backend.
            let named = |age| named(&flow, id, 7, age);
            for (name, age) in [("just now", 0), ("as long ago as it may be", limit)] {
                let name = format!("KP-94 {who} comes back to backend {id}, {name}");
                let mut case = with_affinity(u.opens(hook, &name, &flow, flags));
                case.world = u.world_of(&flow, flags, &list, None);
                case = with_affinity(case);
                case.world.affinities.extend([named(age)]);
                // KP-95: a new flow winds the clock again.
                case.affinities.push(named_now(&flow, id));
                cases.push(case);
            }
            let other_port = Flow {
                client: (flow.client.0, SPORT + 7),
                ..flow
            };
            let name = format!("KP-94 {who} on another port, backend {id}");
            let mut case = u.opens(hook, &name, &other_port, flags);
            case.world = u.world_of(&flow, flags, &list, None);
            let mut case = with_affinity(case);
            case.world.affinities.extend([named(1)]);
            case.affinities.push(named_now(&flow, id));
            cases.push(case);
        }
    }
    for (who, hook, flow) in clients(u, LOCAL_ID) {
        let opens = |name: &str| {
            let case = u.opens(hook, &format!("{name}: {who}"), &flow, 0);
            with_affinity(case)
        };
        let mut first = opens("KP-94 a first flow is remembered");
        first.affinities.push(named_now(&flow, LOCAL_ID));
        // Only what is on this client's list (KP-96).
        let mut gone = opens("KP-96 what it names is not on the list");
        gone.world
            .affinities
            .extend([named(&flow, OUTSIDE_ID, 7, 1)]);
        gone.affinities.push(named_now(&flow, LOCAL_ID));
        let mut outdated = opens("KP-96 what it names is of another generation");
        outdated
            .world
            .affinities
            .extend([named(&flow, LOCAL_ID, 6, 1)]);
        outdated.affinities.push(named_now(&flow, LOCAL_ID));
        let mut expired = opens("KP-95 too long ago");
        expired
            .world
            .affinities
            .extend([named(&flow, LOCAL_ID, 7, limit + 2)]);
        expired.affinities.push(named_now(&flow, LOCAL_ID));
        cases.extend([first, gone, outdated, expired]);

        // A packet within a flow winds nothing and asks nobody (KP-95).
        let data = Spec {
            upper: Upper::Tcp(ACK),
            ..u.sent(&flow)
        };
        let (reason, verdict, out) = u.leaving(hook, &flow, &u.translated(&flow, &data));
        let name = format!("KP-95 a packet of an open flow: {who}");
        let world = u.world_of(&flow, 0, &list, None);
        let case = u.case(hook, &name, &world, data.build());
        let mut within = with_affinity(case.leaves(reason, verdict, out));
        within
            .world
            .flows
            .extend(u.rows(&flow, FlowState::Established, 1));
        within
            .world
            .affinities
            .extend([named(&flow, OUTSIDE_ID, 7, 1)]);
        // Data of no flow opens one.
        let mut lost = opens("data of a lost flow");
        lost.frame = data.build();
        (lost.reason, lost.verdict, lost.out) = (within.reason, within.verdict, within.out.clone());
        lost.affinities.push(named_now(&flow, LOCAL_ID));
        cases.extend([within, lost]);
    }
    // Lists of their own: what a client inside was given is not for one outside.
    let flow = u.outside_flow(SYN, LOCAL_ID);
    let mut case = u.opens(Hook::NicIn, "KP-96 on the other list only", &flow, 0);
    case.world = u.world_of(&flow, 0, &[LOCAL_ID, REMOTE_ID], Some(&[LOCAL_ID]));
    let mut case = with_affinity(case);
    case.world
        .affinities
        .extend([named(&flow, REMOTE_ID, 7, 1)]);
    case.affinities.push(named_now(&flow, LOCAL_ID));
    cases.push(case);
    cases
}

fn with_affinity(mut case: Case) -> Case {
    for row in case.world.frontends.values_mut() {
        row.affinity_secs = if row.service == 0 { 0 } else { SECONDS };
    }
    case
}

type Row = (crate::model::AffinityId, AffinityRow);

/// The row of a flow's client, written so many ticks ago.
fn named(flow: &Flow, backend: u32, generation: u32, age: u32) -> Row {
    let row = AffinityRow {
        backend,
        generation,
        seen: NOW - age,
    };
    ((flow.client.0, flow.service()), row)
}

fn named_now(flow: &Flow, backend: u32) -> Row {
    named(flow, backend, 7, 0)
}
