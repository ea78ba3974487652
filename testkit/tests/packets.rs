//! Packets are built right, by the judgement of another library, and come back
//! as they were. Needs no root.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{PacketHeaders, TransportHeader};
use testkit::packet::{
    Extension, Fault, Frame, L4, Net, Outer, chunk, flags, fragments, parse, proto, unwrap_vxlan,
    verify, vxlan,
};

const A4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 11);
const B4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const A6: Ipv6Addr = Ipv6Addr::new(0xfd44, 0, 0, 1, 0, 0, 0, 0x11);
const B6: Ipv6Addr = Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x10);

fn both() -> [Frame; 2] {
    [Frame::v4(A4, B4), Frame::v6(A6, B6)]
}

fn samples() -> Vec<Frame> {
    let mut out = Vec::new();
    for base in both() {
        // Odd, even and empty payloads meet every case of the sums.
        for payload in [&b""[..], b"a", b"ab", b"hello, node"] {
            out.push(
                base.clone()
                    .ttl(3)
                    .tos(8)
                    .tcp(40_000, 80, flags::SYN)
                    .payload(payload),
            );
            out.push(
                base.clone()
                    .tcp(1, 2, flags::FIN | flags::ACK)
                    .vlan(0x8100, 7)
                    .payload(payload),
            );
            out.push(base.clone().df().udp(5353, 53).payload(payload));
            out.push(base.clone().echo_request(7, 1).payload(payload));
            out.push(
                base.clone()
                    .options(&[1, 1, 1, 0])
                    .udp(9, 10)
                    .payload(payload),
            );
            let hop = Extension::Sized(proto::HOP_BY_HOP, vec![1, 4, 0, 0, 0, 0]);
            let destination = Extension::Sized(
                proto::DESTINATION,
                vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            );
            out.push(
                base.clone()
                    .extension(hop)
                    .extension(destination)
                    .tcp(3, 4, flags::RST)
                    .payload(payload),
            );
        }
        out.push(base.clone().sctp(1, 2, chunk::INIT).payload(b"abcd"));
        out.push(base.clone().sctp(1, 2, chunk::DATA).payload(b"odd"));
        out.push(base.clone().raw(47, b"gre"));
        out.push(
            base.clone()
                .fragment(185, true, 0x1234)
                .raw(proto::UDP, &[1; 16]),
        );
    }
    out.push(Frame::other(0x0806, &[0; 28]));
    out
}

#[test]
fn frames_come_back_as_they_were() {
    for frame in samples() {
        let bytes = frame.bytes();
        let back = verify(&bytes).unwrap_or_else(|fault| panic!("{frame}: {fault}"));
        assert_eq!(back, frame, "{frame}");
        // Ethernet pads short frames.
        if !matches!(frame.net, Net::Other(..)) {
            let padded = [&bytes[..], &[0; 20]].concat();
            assert_eq!(verify(&padded).unwrap(), frame, "{frame}, padded");
        }
    }
}

#[test]
fn another_library_finds_the_same_checksums() {
    let mut checked = 0;
    for frame in samples() {
        let bytes = frame.bytes();
        let headers = PacketHeaders::from_ethernet_slice(&bytes).unwrap();
        let payload = headers.payload.slice();
        let Some(net) = &headers.net else { continue };
        if let Some((ip, _)) = net.ipv4_ref() {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "{frame}");
            checked += 1;
        }
        let v4 = net.ipv4_ref().map(|(ip, _)| ip.clone());
        let v6 = net.ipv6_ref().map(|(ip, _)| ip.clone());
        let (found, expected) = match (&headers.transport, v4, v6) {
            (Some(TransportHeader::Tcp(tcp)), Some(ip), _) => {
                (tcp.checksum, tcp.calc_checksum_ipv4(&ip, payload).unwrap())
            }
            (Some(TransportHeader::Tcp(tcp)), _, Some(ip)) => {
                (tcp.checksum, tcp.calc_checksum_ipv6(&ip, payload).unwrap())
            }
            (Some(TransportHeader::Udp(udp)), Some(ip), _) => {
                (udp.checksum, udp.calc_checksum_ipv4(&ip, payload).unwrap())
            }
            (Some(TransportHeader::Udp(udp)), _, Some(ip)) => {
                (udp.checksum, udp.calc_checksum_ipv6(&ip, payload).unwrap())
            }
            (Some(TransportHeader::Icmpv4(icmp)), ..) => {
                (icmp.checksum, icmp.icmp_type.calc_checksum(payload))
            }
            (Some(TransportHeader::Icmpv6(icmp)), _, Some(ip)) => {
                let sum = icmp
                    .icmp_type
                    .calc_checksum(ip.source, ip.destination, payload);
                (icmp.checksum, sum.unwrap())
            }
            _ => continue,
        };
        assert_eq!(found, expected, "{frame}");
        checked += 1;
    }
    assert!(checked > 60, "only {checked} checksums were compared");
}

