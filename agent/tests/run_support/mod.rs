//! A cluster of test hosts with a real agent on each node.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod ask;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use aya::maps::{Map, MapData, PerCpuArray};
use datapath_common::{Counter, Hook, PARTS, Reason, counter_index, maps};
use testkit::agent::{Agent, AgentOptions};
use testkit::http::HttpServer;
use testkit::manifests::{Protocol, Service, StateDir};
use testkit::{Cluster, ClusterBuilder, Node};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_tulle-agent");
/// For everything that has to happen soon; the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(30);
/// For a first start, in which the kernel verifies every program, on both nodes at once.
pub const START: Duration = Duration::from_mins(2);

/// Two nodes of two pods, each pod with an HTTP server, each node with an agent.
pub struct World {
    pub agents: Vec<Agent>,
    pub servers: Vec<HttpServer>,
    pub state: StateDir,
    pub options: AgentOptions,
    pub cluster: Cluster,
}

impl World {
    /// Hosts, servers and Nodes; no agent runs.
    pub fn idle(label: &str) -> Self {
        Self::idle_of(ClusterBuilder::unique(label))
    }

    pub fn idle_of(builder: ClusterBuilder) -> Self {
        let cluster = builder.build().unwrap();
        let state = StateDir::create(cluster.directory().join("state")).unwrap();
        state.write_nodes(&cluster).unwrap();
        let servers = cluster
            .pods()
            .map(|(_, pod)| HttpServer::start(pod.ns(), pod.name(), 8080).unwrap())
            .collect();
        Self {
            agents: Vec::new(),
            servers,
            options: AgentOptions::new(BINARY, state.path()),
            state,
            cluster,
        }
    }

    /// The same with agents that are ready.
    pub fn start(label: &str, args: &[&str]) -> Self {
        let mut world = Self::idle(label);
        world.options = world.options.args(args);
        world.start_agents();
        world
    }

    pub fn start_agents(&mut self) {
        self.agents = self
            .cluster
            .nodes()
            .iter()
            .map(|node| Agent::start(node, &self.options).unwrap())
            .collect();
        for agent in &mut self.agents {
            agent.wait_ready(START).unwrap();
        }
    }

    /// A dual-stack service on port 80 with every pod as its backend.
    pub fn web(&self) -> Service {
        Service::dual_stack("web", 10)
            .port(Protocol::Tcp, 80, 8080)
            .endpoints(self.cluster.pods())
    }

    /// Writes a service and waits until every agent has applied it.
    pub fn write(&self, service: &Service) {
        let before = self.syncs();
        self.state.write_service(service).unwrap();
        self.wait_synced(&before);
    }

    pub fn syncs(&self) -> Vec<u64> {
        self.agents
            .iter()
            .map(|agent| agent.status().unwrap().syncs)
            .collect()
    }

    /// Waits until every agent has applied more than `before`.
    pub fn wait_synced(&self, before: &[u64]) {
        for (agent, before) in self.agents.iter().zip(before) {
            agent.wait_synced(*before, LIMIT).unwrap();
        }
    }
}

/// A service's addresses with its port.
pub fn addresses(service: &Service) -> Vec<SocketAddr> {
    let at = |ip: &IpAddr| SocketAddr::new(*ip, service.ports[0].port);
    service.ips.iter().map(at).collect()
}

/// Packets that a node's program has counted so far.
pub fn counted(node: &Node, hook: Hook, reason: Reason) -> u64 {
    let pin = node.bpffs().join(maps::COUNTERS);
    let map = Map::PerCpuArray(MapData::from_pin(pin).unwrap());
    let counters: PerCpuArray<_, Counter> = map.try_into().unwrap();
    let cpus = counters.get(&counter_index(hook, reason), 0).unwrap();
    cpus.iter().map(|cpu| cpu.packets).sum()
}

/// Ids of the pinned maps by name, as bpftool shows them, without the programs'
/// parts: each loading has its own.
pub fn map_ids(bpffs: &Path) -> BTreeMap<String, u64> {
    let mut ids = BTreeMap::new();
    for entry in std::fs::read_dir(bpffs).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("tulle_") && !name.starts_with(PARTS) {
            let map = aya::maps::MapInfo::from_pin(&path).unwrap();
            ids.insert(name, u64::from(map.id()));
        }
    }
    ids
}
