//! The node as a client: `tulle_nic_out`, and its answers.

use datapath_common::{Feature, FlowState, FrontendFlags, Hook, Reason};

use super::Case;
use super::fixture::{LOCAL_ID, NOW, OUTSIDE_ID, OWN_ID, REMOTE_ID};
use super::uplink::{Flow, HOST_ID, OPENERS, SNAT, SYN, Uplink};
use crate::model::Verdict;
use crate::packet::tcp_flag::{ACK, FIN};
use crate::packet::{Piece, Spec, Upper};

const OUT: Hook = Hook::NicOut;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = opening(u);
    cases.extend(later_packets(u));
    cases.extend(replies(u));
    cases.extend(refusals(u));
    cases.extend(not_ours(u));
    cases
}

/// The flow of a node: masqueraded to other nodes, from the frontend to itself.
fn flow(u: &Uplink, kind: super::uplink::Kind, id: u32) -> Flow {
    let plain = u.node_flow(kind, id);
    let nat = (id == REMOTE_ID).then(|| u.masquerade(&plain));
    Flow {
        nat,
        hairpin: id == HOST_ID,
        ..plain
    }
}

fn opening(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        for (id, place) in [
            (LOCAL_ID, "local"),
            (OWN_ID, "another local"),
            (REMOTE_ID, "remote"),
            (OUTSIDE_ID, "outside"),
            (HOST_ID, "the node (KP-64)"),
        ] {
            let name = format!("KP-27 {} of the node, backend {place}", kind.name);
            let case = u.opens(OUT, &name, &flow(u, kind, id), 0);
            // The node has no flag of its own: nor do those of others count.
            let mut flags = case.clone();
            flags.name += ", flags of others";
            flags.world = u.world(&flow(u, kind, id), super::uplink::MASQUERADE);
            cases.extend([case, flags]);
        }
    }
    let flow = flow(u, SYN, REMOTE_ID);
    let mut case = u.opens(
        OUT,
        "KP-72 the node has the list inside",
        &flow,
        FrontendFlags::DROP_OUTSIDE,
    );
    case.world = u.world_of(&flow, FrontendFlags::DROP_OUTSIDE, &[REMOTE_ID], Some(&[]));
    cases.push(case);
    let plain = u.node_flow(SYN, REMOTE_ID);
    let mut case = u.opens(OUT, "no ports for sources", &plain, 0);
    case.world.config.snat_ports = 0;
    cases.push(case);
    cases
}

fn later_packets(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for id in [LOCAL_ID, REMOTE_ID, OUTSIDE_ID, HOST_ID] {
        let flow = flow(u, SYN, id);
        let packet = |name: &str, flags: u8| {
            let spec = Spec {
                upper: Upper::Tcp(flags),
                ..u.sent(&flow)
            };
            let (reason, verdict, out) = u.leaving(OUT, &flow, &u.translated(&flow, &spec));
            let name = format!("{name} of the node, backend {id}");
            u.case(OUT, &name, &u.world(&flow, 0), spec.build())
                .leaves(reason, verdict, out)
        };
        let old = u.rows(&flow, FlowState::Established, 1);
        let mut known = packet("data", ACK);
        known.world.flows.extend(old);
        let lost = packet("data of a lost flow", ACK);
        let lost = lost.writes(u.rows(&flow, FlowState::Opening, 0));
        let end = packet("a FIN of no flow", FIN | ACK);
        let end = if id == REMOTE_ID {
            end.drops(Reason::UnknownFlow)
        } else {
            end
        };
        cases.extend([known, lost, end]);
    }
    let flow = flow(u, SYN, REMOTE_ID);
    let other = Flow {
        client: (u.own, flow.client.1 + 1),
        ..flow
    };
    let frame = u.sent(&flow).build();
    let mut taken = u.case(OUT, "every port is taken", &u.world(&flow, 0), frame);
    taken
        .world
        .flows
        .extend(u.rows(&other, FlowState::Established, 1));
    cases.push(taken.drops(Reason::SnatPortsExhausted));
    cases
}

/// Replies that leave by the uplink.
fn replies(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let own = flow(u, kind, HOST_ID);
        let name = format!("KP-60 {} answer of the node to itself", kind.name);
        // To who asked: the node, as the frontend.
        let back = |spec: &Spec| u.turned_back(spec);
        cases.push(u.answers(OUT, &name, &own, false, back));

        let outside = u.outside_flow(kind, HOST_ID);
        let kernel = |spec: &Spec| (Verdict::Kernel, spec.build());
        let name = format!("KP-60 {} answer of the node to a client outside", kind.name);
        let case = u.answers(OUT, &name, &outside, false, kernel);
        let mut off = case.clone();
        off.name += ", services off";
        off.world.config.features &= !Feature::UPLINK_SERVICES;
        cases.extend([case, off]);
        let pod = u.pod_flow(kind, HOST_ID);
        let name = format!("KP-60 {} answer of the node to a pod", kind.name);
        let (sent, back) = u.answer(&pod);
        let mut case = u
            .case(Hook::PodTo, &name, &u.world(&pod, 0), sent.build())
            .leaves(Reason::ReplyTranslated, Verdict::Kernel, back.build());
        case.world.flows.extend(u.rows(&pod, FlowState::Opening, 1));
        case.flows
            .extend(u.rows(&pod, FlowState::Opening, 1).map(|(id, mut row)| {
                (row.state, row.seen) = (FlowState::Established, NOW);
                (id, row)
            }));
        cases.push(case);
    }
    cases
}

