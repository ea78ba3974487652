//! Where a new flow goes of a service whose flows are given backends by what happened
//! before, not by a hash.

use datapath_common::{Frontend, FrontendFlags};

use crate::{Tables, reduce};

/// A list of backends and how one of them is picked, in words that fit registers.
#[derive(Clone, Copy)]
pub(crate) struct Rules {
    /// First slot, and slots.
    pub(crate) list: u64,
    /// Row of `tulle_turns`, slots of the table behind the list, flags of the frontend.
    pub(crate) how: u64,
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
    let one = reduce(hash, slots);
    let at = if flags & FrontendFlags::ROUND_ROBIN != 0 {
        match tables.turn(row) {
            Some(turn) => (turn % slots as u64) as u32,
            None => one,
        }
    } else {
        // Another one, any of the rest.
        let two = reduce(scatter(hash), slots.wrapping_sub(1));
        let two = two.wrapping_add((two >= one) as u32);
        match (
            tables.slot(first.wrapping_add(one)),
            tables.slot(first.wrapping_add(two)),
        ) {
            (Some(a), Some(b)) if slots > 1 && is_busier(tables, table, first, a, b) => two,
            _ => one,
        }
    };
    first.wrapping_add(at)
}

/// Whether backend `a`, with one flow more, has more of them for its weight than `b`.
#[inline(always)]
fn is_busier<A, T: Tables<A>>(tables: &T, table: u32, first: u32, a: u32, b: u32) -> bool {
    let mut weights = [1, 1];
    if table != 0 {
        weights = [
            share(tables, first, table, a) as u64,
            share(tables, first, table, b) as u64,
        ];
    }
    let more = |id: u32| tables.live(id).wrapping_add(1);
    more(a).wrapping_mul(weights[1]) > more(b).wrapping_mul(weights[0])
}

/// How often a table has an id. Ids ascend in it.
#[inline(always)]
fn share<A, T: Tables<A>>(tables: &T, first: u32, slots: u32, id: u32) -> u32 {
    let end = tables.below(first, slots, id.wrapping_add(1));
    end.wrapping_sub(tables.below(first, slots, id))
}

/// Steps of a binary search through the longest table.
const SEARCH_STEPS: u32 = 17;

/// How many of these slots have ids below `id`. Ids ascend in them. Call it by
/// [`Tables::below`].
#[inline(always)]
pub fn below<A, T: Tables<A>>(tables: &T, first: u32, slots: u32, id: u32) -> u32 {
    let (mut low, mut len) = (0_u32, slots);
    for _ in 0..SEARCH_STEPS {
        if len == 0 {
            break;
        }
        let half = len / 2;
        match tables.slot(first.wrapping_add(low).wrapping_add(half)) {
            Some(found) if found < id => {
                low = low.wrapping_add(half).wrapping_add(1);
                len = len.wrapping_sub(half).wrapping_sub(1);
            }
            _ => len = half,
        }
    }
    low
}

/// A second hash out of the first one.
#[inline(always)]
const fn scatter(hash: u32) -> u32 {
    let x = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}
