//! Single rows that somebody else changed: what is written, and in which order (KP-139).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use datapath_common::{BackendState, Frontend, FrontendFlags};
use support::Sim;
use support::numbered::{self, front, service};
use support::reader::{Cursor, SimReader};
use support::rows::Key;
use support::world::{World, outline};
use tulle_agent::model::{Family, Object};
use tulle_agent::plan::{Difference, GRACE, How, Round, Table, Unit};

fn slice(i: u32, hosts: &[u8]) -> Object {
    numbered::slice(i, hosts.iter().map(|host| [10, 244, 0, *host].into()))
}

fn key(i: u32) -> Key {
    (front(i).addr, 80, 6)
}

/// Three services of two backends each, in maps that others write too.
fn world() -> World {
    let objects = (1..4_u8).flat_map(|i| {
        let n = u32::from(i);
        [service(n), slice(n, &[10 * i, 10 * i + 1])]
    });
    let mut world = World::new(objects);
    world.sim.share();
    world.sim.strict = true;
    world
}

impl World {
    fn real(&mut self) -> &mut Sim {
        &mut self.sim.real.as_mut().unwrap().sim
    }

    /// A whole round without a run of the planner.
    fn look(&mut self) -> Vec<Difference> {
        let (mut round, mut cursor) = (Round::new(), Cursor::default());
        let mut reader = SimReader {
            sim: &self.sim,
            cursor: &mut cursor,
        };
        let over = round.step(
            &mut self.planner,
            &mut reader,
            u32::MAX / 64,
            self.clock.now(),
        );
        assert!(over.unwrap());
        let found = round.take_found();
        for difference in &found {
            if let (How::Missing, Unit::Frontend(key)) = (difference.how, difference.unit) {
                self.sim.miss(&(key.addr, key.port, key.proto));
            }
        }
        found
    }

    /// Finds this one difference; the outline of what puts it right. Nothing is left after it.
    fn mend(&mut self, table: Table, unit: Unit, how: How) -> Vec<&'static str> {
        assert_eq!(self.look(), [Difference { table, unit, how }]);
        let written = outline(&self.run());
        assert_eq!(self.look(), []);
        assert_eq!(self.run(), []);
        assert_eq!(self.sim.kernel().meaning(), self.sim.meaning());
        written
    }

    fn decides(&mut self, i: u32) -> bool {
        self.real().fronts[&key(i)].flags & FrontendFlags::FLOWS_DECIDE != 0
    }
}

#[test]
fn kp139_a_deleted_frontend_is_made_anew() {
    let mut world = world();
    world.real().fronts.remove(&key(2));
    let unit = Unit::Frontend(front(2));
    let written = world.mend(Table::FrontV4, unit, How::Missing);
    assert_eq!(written, ["slots", "front"]);
    assert!(world.decides(2), "its flows may live");
    assert!(!world.decides(1));
}

#[test]
fn kp139_a_changed_frontend_and_its_slots_are_not_used_again_before_it_is_written() {
    let mut world = world();
    let before = world.real().fronts[&key(2)];
    let other = world.real().fronts[&key(3)];
    let (start, _) = other.slots();
    // It names the slots of another one.
    let row = world.real().fronts.get_mut(&key(2)).unwrap();
    (row.start, row.out_start) = (start, start);
    let unit = Unit::Frontend(front(2));
    let written = world.mend(Table::FrontV4, unit, How::Changed);
    assert_eq!(written, ["slots", "front"]);
    let after = world.real().fronts[&key(2)];
    assert_eq!(after.service, before.service);
    assert!(after.start != before.start && after.start != start);
    assert!(world.decides(2) && !world.decides(3));
    assert_eq!(world.real().fronts[&key(3)], other);
}

#[test]
fn kp139_free_slots_that_a_changed_row_names_are_nobody_s_until_it_is_written() {
    let mut world = world();
    let first_free = 6;
    let row = world.real().fronts.get_mut(&key(2)).unwrap();
    (row.start, row.out_start) = (first_free, first_free);
    assert_eq!(world.look().len(), 1);
    world.sim.failures = vec![true];
    world.put(service(4));
    world.put(slice(4, &[40, 41]));
    assert!(world.planner.is_pending(&Unit::Frontend(front(2))));
    let (start, len) = world.real().fronts[&key(4)].slots();
    assert!(len == 2 && start >= first_free + 2, "{start}");
    world.clock.advance(std::time::Duration::from_secs(20));
    world.run();
    assert_eq!(world.look(), []);
    world.clock.advance(GRACE);
    world.run();
    assert_eq!(world.planner.applied().segments().used(), 8);
}

