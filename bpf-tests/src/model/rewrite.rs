//! What happens to bytes: translation, TTL, MAC addresses, the overlay.

use std::net::IpAddr;

use datapath_common::{Mac, Reason, Via, proto};

use super::parse::{Echo, Ip, Packet, echo, octets};
use super::{Tuple, World, direct};
use crate::packet::{ETHERNET, crc32c, internet_checksum, octets_of};

/// Octets that the overlay adds before the inner packet and its Ethernet header.
pub const OVERLAY: usize = 50;

/// A checksum field after the octets it covers changed from `before` to
/// `after`: the difference modulo 2^16 - 1, so that a wrong one stays wrong by
/// as much (RFC 1624). Zero for the class of zero.
pub(super) fn adjusted(field: u16, before: &[u8], after: &[u8]) -> u16 {
    if before == after {
        return field;
    }
    let value = |bytes: &[u8]| u64::from(internet_checksum(&[bytes]));
    // internet_checksum() is the negated sum: after's minus before's.
    ((u64::from(field) + value(after) + 0xffff - value(before)) % 0xffff) as u16
}

pub(super) fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

pub(super) fn get16(frame: &[u8], at: usize) -> u16 {
    octets(frame, at).map_or(0, u16::from_be_bytes)
}

fn pseudo(tuple: &Tuple) -> Vec<u8> {
    let mut bytes = octets_of(tuple.src);
    bytes.extend(octets_of(tuple.dst));
    bytes.extend(tuple.sport.to_be_bytes());
    bytes.extend(tuple.dport.to_be_bytes());
    bytes
}

/// Makes `packet` in `frame` a packet of tuple `to`, with its checksums.
/// `Truncated` if a checksum has to change that the packet does not hold.
pub fn translate(frame: &mut [u8], packet: &Packet, to: &Tuple) -> Result<(), Reason> {
    let from = packet.tuple();
    let Ip { upper, end, .. } = packet.ip;
    let ports_change = (from.sport, from.dport) != (to.sport, to.dport);
    let sum_at = match packet.ip.proto {
        proto::TCP => Some((16, 2)),
        proto::UDP => Some((6, 2)),
        proto::SCTP if ports_change => Some((8, 4)),
        proto::ICMP | proto::ICMPV6 => Some((2, 2)),
        _ => None,
    };
    let sum_at = if packet.is_later_fragment() {
        None
    } else {
        sum_at
    };
    if sum_at.is_some_and(|(at, size)| upper + at + size > end) {
        return Err(Reason::Truncated);
    }
    let (old_src, old_dst) = (octets_of(from.src), octets_of(from.dst));
    let (src, dst) = (octets_of(to.src), octets_of(to.dst));
    if from.src.is_ipv4() {
        let sum = get16(frame, ETHERNET + 10);
        let sum = adjusted(
            sum,
            &[old_src, old_dst].concat(),
            &[&src[..], &dst].concat(),
        );
        put(frame, ETHERNET + 10, &sum.to_be_bytes());
        put(frame, ETHERNET + 12, &src);
        put(frame, ETHERNET + 16, &dst);
    } else {
        put(frame, ETHERNET + 8, &src);
        put(frame, ETHERNET + 24, &dst);
    }
    if packet.is_later_fragment() {
        return Ok(());
    }
    if matches!(packet.ip.proto, proto::ICMP | proto::ICMPV6) {
        translate_echo(frame, packet, to);
        return Ok(());
    }
    let before = crc32c(&frame[upper..end]);
    put(frame, upper, &to.sport.to_be_bytes());
    put(frame, upper + 2, &to.dport.to_be_bytes());
    let Some((at, _)) = sum_at else { return Ok(()) };
    let at = upper + at;
    if packet.ip.proto == proto::SCTP {
        let field = u32::from_le_bytes(octets(frame, at).unwrap_or_default());
        // 0 is a checksum that the device has yet to compute.
        let delta = if field == 0 {
            0
        } else {
            before ^ crc32c(&frame[upper..end])
        };
        let field = field ^ delta;
        put(frame, at, &field.to_le_bytes());
        return Ok(());
    }
    let field = get16(frame, at);
    // Zero means "no checksum" in UDP: it stays, and is never made.
    if packet.ip.proto == proto::UDP && field == 0 {
        return Ok(());
    }
    let sum = match adjusted(field, &pseudo(&from), &pseudo(to)) {
        0 if packet.ip.proto == proto::UDP => 0xffff,
        sum => sum,
    };
    put(frame, at, &sum.to_be_bytes());
    Ok(())
}

