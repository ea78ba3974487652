//! `tulle_nic_in`: packets that arrive at the uplink, after XDP; and those that the
//! VTEP device takes out of the overlay, where the agent attaches it there too.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::classifier, programs::TcContext};
use datapath_common::{Address as _, Feature, Hook, Ip4, Mac, Reason};
use datapath_core::{
    ETH_LEN, Entry, Frame, Packet as _, Tables, V4, V6, frame, nic_in,
    overlay::{Arrival, OVERHEAD, arrival},
    to_bridge, to_pod,
};

use crate::{
    apply::{Side, carry_out, decapsulate},
    ctx::Skb,
    exit::{Origin, TcExit, leave_unparsed},
    parsed::parse,
    parts::{Note, Words, dispatch, go_on_directly, go_on_to_uplink},
    shape::Shape,
    tables::{Maps, config},
};

/// TC ingress of the uplink, or of the VTEP device.
#[classifier]
pub fn tulle_nic_in(ctx: TcContext) -> i32 {
    let mut skb = Skb::open(Skb::new(ctx).raw());
    let origin = Origin::of(Hook::NicIn, &skb);
    let maps = Maps::new(origin);
    let arrived = if is_at_vtep(&skb) {
        Arrival::Other
    } else {
        arrival(&skb, &maps)
    };
    let mut named = false;
    let inner = match arrived {
        // Decapsulated by XDP or the VTEP device before, routed without an overlay, or
        // the kernel's.
        Arrival::Other => {
            return match frame(&skb) {
                Ok(frame) => dispatch(&skb, Hook::NicIn, frame, false),
                Err(reason) => leave_unparsed::<Ip4>(origin, reason),
            };
        }
        Arrival::Kernel(reason) => return origin.leave::<Ip4>(TcExit::NEXT, reason, None),
        Arrival::Drop(reason) => return origin.leave::<Ip4>(TcExit::DROP, reason, None),
        Arrival::ForPod(_, inner) | Arrival::ForVtep(inner) => inner,
        Arrival::Forwarded(inner, words) => {
            Words(words).write(skb.raw());
            named = true;
            inner
        }
    };
    if inner == Frame::V6 && config().features & Feature::DECAP_6_IN_4 == 0 {
        return origin.leave::<Ip4>(TcExit::NEXT, Reason::OverlayToKernel, None);
    }
    if let Err(reason) = decapsulate(&mut skb, inner) {
        return origin.leave::<Ip4>(TcExit::DROP, reason, None);
    }
    if named {
        return go_on_directly(skb.raw(), inner);
    }
    dispatch(&Skb::open(skb.raw()), Hook::NicIn, inner, true)
}

/// Its part for IPv4.
#[classifier]
pub fn tulle_nic_in4(ctx: TcContext) -> i32 {
    hand_over::<V4>(ctx)
}

/// Its part for IPv6.
#[classifier]
pub fn tulle_nic_in6(ctx: TcContext) -> i32 {
    hand_over::<V6>(ctx)
}

/// Hands the packet to the local pod that it is for; what is for none goes on.
#[inline(always)]
fn hand_over<F: Shape>(ctx: TcContext) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(Skb::new(ctx).raw());
    let (origin, tunneled) = arrived(skb);
    let maps = &Maps::new(origin);
    let mut room = MaybeUninit::uninit();
    let headers = match parse::<F>(skb, &mut room) {
        Ok(headers) => headers,
        Err(reason) => {
            // What is for no pod is not stopped here: the kernel may know it.
            return if tunneled || is_for_pod::<F>(skb, maps) {
                leave_unparsed::<F::Addr>(origin, reason)
            } else {
                origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None)
            };
        }
    };
    let via = if F::is_own_pod(maps.config(), headers.dst) {
        maps.pod(&headers.dst)
    } else {
        None
    };
    let straight = entry(skb, tunneled) == Entry::Wire;
    let Some(via) = via else {
        if maps.config().features & Feature::UPLINK_SERVICES == 0 {
            return origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None);
        }
        if straight {
            to_bridge::<F, _>(maps, headers);
        }
        return go_on_to_uplink(skb.raw(), F::Addr::VERSION == 6);
    };
    let reason = if tunneled {
        Reason::Decapsulated
    } else {
        Reason::DeliveredLocal
    };
    let decision = to_pod::<F, _>(maps, headers, via, reason, straight);
    let (exit, reason) = carry_out::<F>(skb, maps, headers, &decision, Side::Ingress);
    origin.leave(exit, reason, Some(headers))
}

/// By what way the packet came; `tunneled`: it came out of the overlay in this program.
#[inline(always)]
pub fn entry(skb: &Skb, tunneled: bool) -> Entry {
    if is_at_vtep(skb) {
        Entry::Vtep
    } else if tunneled || is_stripped(skb) {
        // Fragments that were held come by behind others' Ethernet header.
        Entry::Overlay
    } else {
        Entry::Wire
    }
}

/// Whether the packet was taken out of the overlay before it came here.
#[inline(always)]
fn is_stripped(skb: &Skb) -> bool {
    skb.read::<Mac>(6)
        .is_ok_and(|sender| sender == config().stripped_mac)
}

/// Whether the packet is at the VTEP device: as the kernel took it out of the overlay.
#[inline(always)]
fn is_at_vtep(skb: &Skb) -> bool {
    skb.ifindex() == config().vtep
}

/// Its part for IPv4 packets that are for no pod of this node.
#[classifier]
pub fn tulle_uplink4(ctx: TcContext) -> i32 {
    serve::<V4>(ctx)
}

/// Its part for IPv6 packets that are for no pod of this node. (A call that is not inlined would cost 32
/// octets of stack on old kernels.)
#[classifier]
#[inline(always)]
pub fn tulle_uplink6(ctx: TcContext) -> i32 {
    serve::<V6>(ctx)
}

/// Serves clients outside, and brings answers to those that were masqueraded.
#[inline(always)]
fn serve<F: Shape>(ctx: TcContext) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(Skb::new(ctx).raw());
    let (origin, tunneled) = arrived(skb);
    let maps = &Maps::new(origin);
    let mut room = MaybeUninit::uninit();
    let headers = match parse::<F>(skb, &mut room) {
        Ok(headers) => headers,
        Err(reason) => {
            return if tunneled {
                leave_unparsed::<F::Addr>(origin, reason)
            } else {
                origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None)
            };
        }
    };
    let entry = entry(skb, tunneled);
    let decision = nic_in::<F, _, _>(skb, maps, headers, entry);
    let (exit, reason) = carry_out::<F>(skb, maps, headers, &decision, Side::Ingress);
    origin.leave(exit, reason, Some(headers))
}

/// Where the packet is, as it arrived, and whether it came out of the overlay here.
#[inline(always)]
pub fn arrived(skb: &Skb) -> (Origin, bool) {
    let tunneled = Note::read(skb.raw()).tunneled();
    let mut origin = Origin::of(Hook::NicIn, skb);
    if tunneled {
        origin.len = origin.len.wrapping_add(OVERHEAD as u32);
    }
    (origin, tunneled)
}

/// Whether a packet that cannot be parsed names a local pod all the same.
#[inline(always)]
fn is_for_pod<F: Shape>(skb: &Skb, maps: &Maps) -> bool
where
    Maps: Tables<F::Addr>,
{
    match F::destination(skb, ETH_LEN) {
        Ok(dst) => F::is_own_pod(maps.config(), dst) && maps.pod(&dst).is_some(),
        Err(_) => false,
    }
}
