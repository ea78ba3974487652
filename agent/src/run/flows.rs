//! Walks over the flow tables between other work, and what the plan learns from them.

use std::time::{Duration, Instant};

use datapath_common::{FlowState, FrontendFlags, IdleTicks, TICK_NANOS, maps, proto};

use super::crowding::{Crowding, early};
use crate::kernel::{
    Clearing, Datapath, FlowGc, MapFate, NamedBackend, Pass, Recount, TableError, idle_limit,
    now_ticks,
};
use crate::metrics::StateMetrics;
use crate::model::Family;
use crate::plan::{FrontKey, Planner};

/// Between two steps of a walk: a step takes a few milliseconds at most.
const STEP_GAP: Duration = Duration::from_millis(5);
/// From the start to the first walk: what was written before it is old enough to be judged.
const FIRST: Duration = Duration::from_millis(500);

/// Between walks over a crowded table.
const CROWDED: Duration = Duration::from_secs(1);

/// The flow tables: family, IP version, map.
const TABLES: [(Family, u8, &str); 2] = [
    (Family::V4, 4, maps::FLOW_V4),
    (Family::V6, 6, maps::FLOW_V6),
];

/// The walks of one agent.
#[derive(Debug)]
pub struct FlowWalk {
    gc: FlowGc,
    recount: Recount,
    interval: Duration,
    began: Option<Instant>,
    due: Instant,
    /// As [`TABLES`].
    crowding: [Crowding; 2],
    /// Service numbers that are made as good as new, and since when they are known to be idle.
    clearing: Option<(Clearing, Instant)>,
    /// When the next walk begins.
    next: Instant,
    /// What kept service numbers from being given out again.
    numbers_fault: Option<String>,
}

impl FlowWalk {
    /// Walks that begin so far apart.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            gc: FlowGc::new(),
            recount: Recount::default(),
            interval,
            began: None,
            due: now + FIRST,
            crowding: [Crowding::default(); 2],
            clearing: None,
            next: now + FIRST,
            numbers_fault: None,
        }
    }

    /// When the next step is due.
    pub const fn due(&self) -> Instant {
        self.due
    }

    /// Makes the next step if it is due. At the end of a walk the planner is
    /// told, and again when numbers of its services have been cleared; it then has to
    /// run. Says whether that was so.
    pub fn step(
        &mut self,
        datapath: &mut Datapath,
        planner: &mut Planner,
        metrics: &StateMetrics,
        now: Instant,
    ) -> Result<bool, TableError> {
        if now < self.due {
            return Ok(false);
        }
        if let Some((clearing, began)) = self.clearing.take() {
            return Ok(self.clear(clearing, began, datapath, planner, now));
        }
        if self.began.is_none() {
            self.recount.begin(&datapath.maps.live, backends(planner));
        }
        let began = *self.began.get_or_insert(now);
        let idle = &datapath.config().idle;
        let crowded = self.crowding.iter().any(|table| table.is_crowded());
        let limits = if crowded { early(idle) } else { *idle };
        let step = {
            let whole = |front: &FrontKey| is_unasked(planner, front);
            self.gc.step(&datapath.maps, &limits, now_ticks(), &whole)
        };
        let pass = match step {
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
        metrics.walked(&pass);
        let counts = &datapath.maps.live;
        let recounted = self.recount.finish(counts, &pass, backends(planner));
        if recounted != 0 {
            tracing::debug!("{recounted} flows were counted for backends that they are not of");
        }
        tracing::debug!(
            v4 = pass.total(4),
            v6 = pass.total(6),
            expired = pass.removed,
            "walked over the flow tables"
        );
        planner.release_backends(unused(planner, &pass), began);
        planner.note_flows(&pass.frontends, began);
        planner.flows_are_moved(&pass.moved);
        self.lost(&pass, datapath, planner, now);
        let numbers = planner.idle_numbers(|number| pass.oldest.contains_key(&number), began);
        if numbers.is_empty() {
            self.numbers_fault = None;
        } else {
            self.clearing = Some((Clearing::new(numbers), began));
        }
        let crowded = self.crowding.iter().any(|table| table.is_crowded());
        let pause = if crowded {
            CROWDED.min(self.interval)
        } else {
            self.interval
        };
        self.next = now + pause;
        self.due = match &self.clearing {
            Some(_) => now + STEP_GAP,
            None => self.next,
        };
        Ok(true)
    }

    /// Goes on to make idle service numbers as good as new, for other service ports. At
    /// the end the planner may give them out. Says whether that was so.
    fn clear(
        &mut self,
        mut clearing: Clearing,
        began: Instant,
        datapath: &mut Datapath,
        planner: &mut Planner,
        now: Instant,
    ) -> bool {
        match clearing.step(&mut datapath.maps) {
            Ok(false) => {
                self.clearing = Some((clearing, began));
                self.due = now + STEP_GAP;
                return false;
            }
            Ok(true) => {
                // Without those that somebody got again meanwhile.
                let idle = planner.idle_numbers(|n| !clearing.numbers().contains(&n), began);
                planner.reuse_numbers(&idle);
                tracing::debug!("{} service numbers may be given out again", idle.len());
                self.numbers_fault = None;
            }
            // The next walk finds them again.
            Err(error) => self.numbers_fault = Some(error.to_string()),
        }
        self.due = self.next.max(now);
        true
    }

    /// What is wrong with the tables since the last walk.
    pub fn faults(&self, datapath: &Datapath) -> Vec<String> {
        let tables = TABLES.iter().zip(self.crowding);
        tables
            .filter_map(|((_, _, map), table)| table.fault(map, datapath.maps.limit(map)))
            .chain(self.numbers_fault.clone())
            .collect()
    }

    /// Has packets ask the flow table where a walk saw that rows went, or that
    /// the kernel may evict some.
    fn lost(&mut self, pass: &Pass, datapath: &Datapath, planner: &mut Planner, now: Instant) {
        let idle = &datapath.config().idle;
        planner.forget_lost_flows(now);
        if let Some(first) = pass.torn.first() {
            tracing::warn!(
                "flows through {} frontends, {} port {} among them, lost a row of the flow table \
                 (flushed, evicted or removed); their packets ask the table from now on",
                pass.torn.len(),
                first.addr,
                first.port
            );
            let until = |front: &FrontKey| (*front, now + silence(idle, front.proto));
            planner.flows_may_be_lost(pass.torn.iter().map(until));
        }
        for ((family, version, map), table) in TABLES.iter().zip(&mut self.crowding) {
            *table = table.after(pass.total(*version), datapath.maps.limit(map));
            if table.may_evict() {
                expect_all(planner, idle, *family, now);
            }
        }
    }
}

