//! The binary against real pinned maps. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test; clippy sees tests only in functions marked as such"
)]

mod affinity;
mod fixture;
mod outside;
mod pins;
mod terminal;
mod top;
mod tulle;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::PerCpuValues;
use aya::maps::lpm_trie::Key;
use datapath_common::{
    Counter, EventKind, Hook, Ip4, Mac, MonitorControl, Node, Reason, counter_index, maps,
};
use fixture::{NODE4, event, far, fill_flows, fill_services, now_tick};
use pins::Pins;
use serde_json::Value;
use tulle::Tulle;

#[test]
fn services_and_backends_are_shown_without_an_agent() {
    let pins = Pins::new();
    fill_services(&pins);
    let tulle = Tulle::new(&pins.dir);
    let shown = tulle.ok(&["services"]);
    assert_eq!(
        shown.stdout,
        "\
SERVICE  FRONTEND       PROTO  KIND       BACKENDS  FLAGS    ENDPOINTS
#7       10.96.0.10:80  TCP    ClusterIP         2  changed  10.244.0.5:8080 33% 10.244.1.7:8080 67%
#8       [fd00::10]:80  TCP    external          1  -        [fd00:0:0:1::5]:8080
#9       10.96.0.10:53  UDP    ClusterIP         0  -        none: clients are refused
"
    );
    assert_eq!(shown.stderr, "agent not running: names are not shown\n");
    let shown = tulle.ok(&["backends"]);
    assert_eq!(
        shown.stdout,
        "\
\x20 ID  GEN  ADDRESS               PROTO  STATE     VIA                SERVICES
   1    3  10.244.0.5:8080       TCP    active    local lo           #7
   3    3  10.96.0.10:8080       TCP    draining  kernel             -
4095    3  10.244.1.7:8080       TCP    active    vxlan 192.168.0.2  #7
   1    3  [fd00:0:0:1::5]:8080  TCP    active    local lo           #8
"
    );
    let json = tulle.json(&["services", "10.244.1"]);
    assert_eq!(
        (&json["schema"], &json["version"]),
        (&"tulle.services".into(), &1.into())
    );
    assert_eq!(json["services"].as_array().unwrap().len(), 1);
    assert_eq!(json["services"][0]["backends"][1]["slots"], 2);
    assert_eq!(json["notes"][0], "agent not running: names are not shown");
}

#[test]
fn the_agent_lends_names() {
    let pins = Pins::new();
    fill_services(&pins);
    pins.trie(maps::PEERS_V4)
        .insert(&Key::new(24, Ip4::new([10, 244, 1, 0])), far(), 0)
        .unwrap();
    let node = Node {
        vtep_mac: Mac::new([2, 0, 0, 0, 0, 2]),
        reserved: 0,
    };
    pins.hash(maps::NODES_V4).insert(NODE4, node, 0).unwrap();
    let tulle = Tulle::new(&pins.dir);
    tulle.serve();
    let shown = tulle.ok(&["services", "web"]);
    assert!(
        shown.stdout.contains("\ndefault/web:http  10.96.0.10:80 "),
        "{}",
        shown.stdout
    );
    assert_eq!(shown.stderr, "");
    let shown = tulle.ok(&["backends", "draining"]);
    assert!(shown.stdout.contains("default/old"), "{}", shown.stdout);
    assert_eq!(
        tulle.ok(&["overlay"]).stdout,
        "\
This node: VTEP 02:00:00:00:00:01 at 192.168.0.1, flannel.1: VNI 1, UDP port 8472, MTU 1,450

POD NETWORK    NODE  ADDRESS      VTEP MAC           NEXT HOP  INTERFACE
10.244.1.0/24  n2    192.168.0.2  02:00:00:00:00:02  direct    lo

Overlay packets are accepted from
NODE  ADDRESS      VTEP MAC
n2    192.168.0.2  02:00:00:00:00:02
"
    );
    let status = tulle.json(&["status"]);
    assert_eq!(status["agent"]["node"], "n1");
    let used = |name: &str| {
        let maps = status["maps"].as_array().unwrap();
        maps.iter().find(|map| map["name"] == name).unwrap()["used"].clone()
    };
    assert_eq!(
        [
            used("tulle_front_v4"),
            used("tulle_segments"),
            used("tulle_back_v4")
        ],
        [3.into(), 6.into(), Value::from(3)]
    );
    assert_eq!(
        [used("tulle_peers_v4"), used("tulle_counters")],
        [1.into(), Value::Null]
    );
    assert!(status["maps"][0]["memory_bytes"].as_u64().unwrap() > 0);
    let text = tulle.ok(&["status"]).stdout;
    assert!(
        text.contains("warning  web.yaml: Service default/web: spec.ports\n"),
        "{text}"
    );
}

