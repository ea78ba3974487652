//! What is dear to read is read at most so often that it costs little.

use std::time::{Duration, Instant};

/// Share of the time that reading may take: one part in so many.
const SHARE: u32 = 100;

/// A value that is read anew only when it is old enough.
#[derive(Debug)]
pub struct Cache<T> {
    least: Duration,
    held: Option<Held<T>>,
}

/// A value, when it was read, and until when it is new enough.
#[derive(Debug)]
struct Held<T> {
    value: T,
    read: Instant,
    until: Instant,
}

impl<T: Clone> Cache<T> {
    /// Nothing read yet; a value is kept for `least` or longer.
    pub const fn new(least: Duration) -> Self {
        Self { least, held: None }
    }

    /// The value, from `read` if the last one is too old. One that took long to read is kept for
    /// long. A failed reading leaves the last one, if there is one.
    pub fn get<E>(
        &mut self,
        clock: impl Fn() -> Instant,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let began = clock();
        if let Some(held) = &self.held
            && began < held.until
        {
            return Ok(held.value.clone());
        }
        match read() {
            Ok(value) => {
                let ended = clock();
                let took = ended.saturating_duration_since(began);
                self.held = Some(Held {
                    value: value.clone(),
                    read: ended,
                    // From its beginning on: who asks at an even pace is not put off each time.
                    until: (began + self.least).max(ended + took * SHARE),
                });
                Ok(value)
            }
            Err(error) => match &self.held {
                Some(held) => Ok(held.value.clone()),
                None => Err(error),
            },
        }
    }

    /// How long ago the value was read, if one was.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let held = self.held.as_ref()?;
        Some(now.saturating_duration_since(held.read))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_takes_long_to_read_is_kept_for_long() {
        let start = Instant::now();
        let (now, reads) = (Cell::new(Duration::ZERO), Cell::new(0));
        let mut cache = Cache::new(Duration::from_secs(2));
        let mut at = |secs: u64, takes: u64| {
            now.set(Duration::from_secs(secs));
            let read = || {
                reads.set(reads.get() + 1);
                now.set(now.get() + Duration::from_secs(takes));
                Ok::<_, ()>(reads.get())
            };
            cache.get(|| start + now.get(), read).unwrap()
        };
        assert_eq!(at(0, 0), 1);
        assert_eq!(at(1, 0), 1, "not old enough");
        assert_eq!(at(2, 1), 2);
        assert_eq!(at(102, 0), 2, "it had taken a second");
        assert_eq!(at(103, 0), 3);
        let later = start + Duration::from_secs(104);
        assert_eq!(cache.age(later), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_second_scraper_costs_nothing() {
        let start = Instant::now();
        let reads = Cell::new(0);
        let mut cache = Cache::new(Duration::from_millis(900));
        // Two, each each second, half a second apart.
        for half in 0..20 {
            let clock = || start + Duration::from_millis(500 * half);
            let read = || {
                reads.set(reads.get() + 1);
                Ok::<_, ()>(())
            };
            cache.get(clock, read).unwrap();
        }
        assert_eq!(reads.get(), 10);
    }

    #[test]
    fn a_failure_leaves_what_is_known() {
        let mut cache = Cache::new(Duration::ZERO);
        assert_eq!(cache.get(Instant::now, || Err::<u32, _>("no")), Err("no"));
        assert_eq!(cache.get(Instant::now, || Ok::<_, &str>(7)), Ok(7));
        assert_eq!(cache.get(Instant::now, || Err("no")), Ok(7));
    }
}
