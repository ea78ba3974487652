//! The nodes: each a cluster of its own with one node, a server's pod and
//! clients' on it and a host outside.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap as BpfHash, Map, MapData, PerCpuArray};
use datapath_common::{
    Counter, Frontend, FrontendKey, Hook, Ip4, Reason, Scope, counter_index, maps,
};
use testkit::agent::{Agent, AgentOptions};
use testkit::manifests::{Endpoint, StateDir};
use testkit::ping::ping;
use testkit::{Cluster, ClusterBuilder, NetNs, link, wait};

use super::catalog::{self, CLUSTER_IP, NODE_PORTS, PORT, Proto};
use super::iptables::Backend;
use super::ways::{Front, Way};
use super::{iptables, ipvs, nftables};
use crate::bench::report::counted;
use crate::bench::traffic::{Ends, Kind};

/// How long an agent or a first packet may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// How long the agent may take for all services.
const LOADED: Duration = Duration::from_mins(4);
/// Services that are loaded into nftables in one transaction.
const TRANSACTION: usize = 10_000;

/// What serves a node.
enum Carrier {
    /// An agent, and its directory of manifests.
    Tulle { agent: Box<Agent>, state: StateDir },
    /// The kernel, without any rules.
    Nobody,
    /// kube-proxy's rules in nftables.
    Nftables,
    /// kube-proxy's rules in iptables.
    Iptables(Backend),
    /// kube-proxy's virtual servers.
    Ipvs,
}

impl Carrier {
    fn name(&self) -> &'static str {
        match self {
            Self::Tulle { .. } => "Tulle's agent",
            Self::Nobody => "nobody",
            Self::Nftables => "nft",
            Self::Iptables(backend) => backend.restore(),
            Self::Ipvs => "ipvsadm",
        }
    }
}

/// A node with what is on it.
pub struct Site {
    // The agent ends before the cluster that it runs in.
    carrier: Carrier,
    /// Services that are there.
    services: usize,
    /// The pods, outside of the node's cgroup: their sockets are left alone. The
    /// first is the server's, the others are clients'.
    pods: Vec<NetNs>,
    cluster: Cluster,
}

/// All of them.
pub struct Sites {
    tulle: Site,
    plain: Site,
    nftables: Site,
    iptables: Site,
    /// Where the kernel has it.
    ipvs: Option<Site>,
}

impl Sites {
    /// Builds them, without services.
    pub fn build(agent: &Path) -> Result<Self> {
        Ok(Self {
            tulle: Site::tulle(agent)?,
            plain: Site::build("svcplain", |_| Ok(Carrier::Nobody))?,
            nftables: Site::build("svcnft", |cluster| {
                let node = cluster.nodes().first().context("no node")?;
                load(node.ns(), "nft", &["-f", "-"], &nftables::base(node.ip4()))?;
                Ok(Carrier::Nftables)
            })?,
            iptables: Site::build("svcipt", |cluster| {
                let node = cluster.nodes().first().context("no node")?;
                Ok(Carrier::Iptables(Backend::probe(node.ns())))
            })?,
            ipvs: Site::ipvs()?,
        })
    }

    /// Has as many services on each node; there are never fewer than before.
    pub fn grow(&mut self, services: usize) -> Result<()> {
        let all = [&mut self.tulle, &mut self.nftables, &mut self.iptables];
        for site in all.into_iter().chain(&mut self.ipvs) {
            let start = Instant::now();
            site.grow(services)?;
            eprintln!(
                "{} by {} after {:.1} s",
                counted(services as u32),
                site.carrier.name(),
                start.elapsed().as_secs_f64()
            );
        }
        Ok(())
    }

    /// Where a way leads through, if it can be gone here.
    pub fn of(&self, way: Way) -> Option<&Site> {
        match way {
            Way::TulleDirect | Way::TullePackets | Way::TulleSockets => Some(&self.tulle),
            Way::KernelDirect => Some(&self.plain),
            Way::Nftables => Some(&self.nftables),
            Way::Iptables => Some(&self.iptables),
            Way::Ipvs => self.ipvs.as_ref(),
        }
    }

