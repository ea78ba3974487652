//! A planner with its maps and its time, for tests of single steps.

use datapath_common::{BackendState, FrontendFlags};
use tulle_agent::model::Object;
use tulle_agent::plan::{Applied, MapOp, Planner};
use tulle_agent::source::Change;

use super::{CAPACITIES, Clock, Sim, apply, batch, facts, run};

pub struct World {
    pub planner: Planner,
    pub sim: Sim,
    pub clock: Clock,
}

impl World {
    /// Node `n0` with the local pod 10.244.0.1 and these objects, all written.
    pub fn new(objects: impl IntoIterator<Item = Object>) -> Self {
        let planner = Planner::new("n0", Applied::new(CAPACITIES));
        let mut world = Self {
            planner,
            sim: Sim::default(),
            clock: Clock::new(),
        };
        world.feed(objects);
        world.run();
        world
    }

    /// Tells the planner everything, as after a start.
    pub fn feed(&mut self, objects: impl IntoIterator<Item = Object>) {
        let mut changes = apply(objects);
        changes.push(Change::Synced);
        self.planner.ingest(batch(changes));
        self.planner.set_facts(facts(&["10.244.0.1"]));
    }

    /// A new planner takes over what the maps hold.
    pub fn restart(&mut self) {
        let applied = Applied::from_rows(CAPACITIES, &self.sim.rows(), self.clock.now());
        self.planner = Planner::new("n0", applied);
    }

    pub fn run(&mut self) -> Vec<MapOp> {
        self.sim.log.clear();
        run(&mut self.planner, &mut self.sim, &self.clock);
        std::mem::take(&mut self.sim.log)
    }

    pub fn put(&mut self, object: Object) -> Vec<MapOp> {
        self.planner.ingest(batch(vec![Change::Apply(object)]));
        self.run()
    }

    pub fn delete(&mut self, object: &Object) -> Vec<MapOp> {
        self.planner
            .ingest(batch(vec![Change::Delete(object.key())]));
        self.run()
    }
}

/// What is done to which kind of row, without repetitions.
pub fn outline(ops: &[MapOp]) -> Vec<&'static str> {
    let what = |op: &MapOp| match op {
        MapOp::PutFront4 { key, .. } if key.proto == 0 => "mark",
        MapOp::PutFront4 { row, .. } if row.flags & FrontendFlags::SOURCE_RANGES != 0 => {
            "restricted"
        }
        MapOp::PutFront4 { .. } => "front",
        MapOp::DeleteFront4 { key } if key.proto == 0 => "unmark",
        MapOp::DeleteFront4 { .. } => "delete",
        MapOp::WriteSlots { .. } => "slots",
        MapOp::PutBackend4 { row, .. } if row.state == BackendState::Active as u8 => "active",
        MapOp::PutBackend4 { row, .. } if row.state == BackendState::Draining as u8 => "draining",
        MapOp::PutBackend4 { .. } => "free",
        MapOp::PutSource4 { .. } => "source",
        MapOp::DeleteSource4 { .. } => "unsource",
        MapOp::PutDirect4 { .. } => "direct",
        MapOp::DeleteDirect4 { .. } => "undirect",
        MapOp::PutPeer4 { .. } => "peer",
        MapOp::DeletePeer4 { .. } => "unpeer",
        MapOp::PutNode { .. } => "node",
        other => panic!("{other:?}"),
    };
    let mut outline: Vec<&str> = ops.iter().map(what).collect();
    outline.dedup();
    outline
}
