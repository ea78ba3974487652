//! Frames on the uplink's link with a source that only this node has: nothing is served
//! or translated for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Feature, FlowState, Hook, Mac, Reason};

use super::fixture::{BPORT, LOCAL_ID, SPORT};
use super::uplink::{Flow, MASQUERADE, OPENERS, SYN, Uplink};
use super::{Case, leaving};
use crate::model::World;
use crate::packet::tcp_flag::ACK;
use crate::packet::{Spec, Upper};

const AT: Hook = Hook::NicIn;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for (whose, source) in sources(u) {
        cases.extend(asks(u, whose, source));
        cases.extend(passes(u, whose, source));
    }
    cases.extend(answers(u));
    // Each frame to the node's pods names its VTEP: who sends as that is on the link, too.
    let forged = cases
        .iter()
        .map(|case| sent_by(u.base.world.config.vtep_mac, case));
    let forged: Vec<Case> = forged.collect();
    cases.extend(forged);
    cases
}

/// The same with another sender's address.
fn sent_by(sender: Mac, case: &Case) -> Case {
    let mut case = case.clone();
    case.name = format!("{}, as the VTEP", case.name);
    case.frame[6..12].copy_from_slice(&sender.octets());
    case
}

fn sources(u: &Uplink) -> [(&'static str, IpAddr); 4] {
    let loopback: IpAddr = if u.base.v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    [
        ("the node's", u.own),
        ("a pod's", u.base.pod),
        ("the VTEP device's", u.vtep),
        ("loopback's", loopback),
    ]
}

fn asks(u: &Uplink, whose: &str, src: IpAddr) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let flow = Flow {
            client: (src, SPORT),
            ..u.outside_flow(kind, LOCAL_ID)
        };
        let sent = u.sent(&flow);
        let other = Spec {
            dport: 81,
            ..sent.clone()
        };
        for (what, spec) in [("a service", &sent), ("no port of a service", &other)] {
            let name = format!("{} from {whose} address to {what}", kind.name);
            let world = u.world(&flow, MASQUERADE);
            cases.push(
                u.case(AT, &name, &world, spec.build())
                    .drops(Reason::MartianSource),
            );
        }
    }
    cases
}

/// What is for nobody is the kernel's to refuse.
fn passes(u: &Uplink, whose: &str, src: IpAddr) -> [Case; 2] {
    let sent = |dst| Spec::new(Upper::Tcp(ACK), src, SPORT, dst, BPORT);
    let case = |what: &str, dst| {
        let name = format!("from {whose} address to {what}");
        u.case(AT, &name, &leaving::world(u), sent(dst).build())
    };
    [
        case("the node", u.own),
        case("a pod", u.base.client).passes(Reason::SlowPath),
    ]
}

/// Forged answers of a pod of this node, and an error.
fn answers(u: &Uplink) -> Vec<Case> {
    let open = |world: &mut World, flow: &Flow| {
        world.flows.extend(u.rows(flow, FlowState::Established, 2));
    };
    let forged = |name: &str, flow: &Flow, world: &World| {
        let mut case = u.case(AT, name, world, u.answer(flow).0.build());
        open(&mut case.world, flow);
        case
    };
    let pod = u.pod_flow(SYN, LOCAL_ID);
    let outside = u.outside_flow(SYN, LOCAL_ID);
    let hidden = Flow {
        nat: Some(u.masquerade(&outside)),
        ..outside
    };
    let node = Flow {
        nat: Some(u.masquerade(&outside)),
        ..u.node_flow(SYN, LOCAL_ID)
    };
    let plain = &u.base.world;
    let mut masquerades = plain.clone();
    masquerades.config.features |= Feature::MASQUERADE;
    let mut cases = vec![
        forged("forged answer to a pod", &pod, plain),
        forged(
            "forged answer to a pod, with masquerade",
            &pod,
            &masquerades,
        ),
        forged("forged answer to one masqueraded", &hidden, plain),
        forged("forged answer to the node", &node, plain),
    ];
    // A router on the link has an address of its own.
    let left = leaving::flow(u, SYN);
    let mut quoted = Spec {
        src: u.own,
        sport: super::uplink::SNAT,
        ..u.sent(&left)
    };
    quoted.payload.clear();
    let kind = if u.base.v6 { 1 } else { 3 };
    let error = Spec {
        payload: quoted.build().split_off(crate::packet::ETHERNET),
        ..Spec::new(Upper::Icmp(kind), u.base.pod, 0, u.own, 0)
    };
    let mut forged_error = u.case(AT, "forged ICMP error", &leaving::world(u), error.build());
    let rows = leaving::rows(u, &left, FlowState::Established, 1);
    forged_error.world.flows.extend(rows);
    cases.push(forged_error);
    cases
        .into_iter()
        .map(|case| case.drops(Reason::MartianSource))
        .collect()
}
