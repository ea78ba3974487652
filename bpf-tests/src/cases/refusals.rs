//! "Refuse".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Limit, Reason};

use super::fixture::NOW;
use super::{Case, Fixture};
use crate::packet::{Piece, Spec, Upper, tcp_flag};
use crate::strategies::config;

pub fn cases(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    let (unreachable, expired) = if f.v6 {
        ((1, 4), (3, 0))
    } else {
        ((3, 3), (11, 0))
    };
    let mut refused =
        |name: &str, spec: &Spec, reason: Reason, (kind, code): (u8, u8), mtu: u16| {
            let is_tcp = matches!(spec.upper, Upper::Tcp(_));
            let answer = if is_tcp && matches!(reason, Reason::NoEndpoints | Reason::NoSuchPort) {
                f.reset(spec)
            } else {
                f.error(spec, kind, code, mtu)
            };
            cases.push(f.case(name, spec).answered(reason, answer));
        };
    let tcp = Upper::Tcp(tcp_flag::SYN);
    for upper in [tcp, Upper::Udp, Upper::Sctp(Some(1))] {
        let spec = f.from_client(upper, f.empty_service, 80);
        refused(
            &format!("{upper:?}, no endpoints"),
            &spec,
            Reason::NoEndpoints,
            unreachable,
            0,
        );
        let spec = f.from_client(upper, f.local_service, 81);
        refused(
            &format!("{upper:?}, no such port"),
            &spec,
            Reason::NoSuchPort,
            unreachable,
            0,
        );
    }
    let ping = f.from_client(Upper::Icmp(if f.v6 { 128 } else { 8 }), f.local_service, 0);
    refused(
        "ping of a service address",
        &ping,
        Reason::NoSuchPort,
        unreachable,
        0,
    );
    let unknown = f.from_client(Upper::Other(47), f.local_service, 0);
    refused(
        "GRE to a service address",
        &unknown,
        Reason::NoSuchPort,
        unreachable,
        0,
    );
    for ttl in [0, 1] {
        for (name, dst) in [
            ("service", f.local_service),
            ("pod", f.pod),
            ("remote pod", f.remote),
        ] {
            let spec = Spec {
                ttl,
                ..f.from_client(tcp, dst, 80)
            };
            refused(
                &format!("TTL {ttl} to a {name}"),
                &spec,
                Reason::TtlExceeded,
                expired,
                0,
            );
        }
    }
    let mtu = f.world.config.overlay_mtu;
    let headers = if f.v6 { 48 } else { 28 };
    let big = Spec {
        payload: vec![1; usize::from(mtu) - headers + 1],
        ..f.from_client(Upper::Udp, f.remote, 80)
    };
    let too_big = if f.v6 { (2, 0) } else { (3, 4) };
    refused(
        "too big for the overlay",
        &big,
        Reason::TooBig,
        too_big,
        mtu,
    );

    let service = Spec {
        dst: f.remote_service,
        ..big
    };
    let (kind, code) = too_big;
    let case = f.case(
        "too big through a service quotes what the pod sent",
        &service,
    );
    cases.push(case.answered(Reason::TooBig, f.error(&service, kind, code, mtu)));

    let udp = f.from_client(Upper::Udp, f.empty_service, 80);
    let piece = |offset, more| Some(Piece { offset, more });
    let first = Spec {
        piece: piece(0, true),
        ..udp.clone()
    };
    if f.v6 {
        let case = f.case("extension headers are not answered", &first);
        cases.push(case.drops(Reason::Unanswerable));
    } else {
        let (kind, code) = unreachable;
        let answer = f.error(&first, kind, code, 0);
        cases.push(
            f.case("a first fragment is", &first)
                .answered(Reason::NoEndpoints, answer),
        );
        let spec = Spec {
            option_words: 1,
            ..udp.clone()
        };
        cases.push(
            f.case("options are not answered", &spec)
                .drops(Reason::Unanswerable),
        );
    }
    let later = Spec {
        piece: piece(8, false),
        dst: f.pod,
        ttl: 1,
        ..udp.clone()
    };
    cases.push(
        f.case("a later fragment is not answered", &later)
            .drops(Reason::Unanswerable),
    );
    let error = f.from_client(Upper::Icmp(if f.v6 { 1 } else { 3 }), f.local_service, 0);
    cases.push(
        f.case("an ICMP error is not answered", &error)
            .drops(Reason::Unanswerable),
    );
    let sources: &[IpAddr] = if f.v6 {
        &[
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ]
    } else {
        &[
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(Ipv4Addr::BROADCAST),
            IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)),
        ]
    };
    for src in sources {
        let spec = Spec {
            src: *src,
            ttl: 1,
            ..f.from_client(Upper::Udp, f.pod, 9)
        };
        let case = f.case(&format!("{src} is not answered"), &spec);
        cases.push(case.drops(Reason::Unanswerable));
    }
    let mut limited = f
        .case("no grant left for an error", &udp)
        .drops(Reason::ErrorLimit);
    limited.world.config = config(3);
    limited.world.error_grants = Limit {
        tick: NOW,
        count: 1,
    };
    cases.push(limited);
    cases
}
