//! From bytes to a packet, by the rules of "Parsing".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Reason, proto};

use super::{Ctx, Tuple};
use crate::packet::{ETHERNET, IPV4, IPV6};

/// Where a packet lies in its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// It is the datagram.
    Whole,
    /// The first of several, with this identification.
    First(u32),
    /// One without upper header.
    Later(u32),
}

/// An IP packet up to its upper header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Protocol number of the upper header.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Offset of the upper header in the frame.
    pub upper: usize,
    /// End of the packet in the frame.
    pub end: usize,
    /// Place in the datagram.
    pub fragment: Fragment,
    /// No IPv4 options, no IPv6 extension headers.
    pub plain: bool,
    /// IPv4's DF; always so for IPv6.
    pub dont_fragment: bool,
}

/// A parsed packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Its IP part.
    pub ip: Ip,
    /// Source port, host order, 0 without.
    pub sport: u16,
    /// Destination port, host order, 0 without.
    pub dport: u16,
    /// Whether the ports are known.
    pub has_ports: bool,
    /// TCP flags; 0 without.
    pub tcp_flags: u8,
    /// SCTP's first chunk type; data (0) without.
    pub chunk: u8,
    /// UDP without a checksum.
    pub sum_is_zero: bool,
    /// Octets of its datagram's first fragment, of a later one whose ports are known; else 0.
    pub first_octets: usize,
}

impl Packet {
    /// Addresses, ports, protocol.
    pub fn tuple(&self) -> Tuple {
        Tuple {
            src: self.ip.src,
            dst: self.ip.dst,
            sport: self.sport,
            dport: self.dport,
            proto: self.ip.proto,
        }
    }

    /// An echo's identifier is a port only where masqueraded flows go.
    pub fn forget_echo(&mut self) {
        if matches!(self.ip.proto, proto::ICMP | proto::ICMPV6) {
            (self.sport, self.dport, self.has_ports) = (0, 0, false);
        }
    }

    /// A fragment other than the first.
    pub fn is_later_fragment(&self) -> bool {
        matches!(self.ip.fragment, Fragment::Later(_))
    }
}

/// `N` octets at an offset, if they are there.
pub fn octets<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The whole of "Parsing".
pub fn parse(frame: &[u8], ctx: &Ctx) -> Result<Packet, Reason> {
    let ether_type = ethernet(frame, ctx)?;
    let ip = ip(frame, ether_type, ctx)?;
    if is_control(ip.dst) {
        return Err(Reason::Control);
    }
    upper(frame, ip)
}

/// Step 1: the `EtherType`, IPv4's or IPv6's.
pub fn ethernet(frame: &[u8], ctx: &Ctx) -> Result<u16, Reason> {
    let ether_type = u16::from_be_bytes(octets(frame, 12).ok_or(Reason::Truncated)?);
    if ctx.vlan || matches!(ether_type, 0x8100 | 0x88a8) {
        return Err(Reason::Tagged);
    }
    if matches!(ether_type, IPV4 | IPV6) {
        Ok(ether_type)
    } else {
        Err(Reason::NotIp)
    }
}

/// Step 2: the IP header and what follows it.
pub fn ip(frame: &[u8], ether_type: u16, ctx: &Ctx) -> Result<Ip, Reason> {
    if ether_type == IPV4 {
        ipv4(frame, ctx)
    } else {
        ipv6(frame)
    }
}

fn ipv4(frame: &[u8], ctx: &Ctx) -> Result<Ip, Reason> {
    let header: [u8; 20] = octets(frame, ETHERNET).ok_or(Reason::Truncated)?;
    let header_length = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || header_length < 20 {
        return Err(Reason::BadHeader);
    }
    let held = frame.len() - ETHERNET;
    let mut total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if total == 0 && ctx.gso_size > 0 {
        total = held;
    }
    if total < header_length || total > held {
        return Err(Reason::BadHeader);
    }
    let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let fragment = match (flags & 0x1fff, flags & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First(id),
        _ => Fragment::Later(id),
    };
    Ok(Ip {
        src: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
        dst: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
        proto: header[9],
        ttl: header[8],
        upper: ETHERNET + header_length,
        end: ETHERNET + total,
        fragment,
        plain: header_length == 20,
        dont_fragment: flags & 0x4000 != 0,
    })
}