    /// The program that iptables' rules were loaded with.
    pub fn iptables_program(&self) -> &'static str {
        match self.iptables.carrier {
            Carrier::Iptables(backend) => backend.program(),
            _ => "none",
        }
    }
}

impl Site {
    fn build(label: &str, carrier: impl FnOnce(&Cluster) -> Result<Carrier>) -> Result<Self> {
        let cluster = ClusterBuilder::unique(label)
            .nodes(1)
            .pods_per_node(2)
            .ipv6(false);
        Self::with(cluster, carrier)
    }

    /// With IPVS, if the kernel has it.
    fn ipvs() -> Result<Option<Self>> {
        let probe = NetNs::new("ipvs")?;
        if !ipvs::is_there(&probe) {
            return Ok(None);
        }
        let site = Self::build("svcipvs", |cluster| {
            let ns = cluster.nodes().first().context("no node")?.ns();
            link::sysctls(ns, &ipvs::SYSCTLS)?;
            link::ip(ns, &["link", "add", ipvs::DEVICE, "type", "dummy"])?;
            load(ns, "ipset", &["restore"], ipvs::SETS)?;
            load(ns, Backend::probe(ns).restore(), &[], &ipvs::rules())?;
            Ok(Carrier::Ipvs)
        })?;
        Ok(Some(site))
    }

    fn tulle(binary: &Path) -> Result<Self> {
        // A client for each way: a port that went to the service with one pod's
        // address is not to be met by a flow straight to the server.
        let cluster = ClusterBuilder::unique("svctulle")
            .nodes(1)
            .pods_per_node(4)
            .ipv6(false)
            .cgroups();
        Self::with(cluster, |cluster| {
            let state = StateDir::create(cluster.directory().join("state"))?;
            state.write_nodes(cluster)?;
            // Frontends: two rows for each service. Flows: two rows for each, for as
            // many as the kernel's connection tracking takes.
            let tracked = link::read_sysctl(cluster.switch(), "net.netfilter.nf_conntrack_max")?;
            let tracked: u32 = tracked.parse().context("read nf_conntrack_max")?;
            let flows = tracked.saturating_mul(2).to_string();
            let options = AgentOptions::new(binary, state.path()).args(&[
                "--max-frontends",
                "131072",
                "--max-flows",
                &flows,
            ]);
            let node = cluster.nodes().first().context("no node")?;
            let mut agent = Agent::start(node, &options)?;
            agent.wait_ready(LIMIT)?;
            let agent = Box::new(agent);
            Ok(Carrier::Tulle { agent, state })
        })
    }

    fn with(
        cluster: ClusterBuilder,
        carrier: impl FnOnce(&Cluster) -> Result<Carrier>,
    ) -> Result<Self> {
        let mut cluster = cluster.build()?;
        cluster.add_outsider("outside")?;
        let node = cluster.nodes().first().context("no node")?;
        ensure!(node.pods().len() > 1, "the node has no client's pod");
        link::sysctl(node.ns(), "net.ipv4.ip_forward", "1")?;
        let outsider = cluster.outsiders().first().context("no host outside")?;
        outsider.route(&node.pod_cidr4().to_string(), node)?;
        let carrier = carrier(&cluster)?;
        let pods = node.pods().iter().map(|pod| NetNs::adopt(pod.ns().name()));
        let site = Self {
            carrier,
            services: 0,
            pods: pods.collect::<testkit::Result<_>>()?,
            cluster,
        };
        for from in site.pods.iter().skip(1).chain([site.outside()?]) {
            let reached = || Ok(ping(from, site.server_ip()?.into(), 56, LIMIT).ok());
            wait::until("server's pod", LIMIT, || reached().map_err(|e| invalid(&e)))?;
        }
        Ok(site)
    }

    fn node(&self) -> Result<&testkit::Node> {
        self.cluster.nodes().first().context("no node")
    }

    fn outside(&self) -> Result<&NetNs> {
        Ok(self
            .cluster
            .outsiders()
            .first()
            .context("no host outside")?
            .ns())
    }

    fn server_ip(&self) -> Result<Ipv4Addr> {
        Ok(self
            .node()?
            .pods()
            .first()
            .context("no server's pod")?
            .ip4())
    }

