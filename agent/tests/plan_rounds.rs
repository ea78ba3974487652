//! Rounds over the maps' rows (KP-134, KP-139): what somebody else changed is found and put right in
//! the ordinary order of writes, and nothing else is found.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod plan_random;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use datapath_common::{BackendState, Frontend, FrontendFlags, Mac, Node, Via, ViaKind};
use plan_random::history::{Step, World, calm_step, rough_step};
use plan_random::object;
use proptest::prelude::*;
use proptest::sample::Index;
use support::reader::{Cursor, SimReader};
use support::rows::{BackRow, Key};
use support::sim::slots;
use support::{CAPACITIES, Sim, run};
use tulle_agent::plan::{Difference, How, Round, Table, Unit};

/// One round; `between` comes after each step of about `room` rows.
fn round(world: &mut World, room: u32, mut between: impl FnMut(&mut World)) -> Vec<Difference> {
    let (mut round, mut cursor, mut all) = (Round::new(), Cursor::default(), Vec::new());
    loop {
        let mut reader = SimReader {
            sim: &world.sim,
            cursor: &mut cursor,
        };
        let now = world.clock.now();
        let over = round
            .step(&mut world.planner, &mut reader, room, now)
            .unwrap();
        let found = round.take_found();
        for difference in &found {
            let fronts = matches!(difference.table, Table::FrontV4 | Table::FrontV6);
            if let (true, How::Missing, Unit::Frontend(key)) =
                (fronts, difference.how, difference.unit)
            {
                world.sim.miss(&(key.addr, key.port, key.proto));
            }
        }
        if !found.is_empty() {
            run(&mut world.planner, &mut world.sim, &world.clock);
        }
        all.extend(found);
        if over {
            return all;
        }
        between(world);
    }
}

/// What somebody does to the maps: to which kind of row, which of them, and with what.
#[derive(Clone, Debug)]
struct Damage {
    what: u8,
    which: Index,
    value: u32,
}

/// Kinds of damage.
const KINDS: u8 = 28;

fn damage() -> impl Strategy<Value = Damage> {
    (0..KINDS, any::<Index>(), any::<u32>()).prop_map(|(what, which, value)| Damage {
        what,
        which,
        value,
    })
}

fn pick<K: Clone, V>(rows: &BTreeMap<K, V>, which: Index) -> Option<K> {
    (!rows.is_empty()).then(|| rows.keys().nth(which.index(rows.len())).unwrap().clone())
}

fn via(value: u32) -> Via {
    Via {
        kind: ViaKind::Local as u8,
        ifindex: value,
        ..Via::KERNEL
    }
}

/// A front's row changed by hand.
fn change_front(row: &mut Frontend, what: u8, value: u32) {
    match what {
        1 => row.start = value % (2 * CAPACITIES.segments),
        2 => row.len = value % 64,
        3 => row.flags ^= value as u16,
        4 => row.service = value % 8,
        5 => row.affinity_secs ^= value,
        6 => (row.out_start, row.out_len) = (value % CAPACITIES.segments, value % 16),
        _ => row.table ^= value as u16,
    }
}

fn do_damage(real: &mut Sim, damage: &Damage) {
    let Damage { what, which, value } = *damage;
    let address: IpAddr = [10, 99, (value >> 8) as u8, value as u8].into();
    match what {
        0 => drop(pick(&real.fronts, which).and_then(|key| real.fronts.remove(&key))),
        1..=7 => {
            if let Some(key) = pick(&real.fronts, which) {
                change_front(real.fronts.get_mut(&key).unwrap(), what, value);
            }
        }
        8 => {
            let row = Frontend {
                service: value % 8,
                start: value % CAPACITIES.segments,
                len: value % 16,
                out_start: value % CAPACITIES.segments,
                out_len: value % 16,
                flags: value as u16 & FrontendFlags::SOURCE_RANGES,
                ..Frontend::default()
            };
            real.fronts.insert((address, value as u16 % 3, 6), row);
        }
        9 => {
            let live: Vec<u32> = real.fronts.values().flat_map(slots).collect();
            if !live.is_empty() {
                real.slots
                    .insert(live[which.index(live.len())], value % 200);
            }
        }
        10..=14 => {
            if let Some(at) = pick(&real.backs, which) {
                change_back(real.backs.get_mut(&at).unwrap(), at, what, value);
            }
        }
        15 => drop(pick(&real.pods, which).and_then(|key| real.pods.remove(&key))),
        16 => {
            let key = pick(&real.pods, which).filter(|_| value % 2 == 0);
            real.pods.insert(key.unwrap_or(address), via(value));
        }
        17 => drop(pick(&real.peers, which).and_then(|key| real.peers.remove(&key))),
        18 => {
            let key = pick(&real.peers, which).filter(|_| value % 2 == 0);
            real.peers.insert(key.unwrap_or((address, 32)), via(value));
        }
        19 => drop(pick(&real.nodes, which).and_then(|key| real.nodes.remove(&key))),
        20 => {
            let key = pick(&real.nodes, which).filter(|_| value % 2 == 0);
            let node = Node {
                vtep_mac: Mac::new([2, 0, 0, 0, 0, value as u8]),
                reserved: 0,
            };
            real.nodes.insert(key.unwrap_or(address), node);
        }
        21 => drop(pick(&real.networks, which).and_then(|key| real.networks.remove(&key))),
        22 => {
            let key = pick(&real.networks, which).filter(|_| value % 2 == 0);
            real.networks
                .insert(key.unwrap_or((address, 32)), value % 4);
        }
        23 => {
            let row = real
                .sources
                .iter()
                .nth(which.index(1 + real.sources.len()))
                .copied();
            let _ = row.map(|row| real.sources.remove(&row));
        }
        24 => drop(real.sources.insert((value % 8, 64, address))),
        25 => real.fronts.clear(),
        26 => real.sources.clear(),
        _ => {
            real.peers.clear();
            real.nodes.clear();
            real.pods.clear();
            real.networks.clear();
        }
    }
}

