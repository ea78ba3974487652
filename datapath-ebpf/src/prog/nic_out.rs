//! `tulle_nic_out`: packets that leave by the uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};
use datapath_common::{Hook, Ip4, Reason};
use datapath_core::{ETH_LEN, Headers, Tables, V4, V6, frame, nic_out};

use crate::{
    apply::{Side, carry_out},
    ctx::Skb,
    exit::{Origin, TcExit},
    parts::dispatch,
    shape::Shape,
    tables::Maps,
};

/// TC egress of the uplink: services for processes of the node, and the replies
/// of endpoints on the node itself.
#[classifier]
pub fn tulle_nic_out(ctx: TcContext) -> i32 {
    let skb = Skb::open(Skb::new(ctx).raw());
    match frame(&skb) {
        Ok(frame) => dispatch(&skb, Hook::NicOut, frame, false),
        Err(_) => Origin::of(Hook::NicOut, &skb).leave::<Ip4>(TcExit::NEXT, Reason::NotOurs, None),
    }
}

/// Its part for IPv4.
#[classifier]
pub fn tulle_nic_out4(ctx: TcContext) -> i32 {
    run::<V4>(ctx)
}

/// Its part for IPv6.
#[classifier]
pub fn tulle_nic_out6(ctx: TcContext) -> i32 {
    run::<V6>(ctx)
}

#[inline(always)]
fn run<F: Shape>(ctx: TcContext) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(Skb::new(ctx).raw());
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
