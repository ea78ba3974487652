//! Which number a service port has, how long, and whose it is then.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use support::batch;
use support::numbered::{front, service};
use support::world::World;
use tulle_agent::plan::GRACE;
use tulle_agent::source::Change;

#[test]
fn a_service_number_lives_as_long_as_its_port() {
    let mut world = World::new([service(1), service(2)]);
    let number = |world: &World, i| world.sim.fronts[&(front(i).addr, 80, 6)].service;
    let (one, two) = (number(&world, 1), number(&world, 2));
    assert_ne!(one, two);
    let name = |world: &World, n| world.planner.service_name(n).map(ToString::to_string);
    assert_eq!(name(&world, one).as_deref(), Some("default/s00001:http"));
    world.delete(&service(1));
    assert_eq!(name(&world, one), None);
    world.put(service(1));
    assert_eq!(number(&world, 2), two);
    assert_ne!(
        number(&world, 1),
        one,
        "flows of the former service keep their number"
    );
}

#[test]
fn a_service_number_is_given_out_again_when_nothing_is_left_of_its_port() {
    let mut world = World::new([service(1), service(2)]);
    let number = |world: &World, i| world.sim.fronts[&(front(i).addr, 80, 6)].service;
    let (one, two) = (number(&world, 1), number(&world, 2));
    let idle = |world: &World, in_flows: &[u32]| {
        let now = world.clock.now();
        let idle = world.planner.idle_numbers(|n| in_flows.contains(&n), now);
        idle.into_iter().collect::<Vec<u32>>()
    };
    // Its frontend's row stays for want of a write: two of three fail.
    world
        .planner
        .ingest(batch(vec![Change::Delete(service(1).key())]));
    world.sim.failures = vec![true; 2];
    world.run();
    world.clock.advance(GRACE);
    assert_eq!(idle(&world, &[]), [0; 0]);
    let at = world.planner.next_run().unwrap();
    world
        .clock
        .advance(at.saturating_duration_since(world.clock.now()));
    world.run();
    assert_eq!(idle(&world, &[]), [0; 0], "packets may be on their way");
    world.clock.advance(GRACE);
    assert_eq!(idle(&world, &[one, two]), [0; 0], "flows live on");
    assert_eq!(idle(&world, &[two]), [one]);
    // Until it is cleared it is not given out.
    world.put(service(3));
    let three = number(&world, 3);
    assert!(![one, two].contains(&three));
    world.planner.reuse_numbers(&[one].into());
    world.put(service(4));
    assert_eq!(number(&world, 4), one);
    assert_eq!(idle(&world, &[]), [0; 0]);
    assert_eq!(world.planner.numbered_from(one), 3);
    assert_eq!(world.planner.numbered_from(three + 1), 0);
    // After a restart gaps are found, and those in rows are kept.
    world.delete(&service(2));
    world.restart();
    world.feed([service(3), service(4)]);
    world.run();
    assert_eq!([3, 4].map(|i| number(&world, i)), [three, one]);
    assert_eq!(idle(&world, &[]), [0; 0]);
    world.clock.advance(GRACE);
    assert_eq!(idle(&world, &[]), [two]);
}
