//! The slow path's passes, in a task of their own so that services need not wait for them.

use std::future::pending;
use std::path::PathBuf;
use std::time::Instant;

use tokio::task::JoinHandle;

use crate::net::{Netlink, Overlay, ReconcileError, Report, SlowPath};

/// Sentences of one pass that are logged.
const LOGGED: usize = 8;

/// A pass that has ended.
#[derive(Debug)]
pub struct Ended {
    /// When it began.
    pub began: Instant,
    /// What it did.
    pub result: Result<Report, String>,
}

type Running = JoinHandle<(SlowPath, Result<Report, ReconcileError>)>;

/// The slow path, or the task that has it.
#[derive(Debug)]
pub struct Slow {
    netlink: Netlink,
    record: PathBuf,
    idle: Option<SlowPath>,
    running: Option<(Instant, Running)>,
}

impl Slow {
    /// No pass yet. `record` remembers changed sysctls.
    pub fn new(netlink: Netlink, record: PathBuf) -> Self {
        Self {
            netlink,
            record,
            idle: None,
            running: None,
        }
    }

    /// Whether no pass is under way.
    pub const fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Makes the VTEP device if there is none and no pass is under way, before
    /// the programs are loaded. Gives its index if it was made; what keeps it
    /// from being made is left to the first pass, which tells it.
    pub async fn make_device(&mut self, overlay: &Overlay) -> Option<u32> {
        if self.running.is_some() {
            return None;
        }
        let slow = self.slow_path();
        match slow.make_device(overlay).await {
            Ok(made) => made,
            Err(error) => {
                tracing::debug!(%error, "the VTEP device could not be made before the programs are loaded");
                None
            }
        }
    }

    /// Takes back what [`Slow::make_device`] made.
    pub async fn delete_device(&mut self, index: u32) {
        if let Err(error) = self.slow_path().delete_device(index).await {
            tracing::warn!("{error}; `tulle-agent cleanup` removes it");
        }
    }

    fn slow_path(&mut self) -> &mut SlowPath {
        self.idle
            .get_or_insert_with(|| SlowPath::new(self.netlink.clone(), &self.record))
    }

    /// Begins a pass, unless one is under way.
    pub fn start(&mut self, overlay: Overlay, now: Instant) {
        if self.running.is_some() {
            return;
        }
        let mut slow = self
            .idle
            .take()
            .unwrap_or_else(|| SlowPath::new(self.netlink.clone(), &self.record));
        let task = tokio::spawn(async move {
            let result = slow.reconcile(&overlay).await;
            (slow, result)
        });
        self.running = Some((now, task));
    }

    /// The end of the pass that is under way; never, if none is. Cancel safe.
    pub async fn ended(&mut self) -> Ended {
        let Some((began, task)) = &mut self.running else {
            return pending().await;
        };
        let began = *began;
        let result = match task.await {
            Ok((slow, result)) => {
                self.idle = Some(slow);
                result.map_err(|error| error.to_string())
            }
            // The next pass begins anew, from what the kernel has.
            Err(error) => Err(format!("a pass ended early: {error}")),
        };
        self.running = None;
        Ended { began, result }
    }
}

/// Logs what a pass did; drift louder than the rest.
pub fn log(report: &Report, first: bool) {
    let written = report.created + report.repaired + report.updated + report.removed;
    if written == 0 {
        return;
    }
    if first {
        tracing::info!(
            "slow path: set up, {} rows written, {} were right",
            written,
            report.unchanged
        );
    }
    let louder = report.repaired > 0 && !first;
    for sentence in report.sentences.iter().take(LOGGED) {
        if louder {
            tracing::warn!("slow path: {sentence}");
        } else {
            tracing::debug!("slow path: {sentence}");
        }
    }
    let more = report.sentences.len().saturating_sub(LOGGED) + report.more;
    if louder && more > 0 {
        tracing::warn!("slow path: and {more} more");
    }
}