/// The row of a backend, or one that is free, changed by hand.
fn change_back(row: &mut BackRow, (v4, _): (bool, u32), what: u8, value: u32) {
    let other: IpAddr = if v4 {
        [10, 244, 9, value as u8].into()
    } else {
        "fd00:244:9::9".parse().unwrap()
    };
    match what {
        10 => row.state = value as u8 % 3,
        11 => row.key = (other, row.key.1, row.key.2),
        12 => row.generation = value,
        13 => row.via = via(value),
        _ => {
            let none: IpAddr = if v4 { [0; 4].into() } else { [0_u16; 8].into() };
            *row = BackRow {
                key: (none, 0, 0),
                state: BackendState::Free as u8,
                generation: 0,
                via: Via::KERNEL,
            };
        }
    }
}

/// What decides something of a backend's row.
fn back(sim: &Sim, at: (bool, u32)) -> (u8, u32, Option<(Key, Via)>) {
    let row = sim.backs.get(&at);
    row.map_or((0, 0, None), |row| {
        let used = row.state != BackendState::Free as u8;
        (
            row.state,
            row.generation,
            used.then_some((row.key, row.via)),
        )
    })
}

/// The kernel holds the frontends, slots and backends that it would hold if nobody else wrote.
fn assert_as_written(sim: &Sim) {
    let real = sim.kernel();
    let noted = |(key, row): (&Key, &Frontend)| {
        let flags = row.flags & !FrontendFlags::FLOWS_DECIDE;
        (*key, Frontend { flags, ..*row })
    };
    let fronts = |sim: &Sim| sim.fronts.iter().map(noted).collect::<BTreeMap<_, _>>();
    assert_eq!(fronts(real), fronts(sim));
    let ids: BTreeSet<_> = real.backs.keys().chain(sim.backs.keys()).copied().collect();
    for id in ids {
        assert_eq!(back(real, id), back(sim, id), "backend {id:?}");
    }
    for slot in sim.fronts.values().flat_map(slots) {
        assert_eq!(real.slots.get(&slot), sim.slots.get(&slot), "slot {slot}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn kp134_nothing_is_found_where_nobody_else_writes(
        steps in prop::collection::vec(rough_step(), 1..60),
        room in 1..40_u32,
    ) {
        let mut world = World::new();
        let mut steps = steps.into_iter();
        while steps.len() > 0 {
            let next = |world: &mut World| {
                if let Some(step) = steps.next() {
                    world.step(step);
                }
            };
            prop_assert_eq!(round(&mut world, room, next), []);
        }
        world.settle();
        prop_assert_eq!(round(&mut world, room, |_| ()), []);
        prop_assert_eq!(world.sim.meaning(), world.fresh());
    }

    #[test]
    fn kp139_whatever_is_damaged_is_put_right_in_one_round(
        steps in prop::collection::vec(calm_step(), 1..30),
        damages in prop::collection::vec(damage(), 1..8),
        room in 1..40_u32,
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        let real = world.sim.share();
        for damage in &damages {
            do_damage(real, damage);
        }
        world.sim.strict = true;
        round(&mut world, room, |_| ());
        world.sim.strict = false;
        // Where there was no room beside what was held for damaged rows, there is later.
        world.settle();
        assert_as_written(&world.sim);
        prop_assert_eq!(world.sim.kernel().meaning(), world.fresh());
        prop_assert_eq!(round(&mut world, room, |_| ()), []);
    }

    #[test]
    fn kp139_damage_heals_while_the_cluster_changes_and_writes_fail(
        seed in prop::collection::vec(object(), 5..30),
        damages in prop::collection::vec((damage(), prop::collection::vec(calm_step(), 0..3)), 1..12),
        failures in prop::collection::vec(prop::bool::weighted(0.3), 0..40),
        room in 1..40_u32,
    ) {
        let mut world = World::new();
        for object in seed {
            world.step(Step::Put(object));
        }
        world.sim.share();
        world.sim.failures = failures;
        let mut damages = damages.into_iter();
        while damages.len() > 0 {
            round(&mut world, room, |world| {
                if let Some((damage, steps)) = damages.next() {
                    let real = world.sim.real.as_mut().unwrap();
                    do_damage(&mut real.sim, &damage);
                    for step in steps {
                        world.step(step);
                    }
                }
            });
        }
        world.settle();
        round(&mut world, room, |_| ());
        world.settle();
        assert_as_written(&world.sim);
        prop_assert_eq!(world.sim.kernel().meaning(), world.fresh());
        prop_assert_eq!(round(&mut world, room, |_| ()), []);
        // Nothing that was held for damaged rows is lost.
        for object in std::mem::take(&mut world.objects).into_values() {
            world.step(Step::Delete(object));
        }
        for _ in 0..2 {
            world.settle();
            world.clock.advance(Duration::from_secs(1));
            world.step(Step::Release);
        }
        prop_assert_eq!(world.planner.applied().segments().free(), CAPACITIES.segments);
        assert_as_written(&world.sim);
    }
}
