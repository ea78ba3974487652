//! Clients outside, and what is masqueraded: `tulle_nic_in` and `tulle_pod_from`.

use datapath_common::{Feature, FlowState, FrontendFlags, Hook, Ip4, Ip6, Reason};

use super::Case;
use super::fixture::{LOCAL_ID, NOW, OUTSIDE_ID, OWN_ID, REMOTE_ID, SPORT};
use super::uplink::{Flow, HOST_ID, MASQUERADE, NODE_PORT, OPENERS, SYN, Uplink};
use crate::model::{FragmentId, FragmentRow, Verdict};
use crate::packet::tcp_flag::{ACK, FIN};
use crate::packet::{Piece, Spec, Upper};

const EVERY_BACKEND: [(u32, &str); 4] = [
    (LOCAL_ID, "local"),
    (REMOTE_ID, "remote"),
    (OUTSIDE_ID, "outside"),
    (HOST_ID, "this node"),
];

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = opening(u);
    cases.extend(refusals(u));
    cases.extend(lists(u));
    cases.extend(later_packets(u));
    cases.extend(fragments(u));
    cases
}

/// A masqueraded flow, unless it goes to this node.
pub fn masqueraded(u: &Uplink, flow: Flow) -> Flow {
    let nat = (flow.id != HOST_ID).then(|| u.masquerade(&flow));
    Flow { nat, ..flow }
}

fn opening(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        for (id, place) in EVERY_BACKEND {
            let plain = u.outside_flow(kind, id);
            let node_port = Flow {
                frontend: (u.own, NODE_PORT),
                ..plain
            };
            for (what, flow) in [("load balancer", plain), ("node port", node_port)] {
                let name = |policy| format!("{policy}: {} to a {what}, backend {place}", kind.name);
                cases.push(u.opens(Hook::NicIn, &name("KP-112 kept"), &flow, 0));
                let flow = masqueraded(u, flow);
                cases.push(u.opens(Hook::NicIn, &name("KP-111 hidden"), &flow, MASQUERADE));
            }
            let flow = masqueraded(u, u.pod_flow(kind, id));
            let name = format!("KP-106 a pod, masqueraded: {}, backend {place}", kind.name);
            cases.push(u.opens(Hook::PodFrom, &name, &flow, MASQUERADE));
            // The flag of the others does not count.
            let flow = u.pod_flow(kind, id);
            let name = format!("KP-71 a pod, kept: {}, backend {place}", kind.name);
            let flags = FrontendFlags::MASQUERADE_OUTSIDE;
            cases.push(u.opens(Hook::PodFrom, &name, &flow, flags));
        }
        let own = u.pod_flow(kind, OWN_ID);
        let hairpin = Flow {
            hairpin: true,
            ..own
        };
        let name = format!("KP-110 {} of a pod to itself", kind.name);
        cases.push(u.opens(Hook::PodFrom, &name, &hairpin, 0));
        let flow = masqueraded(u, own);
        let name = format!("{name}, masqueraded");
        cases.push(u.opens(Hook::PodFrom, &name, &flow, MASQUERADE));
    }
    // No port for it, or no address: nobody is masqueraded.
    let flow = u.outside_flow(SYN, LOCAL_ID);
    let mut case = u.opens(Hook::NicIn, "no ports for sources", &flow, MASQUERADE);
    case.world.config.snat_ports = 0;
    cases.push(case);
    let mut case = u.opens(
        Hook::NicIn,
        "no node address",
        &u.outside_flow(SYN, OUTSIDE_ID),
        MASQUERADE,
    );
    case.world.config.node_ip4 = Ip4::new([0; 4]);
    case.world.config.node_ip6 = Ip6::new([0; 16]);
    cases.push(case);
    // Without the switch nothing is served.
    for frontend in [(u.vip, 80), (u.own, NODE_PORT)] {
        let flow = Flow { frontend, ..flow };
        let mut case = u.case(
            Hook::NicIn,
            "services on the uplink are off",
            &u.world(&flow, 0),
            u.sent(&flow).build(),
        );
        case.world.config.features &= !Feature::UPLINK_SERVICES;
        cases.push(case.passes(Reason::NotOurs));
    }
    cases
}

