//! Parsing, inline or by a call ([`calls`]).
//!
//! The verifier follows a global function once, whatever the packet, and goes on behind it with
//! headers of which it knows nothing. Where the parser is inline, it follows what comes behind for
//! each kind of packet that the parser tells apart.

use core::{hint::black_box, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use datapath_common::{Ip4, Ip6, Reason};
use datapath_core::{ETH_LEN, Family, Headers, MAX_L4, V4, V6};

use crate::{ctx::Skb, shape::Shape, tables::calls};

/// Parses what follows the packet's Ethernet header, into `room`.
#[inline(always)]
pub fn parse<'h, F: Shape>(
    skb: &Skb,
    room: &'h mut MaybeUninit<Headers<F::Addr>>,
) -> Result<&'h mut Headers<F::Addr>, Reason> {
    if calls() {
        return parse_rare::<F>(skb, room);
    }
    let headers = room.write(Headers::EMPTY);
    F::parse(skb, ETH_LEN, headers).map(|()| headers)
}

/// The same, always by a call: for packets that are rare.
#[inline(always)]
pub fn parse_rare<'h, F: Shape>(
    skb: &Skb,
    room: &'h mut MaybeUninit<Headers<F::Addr>>,
) -> Result<&'h mut Headers<F::Addr>, Reason> {
    // Linux before 6.3 wants every octet written first, also those between the fields.
    *room = MaybeUninit::zeroed();
    let told = F::parse_apart(skb.raw(), black_box(room.as_mut_ptr()));
    if let Some(reason) = Reason::from_u8(told as u8) {
        return Err(reason);
    }
    // SAFETY: zeros are valid headers, too; the function has filled them in.
    let headers = unsafe { room.assume_init_mut() };
    headers.l4 &= MAX_L4;
    Ok(headers)
}

/// Parses IPv4. Returns the number of the reason why it cannot be, 0 if it is done.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_parse4(raw: *mut __sk_buff, headers: *mut Headers<Ip4>) -> u32 {
    // SAFETY: null, which the verifier thinks possible, or room on the caller's stack.
    fill::<V4>(raw, unsafe { headers.as_mut() })
}

/// The same for IPv6.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_parse6(raw: *mut __sk_buff, headers: *mut Headers<Ip6>) -> u32 {
    // SAFETY: as above.
    fill::<V6>(raw, unsafe { headers.as_mut() })
}

#[inline(always)]
fn fill<F: Family>(raw: *mut __sk_buff, headers: Option<&mut Headers<F::Addr>>) -> u32 {
    let Some(headers) = headers else {
        return Reason::BadHeader as u32;
    };
    *headers = Headers::EMPTY;
    // The caller has made the headers reachable.
    let mut skb = Skb::new(TcContext::new(raw));
    skb.look();
    number(F::parse(&skb, ETH_LEN, headers))
}

/// What became of it, in a register.
#[inline(always)]
pub fn number(done: Result<(), Reason>) -> u32 {
    match done {
        Ok(()) => 0,
        Err(reason) => reason as u32,
    }
}