fn refusals(u: &Uplink) -> Vec<Case> {
    let (unreachable, expired) = if u.base.v6 {
        ((1, 4), (3, 0))
    } else {
        ((3, 3), (11, 0))
    };
    let mut cases = Vec::new();
    let [syn, udp, _] = OPENERS.map(|kind| u.node_flow(kind, LOCAL_ID));
    let at = |name: &str, flow: &Flow, spec: &Spec, flags, ids: &[u32]| {
        let world = u.world_of(flow, flags, ids, Some(&[LOCAL_ID, LOCAL_ID + 10]));
        u.case(OUT, name, &world, spec.build())
    };
    let answered = |case: Case, reason, frame| {
        let ifindex = u.base.world.config.uplink;
        case.leaves(reason, Verdict::AnswerNode { ifindex }, frame)
    };
    let error = |spec: &Spec, (kind, code)| u.base.error_from(spec.dst, spec, kind, code, 0);
    let spec = u.sent(&udp);
    cases.push(answered(
        at(
            "KP-53 nothing anywhere",
            &udp,
            &spec,
            FrontendFlags::DROP_OUTSIDE,
            &[],
        ),
        Reason::NoEndpoints,
        error(&spec, unreachable),
    ));
    let spec = u.sent(&syn);
    cases.push(answered(
        at("KP-53 nothing anywhere, TCP", &syn, &spec, 0, &[]),
        Reason::NoEndpoints,
        u.base.reset(&spec),
    ));
    cases.push(
        at(
            "KP-54, KP-69 nothing here",
            &syn,
            &spec,
            FrontendFlags::DROP_INSIDE,
            &[],
        )
        .drops(Reason::NoLocalEndpoints),
    );
    let ids = [LOCAL_ID + 10];
    let used_up = Spec {
        ttl: 1,
        ..u.sent(&udp)
    };
    cases.push(answered(
        at("TTL 1", &udp, &used_up, 0, &ids),
        Reason::TtlExceeded,
        error(&used_up, expired),
    ));
    let other = Spec {
        dport: 81,
        ..u.sent(&udp)
    };
    cases.push(answered(
        at("KP-28 no service on this port", &udp, &other, 0, &ids),
        Reason::NoSuchPort,
        error(&other, unreachable),
    ));
    let used_up = Spec { ttl: 1, ..other };
    cases.push(answered(
        at("no service on this port, TTL 1", &udp, &used_up, 0, &ids),
        Reason::TtlExceeded,
        error(&used_up, expired),
    ));
    let later = Spec {
        piece: Some(Piece {
            offset: 5,
            more: false,
        }),
        dont_fragment: false,
        ..u.sent(&udp)
    };
    cases.push(
        at("a later fragment alone", &udp, &later, 0, &ids).drops(Reason::FragmentWithoutFirst),
    );
    cases
}

fn not_ours(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let plain = u.node_flow(SYN, LOCAL_ID);
    let world = u.world(&plain, 0);
    let at = |name: &str, frame: Vec<u8>| u.case(OUT, name, &world, frame).passes(Reason::NotOurs);
    let sent = u.sent(&plain);
    cases.push(at(
        "KP-115 from a pod",
        Spec {
            src: u.base.client,
            ..sent.clone()
        }
        .build(),
    ));
    cases.push(at(
        "KP-115 to no service",
        Spec {
            dst: u.base.outside,
            ..sent.clone()
        }
        .build(),
    ));
    let mut broken = sent.build();
    broken[14] = 0x95;
    cases.push(at("a broken header", broken));
    cases.push(at(
        "a VLAN tag",
        Spec {
            vlan: Some(3),
            ..sent.clone()
        }
        .build(),
    ));
    let control = if u.base.v6 {
        std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into()
    } else {
        std::net::Ipv4Addr::new(224, 0, 0, 1).into()
    };
    cases.push(at(
        "to all",
        Spec {
            dst: control,
            ..sent.clone()
        }
        .build(),
    ));
    let mut off = at("services on the uplink are off", sent.build());
    off.world.config.features &= !Feature::UPLINK_SERVICES;
    cases.push(off);
    // The overlay itself, whatever the tables say of its port.
    if !u.base.v6 {
        let port = u.base.world.config.vxlan_port;
        let tunnel = Flow {
            frontend: (u.vip, port),
            ..u.node_flow(OPENERS[1], LOCAL_ID)
        };
        let frame = u.sent(&tunnel).build();
        let case = u.case(
            OUT,
            "KP-105 the overlay itself",
            &u.world(&tunnel, 0),
            frame,
        );
        cases.push(case.passes(Reason::NotOurs));
    }
    // A masqueraded port does not hide a pod's own traffic.
    let spec = Spec::new(Upper::Tcp(ACK), u.base.pod, 9, u.base.outside, SNAT);
    cases.push(at("a pod's own", spec.build()));
    cases
}
