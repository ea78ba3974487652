//! Pods of this node behind a bridge: in its pod network, without a row.

use std::net::IpAddr;

use datapath_common::{Feature, FlowState, Hook, NodeClient, Reason, Via};

use super::Case;
use super::fixture::{BPORT, Fixture, LOCAL_ID, NOW, OWN_ID, REMOTE_ID, SPORT};
use super::uplink::{Flow, MASQUERADE, NODE_PORT, OPENERS, SYN, Uplink};
use crate::model::{FlowRow, Tuple, Verdict};
use crate::packet::{Spec, Upper};
use crate::strategies::outside_ip;

const BRIDGE: u32 = 21;
const LOOPBACK: u32 = 1;

pub fn cases(v6: bool) -> Vec<Case> {
    let u = &world(v6);
    let mut cases = opening(u);
    cases.extend(to_clients(u));
    cases.extend(to_other_nodes(u));
    cases.extend(answers(u));
    cases.extend(beside_services(u));
    cases.extend(straight(u));
    cases.extend(without_a_bridge(u));
    cases
}

/// The backend `pod` is behind the bridge.
fn world(v6: bool) -> Uplink {
    let mut u = Uplink::new(v6);
    let world = &mut u.base.world;
    world.config.bridge = BRIDGE;
    world.pods.remove(&u.base.pod);
    for backend in world.backends.values_mut() {
        if backend.addr == u.base.pod {
            backend.via = Via::KERNEL;
        }
    }
    u
}

/// By the bridge, where the kernel knows the neighbours.
fn over_bridge(spec: &Spec) -> (Verdict, Vec<u8>) {
    let mut spec = spec.clone();
    spec.ttl -= 1;
    (Verdict::Route { ifindex: BRIDGE }, spec.build())
}

/// A packet that opens the flow to the pod behind the bridge.
fn opens(u: &Uplink, hook: Hook, name: &str, flow: &Flow, flags: u16) -> Case {
    let (verdict, out) = over_bridge(&u.translated(flow, &u.sent(flow)));
    u.opens(hook, name, flow, flags)
        .leaves(Reason::DeliveredLocal, verdict, out)
}

fn opening(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let name = |who: &str| format!("{} of {who} to a pod behind the bridge", kind.name);
        for flags in [0, MASQUERADE] {
            let name = |who: &str| format!("{}, flags {flags}", name(who));
            // The answer comes by here: nobody has to be masqueraded.
            let outside = u.outside_flow(kind, LOCAL_ID);
            cases.push(opens(u, Hook::NicIn, &name("one outside"), &outside, flags));
            let node_port = Flow {
                frontend: (u.own, NODE_PORT),
                ..outside
            };
            cases.push(opens(
                u,
                Hook::NicIn,
                &name("a node port"),
                &node_port,
                flags,
            ));
            let pod = u.pod_flow(kind, LOCAL_ID);
            cases.push(opens(u, Hook::PodFrom, &name("another pod"), &pod, flags));
            let own = Flow {
                client: (u.base.pod, SPORT),
                hairpin: true,
                ..pod
            };
            cases.push(opens(u, Hook::PodFrom, &name("itself"), &own, flags));
            for source in [u.own, outside_ip(u.base.v6, 44)] {
                let node = Flow {
                    client: (source, SPORT),
                    ..u.node_flow(kind, LOCAL_ID)
                };
                cases.push(opens(u, Hook::NicOut, &name("the node"), &node, flags));
                let mut loopback = opens(
                    u,
                    Hook::NicOut,
                    &name("the node at its own address"),
                    &Flow {
                        frontend: (u.own, NODE_PORT),
                        node: NodeClient::Loopback,
                        ..node
                    },
                    flags,
                );
                loopback.world.config.loopback = LOOPBACK;
                cases.push(loopback);
            }
        }
    }
    // Larger than the overlay takes: the bridge may not take it either.
    let large = |name: &str, flow: &Flow, hook: Hook| {
        let mut spec = u.sent(flow);
        spec.payload = vec![3; usize::from(u.base.world.config.overlay_mtu)];
        let mut case = opens(u, hook, name, flow, 0);
        case.frame = spec.build();
        (case, u.translated(flow, &spec))
    };
    let (case, to) = large("large", &u.outside_flow(OPENERS[1], LOCAL_ID), Hook::NicIn);
    cases.push(case.leaves(Reason::TranslatedToKernel, Verdict::Kernel, to.build()));
    let (case, to) = large("large", &u.pod_flow(OPENERS[1], LOCAL_ID), Hook::PodFrom);
    let (verdict, out) = over_bridge(&to);
    cases.push(case.leaves(Reason::DeliveredLocal, verdict, out));
    cases
}

/// Answers of the pod behind the bridge.
fn answers(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let name = |whom: &str| format!("{} answer from behind the bridge to {whom}", kind.name);
        let outside = u.outside_flow(kind, LOCAL_ID);
        let routed = |spec: &Spec| u.routed(spec);
        let hook = Hook::PodFrom;
        cases.push(u.answers(hook, &name("one outside"), &outside, false, routed));
        let node = u.node_flow(kind, LOCAL_ID);
        let back = |spec: &Spec| u.turned_back(spec);
        cases.push(u.answers(hook, &name("the node"), &node, false, back));
        let remote = Flow {
            client: (u.base.remote, SPORT),
            ..outside
        };
        let far = |spec: &Spec| u.base.encapsulated(spec);
        cases.push(u.answers(hook, &name("a remote pod"), &remote, false, far));
        let own = Flow {
            client: (u.base.pod, SPORT),
            hairpin: true,
            ..outside
        };
        let case = u.answers(hook, &name("itself"), &own, false, over_bridge);
        // There and back to the same address.
        cases.push(case);
        let near = Flow {
            client: (u.base.client, SPORT),
            ..outside
        };
        let delivered = |spec: &Spec| Fixture::delivered(spec, 2);
        cases.push(u.answers(hook, &name("a pod"), &near, false, delivered));
    }
    cases
}

