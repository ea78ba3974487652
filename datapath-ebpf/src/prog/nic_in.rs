//! `tulle_nic_in`: packets that arrive at the uplink, after XDP.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use datapath_common::{Feature, Hook, Ip4, Reason, Via};
use datapath_core::{
    ETH_LEN, Frame, Headers, Tables, V4, V6, frame,
    overlay::{Arrival, arrival},
    to_pod,
};

use crate::{
    apply::{carry_out, decapsulate},
    ctx::Skb,
    exit::{Origin, TcExit, leave_unparsed},
    shape::Shape,
    tables::{Maps, config},
};

/// TC ingress of the uplink.
#[classifier]
pub fn tulle_nic_in(ctx: TcContext) -> i32 {
    let mut skb = Skb::open(Skb::new(ctx).raw());
    let origin = Origin::of(Hook::NicIn, &skb);
    let maps = Maps::new(origin);
    // What is inside, and the pod that it is for, if that is known already.
    let (inner, pod) = match arrival(&skb, &maps) {
        // Decapsulated by XDP before, routed without an overlay, or the kernel's.
        Arrival::Other => match frame(&skb) {
            Ok(frame) => (frame, None),
            Err(reason) => return leave_unparsed::<Ip4>(origin, reason),
        },
        Arrival::Kernel(reason) => return origin.leave::<Ip4>(TcExit::NEXT, reason, None),
        Arrival::Drop(reason) => return origin.leave::<Ip4>(TcExit::DROP, reason, None),
        Arrival::ForPod(via, inner) => {
            if inner == Frame::V6 && config().features & Feature::DECAP_6_IN_4 == 0 {
                return origin.leave::<Ip4>(TcExit::NEXT, Reason::OverlayToKernel, None);
            }
            if let Err(reason) = decapsulate(&mut skb, inner) {
                return origin.leave::<Ip4>(TcExit::DROP, reason, None);
            }
            (inner, Some(via))
        }
    };
    match inner {
        Frame::V4 => v4(skb.raw(), origin.len, pod),
        Frame::V6 => v6(skb.raw(), origin.len, pod),
    }
}

// A function for each family, so that each has a stack frame of its own.

#[inline(never)]
fn v4(raw: *mut __sk_buff, arrived: u32, pod: Option<&Via>) -> i32 {
    hand_over::<V4>(raw, arrived, pod)
}

#[inline(never)]
fn v6(raw: *mut __sk_buff, arrived: u32, pod: Option<&Via>) -> i32 {
    hand_over::<V6>(raw, arrived, pod)
}

/// Hands the packet, which arrived with `arrived` octets, to `pod`, or to the
/// local pod that it is for, or to the kernel.
#[inline(always)]
fn hand_over<F: Shape>(raw: *mut __sk_buff, arrived: u32, pod: Option<&Via>) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let origin = Origin {
        hook: Hook::NicIn,
        ifindex: skb.ifindex(),
        len: arrived,
    };
    let maps = &Maps::new(origin);
    let (via, reason) = if let Some(via) = pod {
        (via, Reason::Decapsulated)
    } else {
        let own = F::destination(skb, ETH_LEN)
            .ok()
            .filter(|dst| F::is_own_pod(maps.config(), *dst));
        let Some(via) = own.and_then(|dst| maps.pod(&dst)) else {
            return origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None);
        };
        (via, Reason::DeliveredLocal)
    };
    let mut headers = Headers::EMPTY;
    if let Err(reason) = F::parse(skb, ETH_LEN, &mut headers) {
        return leave_unparsed::<F::Addr>(origin, reason);
    }
    let decision = to_pod::<F, _>(maps, &mut headers, via, reason);
    let (exit, reason) = carry_out::<F>(skb, maps, &headers, &decision);
    origin.leave(exit, reason, Some(&headers))
}
