//! What carrying out a decision needs of each family: its header's addresses
//! and TTL, its ICMP errors and TCP resets.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_fib_lookup},
    helpers::generated::bpf_skb_change_tail,
};
use bytemuck::{Pod, Zeroable};
use datapath_common::{Address as _, Config, Ip4, Ip6, Mac, Reason};
use datapath_core::{
    ETH_LEN, Family, Headers, Packet as _, Rewrite, V4, V6,
    checksum::Sum,
    icmp::{self, IcmpError},
    quoted::Quoted,
    reset, wire,
};

use crate::{
    apply::write_macs,
    ctx::{Bytes, Skb},
    loaded::Loaded,
    parsed::{tulle_parse4, tulle_parse6},
};

/// IPv4, for the kernel's helpers.
pub const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A family's part of carrying out: where its header has what.
pub trait Shape: Family {
    /// Fills `headers` in. Returns the number of the reason why they cannot be parsed, 0 if
    /// they were.
    fn parse_apart(raw: *mut __sk_buff, headers: *mut Headers<Self::Addr>) -> u32;
    /// Writes addresses and TTL (and IPv4's own checksum) of the header at
    /// `ip`. Returns the change of the addresses' sum.
    fn write_header<B: Bytes>(
        packet: &B,
        ip: usize,
        old: &Headers<Self::Addr>,
        new: &Rewrite<Self::Addr>,
        ttl: u8,
    ) -> Result<Sum, Reason>;
    /// Writes the TTL alone (and IPv4's own checksum) of the header at `ip`.
    fn write_ttl<B: Bytes>(packet: &B, ip: usize, ttl: u8) -> Result<(), Reason>;
    /// Writes the addresses of the packet that an ICMP error quotes (and IPv4's
    /// own checksum). Returns the change of the sum over all that.
    fn write_quoted(
        packet: &Loaded,
        q: &Quoted<Self::Addr>,
        src: Self::Addr,
        dst: Self::Addr,
    ) -> Result<Sum, Reason>;
    /// Asks for the route between two addresses.
    fn ask_route(fib: &mut bpf_fib_lookup, src: Self::Addr, dst: Self::Addr);
    /// Where ICMP errors come from.
    fn router(config: &Config) -> Self::Addr;
    /// Turns the packet into the ICMP error that answers it, sent by `from`.
    fn answer(skb: &mut Skb, from: Self::Addr, mtu: u16, error: IcmpError) -> Result<(), Reason>;
    /// Turns the TCP segment `refused` into the reset that answers it.
    fn reset(skb: &mut Skb, h: &Headers<Self::Addr>, refused: &wire::Tcp) -> Result<(), Reason>;
}

/// Where TTL, protocol, checksum and addresses begin in the header, side by side.
const HOPS_AT: usize = 8;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Hops {
    ttl: u8,
    protocol: u8,
    checksum: u16,
    src: Ip4,
    dst: Ip4,
}

impl Hops {
    /// TTL and protocol as they lie in memory.
    #[inline(always)]
    fn word(self) -> u32 {
        u16::from_ne_bytes([self.ttl, self.protocol]) as u32
    }
}

impl Shape for V4 {
    #[inline(always)]
    fn parse_apart(raw: *mut __sk_buff, headers: *mut Headers<Ip4>) -> u32 {
        tulle_parse4(raw, headers)
    }

    #[inline(always)]
    fn write_header<B: Bytes>(
        packet: &B,
        ip: usize,
        old: &Headers<Ip4>,
        new: &Rewrite<Ip4>,
        ttl: u8,
    ) -> Result<Sum, Reason> {
        let change = Sum::ZERO
            .sub(old.src.word())
            .add(new.src.word())
            .sub(old.dst.word())
            .add(new.dst.word());
        let old_ip: Hops = packet
            .read(ip + HOPS_AT)
            .map_err(|_| Reason::RewriteFailed)?;
        let hops = Hops { ttl, ..old_ip };
        let checksum = Sum::from_field(old_ip.checksum)
            .add(change.fold32())
            .sub(old_ip.word())
            .add(hops.word())
            .to_field();
        packet.write(
            ip + HOPS_AT,
            Hops {
                checksum,
                src: new.src,
                dst: new.dst,
                ..hops
            },
        )?;
        Ok(change)
    }

    #[inline(always)]
    fn write_ttl<B: Bytes>(packet: &B, ip: usize, ttl: u8) -> Result<(), Reason> {
        let [hops, checksum]: [u16; 2] = packet
            .read(ip + HOPS_AT)
            .map_err(|_| Reason::RewriteFailed)?;
        let [_, protocol] = hops.to_ne_bytes();
        let new = u16::from_ne_bytes([ttl, protocol]);
        let checksum = Sum::from_field(checksum)
            .sub(hops as u32)
            .add(new as u32)
            .to_field();
        packet.write(ip + HOPS_AT, [new, checksum])
    }

    #[inline(always)]
    fn reset(skb: &mut Skb, h: &Headers<Ip4>, refused: &wire::Tcp) -> Result<(), Reason> {
        let packet = reset::packet_v4(h, refused);
        turn_round(skb, packet.len())?;
        skb.write(ETH_LEN, packet)
    }

    #[inline(always)]
    fn write_quoted(packet: &Loaded, q: &Quoted<Ip4>, src: Ip4, dst: Ip4) -> Result<Sum, Reason> {
        let at = q.ip + 10;
        let old: u16 = packet.read(at)?;
        let addresses = Sum::ZERO
            .sub(q.src.word())
            .sub(q.dst.word())
            .add(src.word())
            .add(dst.word());
        let checksum = Sum::from_field(old).add(addresses.fold32()).to_field();
        packet.write(at, checksum)?;
        packet.write(q.ip + 12, [src, dst])?;
        Ok(addresses.sub(old as u32).add(checksum as u32))
    }

