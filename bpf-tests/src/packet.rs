//! Frames for the tests: a description of a packet, and the bytes it stands
//! for, with every length and checksum computed from scratch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Mac, proto};

/// Octets of an Ethernet header.
pub const ETHERNET: usize = 14;
/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;
/// `EtherType` of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;

/// TCP flag bits (RFC 9293 §3.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgment field counts.
    pub const ACK: u8 = 0x10;
}

/// What the IP packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Upper {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// A UDP datagram.
    Udp,
    /// An SCTP packet whose first chunk is of this type; none without chunks.
    Sctp(Option<u8>),
    /// ICMP over IPv4, `ICMPv6` over IPv6, with this type.
    Icmp(u8),
    /// Another protocol number.
    Other(u8),
}

/// What stands in the checksum field of the upper header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sum {
    /// The right one.
    Right,
    /// The right one with these bits flipped.
    Flipped(u16),
    /// Zero: "none" for UDP over IPv4.
    Zero,
}

/// Where in its datagram a packet lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Offset in units of 8 octets.
    pub offset: u16,
    /// More fragments follow.
    pub more: bool,
}

/// A packet, described.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// Ethernet source.
    pub src_mac: Mac,
    /// Ethernet destination.
    pub dst_mac: Mac,
    /// An 802.1Q tag in the frame.
    pub vlan: Option<u16>,
    /// IP source; its version is the packet's.
    pub src: IpAddr,
    /// IP destination.
    pub dst: IpAddr,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4's DF.
    pub dont_fragment: bool,
    /// Identification.
    pub id: u32,
    /// The piece of a fragmented datagram, if it is one.
    pub piece: Option<Piece>,
    /// 32-bit words of IPv4 options (NOPs).
    pub option_words: u8,
    /// IPv6 extension headers before the fragment header (0, 43 or 60).
    pub extensions: Vec<u8>,
    /// The upper protocol.
    pub upper: Upper,
    /// Octets after the upper header.
    pub payload: Vec<u8>,
    /// The upper checksum.
    pub sum: Sum,
}

