//! What a real agent tells probes and load balancers of itself. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use datapath_common::maps;
use run_support::ask::{Answer, get_path};
use run_support::{LIMIT, START, World};
use serde_json::Value;
use testkit::ClusterBuilder;
use testkit::agent::Agent;

const PORT: u16 = 10_256;

/// A node; no agent runs.
fn idle(label: &str) -> World {
    World::idle_of(ClusterBuilder::unique(label).nodes(1).pods_per_node(1))
}

fn started(label: &str, args: &[&str]) -> World {
    let mut world = idle(label);
    world.options = world.options.args(args);
    world.start_agents();
    world
}

/// On the node itself, as the kubelet asks.
fn ask_at(world: &World, at: SocketAddr, path: &str) -> std::io::Result<Answer> {
    get_path(world.cluster.nodes()[0].ns(), at, path)
}

fn probe(world: &World, path: &str) -> std::io::Result<Answer> {
    ask_at(world, (Ipv4Addr::LOCALHOST, PORT).into(), path)
}

/// `/healthz`, `/livez`, `/readyz`.
fn says(world: &World) -> [u16; 3] {
    ["/healthz", "/livez", "/readyz"].map(|path| probe(world, path).unwrap().status)
}

fn wait_says(world: &World, what: [u16; 3]) {
    testkit::wait::until(&format!("probes to say {what:?}"), LIMIT, || {
        Ok((says(world) == what).then_some(()))
    })
    .unwrap();
}

fn json(answer: &Answer) -> Value {
    assert_eq!(answer.headers["Content-Type"], "application/json");
    assert_eq!(answer.headers["X-Content-Type-Options"], "nosniff");
    serde_json::from_str(&answer.body).unwrap()
}

fn nodes(world: &World) -> String {
    std::fs::read_to_string(world.state.path().join("nodes.yaml")).unwrap()
}

#[test]
fn kp151_kp152_a_node_that_leaves() {
    let world = started("pleave", &[]);
    wait_says(&world, [200; 3]);
    let body = json(&probe(&world, "/healthz").unwrap());
    assert_eq!(
        (&body["nodeEligible"], &body["healthy"]),
        (&true.into(), &true.into())
    );
    assert_eq!(body["lastUpdated"], body["currentTime"]);
    let body = json(&probe(&world, "/livez").unwrap());
    assert_eq!(body.get("nodeEligible"), None);
    let plain = nodes(&world);
    let [taint, other] = [
        "ToBeDeletedByClusterAutoscaler",
        "node.kubernetes.io/not-ready",
    ]
    .map(|key| format!("spec:\n  taints: [{{key: {key}, effect: NoSchedule}}]\n"));
    world
        .state
        .put("nodes.yaml", &plain.replace("spec:\n", &taint))
        .unwrap();
    wait_says(&world, [503, 200, 200]);
    let body = json(&probe(&world, "/healthz").unwrap());
    assert_eq!(
        (&body["nodeEligible"], &body["healthy"]),
        (&false.into(), &true.into())
    );
    assert_ne!(body["lastUpdated"], body["currentTime"]);
    let synced = body["status"]["IPv6"]["lastUpdated"].as_str().unwrap();
    assert!(!synced.starts_with("0001"), "{body}");
    world
        .state
        .put("nodes.yaml", &plain.replace("spec:\n", &other))
        .unwrap();
    wait_says(&world, [200; 3]);
    let deleted = plain.replace(
        "metadata:\n",
        "metadata:\n  deletionTimestamp: 2026-01-01T00:00:00Z\n",
    );
    world.state.put("nodes.yaml", &deleted).unwrap();
    wait_says(&world, [503, 200, 200]);
    world.state.put("nodes.yaml", &plain).unwrap();
    wait_says(&world, [200; 3]);
    world.state.remove("nodes.yaml").unwrap();
    wait_says(&world, [503, 200, 200]);
}

#[test]
fn ready_only_once_it_serves() {
    let mut world = idle("pwait");
    let plain = nodes(&world);
    world.state.remove("nodes.yaml").unwrap();
    let mut agent = Agent::start(&world.cluster.nodes()[0], &world.options).unwrap();
    agent
        .wait_until("answering", START, |_| Ok(probe(&world, "/livez").is_ok()))
        .unwrap();
    wait_says(&world, [503, 200, 503]);
    let why = probe(&world, "/readyz").unwrap();
    assert!(why.body.contains("the Node node-1"), "{why:?}");
    world.state.put("nodes.yaml", &plain).unwrap();
    agent.wait_ready(START).unwrap();
    wait_says(&world, [200; 3]);
    world.agents.push(agent);
}

#[test]
fn kp141_a_source_that_cannot_be_read_takes_nothing_away() {
    let world = started("pgone", &[]);
    wait_says(&world, [200; 3]);
    let away = world.state.path().with_extension("away");
    std::fs::rename(world.state.path(), &away).unwrap();
    testkit::wait::until("a warning of the directory", LIMIT, || {
        let warnings = world.agents[0].status().unwrap().warnings;
        Ok(warnings
            .iter()
            .any(|w| w.message.contains("cannot be read"))
            .then_some(()))
    })
    .unwrap();
    assert_eq!(says(&world), [200; 3]);
    std::fs::rename(&away, world.state.path()).unwrap();
}

