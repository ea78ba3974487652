//! Rows of the flow table, in place.

use core::{hint::black_box, mem::offset_of, ptr::write_volatile};

use datapath_common::{Address, Flow, FlowState};
use datapath_core::FlowRow;

use crate::lock;

/// A row of the flow table, in the kernel's memory.
pub struct Row<A>(pub *mut Flow<A>);

impl<A> Clone for Row<A> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}
impl<A> Copy for Row<A> {}

impl<A: Address> FlowRow<A> for Row<A> {
    #[inline(always)]
    fn get(&self) -> Flow<A> {
        // SAFETY: the map's look-up returned the pointer; rows of a hash map
        // stay readable until the program ends.
        unsafe { *self.0 }
    }
    #[inline(always)]
    fn touch(&self, state: FlowState, seen: u32) {
        // SAFETY: as above; each store is a whole aligned field.
        unsafe {
            write_volatile(&raw mut (*self.0).state, state as u8);
            write_volatile(&raw mut (*self.0).seen, seen);
        }
    }
    #[inline(always)]
    fn uncount(&self, state: FlowState) -> u32 {
        const {
            assert!(offset_of!(Flow<A>, counted) % 4 == 3);
            assert!(FlowState::Opening as u32 == 1);
            assert!(FlowState::Established as u32 == 2);
            assert!(FlowState::Closing as u32 == 3);
        };
        // Without a branch: a verifier would follow both sides to the program's end. Rows are
        // written seldom, so that an atomic operation more does not matter.
        let state = black_box(state as u32);
        let closing = state & (state >> 1) & 1;
        let keep = u32::from_ne_bytes([0xff, 0xff, 0xff, (closing as u8).wrapping_sub(1)]);
        // SAFETY: as above; the octet and the three before it are an aligned word of the row,
        // of which nothing else changes by this.
        let was = unsafe {
            let counted = &raw mut (*self.0).counted;
            lock::fetch_and(counted.sub(3).cast(), keep)
        };
        let counted = was.to_ne_bytes()[3] as u32 & closing;
        // SAFETY: as above.
        unsafe { (*self.0).backend & counted.wrapping_neg() }
    }
}
