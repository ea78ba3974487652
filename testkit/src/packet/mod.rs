//! Test packets as plain values: built with right checksums, parsed back,
//! verified, and printed in one line.
//!
//! ```
//! use testkit::packet::{Frame, flags};
//! let bytes = Frame::v4([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
//!     .ttl(3)
//!     .tcp(40_000, 80, flags::SYN)
//!     .bytes();
//! assert!(testkit::packet::verify(&bytes).is_ok());
//! ```

mod build;
pub mod checksum;
mod display;
mod parse;

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::link::MacAddr;

pub use build::{Outer, fragments, vxlan};
pub use parse::{Fault, Vxlan, parse, unwrap_vxlan, verify};

/// `EtherType` of IPv4.
pub const ETHERTYPE_V4: u16 = 0x0800;
/// `EtherType` of IPv6.
pub const ETHERTYPE_V6: u16 = 0x86dd;

/// IP protocol numbers and IPv6 extension headers (IANA).
pub mod proto {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// `ICMPv6`.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// TCP flags (RFC 9293).
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledgement.
    pub const ACK: u8 = 0x10;
    /// Urgent.
    pub const URG: u8 = 0x20;
}

/// SCTP chunk types (RFC 9260).
pub mod chunk {
    /// Data.
    pub const DATA: u8 = 0;
    /// Opens an association.
    pub const INIT: u8 = 1;
    /// Answers INIT.
    pub const INIT_ACK: u8 = 2;
    /// Ends an association at once.
    pub const ABORT: u8 = 6;
    /// Begins an orderly end.
    pub const SHUTDOWN: u8 = 7;
}

/// An Ethernet frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Destination.
    pub dst: MacAddr,
    /// Source.
    pub src: MacAddr,
    /// VLAN tags, the outermost first.
    pub vlans: Vec<Vlan>,
    /// What it carries.
    pub net: Net,
}

/// A VLAN tag (IEEE 802.1Q).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vlan {
    /// 0x8100 or 0x88a8.
    pub tpid: u16,
    /// Priority and identifier.
    pub tci: u16,
}

/// The network layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Net {
    /// IPv4.
    V4(Ipv4),
    /// IPv6.
    V6(Ipv6),
    /// Another `EtherType` and its bytes.
    Other(u16, Vec<u8>),
}

/// An IPv4 packet (RFC 791). Lengths and checksum follow from the rest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ipv4 {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Type of service octet.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Don't fragment.
    pub df: bool,
    /// More fragments.
    pub mf: bool,
    /// Fragment offset in units of 8 octets.
    pub offset: u16,
    /// Time to live.
    pub ttl: u8,
    /// Options; padded with zeros to a multiple of 4, at most 40 octets count.
    pub options: Vec<u8>,
    /// What it carries.
    pub l4: L4,
}

/// An IPv6 packet (RFC 8200). The payload length follows from the rest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ipv6 {
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// Traffic class.
    pub class: u8,
    /// Flow label, 20 bits.
    pub flow: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Extension headers in order.
    pub extensions: Vec<Extension>,
    /// What it carries.
    pub l4: L4,
}

/// An IPv6 extension header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Extension {
    /// A header whose second octet is its length: protocol number and what
    /// follows the first two octets, padded with zeros to 6 + 8n.
    Sized(u8, Vec<u8>),
    /// A fragment header.
    Fragment {
        /// Offset in units of 8 octets.
        offset: u16,
        /// More fragments.
        more: bool,
        /// Identification.
        id: u32,
    },
}

/// The upper layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum L4 {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// SCTP with one chunk.
    Sctp(Sctp),
    /// ICMP over IPv4, `ICMPv6` over IPv6.
    Icmp(Icmp),
    /// Another protocol, a later fragment, or bytes too few for their header.
    Raw(u8, Vec<u8>),
}

/// A TCP segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// [`flags`].
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Options; padded with zeros to a multiple of 4, at most 40 octets count.
    pub options: Vec<u8>,
    /// Data.
    pub payload: Vec<u8>,
}

/// A UDP datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Udp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Whether the checksum field is zero: none was computed.
    pub no_checksum: bool,
    /// Data.
    pub payload: Vec<u8>,
}

/// An SCTP packet with one chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sctp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Verification tag.
    pub tag: u32,
    /// Type of the [`chunk`].
    pub chunk: u8,
    /// Flags of the chunk.
    pub chunk_flags: u8,
    /// Value of the chunk; padded with zeros to a multiple of 4.
    pub payload: Vec<u8>,
}

/// An ICMP or `ICMPv6` message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// The four octets after the checksum.
    pub rest: [u8; 4],
    /// Data.
    pub payload: Vec<u8>,
}

impl Frame {
    /// An IPv4 packet that carries nothing yet.
    pub fn v4(src: Ipv4Addr, dst: Ipv4Addr) -> Self {
        Self::of(Net::V4(Ipv4 {
            src,
            dst,
            tos: 0,
            id: 0,
            df: false,
            mf: false,
            offset: 0,
            ttl: 64,
            options: Vec::new(),
            l4: L4::Raw(253, Vec::new()),
        }))
    }

    /// An IPv6 packet that carries nothing yet.
    pub fn v6(src: Ipv6Addr, dst: Ipv6Addr) -> Self {
        Self::of(Net::V6(Ipv6 {
            src,
            dst,
            class: 0,
            flow: 0,
            hop_limit: 64,
            extensions: Vec::new(),
            l4: L4::Raw(253, Vec::new()),
        }))
    }

    /// A frame of another `EtherType`.
    pub fn other(ethertype: u16, bytes: &[u8]) -> Self {
        Self::of(Net::Other(ethertype, bytes.to_vec()))
    }

