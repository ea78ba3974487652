//! The two clusters: one that agents carry, and one set up by hand as flannel
//! and kube-proxy do it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use datapath_common::{Counter, Hook, Reason, counter_index, maps};
use testkit::agent::{Agent, AgentOptions};
use testkit::manifests::{Protocol, Service, StateDir};
use testkit::ping::ping;
use testkit::{Cluster, ClusterBuilder, NetNs, link, wait};

use crate::bench::traffic::{TCP_ECHO, TCP_SINK, UDP_ECHO};

/// How long an agent or a first packet may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// The service's address.
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// flannel's device.
const FLANNEL: &str = "flannel.1";

/// Where requests go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// To the pod's own address.
    Pod,
    /// To a service of which it is the only endpoint.
    ClusterIp,
}

impl Target {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod's address",
            Self::ClusterIp => "ClusterIP",
        }
    }
}

/// A cluster of two nodes with a pod each: the first pod is the client, the
/// second the server.
pub struct Side {
    kernel: bool,
    // The agents end before the cluster that they run in.
    _agents: Vec<Agent>,
    cluster: Cluster,
}

impl Side {
    /// With a real agent on each node.
    pub fn tulle(binary: &Path) -> Result<Self> {
        let cluster = cluster("benchtulle")?;
        let state = StateDir::create(cluster.directory().join("state"))?;
        state.write_nodes(&cluster)?;
        let server = cluster.nodes().get(1).context("no second node")?;
        let pods = server.pods().iter().map(|pod| (server, pod));
        let mut service = Service::new("bench", &[CLUSTER_IP.into()]).endpoints(pods);
        for (protocol, port) in [
            (Protocol::Tcp, TCP_ECHO),
            (Protocol::Tcp, TCP_SINK),
            (Protocol::Udp, UDP_ECHO),
        ] {
            service = service.port(protocol, port, port);
        }
        state.write_service(&service)?;
        let options = AgentOptions::new(binary, state.path());
        let mut agents = Vec::new();
        for node in cluster.nodes() {
            agents.push(Agent::start(node, &options)?);
        }
        for agent in &mut agents {
            agent.wait_ready(LIMIT)?;
        }
        Ok(Self {
            kernel: false,
            _agents: agents,
            cluster,
        })
    }

    /// With a VXLAN device, routes, neighbours and forwarding entries as
    /// flannel sets them up.
    pub fn kernel() -> Result<Self> {
        let cluster = cluster("benchkernel")?;
        for node in cluster.nodes() {
            let (index, ip4) = (node.index(), node.ip4());
            link::sysctls(node.ns(), &[("net.ipv4.ip_forward", "1")])?;
            let mut lines = vec![
                format!(
                    "link add {FLANNEL} address {} mtu {} type vxlan id 1 local {ip4} dev eth0 \
                     dstport 8472 nolearning",
                    vtep(index),
                    cluster.pod_mtu()
                ),
                format!("addr add 10.244.{index}.0/32 dev {FLANNEL}"),
                format!("link set {FLANNEL} up"),
            ];
            for other in cluster.nodes().iter().filter(|o| o.index() != index) {
                let there = other.index();
                let mac = vtep(there);
                lines.push(format!(
                    "route add 10.244.{there}.0/24 via 10.244.{there}.0 dev {FLANNEL} onlink"
                ));
                lines.push(format!(
                    "neigh add 10.244.{there}.0 lladdr {mac} dev {FLANNEL} nud permanent"
                ));
            }
            link::batch(node.ns(), &lines)?;
            for other in cluster.nodes().iter().filter(|o| o.index() != index) {
                let (mac, dst) = (vtep(other.index()), other.ip4().to_string());
                let add = ["fdb", "add", &mac, "dev", FLANNEL, "dst", &dst, "self"];
                link::run_in(node.ns(), "bridge", &add)?;
            }
        }
        Ok(Self {
            kernel: true,
            _agents: Vec::new(),
            cluster,
        })
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        if self.kernel { "kernel VXLAN" } else { "Tulle" }
    }

    /// Whether it is the one to compare with.
    pub fn is_kernel(&self) -> bool {
        self.kernel
    }

    /// Makes `target` reachable, and waits until the server's pod is.
    pub fn prepare(&self, target: Target) -> Result<()> {
        if self.kernel && target == Target::ClusterIp {
            // What kube-proxy's rules come to for a service with one endpoint.
            let (node, server) = (&self.cluster.nodes()[0], self.server_ip()?);
            let rules = format!(
                "add table ip bench; \
                 add chain ip bench services {{ type nat hook prerouting priority -100; }}; \
                 add rule ip bench services ip daddr {CLUSTER_IP} meta l4proto {{ tcp, udp }} \
                 dnat to {server}"
            );
            link::run_in(node.ns(), "nft", &[&rules])?;
        }
        let (client, server) = (self.client()?, self.server_ip()?);
        let reached = || Ok(ping(client, server, 56, Duration::from_secs(1)).ok());
        wait::until("pod of the other node", LIMIT, reached)?;
        Ok(())
    }

    /// The client's namespace.
    pub fn client(&self) -> Result<&NetNs> {
        self.pod_ns(0)
    }

    /// The server's namespace.
    pub fn server(&self) -> Result<&NetNs> {
        self.pod_ns(1)
    }

    /// The address that the client asks.
    pub fn address(&self, target: Target) -> Result<IpAddr> {
        match target {
            Target::Pod => self.server_ip(),
            Target::ClusterIp => Ok(CLUSTER_IP.into()),
        }
    }

    /// Packets that the client's node has sent through its overlay.
    pub fn sent(&self) -> Result<u64> {
        let node = self.cluster.nodes().first().context("no node")?;
        if self.kernel {
            let links = link::ip_json(node.ns(), &["-s", "link", "show", FLANNEL])?;
            let packets = links.pointer("/0/stats64/tx/packets");
            return packets
                .and_then(serde_json::Value::as_u64)
                .with_context(|| format!("{FLANNEL} has no statistics"));
        }
        let pin = node.bpffs().join(maps::COUNTERS);
        let map = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let counters: PerCpuArray<_, Counter> = PerCpuArray::try_from(Map::PerCpuArray(map))?;
        let row = counter_index(Hook::PodFrom, Reason::Encapsulated);
        let each = counters.get(&row, 0)?;
        Ok(each.iter().map(|counter| counter.packets).sum())
    }

    fn server_ip(&self) -> Result<IpAddr> {
        let node = self.cluster.nodes().get(1).context("no second node")?;
        let pod = node.pods().first().context("no pod")?;
        Ok(pod.ip4().into())
    }

    fn pod_ns(&self, node: usize) -> Result<&NetNs> {
        let node = self.cluster.nodes().get(node).context("no such node")?;
        Ok(node.pods().first().context("no pod")?.ns())
    }
}

fn cluster(label: &str) -> Result<Cluster> {
    let cluster = ClusterBuilder::unique(label)
        .nodes(2)
        .pods_per_node(1)
        .build()?;
    ensure!(cluster.nodes().len() == 2, "the cluster has not two nodes");
    Ok(cluster)
}

/// A VTEP's address on the kernel's side.
fn vtep(node: u8) -> String {
    format!("0e:00:00:00:00:{node:02x}")
}
