//! `tulle_errors4`, `tulle_errors6`: ICMP errors about translated packets,
//! rewritten in place.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_PSEUDO_HDR, TC_ACT_UNSPEC},
    helpers::generated::bpf_l4_csum_replace,
    macros::classifier,
    programs::TcContext,
};
use datapath_common::{Hook, Reason, proto};
use datapath_core::{
    Client, ETH_LEN, Entry, Headers, Packet as _, Rewrite, Tables, V4, V6,
    checksum::Sum,
    error_on_its_way, is_own_source,
    overlay::OVERHEAD,
    quoted::{ErrorRewrite, Quoted, quoted, translation},
    wire::Be16,
};

use crate::{
    apply::{Side, carry_out},
    ctx::Skb,
    exit::{Origin, TcExit},
    loaded::Loaded,
    parsed::parse_rare,
    parts::{Note, go_on_from},
    prog::nic_in::entry,
    shape::Shape,
    tables::Maps,
};

/// ICMP errors at any hook.
#[classifier]
pub fn tulle_errors4(ctx: TcContext) -> i32 {
    run::<V4>(ctx, false)
}

/// ICMPv6 errors at any hook.
#[classifier]
pub fn tulle_errors6(ctx: TcContext) -> i32 {
    run::<V6>(ctx, true)
}

/// Translates an ICMP error about a packet of a known flow, and sends it to whom
/// it concerns; otherwise it goes the way of all other packets of its hook.
#[inline(always)]
fn run<F: Shape>(ctx: TcContext, v6: bool) -> i32
where
    Maps: Tables<F::Addr>,
{
    let raw = Skb::new(ctx).raw();
    let note = Note::read(raw);
    let Some(hook) = note.hook() else {
        return TC_ACT_UNSPEC;
    };
    let skb = &mut Skb::open(raw);
    let mut origin = Origin::of(hook, skb);
    if note.tunneled() {
        // Counted as it arrived.
        origin.len = origin.len.wrapping_add(OVERHEAD as u32);
    }
    let maps = &Maps::new(origin);
    let mut room = MaybeUninit::uninit();
    let headers = match parse_rare::<F>(skb, &mut room) {
        Ok(headers) if headers.icmp_error && headers.plain => headers,
        _ => return go_on_from(raw, hook, v6),
    };
    let forged = hook == Hook::NicIn
        && entry(skb, note.tunneled()) == Entry::Wire
        && is_own_source::<F>(maps.config(), headers.src);
    let told = translate_error::<F>(raw, maps, headers);
    match told & 0xff {
        NO_FLOW => return go_on_from(raw, hook, v6),
        TRANSLATED if forged => {
            return origin.leave(TcExit::DROP, Reason::MartianSource, Some(headers));
        }
        TRANSLATED => {}
        _ => return origin.leave(TcExit::DROP, Reason::RewriteFailed, Some(headers)),
    }
    if hook == Hook::PodTo {
        return origin.leave(TcExit::NEXT, Reason::ErrorTranslated, Some(headers));
    }
    skb.look();
    let (side, from) = match hook {
        Hook::NicOut => (Side::Egress, Client::Node),
        Hook::PodFrom => (Side::Ingress, Client::Pod),
        _ => (Side::Ingress, Client::Outside),
    };
    let node = (told >> NODE_SHIFT) as u8;
    let decision = error_on_its_way::<F, _, _>(skb, maps, headers, from, node);
    let (exit, reason) = carry_out::<F>(skb, maps, headers, &decision, side);
    origin.leave(exit, reason, Some(headers))
}

// What [`translate_error`] did, in a register.
const NO_FLOW: u32 = 0;
const TRANSLATED: u32 = 1;
const FAILED: u32 = 2;
/// Above that: a `NodeClient`.
const NODE_SHIFT: u32 = 8;

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
    (headers.src, headers.dst) = (new.src, new.quoted_src);
    TRANSLATED | (new.node as u32) << NODE_SHIFT
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
        packet.write(q.l4, [src, dst])?;
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
        dst: new.quoted_src,
        dport: 0,
    };
    let skb = Skb::open(raw);
    let addresses = F::write_header(&skb, ETH_LEN, h, &outer, h.ttl)?;
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