#[test]
fn flows_are_filtered_summed_up_and_flushed() {
    let pins = Pins::new();
    fill_flows(&pins, 9_000, now_tick());
    let tulle = Tulle::new(&pins.dir);
    let json = tulle.json(&["flows"]);
    assert_eq!(
        json["matching"], 9_000,
        "every flow once, both rows together"
    );
    assert_eq!(json["flows"].as_array().unwrap().len(), 9_000);
    assert!(
        json["flows"]
            .as_array()
            .unwrap()
            .iter()
            .all(|flow| flow["rows"] == "both")
    );
    assert_eq!(json["flows"][0]["frontend"], "10.96.0.10:80");
    assert_eq!(
        tulle.json(&["flows", "--addr", "10.0.3.0/24"])["matching"],
        256
    );
    assert_eq!(
        tulle.json(&["flows", "--state", "established"])["matching"],
        4
    );
    assert_eq!(tulle.json(&["flows", "--port", "81"])["matching"], 0);
    assert_eq!(tulle.json(&["flows", "--proto", "udp"])["matching"], 0);
    let shown = tulle.ok(&["flows"]);
    assert_eq!(shown.stdout.lines().count(), 101);
    assert!(
        shown.stderr.contains("the latest 100 of 9,000 flows"),
        "{}",
        shown.stderr
    );
    let summary = tulle.json(&["flows", "--summary"]);
    assert_eq!(summary["services"][0]["opening"], 8_996);
    assert_eq!(summary["tables"][0]["used"], 18_000);

    let refused = tulle.run(&["flows", "flush", "--addr", "10.0.3.0/24"]);
    assert!(!refused.ok);
    assert_eq!(
        refused.stderr,
        "tulle: 256 flows would be forgotten; add --yes to do it\n"
    );
    assert_eq!(tulle.json(&["flows"])["matching"], 9_000);
    let flushed = tulle.ok(&["flows", "flush", "--addr", "10.0.3.0/24", "--yes"]);
    assert_eq!(
        flushed.stdout,
        "256 flows forgotten (256 rows removed, 256 closing)\n"
    );
    assert_eq!(flushed.stderr, "");
    let left = tulle.json(&["flows", "--addr", "10.0.3.0/24"]);
    assert_eq!(left["matching"], 256, "what still comes back is translated");
    assert!(left["flows"].as_array().unwrap().iter().all(|flow| {
        flow["state"] == "closing"
            && flow["rows"] == "reply"
            && flow["idle_secs"].as_u64() < Some(5)
    }));
}

