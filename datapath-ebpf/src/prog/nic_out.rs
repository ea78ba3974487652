//! `tulle_nic_out`: packets that leave by the uplink or the loopback device.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use datapath_common::{Hook, Ip4, Reason};
use datapath_core::{Client, Packet as _, Tables, V4, V6, frame, nic_out, sender};

use crate::{
    apply::{Side, carry_out},
    ctx::Skb,
    exit::{Origin, TcExit},
    parsed::parse,
    parts::{dispatch, go_on_to_loopback},
    shape::Shape,
    tables::{Maps, config},
};

/// TC egress of the uplink and of the loopback device: services for processes of
/// the node, and the replies of endpoints on the node itself.
#[classifier]
pub fn tulle_nic_out(ctx: TcContext) -> i32 {
    let skb = Skb::open(Skb::new(ctx).raw());
    match frame(&skb) {
        Ok(frame) => dispatch(&skb, Hook::NicOut, frame, false),
        Err(_) => pass(&skb),
    }
}

/// Its part for IPv4.
#[classifier]
// A call would be one more frame in each chain: Linux before 6.8 counts 32 octets for any.
#[inline(always)]
pub fn tulle_nic_out4(ctx: TcContext) -> i32 {
    let raw = Skb::new(ctx).raw();
    match sender_v4(raw) {
        ONESELF => pass(&Skb::new(TcContext::new(raw))),
        BY_LOOPBACK => go_on_to_loopback(raw, false),
        found => run::<V4>(raw, (found == BY_UPLINK).then_some(Client::Node)),
    }
}

/// Its part for IPv6.
#[classifier]
#[inline(always)]
pub fn tulle_nic_out6(ctx: TcContext) -> i32 {
    let raw = Skb::new(ctx).raw();
    match sender_v6(raw) {
        ONESELF => pass(&Skb::new(TcContext::new(raw))),
        BY_LOOPBACK => go_on_to_loopback(raw, true),
        found => run::<V6>(raw, (found == BY_UPLINK).then_some(Client::Node)),
    }
}

/// Lets the packet go on as it is.
#[inline(always)]
fn pass(skb: &Skb) -> i32 {
    Origin::of(Hook::NicOut, skb).leave::<Ip4>(TcExit::NEXT, Reason::NotOurs, None)
}

// The process of this node that sends, in a register.
const NOBODY: u32 = 0;
const BY_UPLINK: u32 = 1;
const BY_LOOPBACK: u32 = 2;
/// Somebody at the loopback device who is not to be served: most of what is sent
/// to oneself.
const ONESELF: u32 = 3;

#[inline(always)]
fn sender_of<F: Shape>(raw: *mut __sk_buff) -> u32 {
    let skb = &Skb::open(raw);
    let config = config();
    let at_loopback = config.loopback != 0 && skb.ifindex() == config.loopback;
    let found = match sender::<F, _>(skb, config, at_loopback, skb.ingress_ifindex() != 0) {
        Some(Client::Loopback) => BY_LOOPBACK,
        Some(_) => BY_UPLINK,
        None if at_loopback => ONESELF,
        None => NOBODY,
    };
    skb.opaque(found as u64) as u32
}

// Functions of their own: each has the stack to itself, and gives it back.

#[inline(never)]
fn sender_v4(raw: *mut __sk_buff) -> u32 {
    sender_of::<V4>(raw)
}

#[inline(never)]
fn sender_v6(raw: *mut __sk_buff) -> u32 {
    sender_of::<V6>(raw)
}

/// Its part for IPv4 packets of this node's processes to its own addresses.
#[classifier]
pub fn tulle_loopback4(ctx: TcContext) -> i32 {
    run::<V4>(Skb::new(ctx).raw(), Some(Client::Loopback))
}

/// The same for IPv6.
#[classifier]
pub fn tulle_loopback6(ctx: TcContext) -> i32 {
    run::<V6>(Skb::new(ctx).raw(), Some(Client::Loopback))
}

#[inline(always)]
fn run<F: Shape>(raw: *mut __sk_buff, sender: Option<Client>) -> i32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let origin = Origin::of(Hook::NicOut, skb);
    let maps = Maps::new(origin);
    let mut room = MaybeUninit::uninit();
    // What the parser does not take is not stopped here: it is leaving.
    let Ok(headers) = parse::<F>(skb, &mut room) else {
        return origin.leave::<F::Addr>(TcExit::NEXT, Reason::NotOurs, None);
    };
    let decision = nic_out::<F, _, _>(skb, &maps, headers, sender);
    let (exit, reason) = carry_out::<F>(skb, &maps, headers, &decision, Side::Egress);
    origin.leave(exit, reason, Some(headers))
}
