//! What single steps write, in which order, and what they leave behind.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use datapath_common::{BackendState, FrontendFlags, ViaKind};
use support::numbered::{self, front, service};
use support::world::{World, outline};
use support::{CAPACITIES, Clock, Sim, apply, batch, facts, run};
use tulle_agent::model::{Family, Object};
use tulle_agent::plan::{Applied, Capacities, GRACE, MapOp, Planner};
use tulle_agent::source::Change;

const DECIDE: u16 = FrontendFlags::FLOWS_DECIDE;
const LOST: u16 = FrontendFlags::FLOWS_MAY_BE_LOST;

fn slice(i: u32, hosts: &[u8]) -> Object {
    numbered::slice(i, hosts.iter().map(|host| [10, 244, 0, *host].into()))
}

impl World {
    /// What the planner says about the flows of a frontend.
    fn flags(&self, i: u32) -> u16 {
        self.sim.fronts[&(front(i).addr, 80, 6)].flags & (DECIDE | LOST)
    }

    /// Id, state and generation of the row at a host.
    fn backend(&self, host: u8) -> Option<(u32, u8, u32)> {
        let at = |addr: std::net::IpAddr| addr == std::net::IpAddr::from([10, 244, 0, host]);
        let row = self.sim.backs.iter().find(|(_, b)| at(b.key.0));
        row.map(|((_, id), b)| (*id, b.state, b.generation))
    }

    fn release(&mut self) {
        self.clock.advance(GRACE);
        let draining = self.planner.draining();
        self.planner.release_backends(draining, self.clock.now());
        self.run();
    }
}

#[test]
fn writes_come_in_the_safe_order() {
    let mut world = World::new([]);
    assert_eq!(outline(&world.put(service(1))), ["front", "mark"]);
    assert_eq!(
        outline(&world.put(slice(1, &[1, 2]))),
        ["active", "slots", "front"]
    );
    assert_eq!(
        outline(&world.put(slice(1, &[2, 3]))),
        ["active", "slots", "front", "draining"]
    );
    assert_eq!(outline(&world.put(slice(1, &[]))), ["front", "draining"]);
    assert_eq!(outline(&world.delete(&service(1))), ["unmark", "delete"]);
    assert_eq!(world.run(), []);
}

#[test]
fn kp131_what_changes_nothing_writes_nothing() {
    let mut world = World::new([service(1), slice(1, &[1, 2])]);
    assert_eq!(world.put(slice(1, &[2, 1, 1])), []);
    assert_eq!(world.put(service(1)), []);
}

#[test]
fn kp128_nothing_is_written_before_the_first_list_and_the_first_facts() {
    let before = World::new([service(1), slice(1, &[1])]);
    let mut sim = before.sim.clone();
    let clock = Clock::new();
    let mut planner = Planner::new(
        "n0",
        Applied::from_rows(CAPACITIES, &sim.rows(), clock.now()),
    );
    planner.set_facts(facts(&[]));
    planner.ingest(batch(apply([service(2)])));
    sim.log.clear();
    run(&mut planner, &mut sim, &clock);
    assert_eq!(sim.log, [], "not synced");
    assert_eq!(planner.next_run(), None);

    let mut planner = Planner::new(
        "n0",
        Applied::from_rows(CAPACITIES, &sim.rows(), clock.now()),
    );
    planner.ingest(batch(vec![Change::Synced]));
    run(&mut planner, &mut sim, &clock);
    assert_eq!(sim.log, [], "no facts");

    planner.set_facts(facts(&[]));
    run(&mut planner, &mut sim, &clock);
    assert!(sim.fronts.is_empty(), "orphans go once everything is known");
}

#[test]
fn flows_decide_once_a_segment_has_changed() {
    let mut world = World::new([service(1)]);
    assert_eq!(world.flags(1), 0);
    world.put(slice(1, &[1]));
    assert_eq!(world.flags(1), 0, "an empty segment has opened no flow");
    world.put(slice(1, &[1, 2]));
    assert_eq!(world.flags(1), DECIDE);
    world.put(slice(1, &[1]));
    assert_eq!(world.flags(1), DECIDE, "older flows may live on");
}

