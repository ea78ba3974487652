//! What differs between IPv4 and IPv6. The one generic of the pipeline.

use datapath_common::{Address, Config, Ip4, Ip6, Reason};

use crate::{Headers, Named, Packet, parse, wire};

/// IPv4 or IPv6.
pub trait Family: Copy {
    /// Its address.
    type Addr: Address;
    /// Octets of the IP header without options or extension headers.
    const HEADER: usize;

    /// Parses the IP header at `at` and what follows it into `headers`, which
    /// is [`Headers::EMPTY`] before.
    fn parse<P: Packet>(
        packet: &P,
        at: usize,
        headers: &mut Headers<Self::Addr>,
    ) -> Result<(), Reason>;
    /// The same for whole packets of TCP and UDP without options or extension headers;
    /// [`Reason::SlowPath`] for others.
    fn parse_plain<P: Packet>(
        packet: &P,
        at: usize,
        headers: &mut Headers<Self::Addr>,
    ) -> Result<(), Reason>;
    /// The destination address in the IP header at `at`, and nothing else.
    fn destination<P: Packet>(packet: &P, at: usize) -> Result<Self::Addr, Reason>;
    /// Where the transport header of the packet at `ip`, which an ICMP error
    /// quotes, starts, and its protocol. `None` if it is not known or not there.
    fn quoted_upper<P: Packet>(packet: &P, ip: usize) -> Option<(usize, u8)>;
    /// The addresses in the IP header at `ip`.
    fn addresses<P: Packet>(packet: &P, ip: usize) -> Option<(Self::Addr, Self::Addr)>;
    /// Multicast, broadcast or link-local: the kernel's business.
    fn is_control(dst: Self::Addr) -> bool;
    /// No sender may have it: unspecified, loopback, multicast, broadcast.
    fn is_martian(src: Self::Addr) -> bool;
    /// Whether the address lies in this node's pod network.
    fn is_own_pod(config: &Config, addr: Self::Addr) -> bool;
    /// This node's address on the underlay; unspecified if it has none.
    fn node(config: &Config) -> Self::Addr;
    /// The VTEP device's address: the first of this node's pod network;
    /// unspecified if it has none.
    fn vtep(config: &Config) -> Self::Addr;
    /// A backend's address and port (host order) in the place of an inner frame's two Ethernet addresses, as words in
    /// memory order: the last two octets are the port in network order; the others are the address,
    /// of IPv6 the last ten octets.
    fn name(addr: Self::Addr, port: u16) -> [u32; 3];
    /// What [`Family::name`] made the words of; of this node's pod network where they do not say all.
    fn named(config: &Config, words: [u32; 3]) -> Named<Self::Addr>;
}

/// Half a word before or behind a port, and the port, in one word in memory order.
#[inline(always)]
const fn with_port(half: [u8; 2], port: u16) -> u32 {
    let [high, low] = port.to_be_bytes();
    u32::from_ne_bytes([half[0], half[1], high, low])
}

/// The port of such a word.
#[inline(always)]
const fn last_port(word: u32) -> u16 {
    let [_, _, high, low] = word.to_ne_bytes();
    u16::from_be_bytes([high, low])
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V4 {
    type Addr = Ip4;
    const HEADER: usize = 20;

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, at: usize, h: &mut Headers<Ip4>) -> Result<(), Reason> {
        parse::ipv4(packet, at, h)
    }

    #[inline(always)]
    fn parse_plain<P: Packet>(packet: &P, at: usize, h: &mut Headers<Ip4>) -> Result<(), Reason> {
        parse::plain_v4(packet, at, h)
    }

    #[inline(always)]
    fn destination<P: Packet>(packet: &P, at: usize) -> Result<Ip4, Reason> {
        packet.read(at + 16)
    }

    #[inline(always)]
    fn quoted_upper<P: Packet>(packet: &P, ip: usize) -> Option<(usize, u8)> {
        let [version_ihl, _]: [u8; 2] = packet.read(ip).ok()?;
        let fragment: wire::Be16 = packet.read(ip + 6).ok()?;
        let [_, proto]: [u8; 2] = packet.read(ip + 8).ok()?;
        let length = ((version_ihl & 0x0f) as usize) << 2;
        if version_ihl >> 4 != 4 || length < Self::HEADER || fragment.get() & 0x1fff != 0 {
            return None;
        }
        Some((ip + length, proto))
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P, ip: usize) -> Option<(Ip4, Ip4)> {
        let [src, dst]: [Ip4; 2] = packet.read(ip + 12).ok()?;
        Some((src, dst))
    }

    #[inline(always)]
    fn is_control(dst: Ip4) -> bool {
        let word = u32::from_be(dst.word());
        word >> 28 == 14 || word >> 16 == 0xa9fe || word == u32::MAX
    }

    #[inline(always)]
    fn is_martian(src: Ip4) -> bool {
        let first = u32::from_be(src.word()) >> 24;
        first == 127 || first >= 224 || src.word() == 0
    }

    #[inline(always)]
    fn is_own_pod(config: &Config, addr: Ip4) -> bool {
        addr.word() & config.pod_mask4.word() == config.pod_net4.word()
    }

    #[inline(always)]
    fn node(config: &Config) -> Ip4 {
        config.node_ip4
    }

    #[inline(always)]
    fn vtep(config: &Config) -> Ip4 {
        config.pod_net4
    }

    #[inline(always)]
    fn name(addr: Ip4, port: u16) -> [u32; 3] {
        [addr.word(), 0, with_port([0; 2], port)]
    }

    #[inline(always)]
    fn named(_: &Config, [addr, _, last]: [u32; 3]) -> Named<Ip4> {
        Named {
            addr: bytemuck::cast(addr),
            port: last_port(last),
        }
    }
}

