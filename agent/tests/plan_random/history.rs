//! Random histories of a node: objects, facts, failures, restarts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use tulle_agent::model::{Object, ObjectKey};
use tulle_agent::plan::{Applied, FrontKey, GRACE, Here, NodeFacts, Planner};
use tulle_agent::source::Change;

use super::object;
use crate::support::{CAPACITIES, Clock, Meaning, Sim, batch, facts, run};

#[derive(Clone, Debug)]
pub enum Step {
    Put(Object),
    Delete(Object),
    Facts(u8),
    Here(u8),
    Wait(u64),
    Release,
    Restart,
    Fail(Vec<bool>),
    Die(usize),
}

pub fn calm_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => object().prop_map(Step::Put),
        4 => object().prop_map(Step::Delete),
        1 => any::<u8>().prop_map(Step::Facts),
        1 => any::<u8>().prop_map(Step::Here),
        3 => (0..300_u64).prop_map(Step::Wait),
        3 => Just(Step::Release),
    ]
}

pub fn rough_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => calm_step(),
        1 => Just(Step::Restart),
        2 => prop::collection::vec(prop::bool::weighted(0.3), 1..30).prop_map(Step::Fail),
        1 => (0..40_usize).prop_map(Step::Die),
    ]
}

pub struct World {
    pub objects: BTreeMap<ObjectKey, Object>,
    facts: NodeFacts,
    here: Here,
    pub planner: Planner,
    pub sim: Sim,
    pub clock: Clock,
}

fn facts_of(bits: u8) -> NodeFacts {
    let pods = ["10.244.0.1", "10.244.0.2", "fd00:244::1", "fd00:244::2"];
    let local: Vec<&str> = pods
        .iter()
        .enumerate()
        .filter(|(i, _)| bits >> i & 1 == 1)
        .map(|(_, p)| *p)
        .collect();
    let mut facts = facts(&local);
    facts.overlay = bits & 16 == 0;
    facts
        .direct
        .extend((bits & 64 != 0).then(|| "10.244.1.0/24".parse::<IpNet>().unwrap()));
    let services = (bits & 0xc0 == 0xc0).then(|| "10.96.0.0/30".parse::<IpNet>().unwrap());
    facts.services.extend(services);
    if bits & 128 != 0 {
        facts.own_addresses.insert([10, 244, 2, 1].into());
    }
    if bits & 32 != 0 {
        facts.next_hops.remove(&[192, 168, 0, 2].into());
    }
    facts
}

fn here_of(bits: u8) -> Here {
    let on = |bit: u8| bits >> bit & 1 == 1;
    let v4 = on(0).then(|| IpAddr::from([192, 168, 0, 1]));
    let v6 = on(1).then(|| "2001:db8::1".parse::<IpAddr>().unwrap());
    Here {
        node: "n0".to_owned(),
        zone: on(2).then(|| "a".to_owned()),
        node_port_addresses: v4.into_iter().chain(v6).collect(),
        node_ips: on(3).then(|| [192, 168, 0, 1].into()).into_iter().collect(),
        masquerade_all: on(4),
        // Few slots, so that segments with tables fit the maps.
        maglev_slots: 7,
        ..Here::default()
    }
}

impl World {
    pub fn new() -> Self {
        let planner = Planner::new("n0", Applied::new(CAPACITIES));
        let mut world = Self {
            objects: BTreeMap::new(),
            facts: facts_of(3),
            here: here_of(1),
            planner,
            sim: Sim::default(),
            clock: Clock::new(),
        };
        world.feed();
        world
    }

    /// Tells the planner everything, as after a start.
    pub fn feed(&mut self) {
        let mut changes: Vec<Change> = self.objects.values().cloned().map(Change::Apply).collect();
        changes.push(Change::Synced);
        self.planner.ingest(batch(changes));
        self.planner.set_here(self.here.clone());
        self.planner.set_facts(self.facts.clone());
    }

    pub fn restart(&mut self) {
        // A process does not start faster.
        self.clock.advance(GRACE);
        let applied = Applied::from_rows(CAPACITIES, &self.sim.rows(), self.clock.now());
        self.planner = Planner::new("n0", applied);
        self.feed();
    }

    pub fn step(&mut self, step: Step) {
        match step {
            Step::Put(object) => {
                self.objects.insert(object.key(), object.clone());
                self.planner.ingest(batch(vec![Change::Apply(object)]));
            }
            Step::Delete(object) => {
                self.objects.remove(&object.key());
                self.planner
                    .ingest(batch(vec![Change::Delete(object.key())]));
            }
            Step::Facts(bits) => {
                self.facts = facts_of(bits);
                self.planner.set_facts(self.facts.clone());
            }
            Step::Here(bits) => {
                self.here = here_of(bits);
                self.planner.set_here(self.here.clone());
            }
            Step::Wait(millis) => self.clock.advance(Duration::from_millis(millis)),
            Step::Release => {
                let draining = self.planner.draining();
                self.planner.release_backends(draining, self.clock.now());
                let numbers = self.planner.idle_numbers(|_| false, self.clock.now());
                self.planner.reuse_numbers(&numbers);
            }
            Step::Restart => self.restart(),
            Step::Fail(failures) => self.sim.failures = failures,
            Step::Die(after) => {
                self.sim.dies_after = Some(after);
                run(&mut self.planner, &mut self.sim, &self.clock);
                self.sim.dies_after = None;
                self.restart();
            }
        }
        run(&mut self.planner, &mut self.sim, &self.clock);
        self.sim.check();
    }

    /// Lets all retries come and succeed.
    pub fn settle(&mut self) {
        self.sim.failures.clear();
        for _ in 0..100 {
            let outcome = run(&mut self.planner, &mut self.sim, &self.clock);
            if outcome.pending == 0 {
                return;
            }
            self.clock.advance(Duration::from_secs(20));
        }
        panic!(
            "does not settle: {:?}",
            run(&mut self.planner, &mut self.sim, &self.clock)
        );
    }

    pub fn fresh(&self) -> Meaning {
        let mut fresh = Self {
            objects: self.objects.clone(),
            facts: self.facts.clone(),
            here: self.here.clone(),
            ..Self::new()
        };
        fresh.feed();
        fresh.settle();
        fresh.sim.meaning()
    }

    /// Names by service number, as the rows have them.
    pub fn names(&self) -> BTreeMap<FrontKey, String> {
        let rows = self
            .planner
            .applied()
            .frontends()
            .filter(|(key, _)| !key.is_address());
        rows.map(|(key, row)| {
            let name = self.planner.service_name(row.service);
            let holder = self.planner.desired().frontend(key).map(|(port, _)| port);
            assert_eq!(name, holder, "{key:?}");
            (
                *key,
                name.unwrap_or_else(|| panic!("no name for {row:?}"))
                    .to_string(),
            )
        })
        .collect()
    }
}