    /// The client's pod of a way, from 1 on.
    fn client(way: Way) -> usize {
        match way {
            Way::TulleDirect => 2,
            Way::TulleSockets => 3,
            _ => 1,
        }
    }

    /// Between whom a load runs that goes this way.
    pub fn ends(&self, front: Front, way: Way, kind: Kind) -> Result<Ends<'_>> {
        let (node, proto) = (self.node()?, proto(kind));
        let client = match (front, way) {
            (Front::NodePort, _) => self.outside()?,
            // In the node's cgroup, whose programs see its sockets.
            (Front::ClusterIp, Way::TulleSockets) => {
                let pod = node.pods().get(Self::client(way));
                pod.context("no client's pod")?.ns()
            }
            (Front::ClusterIp, _) => {
                let pod = self.pods.get(Self::client(way));
                pod.context("no client's pod")?
            }
        };
        let address = match (front, way) {
            (_, Way::TulleDirect | Way::KernelDirect) => {
                SocketAddr::new(self.server_ip()?.into(), kind.port())
            }
            (Front::ClusterIp, _) => SocketAddr::new(CLUSTER_IP.into(), PORT),
            (Front::NodePort, _) => {
                let port = NODE_PORTS.iter().find(|(of, _)| *of == proto);
                SocketAddr::new(IpAddr::V4(node.ip4()), port.context("no node port")?.1)
            }
        };
        Ok(Ends {
            client,
            server: self.pods.first().context("no server's pod")?,
            address,
        })
    }

    fn grow(&mut self, services: usize) -> Result<()> {
        let before = self.services;
        ensure!(
            services >= before,
            "{services} services, and {before} are there"
        );
        let (pod, node) = (self.server_ip()?, self.node()?);
        match &self.carrier {
            Carrier::Nobody => {}
            Carrier::Nftables => {
                if before == 0 {
                    let rules = nftables::more(&catalog::asked(pod));
                    load(node.ns(), "nft", &["-f", "-"], &rules)?;
                }
                let others: Vec<_> = (before.saturating_sub(1)..services - 1)
                    .map(|n| catalog::other(n, pod))
                    .collect();
                for some in others.chunks(TRANSACTION) {
                    load(node.ns(), "nft", &["-f", "-"], &nftables::more(some))?;
                }
            }
            Carrier::Ipvs => {
                let mut ports: Vec<_> = (before.saturating_sub(1)..services - 1)
                    .map(|n| catalog::other(n, pod))
                    .collect();
                if before == 0 {
                    ports.extend(catalog::asked(pod));
                }
                let more = ipvs::More::of(&ports, node.ip4());
                link::batch(node.ns(), &more.addresses)?;
                load(node.ns(), "ipset", &["restore"], &more.members)?;
                load(node.ns(), "ipvsadm", &["-R"], &more.servers)?;
            }
            Carrier::Iptables(backend) => {
                let tables = iptables::tables(&catalog::in_order(services, pod));
                load(node.ns(), backend.restore(), &[], &tables)?;
            }
            Carrier::Tulle { agent, state } => {
                let server = node.pods().first().context("no server's pod")?;
                let endpoint = Endpoint::of(node, server);
                let mut more: Vec<_> = (before.saturating_sub(1)..services - 1)
                    .map(|n| catalog::other_object(n, &endpoint))
                    .collect();
                if before == 0 {
                    more.push(catalog::asked_object(&endpoint));
                }
                state.write_services(&format!("from-{before}"), &more)?;
                let fronts = node.bpffs().join(maps::FRONT_V4);
                let rows = catalog::in_order(services, pod)
                    .iter()
                    .map(|port| (port.ip, port.port, port.proto))
                    .collect::<Vec<_>>();
                wait::until("all services in the tables", LOADED, || {
                    loaded(&fronts, &rows).map_err(|e| invalid(&e))
                })?;
                let status = agent.status().context("ask the agent")?;
                ensure!(
                    status.faults.is_empty() && status.map_errors.is_empty(),
                    "the agent has faults: {:?} {:?}",
                    status.faults,
                    status.map_errors
                );
            }
        }
        self.services = services;
        Ok(())
    }

    /// Packets that Tulle's programs have translated: to services, and back.
    /// `None` where no agent is.
    pub fn replies_translated(&self) -> Result<Option<u64>> {
        if !matches!(self.carrier, Carrier::Tulle { .. }) {
            return Ok(None);
        }
        let pin = self.node()?.bpffs().join(maps::COUNTERS);
        let map = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let counters: PerCpuArray<_, Counter> = PerCpuArray::try_from(Map::PerCpuArray(map))?;
        let row = counter_index(Hook::PodFrom, Reason::ReplyTranslated);
        let each = counters.get(&row, 0)?;
        Ok(Some(each.iter().map(|counter| counter.packets).sum()))
    }

    /// Flows that the kernel's connection tracking knows from the frontend to the
    /// server. `None` where no rules are.
    pub fn tracked(&self, front: Front, kind: Kind) -> Result<Option<u64>> {
        if matches!(self.carrier, Carrier::Tulle { .. } | Carrier::Nobody) {
            return Ok(None);
        }
        let ends = self.ends(front, Way::Nftables, kind)?;
        let to = format!(" dst={} ", ends.address.ip());
        let port = format!(" dport={} ", ends.address.port());
        let from = format!(" src={} ", self.server_ip()?);
        // Not /proc/net, which is that of the process.
        let path = "/proc/thread-self/net/nf_conntrack";
        let table = self.node()?.ns().run(|| std::fs::read_to_string(path))?;
        if matches!(&table, Err(e) if e.kind() == std::io::ErrorKind::NotFound) {
            // A kernel without that file says only how many there are.
            let count = "net.netfilter.nf_conntrack_count";
            let count = link::read_sysctl(self.node()?.ns(), count)?;
            return Ok(Some(count.parse().context("read nf_conntrack_count")?));
        }
        let table = table.with_context(|| format!("read {path}"))?;
        let proto = proto(kind).name();
        let of_it = table.lines().filter(|line| {
            // First comes the direction of the client, then that of the answers.
            let Some((there, back)) = line
                .match_indices(" src=")
                .nth(1)
                .map(|(at, _)| line.split_at(at))
            else {
                return false;
            };
            there.contains(proto)
                && there.contains(&to)
                && format!("{there} ").contains(&port)
                && back.contains(&from)
        });
        Ok(Some(of_it.count() as u64))
    }
}

