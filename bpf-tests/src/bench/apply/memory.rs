//! From objects in memory to the last map write: the agent's own model, plan and writer,
//! upon real maps.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use datapath_common::{BackendState, Config, FrontendKey, Scope, proto};
use tulle_agent::kernel::{Capacities, Datapath, Options};
use tulle_agent::plan::{self, Applied, NodeFacts, Planner, derived_vtep_mac};
use tulle_agent::source::{Batch, Change};

use super::objects::{self, Shape};

/// Name of this node, and its address.
const NODE: &str = "this-node";
const NODE_IP: Ipv4Addr = Ipv4Addr::new(172, 31, 255, 250);
const UPLINK: u32 = 2;

/// Entries of the maps, beside those of the agent's defaults.
pub const FRONTENDS: u32 = 131_072;
/// The same of backends.
pub const BACKENDS: u32 = 131_072;

/// Maps, and a planner that writes to them.
pub struct Table {
    datapath: Datapath,
    planner: Planner,
}

impl Table {
    /// Empty maps, pinned below `pins`.
    pub fn open(pins: &Path) -> Result<Self> {
        let sizes = Capacities {
            frontends: FRONTENDS,
            backends: BACKENDS,
            ..Capacities::DEFAULT
        };
        let datapath = Datapath::open(pins, &Config::EMPTY, &sizes, &Options::default())?;
        Ok(Self {
            datapath,
            planner: planner(),
        })
    }

    /// Takes the changes in and writes what follows from them. Nanoseconds from then to the
    /// last write, and the number of writes.
    pub fn apply(&mut self, changes: Vec<Change>) -> Result<(f64, usize)> {
        let batch = batch(changes);
        let began = Instant::now();
        self.planner.ingest(batch);
        let outcome = self.planner.run(&mut self.datapath.maps, Instant::now);
        let took = began.elapsed();
        black_box(&outcome);
        ensure!(
            outcome.failed == 0 && outcome.errors.is_empty(),
            "{} writes failed: {:?}",
            outcome.failed,
            outcome.errors
        );
        Ok((took.as_nanos() as f64, outcome.written))
    }

    /// Takes everything away again, and forgets it: the next planner meets empty tables of
    /// frontends. The rest is not read without them.
    pub fn clear(&mut self, changes: &[Change]) -> Result<()> {
        let gone = changes.iter().filter_map(|change| match change {
            Change::Apply(object) => Some(Change::Delete(object.key())),
            Change::Delete(_) | Change::Synced => None,
        });
        self.apply(gone.collect())?;
        self.planner = planner();
        Ok(())
    }

    /// Whether the maps serve service `number` with so many backends that are active.
    pub fn check(&self, number: u32, endpoints: u32) -> Result<()> {
        let key = key(Shape::address(number));
        let maps = &self.datapath.maps;
        let row = maps
            .front_v4
            .get(&key, 0)
            .with_context(|| format!("service {number} has no row"))?;
        ensure!(
            row.len == endpoints,
            "service {number} has {} backends in the maps, not {endpoints}",
            row.len
        );
        let mut seen = BTreeSet::new();
        for slot in row.start..row.start + row.len {
            let id = maps.segments.get(slot).context("a slot beyond the end")?;
            let backend = maps.back_v4.get(&id, 0)?;
            ensure!(
                backend.state == BackendState::Active as u8 && seen.insert(id),
                "service {number} names backend {id}, which is {backend:?}"
            );
        }
        Ok(())
    }
}

/// The row of a service's port.
pub fn key(address: Ipv4Addr) -> FrontendKey<datapath_common::Ip4> {
    FrontendKey {
        addr: address.into(),
        port: 80,
        proto: proto::TCP,
        scope: Scope::Any as u8,
    }
}

/// A planner for empty maps.
fn planner() -> Planner {
    let capacities = plan::Capacities {
        frontends: FRONTENDS,
        backends: BACKENDS,
        ..plan::Capacities::default()
    };
    let mut planner = Planner::new(NODE, Applied::new(capacities));
    planner.set_facts(facts());
    planner
}

/// A node whose neighbours are all on its link.
fn facts() -> NodeFacts {
    NodeFacts {
        name: NODE.to_owned(),
        uplink_ifindex: UPLINK,
        node_ip4: Some(NODE_IP),
        vtep_mac: derived_vtep_mac(NODE_IP),
        next_hops: objects::underlay().map(|node| (node, node)).collect(),
        own_addresses: [NODE_IP.into()].into(),
        overlay: true,
        ..NodeFacts::default()
    }
}

fn batch(changes: Vec<Change>) -> Batch {
    Batch {
        changes,
        triggers: Vec::new(),
        warnings: [].into(),
        noticed: Instant::now(),
        noticed_at: SystemTime::now(),
    }
}
