//! From bytes to headers, each header once. The parser names what it accepts:
//! options and extension headers are skipped, fragments are told apart.

use datapath_common::{Address, Ip4, Ip6, Reason, proto};

use crate::{ETH_LEN, Family, Packet, V4, V6, wire};

/// What an Ethernet frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame {
    /// IPv4 at [`crate::ETH_LEN`].
    V4,
    /// IPv6 at [`crate::ETH_LEN`].
    V6,
}

/// Whether a packet is part of a fragmented datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    /// Whole.
    No = 0,
    /// Its beginning: has the ports.
    First = 1,
    /// A later part: has no ports of its own.
    Later = 2,
}

/// What the transport header says about the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Nothing.
    Data = 0,
    /// TCP SYN, SCTP INIT.
    Open = 1,
    /// TCP SYN with ACK, SCTP INIT ACK.
    Accept = 2,
    /// TCP FIN or RST, SCTP SHUTDOWN or ABORT.
    Close = 3,
}

impl Signal {
    /// The signal with this number; [`Self::Data`] if there is none.
    #[inline(always)]
    pub(crate) const fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Open,
            2 => Self::Accept,
            3 => Self::Close,
            _ => Self::Data,
        }
    }
}

/// A parsed packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Upper protocol; 255 (reserved, IANA) if it is not known.
    pub proto: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4: "don't fragment". IPv6: always true.
    pub dont_fragment: bool,
    /// No IPv4 options, no IPv6 extension headers.
    pub plain: bool,
    /// An ICMP or ICMPv6 error message.
    pub icmp_error: bool,
    /// Part of a fragmented datagram.
    pub fragment: Fragment,
    /// A later fragment that may be divided, and whose first one did not fit the overlay.
    pub follows_large: bool,
    /// What the transport header says.
    pub signal: Signal,
    /// Identification of a fragmented datagram as on the wire.
    pub fragment_id: u32,
    /// Source port, host order; 0 where there is none. The identifier of an
    /// ICMP echo request.
    pub sport: u16,
    /// Destination port, host order; 0 where there is none. The identifier of
    /// an ICMP echo reply.
    pub dport: u16,
    /// Octets of the TCP header; 8 for everything else.
    pub l4_len: u16,
    /// Where the transport header starts, from the Ethernet header.
    pub l4: usize,
    /// Octets from the transport header to the end of the IP packet.
    pub l4_total: u32,
}

impl<A: Address> Headers<A> {
    /// A packet of which nothing is known.
    pub const EMPTY: Self = Self {
        src: A::UNSPECIFIED,
        dst: A::UNSPECIFIED,
        proto: UNKNOWN,
        ttl: 0,
        dont_fragment: true,
        plain: true,
        icmp_error: false,
        fragment: Fragment::No,
        follows_large: false,
        signal: Signal::Data,
        fragment_id: 0,
        sport: 0,
        dport: 0,
        l4_len: 8,
        l4: 0,
        l4_total: 0,
    };

    /// Whether the protocol is one whose flows are tracked: TCP, UDP, SCTP, and
    /// ICMP's echoes.
    #[inline(always)]
    pub(crate) const fn has_flow(&self) -> bool {
        match self.proto {
            proto::TCP | proto::UDP | proto::SCTP => true,
            proto::ICMP | proto::ICMPV6 => self.sport != 0 || self.dport != 0,
            _ => false,
        }
    }

    /// Octets of the IP packet.
    #[inline(always)]
    pub(crate) const fn octets(&self) -> u32 {
        (self.l4 - ETH_LEN) as u32 + self.l4_total
    }

    #[inline(always)]
    fn set_ports(&mut self, ports: wire::Ports) {
        (self.sport, self.dport) = (ports.src.get(), ports.dst.get());
    }
}

const UNKNOWN: u8 = 255;

/// What a frame carries, by its Ethernet header.
#[inline(always)]
pub fn frame<P: Packet>(packet: &P) -> Result<Frame, Reason> {
    if packet.is_tagged() {
        return Err(Reason::Tagged);
    }
    match packet.ethertype() {
        0x0800 => Ok(Frame::V4),
        0x86dd => Ok(Frame::V6),
        0x8100 | 0x88a8 => Err(Reason::Tagged),
        _ => Err(Reason::NotIp),
    }
}

// The parsers fill a `Headers` rather than return one: in a `Result` it would
// share bytes with the error, and the compiler would write it to the stack in
// odd pieces, which the verifier refuses.

