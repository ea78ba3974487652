//! Waiting for a condition with a deadline.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Asks `poll` until it returns a value. `what` reads "no … " in the error.
///
/// # Errors
/// Those of `poll`, at once; [`Error::Timeout`] after `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut poll: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = poll()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            return Err(Error::Timeout {
                what: what.to_owned(),
                limit,
                detail: String::new(),
            });
        }
        std::thread::sleep(INTERVAL);
    }
}
