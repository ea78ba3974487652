//! The agent in a container with just what `deploy/manifests` gives it. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod container;
mod run_support;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use admin_api::{Client, Status};
use container::{Container, Manifest, Running};
use run_support::{BINARY, LIMIT, START, World, addresses, map_ids};
use testkit::agent::Agent;
use testkit::http::get;
use testkit::manifests::{Protocol, Service};
use testkit::process::Process;
use testkit::snapshot::{self, Snapshot};
use testkit::{ClusterBuilder, Node};

/// A cluster of two nodes, on which no agent runs.
fn small(label: &str) -> World {
    World::idle_of(ClusterBuilder::unique(label).nodes(2).pods_per_node(1))
}

fn status(node: &Node) -> Option<Status> {
    let socket = node.run_dir().join(admin_api::SOCKET_NAME);
    Client::connect(&socket, Duration::from_secs(2))
        .ok()?
        .status()
        .ok()
}

/// Waits until the agent in the container serves.
fn wait_ready(node: &Node, running: &mut Running) -> Status {
    testkit::wait::until("the container is ready", START, || {
        running.process.check_running()?;
        Ok(status(node).filter(|status| status.ready))
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", running.process.log_tail()))
}

#[test]
fn the_manifest_is_enough() {
    let mut world = small("enough");
    let (node, other) = (&world.cluster.nodes()[0], &world.cluster.nodes()[1]);
    let forwards = || {
        node.ns()
            .run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap())
            .unwrap()
    };
    node.ns()
        .run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap())
        .unwrap();
    let before = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    let service = world.web();
    world.state.write_service(&service).unwrap();

    let manifest = Manifest::read();
    let container = Container::new(
        &manifest,
        manifest.agent(),
        node,
        BINARY,
        world.state.path(),
    );
    let mut running = container.start();
    let mut beside = Agent::start(other, &world.options).unwrap();
    beside.wait_ready(START).unwrap();
    let status = wait_ready(node, &mut running);
    assert_eq!(status.faults, Vec::<String>::new());
    assert_eq!(forwards().trim(), "1", "switched on by the agent");

    // Pods of both nodes are reached, by both families.
    let ask = || {
        for address in addresses(&service) {
            let mut seen = BTreeSet::new();
            for _ in 0..64 {
                seen.insert(get(node.pods()[0].ns(), address, "/", LIMIT).unwrap().pod);
            }
            assert_eq!(seen.len(), 2, "{address}: {seen:?}");
        }
    };
    ask();

    // The datapath goes on without it, and it takes over what it finds.
    let maps = map_ids(&node.bpffs().join("tulle"));
    assert!(!maps.is_empty());
    running.kill();
    ask();
    running = container.start();
    let status = wait_ready(node, &mut running);
    assert_eq!(status.faults, Vec::<String>::new());
    assert_eq!(map_ids(&node.bpffs().join("tulle")), maps);
    ask();

    let ended = running.process.terminate(LIMIT).unwrap();
    assert!(ended.success(), "{ended}\n{}", running.process.log_tail());

    // What removes it needs no more.
    let manifest = Manifest::of("remove.yaml", "tulle-remove");
    let remove = Container::new(&manifest, manifest.init(), node, BINARY, world.state.path());
    let output = remove.output();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(forwards().trim(), "0", "as it was");
    let after = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    assert_eq!(before, after, "{}", snapshot::diff(&before, &after));
    // The pod stays, and ends when it is told to.
    let mut stays = Container::new(
        &manifest,
        manifest.agent(),
        node,
        BINARY,
        world.state.path(),
    )
    .start();
    testkit::wait::until("cleanup has nothing to do", LIMIT, || {
        Ok(stays
            .process
            .log()?
            .contains("nothing to remove")
            .then_some(()))
    })
    .unwrap();
    stays.process.check_running().unwrap();
    assert!(stays.process.terminate(LIMIT).unwrap().success());
    world.agents.push(beside);
}

/// What the chart's `sockets: false` takes away.
const FOR_SOCKETS: [&str; 2] = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"];

