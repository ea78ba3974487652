//! `tulle_nic_out`: packets that leave by the uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};
use datapath_common::{Hook, Ip4, Reason};
use datapath_core::{ETH_LEN, Frame, Headers, Tables, V4, V6, frame, pod_to};

use crate::{
    apply::translate,
    ctx::Skb,
    exit::{Origin, TcExit},
    shape::Shape,
    tables::Maps,
};

/// TC egress of the uplink. Translates the replies of endpoints on the node
/// itself; never drops what it does not translate.
#[classifier]
pub fn tulle_nic_out(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx);
    match frame(&skb) {
        Ok(Frame::V4) => run::<V4>(skb.raw()),
        Ok(Frame::V6) => run::<V6>(skb.raw()),
        Err(_) => Origin::of(Hook::NicOut, &skb).leave::<Ip4>(TcExit::NEXT, Reason::NotOurs, None),
    }
}

#[inline(always)]
fn run<F: Shape>(raw: *mut aya_ebpf::bindings::__sk_buff) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let origin = Origin::of(Hook::NicOut, skb);
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
