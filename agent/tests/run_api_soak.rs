//! Three nodes by kubeconfig, and an API server whose services change a thousand times a second for a
//! minute while connections to others run. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use run_support::{BINARY, START, addresses};
use serde_json::{Value, json};
use testkit::agent::{Agent, AgentOptions, Source};
use testkit::apiserver::ApiServer;
use testkit::cluster::Node;
use testkit::http::{HttpServer, Load, LoadOptions};
use testkit::manifests::{Protocol, Service, StateDir};
use testkit::{Cluster, ClusterBuilder, wait};
use tulle_cli::datapath::Datapath;
use tulle_cli::names::Names;
use tulle_cli::services::{Filter, Tables, rows};

/// Changes in all.
const CHANGES: usize = 60_000;
/// Changes in a second, if the machine can.
const RATE: usize = 1000;
/// Services that change.
const SERVICES: usize = 200;
/// For what has to happen after so many changes, also on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// A frontend with whatever decides where it leads, without numbers of rows.
type Meaning = BTreeMap<(SocketAddr, String), String>;

fn meaning(node: &Node) -> Meaning {
    let tables = Tables::read(&Datapath::open(&node.bpffs()).unwrap()).unwrap();
    let report = rows(&tables, &Names::default(), Filter::default());
    let backends = |all: &[tulle_cli::services::ServiceBackend]| {
        let mut all: Vec<_> = all.iter().map(|b| (b.address, b.slots)).collect();
        all.sort();
        format!("{all:?}")
    };
    let row = |row: &tulle_cli::services::ServiceRow| {
        let outside = row.outside.as_ref();
        let outside = outside.map(|o| (backends(&o.backends), o.when_empty));
        let said = (
            backends(&row.backends),
            row.when_empty,
            row.affinity_secs,
            outside,
        );
        ((row.frontend, row.protocol.clone()), format!("{said:?}"))
    };
    report.services.iter().map(row).collect()
}

/// Rows of frontends and backends.
fn sizes(node: &Node) -> (usize, usize) {
    let datapath = Datapath::open(&node.bpffs()).unwrap();
    let frontends = datapath.frontends().unwrap().len();
    (frontends, datapath.backends().unwrap().len())
}

struct Churn<'a> {
    server: &'a ApiServer,
    pods: Vec<String>,
    dice: u64,
}

impl Churn<'_> {
    /// A number below `end`: the same row of them in each run (xorshift).
    fn dice(&mut self, end: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice % end as u64) as usize
    }

    fn step(&mut self) {
        let n = self.dice(SERVICES);
        let name = format!("churn-{n}");
        match self.dice(8) {
            0 => drop(self.server.delete("Service", "soak", &name).unwrap()),
            1 => drop(self.server.delete("EndpointSlice", "soak", &name).unwrap()),
            2..5 => {
                let port = 80 + self.dice(3);
                let object = json!({"apiVersion": "v1", "kind": "Service",
                    "metadata": {"name": name, "namespace": "soak"},
                    "spec": {"clusterIP": format!("10.96.100.{n}"),
                        "clusterIPs": [format!("10.96.100.{n}")],
                        "sessionAffinity": if port == 82 { "ClientIP" } else { "None" },
                        "ports": [{"name": "p", "port": port}]}});
                self.server.apply(object).unwrap();
            }
            _ => {
                let count = self.dice(6);
                let endpoints: Vec<Value> = (0..count).map(|_| self.endpoint()).collect();
                let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": {"name": name, "namespace": "soak",
                        "labels": {"kubernetes.io/service-name": name}},
                    "addressType": "IPv4", "ports": [{"name": "p", "port": 8080}],
                    "endpoints": endpoints});
                self.server.apply(object).unwrap();
            }
        }
    }

    fn endpoint(&mut self) -> Value {
        let addr = if self.dice(2) == 0 {
            let at = self.dice(self.pods.len());
            self.pods[at].clone()
        } else {
            format!("10.244.{}.{}", self.dice(8), 100 + self.dice(100))
        };
        json!({"addresses": [addr], "conditions": {"ready": self.dice(8) != 0}})
    }
}

fn apply(server: &ApiServer, state: &StateDir) {
    for file in std::fs::read_dir(state.path()).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        server.apply_yaml(&text).unwrap();
    }
}

