//! `tulle_pod_from`: packets that come from a pod.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use datapath_common::{Hook, Ip4};
use datapath_core::{Client, ETH_LEN, Frame, Headers, Tables, V4, V6, frame, pod_from};

use crate::{
    apply::{Side, carry_out},
    ctx::Skb,
    errors::{self, UNTOUCHED},
    exit::{Origin, leave_unparsed},
    shape::Shape,
    tables::Maps,
};

/// TC ingress of the host side of a pod's veth.
#[classifier]
pub fn tulle_pod_from(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let frame = match frame(&skb) {
        Ok(frame) => frame,
        Err(reason) => return leave_unparsed::<Ip4>(Origin::of(Hook::PodFrom, &skb), reason),
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

// A function for each family, so that each has a stack frame of its own.

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
    errors::handle::<V4>(raw, Hook::PodFrom, Client::Pod, 0)
}

#[inline(never)]
fn error_v6(raw: *mut __sk_buff) -> i32 {
    errors::handle::<V6>(raw, Hook::PodFrom, Client::Pod, 0)
}

#[inline(always)]
fn run<F: Shape>(raw: *mut __sk_buff) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let origin = Origin::of(Hook::PodFrom, skb);
    let maps = Maps::new(origin);
    let mut headers = Headers::EMPTY;
    if let Err(reason) = F::parse(skb, ETH_LEN, &mut headers) {
        return leave_unparsed::<F::Addr>(origin, reason);
    }
    let decision = pod_from::<F, _, _>(skb, &maps, &mut headers);
    let (exit, reason) = carry_out::<F>(skb, &maps, &headers, &decision, Side::Ingress);
    origin.leave(exit, reason, Some(&headers))
}