fn refusals(u: &Uplink) -> Vec<Case> {
    let v6 = u.base.v6;
    let (unreachable, expired) = if v6 {
        ((1, 4), (3, 0))
    } else {
        ((3, 3), (11, 0))
    };
    let mut cases = Vec::new();
    let [syn, udp, _] = OPENERS.map(|kind| u.outside_flow(kind, LOCAL_ID));
    let at = |name: &str, flow: &Flow, spec: &Spec, flags, ids: &[u32]| {
        let world = u.world_of(flow, flags, &[LOCAL_ID, LOCAL_ID + 10], Some(ids));
        u.case(Hook::NicIn, name, &world, spec.build())
    };
    let error = |spec: &Spec, (kind, code): (u8, u8)| u.base.error(spec, kind, code, 0);
    for frontend in [(u.vip, 80), (u.own, NODE_PORT)] {
        let (syn, udp) = (Flow { frontend, ..syn }, Flow { frontend, ..udp });
        let (spec, name) = (u.sent(&udp), "KP-53 nothing anywhere");
        cases.push(
            at(name, &udp, &spec, FrontendFlags::DROP_INSIDE, &[])
                .answered(Reason::NoEndpoints, error(&spec, unreachable)),
        );
        let spec = u.sent(&syn);
        cases.push(
            at(&format!("{name}, TCP"), &syn, &spec, 0, &[])
                .answered(Reason::NoEndpoints, u.base.reset(&spec)),
        );
        let case = at(
            "KP-55 nothing here",
            &syn,
            &spec,
            FrontendFlags::DROP_OUTSIDE,
            &[],
        );
        cases.push(case.drops(Reason::NoLocalEndpoints));
        let spec = Spec {
            ttl: 1,
            ..u.sent(&udp)
        };
        let id = [LOCAL_ID + 10];
        cases.push(
            at("TTL 1", &udp, &spec, 0, &id).answered(Reason::TtlExceeded, error(&spec, expired)),
        );
        let spec = Spec {
            src: if v6 {
                std::net::Ipv6Addr::LOCALHOST.into()
            } else {
                std::net::Ipv4Addr::LOCALHOST.into()
            },
            ..u.sent(&udp)
        };
        cases.push(at("from loopback", &udp, &spec, 0, &id).drops(Reason::MartianSource));
    }
    // Where no service is.
    let other = Spec {
        dport: 81,
        ..u.sent(&udp)
    };
    let id = [LOCAL_ID + 10];
    cases.push(
        at("no service on this port", &udp, &other, 0, &id)
            .answered(Reason::NoSuchPort, error(&other, unreachable)),
    );
    let spec = Spec {
        ttl: 1,
        ..other.clone()
    };
    cases.push(
        at("no service on this port, TTL 1", &udp, &spec, 0, &id)
            .answered(Reason::TtlExceeded, error(&spec, expired)),
    );
    let later = Spec {
        piece: Some(Piece {
            offset: 5,
            more: false,
        }),
        dont_fragment: false,
        ..u.sent(&udp)
    };
    cases.push(
        at("a later fragment alone", &udp, &later, 0, &id).drops(Reason::FragmentWithoutFirst),
    );
    for (name, spec) in [("port", other), ("fragment", later)] {
        let spec = Spec { dst: u.own, ..spec };
        let node_port = Flow {
            frontend: (u.own, NODE_PORT),
            ..udp
        };
        let name = format!("KP-40 the node's own {name}");
        cases.push(at(&name, &node_port, &spec, 0, &id).passes(Reason::NotOurs));
    }
    cases
}

/// Each client has the list that is for it.
fn lists(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, hook, flow, inside, outside) in [
        (
            "KP-70 outside: local only",
            Hook::NicIn,
            u.outside_flow(SYN, LOCAL_ID),
            REMOTE_ID,
            LOCAL_ID,
        ),
        (
            "KP-71 a pod: everywhere",
            Hook::PodFrom,
            u.pod_flow(SYN, REMOTE_ID),
            REMOTE_ID,
            LOCAL_ID,
        ),
    ] {
        let mut case = u.opens(hook, name, &flow, 0);
        case.world = u.world_of(&flow, 0, &[inside], Some(&[outside]));
        cases.push(case);
    }
    let pod = u.pod_flow(SYN, LOCAL_ID);
    let mut case = u.case(
        Hook::PodFrom,
        "KP-54 nothing here for a pod",
        &u.base.world,
        u.sent(&pod).build(),
    );
    case.world = u.world_of(&pod, FrontendFlags::DROP_INSIDE, &[], Some(&[LOCAL_ID]));
    cases.push(case.drops(Reason::NoLocalEndpoints));
    let mut case = u.case(
        Hook::PodFrom,
        "KP-55 nothing here for others, nothing anywhere for a pod",
        &u.base.world,
        u.sent(&pod).build(),
    );
    case.world = u.world_of(&pod, FrontendFlags::DROP_OUTSIDE, &[], Some(&[]));
    cases.push(case.answered(Reason::NoEndpoints, u.base.reset(&u.sent(&pod))));
    cases
}