/// Answers to clients behind the bridge that were masqueraded.
fn to_clients(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let name = |who: &str| format!("{} answer of {who} to behind the bridge", kind.name);
        let flow = |id, nat: IpAddr| Flow {
            client: (u.base.pod, SPORT),
            nat: Some((nat, super::uplink::SNAT)),
            ..u.outside_flow(kind, id)
        };
        let remote = flow(REMOTE_ID, u.vtep);
        let hook = Hook::NicIn;
        cases.push(u.answers(hook, &name("a remote pod"), &remote, true, over_bridge));
        let outside = flow(super::fixture::OUTSIDE_ID, u.own);
        cases.push(u.answers(hook, &name("one outside"), &outside, false, over_bridge));
        let local = flow(OWN_ID, u.vtep);
        let hook = Hook::PodFrom;
        cases.push(u.answers(hook, &name("a local pod"), &local, false, over_bridge));
        // Who was not masqueraded has his own link, but the bridge passes it by.
        let own = Flow { nat: None, ..local };
        let who = "a local pod that saw the client";
        cases.push(u.answers(hook, &name(who), &own, false, over_bridge));
    }
    cases
}

/// Clients behind the bridge, and backends on other nodes.
fn to_other_nodes(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let own = Flow {
            client: (u.base.pod, SPORT),
            ..u.pod_flow(kind, REMOTE_ID)
        };
        // The kernel brings the answer.
        let to = u.translated(&own, &u.sent(&own));
        let name = format!("{} from behind the bridge to a remote pod", kind.name);
        let case = u.opens(Hook::PodFrom, &name, &own, 0);
        cases.push(case.leaves(Reason::TranslatedToKernel, Verdict::Kernel, to.build()));
        let hidden = Flow {
            nat: Some((u.vtep, super::uplink::SNAT)),
            ..own
        };
        let name = format!("{name}, masqueraded");
        cases.push(u.opens(Hook::PodFrom, &name, &hidden, MASQUERADE));
    }
    cases
}

/// From outside straight to a pod behind the bridge: the kernel delivers it, and the
/// pod's answer keeps its address.
fn straight(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let spec = Spec::new(kind.upper, u.client, SPORT, u.base.pod, BPORT);
        let mut world = u.base.world.clone();
        world.config.features |= Feature::MASQUERADE;
        let id = Tuple {
            src: u.base.pod,
            dst: u.client,
            sport: BPORT,
            dport: SPORT,
            proto: kind.proto,
        };
        let row = FlowRow {
            addr: u.base.pod,
            port: BPORT,
            nat: None,
            state: FlowState::Opening,
            hairpin: false,
            node: NodeClient::No,
            backend: 0,
            generation: 0,
            service: 0,
            counted: false,
            opened: NOW,
            seen: NOW,
        };
        let name = format!("{} straight to a pod behind the bridge", kind.name);
        let case = u.case(Hook::NicIn, &name, &world, spec.build());
        cases.push(case.passes(Reason::NotOurs).writes([(id.reply(), row)]));
        // No pod's answer to the node itself leaves by the uplink.
        let own = Spec {
            src: u.own,
            ..spec.clone()
        };
        let name = format!(
            "{} from the node's address to a pod behind the bridge",
            kind.name
        );
        let case = u.case(Hook::NicIn, &name, &world, own.build());
        cases.push(case.passes(Reason::NotOurs));
        // Nobody there is known without a bridge.
        world.config.bridge = 0;
        let name = format!("{} straight to a pod that is not known", kind.name);
        let case = u.case(Hook::NicIn, &name, &world, spec.build());
        cases.push(case.passes(Reason::NotOurs));
    }
    cases
}

/// What is for no service.
fn beside_services(u: &Uplink) -> Vec<Case> {
    let away = |src: IpAddr| Spec::new(Upper::Udp, src, SPORT, u.base.remote, 9999);
    let world = &u.base.world;
    let name = "from behind the bridge to a remote pod";
    let behind = u.case(Hook::PodFrom, name, world, away(u.base.pod).build());
    let (verdict, out) = u.base.encapsulated(&away(u.base.client));
    let name = "from beside the bridge to a remote pod";
    let beside = u.case(Hook::PodFrom, name, world, away(u.base.client).build());
    vec![
        behind.passes(Reason::NotOurs),
        beside.leaves(Reason::Encapsulated, verdict, out),
    ]
}

/// An address of the pod network of which nobody knows anything is the kernel's.
fn without_a_bridge(u: &Uplink) -> Vec<Case> {
    let remote = Flow {
        client: (u.base.pod, SPORT),
        nat: Some((u.vtep, super::uplink::SNAT)),
        ..u.outside_flow(SYN, REMOTE_ID)
    };
    let kernel = |spec: &Spec| (Verdict::Kernel, spec.build());
    let name = "an answer to a pod that is not known";
    let mut answer = u.answers(Hook::NicIn, name, &remote, true, kernel);
    answer.world.config.bridge = 0;
    let mut routed = u.opens(
        Hook::NicIn,
        "to a pod that is not known",
        &Flow {
            nat: Some((u.own, super::uplink::SNAT)),
            ..u.outside_flow(SYN, LOCAL_ID)
        },
        MASQUERADE,
    );
    routed.world.config.bridge = 0;
    vec![answer, routed]
}
