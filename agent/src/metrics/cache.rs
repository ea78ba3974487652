//! What is dear to read is read at most so often that it costs little.

use std::time::{Duration, Instant};

/// Share of the time that reading may take: one part in so many.
const SHARE: u32 = 100;

/// A value that is read anew only when it is old enough.
#[derive(Debug)]
pub struct Cache<T> {
    least: Duration,
    held: Option<(T, Instant)>,
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
        if let Some((value, until)) = &self.held
            && began < *until
        {
            return Ok(value.clone());
        }
        match read() {
            Ok(value) => {
                let ended = clock();
                let took = ended.saturating_duration_since(began);
                let until = ended + self.least.max(took * SHARE);
                self.held = Some((value.clone(), until));
                Ok(value)
            }
            Err(error) => match &self.held {
                Some((value, _)) => Ok(value.clone()),
                None => Err(error),
            },
        }
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
    }

    #[test]
    fn a_failure_leaves_what_is_known() {
        let mut cache = Cache::new(Duration::ZERO);
        assert_eq!(cache.get(Instant::now, || Err::<u32, _>("no")), Err("no"));
        assert_eq!(cache.get(Instant::now, || Ok::<_, &str>(7)), Ok(7));
        assert_eq!(cache.get(Instant::now, || Err("no")), Ok(7));
    }
}
