//! `tulle_live_*`: how many living flows each backend has, as far as they are counted.
//!
//! The programs count a flow when it opens and once more, down, when either end closes it.
//! The walk over the flow tables counts those down that it removes. What goes otherwise
//! (evicted, flushed, written over once it had expired) stays in the count, which the walk
//! therefore compares with the rows: [`Recount`].

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;

use aya::maps::MapData;

use super::gc::{NamedBackend, Pass};
use super::mapped::Mapped;

/// The counts of both families, as memory.
#[derive(Debug)]
pub struct Live {
    v4: Mapped,
    v6: Mapped,
}

impl Live {
    /// Maps both arrays into memory.
    pub(super) fn new(v4: &MapData, v6: &MapData) -> io::Result<Self> {
        Ok(Self {
            v4: Mapped::new(v4, size_of::<u64>())?,
            v6: Mapped::new(v6, size_of::<u64>())?,
        })
    }

    const fn of(&self, version: u8) -> &Mapped {
        if version == 6 { &self.v6 } else { &self.v4 }
    }

    /// The count of a backend of an IP version. It may be below 0 for a moment: a flow that
    /// closes at once is counted down on one CPU before another has counted it.
    pub fn get(&self, version: u8, id: u32) -> i64 {
        let count = self.of(version).word64(id);
        count.map_or(0, |count| count.load(Ordering::Relaxed).cast_signed())
    }

    /// Changes it by so much, while the programs count.
    pub(super) fn add(&self, version: u8, id: u32, by: i64) {
        if let Some(count) = self.of(version).word64(id) {
            count.fetch_add(by.cast_unsigned(), Ordering::Relaxed);
        }
    }

    /// Nobody has the id any more.
    pub(super) fn clear(&self, version: u8, id: u32) {
        if let Some(count) = self.of(version).word64(id) {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// Corrects the counts by walks over the flow tables.
///
/// Flows come and go while a walk lasts, so that what it saw and the count differ, once by
/// too much and once by too little. Only what two walks in a row agree on is corrected: a
/// fault stays until then, and chance does not agree with itself for long.
#[derive(Debug, Default)]
pub struct Recount {
    /// Counts when the walk began, but for zeros.
    began: HashMap<NamedBackend, i64>,
    /// By how much the walk before saw more than was counted, but for zeros.
    missing: HashMap<NamedBackend, i64>,
}

impl Recount {
    /// A walk begins; these are the backends that there are.
    pub fn begin(&mut self, live: &Live, backends: impl Iterator<Item = NamedBackend>) {
        let count = |backend: NamedBackend| (backend, live.get(backend.version, backend.id));
        self.began = backends.map(count).filter(|(_, n)| *n != 0).collect();
    }

    /// The walk is over. Returns how many flows were counted too many or too few, and are not
    /// any more.
    pub fn finish(
        &mut self,
        live: &Live,
        pass: &Pass,
        backends: impl Iterator<Item = NamedBackend>,
    ) -> u64 {
        let before = std::mem::take(&mut self.missing);
        let mut corrected = 0;
        for backend in backends {
            let seen = pass.counted.get(&backend).copied().unwrap_or(0);
            let began = self.began.get(&backend).copied().unwrap_or(0);
            let ended = live.get(backend.version, backend.id);
            let missing = seen.cast_signed() - i64::midpoint(began, ended);
            let agreed = agreed(before.get(&backend).copied().unwrap_or(0), missing);
            if agreed != 0 {
                live.add(backend.version, backend.id, agreed);
                corrected += agreed.unsigned_abs();
            }
            if missing != agreed {
                self.missing.insert(backend, missing - agreed);
            }
        }
        self.began.clear();
        corrected
    }
}

/// What both say.
const fn agreed(one: i64, other: i64) -> i64 {
    if one.signum() != other.signum() {
        0
    } else if one.unsigned_abs() < other.unsigned_abs() {
        one
    } else {
        other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_two_walks_say_is_agreed_on() {
        assert_eq!(agreed(0, 5), 0);
        assert_eq!(agreed(-3, 5), 0);
        assert_eq!(agreed(3, 5), 3);
        assert_eq!(agreed(-5, -3), -3);
    }
}
