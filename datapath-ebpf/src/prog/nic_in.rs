//! `tulle_nic_in`: packets that arrive at the uplink, after XDP.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use datapath_common::{Feature, Hook, Ip4, Reason};
use datapath_core::{
    Client, ETH_LEN, Frame, Headers, Tables, V4, V6, frame, nic_in,
    overlay::{Arrival, OVERHEAD, arrival},
    to_pod,
};

use crate::{
    apply::{Side, carry_out, decapsulate},
    ctx::Skb,
    errors::{self, UNTOUCHED},
    exit::{Origin, TcExit, leave_unparsed},
    shape::Shape,
    tables::{Maps, config},
};

/// TC ingress of the uplink.
#[classifier]
pub fn tulle_nic_in(ctx: TcContext) -> i32 {
    let raw = Skb::new(ctx).raw();
    let (frame, tunneled) = match arrive(raw) {
        PLAIN_V4 => (Frame::V4, false),
        PLAIN_V6 => (Frame::V6, false),
        TUNNELED_V4 => (Frame::V4, true),
        TUNNELED_V6 => (Frame::V6, true),
        code => return code,
    };
    let mut skb = Skb::new(TcContext::new(raw));
    skb.look();
    if errors::is_icmp(&skb, frame) {
        let code = match frame {
            Frame::V4 => error_v4(raw, tunneled),
            Frame::V6 => error_v6(raw, tunneled),
        };
        if code != UNTOUCHED {
            return code;
        }
    }
    match frame {
        Frame::V4 => v4(raw, tunneled),
        Frame::V6 => v6(raw, tunneled),
    }
}

// What [`arrive`] says; everything else is what the program returns.
const PLAIN_V4: i32 = 0x104;
const PLAIN_V6: i32 = 0x106;
const TUNNELED_V4: i32 = 0x204;
const TUNNELED_V6: i32 = 0x206;

/// Takes the packet out of the overlay, if it is in it and for this node. A
/// function of its own, so that what follows has the stack to itself.
#[inline(never)]
fn arrive(raw: *mut __sk_buff) -> i32 {
    let mut skb = Skb::open(raw);
    let origin = Origin::of(Hook::NicIn, &skb);
    let maps = Maps::new(origin);
    let inner = match arrival(&skb, &maps) {
        // Decapsulated by XDP before, routed without an overlay, or the kernel's.
        Arrival::Other => {
            return match frame(&skb) {
                Ok(Frame::V4) => PLAIN_V4,
                Ok(Frame::V6) => PLAIN_V6,
                Err(reason) => leave_unparsed::<Ip4>(origin, reason),
            };
        }
        Arrival::Kernel(reason) => return origin.leave::<Ip4>(TcExit::NEXT, reason, None),
        Arrival::Drop(reason) => return origin.leave::<Ip4>(TcExit::DROP, reason, None),
        Arrival::ForPod(_, inner) | Arrival::ForVtep(inner) => inner,
    };
    if inner == Frame::V6 && config().features & Feature::DECAP_6_IN_4 == 0 {
        return origin.leave::<Ip4>(TcExit::NEXT, Reason::OverlayToKernel, None);
    }
    if let Err(reason) = decapsulate(&mut skb, inner) {
        return origin.leave::<Ip4>(TcExit::DROP, reason, None);
    }
    match inner {
        Frame::V4 => TUNNELED_V4,
        Frame::V6 => TUNNELED_V6,
    }
}

// A function for each family, so that each has a stack frame of its own.

#[inline(never)]
fn v4(raw: *mut __sk_buff, tunneled: bool) -> i32 {
    hand_over::<V4>(raw, tunneled)
}

#[inline(never)]
fn v6(raw: *mut __sk_buff, tunneled: bool) -> i32 {
    hand_over::<V6>(raw, tunneled)
}

#[inline(never)]
fn error_v4(raw: *mut __sk_buff, tunneled: bool) -> i32 {
    errors::handle::<V4>(raw, Hook::NicIn, Client::Outside, outer(tunneled))
}

#[inline(never)]
fn error_v6(raw: *mut __sk_buff, tunneled: bool) -> i32 {
    errors::handle::<V6>(raw, Hook::NicIn, Client::Outside, outer(tunneled))
}

/// Octets that the overlay added to what came out of it.
#[inline(always)]
fn outer(tunneled: bool) -> usize {
    if tunneled { OVERHEAD } else { 0 }
}

/// Hands the packet to the local pod or service that it is for, or to the
/// kernel. `tunneled`: it came out of the overlay.
#[inline(always)]
fn hand_over<F: Shape>(raw: *mut __sk_buff, tunneled: bool) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let mut origin = Origin::of(Hook::NicIn, skb);
    let reason = if tunneled {
        // Counted as it arrived.
        origin.len = origin.len.wrapping_add(OVERHEAD as u32);
        Reason::Decapsulated
    } else {
        Reason::DeliveredLocal
    };
    let maps = &Maps::new(origin);
    let mut headers = Headers::EMPTY;
    if let Err(reason) = F::parse(skb, ETH_LEN, &mut headers) {
        // What is for no pod is not stopped here: the kernel may know it.
        return if tunneled || is_for_pod::<F>(skb, maps) {
            leave_unparsed::<F::Addr>(origin, reason)
        } else {
            origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None)
        };
    }
    let via = if F::is_own_pod(maps.config(), headers.dst) {
        maps.pod(&headers.dst)
    } else {
        None
    };
    let services = maps.config().features & Feature::UPLINK_SERVICES != 0;
    if via.is_none() && !services {
        return origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None);
    }
    let decision = match via {
        Some(via) => to_pod::<F, _>(maps, &mut headers, via, reason),
        None => nic_in::<F, _, _>(skb, maps, &mut headers, tunneled),
    };
    let (exit, reason) = carry_out::<F>(skb, maps, &headers, &decision, Side::Ingress);
    origin.leave(exit, reason, Some(&headers))
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
