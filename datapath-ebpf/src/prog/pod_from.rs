//! `tulle_pod_from`: packets that come from a pod.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::classifier, programs::TcContext};
use datapath_common::{Hook, Ip4};
use datapath_core::{Tables, V4, V6, frame, pod_from};

use crate::{
    apply::{Side, carry_out},
    ctx::Skb,
    exit::{Origin, leave_unparsed},
    parsed::parse,
    parts::dispatch,
    shape::Shape,
    tables::Maps,
};

/// TC ingress of the host side of a pod's veth.
#[classifier]
pub fn tulle_pod_from(ctx: TcContext) -> i32 {
    let skb = Skb::open(Skb::new(ctx).raw());
    match frame(&skb) {
        Ok(frame) => dispatch(&skb, Hook::PodFrom, frame, false),
        Err(reason) => leave_unparsed::<Ip4>(Origin::of(Hook::PodFrom, &skb), reason),
    }
}

/// Its part for IPv4.
#[classifier]
pub fn tulle_pod_from4(ctx: TcContext) -> i32 {
    run::<V4>(ctx)
}

/// Its part for IPv6.
#[classifier]
pub fn tulle_pod_from6(ctx: TcContext) -> i32 {
    run::<V6>(ctx)
}

#[inline(always)]
fn run<F: Shape>(ctx: TcContext) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(Skb::new(ctx).raw());
    let origin = Origin::of(Hook::PodFrom, skb);
    let maps = Maps::new(origin);
    let mut room = MaybeUninit::uninit();
    let headers = match parse::<F>(skb, &mut room) {
        Ok(headers) => headers,
        Err(reason) => return leave_unparsed::<F::Addr>(origin, reason),
    };
    let decision = pod_from::<F, _, _>(skb, &maps, headers);
    let (exit, reason) = carry_out::<F>(skb, &maps, headers, &decision, Side::Ingress);
    origin.leave(exit, reason, Some(headers))
}