#[test]
fn every_changed_octet_that_a_checksum_covers_is_noticed() {
    let cases = [
        (
            Frame::v4(A4, B4)
                .tcp(40_000, 80, flags::SYN)
                .payload(b"data"),
            14,
        ),
        (Frame::v4(A4, B4).udp(40_000, 53).payload(b"data"), 14),
        (
            Frame::v4(A4, B4).sctp(4, 5, chunk::INIT).payload(b"data"),
            14,
        ),
        (Frame::v4(A4, B4).echo_request(1, 1).payload(b"data"), 14),
        // In IPv6 itself only the addresses are covered.
        (
            Frame::v6(A6, B6)
                .tcp(40_000, 80, flags::SYN)
                .payload(b"data"),
            22,
        ),
        (Frame::v6(A6, B6).udp(40_000, 53).payload(b"data"), 22),
        (Frame::v6(A6, B6).echo_request(1, 1).payload(b"data"), 22),
    ];
    for (frame, from) in cases {
        let right = frame.bytes();
        for at in from..right.len() {
            let mut wrong = right.clone();
            wrong[at] ^= 0x10;
            assert!(verify(&wrong).is_err(), "{frame}: octet {at}");
        }
        for len in 0..right.len() {
            assert!(
                matches!(parse(&right[..len]), Err(Fault::Short(..))),
                "{frame}: cut at {len}"
            );
        }
    }
}

#[test]
fn udp_without_checksum_is_right_in_ipv4_only() {
    for frame in both() {
        let v6 = matches!(frame.net, Net::V6(_));
        let mut frame = frame.udp(1, 2).payload(b"x");
        let Some(L4::Udp(udp)) = frame.upper_mut() else {
            panic!("UDP was asked for")
        };
        udp.no_checksum = true;
        assert_eq!(verify(&frame.bytes()).is_err(), v6, "{frame}");
    }
}

#[test]
fn fragments_join_to_the_whole() {
    for base in both() {
        let data: Vec<u8> = (0..3000_u16).map(|n| n as u8).collect();
        let whole = base.udp(7, 8).payload(&data);
        let parts = fragments(&whole, 1000, 77);
        assert_eq!(parts.len(), 4, "{whole}");
        let header = whole.bytes().len() - 3008;
        let mut joined = whole.bytes()[..header].to_vec();
        for (n, part) in parts.iter().enumerate() {
            verify(&part.bytes()).unwrap();
            assert!(part.bytes().len() <= 1014, "{part}");
            let Some(L4::Raw(proto::UDP, bytes)) = part.upper() else {
                panic!("{part}")
            };
            joined.extend(bytes);
            assert_eq!(part.to_string().contains("+,"), n < 3, "{part}");
        }
        assert_eq!(verify(&joined).unwrap(), whole);
    }
}

#[test]
fn vxlan_wraps_and_unwraps() {
    let inner = Frame::v6(A6, B6).tcp(40_000, 80, flags::SYN);
    let outer = Outer::new([192, 168, 77, 11].into(), [192, 168, 77, 12].into());
    let bytes = vxlan(outer, &inner.bytes());
    assert_eq!(bytes.len(), inner.bytes().len() + 50);
    let found = unwrap_vxlan(&verify(&bytes).unwrap()).unwrap();
    assert_eq!((found.flags, found.vni), (8, 1));
    assert_eq!(parse(&found.inner).unwrap(), inner);

    let mut wrong = bytes;
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(verify(&wrong), Err(Fault::Checksum("TCP")));

    let text = testkit::capture::describe_vxlan(&vxlan(outer, &inner.bytes()), 8472).unwrap();
    for part in [
        "192.168.77.11:40000 > 192.168.77.12:8472",
        "VNI 1",
        "[fd44:0:0:1::11]:40000",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_frame_prints_in_one_line() {
    let frame = Frame::v4(A4, B4)
        .df()
        .id(5)
        .tcp(40_000, 80, flags::SYN | flags::ACK)
        .payload(b"abc");
    let text = "10.244.1.11:40000 > 10.96.0.10:80 ttl 64 DF, TCP SYN+ACK seq 1 ack 1, 3 octets";
    assert_eq!(frame.to_string(), text);
    let frame = Frame::v6(A6, B6).echo_request(1, 1);
    assert_eq!(
        frame.to_string(),
        "fd44:0:0:1::11 > fd96::10 hop limit 64, ICMP 128/0"
    );
}
