//! Processes of the node: what marks them, whichever of its addresses they send
//! from, and frontends at an address of the node's own, over the loopback device.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Hook, Mac, NodeClient, Reason};

use super::Case;
use super::fixture::{LOCAL_ID, OUTSIDE_ID, OWN_ID, REMOTE_ID, SPORT};
use super::uplink::{Flow, HOST_ID, Kind, NODE_PORT, OPENERS, SYN, Uplink};
use crate::model::Verdict;
use crate::packet::Spec;
use crate::strategies::outside_ip;

const OUT: Hook = Hook::NicOut;
/// Index of the loopback device.
pub const LOOPBACK: u32 = 1;
const ALL: [u32; 5] = [LOCAL_ID, OWN_ID, REMOTE_ID, OUTSIDE_ID, HOST_ID];

pub fn cases(v6: bool) -> Vec<Case> {
    let mut cases = senders(&Uplink::new(v6));
    let mut u = Uplink::new(v6);
    u.base.world.config.loopback = LOOPBACK;
    cases.extend(opening(&u));
    cases.extend(answers(&u));
    cases.extend(refusals(&u));
    cases.extend(not_ours(&u));
    cases
}

/// Another address of the node, on whatever interface.
fn second(u: &Uplink) -> IpAddr {
    outside_ip(u.base.v6, 44)
}

/// A flow to the node port at the node's own address.
fn flow(u: &Uplink, kind: Kind, id: u32) -> Flow {
    let plain = Flow {
        frontend: (u.own, NODE_PORT),
        node: NodeClient::Loopback,
        ..u.node_flow(kind, id)
    };
    let nat = (id == REMOTE_ID).then(|| u.masquerade(&plain));
    Flow { nat, ..plain }
}

/// The same from an address that nobody outside answers to.
fn from(u: &Uplink, source: IpAddr, flow: &Flow) -> Flow {
    let client = (source, SPORT);
    let nat = matches!(flow.id, REMOTE_ID | OUTSIDE_ID).then(|| u.masquerade(flow));
    Flow {
        client,
        nat,
        ..*flow
    }
}

/// Into the node, by the loopback device.
pub fn by_loopback(spec: &Spec) -> (Verdict, Vec<u8>) {
    let mut spec = spec.clone();
    spec.dst_mac = Mac::new([0; 6]);
    let ifindex = LOOPBACK;
    (Verdict::RedirectIngress { ifindex }, spec.build())
}

fn opening(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        for id in ALL {
            let flow = flow(u, kind, id);
            let name = format!("KP-106 {} to the node's own port, backend {id}", kind.name);
            cases.push(u.opens(OUT, &name, &flow, 0));
            for source in [second(u), u.vtep] {
                let flow = from(u, source, &flow);
                cases.push(u.opens(OUT, &format!("{name}, from {source}"), &flow, 0));
            }
        }
    }
    cases
}

fn answers(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let name = |who: &str| format!("KP-106 {} answer of {who}, by loopback", kind.name);
        for (hook, id, who, tunnelled) in [
            (Hook::PodFrom, LOCAL_ID, "a pod here", false),
            (Hook::NicIn, REMOTE_ID, "a remote pod", true),
            (Hook::NicIn, OUTSIDE_ID, "somebody outside", false),
        ] {
            let own = flow(u, kind, id);
            cases.push(u.answers(hook, &name(who), &own, tunnelled, by_loopback));
            let other = from(u, second(u), &own);
            let name = format!("{}, to another address", name(who));
            cases.push(u.answers(hook, &name, &other, tunnelled, by_loopback));
        }
        // It is on its way already.
        let host = flow(u, kind, HOST_ID);
        let kernel = |spec: &Spec| (Verdict::Kernel, spec.build());
        cases.push(u.answers(OUT, &name("the node"), &host, false, kernel));
    }
    cases
}