fn pods(cluster: &Cluster) -> Vec<String> {
    cluster
        .pods()
        .map(|(_, pod)| pod.ip4().to_string())
        .collect()
}

#[test]
fn a_thousand_changes_a_second_leave_connections_and_maps_alone() {
    let builder = ClusterBuilder::unique("soak").nodes(3);
    let cluster = builder.build().unwrap();
    let state = StateDir::create(cluster.directory().join("state")).unwrap();
    state.write_nodes(&cluster).unwrap();
    let _servers: Vec<HttpServer> = cluster
        .pods()
        .map(|(_, pod)| HttpServer::start(pod.ns(), pod.name(), 8080).unwrap())
        .collect();
    let web = Service::dual_stack("web", 10)
        .port(Protocol::Tcp, 80, 8080)
        .endpoints(cluster.pods());
    state.write_service(&web).unwrap();
    let server = ApiServer::for_cluster(&cluster).unwrap();
    apply(&server, &state);
    let kubeconfig = server.kubeconfig(&cluster.directory().join("api")).unwrap();
    let options = AgentOptions::of(BINARY, Source::Kubeconfig(kubeconfig.path));
    let nodes = cluster.nodes();
    let mut agents: Vec<Agent> = nodes
        .iter()
        .map(|node| Agent::start(node, &options).unwrap())
        .collect();
    for agent in &mut agents {
        agent.wait_ready(START).unwrap();
    }
    let base: Vec<_> = nodes.iter().map(sizes).collect();

    let steady = LoadOptions {
        pause: Duration::from_millis(10),
        timeout: Duration::from_secs(20),
        ..LoadOptions::steady(Duration::from_mins(20))
    };
    let load = |node: &Node| Load::start(node.pods()[0].ns(), &*addresses(&web), &steady).unwrap();
    let loads: Vec<Load> = nodes.iter().map(load).collect();
    let mut churn = Churn {
        server: &server,
        pods: pods(&cluster),
        dice: 0x5eed_1234_9876_abcd,
    };
    let began = Instant::now();
    for done in 0..CHANGES {
        let due = began + Duration::from_secs(1) * done as u32 / RATE as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        churn.step();
    }
    let rate = CHANGES as f64 / began.elapsed().as_secs_f64();
    println!("{CHANGES} changes, {rate:.0} in a second");

    // Every node comes to the same, and to what an agent makes of the objects that begins anew.
    let same = || {
        let all: Vec<Meaning> = nodes.iter().map(meaning).collect();
        Ok((all[0] == all[1] && all[1] == all[2]).then(|| all[0].clone()))
    };
    wait::until("agreement", PATIENCE, same).unwrap();
    let settled = |agents: &[Agent]| -> Vec<u64> {
        agents.iter().map(|a| a.status().unwrap().syncs).collect()
    };
    let mut before = settled(&agents);
    let quiet = || {
        std::thread::sleep(Duration::from_secs(1));
        let now = settled(&agents);
        let quiet = now == before;
        before = now;
        Ok(quiet.then_some(()))
    };
    wait::until("quiet", PATIENCE, quiet).unwrap();
    let after = meaning(&nodes[2]);
    for load in loads {
        let report = load.stop().unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        assert!(report.requests.len() > 100);
    }
    agents[2].kill().unwrap();
    let cleaned = agents[2].cleanup().unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    agents[2].spawn().unwrap();
    agents[2].wait_ready(START).unwrap();
    assert_eq!(meaning(&nodes[2]), after, "as a fresh compile");
    assert_eq!(meaning(&nodes[0]), after);

    for n in 0..SERVICES {
        let name = format!("churn-{n}");
        server.delete("Service", "soak", &name).unwrap();
        server.delete("EndpointSlice", "soak", &name).unwrap();
    }
    let gone = || {
        let now: Vec<_> = nodes.iter().map(sizes).collect();
        Ok((now == base).then_some(()))
    };
    let left = wait::until("end of every row", PATIENCE, gone);
    let now: Vec<_> = nodes.iter().map(sizes).collect();
    left.unwrap_or_else(|error| panic!("{error}: {now:?}, not {base:?}"));
}
