//! One agent and its node: what it refuses, repairs, follows and cleans up.
//! Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use run_support::{BINARY, LIMIT, World, addresses, map_ids};
use testkit::agent::Agent;
use testkit::cluster::UPLINK;
use testkit::http::get;
use testkit::link::{self, ip};
use testkit::manifests::{Protocol, Service};
use testkit::ping::ping;
use testkit::snapshot::{self, Snapshot};
use testkit::{ClusterBuilder, Node};

fn small(label: &str) -> World {
    World::idle_of(ClusterBuilder::unique(label).nodes(2).pods_per_node(1))
}

/// An agent on the first node only.
fn started(world: &World, args: &[&str]) -> Agent {
    let options = world.options.clone().args(args);
    let mut agent = Agent::start(&world.cluster.nodes()[0], &options).unwrap();
    agent.wait_ready(LIMIT).unwrap();
    agent
}

fn first(world: &World) -> &Node {
    &world.cluster.nodes()[0]
}

/// `tulle-agent run` on a node with arguments changed, expected to end by itself.
fn run(node: &Node, state: &Path, change: &[(&str, &str)]) -> Output {
    let mut command = node.ns().command(BINARY).unwrap();
    let mut args = vec![
        ("--state", state.display().to_string()),
        ("--node", node.name().to_owned()),
        ("--uplink", UPLINK.to_owned()),
        ("--bpffs", node.bpffs().display().to_string()),
        ("--run-dir", node.run_dir().display().to_string()),
    ];
    for (flag, value) in change {
        match args.iter_mut().find(|(have, _)| have == flag) {
            Some(arg) => (*value).clone_into(&mut arg.1),
            None => args.push((flag, (*value).to_owned())),
        }
    }
    command.arg("run");
    for (flag, value) in args {
        command.args([flag, &value]);
    }
    command.output().unwrap()
}

fn refusal(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[test]
fn refusals_name_the_mend_and_leave_nothing() {
    let world = small("refuse");
    let (node, state) = (first(&world), world.state.path());
    let before = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    let here = world.cluster.directory();
    let elsewhere = here.join("no-bpffs").display().to_string();
    let nowhere = here.join("nowhere").display().to_string();
    let cases = [
        ("--bpffs", elsewhere.as_str(), 1, "mount -t bpf"),
        ("--uplink", "eth9", 1, "uplink eth9 does not exist"),
        (
            "--state",
            nowhere.as_str(),
            1,
            "cannot read the state directory",
        ),
        ("--log", "=x=", 1, "--log =x="),
        ("--vni", "0", 2, "--vni"),
        ("--max-flows", "many", 2, "--max-flows"),
        (
            "--xdp",
            "fast",
            2,
            "possible values: auto, native, generic, off",
        ),
        ("--node", "Node_1", 2, "lower-case"),
    ];
    for (flag, value, code, say) in cases {
        let text = refusal(&run(node, state, &[(flag, value)]), code);
        assert!(text.contains(say), "{flag} {value}: {text}");
        assert!(
            code == 2 || text.lines().any(|l| l.starts_with("tulle-agent: ")),
            "{text}"
        );
    }
    let after = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    assert_eq!(snapshot::diff(&before, &after), "");
}

#[test]
fn an_unprivileged_user_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let binary = copy_for_everybody(dir.path());
    for verb in [vec!["run", "--state", "/", "--node", "n"], vec!["cleanup"]] {
        let output = Command::new(&binary)
            .args(&verb)
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let text = refusal(&output, 1);
        assert!(text.contains("run it as root"), "{text}");
    }
}

/// The target directory need not be open to others.
fn copy_for_everybody(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::Permissions::from_mode(0o755);
    let copy = dir.join("tulle-agent");
    std::fs::copy(BINARY, &copy).unwrap();
    std::fs::set_permissions(&copy, open.clone()).unwrap();
    std::fs::set_permissions(dir, open).unwrap();
    copy
}

#[test]
fn a_second_instance_and_a_cleanup_beside_it_are_refused() {
    let world = small("second");
    let agent = started(&world, &[]);
    let node = first(&world);
    let pid = format!("process {}", agent.pid().unwrap());
    let text = refusal(&run(node, world.state.path(), &[]), 1);
    assert!(text.contains(&pid), "{text}");
    let cleanup = agent.cleanup().unwrap_err().to_string();
    assert!(cleanup.contains(&pid), "{cleanup}");
    assert!(agent.status().unwrap().ready, "undisturbed");
}

