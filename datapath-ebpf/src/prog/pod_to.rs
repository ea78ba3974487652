//! `tulle_pod_to`: packets that the kernel delivers to a pod.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::classifier, programs::TcContext};
use datapath_common::{Hook, Ip4, Reason};
use datapath_core::{Tables, V4, V6, frame, pod_to};

use crate::{
    ctx::Skb,
    exit::{Origin, TcExit},
    parsed::parse,
    parts::dispatch,
    shape::Shape,
    tables::Maps,
    translate::translate,
};

/// TC egress of the host side of a pod's veth. Never drops what it does not translate.
#[classifier]
pub fn tulle_pod_to(ctx: TcContext) -> i32 {
    let skb = Skb::open(Skb::new(ctx).raw());
    match frame(&skb) {
        Ok(frame) => dispatch(&skb, Hook::PodTo, frame, false),
        Err(_) => Origin::of(Hook::PodTo, &skb).leave::<Ip4>(TcExit::NEXT, Reason::NotOurs, None),
    }
}

/// Its part for IPv4.
#[classifier]
pub fn tulle_pod_to4(ctx: TcContext) -> i32 {
    run::<V4>(ctx)
}

/// Its part for IPv6.
#[classifier]
pub fn tulle_pod_to6(ctx: TcContext) -> i32 {
    run::<V6>(ctx)
}

#[inline(always)]
fn run<F: Shape>(ctx: TcContext) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(Skb::new(ctx).raw());
    let origin = Origin::of(Hook::PodTo, skb);
    let maps = Maps::new(origin);
    let mut room = MaybeUninit::uninit();
    let Ok(headers) = parse::<F>(skb, &mut room) else {
        return origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None);
    };
    let reason = match pod_to::<F, _>(&maps, headers) {
        None => Reason::NotOurs,
        Some(rewrite) => match translate::<F>(skb, headers, &rewrite, 0) {
            Ok(()) => Reason::ReplyTranslated,
            Err(reason) => return origin.leave(TcExit::DROP, reason, Some(headers)),
        },
    };
    origin.leave(TcExit::NEXT, reason, Some(headers))
}