/// What comes after the packet that opened a flow.
fn later_packets(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let with = |flow: &Flow, upper| Spec {
        upper,
        ..u.sent(flow)
    };
    for (id, place) in [
        (LOCAL_ID, "local"),
        (REMOTE_ID, "remote"),
        (OUTSIDE_ID, "outside"),
    ] {
        let flow = masqueraded(u, u.outside_flow(SYN, id));
        let packet = |name: &str, flags: u8| {
            let spec = with(&flow, Upper::Tcp(flags));
            let (reason, verdict, out) = u.leaving(Hook::NicIn, &flow, &u.translated(&flow, &spec));
            let world = u.world(&flow, MASQUERADE);
            u.case(
                Hook::NicIn,
                &format!("{name}, backend {place}"),
                &world,
                spec.build(),
            )
            .leaves(reason, verdict, out)
        };
        let old = u.rows(&flow, FlowState::Established, 1);
        let mut known = packet("data of a masqueraded flow", ACK);
        known.world.flows.extend(old);
        let mut again = packet("a SYN again", crate::packet::tcp_flag::SYN);
        again.world.flows.extend(old);
        let mut end = packet("a FIN", FIN | ACK);
        end.world.flows.extend(old);
        end.flows.extend(old.map(|(id, mut row)| {
            (row.state, row.seen) = (FlowState::Closing, NOW);
            (id, row)
        }));
        let lost = packet("data of a flow that is lost", ACK);
        let lost = lost.writes(u.rows(&flow, FlowState::Opening, 0));
        let mut half = packet("data whose reply row is lost", ACK);
        half.world = u.world(&flow, MASQUERADE | FrontendFlags::FLOWS_MAY_BE_LOST);
        half.world.flows.extend(old.into_iter().take(1));
        half.flows.extend(old.map(|(id, mut row)| {
            row.seen = NOW;
            (id, row)
        }));
        let unknown = packet("KP-58 a FIN of no flow", FIN | ACK).drops(Reason::UnknownFlow);
        cases.extend([known, again, end, lost, half, unknown]);
    }
    // To the node itself nobody is masqueraded, and a FIN goes on.
    let host = u.outside_flow(SYN, HOST_ID);
    let spec = with(&host, Upper::Tcp(FIN | ACK));
    let out = u.translated(&host, &spec).build();
    let world = u.world(&host, MASQUERADE);
    cases.push(
        u.case(
            Hook::NicIn,
            "a FIN of no flow to this node",
            &world,
            spec.build(),
        )
        .leaves(Reason::TranslatedToKernel, Verdict::Kernel, out),
    );
    // Data of a flow that is not masqueraded asks nothing.
    let plain = u.outside_flow(SYN, LOCAL_ID);
    let spec = with(&plain, Upper::Tcp(ACK));
    let (reason, verdict, out) = u.leaving(Hook::NicIn, &plain, &u.translated(&plain, &spec));
    cases.push(
        u.case(
            Hook::NicIn,
            "data opens no flow",
            &u.world(&plain, 0),
            spec.build(),
        )
        .leaves(reason, verdict, out),
    );
    // From a pod's address, at the uplink: a client outside like every other.
    let flow = Flow {
        client: (u.base.remote, SPORT),
        ..plain
    };
    cases.push(u.opens(
        Hook::NicIn,
        "KP-74 another node's pod is outside",
        &flow,
        FrontendFlags::MASQUERADE_PODS,
    ));
    cases
}

/// Fragments of a datagram from outside, and of its answer.
fn fragments(u: &Uplink) -> Vec<Case> {
    let flow = masqueraded(u, u.outside_flow(OPENERS[1], LOCAL_ID));
    let piece = |offset, more| Some(Piece { offset, more });
    let mut cases = Vec::new();
    let asked = u.sent(&flow);
    let (answer, back) = u.answer(&flow);
    let routed = |spec: &Spec| u.routed(spec);
    for (name, piece) in [("first", piece(0, true)), ("later", piece(3, false))] {
        let cut = |spec: &Spec| Spec {
            piece,
            dont_fragment: false,
            ..spec.clone()
        };
        let left = |spec: &Spec| {
            let id = FragmentId {
                src: spec.src,
                dst: spec.dst,
                id: spec.id,
                proto: flow.kind.proto,
            };
            let row = FragmentRow {
                sport: spec.sport,
                dport: spec.dport,
                seen: NOW,
                first_octets: cut(spec).ip_octets(),
            };
            (id, row)
        };
        let sent = cut(&asked);
        let to = u.translated(&flow, &sent);
        let (reason, verdict, out) = u.leaving(Hook::NicIn, &flow, &to);
        let old = u.rows(&flow, FlowState::Established, 1);
        let mut there = u
            .case(
                Hook::NicIn,
                &format!("KP-63 a {name} fragment from outside"),
                &u.world(&flow, MASQUERADE),
                sent.build(),
            )
            .leaves(reason, verdict, out);
        there.world.flows.extend(old);
        let sent = cut(&answer);
        let (verdict, out) = routed(&cut(&back));
        let mut again = u
            .case(
                Hook::PodFrom,
                &format!("KP-63 a {name} fragment of the answer"),
                &u.world(&flow, MASQUERADE),
                sent.build(),
            )
            .leaves(Reason::ReplyTranslated, verdict, out);
        again.world.flows.extend(old);
        for (case, spec) in [(&mut there, &asked), (&mut again, &answer)] {
            if name == "first" {
                case.fragments.push(left(spec));
            } else {
                case.world.fragments.extend([left(spec)]);
            }
        }
        cases.extend([there, again]);
    }
    cases
}
