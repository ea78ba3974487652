//! Rows that are otherwise than they were written → [`Applied`]: what was found is believed, as
//! after a restart, so that the ordinary diff puts it right.

use std::time::Instant;

use datapath_common::{Frontend, FrontendFlags};

use super::allocator::Region;
use super::applied::{Applied, has_ranges, layout};
use super::ops::FrontKey;
use crate::model::Family;

impl Applied {
    /// Believes that a frontend's row is this one, or not there.
    pub(super) fn find_front(&mut self, key: FrontKey, found: Option<Frontend>, now: Instant) {
        let written = self.fronts.get(&key).copied();
        match (written, found) {
            // Flows through it may live: they decide once it is back.
            (_, None) => self.delete_front(key, now),
            (Some(written), Some(found)) => self.change_front(key, &written, found),
            (None, Some(found)) if self.own_segment(&key, &found) => {
                self.put_front(key, found, now);
            }
            (None, Some(found)) => self.adopt_damaged(key, found, now),
        }
    }

    /// Neither the slots that were written for the frontend nor those that its row names now
    /// are given out before it is rewritten.
    fn change_front(&mut self, key: FrontKey, written: &Frontend, found: Frontend) {
        let named = self.hold_slots(Family::of(key.addr), &found);
        self.distrust(key, written);
        if let Some(ids) = self.damaged.get_mut(&key) {
            ids.extend(named);
        }
        if has_ranges(&found) {
            self.sources.use_by(found.service);
        }
        if has_ranges(written) {
            self.sources.unuse_by(written.service);
        }
        self.fronts.insert(key, found);
    }

    /// The frontend has to be written anew, with other slots; the backends in those that it has
    /// count as used until then.
    fn distrust(&mut self, key: FrontKey, row: &Frontend) {
        if self.damaged.contains_key(&key) {
            return;
        }
        let ids = self.ids(row).to_vec();
        self.damaged.insert(key, ids);
        let slots = layout(row).and_then(|(start, len)| Region::new(start, len));
        self.limbo.extend(slots);
    }

    /// Believes that the slots from `first` on hold these ids. Gives the frontends that have to be
    /// written anew, elsewhere: a packet may be reading their slots.
    pub(super) fn find_slots(&mut self, first: u32, found: &[u32]) -> Vec<FrontKey> {
        let start = (first as usize).min(self.slots.len());
        let end = (start + found.len()).min(self.slots.len());
        let written = &self.slots[start..end];
        let found = &found[..written.len()];
        if written == found {
            return Vec::new();
        }
        let pairs = (first..).zip(written.iter().zip(found));
        let changed: Vec<u32> = pairs
            .filter(|(_, (written, found))| written != found)
            .map(|(slot, _)| slot)
            .collect();
        let fronts = self.fronts.iter();
        let trusted = fronts.filter(|(key, _)| !self.damaged.contains_key(key));
        let owners: Vec<(FrontKey, Frontend)> = trusted
            .filter(|(_, row)| names_any(row, &changed))
            .map(|(key, row)| (*key, *row))
            .collect();
        for (key, row) in &owners {
            self.distrust(*key, row);
        }
        self.slots[start..end].copy_from_slice(found);
        owners.into_iter().map(|(key, _)| key).collect()
    }
}

/// Whether a row names any of these slots, which ascend.
fn names_any(row: &Frontend, slots: &[u32]) -> bool {
    let Some((start, len)) = layout(row) else {
        return false;
    };
    let next = slots.partition_point(|slot| *slot < start);
    slots.get(next).is_some_and(|slot| *slot - start < len)
}

/// Whether the kernel's row is what was written. Programs note by themselves, and only ever
/// set, that the flow table decides.
pub(super) fn is_as_written(written: &Frontend, found: &Frontend) -> bool {
    let noted = found.flags & FrontendFlags::FLOWS_DECIDE;
    let expected = Frontend {
        flags: written.flags | noted,
        ..*written
    };
    *found == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_s_note_is_no_difference() {
        let plain = Frontend {
            service: 3,
            len: 2,
            ..Frontend::default()
        };
        let noted = Frontend {
            flags: FrontendFlags::FLOWS_DECIDE,
            ..plain
        };
        assert!(is_as_written(&plain, &plain));
        assert!(is_as_written(&plain, &noted));
        assert!(!is_as_written(&noted, &plain), "it was taken away");
        let other = Frontend { len: 1, ..noted };
        assert!(!is_as_written(&plain, &other));
    }
}
