//! "Parsing".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::Reason;

use super::{Case, Fixture};
use crate::packet::{Piece, Spec, Upper, tcp_flag};

const IP: usize = 14;

pub fn cases(f: &Fixture) -> Vec<Case> {
    let udp = f.from_client(Upper::Udp, f.pod, 9);
    let with = |change: &dyn Fn(&mut Spec)| {
        let mut spec = udp.clone();
        change(&mut spec);
        spec
    };
    let mut cases = vec![
        f.case("a VLAN tag in the frame", &with(&|s| s.vlan = Some(5)))
            .passes(Reason::Tagged),
    ];
    let mut raw = |name: &str, frame: Vec<u8>, reason: Reason| {
        let case = f.case_at(datapath_common::Hook::PodFrom, name, frame);
        cases.push(if reason.group() == datapath_common::Group::Dropped {
            case.drops(reason)
        } else {
            case.passes(reason)
        });
    };
    let bytes = udp.build();
    let patched = |at: usize, new: &[u8]| {
        let mut frame = bytes.clone();
        frame[at..at + new.len()].copy_from_slice(new);
        frame
    };
    raw("an 802.1ad tag", patched(12, &[0x88, 0xa8]), Reason::Tagged);
    raw("ARP", patched(12, &[0x08, 0x06]), Reason::NotIp);
    raw(
        "an Ethernet header alone",
        bytes[..14].to_vec(),
        Reason::Truncated,
    );
    raw(
        "one octet short of the IP header",
        {
            let size = if f.v6 { 40 } else { 20 };
            bytes[..IP + size - 1].to_vec()
        },
        Reason::Truncated,
    );
    raw(
        "a version that is neither",
        patched(IP, &[0x75]),
        Reason::BadHeader,
    );
    raw(
        "one octet less than the length says",
        bytes[..bytes.len() - 1].to_vec(),
        Reason::BadHeader,
    );
    if f.v6 {
        raw(
            "a payload beyond the frame",
            patched(IP + 4, &[0xff, 0xff]),
            Reason::BadHeader,
        );
    } else {
        raw(
            "a header of 16 octets",
            patched(IP, &[0x44]),
            Reason::BadHeader,
        );
        raw(
            "a total length of 19",
            patched(IP + 2, &[0, 19]),
            Reason::BadHeader,
        );
        raw(
            "a total length of 0",
            patched(IP + 2, &[0, 0]),
            Reason::BadHeader,
        );
    }
    let control: &[IpAddr] = if f.v6 {
        &[
            IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1)),
            IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
            IpAddr::V6(Ipv6Addr::new(0xfebf, 0, 0, 0, 0, 0, 0, 1)),
        ]
    } else {
        &[
            IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)),
            IpAddr::V4(Ipv4Addr::new(239, 255, 255, 255)),
            IpAddr::V4(Ipv4Addr::BROADCAST),
            IpAddr::V4(Ipv4Addr::new(169, 254, 0, 1)),
        ]
    };
    for dst in control {
        raw(
            &format!("to {dst}"),
            with(&|s| s.dst = *dst).build(),
            Reason::Control,
        );
    }
    for (name, upper, needs) in [
        ("UDP", Upper::Udp, 4),
        ("TCP", Upper::Tcp(tcp_flag::ACK), 14),
        ("SCTP", Upper::Sctp(Some(0)), 4),
        ("ICMP", Upper::Icmp(8), 8),
    ] {
        // A packet of that length, not a frame cut short.
        let spec = with(&|s| {
            s.upper = Upper::Other(Spec { upper, ..s.clone() }.proto());
            s.payload = vec![0x11; needs - 1];
        });
        let mut frame = spec.build();
        raw(
            &format!("{name} of {} octets", needs - 1),
            frame.clone(),
            Reason::Truncated,
        );
        frame.extend([0; 20]);
        let padded = format!("{name} of {} octets and padding", needs - 1);
        raw(&padded, frame, Reason::Truncated);
        let to_all = Spec {
            dst: control[0],
            ..spec
        };
        raw(
            &format!("{name} cut short to {}", control[0]),
            to_all.build(),
            Reason::Control,
        );
    }
    if f.v6 {
        let spec = with(&|s| {
            s.upper = Upper::Other(60);
            s.payload = vec![17, 0, 1, 4];
        });
        raw("half an extension header", spec.build(), Reason::Truncated);
        cases.extend(extensions(f));
    } else {
        let spec = with(&|s| s.option_words = 3);
        let (verdict, out) = Fixture::delivered(&spec, 3);
        let case = f.case("options are skipped", &spec);
        cases.push(case.leaves(Reason::DeliveredLocal, verdict, out));
    }
    cases
}

fn extensions(f: &Fixture) -> Vec<Case> {
    let tcp = f.from_client(Upper::Tcp(tcp_flag::ACK), f.local_service, 80);
    let six = Spec {
        extensions: vec![0, 43, 60, 60, 60, 60],
        ..tcp.clone()
    };
    let to = Spec {
        dst: f.pod,
        dport: super::fixture::BPORT,
        ..six.clone()
    };
    let (verdict, out) = Fixture::delivered(&to, 3);
    let seven = Spec {
        extensions: vec![0, 60, 60, 60, 60, 60, 60],
        ..tcp.clone()
    };
    let atomic = Spec {
        piece: Some(Piece {
            offset: 0,
            more: false,
        }),
        ..tcp
    };
    let whole = Spec {
        dst: f.pod,
        dport: super::fixture::BPORT,
        ..atomic.clone()
    };
    let (whole_verdict, whole_out) = Fixture::delivered(&whole, 3);
    vec![
        f.case("six extension headers", &six)
            .leaves(Reason::DeliveredLocal, verdict, out),
        // Unknown protocol: no frontend, and an answer would need the headers.
        f.case("seven extension headers", &seven)
            .drops(Reason::Unanswerable),
        f.case("an atomic fragment is no fragment", &atomic).leaves(
            Reason::DeliveredLocal,
            whole_verdict,
            whole_out,
        ),
    ]
}