#[test]
fn kp150_both_families_are_asked_at_the_default_address() {
    let mut world = started("pfam", &[]);
    let node = &world.cluster.nodes()[0];
    for ip in [
        Ipv4Addr::LOCALHOST.into(),
        IpAddr::from(Ipv6Addr::LOCALHOST),
        node.ip4().into(),
        node.ip6().unwrap().into(),
    ] {
        let answer = ask_at(&world, SocketAddr::new(ip, PORT), "/livez");
        assert_eq!(answer.unwrap().status, 200, "{ip}");
    }
    assert_eq!(probe(&world, "/").unwrap().status, 404);
    let options = world.options.clone();
    world.agents.clear();
    world.options = options.clone().args(&["--health-address", "[::1]:999"]);
    world.start_agents();
    let at = |ip: IpAddr| SocketAddr::new(ip, 999);
    let own = ask_at(&world, at(Ipv6Addr::LOCALHOST.into()), "/livez");
    assert_eq!(own.unwrap().status, 200);
    assert!(ask_at(&world, at(Ipv4Addr::LOCALHOST.into()), "/livez").is_err());
    world.agents.clear();
    world.options = options.args(&["--health-address", "off"]);
    world.start_agents();
    assert!(probe(&world, "/livez").is_err());
}

#[test]
fn kp156_an_address_that_is_taken_is_told_and_healed() {
    let mut world = idle("ptaken");
    let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT));
    let taken = world.cluster.nodes()[0].ns().run(|| TcpListener::bind(at));
    let taken = taken.unwrap().unwrap();
    world.start_agents();
    world.agents[0]
        .wait_until("aware of the taken address", LIMIT, |agent| {
            let told = |fault: &String| {
                fault.contains("0.0.0.0:10256") && fault.contains("--health-address")
            };
            Ok(agent
                .status()
                .is_ok_and(|status| status.faults.iter().any(told)))
        })
        .unwrap();
    // The other family's is undisturbed.
    let other = SocketAddr::from((Ipv6Addr::LOCALHOST, PORT));
    assert_eq!(ask_at(&world, other, "/livez").unwrap().status, 200);
    world.agents[0].terminate(LIMIT).unwrap();
    let strict = world
        .options
        .clone()
        .args(&["--bind-address-hard-fail", "true"]);
    let mut agent = Agent::start(&world.cluster.nodes()[0], &strict).unwrap();
    let ended = agent.wait_ready(START).unwrap_err().to_string();
    assert!(
        ended.contains("exit status: 1") && ended.contains("--health-address"),
        "{ended}"
    );
    world.agents[0].spawn().unwrap();
    world.agents[0].wait_ready(START).unwrap();
    drop(taken);
    world.agents[0]
        .wait_until("healed", LIMIT, |agent| {
            Ok(agent.status().is_ok_and(|status| status.faults.is_empty()))
        })
        .unwrap();
    assert_eq!(says(&world), [200; 3]);
}

#[test]
fn kp150_programming_that_is_blocked_for_a_minute() {
    let world = started("pblock", &[]);
    wait_says(&world, [200; 3]);
    let pin = world.cluster.nodes()[0].bpffs().join(maps::FRONT_V4);
    let frozen = Command::new("bpftool")
        .args(["map", "freeze", "pinned"])
        .arg(pin)
        .output();
    assert!(frozen.unwrap().status.success());
    let began = Instant::now();
    world.state.write_service(&world.web()).unwrap();
    testkit::wait::until("a fault", LIMIT, || {
        let faults = world.agents[0].status().unwrap().faults;
        Ok(faults
            .iter()
            .any(|fault| fault.contains(maps::FRONT_V4))
            .then_some(()))
    })
    .unwrap();
    assert_eq!(
        says(&world),
        [200; 3],
        "it may be a change that takes its time"
    );
    let limit = tulle_agent::health::PATIENCE + LIMIT;
    let answer = testkit::wait::until("livez to say 503", limit, || {
        Ok(probe(&world, "/livez")
            .ok()
            .filter(|answer| answer.status == 503))
    });
    assert!(
        began.elapsed() > Duration::from_secs(55),
        "{:?}",
        began.elapsed()
    );
    let body = json(&answer.unwrap());
    assert_eq!(body["healthy"], false);
    assert_eq!(body["status"]["IPv4"]["healthy"], false);
    assert_eq!(body["status"]["IPv6"]["healthy"], true);
    assert_ne!(body["lastUpdated"], body["currentTime"]);
    assert_eq!(says(&world), [503, 503, 200]);
    // Nobody wants it any more: nothing waits.
    world.state.remove_service(&world.web()).unwrap();
    wait_says(&world, [200; 3]);
}

/// To start the agent anew would bring no uplink back, and it may come back at any time.
#[test]
fn an_uplink_that_is_gone_is_told_to_load_balancers_and_kills_no_agent() {
    let world = started("puplink", &[]);
    wait_says(&world, [200; 3]);
    let deleted = world.cluster.nodes()[0]
        .ns()
        .command("ip")
        .unwrap()
        .args(["link", "delete", testkit::cluster::UPLINK])
        .status();
    assert!(deleted.unwrap().success());
    let began = Instant::now();
    let limit = tulle_agent::health::PATIENCE + LIMIT;
    let answer = testkit::wait::until("healthz to say 503", limit, || {
        Ok(probe(&world, "/healthz")
            .ok()
            .filter(|answer| answer.status == 503))
    });
    assert!(
        began.elapsed() > Duration::from_secs(55),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(json(&answer.unwrap())["healthy"], false);
    assert_eq!(says(&world), [503, 200, 503]);
    let alive = json(&probe(&world, "/livez").unwrap());
    assert_eq!(alive["healthy"], true);
}

#[test]
fn silent_clients_hurt_nobody() {
    let world = started("psilent", &[]);
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let silent: Vec<TcpStream> = world.cluster.nodes()[0]
        .ns()
        .run(|| (0..300).map(|_| TcpStream::connect(at).unwrap()).collect())
        .unwrap();
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(says(&world), [200; 3]);
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "{:?}",
            asked.elapsed()
        );
    }
    drop(silent);
}
