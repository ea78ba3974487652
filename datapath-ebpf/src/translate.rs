//! Gives a packet other addresses and ports, with the checksums that cover them.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_l4_csum_replace, bpf_skb_store_bytes},
    programs::TcContext,
};
use datapath_common::{Reason, proto};
use datapath_core::{
    ETH_LEN, Fragment, Headers, MAX_L4, Packet as _, Rewrite,
    checksum::{Sum, crc32c_change, with_ports},
};

use crate::{
    ctx::{Bytes as _, Skb},
    shape::Shape,
    tables::calls,
};

/// Translates a packet that stays on its way through the stack. What was known of the
/// packet's bytes is void afterwards ([`Skb::look`]).
#[inline(always)]
pub fn translate<F: Shape>(
    skb: &mut Skb,
    headers: &Headers<F::Addr>,
    rewrite: &Rewrite<F::Addr>,
    hops: u8,
) -> Result<(), Reason> {
    if !rewrite.any && hops == 0 {
        return Ok(());
    }
    let ttl = headers.ttl.wrapping_sub(hops);
    if !rewrite.any {
        return F::write_ttl(skb, ETH_LEN, ttl);
    }
    let change = F::write_header(skb, ETH_LEN, headers, rewrite, ttl)?;
    if headers.fragment == Fragment::Later {
        return Ok(());
    }
    let ports = [
        words(headers.sport, headers.dport),
        words(rewrite.sport, rewrite.dport),
    ];
    let done = match headers.proto {
        proto::TCP if !calls() => tcp(skb, headers.l4, ports, change.fold32()),
        proto::UDP if !calls() => udp(skb, headers.l4, ports, change.fold32()),
        _ => {
            let transport =
                headers.l4 as u64 | (headers.proto as u64) << 16 | (headers.l4_total as u64) << 32;
            let [old, new] = ports;
            let failed = tulle_ports(skb.raw(), transport, old, new, change.fold32());
            (failed == 0).then_some(())
        }
    };
    done.ok_or(Reason::RewriteFailed)
}

/// Both ports as they lie in the packet, as a native word.
#[inline(always)]
pub fn words(sport: u16, dport: u16) -> u32 {
    ((sport as u32) << 16 | dport as u32).to_be()
}

/// Replaces ports (or an echo's identifier), and mends the transport header's checksum for them
/// and for what the sum of the addresses changed by (`addresses`). `transport`: where the
/// transport header starts, the protocol from bit 16 on, the header's and payload's octets from
/// bit 32 on. `old` and `new`: both ports as they lie in the packet. Returns 0 if all is done.
///
/// A global function: the verifier follows it once, and not for each state that leads here. So it
/// is called for what is rare, and for all where [`calls`] says so.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_ports(
    raw: *mut __sk_buff,
    transport: u64,
    old: u32,
    new: u32,
    addresses: u32,
) -> u32 {
    let skb = &mut Skb::new(TcContext::new(raw));
    skb.look();
    let (at, total) = (transport as usize & MAX_L4, (transport >> 32) as u32);
    let done = match (transport >> 16) as u8 {
        proto::TCP => tcp(skb, at, [old, new], addresses),
        proto::UDP => udp(skb, at, [old, new], addresses),
        proto::SCTP => sctp(skb, at, total, [old, new]),
        // The checksum covers the addresses in ICMPv6 only.
        proto::ICMP => echo(skb, at, [old, new], 0),
        proto::ICMPV6 => echo(skb, at, [old, new], addresses),
        _ => Some(()),
    };
    done.is_none() as u32
}

#[inline(always)]
fn tcp(skb: &mut Skb, at: usize, ports: [u32; 2], addresses: u32) -> Option<()> {
    replace(skb, at, at + 16, ports, addresses, false)
}

#[inline(always)]
fn udp(skb: &mut Skb, at: usize, ports: [u32; 2], addresses: u32) -> Option<()> {
    replace(skb, at, at + 6, ports, addresses, true)
}

/// TCP and UDP, whose checksum is at `field`.
#[inline(always)]
fn replace(
    skb: &mut Skb,
    at: usize,
    field: usize,
    [old, new]: [u32; 2],
    addresses: u32,
    zero_is_none: bool,
) -> Option<()> {
    if old != new {
        skb.write(at, new).ok()?;
    }
    let before: u16 = skb.read(field).ok()?;
    let mangled = if zero_is_none {
        BPF_F_MARK_MANGLED_0
    } else {
        0
    };
    add(skb, field, addresses, BPF_F_PSEUDO_HDR | mangled)?;
    if old == new {
        return Some(());
    }
    skb.look();
    let ports = Sum::ZERO.sub(old).add(new);
    let after: u16 = skb.read(field).ok()?;
    match with_ports(before, after, addresses, ports, zero_is_none) {
        Some(now) => skb.write(field, now).ok(),
        None => add(skb, field, ports.fold32(), mangled),
    }
}

/// Adds to the checksum at `field`, and to what the kernel knows of it.
#[inline(always)]
fn add(skb: &Skb, field: usize, change: u32, flags: u32) -> Option<()> {
    // SAFETY: the context is the program's own; the kernel checks the offset.
    let failed =
        unsafe { bpf_l4_csum_replace(skb.raw(), field as u32, 0, change as u64, flags as u64) };
    (failed == 0).then_some(())
}

/// SCTP's checksum covers the ports but not the addresses.
#[inline(always)]
fn sctp(skb: &Skb, at: usize, total: u32, [old, new]: [u32; 2]) -> Option<()> {
    if old == new {
        return Some(());
    }
    skb.write(at, new).ok()?;
    let field: u32 = skb.read(at + 8).ok()?;
    if field == 0 {
        // Not computed yet: left to the device, which sums what it sends.
        return Some(());
    }
    let change = tulle_crc32c(u32::from_le(old ^ new), total);
    skb.write(at + 8, field ^ change.to_le()).ok()
}

/// [`crc32c_change`], with loops of its own.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_crc32c(delta: u32, len: u32) -> u32 {
    crc32c_change(delta, len)
}

/// Gives an ICMP echo another identifier: the one that is not 0 of what would be ports.
/// `addresses`: the change of a pseudo header.
#[inline(always)]
fn echo(skb: &Skb, at: usize, [old, new]: [u32; 2], addresses: u32) -> Option<()> {
    let (old, new) = (u32::from_be(old), u32::from_be(new));
    let (old, new) = if old >> 16 != 0 {
        ((old >> 16) as u16, (new >> 16) as u16)
    } else {
        (old as u16, new as u16)
    };
    if old == 0 {
        return Some(());
    }
    let id = new.to_be();
    let change = Sum::ZERO.sub(old.to_be() as u32).add(id as u32);
    add(skb, at + 2, change.fold32(), 0)?;
    // SAFETY: as above.
    if unsafe { bpf_skb_store_bytes(skb.raw(), at as u32 + 4, (&raw const id).cast(), 2, 0) } != 0 {
        return None;
    }
    if addresses == 0 {
        return Some(());
    }
    add(skb, at + 2, addresses, BPF_F_PSEUDO_HDR)
}