fn ipv6(frame: &[u8]) -> Result<Ip, Reason> {
    let header: [u8; 40] = octets(frame, ETHERNET).ok_or(Reason::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::BadHeader);
    }
    let held = frame.len() - ETHERNET - 40;
    let payload = match usize::from(u16::from_be_bytes([header[4], header[5]])) {
        0 => held,
        length => length,
    };
    if payload > held {
        return Err(Reason::BadHeader);
    }
    let end = ETHERNET + 40 + payload;
    let (src, dst): (Option<[u8; 16]>, _) = (octets(&header, 8), octets(&header, 24));
    let (Some(src), Some(dst)) = (src, dst) else {
        return Err(Reason::Truncated);
    };
    let mut ip = Ip {
        src: Ipv6Addr::from(src).into(),
        dst: Ipv6Addr::from(dst).into(),
        proto: header[6],
        ttl: header[7],
        upper: ETHERNET + 40,
        end,
        fragment: Fragment::Whole,
        plain: true,
        dont_fragment: true,
    };
    for _ in 0..6 {
        if !matches!(ip.proto, 0 | 43 | 44 | 60) {
            break;
        }
        let extension: [u8; 8] = octets(&frame[..end], ip.upper).ok_or(Reason::Truncated)?;
        ip.plain = false;
        if ip.proto == 44 {
            let place = u16::from_be_bytes([extension[2], extension[3]]);
            let id = u32::from_be_bytes([extension[4], extension[5], extension[6], extension[7]]);
            ip.fragment = match (place >> 3, place & 1) {
                (0, 0) => Fragment::Whole,
                (0, _) => Fragment::First(id),
                _ => Fragment::Later(id),
            };
            ip.upper += 8;
        } else {
            ip.upper += 8 * (1 + usize::from(extension[1]));
        }
        ip.proto = extension[0];
        // What follows a later fragment's header is data, not headers.
        if matches!(ip.fragment, Fragment::Later(_)) {
            break;
        }
    }
    if ip.upper > end {
        Err(Reason::Truncated)
    } else {
        Ok(ip)
    }
}

/// Step 3: destinations that are the kernel's alone.
pub fn is_control(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast() || a.is_link_local(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local(),
    }
}

/// Which way an ICMP echo goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Echo {
    /// The identifier is the source port.
    Request,
    /// The identifier is the destination port.
    Reply,
}

/// What kind of echo an ICMP message of this type is in a packet from `src`.
pub fn echo(src: IpAddr, protocol: u8, kind: u8) -> Option<Echo> {
    match (src, protocol, kind) {
        (IpAddr::V4(_), proto::ICMP, 8) | (IpAddr::V6(_), proto::ICMPV6, 128) => {
            Some(Echo::Request)
        }
        (IpAddr::V4(_), proto::ICMP, 0) | (IpAddr::V6(_), proto::ICMPV6, 129) => Some(Echo::Reply),
        _ => None,
    }
}

/// Step 4: the upper header.
pub fn upper(frame: &[u8], ip: Ip) -> Result<Packet, Reason> {
    let mut packet = Packet {
        ip,
        sport: 0,
        dport: 0,
        has_ports: false,
        tcp_flags: 0,
        chunk: 0,
        sum_is_zero: false,
        first_octets: 0,
    };
    if packet.is_later_fragment() {
        return Ok(packet);
    }
    let body = &frame[ip.upper..ip.end];
    let least = match ip.proto {
        proto::TCP => 20,
        proto::SCTP => 12,
        proto::UDP | proto::ICMP | proto::ICMPV6 => 8,
        _ => 0,
    };
    if body.len() < least {
        return Err(Reason::Truncated);
    }
    match ip.proto {
        proto::TCP | proto::UDP | proto::SCTP => {
            let [a, b, c, d] = octets(body, 0).ok_or(Reason::Truncated)?;
            packet.sport = u16::from_be_bytes([a, b]);
            packet.dport = u16::from_be_bytes([c, d]);
            packet.has_ports = true;
            if ip.proto == proto::TCP {
                packet.tcp_flags = *body.get(13).ok_or(Reason::Truncated)?;
            }
            packet.sum_is_zero = ip.proto == proto::UDP && body.get(6..8) == Some(&[0, 0]);
            if ip.proto == proto::SCTP && body.len() >= 16 {
                packet.chunk = body[12];
            }
        }
        proto::ICMP | proto::ICMPV6 => {
            let number = u16::from_be_bytes(octets(body, 4).ok_or(Reason::Truncated)?);
            match echo(ip.src, ip.proto, body[0]) {
                Some(Echo::Request) => packet.sport = number,
                Some(Echo::Reply) => packet.dport = number,
                None => return Ok(packet),
            }
            packet.has_ports = true;
        }
        _ => {}
    }
    Ok(packet)
}
