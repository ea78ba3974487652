//! What every part of the loop reads or counts in.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use datapath_common::Mac;

use super::faults::{Faults, Part};
use super::pace::Pace;
use super::sockets::SocketChoice;
use super::spare;
use crate::args::RunArgs;
use crate::http::Syncs;
use crate::kernel::probe::Kernel;
use crate::metrics::{Drift, Metrics, Sizes};
use crate::model::Family;
use crate::net::{Netlink, Uplink};

/// Between looks at the links: what somebody detached is back within two seconds.
const LINKS: Duration = Duration::from_secs(1);
/// Between comparisons of the slow path without a notification.
const SLOW: Duration = Duration::from_millis(1500);
/// Between looks at pods, next hops and the uplink without a notification.
const FACTS: Duration = Duration::from_secs(10);
/// Between two passes that notifications ask for.
const GAP: Duration = Duration::from_millis(100);
/// Between looks at local pods that notifications ask for: a new pod waits for it.
const POD_GAP: Duration = Duration::from_millis(20);
/// Between two times that free memory is given back without a reason.
const SPARE: Duration = Duration::from_hours(1);

/// Counted since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Batches of changes that were applied.
    pub syncs: u64,
    /// Those of which a part failed.
    pub sync_failures: u64,
    /// From noticing to the last map write, of the last one.
    pub last_sync: Option<Duration>,
    /// What was found changed by others and put right.
    pub repairs: u64,
}

/// When what is due.
#[derive(Debug)]
pub struct Paces {
    /// The uplink's facts.
    pub uplink: Pace,
    /// Local pods and next hops.
    pub facts: Pace,
    /// The slow path.
    pub slow: Pace,
    /// Attachments.
    pub links: Pace,
    /// Other read-only data for the programs.
    pub programs: Pace,
    /// Free memory.
    pub spare: Pace,
}

impl Default for Paces {
    fn default() -> Self {
        Self {
            uplink: Pace::new(GAP, FACTS),
            facts: Pace::new(POD_GAP, FACTS),
            slow: Pace::new(GAP, SLOW),
            links: Pace::new(GAP, LINKS),
            programs: Pace::new(GAP, LINKS),
            spare: Pace::new(spare::REST, SPARE),
        }
    }
}

impl Paces {
    /// When the first of them is due, with or without the slow path.
    pub fn next(&self, slow: bool) -> Option<Instant> {
        let all = [
            self.uplink,
            self.facts,
            self.links,
            self.programs,
            self.spare,
        ];
        let slow = self.slow.due().filter(|_| slow);
        all.iter().filter_map(Pace::due).chain(slow).min()
    }
}

/// Shared by the parts of the loop.
#[derive(Debug)]
pub struct Shared {
    /// The command line.
    pub args: RunArgs,
    /// What the kernel offers.
    pub kernel: Kernel,
    /// A socket.
    pub netlink: Netlink,
    /// The uplink, as it was when it was last found.
    pub uplink: Uplink,
    /// What does not work.
    pub faults: Faults,
    /// Counters.
    pub counted: Counted,
    /// What Prometheus is told.
    pub metrics: Metrics,
    /// What is written, and what is late.
    pub syncs: Syncs,
    /// When what is due.
    pub paces: Paces,
    /// Sender of what `tulle_xdp` took out of the overlay.
    pub stripped_mac: Mac,
    /// Services at sockets.
    pub sockets: SocketChoice,
    /// When the agent started.
    pub started_at: SystemTime,
    /// The same in seconds since 1970.
    pub started_secs: u64,
}

impl Shared {
    /// At the start.
    pub fn new(
        args: RunArgs,
        kernel: Kernel,
        netlink: Netlink,
        uplink: Uplink,
        stripped_mac: Mac,
        sockets: SocketChoice,
        metrics: Metrics,
    ) -> Self {
        let started_at = SystemTime::now();
        let started = started_at.duration_since(UNIX_EPOCH);
        Self {
            args,
            kernel,
            netlink,
            uplink,
            faults: Faults::default(),
            counted: Counted::default(),
            metrics,
            syncs: Syncs::default(),
            paces: Paces::default(),
            stripped_mac,
            sockets,
            started_at,
            started_secs: started.map_or(0, |since| since.as_secs()),
        }
    }

    /// So much was changed by others and is put right.
    pub fn repaired(&mut self, drift: Drift, count: u64) {
        self.counted.repairs += count;
        self.metrics.changes.repaired(drift, count);
    }

    /// Tells the metrics how things are.
    pub fn tell(&self, sizes: &Sizes, status: &admin_api::Status) {
        let Metrics {
            state,
            proxy,
            source,
            ..
        } = &self.metrics;
        source.set_lost(self.faults.has(Part::Source));
        state.set_faults(&self.faults);
        state.set_sizes(sizes);
        state.set_attachments(status.links.iter().map(|link| link.program.as_str()));
        for (family, sync) in [Family::V4, Family::V6]
            .into_iter()
            .zip(self.syncs.families())
        {
            proxy.set_times(family, sync.queued, sync.last);
        }
    }
}
