//! ICMP errors about translated packets, rewritten in place.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_PSEUDO_HDR},
    helpers::generated::bpf_l4_csum_replace,
};
use datapath_common::{Feature, Hook, Reason, proto};
use datapath_core::{
    Client, ETH_LEN, Frame, Headers, Packet as _, Rewrite, Tables,
    checksum::Sum,
    error_on_its_way,
    quoted::{ErrorRewrite, Quoted, quoted, translation},
    wire::Be16,
};

use crate::{
    apply::{Side, carry_out},
    ctx::Skb,
    exit::{Origin, TcExit},
    loaded::Loaded,
    shape::Shape,
    tables::{Maps, config},
};

/// No code of a TC program: the packet is no error about a packet that was
/// translated, and goes the way of all others.
pub const UNTOUCHED: i32 = -2;

/// Whether the packet is ICMP or ICMPv6, without extension headers: all that [`handle`] is asked about.
#[inline(always)]
pub fn is_icmp(skb: &Skb, frame: Frame) -> bool {
    if config().features & Feature::ICMP_ERRORS == 0 {
        return false;
    }
    let (at, icmp) = match frame {
        Frame::V4 => (ETH_LEN + 8, proto::ICMP),
        Frame::V6 => (ETH_LEN + 5, proto::ICMPV6),
    };
    // The protocol is the second of these two octets.
    matches!(skb.read::<[u8; 2]>(at), Ok([_, found]) if found == icmp)
}

/// Translates an ICMP error about a packet of a known flow, and sends it to whom
/// it concerns. [`UNTOUCHED`] if it is none. `outer`: octets that were around it
/// when it arrived, which count too. For a function of its own, since
/// it is seldom needed.
#[inline(always)]
pub fn handle<F: Shape>(raw: *mut __sk_buff, hook: Hook, from: Client, outer: usize) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let mut origin = Origin::of(hook, skb);
    origin.len = origin.len.wrapping_add(outer as u32);
    let maps = &Maps::new(origin);
    let mut headers = Headers::EMPTY;
    if F::parse(skb, ETH_LEN, &mut headers).is_err() || !headers.icmp_error || !headers.plain {
        return UNTOUCHED;
    }
    match translate_error::<F>(raw, maps, &mut headers) {
        NO_FLOW => return UNTOUCHED,
        TRANSLATED => {}
        _ => return origin.leave(TcExit::DROP, Reason::RewriteFailed, Some(&headers)),
    }
    if hook == Hook::PodTo {
        return origin.leave(TcExit::NEXT, Reason::ErrorTranslated, Some(&headers));
    }
    skb.look();
    let side = if hook == Hook::NicOut {
        Side::Egress
    } else {
        Side::Ingress
    };
    let decision = error_on_its_way::<F, _, _>(skb, maps, &headers, from);
    let (exit, reason) = carry_out::<F>(skb, maps, &headers, &decision, side);
    origin.leave(exit, reason, Some(&headers))
}

// What [`translate_error`] did, in a register.
const NO_FLOW: u32 = 0;
const TRANSLATED: u32 = 1;
const FAILED: u32 = 2;

/// Translates the error, and its addresses in `headers`.
#[inline(never)]
fn translate_error<F: Shape>(
    raw: *mut __sk_buff,
    maps: &Maps,
    headers: &mut Headers<F::Addr>,
) -> u32
where
    Maps: Tables<F::Addr>,
{
    let packet = &Loaded::new(raw);
    let Some(q) = quoted::<F, _>(packet, headers) else {
        return NO_FLOW;
    };
    let Some(new) = translation::<F, _>(maps, headers, &q) else {
        return NO_FLOW;
    };
    if rewrite::<F>(raw, packet, headers, &q, &new).is_err() {
        return FAILED;
    }
    (headers.src, headers.dst) = (new.src, new.dst);
    TRANSLATED
}

#[inline(always)]
fn rewrite<F: Shape>(
    raw: *mut __sk_buff,
    packet: &Loaded,
    h: &Headers<F::Addr>,
    q: &Quoted<F::Addr>,
    new: &ErrorRewrite<F::Addr>,
) -> Result<(), Reason> {
    // What is quoted, and the checksum over it.
    let mut change = F::write_quoted(packet, q, new.quoted_src, new.quoted_dst)?;
    if matches!(q.proto, proto::ICMP | proto::ICMPV6) {
        let id = Be16::new(new.quoted_sport);
        packet.write(q.l4 + 4, id)?;
        change = change
            .sub(Be16::new(q.sport).raw() as u32)
            .add(id.raw() as u32);
    } else {
        let (src, dst) = (Be16::new(new.quoted_sport), Be16::new(new.quoted_dport));
        packet.write(q.l4, src)?;
        packet.write(q.l4 + 2, dst)?;
        change = change
            .sub(Be16::new(q.sport).raw() as u32)
            .sub(Be16::new(q.dport).raw() as u32)
            .add(src.raw() as u32)
            .add(dst.raw() as u32);
    }
    let at = h.l4 + 2;
    let field: u16 = packet.read(at)?;
    let field = Sum::from_field(field).add(change.fold32()).to_field();
    packet.write(at, field)?;
    // The error's own header, which ICMPv6's checksum covers too.
    let outer = Rewrite {
        any: true,
        src: new.src,
        sport: 0,
        dst: new.dst,
        dport: 0,
    };
    let skb = Skb::open(raw);
    let addresses = F::write_header(&skb, h, &outer, h.ttl)?;
    if h.proto != proto::ICMPV6 {
        return Ok(());
    }
    // SAFETY: the context is the program's own; the kernel checks the offset.
    let failed = unsafe {
        bpf_l4_csum_replace(
            skb.raw(),
            at as u32,
            0,
            addresses.fold32() as u64,
            BPF_F_PSEUDO_HDR as u64,
        )
    };
    if failed == 0 {
        Ok(())
    } else {
        Err(Reason::RewriteFailed)
    }
}
