//! What tests of the planner share: maps to write to, time, facts about a node.

#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

pub mod balanced;
pub mod meaning;
pub mod numbered;
pub mod reader;
pub mod rows;
pub mod sim;
pub mod unchecked;
pub mod world;

pub use meaning::Meaning;
pub use sim::Sim;
pub use unchecked::Unchecked;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use datapath_common::Mac;
use tulle_agent::model::Object;
use tulle_agent::plan::{Capacities, LocalPod, NodeFacts, Planner};
use tulle_agent::source::{Batch, Change};

pub const CAPACITIES: Capacities = Capacities {
    frontends: 256,
    backends: 128,
    segments: 4096,
    sources: 64,
};

/// Time that stands still unless told otherwise.
pub struct Clock(Cell<Instant>);

impl Clock {
    pub fn new() -> Self {
        Self(Cell::new(Instant::now()))
    }
    pub fn now(&self) -> Instant {
        self.0.get()
    }
    pub fn advance(&self, by: Duration) {
        self.0.set(self.0.get() + by);
    }
}

pub fn run(planner: &mut Planner, sim: &mut Sim, clock: &Clock) -> tulle_agent::plan::Outcome {
    sim.begin(clock.now());
    planner.run(sim, || clock.now())
}

pub fn batch(changes: Vec<Change>) -> Batch {
    Batch {
        changes,
        triggers: Vec::new(),
        warnings: [].into(),
        noticed: Instant::now(),
        noticed_at: std::time::SystemTime::now(),
    }
}

pub fn apply(objects: impl IntoIterator<Item = Object>) -> Vec<Change> {
    objects.into_iter().map(Change::Apply).collect()
}

/// Node `n0` at 192.168.0.1 with pods 10.244.0.0/24; its neighbours are on one link.
pub fn facts(local: &[&str]) -> NodeFacts {
    let pod = |i: usize| LocalPod {
        ifindex: 10 + i as u32,
        pod_mac: Mac::new([2, 0, 0, 0, 1, i as u8]),
        host_mac: Mac::new([2, 0, 0, 0, 2, i as u8]),
    };
    NodeFacts {
        name: "n0".to_owned(),
        uplink_ifindex: 2,
        node_ip4: Some([192, 168, 0, 1].into()),
        node_ip6: None,
        vtep_mac: Mac::new([0x0a, 0x58, 192, 168, 0, 1]),
        local_pods: local
            .iter()
            .enumerate()
            .map(|(i, addr)| (addr.parse().unwrap(), pod(i)))
            .collect(),
        next_hops: (1..=9)
            .map(|i| ([192, 168, 0, i].into(), [192, 168, 0, i].into()))
            .collect(),
        own_addresses: [[192, 168, 0, 1].into()].into(),
        direct: BTreeSet::new(),
        services: BTreeSet::new(),
        overlay: true,
    }
}
