//! Random histories of the cluster: every state in between serves, and the end
//! is what a fresh compile makes, whatever failed or was restarted on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod plan_random;
mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use datapath_common::{FrontendFlags, Ip4, PeerKey, SourceKey, SourceNet};
use ipnet::IpNet;
use plan_random::{object, plain_service};
use proptest::prelude::*;
use support::{CAPACITIES, Clock, Meaning, Sim, batch, facts, run};
use tulle_agent::model::{Family, Object, ObjectKey};
use tulle_agent::plan::{Applied, FrontKey, GRACE, Here, NodeFacts, Planner};
use tulle_agent::source::Change;

#[derive(Clone, Debug)]
enum Step {
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

fn calm_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => object().prop_map(Step::Put),
        4 => object().prop_map(Step::Delete),
        1 => any::<u8>().prop_map(Step::Facts),
        1 => any::<u8>().prop_map(Step::Here),
        3 => (0..300_u64).prop_map(Step::Wait),
        3 => Just(Step::Release),
    ]
}

fn rough_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => calm_step(),
        1 => Just(Step::Restart),
        2 => prop::collection::vec(prop::bool::weighted(0.3), 1..30).prop_map(Step::Fail),
        1 => (0..40_usize).prop_map(Step::Die),
    ]
}

struct World {
    objects: BTreeMap<ObjectKey, Object>,
    facts: NodeFacts,
    here: Here,
    planner: Planner,
    sim: Sim,
    clock: Clock,
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
    fn new() -> Self {
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
    fn feed(&mut self) {
        let mut changes: Vec<Change> = self.objects.values().cloned().map(Change::Apply).collect();
        changes.push(Change::Synced);
        self.planner.ingest(batch(changes));
        self.planner.set_here(self.here.clone());
        self.planner.set_facts(self.facts.clone());
    }

    fn restart(&mut self) {
        // A process does not start faster.
        self.clock.advance(GRACE);
        let applied = Applied::from_rows(CAPACITIES, &self.sim.rows(), self.clock.now());
        self.planner = Planner::new("n0", applied);
        self.feed();
    }

    fn step(&mut self, step: Step) {
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
    fn settle(&mut self) {
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

    fn fresh(&self) -> Meaning {
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
    fn names(&self) -> BTreeMap<FrontKey, String> {
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_as_a_fresh_compile(steps in prop::collection::vec(calm_step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            // Nothing fails, so every step is complete at once.
            prop_assert_eq!(world.sim.meaning(), world.fresh());
        }
        world.settle();
        prop_assert_eq!(world.sim.meaning(), world.fresh());
    }

    #[test]
    fn failures_crashes_and_restarts_heal(steps in prop::collection::vec(rough_step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        prop_assert_eq!(world.sim.meaning(), world.fresh());
        let names = world.names();

        world.restart();
        let outcome = run(&mut world.planner, &mut world.sim, &world.clock);
        prop_assert_eq!(outcome.written, 0, "an unchanged cluster needs no write");
        prop_assert_eq!(outcome.pending, 0);
        prop_assert_eq!(world.names(), names);
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone(steps in prop::collection::vec(rough_step(), 1..40)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        for object in std::mem::take(&mut world.objects).into_values() {
            world.step(Step::Delete(object));
        }
        world.settle();
        world.clock.advance(Duration::from_secs(1));
        world.step(Step::Release);
        world.settle();
        world.clock.advance(Duration::from_secs(1));
        world.settle();
        let applied = world.planner.applied();
        prop_assert_eq!(applied.frontends().count(), 0);
        prop_assert_eq!(applied.segments().free(), CAPACITIES.segments);
        for family in [Family::V4, Family::V6] {
            prop_assert_eq!(applied.backends(family).rows().count(), 0);
        }
        prop_assert!(world.sim.fronts.is_empty());
        prop_assert_eq!(applied.sources().count(), 0);
        prop_assert!(world.sim.sources.is_empty());
        prop_assert!(world.sim.backs.values().all(|b| b.state == 0));
        // Every number may be given out again, the lowest first.
        world.step(Step::Release);
        world.step(Step::Put(plain_service()));
        world.settle();
        let numbers: Vec<u32> = world.sim.fronts.values().map(|row| row.service).collect();
        prop_assert_eq!(numbers, [0, 1], "the mark and the port");
    }

    #[test]
    fn any_rows_are_adopted_without_harm(
        seed in prop::collection::vec(object(), 5..30),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..11_u8, any::<u32>()), 1..6),
    ) {
        let mut world = World::new();
        for object in seed {
            world.step(Step::Put(object));
        }
        // Rows that no agent writes; the checks of single writes do not hold among them.
        let mut rows = world.sim.rows();
        for (index, what, value) in damage {
            match what {
                0 if !rows.front_v4.is_empty() => {
                    let i = index.index(rows.front_v4.len());
                    rows.front_v4[i].1.start = value;
                }
                1 if !rows.front_v4.is_empty() => {
                    let i = index.index(rows.front_v4.len());
                    rows.front_v4[i].1.len = value;
                }
                2 if !rows.segments.is_empty() => {
                    let i = index.index(rows.segments.len().min(32));
                    rows.segments[i] = value % 128;
                }
                3 if !rows.back_v4.is_empty() => {
                    let i = index.index(rows.back_v4.len());
                    rows.back_v4[i].1.state = value as u8;
                }
                4 if rows.back_v4.len() > 1 => {
                    let i = index.index(rows.back_v4.len());
                    rows.back_v4[i].1.port = 80;
                }
                5 if !rows.front_v4.is_empty() => {
                    let i = index.index(rows.front_v4.len());
                    rows.front_v4[i].1.out_start = value;
                }
                6 if !rows.front_v4.is_empty() => {
                    let i = index.index(rows.front_v4.len());
                    rows.front_v4[i].1.out_len = value;
                    rows.front_v4[i].1.table = value as u16;
                }
                7 if !rows.front_v4.is_empty() => {
                    let i = index.index(rows.front_v4.len());
                    rows.front_v4[i].1.flags ^= FrontendFlags::SOURCE_RANGES;
                }
                8 if !rows.front_v4.is_empty() => {
                    let i = index.index(rows.front_v4.len());
                    rows.front_v4[i].1.service = value % 8;
                }
                9 => rows.srcs_v4.push(SourceKey {
                    prefix_len: value % 65,
                    net: SourceNet::new(value % 8, Ip4::new([10, 244, 1, 0])),
                }),
                10 => {
                    let key = PeerKey {
                        prefix_len: value % 33,
                        addr: Ip4::new([10, 244, 1, 1]),
                    };
                    rows.direct_v4.push((key, value % 4));
                }
                _ => rows.segments.truncate(value as usize % 64),
            }
        }
        let now = world.clock.now();
        world.planner = Planner::new("n0", Applied::from_rows(CAPACITIES, &rows, now));
        world.feed();
        let mut free = support::Unchecked::from_rows(&rows);
        let mut pending = 1;
        for _ in 0..20 {
            pending = world.planner.run(&mut free, || world.clock.now()).pending;
            world.clock.advance(Duration::from_secs(20));
        }
        prop_assert_eq!(pending, 0);
        let restarted = Applied::from_rows(CAPACITIES, &free.sim.rows(), now);
        free.sim.check();
        prop_assert_eq!(free.sim.meaning().frontends, world.fresh().frontends);
        let mut again = Planner::new("n0", restarted);
        std::mem::swap(&mut again, &mut world.planner);
        world.feed();
        let outcome = world.planner.run(&mut free, || now);
        prop_assert_eq!(outcome.written, 0);
    }
}
