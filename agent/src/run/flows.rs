//! Walks over the flow tables between other work, and what the plan learns from them.

use std::time::{Duration, Instant};

use crate::kernel::{Datapath, FlowGc, Pass, TableError, now_ticks};
use crate::model::Family;
use crate::plan::Planner;

/// Between two steps of a walk: a step takes a few milliseconds at most.
const STEP_GAP: Duration = Duration::from_millis(5);
/// From the start to the first walk: what was written before it is old enough to be judged.
const FIRST: Duration = Duration::from_millis(500);

/// The walks of one agent.
#[derive(Debug)]
pub struct FlowWalk {
    gc: FlowGc,
    interval: Duration,
    began: Option<Instant>,
    due: Instant,
}

impl FlowWalk {
    /// Walks that begin so far apart.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            gc: FlowGc::new(),
            interval,
            began: None,
            due: now + FIRST,
        }
    }

    /// When the next step is due.
    pub const fn due(&self) -> Instant {
        self.due
    }

    /// Makes the next step if it is due. At the end of a walk the planner is
    /// told; it then has to run. Says whether that was so.
    pub fn step(
        &mut self,
        datapath: &Datapath,
        planner: &mut Planner,
        now: Instant,
    ) -> Result<bool, TableError> {
        if now < self.due {
            return Ok(false);
        }
        let began = *self.began.get_or_insert(now);
        let idle = &datapath.config().idle;
        let pass = match self.gc.step(&datapath.maps, idle, now_ticks()) {
            Ok(None) => {
                self.due = now + STEP_GAP;
                return Ok(false);
            }
            Ok(Some(pass)) => pass,
            Err(error) => {
                self.began = None;
                self.due = now + self.interval;
                return Err(error);
            }
        };
        self.began = None;
        self.due = now + self.interval;
        tracing::debug!(
            v4 = pass.total(4),
            v6 = pass.total(6),
            expired = pass.removed,
            "walked over the flow tables"
        );
        planner.release_backends(unused(planner, &pass), began);
        planner.note_flows(&pass.frontends, began);
        Ok(true)
    }
}

/// Draining backends that no living flow names.
fn unused(planner: &Planner, pass: &Pass) -> Vec<(Family, u32)> {
    let names = |(family, id): &(Family, u32)| {
        let version = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        let row = planner.applied().backends(*family).row(*id);
        row.is_some_and(|row| pass.names(version, *id, row.generation))
    };
    let mut draining = planner.draining();
    draining.retain(|backend| !names(backend));
    draining
}
