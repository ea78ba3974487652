//! When changes count. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::time::Duration;

use run_support::{LIMIT, World};
use testkit::ClusterBuilder;
use testkit::manifests::{Protocol, Service};

/// Longer than anything else here takes.
const PERIOD: Duration = Duration::from_secs(20);

fn service(world: &World, name: &str, host: u8) -> Service {
    Service::dual_stack(name, host)
        .port(Protocol::Tcp, 80, 8080)
        .endpoints(world.cluster.pods())
}

#[test]
fn kp132_kp133_the_first_change_counts_at_once_and_later_ones_together() {
    let builder = ClusterBuilder::unique("sync").nodes(1).pods_per_node(1);
    let mut world = World::idle_of(builder);
    world.options = world.options.args(&["--min-sync-period", "20s"]);
    world.start_agents();
    // The first list may have been the sync before.
    std::thread::sleep(PERIOD);
    let before = world.syncs();
    world.write(&service(&world, "first", 10));
    let known = || world.agents[0].status().unwrap().objects.services;
    assert_eq!((known(), world.syncs()[0] - before[0]), (1, 1));
    for host in 11..31 {
        let late = service(&world, &format!("late-{host}"), host);
        world.state.write_service(&late).unwrap();
    }
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(known(), 1, "not before the period is over");
    let all = |agent: &testkit::agent::Agent| Ok(agent.status().unwrap().objects.services == 21);
    world.agents[0]
        .wait_until("aware of all", LIMIT, all)
        .unwrap();
    assert_eq!(
        world.syncs()[0] - before[0],
        2,
        "twenty changes are one sync"
    );
}
