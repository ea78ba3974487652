//! `tulle_segments` as memory, so that a segment of any length is written without a
//! syscall.

use std::io;
use std::sync::atomic::{Ordering, fence};

use aya::maps::MapData;

use super::mapped::{Mapped, WINDOW};

/// The slots of all segments.
#[derive(Debug)]
pub struct Segments(Mapped);

impl Segments {
    /// Prepares to map the array of slots into memory.
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
    ///
    /// # Errors
    ///
    /// The kernel does not map the slots into memory. Nothing is written.
    pub fn write(&mut self, start: u32, backends: &[u32]) -> io::Result<bool> {
        let end = u32::try_from(backends.len())
            .ok()
            .and_then(|n| start.checked_add(n))
            .filter(|end| *end <= self.len());
        let Some(end) = end else {
            return Ok(false);
        };
        self.0.reach(start, end)?;
        for (index, backend) in (start..).zip(backends) {
            if let Some(slot) = self.0.word32(index) {
                slot.store(*backend, Ordering::Relaxed);
            }
        }
        fence(Ordering::SeqCst);
        Ok(true)
    }

    /// So many slots from `first` on; fewer where the array ends. What is not in memory yet is
    /// mapped for as long as it is read.
    ///
    /// # Errors
    ///
    /// The kernel does not map them into memory.
    pub fn range(&self, first: u32, count: u32) -> io::Result<Vec<u32>> {
        let end = first.saturating_add(count).min(self.len());
        let mut slots = Vec::with_capacity(end.saturating_sub(first) as usize);
        let mut at = first;
        while at < end {
            let number = at / WINDOW;
            let here = at..end.min((number + 1).saturating_mul(WINDOW));
            at = here.end;
            let mapped_now;
            let window = if let Some(window) = self.0.mapped(number) {
                window
            } else {
                mapped_now = self.0.window(number)?;
                &mapped_now
            };
            let words = here.map_while(|index| window.word32(index % WINDOW));
            slots.extend(words.map(|word| word.load(Ordering::Relaxed)));
        }
        Ok(slots)
    }

    /// Every slot up to the last that is not 0.
    ///
    /// # Errors
    ///
    /// The kernel does not map them into memory.
    pub fn read(&self) -> io::Result<Vec<u32>> {
        let mut slots = Vec::new();
        for number in 0..self.len().div_ceil(WINDOW) {
            let window = self.0.window(number)?;
            let words = (0..WINDOW).map_while(|index| window.word32(index));
            for (index, id) in (number * WINDOW..).zip(words.map(|w| w.load(Ordering::Relaxed))) {
                if id != 0 {
                    slots.resize(index as usize, 0);
                    slots.push(id);
                }
            }
        }
        Ok(slots)
    }
}
