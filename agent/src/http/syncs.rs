//! What of each family is written, kept by the loop (pure).

use std::time::{Instant, SystemTime};

use super::health::FamilySync;
use crate::model::Family;

/// Both families, in the order of [`Syncs::families`].
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Since when changes wait, and when the last ones were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Syncs {
    families: [FamilySync; 2],
    /// Since when the programs at the uplink are not as they should be.
    programs: Option<Instant>,
}

impl Syncs {
    /// A change is to be written that both families may have a part of.
    pub fn queue(&mut self, now: Instant, at: SystemTime) {
        for family in &mut self.families {
            family.waits.get_or_insert(now);
            family.queued = Some(at);
        }
    }

    /// What was due has been written, but for families that `fails` names. What
    /// was written without a change, a next hop for example, is no sync.
    pub fn written(&mut self, fails: impl Fn(Family) -> bool, now: Instant, at: SystemTime) {
        for (sync, family) in self.families.iter_mut().zip(FAMILIES) {
            if fails(family) {
                sync.waits.get_or_insert(now);
            } else if sync.waits.take().is_some() {
                sync.last = Some(at);
            }
        }
    }

    /// Sets whether the uplink has its programs.
    pub fn set_programs(&mut self, attached: bool, now: Instant) {
        if attached {
            self.programs = None;
        } else {
            self.programs.get_or_insert(now);
        }
    }

    /// Whether a family has a change that is not written.
    pub fn waits(&self, family: Family) -> bool {
        let mut families = self.families.iter().zip(FAMILIES);
        families.any(|(sync, of)| of == family && sync.waits.is_some())
    }

    /// IPv4's and IPv6's.
    pub const fn families(&self) -> [FamilySync; 2] {
        self.families
    }

    /// Since when the programs at the uplink are not as they should be.
    pub const fn programs_fail(&self) -> Option<Instant> {
        self.programs
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn kp150_the_clock_runs_from_the_first_change_until_all_is_written() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let wall = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let mut syncs = Syncs::default();
        syncs.written(|_| false, at(1), wall(1));
        assert_eq!(syncs, Syncs::default(), "nothing had changed");
        syncs.queue(at(2), wall(2));
        syncs.queue(at(3), wall(3));
        assert!(syncs.waits(Family::V4) && syncs.waits(Family::V6));
        syncs.written(|family| family == Family::V6, at(4), wall(4));
        let [v4, v6] = syncs.families();
        assert_eq!((v4.waits, v4.last), (None, Some(wall(4))));
        assert_eq!(v4.queued, Some(wall(3)));
        assert!(!syncs.waits(Family::V4) && syncs.waits(Family::V6));
        assert_eq!((v6.waits, v6.last), (Some(at(2)), None), "the first one");
        // Another change of the one family does not help the other.
        syncs.queue(at(5), wall(5));
        syncs.written(|family| family == Family::V6, at(6), wall(6));
        let [v4, v6] = syncs.families();
        assert_eq!((v4.waits, v4.last), (None, Some(wall(6))));
        assert_eq!((v6.waits, v6.last), (Some(at(2)), None));
        syncs.written(|_| false, at(7), wall(7));
        let [v4, v6] = syncs.families();
        assert_eq!((v4.last, v6.last), (Some(wall(6)), Some(wall(7))));
        // What fails without a change waits too.
        syncs.written(|family| family == Family::V4, at(8), wall(8));
        assert_eq!(syncs.families()[0].waits, Some(at(8)));
    }

    #[test]
    fn programs_fail_since_the_first_time() {
        let start = Instant::now();
        let mut syncs = Syncs::default();
        syncs.set_programs(false, start);
        syncs.set_programs(false, start + Duration::from_secs(1));
        assert_eq!(syncs.programs_fail(), Some(start));
        syncs.set_programs(true, start + Duration::from_secs(2));
        assert_eq!(syncs.programs_fail(), None);
    }
}
