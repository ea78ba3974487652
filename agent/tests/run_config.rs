//! Configuration files: a real agent that reads them, and takes a changed one up. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use run_support::ask::get_path;
use run_support::{BINARY, LIMIT, World, addresses};
use serde_json::Value;
use testkit::echo::{EchoServer, LongConnection};
use testkit::manifests::{Protocol, Service};
use testkit::{ClusterBuilder, wait};

const HEAD: &str = "apiVersion: tulle.io/v1alpha1\nkind: AgentConfiguration\n";

/// As `kubeadm init` writes it, with what an administrator set.
const KUBE_PROXY: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
clusterCIDR: 10.244.0.0/16
clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0, burst: 0}
conntrack: {maxPerCore: 65536, min: null}
healthzBindAddress: 0.0.0.0:10300
metricsBindAddress: 127.0.0.1:10301
ipvs: {scheduler: rr, strictARP: true}
mode: ipvs
nodePortAddresses: null
winkernel: {enableDSR: false}
";

fn idle(label: &str, text: &str) -> (World, PathBuf) {
    let mut world = World::idle_of(ClusterBuilder::unique(label).nodes(1).pods_per_node(2));
    let file = world.cluster.directory().join("agent-config.yaml");
    std::fs::write(&file, text).unwrap();
    world.options = world.options.args(&["--config", file.to_str().unwrap()]);
    (world, file)
}

/// What `/configz` says of an option: its values, and where they are from.
fn told(world: &World, port: u16, option: &str) -> Option<(String, String)> {
    let ns = world.cluster.nodes()[0].ns();
    let answer = get_path(ns, (Ipv4Addr::LOCALHOST, port).into(), "/configz").ok()?;
    let all: Value = serde_json::from_str(&answer.body).unwrap();
    let setting = &all["tulle-agent"][option];
    let values = setting["values"].as_array().unwrap();
    let values: Vec<&str> = values.iter().map(|value| value.as_str().unwrap()).collect();
    Some((
        values.join(","),
        setting["from"].as_str().unwrap().to_owned(),
    ))
}

fn wait_told(world: &World, option: &str, value: &str) {
    wait::until(&format!("--{option} to be {value}"), LIMIT, || {
        let now = told(world, 10_249, option);
        Ok(now.filter(|(values, _)| values == value).map(drop))
    })
    .unwrap();
}

fn logged(world: &World, text: &str) -> usize {
    world.agents[0].log().unwrap().matches(text).count()
}

fn wait_logged(world: &World, text: &str, times: usize) {
    let poll = || Ok((logged(world, text) == times).then_some(()));
    wait::until(&format!("the log to say {text:?}"), LIMIT, poll).unwrap();
}

#[test]
fn kp146_a_changed_file_is_taken_up_and_a_wrong_one_is_not() {
    let (mut world, file) = idle("config", &format!("{HEAD}gcInterval: 7\n"));
    world.start_agents();
    let (values, from) = told(&world, 10_249, "gc-interval").unwrap();
    assert_eq!(values, "7");
    assert_eq!(from, format!("{}:3: gcInterval", file.display()));
    let pods: Vec<_> = world.cluster.pods().collect();
    let _echo = EchoServer::start(pods[1].1.ns(), pods[1].1.name(), 7).unwrap();
    let web = Service::dual_stack("echo", 10)
        .port(Protocol::Tcp, 7, 7)
        .endpoints(world.cluster.pods().skip(1));
    world.write(&web);
    let every = Duration::from_millis(5);
    let to = addresses(&web)[0];
    let session = LongConnection::start(pods[0].1.ns(), to, every).unwrap();
    let pid = world.agents[0].pid();

    std::fs::write(&file, format!("{HEAD}gcInterval: 0\nnothing: 1\n")).unwrap();
    wait_logged(&world, "gcInterval: \"0\"", 1);
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(logged(&world, "stays in force"), 1, "it is told once");
    assert_eq!(told(&world, 10_249, "gc-interval").unwrap().0, "7");

    // The same in other words: nothing to begin anew for.
    std::fs::write(&file, format!("# better\n{HEAD}gcInterval: '7'\n")).unwrap();
    wait_logged(&world, "can be read again", 1);
    std::fs::remove_file(&file).unwrap();
    wait_logged(&world, "stays in force", 2);
    std::fs::write(&file, format!("{HEAD}gcInterval: 7\nscheduler: rr\n")).unwrap();
    wait_told(&world, "scheduler", "rr");
    let begun = "begins anew, for its configuration changed: --scheduler is rr";
    assert_eq!(logged(&world, begun), 1);
    assert_eq!(logged(&world, "begins anew"), 1);
    assert_eq!(world.agents[0].pid(), pid, "it is the same process");
    world.agents[0].wait_ready(LIMIT).unwrap();

    // What could not be served is not tried.
    let uplink = format!("{HEAD}gcInterval: 7\nscheduler: rr\nlog: 'info,=x'\n");
    std::fs::write(&file, uplink).unwrap();
    wait_logged(&world, "neither a level nor a list of directives", 1);
    assert_eq!(logged(&world, "begins anew"), 1);

    // It follows objects, and the file, as before.
    let late = Service::dual_stack("late", 11)
        .port(Protocol::Tcp, 80, 8080)
        .endpoints(world.cluster.pods());
    world.write(&late);
    std::fs::write(&file, format!("{HEAD}gcInterval: 8\n")).unwrap();
    wait_told(&world, "gc-interval", "8");
    let echoes = session.report().echoes;
    wait::until("the connection to go on", LIMIT, || {
        let report = session.report();
        assert_eq!(report.broken, None);
        Ok((report.echoes > echoes + 20).then_some(()))
    })
    .unwrap();
}