#[test]
fn cleanup_leaves_nothing() {
    let world = small("clean");
    let node = first(&world);
    let before = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    let mut agent = started(&world, &[]);
    let during = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    assert!(snapshot::diff(&before, &during).contains("flannel.1"));
    agent.terminate(LIMIT).unwrap();
    let log = agent.log().unwrap();
    assert!(
        log.contains("ended by SIGTERM; the datapath goes on"),
        "{log}"
    );
    let still = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    assert_eq!(
        snapshot::diff(&during, &still),
        "",
        "SIGTERM leaves the datapath"
    );

    let output = agent.cleanup().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("detached programs") && said.contains("pinned maps"),
        "{said}"
    );
    let after = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    assert_eq!(snapshot::diff(&before, &after), "");
    assert!(!agent.socket().exists());
    let again = String::from_utf8_lossy(&agent.cleanup().unwrap().stdout).into_owned();
    assert!(again.starts_with("nothing to remove"), "{again}");
}

#[test]
fn drift_is_repaired_and_counted() {
    let world = small("drift");
    let mut agent = started(&world, &[]);
    let node = first(&world);
    let repairs = |agent: &Agent| agent.status().unwrap().drift_repairs;
    let before = repairs(&agent);
    let far = world.cluster.nodes()[1].pod_cidr4().to_string();
    ip(node.ns(), &["route", "del", &far]).unwrap();
    agent
        .wait_until("repaired", LIMIT, |agent| Ok(repairs(agent) > before))
        .unwrap();
    let before = repairs(&agent);
    detach_a_link(node);
    agent
        .wait_until("attached again", LIMIT, |agent| Ok(repairs(agent) > before))
        .unwrap();
    assert_eq!(agent.status().unwrap().faults, [""; 0]);
}

#[test]
fn the_programs_follow_the_vtep_device() {
    let world = small("vtep");
    let mut agent = started(&world, &["--snat-ports", "31000-31999"]);
    let node = first(&world);
    let replaced = |agent: &Agent| agent.log().unwrap().matches("programs replaced").count();
    let log = agent.log().unwrap();
    assert_eq!(replaced(&agent), 0, "the device was made first: {log}");
    assert!(log.contains("overlap node ports 30000-32767"), "{log}");
    ip(node.ns(), &["link", "del", "flannel.1"]).unwrap();
    let there = || ip(node.ns(), &["link", "show", "flannel.1"]).is_ok();
    agent
        .wait_until("told", LIMIT, |agent| Ok(there() && replaced(agent) > 0))
        .unwrap();
    agent.terminate(LIMIT).unwrap();
    let before = replaced(&agent);
    agent.spawn().unwrap();
    agent.wait_ready(LIMIT).unwrap();
    assert_eq!(replaced(&agent), before, "it was there at the start");
}

#[test]
fn a_start_that_fails_takes_the_device_back_that_it_made() {
    let world = small("refused");
    world.state.write_service(&world.web()).unwrap();
    let mut agent = started(&world, &[]);
    agent.terminate(LIMIT).unwrap();
    let node = first(&world);
    let device = |args: &[&str]| ip(node.ns(), &[&["link"], args, &["flannel.1"]].concat());
    let too_small = [("--max-frontends", "1")];
    // One that was there stays, whatever happens.
    let text = refusal(&run(node, world.state.path(), &too_small), 1);
    assert!(
        text.contains("--max-frontends is 1; give at least"),
        "{text}"
    );
    device(&["show"]).unwrap();
    device(&["del"]).unwrap();
    refusal(&run(node, world.state.path(), &too_small), 1);
    assert!(device(&["show"]).is_err());
}

/// Detaches a program at a pod as `bpftool link detach` does.
fn detach_a_link(node: &Node) {
    let links = std::fs::read_dir(node.bpffs().join("links")).unwrap();
    let path = links
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("tulle_pod_from")
        })
        .unwrap();
    let done = Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// What the agent's process has used of the processors.
fn processor_time(agent: &Agent) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid().unwrap())).unwrap();
    let ticks = stat.split_whitespace().skip(13).take(2);
    // USER_HZ is 100 on every architecture that matters here.
    ticks
        .map(|n| Duration::from_millis(n.parse::<u64>().unwrap() * 10))
        .sum()
}