#[test]
fn kp139_a_changed_frontend_without_endpoints_needs_no_slots() {
    let mut world = World::new([service(1)]);
    world.sim.share();
    world.real().fronts.get_mut(&key(1)).unwrap().affinity_secs = 9;
    let free = world.planner.applied().segments().free();
    let unit = Unit::Frontend(front(1));
    assert_eq!(world.mend(Table::FrontV4, unit, How::Changed), ["front"]);
    assert_eq!(world.planner.applied().segments().free(), free);
}

#[test]
fn kp139_a_changed_slot_moves_its_frontend() {
    let mut world = world();
    let (start, _) = world.real().fronts[&key(1)].slots();
    world.real().slots.insert(start + 1, 77);
    let unit = Unit::Frontend(front(1));
    let written = world.mend(Table::Segments, unit, How::Changed);
    assert_eq!(written, ["slots", "front"]);
    assert!(world.decides(1), "a flow may have been opened by it");
    world.clock.advance(GRACE);
    world.run();
    // Six slots are named, and no others are held.
    let segments = world.planner.applied().segments();
    assert_eq!(segments.used(), 6);
}

#[test]
fn kp139_a_changed_backend_keeps_its_id_and_generation() {
    let mut world = world();
    let (at, before) = {
        let backs = &world.real().backs;
        let (at, row) = backs.iter().next().unwrap();
        (*at, *row)
    };
    let row = world.real().backs.get_mut(&at).unwrap();
    (row.state, row.generation, row.key.1) = (BackendState::Free as u8, 9, 1);
    let unit = Unit::Backend(Family::V4, at.1);
    assert_eq!(world.mend(Table::BackV4, unit, How::Changed), ["active"]);
    assert_eq!(world.real().backs[&at], before);
}

#[test]
fn kp139_a_free_backend_that_somebody_made_is_free_again_and_given_out_once() {
    let mut world = world();
    world.put(slice(3, &[]));
    world.clock.advance(GRACE);
    let draining = world.planner.draining();
    world.planner.release_backends(draining, world.clock.now());
    world.run();
    let free = |world: &mut World| {
        let backs = &world.real().backs;
        let free = backs.iter().filter(|(_, row)| row.state == 0);
        free.map(|(at, row)| (*at, *row)).collect::<Vec<_>>()
    };
    let before = free(&mut world);
    assert_eq!(before.len(), 2);
    let (at, row) = before[0];
    let real = world.real().backs.get_mut(&at).unwrap();
    (real.state, real.generation) = (BackendState::Active as u8, row.generation + 5);
    let unit = Unit::Backend(Family::V4, at.1);
    assert_eq!(world.mend(Table::BackV4, unit, How::Foreign), ["free"]);
    assert_eq!(free(&mut world), before);
    // Three new backends have three ids.
    world.put(slice(3, &[31, 32, 33]));
    let real = world.real();
    let row = real.fronts[&key(3)];
    let ids = real.inside(&row);
    assert!(ids.len() == 3 && ids.is_sorted_by(|a, b| a < b), "{ids:?}");
}

#[test]
fn kp139_a_foreign_frontend_is_deleted() {
    let mut world = world();
    let row = Frontend {
        start: 3000,
        len: 1 << 30,
        out_start: 1,
        ..Frontend::default()
    };
    world.real().fronts.insert(key(50), row);
    let unit = Unit::Frontend(front(50));
    assert_eq!(world.mend(Table::FrontV4, unit, How::Foreign), ["delete"]);
    world.clock.advance(GRACE);
    world.run();
    assert_eq!(world.planner.applied().segments().used(), 6);
}

#[test]
fn kp139_a_mark_that_is_gone_comes_back_and_a_foreign_one_goes() {
    let mut world = world();
    let (addr, ..) = key(1);
    let mark = world.real().fronts.remove(&(addr, 0, 0)).unwrap();
    let (foreign, ..) = key(60);
    world.real().fronts.insert((foreign, 0, 0), mark);
    let found = world.look();
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(outline(&world.run()), ["unmark", "mark"]);
    assert_eq!(world.look(), []);
}

#[test]
fn kp139_what_cannot_be_written_is_found_once_and_put_right_later() {
    let mut world = world();
    world.real().fronts.remove(&key(2));
    let at = *world.real().backs.keys().next().unwrap();
    world.real().backs.get_mut(&at).unwrap().state = 0;
    assert_eq!(world.look().len(), 2);
    world.sim.failures = vec![true; 2];
    world.run();
    assert_eq!(world.look(), [], "both are known");
    let back = Unit::Backend(Family::V4, at.1);
    assert!(world.planner.is_pending(&back));
    world.clock.advance(std::time::Duration::from_secs(20));
    assert!(!world.run().is_empty());
    assert!(!world.planner.is_pending(&back));
    assert_eq!(world.look(), []);
    assert_eq!(world.sim.kernel().meaning(), world.sim.meaning());
}