/// An echo's identifier is its source port or, in a reply, its destination port; only `ICMPv6`
/// has a pseudo header.
fn translate_echo(frame: &mut [u8], packet: &Packet, to: &Tuple) {
    let from = packet.tuple();
    let at = packet.ip.upper;
    let addresses = |tuple: &Tuple| match packet.ip.proto {
        proto::ICMP => Vec::new(),
        _ => [octets_of(tuple.src), octets_of(tuple.dst)].concat(),
    };
    let (mut before, mut after) = (addresses(&from), addresses(to));
    let request = frame
        .get(at)
        .copied()
        .and_then(|kind| echo(from.src, from.proto, kind))
        == Some(Echo::Request);
    let number = |tuple: &Tuple| if request { tuple.sport } else { tuple.dport };
    before.extend(number(&from).to_be_bytes());
    after.extend(number(to).to_be_bytes());
    put(frame, at + 4, &number(to).to_be_bytes());
    let sum = adjusted(get16(frame, at + 2), &before, &after);
    put(frame, at + 2, &sum.to_be_bytes());
}

/// Takes one off the TTL or hop limit.
pub fn decrement_ttl(frame: &mut [u8], ip: &Ip) {
    let ttl = ip.ttl.wrapping_sub(1);
    if ip.src.is_ipv4() {
        let sum = get16(frame, ETHERNET + 10);
        let sum = adjusted(sum, &[ip.ttl, ip.proto], &[ttl, ip.proto]);
        put(frame, ETHERNET + 10, &sum.to_be_bytes());
        put(frame, ETHERNET + 8, &[ttl]);
    } else {
        put(frame, ETHERNET + 7, &[ttl]);
    }
}

/// Writes the Ethernet destination.
pub fn set_dst_mac(frame: &mut [u8], dst: Mac) {
    put(frame, 0, &dst.octets());
}

/// Writes both Ethernet addresses.
pub fn set_macs(frame: &mut [u8], dst: Mac, src: Mac) {
    put(frame, 0, &dst.octets());
    put(frame, 6, &src.octets());
}

/// `inner` as it leaves through the overlay. Outer Ethernet addresses,
/// identification and source port are the program's to choose; here they are 0.
/// `named`: what its inner frame has in the place of Ethernet addresses.
pub fn encapsulate(world: &World, via: &Via, inner: &[u8], named: Option<[u8; 12]>) -> Vec<u8> {
    let mut inner = inner.to_vec();
    match named {
        None => set_macs(&mut inner, via.dst_mac, via.src_mac),
        Some(name) => put(&mut inner, 0, &name),
    }
    let mark = named.map_or(0, |_| direct::MARK);
    let mut header = vec![0x45, 0];
    header.extend((20 + 8 + 8 + inner.len() as u16).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, proto::UDP, 0, 0]);
    header.extend(world.config.node_ip4.octets());
    header.extend(via.node.octets());
    let sum = internet_checksum(&[&header]);
    put(&mut header, 10, &sum.to_be_bytes());
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00]);
    frame.extend(header);
    frame.extend([0, 0]);
    frame.extend(world.config.vxlan_port.to_be_bytes());
    frame.extend((8 + 8 + inner.len() as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend([0x08, 0, 0, 0]);
    frame.extend(((world.config.vni << 8) | u32::from(mark)).to_be_bytes());
    frame.extend(inner);
    frame
}

/// Whether an upper checksum holds; `None` where there is nothing to check
/// (fragments, no checksum, protocols without).
pub fn upper_sum_is_right(frame: &[u8], packet: &Packet) -> Option<bool> {
    if packet.ip.fragment != super::parse::Fragment::Whole {
        return None;
    }
    let body = frame.get(packet.ip.upper..packet.ip.end)?;
    let at = match packet.ip.proto {
        proto::TCP => 16,
        proto::UDP => 6,
        proto::SCTP => {
            let field = u32::from_le_bytes(octets(body, 8)?);
            return Some(field == crc32c(body));
        }
        proto::ICMP if packet.ip.src.is_ipv4() => return Some(internet_checksum(&[body]) == 0),
        proto::ICMPV6 if packet.ip.src.is_ipv6() => 2,
        _ => return None,
    };
    let field: [u8; 2] = octets(body, at)?;
    if packet.ip.proto == proto::UDP && field == [0, 0] {
        return if packet.ip.src.is_ipv4() {
            None
        } else {
            Some(false)
        };
    }
    let (src, dst): (IpAddr, IpAddr) = (packet.ip.src, packet.ip.dst);
    let length = (body.len() as u32).to_be_bytes();
    let (src, dst) = (octets_of(src), octets_of(dst));
    Some(internet_checksum(&[&src, &dst, &length, &[0, 0, 0, packet.ip.proto], body]) == 0)
}
