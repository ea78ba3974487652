//! When recurring work is due (pure): soon after a reason, regularly without one,
//! never so often that it fills the time.

use std::time::{Duration, Instant};

/// Work takes at most this share of the time: one part in so many.
const SHARE: u32 = 50;
/// The same for work that has a reason.
const URGENT_SHARE: u32 = 4;

/// When one kind of work is due.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two runs that have a reason.
    gap: Duration,
    /// Between two runs without one.
    interval: Duration,
    due: Option<Instant>,
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// Work that runs at most each `gap` and at least each `interval`; not due before it is asked for.
    pub const fn new(gap: Duration, interval: Duration) -> Self {
        Self {
            gap,
            interval,
            due: None,
            last: None,
        }
    }

    /// There is a reason to run.
    pub fn ask(&mut self, now: Instant) {
        let earliest = self.last.map_or(now, |(end, cost)| {
            (end + self.gap.max(cost * URGENT_SHARE)).max(now)
        });
        self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
    }

    /// It has to run at once, whenever it ran last.
    pub fn ask_now(&mut self, now: Instant) {
        self.due = Some(now);
    }

    /// Whether it is due; if so, it counts as begun.
    pub fn take(&mut self, now: Instant) -> bool {
        let due = self.due.is_some_and(|due| due <= now);
        if due {
            self.due = None;
        }
        due
    }

    /// It ran from `began` to `now`. A reason that came meanwhile stays one.
    pub fn done(&mut self, began: Instant, now: Instant) {
        let cost = now.saturating_duration_since(began);
        self.last = Some((now, cost));
        let regular = now + self.interval.max(cost * SHARE);
        self.due = Some(
            self.due
                .map_or(regular, |due| due.max(now + self.gap).min(regular)),
        );
    }

    /// When it is due next.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn reasons_are_rate_limited_and_never_forgotten() {
        let start = Instant::now();
        let mut pace = Pace::new(100 * MS, 1500 * MS);
        assert_eq!(pace.due(), None);
        assert!(!pace.take(start));
        pace.ask(start);
        assert!(pace.take(start), "the first at once");
        pace.ask(start); // while it runs
        pace.done(start, start + MS);
        assert_eq!(pace.due(), Some(start + 101 * MS));
        assert!(!pace.take(start + 100 * MS));
        assert!(pace.take(start + 101 * MS));
        pace.done(start + 101 * MS, start + 102 * MS);
        assert_eq!(
            pace.due(),
            Some(start + 1602 * MS),
            "regularly without a reason"
        );
        pace.ask(start + 1000 * MS);
        assert!(pace.take(start + 1000 * MS));
    }

    #[test]
    fn dear_work_runs_less_often() {
        let start = Instant::now();
        let mut pace = Pace::new(100 * MS, 1500 * MS);
        pace.done(start, start + 200 * MS);
        assert_eq!(pace.due(), Some(start + 10_200 * MS));
        pace.ask(start + 200 * MS);
        assert_eq!(pace.due(), Some(start + 1000 * MS));
        pace.ask_now(start + 201 * MS);
        assert!(pace.take(start + 201 * MS));
    }
}
