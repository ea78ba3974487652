//! Where a new flow goes of a service whose flows are given backends by what happened
//! before, not by a hash.

use datapath_common::{Frontend, FrontendFlags};

use crate::{Tables, reduce};

/// A list of backends and how one of them is picked, in words that fit registers.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// First slot, and slots.
    list: u64,
    /// Row of `tulle_turns`, slots of the table behind the list, flags of the frontend.
    how: u64,
}

impl Rules {
    #[inline(always)]
    pub(crate) const fn new(front: &Frontend, outside: bool) -> Self {
        let (start, len, table) = if outside {
            (front.out_start, front.out_len, front.out_table)
        } else {
            (front.start, front.len, front.table)
        };
        Self {
            list: start as u64 | (len as u64) << 32,
            how: front.turns(outside) as u64 | (table as u64) << 32 | (front.flags as u64) << 48,
        }
    }

    /// The slot for a new flow with this hash.
    #[inline(always)]
    pub(crate) fn slot<A, T: Tables<A>>(self, tables: &T, hash: u32) -> u32 {
        tables.pick(self.list, self.how, hash)
    }
}

/// The slot that a new flow is given by a frontend with a flag of
/// [`FrontendFlags::BY_HISTORY`]. Call it by [`Tables::pick`].
#[inline(always)]
pub fn pick<A, T: Tables<A>>(tables: &T, list: u64, how: u64, hash: u32) -> u32 {
    let (start, len) = (list as u32, (list >> 32) as u32);
    let (row, table) = (how as u32, (how >> 32) as u16 as u32);
    let flags = (how >> 48) as u16;
    let (first, slots) = if table == 0 {
        (start, len)
    } else {
        (start.wrapping_add(len), table)
    };
    if slots == 0 {
        return first;
    }
    let turn = if flags & FrontendFlags::ROUND_ROBIN == 0 {
        None
    } else {
        tables.turn(row)
    };
    let at = match turn {
        Some(turn) => (turn % slots as u64) as u32,
        None => reduce(hash, slots),
    };
    first.wrapping_add(at)
}