#[test]
fn packets_need_neither_the_hosts_processes_nor_what_is_for_sockets() {
    let world = small("fewer");
    let node = &world.cluster.nodes()[0];
    let service = world.web();
    world.state.write_service(&service).unwrap();
    let manifest = Manifest::read();
    let mut container = Container::new(
        &manifest,
        manifest.agent(),
        node,
        BINARY,
        world.state.path(),
    );
    container
        .capabilities
        .retain(|capability| !FOR_SOCKETS.contains(&capability.as_str()));
    container.host_pid = false;
    container.env = vec![("TULLE_SOCKET_SERVICES".into(), "off".into())];
    // Each of the others is asked for by name.
    for missing in container.capabilities.clone() {
        let mut without = container.clone();
        without
            .capabilities
            .retain(|capability| *capability != missing);
        let output = without.output();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && text.contains(&missing),
            "{missing}: {text}"
        );
    }

    let local = |service: &Service| {
        let mut service = service.clone();
        service
            .endpoints
            .retain(|endpoint| endpoint.node == node.name());
        service
    };
    world.state.write_service(&local(&service)).unwrap();
    for _ in 0..2 {
        let mut running = container.start();
        let status = wait_ready(node, &mut running);
        assert_eq!(status.faults, Vec::<String>::new());
        for address in addresses(&service) {
            let answer = get(node.pods()[0].ns(), address, "/", LIMIT).unwrap();
            assert_eq!(answer.pod, node.pods()[0].name());
        }
        // The second takes over what the first left.
        running.kill();
    }
}

/// Whether a connected UDP socket is closed when its backend goes, and the socket had one at all.
fn is_told(world: &World, container: &Container, limit: Duration) -> bool {
    let node = &world.cluster.nodes()[0];
    let [client, backend] = node.pods() else {
        panic!("two pods");
    };
    let mut service = Service::new("dns", &["10.96.0.53".parse().unwrap()])
        .port(Protocol::Udp, 53, 8053)
        .endpoints([(node, backend)]);
    world.state.write_service(&service).unwrap();
    let mut running = container.start();
    let status = wait_ready(node, &mut running);
    assert_eq!(status.faults, Vec::<String>::new());
    // Pods have processes, by which their network namespaces are found.
    let mut sleep = client.ns().command("sleep").unwrap();
    sleep.arg("600");
    let log = node.directory().join("pod.log");
    let mut lives = Process::spawn("a pod's process", sleep, &log).unwrap();
    let socket = testkit::echo::udp_connect(client.ns(), addresses(&service)[0]).unwrap();
    service.endpoints.clear();
    world.state.write_service(&service).unwrap();
    let until = Instant::now() + limit;
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let mut told = false;
    while !told && Instant::now() < until {
        let read = socket.recv(&mut [0; 64]);
        told = read.is_err_and(|error| error.kind() == ErrorKind::ConnectionAborted);
    }
    running.kill();
    lives.kill().unwrap();
    told
}

#[test]
fn sockets_of_pods_are_closed_with_what_is_for_them_and_not_without() {
    let builder = ClusterBuilder::unique("closes").nodes(1).pods_per_node(2);
    let world = World::idle_of(builder.cgroups());
    let node = &world.cluster.nodes()[0];
    let manifest = Manifest::read();
    let mut container = Container::new(
        &manifest,
        manifest.agent(),
        node,
        BINARY,
        world.state.path(),
    );
    // On a host the agent finds it by itself; a test node's is only a part of the host's.
    let cgroup = format!("/host{}", node.cgroup().unwrap().display());
    container.env = vec![("TULLE_CGROUP".into(), cgroup)];
    assert!(is_told(&world, &container, LIMIT));
    for missing in FOR_SOCKETS {
        let mut without = container.clone();
        without
            .capabilities
            .retain(|capability| capability != missing);
        assert!(
            !is_told(&world, &without, Duration::from_secs(5)),
            "{missing} is not needed"
        );
    }
}
