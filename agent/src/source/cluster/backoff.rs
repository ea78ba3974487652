//! How long to wait after a failure (pure, but for chance).

use std::time::{Duration, Instant};

/// Waits that double from [`Backoff::FIRST`] to [`Backoff::LAST`], each shortened by chance by up
/// to a half, so that the nodes of a cluster do not come all at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    /// Since when it goes well.
    well: Option<Instant>,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            next: Self::FIRST,
            well: None,
        }
    }
}

impl Backoff {
    /// At most so long after a first failure.
    pub const FIRST: Duration = Duration::from_millis(400);
    /// At most so long after many.
    pub const LAST: Duration = Duration::from_secs(30);
    /// What goes well for so long makes the next failure a first one.
    const FORGET: Duration = Duration::from_secs(10);

    /// It went well, now.
    pub fn works(&mut self, now: Instant) {
        self.well.get_or_insert(now);
    }

    /// It failed: how long to wait. `dice` is from 0 up to 1.
    pub fn failed(&mut self, now: Instant, dice: f64) -> Duration {
        let well = self.well.take();
        if well.is_some_and(|since| now.saturating_duration_since(since) >= Self::FORGET) {
            self.next = Self::FIRST;
        }
        let wait = self.next.mul_f64(1.0 - dice / 2.0);
        self.next = (self.next * 2).min(Self::LAST);
        wait
    }
}

/// For each node of the cluster, from the first to the last that comes back to the server.
const EACH: Duration = Duration::from_millis(1);
/// From the first to the last of however many.
const ALL: Duration = Duration::from_secs(10);

/// How long one of `nodes` waits besides, when all of them lost the server in the same moment: so many
/// lists and handshakes come one after the other. `dice` is from 0 up to 1.
pub fn turn(nodes: usize, dice: f64) -> Duration {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX);
    EACH.saturating_mul(nodes).min(ALL).mul_f64(dice)
}

/// How long to wait where the server asked for so long (`Retry-After`), never less, but for a limit: it
/// says the same to all who ask in the same moment.
pub fn asked_for(after: Duration, dice: f64) -> Duration {
    after.min(Backoff::LAST).mul_f64(1.0 + dice / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_back_one_after_the_other() {
        assert_eq!(turn(3, 0.999).as_millis(), 2, "few wait for nobody");
        assert_eq!(turn(5000, 0.5), Duration::from_millis(2500));
        assert_eq!(turn(usize::MAX, 0.5), ALL / 2);
        assert_eq!(turn(0, 0.5), Duration::ZERO);
    }

    #[test]
    fn what_the_server_asks_for_is_kept_to_and_spread() {
        let asked = Duration::from_secs(4);
        assert_eq!(asked_for(asked, 0.0), asked);
        assert_eq!(asked_for(asked, 0.5), Duration::from_secs(5));
        let hours = Duration::from_hours(9);
        assert!(asked_for(hours, 0.999) < Backoff::LAST * 3 / 2);
    }

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9)
            .map(|_| backoff.failed(start, 0.0).as_millis())
            .collect();
        assert_eq!(
            waits,
            [400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]
        );
        backoff.works(start);
        let soon = backoff.failed(start + Duration::from_secs(1), 0.0);
        assert_eq!(soon, Backoff::LAST, "a moment is not enough");
        backoff.works(start);
        backoff.works(start + Duration::from_secs(9));
        let later = backoff.failed(start + Duration::from_secs(10), 0.0);
        assert_eq!(later, Backoff::FIRST);
    }

    #[test]
    fn chance_shortens_by_a_half_at_most() {
        for dice in [0.0, 0.3, 0.999] {
            let wait = Backoff::default().failed(Instant::now(), dice);
            assert!(
                wait <= Backoff::FIRST && wait >= Backoff::FIRST / 2,
                "{wait:?}"
            );
        }
    }
}
