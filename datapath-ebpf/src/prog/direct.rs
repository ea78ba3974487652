//! Parts of `tulle_nic_in` for packets of clients outside that another node sends to a backend of
//! this one, which answers the client itself (direct server return).

use core::mem::MaybeUninit;

use aya_ebpf::{macros::classifier, programs::TcContext};
use datapath_common::Reason;
use datapath_core::{Tables, V4, V6, to_named};

use crate::{
    apply::{Side, carry_out},
    ctx::Skb,
    exit::TcExit,
    parsed::parse,
    parts::Words,
    prog::nic_in::arrived,
    shape::Shape,
    tables::{Maps, config},
};

/// For IPv4.
#[classifier]
pub fn tulle_direct4(ctx: TcContext) -> i32 {
    give::<V4>(ctx)
}

/// For IPv6.
#[classifier]
pub fn tulle_direct6(ctx: TcContext) -> i32 {
    give::<V6>(ctx)
}

/// Gives the packet to the backend.
#[inline(always)]
fn give<F: Shape>(ctx: TcContext) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(Skb::new(ctx).raw());
    let (origin, _) = arrived(skb);
    let maps = &Maps::new(origin);
    let named = F::named(config(), Words::read(skb.raw()).0);
    let mut room = MaybeUninit::uninit();
    let headers = match parse::<F>(skb, &mut room) {
        Ok(headers) => headers,
        // Nobody else may have it: what it is addressed to is no address of this node's.
        Err(reason) => {
            let reason = if reason.group().is_loss() {
                reason
            } else {
                Reason::BadHeader
            };
            return origin.leave::<F::Addr>(TcExit::DROP, reason, None);
        }
    };
    let decision = to_named::<F, _>(maps, headers, &named);
    let (exit, reason) = carry_out::<F>(skb, maps, headers, &decision, Side::Ingress);
    origin.leave(exit, reason, Some(headers))
}
