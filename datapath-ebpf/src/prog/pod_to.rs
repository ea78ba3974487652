//! `tulle_pod_to`: packets that the kernel delivers to a pod.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use datapath_common::{Hook, Ip4, Reason};
use datapath_core::{Client, ETH_LEN, Frame, Headers, Tables, V4, V6, frame, pod_to};

use crate::{
    apply::translate,
    ctx::Skb,
    errors::{self, UNTOUCHED},
    exit::{Origin, TcExit},
    shape::Shape,
    tables::Maps,
};

/// TC egress of the host side of a pod's veth. Never drops what it does not translate.
#[classifier]
pub fn tulle_pod_to(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let Ok(frame) = frame(&skb) else {
        return Origin::of(Hook::PodTo, &skb).leave::<Ip4>(TcExit::NEXT, Reason::NotOurs, None);
    };
    let raw = skb.raw();
    skb.look();
    if errors::is_icmp(&skb, frame) {
        let code = match frame {
            Frame::V4 => error_v4(raw),
            Frame::V6 => error_v6(raw),
        };
        if code != UNTOUCHED {
            return code;
        }
    }
    match frame {
        Frame::V4 => v4(raw),
        Frame::V6 => v6(raw),
    }
}

// A function for each way, so that each has a stack frame of its own.

#[inline(never)]
fn v4(raw: *mut __sk_buff) -> i32 {
    run::<V4>(raw)
}

#[inline(never)]
fn v6(raw: *mut __sk_buff) -> i32 {
    run::<V6>(raw)
}

#[inline(never)]
fn error_v4(raw: *mut __sk_buff) -> i32 {
    errors::handle::<V4>(raw, Hook::PodTo, Client::Outside, 0)
}

#[inline(never)]
fn error_v6(raw: *mut __sk_buff) -> i32 {
    errors::handle::<V6>(raw, Hook::PodTo, Client::Outside, 0)
}

#[inline(always)]
fn run<F: Shape>(raw: *mut __sk_buff) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let origin = Origin::of(Hook::PodTo, skb);
    let maps = Maps::new(origin);
    let mut headers = Headers::EMPTY;
    if F::parse(skb, ETH_LEN, &mut headers).is_err() {
        return origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None);
    }
    let reason = match pod_to::<F, _>(&maps, &mut headers) {
        None => Reason::NotOurs,
        Some(rewrite) => match translate::<F>(skb, &headers, &rewrite, 0) {
            Ok(()) => Reason::ReplyTranslated,
            Err(reason) => return origin.leave(TcExit::DROP, reason, Some(&headers)),
        },
    };
    origin.leave(TcExit::NEXT, reason, Some(&headers))
}
