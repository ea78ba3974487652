//! Rounds over the maps' rows between other work: what differs from what was written is told, counted
//! and given to the planner (KP-134, KP-139).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use crate::kernel::{Maps, Reading, TableError};
use crate::metrics::ChangeMetrics;
use crate::plan::{Difference, Planner, Round, Table, Unit};

/// Rows that one step compares, about: half a millisecond, which a change may have to wait.
const STEP_ROWS: u32 = 1024;
/// Between two steps, at least.
const GAP: Duration = Duration::from_millis(5);
/// A round under way takes at most this share of the time: one part in so many.
const SHARE: u32 = 10;
/// Rows of each map that a sentence of the log names.
const NAMED: usize = 3;

/// What the last whole round saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastRound {
    /// When it ended.
    pub at: SystemTime,
    /// Rows that were not as they had been written.
    pub found: u64,
}

/// The rounds of one agent.
#[derive(Debug)]
pub struct Rounds {
    /// From the beginning of one to that of the next; `None` for never.
    period: Option<Duration>,
    round: Round,
    reading: Reading,
    began: Option<Instant>,
    /// The longest step of the round under way.
    longest: Duration,
    due: Instant,
    /// What this round found, by table.
    found: BTreeMap<Table, (u64, Vec<String>)>,
    /// What was found and is still to be written, in this round or one before.
    open: Vec<Unit>,
    last: Option<LastRound>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Some rows differ.
    pub found: bool,
    /// All rows have been compared.
    pub ended: bool,
}

impl Rounds {
    /// Rounds that begin so far apart, the first after that time; none if it is 0.
    pub fn new(period: Duration, now: Instant) -> Self {
        Self {
            period: (!period.is_zero()).then_some(period),
            round: Round::new(),
            reading: Reading::default(),
            began: None,
            longest: Duration::ZERO,
            due: now + period,
            found: BTreeMap::new(),
            open: Vec::new(),
            last: None,
        }
    }

    /// When the next step is due.
    pub fn due(&self) -> Option<Instant> {
        self.period.map(|_| self.due)
    }

    /// The last whole round.
    pub const fn last(&self) -> Option<LastRound> {
        self.last
    }

    /// Compares the next rows if it is time. If some of them differ, the planner has to run, and [`Self::settle`] after it.
    ///
    /// # Errors
    ///
    /// A map cannot be read. The next round begins anew.
    pub fn step(
        &mut self,
        maps: &Maps,
        planner: &mut Planner,
        metrics: &ChangeMetrics,
    ) -> Result<Option<Step>, TableError> {
        let now = Instant::now();
        let Some(period) = self.period.filter(|_| now >= self.due) else {
            return Ok(None);
        };
        let began = *self.began.get_or_insert(now);
        let mut reader = maps.reader(&mut self.reading);
        let step = self.round.step(planner, &mut reader, STEP_ROWS, now);
        let found = self.round.take_found();
        for difference in &found {
            metrics.drifted(difference.table.name());
            self.note(difference);
        }
        let after = Instant::now();
        self.longest = self.longest.max(after - now);
        self.due = after + GAP.max((after - now) * SHARE);
        if !matches!(step, Ok(false)) {
            self.round = Round::new();
            self.began = None;
            self.due = self.due.max(began + period);
        }
        let ended = step?;
        if ended {
            self.end(after - began, metrics);
        }
        Ok(Some(Step {
            found: !found.is_empty(),
            ended,
        }))
    }

    fn note(&mut self, difference: &Difference) {
        let (count, named) = self.found.entry(difference.table).or_default();
        *count += 1;
        if named.len() < NAMED {
            named.push(difference.to_string());
        }
        self.open.push(difference.unit);
    }

    /// A round is over; what its last step found is not written yet.
    fn end(&mut self, took: Duration, metrics: &ChangeMetrics) {
        let at = SystemTime::now();
        let longest = std::mem::take(&mut self.longest);
        tracing::debug!(?took, ?longest, "compared all rows of the maps");
        let found = std::mem::take(&mut self.found);
        if !found.is_empty() {
            tracing::warn!("{}", sentence(&found));
        }
        self.last = Some(LastRound {
            at,
            found: found.values().map(|(count, _)| count).sum(),
        });
        metrics.compared(at, took);
    }

    /// After a run of the planner: how many of the rows that were found are written again since
    /// this was asked last.
    pub fn settle(&mut self, planner: &Planner) -> u64 {
        let before = self.open.len();
        self.open.retain(|unit| planner.is_pending(unit));
        (before - self.open.len()) as u64
    }

    /// How many rows were found that are not written again yet.
    pub const fn open(&self) -> usize {
        self.open.len()
    }
}

/// One line for all that a round found.
fn sentence(found: &BTreeMap<Table, (u64, Vec<String>)>) -> String {
    let mut out =
        "rows of maps were not as they had been written, and are written again:".to_owned();
    for (at, (table, (count, named))) in found.iter().enumerate() {
        let comma = if at == 0 { "" } else { ";" };
        let more = if *count > named.len() as u64 {
            ", …"
        } else {
            ""
        };
        let named = named.join(", ");
        // A string takes everything.
        let _ = write!(out, "{comma} {count} in {} ({named}{more})", table.name());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_names_each_map_and_a_few_rows() {
        let rows = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let found = BTreeMap::from([
            (
                Table::FrontV4,
                (9, rows(&["a: missing", "b: changed", "c: nobody's"])),
            ),
            (Table::NodesV4, (1, rows(&["node 192.0.2.1: missing"]))),
        ]);
        assert_eq!(
            sentence(&found),
            "rows of maps were not as they had been written, and are written again: \
             1 in tulle_nodes_v4 (node 192.0.2.1: missing); \
             9 in tulle_front_v4 (a: missing, b: changed, c: nobody's, …)"
        );
    }

    #[test]
    fn a_period_of_0_is_never() {
        let now = Instant::now();
        assert_eq!(Rounds::new(Duration::ZERO, now).due(), None);
        let period = Duration::from_secs(30);
        assert_eq!(Rounds::new(period, now).due(), Some(now + period));
    }
}