fn refusals(u: &Uplink) -> Vec<Case> {
    let (expired, too_big) = if u.base.v6 {
        ((3, 0), (2, 0))
    } else {
        ((11, 0), (3, 4))
    };
    let mut cases = Vec::new();
    let verdict = Verdict::AnswerNode { ifindex: LOOPBACK };
    let empty = flow(u, SYN, LOCAL_ID);
    let spec = u.sent(&empty);
    let world = u.world_of(&empty, 0, &[], None);
    cases.push(
        u.case(OUT, "KP-53 nothing anywhere", &world, spec.build())
            .leaves(Reason::NoEndpoints, verdict, u.base.reset(&spec)),
    );
    let mtu = u.base.world.config.overlay_mtu;
    for id in [LOCAL_ID, REMOTE_ID, OUTSIDE_ID] {
        let flow = flow(u, OPENERS[1], id);
        let world = u.world(&flow, 0);
        let mut spec = u.sent(&flow);
        spec.ttl = 1;
        let error = u.base.error_from(spec.dst, &spec, expired.0, expired.1, 0);
        let name = format!("TTL 1 on loopback, backend {id}");
        cases.push(u.case(OUT, &name, &world, spec.build()).leaves(
            Reason::TtlExceeded,
            verdict,
            error,
        ));
        // The loopback device takes what no other does.
        let mut spec = u.sent(&flow);
        spec.payload = vec![3; usize::from(mtu)];
        let error = u
            .base
            .error_from(spec.dst, &spec, too_big.0, too_big.1, mtu);
        let name = format!("too big for others than loopback, backend {id}");
        cases.push(
            u.case(OUT, &name, &world, spec.build())
                .leaves(Reason::TooBig, verdict, error),
        );
    }
    let host = flow(u, OPENERS[1], HOST_ID);
    let mut spec = u.sent(&host);
    spec.payload = vec![3; usize::from(mtu)];
    let to = u.translated(&host, &spec).build();
    let mut case = u.opens(OUT, "large, to the node itself", &host, 0);
    case.frame = spec.build();
    cases.push(case.leaves(Reason::TranslatedToKernel, Verdict::Kernel, to));
    cases
}

fn not_ours(u: &Uplink) -> Vec<Case> {
    let localhost: IpAddr = if u.base.v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    let local = flow(u, SYN, LOCAL_ID);
    let at = |name: &str, flow: &Flow, spec: &Spec| {
        let world = u.world(flow, 0);
        u.case(OUT, name, &world, spec.build())
            .passes(Reason::NotOurs)
    };
    // 9.3: no node port at 127.0.0.1.
    let to_local = Flow {
        frontend: (localhost, NODE_PORT),
        ..local
    };
    let from_local = Flow {
        client: (localhost, SPORT),
        ..local
    };
    let vip = Flow {
        frontend: (u.vip, 80),
        ..local
    };
    let other_port = Spec {
        dport: 81,
        ..u.sent(&vip)
    };
    let mut cases = vec![
        at("to 127.0.0.1", &to_local, &u.sent(&to_local)),
        at("from 127.0.0.1", &from_local, &u.sent(&from_local)),
        at(
            "another port of a balancer's address here",
            &vip,
            &other_port,
        ),
        at(
            "another port of the node",
            &local,
            &Spec {
                dport: 22,
                ..u.sent(&local)
            },
        ),
    ];
    let mut elsewhere = at("at another device", &local, &u.sent(&local));
    elsewhere.world.config.loopback = LOOPBACK + 1;
    elsewhere.ctx.ingress = 7;
    cases.push(elsewhere);
    cases
}

/// Whose packets are the node's where they leave by the uplink.
fn senders(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        for id in ALL {
            let flow = u.node_flow(kind, id);
            for source in [second(u), u.vtep] {
                let mut flow = from(u, source, &flow);
                flow.hairpin = id == HOST_ID;
                let name = format!("{} of the node from {source}, backend {id}", kind.name);
                let opens = u.opens(OUT, &name, &flow, 0);
                let mut forwarded = opens.clone();
                forwarded.ctx.ingress = 7;
                forwarded.flows.clear();
                forwarded.name += ", forwarded";
                forwarded.verdict = Verdict::Kernel;
                forwarded.out = super::Out::Same;
                cases.extend([opens, forwarded.passes(Reason::NotOurs)]);
            }
        }
        let name = |who: &str| format!("{} answer of {who} to another address", kind.name);
        let local = from(u, second(u), &u.node_flow(kind, LOCAL_ID));
        let back = |spec: &Spec| u.turned_back(spec);
        cases.push(u.answers(Hook::PodFrom, &name("a pod here"), &local, false, back));
        let kernel = |spec: &Spec| (Verdict::Kernel, spec.build());
        for (id, who) in [(REMOTE_ID, "a remote pod"), (OUTSIDE_ID, "one outside")] {
            let flow = from(u, second(u), &u.node_flow(kind, id));
            cases.push(u.answers(Hook::NicIn, &name(who), &flow, id == REMOTE_ID, kernel));
        }
    }
    // The address of a bridge is in the pods' network.
    let bridge = Flow {
        client: (u.base.client, SPORT),
        ..u.node_flow(SYN, LOCAL_ID)
    };
    let world = u.world(&bridge, 0);
    let frame = u.sent(&bridge).build();
    cases.push(
        u.case(OUT, "from the address of a bridge", &world, frame)
            .passes(Reason::NotOurs),
    );
    cases
}