#[test]
fn kp146_a_program_that_was_replaced_meanwhile_takes_over() {
    let (mut world, file) = idle("replaced", &format!("{HEAD}gcInterval: 7\n"));
    let own = world.cluster.directory().join("tulle-agent");
    std::fs::copy(BINARY, &own).unwrap();
    world.options.binary.clone_from(&own);
    world.start_agents();
    let new = world.cluster.directory().join("new");
    std::fs::copy(BINARY, &new).unwrap();
    std::fs::rename(&new, &own).unwrap();
    std::fs::write(&file, format!("{HEAD}gcInterval: 8\n")).unwrap();
    wait_told(&world, "gc-interval", "8");
    let of_new = std::fs::metadata(&own).unwrap();
    let running = format!("/proc/{}/exe", world.agents[0].pid().unwrap());
    let running = std::fs::metadata(running).unwrap();
    assert_eq!(running.ino(), of_new.ino());
    // And one that is gone goes on.
    std::fs::remove_file(&own).unwrap();
    std::fs::write(&file, format!("{HEAD}gcInterval: 9\n")).unwrap();
    wait_told(&world, "gc-interval", "9");
    // A signal ends it as before.
    assert!(world.agents[0].terminate(LIMIT).unwrap().success());
}

#[test]
fn a_mounted_config_map_is_followed() {
    let (mut world, file) = idle("configmap", "");
    // As the kubelet mounts it: the file is a link through `..data`, which is swapped.
    let volume = world.cluster.directory().join("volume");
    let version = |name: &str, text: &str| {
        let dir = volume.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("agent.yaml"), format!("{HEAD}{text}")).unwrap();
        let new = volume.join("..new");
        std::os::unix::fs::symlink(name, &new).unwrap();
        std::fs::rename(new, volume.join("..data")).unwrap();
    };
    version("..1", "gcInterval: 5\n");
    let mounted = volume.join("agent.yaml");
    std::os::unix::fs::symlink("..data/agent.yaml", &mounted).unwrap();
    std::fs::remove_file(file).unwrap();
    world.options.args.pop();
    world.options = world.options.args(&[mounted.to_str().unwrap()]);
    world.start_agents();
    wait_told(&world, "gc-interval", "5");
    version("..2", "gcInterval: 6\n");
    wait_told(&world, "gc-interval", "6");
}

#[test]
fn kube_proxy_s_file_and_flags_serve_a_node() {
    let (mut world, file) = idle("proxyconfig", KUBE_PROXY);
    let flags = [
        "--cluster-cidr=10.244.0.0/16",
        "--ipvs-sync-period",
        "30s",
        "-v",
        "2",
    ];
    world.options = world.options.args(&flags);
    world.start_agents();
    let of = |option: &str| told(&world, 10_301, option).unwrap();
    assert_eq!(of("scheduler").0, "rr");
    assert_eq!(
        of("scheduler").1,
        format!("{}:9: ipvs.scheduler", file.display())
    );
    assert_eq!(of("log"), ("info".to_owned(), "--v".to_owned()));
    let period = ("30s".to_owned(), "--ipvs-sync-period".to_owned());
    assert_eq!(of("sync-period"), period);
    let ns = world.cluster.nodes()[0].ns();
    let health = get_path(ns, (Ipv4Addr::LOCALHOST, 10_300).into(), "/livez").unwrap();
    assert_eq!(health.status, 200);
    for once in [
        "--cluster-cidr means nothing here: ",
        ":4: clusterCIDR means nothing here: ",
        ":6: conntrack.maxPerCore means nothing here: ",
        ":9: ipvs.strictARP means nothing here: ",
        ":1: nodePortAddresses is not set: ",
    ] {
        assert_eq!(logged(&world, once), 1, "{once}");
    }
}

fn show(words: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.env_clear().args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn written(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn kube_proxy_s_file_becomes_tulle_s() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = written(dir.path(), "config.conf", KUBE_PROXY);
    let shown = show(&["config", "show", "--config", &theirs]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    assert_eq!(
        text(&shown.stdout),
        format!(
            "{HEAD}scheduler: rr\nhealthAddress: 0.0.0.0:10300\nmetricsAddress: 127.0.0.1:10301\n"
        )
    );
    assert_eq!(
        text(&shown.stderr).lines().count(),
        6,
        "{}",
        text(&shown.stderr)
    );
    let own = written(dir.path(), "own.yaml", &text(&shown.stdout));
    let again = show(&["config", "show", "--config", &own]);
    assert_eq!(
        (text(&again.stdout), text(&again.stderr)),
        (text(&shown.stdout), String::new())
    );

    let bad = written(dir.path(), "bad.yaml", &format!("{HEAD}vnii: 1\nvni: x\n"));
    for verb in [&["run"][..], &["config", "show"], &["cleanup"]] {
        let line = [verb, &["--config", &bad]].concat();
        let refused = show(&line);
        assert_eq!(refused.status.code(), Some(2));
        let said = text(&refused.stderr);
        assert!(
            said.contains(&format!("{bad}:3: vnii: there is no such field")),
            "{said}"
        );
        assert!(said.contains(&format!("{bad}:4: vni: \"x\": ")), "{said}");
    }
    let schema: Value = serde_json::from_slice(&show(&["config", "schema"]).stdout).unwrap();
    assert_eq!(schema["properties"]["vni"]["default"], 1);
}
