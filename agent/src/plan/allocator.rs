//! Segments of the flat slot array. What is given back is kept for a grace
//! period, because a packet may still be reading it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long a segment that is no longer named by a frontend stays untouched.
pub const GRACE: Duration = Duration::from_millis(200);

/// A table has no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{map} is full ({limit} entries); raise {flag}")]
pub struct CapacityError {
    /// The map's name.
    pub map: &'static str,
    /// The flag that sizes it.
    pub flag: &'static str,
    /// Its entries.
    pub limit: u32,
}

/// Slots `start .. start + len` of `tulle_segments`; `len` is never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Region {
    /// First slot.
    pub start: u32,
    /// Number of slots.
    pub len: u32,
}

impl Region {
    /// The region, unless it is empty.
    pub const fn new(start: u32, len: u32) -> Option<Self> {
        if len == 0 {
            None
        } else {
            Some(Self { start, len })
        }
    }

    /// Slot after the last.
    pub const fn end(self) -> u32 {
        self.start.saturating_add(self.len)
    }

    /// The slots as indices.
    pub fn slots(self) -> std::ops::Range<usize> {
        self.start as usize..self.end() as usize
    }
}

/// Hands out regions: the smallest free one that fits; neighbours coalesce.
#[derive(Clone, Debug)]
pub struct SegmentAllocator {
    capacity: u32,
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    free: u32,
    grace: VecDeque<(Instant, Region)>,
}

impl SegmentAllocator {
    /// An allocator over `capacity` slots, all free.
    pub fn new(capacity: u32) -> Self {
        let mut allocator = Self {
            capacity,
            by_start: BTreeMap::new(),
            by_len: BTreeSet::new(),
            free: 0,
            grace: VecDeque::new(),
        };
        if let Some(all) = Region::new(0, capacity) {
            allocator.insert(all);
        }
        allocator
    }

    /// Takes a region of `len` slots.
    pub fn take(&mut self, len: u32) -> Result<Option<Region>, CapacityError> {
        if len == 0 {
            return Ok(None);
        }
        let Some(&(found, start)) = self.by_len.range((len, 0)..).next() else {
            return Err(CapacityError {
                map: datapath_common::maps::SEGMENTS,
                flag: "--max-segments",
                limit: self.capacity,
            });
        };
        self.remove(Region { start, len: found });
        if let Some(rest) = Region::new(start + len, found - len) {
            self.insert(rest);
        }
        Ok(Some(Region { start, len }))
    }

    /// Takes exactly this region; false if part of it is not free or does not exist.
    pub fn take_at(&mut self, region: Region) -> bool {
        let Some((&start, &len)) = self.by_start.range(..=region.start).next_back() else {
            return false;
        };
        let free = Region { start, len };
        let Some(end) = region
            .start
            .checked_add(region.len)
            .filter(|end| *end <= free.end())
        else {
            return false;
        };
        self.remove(free);
        let before = Region::new(start, region.start - start);
        let after = Region::new(end, free.end() - end);
        for rest in before.into_iter().chain(after) {
            self.insert(rest);
        }
        true
    }

    /// Takes whatever is still free within a region; returns the pieces.
    pub fn take_within(&mut self, region: Region) -> Vec<Region> {
        let pieces: Vec<Region> = self
            .by_start
            .range(..region.end())
            .rev()
            .take_while(|(start, len)| *start + *len > region.start)
            .filter_map(|(start, len)| {
                let from = (*start).max(region.start);
                Region::new(from, (start + len).min(region.end()) - from)
            })
            .collect();
        for piece in &pieces {
            self.take_at(*piece);
        }
        pieces
    }

    /// Gives back a region that no packet can be reading.
    pub fn give_back(&mut self, region: Region) {
        let mut merged = region;
        if let Some((&start, &len)) = self.by_start.range(..region.start).next_back()
            && start + len == region.start
        {
            self.remove(Region { start, len });
            merged = Region {
                start,
                len: len + merged.len,
            };
        }
        if let Some(&len) = self.by_start.get(&merged.end()) {
            self.remove(Region {
                start: merged.end(),
                len,
            });
            merged.len += len;
        }
        self.insert(merged);
    }

    /// Gives back a region that was live until `now`.
    pub fn retire(&mut self, region: Region, now: Instant) {
        self.grace.push_back((now, region));
    }

    /// Frees what was retired at least [`GRACE`] before `now`.
    pub fn reclaim(&mut self, now: Instant) {
        while let Some((retired, region)) = self.grace.front().copied() {
            if now.saturating_duration_since(retired) < GRACE {
                break;
            }
            self.grace.pop_front();
            self.give_back(region);
        }
    }

    /// When [`SegmentAllocator::reclaim`] has something to do next.
    pub fn next_reclaim(&self) -> Option<Instant> {
        self.grace.front().map(|(retired, _)| *retired + GRACE)
    }

    /// Slots that are free now.
    pub const fn free(&self) -> u32 {
        self.free
    }

    /// Slots that are not, those of regions that were retired a moment ago among them.
    pub const fn used(&self) -> u32 {
        self.capacity - self.free
    }

    /// All slots.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    fn insert(&mut self, region: Region) {
        self.free += region.len;
        self.by_start.insert(region.start, region.len);
        self.by_len.insert((region.len, region.start));
    }

    fn remove(&mut self, region: Region) {
        self.free -= region.len;
        self.by_start.remove(&region.start);
        self.by_len.remove(&(region.len, region.start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_reused_after_the_grace_period_only() {
        let mut slots = SegmentAllocator::new(10);
        let start = Instant::now();
        let first = slots.take(6).unwrap().unwrap();
        let error = slots.take(5).unwrap_err();
        assert_eq!(
            (error.map, error.flag),
            ("tulle_segments", "--max-segments")
        );
        slots.retire(first, start);
        slots.reclaim(start + Duration::from_millis(199));
        assert!(slots.take(5).is_err());
        slots.reclaim(start + GRACE);
        assert_eq!(
            slots.take(10).unwrap(),
            Region::new(0, 10),
            "free regions coalesce"
        );
    }

    #[test]
    fn the_smallest_fitting_hole_is_taken() {
        let mut slots = SegmentAllocator::new(100);
        assert!(slots.take_at(Region { start: 10, len: 5 }));
        assert!(slots.take_at(Region { start: 18, len: 2 }));
        assert!(!slots.take_at(Region { start: 14, len: 2 }), "14 is taken");
        assert!(
            !slots.take_at(Region { start: 99, len: 2 }),
            "100 does not exist"
        );
        assert!(!slots.take_at(Region {
            start: u32::MAX,
            len: 2
        }));
        assert_eq!(slots.take(3).unwrap(), Region::new(15, 3));
        assert_eq!(slots.take(0).unwrap(), None);
        assert_eq!(slots.free(), 90);
        assert_eq!(
            slots.take_within(Region { start: 5, len: 20 }),
            [Region { start: 20, len: 5 }, Region { start: 5, len: 5 }]
        );
    }
}
