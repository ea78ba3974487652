//! How answers come back to clients: "To the client".

use datapath_common::{Feature, Hook, Reason};

use super::fixture::{Fixture, LOCAL_ID, OUTSIDE_ID, OWN_ID, REMOTE_ID, SPORT};
use super::north_south::masqueraded;
use super::uplink::{Flow, NODE_PORT, OPENERS, SYN, Uplink};
use super::{Case, Out};
use crate::model::Verdict;
use crate::packet::tcp_flag::ACK;
use crate::packet::{Spec, Upper, tunnel};

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = plain(u);
    cases.extend(by_the_overlay(u));
    cases.extend(no_answers(u));
    cases
}

/// The same case, but the packet is the kernel's as it came.
fn untouched(case: Case, why: &str, reason: Reason) -> Case {
    let name = format!("{}, {why}", case.name);
    let (verdict, out) = (Verdict::Kernel, Out::Same);
    Case {
        name,
        reason,
        verdict,
        out,
        ..case
    }
}

/// Answers of local backends and of those outside, at `tulle_pod_from` and
/// `tulle_nic_in`.
fn plain(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let routed = |spec: &Spec| u.routed(spec);
    let to_pod = |spec: &Spec| Fixture::delivered(spec, 2);
    let (from, at) = (Hook::PodFrom, Hook::NicIn);
    for kind in OPENERS {
        let flow = u.outside_flow(kind, LOCAL_ID);
        let name = |what: &str| format!("KP-60 {} answer {what}", kind.name);
        cases.push(u.answers(from, &name("to a client outside"), &flow, false, routed));
        let flow = masqueraded(u, flow);
        let case = u.answers(from, &name("to one masqueraded"), &flow, false, routed);
        let mut used_up = untouched(case.clone(), "TTL 1", Reason::SlowPath);
        let spec = Spec {
            ttl: 1,
            ..u.answer(&flow).0
        };
        used_up.frame = spec.build();
        cases.extend([case, used_up]);

        let pod = masqueraded(u, u.pod_flow(kind, LOCAL_ID));
        cases.push(u.answers(from, &name("to a pod masqueraded"), &pod, false, to_pod));
        let own = masqueraded(u, u.pod_flow(kind, OWN_ID));
        cases.push(u.answers(from, &name("of a pod to itself"), &own, false, to_pod));
        // Not masqueraded: by the balancer's address, and by the node's, which the kernel would take.
        for (what, frontend) in [("balancer", (u.vip, 80)), ("node port", (u.own, NODE_PORT))] {
            let own = Flow {
                frontend,
                hairpin: true,
                ..u.pod_flow(kind, OWN_ID)
            };
            let name = name(&format!("KP-110 of a pod to itself, {what}"));
            cases.push(u.answers(from, &name, &own, false, to_pod));
        }
        let node = u.node_flow(kind, LOCAL_ID);
        let back = |spec: &Spec| u.turned_back(spec);
        cases.push(u.answers(from, &name("to the node"), &node, false, back));

        // A pod of another node came in by the uplink.
        let peer = Flow {
            client: (u.base.remote, SPORT),
            ..u.outside_flow(kind, LOCAL_ID)
        };
        let peer = masqueraded(u, peer);
        let tunnelled = |spec: &Spec| u.base.encapsulated(spec);
        let case = u.answers(
            from,
            &name("to another node's pod"),
            &peer,
            false,
            tunnelled,
        );
        let mut too_big = untouched(case.clone(), "too big", Reason::SlowPath);
        let spec = Spec {
            payload: vec![9; usize::from(u.base.world.config.overlay_mtu)],
            ..u.answer(&peer).0
        };
        too_big.frame = spec.build();
        cases.extend([case, too_big]);

        let flow = masqueraded(u, u.outside_flow(kind, OUTSIDE_ID));
        cases.push(u.answers(at, &name("from outside to outside"), &flow, false, routed));
        let pod = masqueraded(u, u.pod_flow(kind, OUTSIDE_ID));
        cases.push(u.answers(at, &name("from outside to a pod"), &pod, false, to_pod));
        let node = u.node_flow(kind, OUTSIDE_ID);
        let kernel = |spec: &Spec| (Verdict::Kernel, spec.build());
        cases.push(u.answers(at, &name("from outside to the node"), &node, false, kernel));
    }
    let off = |mut case: Case| {
        case.world.config.features &= !Feature::UPLINK_SERVICES;
        case.flows.clear();
        untouched(case, "services off", Reason::NotOurs)
    };
    let local = masqueraded(u, u.outside_flow(SYN, LOCAL_ID));
    cases.push(off(u.answers(from, "to a client", &local, false, routed)));
    let outside = masqueraded(u, u.outside_flow(SYN, OUTSIDE_ID));
    cases.push(off(u.answers(at, "to a client", &outside, false, routed)));
    cases
}

