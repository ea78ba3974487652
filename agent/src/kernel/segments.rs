//! `tulle_segments` as memory, so that a segment of any length is written without a
//! syscall.

use std::io;
use std::sync::atomic::{Ordering, fence};

use aya::maps::MapData;

use super::mapped::Mapped;

/// The slots of all segments.
#[derive(Debug)]
pub struct Segments(Mapped);

impl Segments {
    /// Maps the array of slots into memory.
    pub(crate) fn new(map: &MapData) -> io::Result<Self> {
        Mapped::new(map, size_of::<u32>()).map(Self)
    }

    /// How many slots there are.
    pub const fn len(&self) -> u32 {
        self.0.entries()
    }

    /// Whether there is no slot at all.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The backend id in a slot; `None` beyond the end.
    pub fn get(&self, index: u32) -> Option<u32> {
        self.0
            .word32(index)
            .map(|slot| slot.load(Ordering::Relaxed))
    }

    /// Writes backend ids from slot `start` on; false, and nothing written, if
    /// they go beyond the end. A program sees each slot whole; the frontend
    /// that names the segment is written after this returns.
    #[must_use]
    pub fn write(&mut self, start: u32, backends: &[u32]) -> bool {
        let fits = u32::try_from(backends.len())
            .ok()
            .and_then(|n| start.checked_add(n))
            .is_some_and(|end| end <= self.len());
        if !fits {
            return false;
        }
        for (index, backend) in (start..).zip(backends) {
            if let Some(slot) = self.0.word32(index) {
                slot.store(*backend, Ordering::Relaxed);
            }
        }
        fence(Ordering::SeqCst);
        true
    }

    /// Every slot.
    pub fn read(&self) -> Vec<u32> {
        (0..self.len()).filter_map(|i| self.get(i)).collect()
    }
}