/// Parses IPv4 (RFC 791) at `at` into `h`.
#[inline(always)]
pub(crate) fn ipv4<P: Packet>(packet: &P, at: usize, h: &mut Headers<Ip4>) -> Result<(), Reason> {
    let ip: wire::Ipv4 = packet.read(at)?;
    let header = ((ip.version_ihl & 0x0f) as usize) << 2;
    if ip.version_ihl >> 4 != 4 || header < 20 {
        return Err(Reason::BadHeader);
    }
    let held = packet.length().wrapping_sub(at as u32);
    let said = ip.total.get() as u32;
    // A segmentation-offload packet beyond 64 KiB says 0. From others 0 is refused by itself: of a
    // comparison of the constant with the header's length, the verifier of Linux 6.1 believes
    // both outcomes.
    let total = if said != 0 {
        said
    } else if packet.gso_size() != 0 {
        held
    } else {
        return Err(Reason::BadHeader);
    };
    if total < header as u32 || total > held {
        return Err(Reason::BadHeader);
    }
    if V4::is_control(ip.dst) {
        return Err(Reason::Control);
    }
    let fragment = ip.fragment.get();
    h.src = ip.src;
    h.dst = ip.dst;
    h.proto = ip.protocol;
    h.ttl = ip.ttl;
    h.dont_fragment = fragment & 0x4000 != 0;
    h.plain = header == 20;
    h.fragment = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => Fragment::No,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    h.fragment_id = ip.id.get() as u32;
    h.l4 = at + header;
    h.l4_total = total - header as u32;
    if h.fragment != Fragment::Later {
        transport(packet, h)?;
    }
    settle(packet, h);
    Ok(())
}

/// Parses IPv6 (RFC 8200) at `at` into `h`.
#[inline(always)]
pub(crate) fn ipv6<P: Packet>(packet: &P, at: usize, h: &mut Headers<Ip6>) -> Result<(), Reason> {
    let ip: wire::Ipv6 = packet.read(at)?;
    if ip.version_class >> 4 != 6 {
        return Err(Reason::BadHeader);
    }
    let held = packet.length().wrapping_sub(at as u32).wrapping_sub(40);
    let said = ip.payload.get() as u32;
    let total = if said == 0 { held } else { said };
    if total > held {
        return Err(Reason::BadHeader);
    }
    if V6::is_control(ip.dst) {
        return Err(Reason::Control);
    }
    h.src = ip.src;
    h.dst = ip.dst;
    h.proto = ip.next;
    h.ttl = ip.hop_limit;
    h.l4 = at + 40;
    h.l4_total = total;
    if !is_known(h.proto) {
        extensions(packet, h, at + 40 + total as usize)?;
    }
    if h.fragment != Fragment::Later {
        transport(packet, h)?;
    }
    settle(packet, h);
    Ok(())
}

/// Parses a whole packet of TCP or UDP without IPv4 options at `at` into `h`; all others are
/// [`Reason::SlowPath`]. Where everything lies is constant, which a verifier follows fast.
#[inline(always)]
pub(crate) fn plain_v4<P: Packet>(
    packet: &P,
    at: usize,
    h: &mut Headers<Ip4>,
) -> Result<(), Reason> {
    let ip: wire::Ipv4 = packet.read(at)?;
    let (total, fragment) = (ip.total.get() as u32, ip.fragment.get());
    if ip.version_ihl != 0x45
        || fragment & 0x3fff != 0
        || !matches!(ip.protocol, proto::TCP | proto::UDP)
        || V4::is_control(ip.dst)
        || total < 20
        || total > packet.length().wrapping_sub(at as u32)
    {
        return Err(Reason::SlowPath);
    }
    (h.src, h.dst) = (ip.src, ip.dst);
    (h.proto, h.ttl) = (ip.protocol, ip.ttl);
    h.dont_fragment = fragment & 0x4000 != 0;
    h.fragment_id = ip.id.get() as u32;
    h.l4 = at + 20;
    h.l4_total = total - 20;
    transport(packet, h)
}

/// The same for IPv6 without extension headers.
#[inline(always)]
pub(crate) fn plain_v6<P: Packet>(
    packet: &P,
    at: usize,
    h: &mut Headers<Ip6>,
) -> Result<(), Reason> {
    let ip: wire::Ipv6 = packet.read(at)?;
    let total = ip.payload.get() as u32;
    if ip.version_class >> 4 != 6
        || !matches!(ip.next, proto::TCP | proto::UDP)
        || V6::is_control(ip.dst)
        || total > packet.length().wrapping_sub(at as u32).wrapping_sub(40)
    {
        return Err(Reason::SlowPath);
    }
    (h.src, h.dst) = (ip.src, ip.dst);
    (h.proto, h.ttl) = (ip.next, ip.hop_limit);
    h.l4 = at + 40;
    h.l4_total = total;
    transport(packet, h)
}

#[inline(always)]
fn is_known(p: u8) -> bool {
    matches!(
        p,
        proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6
    )
}