#[test]
fn flows_decide_where_a_frontend_comes_back() {
    let mut world = World::new([service(1), slice(1, &[1])]);
    world.delete(&service(1));
    world.put(service(1));
    assert_eq!(world.flags(1), DECIDE);

    world.delete(&service(1));
    world.clock.advance(GRACE);
    world
        .planner
        .note_flows(&[front(1)].into(), world.clock.now());
    world.put(service(1));
    assert_eq!(world.flags(1), DECIDE, "the scan saw its flows");

    world.delete(&service(1));
    world.planner.note_flows(&[].into(), world.clock.now());
    world.put(service(1));
    assert_eq!(
        world.flags(1),
        DECIDE,
        "the scan is older than the deletion"
    );

    world.delete(&service(1));
    world.clock.advance(GRACE);
    world.planner.note_flows(&[].into(), world.clock.now());
    world.put(service(1));
    assert_eq!(world.flags(1), 0);
}

#[test]
fn flows_decide_where_a_client_s_port_is_translated() {
    let mut world = World::new([service(1), slice(1, &[1]), service(2), slice(2, &[1])]);
    let start = world.planner.applied().frontend(&front(1)).unwrap().start;
    world.planner.flows_are_moved(&[front(1), front(9)].into());
    world.run();
    assert_eq!((world.flags(1), world.flags(2)), (DECIDE, 0));
    let row = world.planner.applied().frontend(&front(1)).unwrap();
    assert_eq!(row.start, start, "the same segment");
    world.planner.flows_are_moved(&[].into());
    world.run();
    assert_eq!(world.flags(1), DECIDE, "it stays");
}

#[test]
fn lost_flows_are_asked_for_until_they_must_have_come_back() {
    let mut world = World::new([service(1), slice(1, &[1]), service(2), slice(2, &[1])]);
    let now = world.clock.now();
    let (soon, late) = (now + Duration::from_secs(10), now + Duration::from_secs(20));
    let start = world.planner.applied().frontend(&front(1)).unwrap().start;
    world.planner.flows_may_be_lost([(front(1), soon)]);
    world.run();
    assert_eq!((world.flags(1), world.flags(2)), (LOST, 0));
    let row = world.planner.applied().frontend(&front(1)).unwrap();
    assert_eq!(row.start, start, "the same segment");
    assert_eq!(world.planner.asking_fronts(), [front(1)]);
    world.put(slice(1, &[1, 2]));
    assert_eq!(world.flags(1), DECIDE | LOST, "both for their own reasons");

    world.planner.any_flow_may_be_lost(Family::V4, 6, late);
    world.put(service(3));
    assert_eq!(
        (world.flags(2), world.flags(3)),
        (LOST, LOST),
        "new ones too"
    );
    world.planner.forget_lost_flows(soon);
    world.run();
    assert_eq!((world.flags(1), world.flags(2)), (DECIDE | LOST, LOST));
    world.planner.forget_lost_flows(late);
    world.run();
    assert_eq!(
        (world.flags(1), world.flags(2), world.flags(3)),
        (DECIDE, 0, 0)
    );

    world.planner.any_flow_may_be_lost(Family::V6, 6, late);
    world.planner.any_flow_may_be_lost(Family::V4, 17, late);
    world.run();
    assert_eq!(
        (world.flags(1), world.flags(2)),
        (DECIDE, 0),
        "other tables"
    );
    assert_eq!(world.planner.asking_fronts(), []);
}

#[test]
fn flows_decide_in_new_frontends_after_a_restart_until_flows_are_known() {
    let mut world = World::new([service(1), slice(1, &[1])]);
    let now = world.clock.now();
    let applied = Applied::from_rows(CAPACITIES, &world.sim.rows(), now);
    world.planner = Planner::new("n0", applied);
    let mut changes = apply([service(1), slice(1, &[1]), service(2)]);
    changes.push(Change::Synced);
    world.planner.ingest(batch(changes));
    world.planner.set_facts(facts(&["10.244.0.1"]));
    world.run();
    assert_eq!((world.flags(1), world.flags(2)), (0, DECIDE));
    world.clock.advance(GRACE);
    world
        .planner
        .note_flows(&[front(3)].into(), world.clock.now());
    world.put(service(3));
    world.put(service(4));
    assert_eq!((world.flags(3), world.flags(4)), (DECIDE, 0));
}