/// Answers of remote pods, at `tulle_nic_in`.
fn by_the_overlay(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let kernel = |spec: &Spec| (Verdict::Kernel, spec.build());
    let routed = |spec: &Spec| u.routed(spec);
    let to_pod = |spec: &Spec| Fixture::delivered(spec, 2);
    let at = Hook::NicIn;
    for kind in OPENERS {
        let name = |to: &str| format!("KP-60 {} answer of a remote pod to {to}", kind.name);
        let outside = masqueraded(u, u.outside_flow(kind, REMOTE_ID));
        cases.push(u.answers(at, &name("outside"), &outside, true, routed));
        let node = masqueraded(u, u.node_flow(kind, REMOTE_ID));
        cases.push(u.answers(at, &name("the node"), &node, true, kernel));
        let pod = masqueraded(u, u.pod_flow(kind, REMOTE_ID));
        cases.push(u.answers(at, &name("a pod"), &pod, true, to_pod));
    }
    cases
}

/// What comes to the VTEP address and answers nothing.
fn no_answers(u: &Uplink) -> Vec<Case> {
    let spec = Spec::new(Upper::Tcp(ACK), u.base.remote, 5, u.vtep, 22);
    let (outer, inner) = u.base.arriving(&spec);
    let world = &u.base.world;
    let wire = tunnel(&outer, &inner);
    let case = |hook, name: &str| u.case(hook, name, world, wire.clone());
    let kernel = Reason::OverlayToKernel;
    let ifindex = world.config.vtep;
    let device = Verdict::RedirectIngress { ifindex };
    let mut off = case(Hook::NicIn, "services are off").passes(kernel);
    off.world.config.features &= !Feature::UPLINK_SERVICES;
    let mut none = case(Hook::NicIn, "no VTEP device").passes(kernel);
    none.world.config.vtep = 0;
    let used_up = Spec {
        ttl: 1,
        ..spec.clone()
    };
    let used_up = tunnel(&outer, &u.base.arriving(&used_up).1);
    // Out of the overlay nobody is served as a client outside.
    let flow = u.outside_flow(SYN, LOCAL_ID);
    let served = Spec {
        src: u.base.remote,
        ..u.sent(&flow)
    };
    let served = tunnel(&outer, &u.base.arriving(&served).1);
    let plain = Spec {
        src: u.client,
        ..spec
    };
    vec![
        case(Hook::NicIn, "no answer, to the VTEP address").leaves(kernel, device, inner),
        case(Hook::Xdp, "to the VTEP address").passes(kernel),
        off,
        none,
        u.case(Hook::NicIn, "to the VTEP address, TTL 1", world, used_up)
            .passes(kernel),
        u.case(
            Hook::NicIn,
            "a service through the overlay",
            &u.world(&flow, 0),
            served,
        )
        .passes(kernel),
        u.case(
            Hook::NicIn,
            "to the VTEP address from the wire",
            world,
            plain.build(),
        )
        .passes(Reason::NotOurs),
    ]
}