/// The transport protocol of a load.
fn proto(kind: Kind) -> Proto {
    match kind {
        Kind::UdpExchange | Kind::UdpOpen => Proto::Udp,
        Kind::TcpExchange | Kind::TcpStream | Kind::TcpConnect => Proto::Tcp,
    }
}

/// Whether each of the frontends has its row.
fn loaded(pin: &Path, rows: &[(Ipv4Addr, u16, Proto)]) -> Result<Option<()>> {
    let map = MapData::from_pin(pin).with_context(|| format!("open {}", pin.display()))?;
    let fronts: BpfHash<_, FrontendKey<Ip4>, Frontend> = BpfHash::try_from(Map::HashMap(map))?;
    for (ip, port, proto) in rows {
        let proto = match proto {
            Proto::Tcp => datapath_common::proto::TCP,
            Proto::Udp => datapath_common::proto::UDP,
        };
        let key = FrontendKey {
            addr: Ip4::from(*ip),
            port: *port,
            proto,
            scope: Scope::Any as u8,
        };
        match fronts.get(&key, 0) {
            Ok(_) => {}
            Err(aya::maps::MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(error).context("read a frontend's row"),
        }
    }
    Ok(Some(()))
}

/// Runs a program with `text` as its input.
fn load(ns: &NetNs, program: &str, args: &[&str], text: &str) -> Result<()> {
    let mut command = ns.command(program)?;
    let shown = format!("[{}] {program} {}", ns.name(), args.join(" "));
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("start `{shown}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that fails early closes its input: the exit status tells.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let stderr: String = String::from_utf8_lossy(&output.stderr)
            .chars()
            .take(500)
            .collect();
        bail!("`{shown}` failed: {}: {stderr}", output.status);
    }
    Ok(())
}

/// What `wait::until` takes for an error.
fn invalid(error: &anyhow::Error) -> testkit::Error {
    testkit::Error::Invalid(format!("{error:#}"))
}
