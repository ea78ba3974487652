//! Tables behind segments: when there is no room for them, and after a restart.
#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::expect_used, reason = "tests may panic")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use datapath_common::{Frontend, FrontendFlags};
use support::balanced::{here, object, service, slice};
use support::world::World;
use support::{CAPACITIES, batch, facts, run};
use tulle_agent::model::{Choice, Object, Scheduler};
use tulle_agent::plan::{Applied, GRACE, Here, Planner};
use tulle_agent::source::Change;

/// Four tables of so many slots fill the map.
const SLOTS: u16 = 1009;

fn chosen(i: u8, scheduler: Scheduler) -> Object {
    let choice = Choice {
        scheduler: Some(scheduler),
        ..Choice::default()
    };
    let mut service = service(i);
    (service.vips, service.choice) = (Vec::new(), choice);
    object(service)
}

/// Endpoints of service `i` by their last octets.
fn endpoints(i: u8, hosts: &[u8]) -> Object {
    let addrs: Vec<String> = hosts.iter().map(|h| format!("10.9.{i}.{h}")).collect();
    let all: Vec<(&str, u8)> = addrs.iter().map(|addr| (addr.as_str(), 1)).collect();
    slice(i, &all)
}

fn row(world: &World, i: u8) -> Frontend {
    support::balanced::row(world, &format!("10.96.0.{i}"), 80)
}

/// Services that fill the map with their tables.
fn full() -> World {
    let maglev = |i| [chosen(i, Scheduler::Maglev), endpoints(i, &[1, 2])];
    let mut world = World::new([]);
    world.planner.set_here(Here {
        maglev_slots: SLOTS,
        ..here()
    });
    world.feed((1..=4).flat_map(maglev));
    world.run();
    for i in 1..=4 {
        assert_eq!(row(&world, i).table, SLOTS, "service {i}");
    }
    world
}

#[test]
fn without_room_for_its_table_a_frontend_is_served_all_the_same() {
    let mut world = full();
    world.feed([endpoints(1, &[2, 3])]);
    let outcome = run(&mut world.planner, &mut world.sim, &world.clock);
    assert_eq!((outcome.failed, outcome.pending), (1, 1));
    let told = outcome.errors[0].to_string();
    assert!(told.contains("not served as its scheduler"), "{told}");
    assert!(told.contains("--max-segments"), "{told}");
    let without = row(&world, 1);
    assert_eq!((without.len, without.table), (2, 0));
    assert_ne!(without.flags & FrontendFlags::FLOWS_DECIDE, 0);
    let ids = world.sim.inside(&without);
    let hosts = ids.iter().map(|id| world.sim.backs[&(true, *id)].key);
    let hosts: Vec<SocketAddr> = hosts.map(|key| (key.0, key.1).into()).collect();
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    assert!(
        !hosts.contains(&"10.9.1.1:8080".parse().unwrap()),
        "{hosts:?}"
    );
    // Trying again writes nothing more.
    world.clock.advance(Duration::from_millis(150));
    let outcome = run(&mut world.planner, &mut world.sim, &world.clock);
    assert_eq!((outcome.written, outcome.failed), (0, 1));
    // What the frontend itself has left is room enough.
    world.clock.advance(GRACE + Duration::from_secs(20));
    let outcome = run(&mut world.planner, &mut world.sim, &world.clock);
    assert_eq!((outcome.failed, outcome.pending), (0, 0));
    assert_eq!(row(&world, 1).table, SLOTS);
    world.sim.check();
}

#[test]
fn a_number_without_turns_is_served_by_hash_and_told() {
    let mut world = World::new([]);
    world.planner.set_here(here());
    let in_turn = [1, 2].into_iter();
    let in_turn = in_turn.flat_map(|i| [chosen(i, Scheduler::RoundRobin), endpoints(i, &[1, 2])]);
    world.feed(in_turn.clone());
    assert_ne!(world.run(), []);
    // Numbers as a former agent may have given them out: the last that has turns, and the next.
    let last = 2 * CAPACITIES.frontends;
    for (i, number) in [(1, last), (2, last + 1)] {
        let key = (format!("10.96.0.{i}").parse().unwrap(), 80, 6);
        world.sim.fronts.get_mut(&key).unwrap().service = number;
    }
    world.restart();
    world.planner.set_here(here());
    world.feed(in_turn);
    let outcome = run(&mut world.planner, &mut world.sim, &world.clock);
    assert_eq!((outcome.failed, outcome.pending), (1, 1));
    let told = outcome.errors[0].to_string();
    assert!(told.contains("10.96.0.2"), "{told}");
    assert!(told.contains("tulle_turns"), "{told}");
    assert!(told.contains("--max-frontends"), "{told}");
    let in_turn = |i| {
        let row = row(&world, i);
        assert_eq!(row.len, 2);
        assert_ne!(row.flags & FrontendFlags::FLOWS_DECIDE, 0);
        (row.service, row.flags & FrontendFlags::ROUND_ROBIN != 0)
    };
    assert_eq!(in_turn(1), (last, true));
    assert_eq!(in_turn(2), (last + 1, false));
    world.sim.check();
}

#[test]
fn tables_are_taken_over_and_follow_the_scheduler() {
    let mut world = full();
    let before = world.sim.fronts.clone();
    world.restart();
    world.planner.set_here(Here {
        maglev_slots: SLOTS,
        ..here()
    });
    let all = |scheduler| (1..=4).flat_map(move |i| [chosen(i, scheduler), endpoints(i, &[1, 2])]);
    world.feed(all(Scheduler::Maglev));
    assert_eq!(world.run(), [], "nothing has changed");
    assert_eq!(world.sim.fronts, before);

    // Nobody makes such a table any more.
    let shorter = world
        .sim
        .fronts
        .get_mut(&("10.96.0.1".parse().unwrap(), 80, 6));
    let shorter = shorter.unwrap();
    (shorter.table, shorter.out_table) = (SLOTS - 2, SLOTS - 2);
    let applied = Applied::from_rows(CAPACITIES, &world.sim.rows(), world.clock.now());
    world.planner = Planner::new("n0", applied);
    world.planner.set_here(here());
    world.planner.set_facts(facts(&[]));
    let mut changes: Vec<Change> = support::apply(all(Scheduler::SourceHash));
    changes.push(Change::Synced);
    world.planner.ingest(batch(changes));
    let outcome = run(&mut world.planner, &mut world.sim, &world.clock);
    assert_eq!(
        (outcome.failed, outcome.pending),
        (0, 0),
        "{:?}",
        outcome.errors
    );
    for i in 1..=4 {
        let row = row(&world, i);
        assert_eq!((row.len, row.table, row.out_table), (2, 0, 0));
        let flags = FrontendFlags::SOURCE_HASH | FrontendFlags::FLOWS_DECIDE;
        assert_eq!(row.flags & flags, flags);
    }
    world.sim.check();
}
