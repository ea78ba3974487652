//! What a pass over the slow path did.

use super::diff::Cause;

/// Sentences kept; a first pass over thousands of peers needs no more.
const SENTENCES: usize = 64;

/// What [`super::SlowPath::reconcile`] found and did. Each row of the kernel's
/// tables (device, address, neighbour, forwarding entry, route, sysctl) counts once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows that were wanted for the first time.
    pub created: usize,
    /// Rows that had been right and were not any more, or stood wrong when we came: drift.
    pub repaired: usize,
    /// Rows written anew because what is wanted changed.
    pub updated: usize,
    /// Rows of ours that are not wanted any more.
    pub removed: usize,
    /// Rows that were right.
    pub unchanged: usize,
    /// What was done, for people; at most 64, see [`Report::more`].
    pub sentences: Vec<String>,
    /// How many more sentences there were.
    pub more: usize,
    /// What could not be done, with the cause; it is tried again in the next pass.
    pub failed: Vec<String>,
    /// Index of the overlay's device.
    pub device: u32,
}

impl Report {
    /// Nothing was written and nothing failed.
    pub fn is_clean(&self) -> bool {
        self.created + self.repaired + self.updated + self.removed == 0 && self.failed.is_empty()
    }

    pub(crate) fn say(&mut self, sentence: impl FnOnce() -> String) {
        if self.sentences.len() < SENTENCES {
            self.sentences.push(sentence());
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn count(&mut self, cause: Cause) {
        match cause {
            Cause::Created => self.created += 1,
            Cause::Repaired => self.repaired += 1,
            Cause::Updated => self.updated += 1,
        }
    }
}