impl Spec {
    /// A whole packet with TTL 64, DF, right checksums and 16 octets of data.
    pub fn new(upper: Upper, src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Self {
        Self {
            src_mac: Mac::new([2, 0, 0, 0, 0, 0x11]),
            dst_mac: Mac::new([2, 0, 0, 0, 0, 0x22]),
            vlan: None,
            src,
            dst,
            sport,
            dport,
            ttl: 64,
            dont_fragment: true,
            id: 0x1234,
            piece: None,
            option_words: 0,
            extensions: Vec::new(),
            upper,
            payload: (0..16).collect(),
            sum: Sum::Right,
        }
    }

    /// The IP protocol number of the upper header.
    pub fn proto(&self) -> u8 {
        match (self.upper, self.src) {
            (Upper::Tcp(_), _) => proto::TCP,
            (Upper::Udp, _) => proto::UDP,
            (Upper::Sctp(_), _) => proto::SCTP,
            (Upper::Icmp(_), IpAddr::V4(_)) => proto::ICMP,
            (Upper::Icmp(_), IpAddr::V6(_)) => proto::ICMPV6,
            (Upper::Other(number), _) => number,
        }
    }

    /// Octets of the IP packet.
    pub fn ip_octets(&self) -> u32 {
        let ethernet = ETHERNET + if self.vlan.is_some() { 4 } else { 0 };
        (self.build().len() - ethernet) as u32
    }

    /// The frame. Source and destination of different versions make an IPv6
    /// packet with an IPv4-mapped address.
    pub fn build(&self) -> Vec<u8> {
        let body = self.body();
        let mut frame = Vec::new();
        frame.extend(self.dst_mac.octets());
        frame.extend(self.src_mac.octets());
        if let Some(tag) = self.vlan {
            frame.extend(VLAN.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(IPV4.to_be_bytes());
                frame.extend(self.ipv4(src, dst, &body));
            }
            (src, dst) => {
                frame.extend(IPV6.to_be_bytes());
                frame.extend(self.ipv6(mapped(src), mapped(dst), &body));
            }
        }
        frame
    }

    fn ipv4(&self, src: Ipv4Addr, dst: Ipv4Addr, body: &[u8]) -> Vec<u8> {
        let words = 5 + self.option_words.min(10);
        let mut flags = u16::from(self.dont_fragment) << 14;
        if let Some(piece) = self.piece {
            flags = (u16::from(piece.more) << 13) | (piece.offset & 0x1fff);
        }
        let mut header = vec![0x40 | words, 0];
        header.extend((words as u16 * 4 + body.len() as u16).to_be_bytes());
        header.extend((self.id as u16).to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend([self.ttl, self.proto(), 0, 0]);
        header.extend(src.octets());
        header.extend(dst.octets());
        header.resize(words as usize * 4, 1);
        let sum = internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(body);
        header
    }

    fn ipv6(&self, src: Ipv6Addr, dst: Ipv6Addr, body: &[u8]) -> Vec<u8> {
        let mut kinds = self.extensions.clone();
        if self.piece.is_some() {
            kinds.push(44);
        }
        let mut chain = Vec::new();
        for (at, kind) in kinds.iter().enumerate() {
            let next = kinds.get(at + 1).copied().unwrap_or(self.proto());
            match (kind, self.piece) {
                (44, piece) => {
                    let piece = piece.unwrap_or(Piece {
                        offset: 0,
                        more: false,
                    });
                    chain.extend([next, 0]);
                    chain.extend(((piece.offset << 3) | u16::from(piece.more)).to_be_bytes());
                    chain.extend(self.id.to_be_bytes());
                }
                // One unit of PadN.
                _ => chain.extend([next, 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(((chain.len() + body.len()) as u16).to_be_bytes());
        header.extend([kinds.first().copied().unwrap_or(self.proto()), self.ttl]);
        header.extend(src.octets());
        header.extend(dst.octets());
        header.extend(chain);
        header.extend(body);
        header
    }

    fn body(&self) -> Vec<u8> {
        if self.piece.is_some_and(|piece| piece.offset != 0) {
            return self.payload.clone();
        }
        let mut body = Vec::new();
        let ports = |body: &mut Vec<u8>| {
            body.extend(self.sport.to_be_bytes());
            body.extend(self.dport.to_be_bytes());
        };
        let at = match self.upper {
            Upper::Tcp(flags) => {
                ports(&mut body);
                body.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0x10, 0, 0, 0, 0, 0]);
                Some(16)
            }
            Upper::Udp => {
                ports(&mut body);
                body.extend((8 + self.payload.len() as u16).to_be_bytes());
                body.extend([0, 0]);
                Some(6)
            }
            Upper::Sctp(chunk) => {
                ports(&mut body);
                body.extend([0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0]);
                if let Some(kind) = chunk {
                    body.extend([kind, 0]);
                    body.extend((4 + self.payload.len() as u16).to_be_bytes());
                }
                None
            }
            Upper::Icmp(kind) => {
                // The identifier of an echo (RFC 792, RFC 4443) is the port that it has.
                let number = match kind {
                    8 | 128 => self.sport,
                    0 | 129 => self.dport,
                    _ => 7,
                };
                body.extend([kind, 0, 0, 0]);
                body.extend(number.to_be_bytes());
                body.extend([0, 1]);
                Some(2)
            }
            Upper::Other(_) => None,
        };
        body.extend(&self.payload);
        if let Upper::Sctp(_) = self.upper {
            let crc = match self.sum {
                Sum::Right => crc32c(&body),
                Sum::Flipped(bits) => crc32c(&body) ^ u32::from(bits),
                Sum::Zero => 0,
            };
            body[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        if let Some(at) = at {
            let right = upper_checksum(self.src, self.dst, self.proto(), &body);
            let sum = match self.sum {
                Sum::Right => right,
                Sum::Flipped(bits) => right ^ bits,
                Sum::Zero => 0,
            };
            body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        body
    }
}

/// The outer part of a VXLAN packet (RFC 7348) for [`tunnel`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// Underlay source.
    pub src: Ipv4Addr,
    /// Underlay destination.
    pub dst: Ipv4Addr,
    /// Outer UDP source port, host order.
    pub sport: u16,
    /// Outer UDP destination port, host order.
    pub dport: u16,
    /// VXLAN flags octet.
    pub flags: u8,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Words of outer IPv4 options.
    pub option_words: u8,
    /// Outer fragment.
    pub piece: Option<Piece>,
}

/// `inner`, an Ethernet frame, inside VXLAN.
pub fn tunnel(outer: &Tunnel, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![outer.flags, 0, 0, 0];
    payload.extend((outer.vni << 8).to_be_bytes());
    payload.extend(inner);
    let mut spec = Spec::new(
        Upper::Udp,
        outer.src.into(),
        outer.sport,
        outer.dst.into(),
        outer.dport,
    );
    spec.dont_fragment = false;
    spec.option_words = outer.option_words;
    spec.piece = outer.piece;
    spec.sum = Sum::Zero;
    spec.payload = payload;
    spec.build()
}

fn mapped(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// The Internet checksum (RFC 1071) of parts, each padded to 16 bits.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Checksum of an upper packet whose checksum field is zero, with the pseudo
/// header where the protocol has one; a UDP checksum of 0 is given as 0xffff.
pub fn upper_checksum(src: IpAddr, dst: IpAddr, protocol: u8, body: &[u8]) -> u16 {
    let length = (body.len() as u32).to_be_bytes();
    let (src, dst) = (octets_of(src), octets_of(dst));
    let sum = if protocol == proto::ICMP {
        internet_checksum(&[body])
    } else {
        internet_checksum(&[&src, &dst, &length, &[0, 0, 0, protocol], body])
    };
    if protocol == proto::UDP && sum == 0 {
        0xffff
    } else {
        sum
    }
}

/// An address as on the wire.
pub fn octets_of(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `CRC32c` of an SCTP packet, its checksum field taken as zero (RFC 9260,
/// appendix A); on the wire in little-endian order.
pub fn crc32c(packet: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, byte) in packet.iter().enumerate() {
        crc ^= u32::from(if (8..12).contains(&at) { 0 } else { *byte });
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}