/// At the start of an agent: which flows may miss rows. Those of tables that
/// are not the former agent's as they were; and where it said so itself.
pub fn lost_at_start(datapath: &Datapath, planner: &mut Planner, now: Instant) {
    let idle = &datapath.config().idle;
    let until = |front: FrontKey| (front, now + silence(idle, front.proto));
    let fronts = planner.asking_fronts();
    planner.flows_may_be_lost(fronts.into_iter().map(until));
    let fates = &datapath.opened().maps;
    // A node that had no map at all had no flow.
    if fates.values().all(|fate| *fate == MapFate::Created) {
        return;
    }
    for (family, _, map) in TABLES {
        if fates.get(map) != Some(&MapFate::Adopted) {
            expect_all(planner, idle, family, now);
        }
    }
}

fn expect_all(planner: &mut Planner, idle: &IdleTicks, family: Family, now: Instant) {
    for protocol in [proto::TCP, proto::SCTP] {
        planner.any_flow_may_be_lost(family, protocol, now + silence(idle, protocol));
    }
}

/// For how long a living flow may be silent.
fn silence(idle: &IdleTicks, protocol: u8) -> Duration {
    let ticks = idle_limit(idle, protocol, FlowState::Established);
    Duration::from_nanos(u64::from(ticks) * TICK_NANOS)
}

/// Whether data to this frontend does not ask the flow table.
fn is_unasked(planner: &Planner, front: &FrontKey) -> bool {
    let asks = FrontendFlags::FLOWS_DECIDE
        | FrontendFlags::FLOWS_MAY_BE_LOST
        | FrontendFlags::SOURCE_RANGES;
    planner.applied().frontend(front).is_some_and(|row| {
        row.flags & asks == 0 && row.affinity_secs == 0 && (row.len != 0 || row.out_len != 0)
    })
}

/// The backends that there are.
fn backends(planner: &Planner) -> impl Iterator<Item = NamedBackend> {
    TABLES.iter().flat_map(|(family, version, _)| {
        let rows = planner.applied().backends(*family).rows();
        rows.map(|(id, row)| NamedBackend {
            version: *version,
            id,
            generation: row.generation,
        })
    })
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
