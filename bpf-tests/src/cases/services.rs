//! "Service": choice, translation, opening.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{BackendState, FlowState, FrontendFlags, Limit, Reason, proto};

use super::fixture::{BPORT, LOCAL_ID, NOW, OUTSIDE_ID, OWN_ID, REMOTE_ID};
use super::{Case, Fixture};
use crate::model::{FragmentId, FragmentRow, Verdict};
use crate::packet::{Piece, Spec, Sum, Upper, tcp_flag};

pub fn cases(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    let opening = FlowState::Opening;
    for (name, proto, upper, more) in [
        ("TCP SYN", proto::TCP, Upper::Tcp(tcp_flag::SYN), 0),
        ("UDP", proto::UDP, Upper::Udp, 10),
        ("SCTP INIT", proto::SCTP, Upper::Sctp(Some(1)), 20),
    ] {
        for sum in [Sum::Right, Sum::Zero] {
            // Only UDP over IPv4 knows "no checksum".
            if sum == Sum::Zero && (proto != proto::UDP || f.v6) {
                continue;
            }
            let spec = Spec {
                sum,
                ..f.from_client(upper, f.local_service, 80)
            };
            let to = Spec {
                dst: f.pod,
                dport: BPORT,
                ..spec.clone()
            };
            let (verdict, out) = Fixture::delivered(&to, 3);
            cases.push(
                f.case(&format!("{name} to a local backend, sum {sum:?}"), &spec)
                    .leaves(Reason::DeliveredLocal, verdict, out)
                    .writes(f.rows(proto, f.local_service, LOCAL_ID + more, opening, 0)),
            );
        }
        let spec = f.from_client(upper, f.remote_service, 80);
        let (verdict, out) = f.encapsulated(&Spec {
            dst: f.remote,
            dport: BPORT,
            ..spec.clone()
        });
        cases.push(
            f.case(&format!("{name} to a remote backend"), &spec)
                .leaves(Reason::Encapsulated, verdict, out)
                .writes(f.rows(proto, f.remote_service, REMOTE_ID + more, opening, 0)),
        );
        let spec = f.from_client(upper, f.outside_service, 80);
        let out = Spec {
            dst: f.outside,
            dport: BPORT,
            ..spec.clone()
        }
        .build();
        cases.push(
            f.case(
                &format!("{name} to a backend that the kernel reaches: TTL left alone"),
                &spec,
            )
            .leaves(Reason::TranslatedToKernel, Verdict::Kernel, out)
            .writes(f.rows(proto, f.outside_service, OUTSIDE_ID + more, opening, 0)),
        );
        let spec = f.from_client(upper, f.own_service, 80);
        let to = Spec {
            src: f.own_service,
            dst: f.client,
            dport: BPORT,
            ..spec.clone()
        };
        let (verdict, out) = Fixture::delivered(&to, 2);
        cases.push(
            f.case(&format!("{name} to itself (hairpin)"), &spec)
                .leaves(Reason::DeliveredLocal, verdict, out)
                .writes(f.rows(proto, f.own_service, OWN_ID + more, opening, 0)),
        );
    }
    for (name, upper) in [
        ("TCP ACK", Upper::Tcp(tcp_flag::ACK)),
        ("SCTP data", Upper::Sctp(Some(0))),
        ("SCTP SACK", Upper::Sctp(Some(3))),
        ("TCP RST", Upper::Tcp(tcp_flag::RST)),
        ("TCP FIN", Upper::Tcp(tcp_flag::FIN | tcp_flag::ACK)),
    ] {
        let spec = f.from_client(upper, f.local_service, 80);
        let (verdict, out) = Fixture::delivered(
            &Spec {
                dst: f.pod,
                dport: BPORT,
                ..spec.clone()
            },
            3,
        );
        let case = f.case(&format!("{name} opens no flow"), &spec);
        cases.push(case.leaves(Reason::DeliveredLocal, verdict, out));
    }
    let ack = f.from_client(Upper::Tcp(tcp_flag::ACK), f.local_service, 80);
    let (verdict, out) = Fixture::delivered(
        &Spec {
            dst: f.pod,
            dport: BPORT,
            ..ack.clone()
        },
        3,
    );
    let mut case = f
        .case("TCP ACK opens a flow where flows decide", &ack)
        .leaves(Reason::DeliveredLocal, verdict, out)
        .writes(f.rows(proto::TCP, f.local_service, LOCAL_ID, opening, 0));
    for row in case.world.frontends.values_mut() {
        row.flags |= FrontendFlags::FLOWS_DECIDE;
    }
    cases.push(case);

    let syn = f.from_client(Upper::Tcp(tcp_flag::SYN), f.local_service, 80);
    for state in [BackendState::Draining, BackendState::Free] {
        let mut case = f.case(&format!("a slot whose backend is {state:?}"), &syn);
        for row in case.world.backends.values_mut() {
            row.state = state;
        }
        cases.push(case.drops(Reason::BackendGone));
    }
    let mut case = f
        .case("no grant left for a new flow", &syn)
        .drops(Reason::NewFlowLimit);
    case.world.config = crate::strategies::config(3);
    case.world.flow_grants = Limit {
        tick: NOW,
        count: 1,
    };
    cases.push(case);
    for (name, octets) in [("UDP", 7), ("TCP", 17), ("TCP", 16)] {
        let number = if name == "UDP" {
            proto::UDP
        } else {
            proto::TCP
        };
        let mut body = Spec {
            payload: Vec::new(),
            ..ack.clone()
        };
        body.upper = if name == "UDP" { Upper::Udp } else { ack.upper };
        let upper = body.build();
        let at = upper.len() - if name == "UDP" { 8 } else { 20 };
        let spec = Spec {
            upper: Upper::Other(number),
            payload: upper[at..at + octets].to_vec(),
            ..ack.clone()
        };
        let case = f.case(
            &format!("{name} of {octets} octets has no checksum to change"),
            &spec,
        );
        cases.push(case.drops(Reason::Truncated));
    }
    cases.extend(martians(f));
    cases.extend(fragments(f));
    cases
}

