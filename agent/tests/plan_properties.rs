//! Random histories of the cluster: every state in between serves, and the end
//! is what a fresh compile makes, whatever failed or was restarted on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod plan_random;
mod support;

use std::time::Duration;

use datapath_common::{FrontendFlags, Ip4, PeerKey, SourceKey, SourceNet};
use plan_random::history::{Step, World, calm_step, rough_step};
use plan_random::{object, plain_service};
use proptest::prelude::*;
use support::{CAPACITIES, run};
use tulle_agent::model::Family;
use tulle_agent::plan::{Applied, Planner};

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