    #[inline(always)]
    fn ask_route(fib: &mut bpf_fib_lookup, src: Ip4, dst: Ip4) {
        fib.family = AF_INET;
        fib.__bindgen_anon_3.ipv4_src = src.word();
        fib.__bindgen_anon_4.ipv4_dst = dst.word();
    }

    #[inline(always)]
    fn router(config: &Config) -> Ip4 {
        config.router_ip4
    }

    #[inline(always)]
    fn answer(skb: &mut Skb, from: Ip4, mtu: u16, error: IcmpError) -> Result<(), Reason> {
        quote(skb, |q| icmp::headers_v4(q, from, error, mtu))
    }
}

impl Shape for V6 {
    #[inline(always)]
    fn parse_apart(raw: *mut __sk_buff, headers: *mut Headers<Ip6>) -> u32 {
        tulle_parse6(raw, headers)
    }

    #[inline(always)]
    fn write_header<B: Bytes>(
        packet: &B,
        ip: usize,
        old: &Headers<Ip6>,
        new: &Rewrite<Ip6>,
        ttl: u8,
    ) -> Result<Sum, Reason> {
        let [next, hops]: [u8; 2] = packet.read(ip + 6).map_err(|_| Reason::RewriteFailed)?;
        packet.write(ip + 7, ttl)?;
        let mut change = Sum::ZERO;
        if new.src != old.src {
            packet.write(ip + 8, new.src)?;
            change = replaced(change, old.src, new.src);
        }
        if new.dst != old.dst {
            packet.write(ip + 24, new.dst)?;
            change = replaced(change, old.dst, new.dst);
        }
        let all = change
            .sub(u16::from_ne_bytes([next, hops]) as u32)
            .add(u16::from_ne_bytes([next, ttl]) as u32);
        // A sum over the whole packet (CHECKSUM_COMPLETE) is balanced by the
        // header's checksum in IPv4, by nothing in IPv6.
        packet.balance(all.fold32());
        Ok(change)
    }

    #[inline(always)]
    fn write_ttl<B: Bytes>(packet: &B, ip: usize, ttl: u8) -> Result<(), Reason> {
        let [next, hops]: [u8; 2] = packet.read(ip + 6).map_err(|_| Reason::RewriteFailed)?;
        packet.write(ip + 7, ttl)?;
        let change = Sum::ZERO
            .sub(u16::from_ne_bytes([next, hops]) as u32)
            .add(u16::from_ne_bytes([next, ttl]) as u32);
        packet.balance(change.fold32());
        Ok(())
    }

    #[inline(always)]
    fn reset(skb: &mut Skb, h: &Headers<Ip6>, refused: &wire::Tcp) -> Result<(), Reason> {
        let packet = reset::packet_v6(h, refused);
        turn_round(skb, packet.len())?;
        skb.write(ETH_LEN, packet)
    }

    #[inline(always)]
    fn write_quoted(packet: &Loaded, q: &Quoted<Ip6>, src: Ip6, dst: Ip6) -> Result<Sum, Reason> {
        packet.write(q.ip + 8, src)?;
        packet.write(q.ip + 24, dst)?;
        Ok(replaced(replaced(Sum::ZERO, q.src, src), q.dst, dst))
    }

    #[inline(always)]
    fn ask_route(fib: &mut bpf_fib_lookup, src: Ip6, dst: Ip6) {
        fib.family = AF_INET6;
        fib.__bindgen_anon_3.ipv6_src = src.words();
        fib.__bindgen_anon_4.ipv6_dst = dst.words();
    }

    #[inline(always)]
    fn router(config: &Config) -> Ip6 {
        config.router_ip6
    }

    #[inline(always)]
    fn answer(skb: &mut Skb, from: Ip6, mtu: u16, error: IcmpError) -> Result<(), Reason> {
        quote(skb, |q| icmp::headers_v6(q, from, error, mtu))
    }
}

#[inline(always)]
fn replaced(sum: Sum, old: Ip6, new: Ip6) -> Sum {
    let (o, n) = (old.words(), new.words());
    sum.sub(o[0])
        .sub(o[1])
        .sub(o[2])
        .sub(o[3])
        .add(n[0])
        .add(n[1])
        .add(n[2])
        .add(n[3])
}

/// Gives the packet the length of its answer: `words` words behind the
/// Ethernet header, whose addresses are exchanged.
#[inline(always)]
fn turn_round(skb: &mut Skb, words: usize) -> Result<(), Reason> {
    // SAFETY: the context is the program's own.
    if unsafe { bpf_skb_change_tail(skb.raw(), (ETH_LEN + 4 * words) as u32, 0) } != 0 {
        return Err(Reason::RewriteFailed);
    }
    skb.look();
    let [dst, src]: [Mac; 2] = skb.read(0).map_err(|_| Reason::RewriteFailed)?;
    write_macs(skb, src, dst)
}

/// Answers with `N` words of new headers, then the `N` words quoted.
#[inline(always)]
fn quote<const N: usize>(
    skb: &mut Skb,
    headers: impl FnOnce(&[u32; N]) -> [u32; N],
) -> Result<(), Reason>
where
    [u32; N]: Pod,
{
    turn_round(skb, 2 * N)?;
    let quote: [u32; N] = skb.read(ETH_LEN).map_err(|_| Reason::RewriteFailed)?;
    skb.write(ETH_LEN + 4 * N, quote)?;
    skb.write(ETH_LEN, headers(&quote))
}