fn martians(f: &Fixture) -> Vec<Case> {
    let sources: &[IpAddr] = if f.v6 {
        &[
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 1)),
        ]
    } else {
        &[
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::new(127, 8, 0, 1)),
            IpAddr::V4(Ipv4Addr::new(224, 0, 0, 9)),
        ]
    };
    let to_service = |src: &IpAddr| {
        let udp = f.from_client(Upper::Udp, f.local_service, 80);
        f.case(
            &format!("for a service from {src}"),
            &Spec { src: *src, ..udp },
        )
        .drops(Reason::MartianSource)
    };
    sources.iter().map(to_service).collect()
}

fn fragments(f: &Fixture) -> Vec<Case> {
    let first = Spec {
        piece: Some(Piece {
            offset: 0,
            more: true,
        }),
        dont_fragment: false,
        ..f.from_client(Upper::Udp, f.local_service, 80)
    };
    let id = FragmentId {
        src: f.client,
        dst: f.local_service,
        id: first.id,
        proto: proto::UDP,
    };
    let row = FragmentRow {
        sport: first.sport,
        dport: 80,
        seen: NOW,
        first_octets: first.ip_octets(),
    };
    let rows = || {
        f.rows(
            proto::UDP,
            f.local_service,
            LOCAL_ID + 10,
            FlowState::Opening,
            0,
        )
    };
    let (verdict, out) = Fixture::delivered(
        &Spec {
            dst: f.pod,
            dport: BPORT,
            ..first.clone()
        },
        3,
    );
    let mut leaves = f.case("a first fragment leaves its ports", &first).leaves(
        Reason::DeliveredLocal,
        verdict,
        out,
    );
    leaves.flows.extend(rows());
    leaves.fragments.push((id, row));

    let later = Spec {
        piece: Some(Piece {
            offset: 3,
            more: false,
        }),
        ..first.clone()
    };
    let (verdict, out) = Fixture::delivered(
        &Spec {
            dst: f.pod,
            ..later.clone()
        },
        3,
    );
    let mut follows = f.case("a later fragment follows its first", &later).leaves(
        Reason::DeliveredLocal,
        verdict,
        out,
    );
    follows.world.fragments.insert(id, row);
    follows.world.flows.extend(rows());
    let alone = f
        .case("a later fragment alone", &later)
        .drops(Reason::FragmentWithoutFirst);
    vec![leaves, follows, alone]
}