#[test]
fn a_draining_backend_comes_back_as_itself() {
    let mut world = World::new([service(1), slice(1, &[1, 2])]);
    let before = world.backend(2);
    world.put(slice(1, &[1]));
    let (id, state, generation) = world.backend(2).unwrap();
    assert_eq!(
        (Some((id, 1, generation)), state),
        (before, BackendState::Draining as u8)
    );
    world.put(slice(1, &[1, 2]));
    assert_eq!(world.backend(2), before);
}

#[test]
fn ids_are_reused_after_release_only_oldest_first_with_a_new_generation() {
    let mut world = World::new([service(1), slice(1, &[1, 2, 3])]);
    let [one, two] = [1, 2].map(|host| world.backend(host).unwrap());
    world.put(slice(1, &[1, 3]));
    world.put(slice(1, &[1, 3, 4]));
    assert_eq!(world.backend(4).unwrap().0, 4, "2 still drains");
    world.release();
    assert_eq!(world.backend(2), None);
    world.put(slice(1, &[3, 4]));
    world.release();
    world.put(slice(1, &[3, 4, 5]));
    assert_eq!(world.backend(5), Some((two.0, 1, two.2 + 1)));
    world.put(slice(1, &[3, 4, 5, 6]));
    assert_eq!(world.backend(6), Some((one.0, 1, one.2 + 1)));
}

#[test]
fn a_scan_that_began_too_early_releases_nothing() {
    let mut world = World::new([service(1), slice(1, &[1, 2])]);
    let scan = world.clock.now();
    world.put(slice(1, &[1]));
    let draining = world.planner.draining();
    assert_eq!(draining, [(Family::V4, 2)]);
    world.planner.release_backends(draining, scan);
    assert_eq!(world.run(), []);
    // Nor does one free what has come back meanwhile.
    world.clock.advance(GRACE);
    let draining = world.planner.draining();
    world.planner.ingest(batch(apply([slice(1, &[1, 2])])));
    world.planner.release_backends(draining, world.clock.now());
    world.run();
    assert_eq!(world.backend(2), Some((2, 1, 1)));
}

#[test]
fn kp24_a_shared_backend_is_one_row_and_outlives_one_of_its_services() {
    let mut world = World::new([service(1), slice(1, &[1]), service(2), slice(2, &[1])]);
    assert_eq!(world.sim.backs.len(), 1);
    world.delete(&service(1));
    assert_eq!(world.backend(1), Some((1, 1, 1)));
    world.delete(&service(2));
    assert_eq!(world.backend(1), Some((1, BackendState::Draining as u8, 1)));
}

#[test]
fn a_full_map_stops_its_service_and_no_other() {
    let mut world = World::new([service(1), slice(1, &[1]), service(2), slice(2, &[2])]);
    let many: Vec<u8> = (1..=140).collect();
    world
        .planner
        .ingest(batch(apply([slice(1, &many), slice(2, &[3])])));
    let outcome = run(&mut world.planner, &mut world.sim, &world.clock);
    assert_eq!((outcome.failed, outcome.pending), (1, 1));
    let text = outcome.errors[0].to_string();
    assert!(
        text.contains("tulle_back_v4") && text.contains("--max-backends"),
        "{text}"
    );
    assert!(world.backend(3).is_some(), "the other one is served");
    assert_eq!(
        world.sim.fronts[&(front(1).addr, 80, 6)].len,
        1,
        "the old segment stays"
    );
    assert_eq!(world.sim.backs.len(), 3, "nothing is written in vain");

    let retry = world.planner.next_run().unwrap();
    assert!(retry > world.clock.now());
    world.put(slice(1, &[1, 4]));
    assert!(world.backend(4).is_some());
    assert_eq!(world.planner.counts().pending, 0);
}

#[test]
fn frontends_and_segments_have_limits_too() {
    for (capacities, map, flag) in [
        (
            Capacities {
                frontends: 3,
                ..CAPACITIES
            },
            "tulle_front_v4",
            "--max-frontends",
        ),
        (
            Capacities {
                segments: 2,
                ..CAPACITIES
            },
            "tulle_segments",
            "--max-segments",
        ),
    ] {
        let mut planner = Planner::new("n0", Applied::new(capacities));
        let mut changes = apply([service(1), slice(1, &[1, 2]), service(2), slice(2, &[3])]);
        changes.push(Change::Synced);
        planner.ingest(batch(changes));
        planner.set_facts(facts(&[]));
        let mut sim = Sim::default();
        let outcome = run(&mut planner, &mut sim, &Clock::new());
        assert!(outcome.failed > 0);
        let text = outcome.errors[0].to_string();
        assert!(text.contains(map) && text.contains(flag), "{text}");
    }
}