    fn of(net: Net) -> Self {
        Self {
            dst: [2, 0, 0, 0, 0, 2],
            src: [2, 0, 0, 0, 0, 1],
            vlans: Vec::new(),
            net,
        }
    }

    /// Sets source and destination of the Ethernet header.
    #[must_use]
    pub fn macs(mut self, src: MacAddr, dst: MacAddr) -> Self {
        (self.src, self.dst) = (src, dst);
        self
    }

    /// Adds a VLAN tag inside those that are there.
    #[must_use]
    pub fn vlan(mut self, tpid: u16, tci: u16) -> Self {
        self.vlans.push(Vlan { tpid, tci });
        self
    }

    /// Sets TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        match &mut self.net {
            Net::V4(ip) => ip.ttl = ttl,
            Net::V6(ip) => ip.hop_limit = ttl,
            Net::Other(..) => {}
        }
        self
    }

    /// Sets type of service or traffic class.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        match &mut self.net {
            Net::V4(ip) => ip.tos = tos,
            Net::V6(ip) => ip.class = tos,
            Net::Other(..) => {}
        }
        self
    }

    /// Forbids fragmentation (IPv4; IPv6 routers never fragment).
    #[must_use]
    pub fn df(mut self) -> Self {
        if let Net::V4(ip) = &mut self.net {
            ip.df = true;
        }
        self
    }

    /// Sets the identification (IPv4).
    #[must_use]
    pub fn id(mut self, id: u16) -> Self {
        if let Net::V4(ip) = &mut self.net {
            ip.id = id;
        }
        self
    }

    /// Sets the options (IPv4).
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        if let Net::V4(ip) = &mut self.net {
            ip.options = options.to_vec();
        }
        self
    }

    /// Adds an extension header after those that are there (IPv6).
    #[must_use]
    pub fn extension(mut self, extension: Extension) -> Self {
        if let Net::V6(ip) = &mut self.net {
            ip.extensions.push(extension);
        }
        self
    }

    /// Makes it a fragment: `offset` in units of 8 octets. IPv4 takes the low
    /// 16 bits of `id`; IPv6 gets a fragment header.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool, id: u32) -> Self {
        match &mut self.net {
            Net::V4(ip) => (ip.offset, ip.mf, ip.id) = (offset, more, id as u16),
            Net::V6(ip) => ip.extensions.push(Extension::Fragment { offset, more, id }),
            Net::Other(..) => {}
        }
        self
    }

    /// Carries a TCP segment without data.
    #[must_use]
    pub fn tcp(self, sport: u16, dport: u16, flags: u8) -> Self {
        self.l4(L4::Tcp(Tcp {
            sport,
            dport,
            seq: 1,
            ack: u32::from(flags & flags::ACK != 0),
            flags,
            window: 65_535,
            options: Vec::new(),
            payload: Vec::new(),
        }))
    }

    /// Carries an empty UDP datagram.
    #[must_use]
    pub fn udp(self, sport: u16, dport: u16) -> Self {
        self.l4(L4::Udp(Udp {
            sport,
            dport,
            no_checksum: false,
            payload: Vec::new(),
        }))
    }

    /// Carries an SCTP packet with one empty [`chunk`].
    #[must_use]
    pub fn sctp(self, sport: u16, dport: u16, chunk: u8) -> Self {
        let payload = Vec::new();
        self.l4(L4::Sctp(Sctp {
            sport,
            dport,
            tag: 1,
            chunk,
            chunk_flags: 0,
            payload,
        }))
    }

    /// Carries an ICMP message (`ICMPv6` over IPv6).
    #[must_use]
    pub fn icmp(self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        self.l4(L4::Icmp(Icmp {
            kind,
            code,
            rest,
            payload: Vec::new(),
        }))
    }

    /// Carries an echo request.
    #[must_use]
    pub fn echo_request(self, id: u16, seq: u16) -> Self {
        let kind = if matches!(self.net, Net::V6(_)) {
            128
        } else {
            8
        };
        let ([a, b], [c, d]) = (id.to_be_bytes(), seq.to_be_bytes());
        self.icmp(kind, 0, [a, b, c, d])
    }

    /// Carries bytes of a protocol, such as a later fragment's.
    #[must_use]
    pub fn raw(self, protocol: u8, bytes: &[u8]) -> Self {
        self.l4(L4::Raw(protocol, bytes.to_vec()))
    }

    /// Sets the upper layer.
    #[must_use]
    pub fn l4(mut self, l4: L4) -> Self {
        match &mut self.net {
            Net::V4(ip) => ip.l4 = l4,
            Net::V6(ip) => ip.l4 = l4,
            Net::Other(..) => {}
        }
        self
    }

    /// Sets the data of what it carries.
    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        let data = match self.upper_mut() {
            Some(L4::Tcp(tcp)) => &mut tcp.payload,
            Some(L4::Udp(udp)) => &mut udp.payload,
            Some(L4::Sctp(sctp)) => &mut sctp.payload,
            Some(L4::Icmp(icmp)) => &mut icmp.payload,
            Some(L4::Raw(_, data)) => data,
            None => return self,
        };
        bytes.clone_into(data);
        self
    }

    /// The upper layer of an IP packet.
    pub fn upper(&self) -> Option<&L4> {
        match &self.net {
            Net::V4(ip) => Some(&ip.l4),
            Net::V6(ip) => Some(&ip.l4),
            Net::Other(..) => None,
        }
    }

    /// The upper layer of an IP packet, to be changed.
    pub fn upper_mut(&mut self) -> Option<&mut L4> {
        match &mut self.net {
            Net::V4(ip) => Some(&mut ip.l4),
            Net::V6(ip) => Some(&mut ip.l4),
            Net::Other(..) => None,
        }
    }
}
