//! What the loop publishes for those who answer (pure, but for the beat's word).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::model::{Family, NamespacedName};

/// What one Service's port tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The port.
    pub port: u16,
    /// Ready endpoints of this node; `None` without a ClusterIP of the family (KP-05).
    pub ready4: Option<usize>,
    /// The same of IPv6.
    pub ready6: Option<usize>,
    /// Since when a part of the Service cannot be written to the maps.
    pub failing: Option<Instant>,
}

impl Probe {
    /// Ready endpoints of a family, if the port is open in it.
    pub const fn ready(&self, family: Family) -> Option<usize> {
        match family {
            Family::V4 => self.ready4,
            Family::V6 => self.ready6,
        }
    }
}

/// All ports, and where they are open. Cheap to clone, but for the tree.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Board {
    /// Addresses to listen at.
    pub addresses: Arc<[IpAddr]>,
    /// Services by name.
    pub probes: BTreeMap<Arc<NamespacedName>, Probe>,
    /// Since when the programs do not serve clients outside as they should.
    pub failing: Option<Instant>,
}

/// Since when the loop is at one piece of work: a loop that hangs can publish nothing.
#[derive(Debug)]
pub struct Beat {
    start: Instant,
    /// Milliseconds after `start`, plus one; 0 while the loop waits for events.
    busy: AtomicU64,
}

impl Default for Beat {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            busy: AtomicU64::new(0),
        }
    }
}

impl Beat {
    /// The loop has something to do.
    pub fn begin(&self) {
        let since = self.start.elapsed().as_millis() as u64;
        self.busy.store(since + 1, Ordering::Relaxed);
    }

    /// It is done.
    pub fn end(&self) {
        self.busy.store(0, Ordering::Relaxed);
    }

    /// Since when it is at it.
    pub fn busy_since(&self) -> Option<Instant> {
        let since = self.busy.load(Ordering::Relaxed).checked_sub(1)?;
        self.start.checked_add(Duration::from_millis(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_tells_only_of_work() {
        let beat = Beat::default();
        assert_eq!(beat.busy_since(), None);
        let before = Instant::now();
        beat.begin();
        let since = beat.busy_since().unwrap();
        assert!(since + Duration::from_millis(1) >= before && since <= Instant::now());
        beat.end();
        assert_eq!(beat.busy_since(), None);
    }
}
