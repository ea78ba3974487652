//! `tulle_nic_in` at the VTEP device, where the agent attaches it on kernels that cannot
//! take IPv6 out of IPv4: what the kernel took out of the overlay.

use datapath_common::{Feature, Hook, Reason};

use super::fixture::{BPORT, Fixture, LOCAL_ID, OUTSIDE_ID, REMOTE_ID, SPORT};
use super::north_south::masqueraded;
use super::uplink::{Flow, MASQUERADE, NODE_PORT, OPENERS, SYN, Uplink};
use super::{Case, Out, leaving};
use crate::model::{Verdict, World};
use crate::packet::tcp_flag::ACK;
use crate::packet::{Spec, Upper, tunnel};

/// Octets that the kernel took off.
const OUTER: usize = 50;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = answers(u);
    cases.push(to_a_pod(u));
    cases.extend(not_served(u));
    cases
}

/// The same case at the VTEP device.
fn at_vtep(mut case: Case) -> Case {
    case.name = format!("{}, at the VTEP device", case.name);
    case.world.config.features &= !Feature::DECAP_6_IN_4;
    case.world.config.vtep = case.ctx.ifindex;
    case
}

/// The same case as it is when the VTEP device has taken the packet out.
fn taken_out(mut case: Case) -> Case {
    case.frame.drain(..OUTER);
    at_vtep(case)
}

/// Answers of remote pods, and of who is outside.
fn answers(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let at = Hook::NicIn;
    let kernel = |spec: &Spec| (Verdict::Kernel, spec.build());
    let routed = |spec: &Spec| u.routed(spec);
    let to_pod = |spec: &Spec| Fixture::delivered(spec, 2);
    for kind in OPENERS {
        let name = |to: &str| format!("KP-60 {} answer to {to}", kind.name);
        let outside = masqueraded(u, u.outside_flow(kind, REMOTE_ID));
        let answer = taken_out(u.answers(at, &name("outside"), &outside, true, routed));
        let mut used_up = answer.clone();
        used_up.name = format!("{}, TTL 1", used_up.name);
        let sent = Spec {
            ttl: 1,
            ..u.answer(&outside).0
        };
        used_up.frame = u.base.arriving(&sent).1;
        (used_up.reason, used_up.verdict) = (Reason::SlowPath, Verdict::Kernel);
        used_up.out = Out::Same;
        cases.extend([answer, used_up]);
        let node = masqueraded(u, u.node_flow(kind, REMOTE_ID));
        cases.push(taken_out(u.answers(
            at,
            &name("the node"),
            &node,
            true,
            kernel,
        )));
        let pod = masqueraded(u, u.pod_flow(kind, REMOTE_ID));
        cases.push(taken_out(u.answers(
            at,
            &name("a pod masqueraded"),
            &pod,
            true,
            to_pod,
        )));
        let plain = u.pod_flow(kind, REMOTE_ID);
        cases.push(taken_out(u.answers(
            at,
            &name("a pod"),
            &plain,
            true,
            to_pod,
        )));
        // To the node's address.
        let beyond = masqueraded(u, u.outside_flow(kind, OUTSIDE_ID));
        let case = u.answers(at, &name("outside from outside"), &beyond, false, routed);
        cases.push(at_vtep(case));
    }
    cases
}

/// No row says that it came straight: compare the case at the uplink, in `straight`.
fn to_a_pod(u: &Uplink) -> Case {
    let spec = Spec::new(SYN.upper, u.client, SPORT, u.base.client, BPORT);
    let (verdict, out) = Fixture::delivered(&spec, 2);
    let frame = u.base.arriving(&spec).1;
    at_vtep(
        u.case(Hook::NicIn, "to a pod", &leaving::world(u), frame)
            .leaves(Reason::DeliveredLocal, verdict, out),
    )
}

/// What is the kernel's as it comes.
fn not_served(u: &Uplink) -> Vec<Case> {
    let flow = u.outside_flow(SYN, LOCAL_ID);
    let node_port = Flow {
        frontend: (u.own, NODE_PORT),
        ..flow
    };
    let sent = |flow: &Flow| Spec {
        src: u.base.remote,
        ..u.sent(flow)
    };
    let other_port = Spec {
        dport: 81,
        ..sent(&flow)
    };
    let to_vtep = Spec::new(Upper::Tcp(ACK), u.base.remote, 5, u.vtep, 22);
    let case = |name: &str, world: &World, spec: &Spec| {
        let frame = u.base.arriving(spec).1;
        at_vtep(u.case(Hook::NicIn, name, world, frame)).passes(Reason::NotOurs)
    };
    let base = &u.base.world;
    let vip = u.world(&flow, MASQUERADE);
    let (outer, inner) = u.base.arriving(&to_vtep);
    let mut twice = case("an overlay packet", base, &to_vtep);
    twice.frame = tunnel(&outer, &inner);
    vec![
        case("a service", &vip, &sent(&flow)),
        case("another port of a service's address", &vip, &other_port),
        case(
            "a node port",
            &u.world(&node_port, MASQUERADE),
            &sent(&node_port),
        ),
        // Nor is it put into the device's ingress once more.
        case("no answer, to the VTEP address", base, &to_vtep),
        twice,
    ]
}
