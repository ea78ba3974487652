//! Global functions: the verifier follows them, and their loops, once and not for each state that
//! leads there.

use datapath_common::{Ip4, Ip6};
use datapath_core::{below, claim, claim_port, holds, pick, states::Progress};

use crate::{
    lock, maps,
    tables::{Maps, config, now},
};

/// [`Progress::of`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_progress(met: u32, seen: u32) -> u32 {
    Progress::of(&config().idle, met, seen, now()).0
}

/// [`holds`]: whether a segment holds a backend's id.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_holds(start: u32, len: u32, id: u32) -> u32 {
    holds::<Ip4, _>(&Maps::nowhere(), start, len, id) as u32
}

/// [`below`]: how many slots of a table have lower ids.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_below(first: u32, slots: u32, id: u32) -> u32 {
    below::<Ip4, _>(&Maps::nowhere(), first, slots, id)
}

/// [`pick`] for IPv4.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_pick4(list: u64, how: u64, hash: u32) -> u32 {
    pick::<Ip4, _>(&Maps::nowhere(), list, how, hash)
}

/// [`pick`] for IPv6.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_pick6(list: u64, how: u64, hash: u32) -> u32 {
    pick::<Ip6, _>(&Maps::nowhere(), list, how, hash)
}

/// Counts one flow more, or less, of an IPv4 backend.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_live4(id: u32, opened: u32) -> u32 {
    if id == 0 {
        return 0;
    }
    add_live(maps::LIVE_V4.get_ptr_mut(id), opened)
}

/// The same for IPv6.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_live6(id: u32, opened: u32) -> u32 {
    if id == 0 {
        return 0;
    }
    add_live(maps::LIVE_V6.get_ptr_mut(id), opened)
}

#[inline(always)]
fn add_live(row: Option<*mut u64>, opened: u32) -> u32 {
    let Some(row) = row else {
        return 0;
    };
    let step = if opened == 0 { u64::MAX } else { 1 };
    // SAFETY: rows of an array stay; programs and agent change them by atomic operations only.
    unsafe { lock::fetch_add(row, step) };
    1
}

/// [`claim`] for IPv4.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_claim4(how: u32) -> u32 {
    claim::<Ip4, _>(&Maps::nowhere(), how)
}

/// [`claim`] for IPv6.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_claim6(how: u32) -> u32 {
    claim::<Ip6, _>(&Maps::nowhere(), how)
}

/// [`claim_port`] for IPv4.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_claim_port4(hash: u32, facts: u32) -> u32 {
    claim_port::<Ip4, _>(&Maps::nowhere(), hash, facts)
}

/// [`claim_port`] for IPv6.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tulle_claim_port6(hash: u32, facts: u32) -> u32 {
    claim_port::<Ip6, _>(&Maps::nowhere(), hash, facts)
}