#[test]
fn failures_are_retried_later_and_later() {
    let mut world = World::new([]);
    world.sim.failures = vec![true; 3];
    world.put(service(1));
    let mut waits = Vec::new();
    while let Some(at) = world.planner.next_run() {
        waits.push((at - world.clock.now()).as_millis());
        assert_eq!(world.run(), [], "not yet");
        world.clock.advance(at - world.clock.now());
        world.run();
    }
    // The first put fails, is tried after 100 ms, and fails once more; the
    // address beside it fails once.
    assert_eq!(waits, [100, 200]);
    assert_eq!(world.sim.fronts.len(), 2);
}

#[test]
fn kp150_what_the_kernel_refuses_is_of_its_family() {
    struct Refusing(std::io::ErrorKind);
    impl tulle_agent::plan::MapWriter for Refusing {
        fn write(&mut self, op: &MapOp) -> Result<(), tulle_agent::plan::WriteError> {
            let (map, source) = (op.map(), self.0.into());
            Err(tulle_agent::plan::WriteError { map, source })
        }
    }
    let mut world = World::new([]);
    for (kind, refused) in [
        // Neither a restart nor another node's load balancer makes room.
        (std::io::ErrorKind::StorageFull, false),
        (std::io::ErrorKind::PermissionDenied, true),
    ] {
        world.feed([service(1)]);
        let now = world.clock.now();
        let outcome = world.planner.run(&mut Refusing(kind), || now);
        assert!(outcome.failed > 0);
        assert_eq!(world.planner.is_refused(Family::V4), refused, "{kind:?}");
        assert!(!world.planner.is_refused(Family::V6));
    }
    world.clock.advance(Duration::from_secs(1));
    world.run();
    assert!(!world.planner.is_refused(Family::V4));
}

#[test]
fn the_way_to_a_backend_follows_the_pods() {
    let mut world = World::new([service(1), slice(1, &[1, 2])]);
    let kind = |world: &World, id| world.sim.backs[&(true, id)].via.kind;
    assert_eq!(kind(&world, 1), ViaKind::Local as u8);
    assert_eq!(
        kind(&world, 2),
        ViaKind::Kernel as u8,
        "of our own network, but no known pod"
    );
    world.planner.set_facts(facts(&["10.244.0.2"]));
    let ops = world.run();
    assert_eq!(kind(&world, 1), ViaKind::Kernel as u8);
    assert_eq!(kind(&world, 2), ViaKind::Local as u8);
    assert_eq!(ops.len(), 4, "two pods, two backends: {ops:?}");
}

#[test]
fn one_change_among_50_000_services_takes_no_longer() {
    const SERVICES: u32 = 50_000;
    struct Null;
    impl tulle_agent::plan::MapWriter for Null {
        fn write(&mut self, _: &MapOp) -> Result<(), tulle_agent::plan::WriteError> {
            Ok(())
        }
    }
    let capacities = Capacities {
        frontends: 200_000,
        backends: 1000,
        segments: 200_000,
        sources: 1000,
    };
    let cost = |services: u32| {
        let mut planner = Planner::new("n0", Applied::new(capacities));
        let objects = (0..services).flat_map(|i| [service(i), slice(i, &[1, 2, 3])]);
        let mut changes = apply(objects);
        changes.push(Change::Synced);
        planner.ingest(batch(changes));
        planner.set_facts(facts(&[]));
        assert_eq!(planner.run(&mut Null, Instant::now).pending, 0);
        let mut times: Vec<Duration> = (0..50_u8)
            .map(|round| {
                let change = slice(u32::from(round) % services, &[1, 2, 10 + round]);
                let batch = batch(apply([change]));
                let start = Instant::now();
                planner.ingest(batch);
                let outcome = planner.run(&mut Null, Instant::now);
                assert!(outcome.written > 0 && outcome.pending == 0);
                start.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let (few, many) = (cost(50), cost(SERVICES));
    println!("median of one endpoint change: {few:?} at 50, {many:?} at {SERVICES} services");
    assert!(many < Duration::from_millis(1), "{many:?}");
}