#[test]
fn it_waits_for_its_node_and_leaves_the_datapath_alone_meanwhile() {
    let world = small("wait");
    let node = first(&world);
    let nodes = std::fs::read_to_string(world.state.path().join("nodes.yaml")).unwrap();
    let mut agent = started(&world, &[]);
    let maps = map_ids(&node.bpffs());
    agent.terminate(LIMIT).unwrap();
    let during = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    world.state.remove("nodes.yaml").unwrap();
    agent.spawn().unwrap();
    agent
        .wait_until("waiting for its Node", LIMIT, |agent| {
            let status = agent.status();
            Ok(status.is_ok_and(|s| s.waiting_for.is_some_and(|w| w.contains("the Node node-1"))))
        })
        .unwrap();
    assert!(!agent.status().unwrap().ready);
    let (began, used) = (Instant::now(), processor_time(&agent));
    while began.elapsed() < Duration::from_millis(300) {
        agent.status().unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let used = processor_time(&agent).checked_sub(used).unwrap();
    assert!(
        used * 2 < began.elapsed(),
        "it waits, it does not spin: {used:?}"
    );
    let still = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    assert_eq!(snapshot::diff(&during, &still), "");
    world.state.put("nodes.yaml", &nodes).unwrap();
    agent.wait_ready(LIMIT).unwrap();
    assert_eq!(map_ids(&node.bpffs()), maps);
}

#[test]
fn pods_and_uplink_are_followed() {
    let mut world = small("follow");
    world.start_agents();
    let late = world.cluster.add_pod("node-1").unwrap();
    let ips = late.ips();
    world.agents[0]
        .wait_until("aware of the new pod", LIMIT, |agent| {
            Ok(agent.status().is_ok_and(|s| s.objects.local_pods == 2))
        })
        .unwrap();
    let far = &world.cluster.nodes()[1].pods()[0];
    for ip in ips {
        ping(far.ns(), ip, 56, LIMIT).unwrap();
    }
    // One pod's own end follows, as its installer would do, the other's does not.
    link::set_mtu(first(&world).pods()[1].ns(), UPLINK, 1350).unwrap();
    link::set_mtu(first(&world).ns(), UPLINK, 1400).unwrap();
    world.agents[0]
        .wait_until("aware of the uplink's MTU", LIMIT, |agent| {
            let overlay = agent.status().ok().and_then(|s| s.overlay);
            Ok(overlay.is_some_and(|o| o.mtu == 1350))
        })
        .unwrap();
    let World {
        agents, cluster, ..
    } = &mut world;
    agents[0]
        .wait_until("done with the pods' MTU", LIMIT, |_| {
            Ok(link::mtu(cluster.nodes()[0].ns(), "pod2")? == 1350)
        })
        .unwrap();
    let other = link::mtu(cluster.nodes()[0].ns(), "pod1").unwrap();
    assert_eq!(other, 1450, "never below the pod's own end");
}

#[test]
fn a_full_map_is_told_with_its_flag_and_the_rest_goes_on() {
    let mut world = small("full");
    // A service takes a row for its port and one for its address.
    world.options = world.options.clone().args(&["--max-frontends", "3"]);
    world.start_agents();
    let service = |name, host| {
        Service::dual_stack(name, host)
            .port(Protocol::Tcp, 80, 8080)
            .endpoints(world.cluster.pods())
    };
    let (first, second) = (service("first", 20), service("second", 21));
    world.write(&first);
    world.write(&second);
    let status = world.agents[0].status().unwrap();
    let maps: Vec<&str> = status.map_errors.iter().map(|e| e.map.as_str()).collect();
    assert_eq!(maps, ["tulle_front_v4", "tulle_front_v6"]);
    assert!(
        status.map_errors[0].message.contains("--max-frontends"),
        "{status:?}"
    );
    assert!(
        status.faults.iter().any(|f| f.starts_with("maps: ")),
        "{status:?}"
    );
    assert_eq!(status.sync_failures, 1);
    let client = world.cluster.nodes()[0].pods()[0].ns();
    for address in addresses(&first) {
        get(client, address, "/", LIMIT).unwrap();
    }
    // As soon as there is room, what did not fit comes in by itself.
    world.state.remove_service(&first).unwrap();
    for agent in &mut world.agents {
        agent
            .wait_until("without errors", LIMIT, |agent| {
                Ok(agent
                    .status()
                    .is_ok_and(|s| s.map_errors.is_empty() && s.faults.is_empty()))
            })
            .unwrap();
    }
    for address in addresses(&second) {
        get(client, address, "/", LIMIT).unwrap();
    }
}