impl Family for V6 {
    type Addr = Ip6;
    const HEADER: usize = 40;

    #[inline(always)]
    fn parse<P: Packet>(packet: &P, at: usize, h: &mut Headers<Ip6>) -> Result<(), Reason> {
        parse::ipv6(packet, at, h)
    }

    #[inline(always)]
    fn parse_plain<P: Packet>(packet: &P, at: usize, h: &mut Headers<Ip6>) -> Result<(), Reason> {
        parse::plain_v6(packet, at, h)
    }

    #[inline(always)]
    fn destination<P: Packet>(packet: &P, at: usize) -> Result<Ip6, Reason> {
        packet.read(at + 24)
    }

    #[inline(always)]
    fn quoted_upper<P: Packet>(packet: &P, ip: usize) -> Option<(usize, u8)> {
        let [version, _]: [u8; 2] = packet.read(ip).ok()?;
        let [next, _]: [u8; 2] = packet.read(ip + 6).ok()?;
        let upper = ip + Self::HEADER;
        if version >> 4 != 6 {
            return None;
        }
        if next != parse::FRAGMENT {
            // Other extension headers are not looked through.
            return Some((upper, next));
        }
        // A first fragment: only that has ports.
        let fragment: wire::Ipv6Fragment = packet.read(upper).ok()?;
        (fragment.offset.get() & 0xfff8 == 0)
            .then_some((upper + size_of::<wire::Ipv6Fragment>(), fragment.next))
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P, ip: usize) -> Option<(Ip6, Ip6)> {
        let src: Ip6 = packet.read(ip + 8).ok()?;
        let dst: Ip6 = packet.read(ip + 24).ok()?;
        Some((src, dst))
    }

    #[inline(always)]
    fn is_control(dst: Ip6) -> bool {
        let first = u32::from_be(dst.words()[0]);
        first >> 24 == 0xff || first >> 22 == 0x3fa
    }

    #[inline(always)]
    fn is_martian(src: Ip6) -> bool {
        let [a, b, c, d] = src.words();
        (a | b | c == 0 && u32::from_be(d) <= 1) || u32::from_be(a) >> 24 == 0xff
    }

    #[inline(always)]
    fn is_own_pod(config: &Config, addr: Ip6) -> bool {
        let (a, m, n) = (
            addr.words(),
            config.pod_mask6.words(),
            config.pod_net6.words(),
        );
        ((a[0] & m[0]) ^ n[0])
            | ((a[1] & m[1]) ^ n[1])
            | ((a[2] & m[2]) ^ n[2])
            | ((a[3] & m[3]) ^ n[3])
            == 0
    }

    #[inline(always)]
    fn node(config: &Config) -> Ip6 {
        config.node_ip6
    }

    #[inline(always)]
    fn vtep(config: &Config) -> Ip6 {
        config.pod_net6
    }

    #[inline(always)]
    fn name(addr: Ip6, port: u16) -> [u32; 3] {
        let [_, b, c, d] = addr.words();
        let [_, _, e, f] = b.to_ne_bytes();
        [c, d, with_port([e, f], port)]
    }

    #[inline(always)]
    fn named(config: &Config, [c, d, last]: [u32; 3]) -> Named<Ip6> {
        let [a, b, ..] = config.pod_net6.words();
        let ([g, h, ..], [e, f, ..]) = (b.to_ne_bytes(), last.to_ne_bytes());
        let b = u32::from_ne_bytes([g, h, e, f]);
        Named {
            addr: bytemuck::cast([a, b, c, d]),
            port: last_port(last),
        }
    }
}
