//! Real agents on a cluster of namespaces carry services and keep them while
//! they are restarted. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::time::{Duration, Instant};

use run_support::{LIMIT, World, addresses, map_ids};
use testkit::http::{FailureKind, Load, LoadOptions, get};
use testkit::manifests::{Protocol, Service};
use testkit::ping::ping;

/// Requests of a load before something else happens to it.
const SOME: usize = 50;

#[test]
fn a_service_spreads_over_both_nodes_in_both_families() {
    let world = World::start("spread", &[]);
    let web = world.web();
    world.write(&web);
    let client = &world.cluster.nodes()[0].pods()[0];
    for address in addresses(&web) {
        let report = Load::run(client.ns(), address, &LoadOptions::requests(80)).unwrap();
        assert_eq!(report.failures.len(), 0, "{address}: {report}");
        assert_eq!(report.by_pod.len(), 4, "{address}: {report}");
    }
    // And what is for no service: pod to pod, and from a node by the slow path.
    let (near, far) = (&world.cluster.nodes()[0], &world.cluster.nodes()[1]);
    for ip in far.pods()[0].ips() {
        ping(client.ns(), ip, 56, LIMIT).unwrap();
        ping(near.ns(), ip, 56, LIMIT).unwrap();
    }
    let status = world.agents[0].status().unwrap();
    assert_eq!(status.faults, [""; 0]);
    assert_eq!(status.objects.local_pods, 2);
}

#[test]
fn restarts_lose_nothing() {
    let mut world = World::start("restart", &[]);
    let web = world.web();
    world.write(&web);
    let maps: Vec<_> = world
        .cluster
        .nodes()
        .iter()
        .map(|n| map_ids(&n.bpffs()))
        .collect();
    let options = LoadOptions::steady(Duration::from_mins(2));
    let loads: Vec<Load> = addresses(&web)
        .into_iter()
        .map(|at| Load::start(world.cluster.nodes()[0].pods()[0].ns(), at, &options).unwrap())
        .collect();
    wait_for_more(&loads);
    for agent in &mut world.agents {
        agent.terminate(LIMIT).unwrap();
        wait_for_more(&loads);
        agent.spawn().unwrap();
        agent.wait_ready(LIMIT).unwrap();
        wait_for_more(&loads);
        agent.kill().unwrap();
        wait_for_more(&loads);
        agent.spawn().unwrap();
        agent.wait_ready(LIMIT).unwrap();
        wait_for_more(&loads);
    }
    for load in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failures.len(), 0, "{report}");
    }
    let after: Vec<_> = world
        .cluster
        .nodes()
        .iter()
        .map(|n| map_ids(&n.bpffs()))
        .collect();
    assert_eq!(maps, after, "the same maps, taken over");
    assert_eq!(world.agents[0].status().unwrap().maps_created, 0);
}

#[test]
fn a_removed_endpoint_gets_no_new_request_and_none_fails() {
    let world = World::start("endpoint", &[]);
    let mut web = world.web();
    world.write(&web);
    let options = LoadOptions::steady(Duration::from_mins(1));
    let client = world.cluster.nodes()[0].pods()[0].ns();
    let load = Load::start(client, addresses(&web)[0], &options).unwrap();
    load.wait_for_more(SOME, LIMIT).unwrap();
    let gone = "node-2-pod-1";
    web.remove_endpoint(gone).unwrap();
    world.write(&web);
    let removed_at = Instant::now();
    load.wait_for_more(SOME, LIMIT).unwrap();
    let report = load.stop().unwrap();
    assert_eq!(report.failures.len(), 0, "{report}");
    assert_eq!(report.by_pod.len(), 4, "{report}");
    let last = report.last_answer(gone).unwrap();
    let in_flight = Duration::from_secs(2);
    assert!(
        last < removed_at + in_flight,
        "{:?} after the removal",
        last - removed_at
    );
    let after = Load::run(client, addresses(&web)[0], &LoadOptions::requests(100)).unwrap();
    assert_eq!(
        (after.failures.len(), after.by_pod.len()),
        (0, 3),
        "{after}"
    );

    // Without any endpoint it refuses at once; when the service goes, so does its address.
    web.endpoints.clear();
    world.write(&web);
    for address in addresses(&web) {
        let error = get(client, address, "/", LIMIT).unwrap_err();
        assert_eq!(error.kind, FailureKind::Refused, "{address}: {error}");
    }
}

#[test]
fn a_bad_manifest_is_told_and_the_last_good_state_stays() {
    let mut world = World::start("bad", &[]);
    let web = world.web();
    world.write(&web);
    let client = world.cluster.nodes()[0].pods()[0].ns();
    let bad = web.to_string().replace("port: 80\n", "port: 99999\n");
    assert_ne!(bad, web.to_string());
    world.state.put(&web.file(), &bad).unwrap();
    // In the same directory, a good service is applied.
    let other = Service::dual_stack("other", 11)
        .port(Protocol::Tcp, 80, 8080)
        .endpoints(world.cluster.pods());
    world.write(&other);
    for agent in &mut world.agents {
        agent
            .wait_until("warning", LIMIT, |agent| {
                Ok(agent.status().is_ok_and(|s| !s.warnings.is_empty()))
            })
            .unwrap();
        let warning = &agent.status().unwrap().warnings[0];
        assert!(warning.file.ends_with("/web.yaml"), "{warning:?}");
        assert_eq!(warning.object, "Service default/web");
        assert!(
            warning.field.contains("port") && warning.message.contains("99999"),
            "{warning:?}"
        );
    }
    for address in [addresses(&web), addresses(&other)].concat() {
        let report = Load::run(client, address, &LoadOptions::requests(20)).unwrap();
        assert_eq!(report.failures.len(), 0, "{address}: {report}");
    }
    world.state.write_service(&web).unwrap();
    for agent in &mut world.agents {
        agent
            .wait_until("without warnings", LIMIT, |agent| {
                Ok(agent.status().is_ok_and(|s| s.warnings.is_empty()))
            })
            .unwrap();
    }
}

#[test]
fn a_changed_vtep_is_followed_by_all_nodes() {
    let mut world = World::start("vtep", &[]);
    let nodes = std::fs::read_to_string(world.state.path().join("nodes.yaml")).unwrap();
    let announced = "metadata:\n  name: node-1\n  annotations:\n    \
        flannel.alpha.coreos.com/backend-data: '{\"VNI\":1,\"VtepMAC\":\"0a:00:00:00:00:99\"}'\n";
    let changed = nodes.replace("metadata:\n  name: node-1\n", announced);
    assert_ne!(nodes, changed);
    world.state.put("nodes.yaml", &changed).unwrap();
    world.agents[0]
        .wait_until("using the VTEP address", LIMIT, |agent| {
            let overlay = agent.status().ok().and_then(|s| s.overlay);
            Ok(overlay.is_some_and(|o| o.vtep_mac.as_deref() == Some("0a:00:00:00:00:99")))
        })
        .unwrap();
    // Both ways, by both paths, as soon as the other node has it too.
    let [near, far] = world.cluster.nodes() else {
        panic!("two nodes asked for")
    };
    for (from, to) in [(near, far), (far, near)] {
        for ip in to.pods()[0].ips() {
            for ns in [from.pods()[0].ns(), from.ns()] {
                testkit::wait::until("echo reply", LIMIT, || {
                    Ok(ping(ns, ip, 56, Duration::from_millis(500)).ok())
                })
                .unwrap();
            }
        }
    }
}

fn wait_for_more(loads: &[Load]) {
    for load in loads {
        load.wait_for_more(SOME, LIMIT).unwrap();
    }
}
