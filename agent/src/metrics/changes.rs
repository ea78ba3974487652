//! How changes get into the maps: times finer than kube-proxy's, writes, and what was put right.

use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::proxy::{Label, Seconds, unix};
use crate::plan::{Outcome, Table};

/// Whose changes the agent puts right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drift {
    /// Programs that somebody detached from an interface.
    Programs,
    /// The same, from the cgroup where sockets have services.
    Sockets,
    /// Routes, neighbours, devices.
    SlowPath,
    /// Rows of maps.
    Rows,
}

impl Drift {
    const ALL: [Self; 4] = [Self::Programs, Self::Sockets, Self::SlowPath, Self::Rows];

    const fn label(self) -> Label {
        [(
            "part",
            match self {
                Self::Programs => "programs",
                Self::Sockets => "sockets",
                Self::SlowPath => "slow_path",
                Self::Rows => "rows",
            },
        )]
    }
}

/// The handles.
#[derive(Clone, Debug)]
pub struct ChangeMetrics {
    latency: Histogram,
    writes: Counter,
    failures: Counter,
    pending: Gauge,
    repairs: Labelled<Label, Counter>,
    drifted: Labelled<Label, Counter>,
    compared_at: Seconds,
    compared_in: Seconds,
}

impl Default for ChangeMetrics {
    fn default() -> Self {
        let repairs = Labelled::<Label, Counter>::default();
        for drift in Drift::ALL {
            drop(repairs.get_or_create(&drift.label()));
        }
        let drifted = Labelled::<Label, Counter>::default();
        for table in Table::ALL {
            drop(drifted.get_or_create(&[("map", table.name())]));
        }
        Self {
            // 50 µs to 13 s.
            latency: Histogram::new(exponential_buckets(0.000_05, 2.0, 19)),
            writes: Counter::default(),
            failures: Counter::default(),
            pending: Gauge::default(),
            repairs,
            drifted,
            compared_at: Seconds::default(),
            compared_in: Seconds::default(),
        }
    }
}

impl ChangeMetrics {
    /// A batch of changes is in the maps, so long after the first of them was noticed.
    pub fn written(&self, after: Duration) {
        self.latency.observe(after.as_secs_f64());
    }

    /// What a run of the planner did.
    pub fn ran(&self, outcome: &Outcome) {
        self.writes.inc_by(outcome.written as u64);
        self.failures.inc_by(outcome.failed as u64);
        let pending = i64::try_from(outcome.pending);
        self.pending.set(pending.unwrap_or(i64::MAX));
    }

    /// Something was put right again.
    pub fn repaired(&self, drift: Drift, count: u64) {
        self.repairs.get_or_create(&drift.label()).inc_by(count);
    }

    /// A row of this map was not as it had been written.
    pub fn drifted(&self, map: &'static str) {
        self.drifted.get_or_create(&[("map", map)]).inc();
    }

    /// Every row of the maps was compared.
    pub fn compared(&self, at: SystemTime, took: Duration) {
        self.compared_at.set(unix(Some(at)));
        self.compared_in.set(took.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "tulle_sync_duration_seconds",
            "From noticing a batch of changes to the last map write",
            self.latency.clone(),
        );
        registry.register(
            "tulle_map_writes",
            "Writes to maps that the kernel took",
            self.writes.clone(),
        );
        registry.register(
            "tulle_map_write_failures",
            "Rows, or frontends with all that belongs to them, that could not be written; each try counts",
            self.failures.clone(),
        );
        registry.register(
            "tulle_map_writes_pending",
            "Rows and frontends that are still to be written",
            self.pending.clone(),
        );
        registry.register(
            "tulle_drift_repairs",
            "What somebody else changed and the agent put right",
            self.repairs.clone(),
        );
        registry.register(
            "tulle_map_rows_drifted",
            "Rows of maps that were not as the agent had written them",
            self.drifted.clone(),
        );
        registry.register(
            "tulle_map_rows_compared_last_timestamp_seconds",
            "When all rows of the maps had been compared the last time",
            self.compared_at.clone(),
        );
        registry.register(
            "tulle_map_rows_compared_duration_seconds",
            "How long the last round over the rows took, with its pauses",
            self.compared_in.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn each_part_has_its_repairs_from_nothing_on() {
        let metrics = ChangeMetrics::default();
        let repairs = || {
            let mut registry = Registry::default();
            metrics.register(&mut registry);
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let name = "tulle_drift_repairs_total{part=\"";
            let of = text.lines().filter_map(|line| line.strip_prefix(name));
            let mut all: Vec<String> = of.map(|line| line.replace("\"}", "")).collect();
            all.sort();
            all
        };
        assert_eq!(
            repairs(),
            ["programs 0", "rows 0", "slow_path 0", "sockets 0"]
        );
        metrics.repaired(Drift::Sockets, 2);
        metrics.repaired(Drift::Programs, 1);
        assert_eq!(
            repairs(),
            ["programs 1", "rows 0", "slow_path 0", "sockets 2"]
        );
    }
}
