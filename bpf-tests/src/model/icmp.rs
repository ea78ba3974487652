//! The errors that a router answers with (RFC 792, RFC 4443).

use std::net::IpAddr;

use datapath_common::{Reason, proto};

use super::client::Client;
use super::flow::granted;
use super::icmp_errors::is_error;
use super::parse::{Packet, octets};
use super::{Ctx, Outcome, Verdict, World};
use crate::packet::tcp_flag::{ACK, FIN, RST, SYN};
use crate::packet::{ETHERNET, internet_checksum, octets_of, upper_checksum};

/// TTL of the answers; the rules leave it open, and comparisons leave it out.
const ERROR_TTL: u8 = 64;

/// Refuses the packet that `frame` holds as the client sent it, for `cause`.
pub fn refuse(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    cause: Reason,
    client: Client,
    ctx: &Ctx,
) -> Outcome {
    let reset =
        packet.ip.proto == proto::TCP && matches!(cause, Reason::NoEndpoints | Reason::NoSuchPort);
    // A reset answers no reset.
    if !answerable(frame, packet) || (reset && packet.tcp_flags & RST != 0) {
        return Outcome::drop(Reason::Unanswerable, frame);
    }
    let (limit, now) = (world.config.errors_per_tick, world.now);
    if !granted(&mut world.error_grants, limit, now) {
        return Outcome::drop(Reason::ErrorLimit, frame);
    }
    let verdict = match client {
        Client::Pod | Client::Outside => Verdict::RedirectBack {
            ifindex: ctx.ifindex,
        },
        Client::Node => Verdict::AnswerNode {
            ifindex: world.config.uplink,
        },
        Client::Loopback => Verdict::AnswerNode {
            ifindex: world.config.loopback,
        },
    };
    // The node hears it from the address that it wanted.
    let from = match (client, packet.ip.src) {
        (Client::Node | Client::Loopback, _) => packet.ip.dst,
        (_, IpAddr::V4(_)) => IpAddr::from(world.config.router_ip4.octets()),
        (_, IpAddr::V6(_)) => IpAddr::from(world.config.router_ip6.octets()),
    };
    let answer = if reset {
        tcp_reset(frame, packet)
    } else {
        error(world, frame, packet, cause, from)
    };
    Outcome::new(cause, verdict, answer)
}

/// RFC 9293 §3.5.2, group 1: "<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>", or
/// "<SEQ=SEG.ACK><CTL=RST>" if the segment has ACK.
fn tcp_reset(frame: &[u8], packet: &Packet) -> Vec<u8> {
    let at = packet.ip.upper;
    let word = |from: usize| u32::from_be_bytes(octets::<4>(frame, at + from).unwrap_or_default());
    let header_length = usize::from(frame.get(at + 12).copied().unwrap_or(0) >> 4) * 4;
    let flags = packet.tcp_flags;
    let mut length = (packet.ip.end - at) as u32;
    length = length.wrapping_sub(header_length as u32);
    length = length.wrapping_add(u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0));
    let (sequence, acknowledgement, control) = if flags & ACK != 0 {
        (word(8), 0, RST)
    } else {
        (0, word(4).wrapping_add(length), RST | ACK)
    };
    let mut tcp = Vec::new();
    tcp.extend(octets::<2>(frame, at + 2).unwrap_or_default());
    tcp.extend(octets::<2>(frame, at).unwrap_or_default());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledgement.to_be_bytes());
    tcp.extend([0x50, control, 0, 0, 0, 0, 0, 0]);
    let (src, dst) = (packet.ip.dst, packet.ip.src);
    let sum = upper_checksum(src, dst, proto::TCP, &tcp);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());

    let mut answer = Vec::new();
    answer.extend(octets::<6>(frame, 6).unwrap_or_default());
    answer.extend(octets::<6>(frame, 0).unwrap_or_default());
    answer.extend(octets::<2>(frame, 12).unwrap_or_default());
    let mut header = if src.is_ipv4() {
        vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, ERROR_TTL, proto::TCP, 0, 0]
    } else {
        vec![0x60, 0, 0, 0, 0, 20, proto::TCP, ERROR_TTL]
    };
    header.extend(octets_of(src));
    header.extend(octets_of(dst));
    if src.is_ipv4() {
        let sum = internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    answer.extend(header);
    answer.extend(tcp);
    answer
}

fn answerable(frame: &[u8], packet: &Packet) -> bool {
    let kind = frame.get(packet.ip.upper).copied();
    let icmp = matches!(packet.ip.proto, proto::ICMP | proto::ICMPV6);
    let is_error = kind.is_some_and(|kind| icmp && is_error(packet.ip.src, kind));
    packet.ip.plain && !packet.is_later_fragment() && !is_error && !is_martian(packet.ip.src)
}

/// A source that nobody can have: unspecified, loopback, multicast, broadcast
/// and, like these, what IPv4 reserves (240.0.0.0/4).
pub fn is_martian(src: IpAddr) -> bool {
    match src {
        IpAddr::V4(a) => a.is_unspecified() || a.is_loopback() || a.octets()[0] >= 224,
        IpAddr::V6(a) => a.is_unspecified() || a.is_loopback() || a.is_multicast(),
    }
}

fn error(world: &World, frame: &[u8], packet: &Packet, cause: Reason, from: IpAddr) -> Vec<u8> {
    let v4 = packet.ip.src.is_ipv4();
    let (kind, code) = match (cause, v4) {
        (Reason::TtlExceeded, true) => (11, 0),
        (Reason::TtlExceeded, false) => (3, 0),
        (Reason::TooBig, true) => (3, 4),
        (Reason::TooBig, false) => (2, 0),
        (_, true) => (3, 3),
        (_, false) => (1, 4),
    };
    let mtu = if cause == Reason::TooBig {
        u32::from(world.config.overlay_mtu)
    } else {
        0
    };
    let quoted = if v4 { 28 } else { 48 };
    // A packet shorter than the quotation is followed by zeros.
    let quote: Vec<u8> = frame
        .iter()
        .skip(ETHERNET)
        .chain(&[0; 48])
        .take(quoted)
        .copied()
        .collect();
    let mut message = vec![kind, code, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quote);

    let mut answer = Vec::new();
    answer.extend(octets::<6>(frame, 6).unwrap_or_default());
    answer.extend(octets::<6>(frame, 0).unwrap_or_default());
    answer.extend(octets::<2>(frame, 12).unwrap_or_default());
    if v4 {
        let mut header = vec![0x45, 0];
        header.extend((20 + message.len() as u16).to_be_bytes());
        header.extend([0, 0, 0, 0, ERROR_TTL, proto::ICMP, 0, 0]);
        header.extend(octets_of(from));
        header.extend(octets_of(packet.ip.src));
        let sum = internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        answer.extend(header);
        let sum = internet_checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    } else {
        answer.extend([0x60, 0, 0, 0]);
        answer.extend((message.len() as u16).to_be_bytes());
        answer.extend([proto::ICMPV6, ERROR_TTL]);
        answer.extend(octets_of(from));
        answer.extend(octets_of(packet.ip.src));
        let sum = upper_checksum(from, packet.ip.src, proto::ICMPV6, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    answer.extend(message);
    answer
}