/// Extension headers that are skipped, and how many at the most.
const MAX_EXTENSIONS: usize = 6;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Skips IPv6 extension headers. `end` is where the packet ends.
#[inline(always)]
fn extensions<P: Packet>(packet: &P, headers: &mut Headers<Ip6>, end: usize) -> Result<(), Reason> {
    let (mut at, mut next) = (headers.l4, headers.proto);
    for _ in 0..MAX_EXTENSIONS {
        let length = match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [following, units]: [u8; 2] = packet.read(at)?;
                next = following;
                (units as usize + 1) << 3
            }
            FRAGMENT => {
                let fragment: wire::Ipv6Fragment = packet.read(at)?;
                next = fragment.next;
                headers.fragment = match (fragment.offset.get() & 0xfff8, fragment.offset.get() & 1)
                {
                    // An "atomic" fragment is whole (RFC 6946).
                    (0, 0) => headers.fragment,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                headers.fragment_id = fragment.id.get();
                8
            }
            _ => break,
        };
        headers.plain = false;
        at += length;
        if at > end || at > MAX_L4 {
            return Err(Reason::Truncated);
        }
        if headers.fragment == Fragment::Later {
            break;
        }
    }
    headers.l4_total = end.wrapping_sub(at) as u32;
    headers.l4 = at;
    headers.proto = if is_known(next) { next } else { UNKNOWN };
    Ok(())
}

/// Makes what was found of an unusual packet opaque, in one word.
#[inline(always)]
fn settle<P: Packet, A>(packet: &P, h: &mut Headers<A>) {
    let usual = h.plain
        && h.fragment == Fragment::No
        && (h.proto == proto::UDP || (h.proto == proto::TCP && h.signal == Signal::Data));
    if usual {
        return;
    }
    let facts = packet.opaque(
        h.proto as u64
            | (h.fragment as u64) << 8
            | (h.signal as u64) << 10
            | (h.plain as u64) << 12
            | (h.icmp_error as u64) << 13
            | (h.dont_fragment as u64) << 14
            | (h.l4_len as u64) << 16
            | (h.l4 as u64) << 32,
    );
    h.proto = facts as u8;
    // The discriminants are the bits themselves, so that nothing branches here.
    h.fragment = match facts >> 8 & 3 {
        0 => Fragment::No,
        1 => Fragment::First,
        _ => Fragment::Later,
    };
    h.signal = Signal::from_u8((facts >> 10 & 3) as u8);
    h.plain = facts >> 12 & 1 != 0;
    h.icmp_error = facts >> 13 & 1 != 0;
    h.dont_fragment = facts >> 14 & 1 != 0;
    h.l4_len = (facts >> 16) as u16;
    h.l4 = (facts >> 32) as usize & MAX_L4;
}

/// Transport headers start before this: a mask that the verifier understands.
pub const MAX_L4: usize = 0x3fff;

/// What the first chunk's type says (RFC 9260 §3.2): INIT, INIT ACK, ABORT,
/// SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE.
const fn sctp_signal(chunk: u8) -> Signal {
    match chunk {
        1 => Signal::Open,
        2 => Signal::Accept,
        6 | 7 | 8 | 14 => Signal::Close,
        _ => Signal::Data,
    }
}

/// Octets of the header without which a packet of this protocol is none.
#[inline(always)]
fn least(p: u8) -> u32 {
    match p {
        proto::TCP => 20,
        proto::SCTP => 12,
        proto::UDP | proto::ICMP | proto::ICMPV6 => 8,
        _ => 0,
    }
}

/// Reads ports, flags and types.
#[inline(always)]
fn transport<P: Packet, A: Address>(packet: &P, headers: &mut Headers<A>) -> Result<(), Reason> {
    let at = headers.l4;
    if headers.l4_total < least(headers.proto) {
        return Err(Reason::Truncated);
    }
    match headers.proto {
        proto::TCP => {
            let tcp: wire::Tcp = packet.read(at)?;
            headers.set_ports(tcp.ports);
            headers.l4_len = ((tcp.offset >> 4) as u16) << 2;
            headers.signal = if tcp.flags & (wire::Tcp::FIN | wire::Tcp::RST) != 0 {
                Signal::Close
            } else if tcp.flags & wire::Tcp::SYN == 0 {
                Signal::Data
            } else if tcp.flags & wire::Tcp::ACK == 0 {
                Signal::Open
            } else {
                Signal::Accept
            };
        }
        proto::SCTP if headers.l4_total >= 16 => {
            let sctp: wire::Sctp = packet.read(at)?;
            headers.set_ports(sctp.ports);
            headers.signal = sctp_signal(sctp.chunk);
        }
        proto::UDP | proto::SCTP => headers.set_ports(packet.read(at)?),
        proto::ICMP | proto::ICMPV6 => {
            // Type and code. One octet alone is a bounds check that the verifier
            // does not take (an offset of 0 and "less than").
            let [kind, _]: [u8; 2] = packet.read(at)?;
            headers.icmp_error = if A::VERSION == 4 {
                matches!(kind, 3 | 4 | 5 | 11 | 12)
            } else {
                kind < 128
            };
            let (request, reply) = if A::VERSION == 4 { (8, 0) } else { (128, 129) };
            if kind == request || kind == reply {
                let id: wire::Be16 = packet.read(at + 4)?;
                if kind == request {
                    headers.sport = id.get();
                } else {
                    headers.dport = id.get();
                }
            }
        }
        _ => {}
    }
    Ok(())
}
