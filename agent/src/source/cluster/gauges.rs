//! Figures of the source, for metrics: written by its thread, read by any.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Kind;

/// Figures of all kinds.
#[derive(Debug)]
pub struct Gauges {
    start: Instant,
    /// Milliseconds after `start`, plus one, by kind; 0 before anything was heard.
    heard: BTreeMap<Kind, AtomicU64>,
    restarts: Mutex<BTreeMap<(Kind, &'static str), u64>>,
}

impl Gauges {
    /// Before anything was heard of these kinds.
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self {
            start: Instant::now(),
            heard: kinds
                .into_iter()
                .map(|kind| (kind, AtomicU64::new(0)))
                .collect(),
            restarts: Mutex::default(),
        }
    }

    /// The server said something of a kind, a bookmark at least.
    pub(crate) fn heard(&self, kind: Kind) {
        if let Some(heard) = self.heard.get(&kind) {
            let since = self.start.elapsed().as_millis() as u64;
            heard.store(since + 1, Ordering::Relaxed);
        }
    }

    /// A list or watch failed and is begun anew.
    pub(super) fn restarted(&self, kind: Kind, reason: &'static str) {
        let mut restarts = self.restarts.lock().unwrap_or_else(PoisonError::into_inner);
        *restarts.entry((kind, reason)).or_default() += 1;
    }

    /// How long ago the server was heard of each kind; nothing where it never was.
    pub fn ages(&self) -> impl Iterator<Item = (Kind, Option<Duration>)> {
        let now = self.start.elapsed();
        self.heard.iter().map(move |(kind, heard)| {
            let heard = heard.load(Ordering::Relaxed).checked_sub(1);
            let age = heard.map(|at| now.saturating_sub(Duration::from_millis(at)));
            (*kind, age)
        })
    }

    /// How often a list or watch failed, by kind and reason.
    pub fn restarts(&self) -> BTreeMap<(Kind, &'static str), u64> {
        self.restarts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
