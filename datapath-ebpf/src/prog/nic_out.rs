//! `tulle_nic_out`: packets that leave by the uplink.

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use datapath_common::{Hook, Ip4, Reason};
use datapath_core::{Client, ETH_LEN, Frame, Headers, Tables, V4, V6, frame, nic_out};

use crate::{
    apply::{Side, carry_out},
    ctx::Skb,
    errors::{self, UNTOUCHED},
    exit::{Origin, TcExit},
    shape::Shape,
    tables::Maps,
};

/// TC egress of the uplink: services for processes of the node, and the replies
/// of endpoints on the node itself.
#[classifier]
pub fn tulle_nic_out(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx);
    let Ok(frame) = frame(&skb) else {
        return Origin::of(Hook::NicOut, &skb).leave::<Ip4>(TcExit::NEXT, Reason::NotOurs, None);
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
    errors::handle::<V4>(raw, Hook::NicOut, Client::Node, 0)
}

#[inline(never)]
fn error_v6(raw: *mut __sk_buff) -> i32 {
    errors::handle::<V6>(raw, Hook::NicOut, Client::Node, 0)
}

#[inline(always)]
fn run<F: Shape>(raw: *mut __sk_buff) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let origin = Origin::of(Hook::NicOut, skb);
    let maps = Maps::new(origin);
    let mut headers = Headers::EMPTY;
    // What the parser does not take is not stopped here: it is leaving.
    if F::parse(skb, ETH_LEN, &mut headers).is_err() {
        return origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None);
    }
    let decision = nic_out::<F, _, _>(skb, &maps, &mut headers);
    let (exit, reason) = carry_out::<F>(skb, &maps, &headers, &decision, Side::Egress);
    origin.leave(exit, reason, Some(&headers))
}