#[test]
fn losses_come_with_the_next_step() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    assert_eq!(tulle.ok(&["drops"]).stdout, "nothing lost\n");
    let mut counters = pins.per_cpu::<Counter>(maps::COUNTERS);
    let mut count = |hook, reason, packets| {
        let cpus = aya::util::nr_cpus().unwrap();
        let mut values = vec![Counter::default(); cpus];
        values[0] = Counter {
            packets,
            bytes: packets * 100,
        };
        values[cpus - 1].packets += 1;
        let values = PerCpuValues::try_from(values).unwrap();
        counters
            .set(counter_index(hook, reason), values, 0)
            .unwrap();
    };
    count(Hook::PodFrom, Reason::NoEndpoints, 1_999);
    count(Hook::NicIn, Reason::UnknownNode, 4);
    count(Hook::Xdp, Reason::UnknownNode, 2);
    count(Hook::PodFrom, Reason::Encapsulated, 9);
    let text = tulle.ok(&["drops"]).stdout;
    assert!(
        text.starts_with(
            "\
REASON        OUTCOME  PACKETS      BYTES  pod_from  nic_in  xdp
no_endpoints  refused    2,000  195.2 KiB     2,000       -    -
unknown_node  dropped        8      600 B         -       5    3

no_endpoints
  the service has no usable endpoint; answered with a TCP reset or port unreachable
  → Check the service's endpoints:"
        ),
        "{text}"
    );
    assert_eq!(
        tulle.json(&["drops", "--all"])["reasons"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    let status = tulle.json(&["status"]);
    assert_eq!(status["packets"][0]["refused"], 2_000);
    assert_eq!(status["packets"][0]["forwarded"], 10);
    assert_eq!(status["agent"], Value::Null);
}

#[test]
fn attachments_are_told_by_their_pins() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    assert_eq!(tulle.json(&["status"])["links"], Value::Array(Vec::new()));
    let namespace = pins.attach("tulle_pod_from-1");
    fs::create_dir(pins.dir.join("links/filter-tulle_pod_to-1")).unwrap();
    fs::create_dir(pins.dir.join("links/clsact-1")).unwrap();
    let text = tulle.ok(&["status"]).stdout;
    let expected = "\
PROGRAM       INTERFACE  ATTACHED BY
tulle_pod_to  lo         clsact
tulle_test    lo         tcx ingress
";
    assert!(text.contains(expected), "{text}");
    drop(namespace);
    let deadline = Instant::now() + Duration::from_secs(30);
    while tulle.json(&["status"])["links"][0]["program"] != "tulle_test"
        || !tulle.json(&["status"])["links"][0]["ifindex"].is_null()
    {
        assert!(
            Instant::now() < deadline,
            "the namespace is gone, the link still names a device"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

fn wait_for_lease(pins: &Pins, watcher: &mut Child) -> MonitorControl {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let lease = pins
            .array::<MonitorControl>(maps::MONITOR)
            .get(&0, 0)
            .unwrap();
        if lease != MonitorControl::default() {
            return lease;
        }
        assert!(
            watcher.try_wait().unwrap().is_none(),
            "the watcher ended early"
        );
        assert!(Instant::now() < deadline, "no lease");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_monitor_watches_until_it_has_seen_enough() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    let now = || tulle_cli::format::monotonic_nanos().unwrap();
    pins.emit(&event(now(), Reason::Truncated)); // left by a watcher before
    let mut command = tulle.command(&["-o", "json", "monitor", "--drops", "--count", "2"]);
    let mut watcher = command.stdout(Stdio::piped()).spawn().unwrap();
    let lease = wait_for_lease(&pins, &mut watcher);
    assert!(lease.drops_until > now_tick(), "{lease:?}");
    assert_eq!((lease.flows_until, lease.traces_until), (0, 0));

    let second = tulle.run(&["monitor"]);
    assert!(!second.ok);
    assert!(
        second.stderr.contains("another `tulle monitor` watches"),
        "{}",
        second.stderr
    );

    pins.emit(&event(now(), Reason::NoEndpoints));
    let mut opened = event(now(), Reason::Encapsulated);
    opened.kind = EventKind::FlowOpened as u8; // not asked for
    pins.emit(&opened);
    pins.emit(&event(now(), Reason::BackendGone));
    let lines: Vec<Value> = BufReader::new(watcher.stdout.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert!(watcher.wait().unwrap().success());
    let reasons: Vec<_> = lines.iter().map(|line| line["reason"].clone()).collect();
    assert_eq!(reasons, ["no_endpoints", "backend_gone"]);
    assert_eq!(lines[0]["destination"], "10.96.0.10:80");
    let lease = pins
        .array::<MonitorControl>(maps::MONITOR)
        .get(&0, 0)
        .unwrap();
    assert_eq!(lease, MonitorControl::default(), "the lease is given back");
}

#[test]
fn ctrl_c_ends_a_monitor_and_its_lease() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    let mut watcher = tulle
        .command(&["monitor"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let first = wait_for_lease(&pins, &mut watcher);
    assert!(first.drops_until > 0 && first.flows_until > 0 && first.traces_until == 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    let lease = || {
        pins.array::<MonitorControl>(maps::MONITOR)
            .get(&0, 0)
            .unwrap()
    };
    while lease().drops_until <= first.drops_until {
        assert!(Instant::now() < deadline, "the lease is not renewed");
        thread::sleep(Duration::from_millis(20));
    }
    let pid = nix::unistd::Pid::from_raw(watcher.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert!(watcher.wait().unwrap().success());
    assert_eq!(lease(), MonitorControl::default());
}

#[test]
fn what_cannot_be_read_is_named() {
    let pins = Pins::empty();
    let tulle = Tulle::new(&pins.dir);
    let dir = pins.dir.display();
    let missing = format!(
        "tulle: no datapath under {dir}: is tulle-agent running? it pins its maps there; another \
         directory: --bpffs DIR\n"
    );
    for verb in [
        "status", "services", "backends", "flows", "snat", "affinity", "overlay", "drops",
        "monitor",
    ] {
        let run = tulle.run(&[verb]);
        assert!(!run.ok, "{verb}");
        assert_eq!(run.stderr, missing, "{verb}");
    }

    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    pins.replace(maps::FRONT_V4, (8, 24));
    let run = tulle.run(&["services"]);
    assert!(!run.ok);
    assert_eq!(
        run.stderr,
        "tulle: map tulle_front_v4 has keys of 8 and values of 24 bytes, this program knows keys \
         of 8 and values of 32: use agent and tulle of one release\n"
    );
    let status = tulle.ok(&["status"]).stdout;
    assert!(
        status.contains("fault  map tulle_front_v4 has keys of 8"),
        "{status}"
    );
    assert!(
        status.contains("tulle_front_v6"),
        "the other maps are shown: {status}"
    );
}

#[test]
fn without_rights_it_says_how_to_get_them() {
    let pins = Pins::new();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("tulle");
    fs::copy(env!("CARGO_BIN_EXE_tulle"), &copy).unwrap();
    for verb in ["services", "status"] {
        let run = Command::new(&copy)
            .args([verb, "--bpffs"])
            .arg(&pins.dir)
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        assert_eq!(run.status.code(), Some(1), "{verb}");
        let error = String::from_utf8(run.stderr).unwrap();
        let told = error.matches("needs root; run it with sudo").count();
        assert_eq!(told, 1, "{verb}: {error}");
    }
}
