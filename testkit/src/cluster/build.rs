//! Wiring: namespaces, links, addresses, routes and neighbours.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use nix::mount::{MsFlags, mount};

use super::{
    BRIDGE, Cluster, Node, NodeSpec, OVERLAY_OVERHEAD, Outsider, Pod, PodSpec, ROUTER4, ROUTER6,
    UPLINK, state,
};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::link::{self, MacAddr, format_mac};
use crate::netns::{self, NetNs};
use crate::ping::ping;
use crate::registry::{self, Resource};
use crate::wait;

/// Node *i* is host number 10+i of the underlay.
const FIRST_NODE: u8 = 10;
/// Pod *k* is host number 10+k of its node's pod network.
const FIRST_POD: u8 = 10;
/// Outsider *n* is host number 240+n of the underlay.
pub(super) const FIRST_OUTSIDER: u8 = 240;
const MAX_NODES: u8 = FIRST_OUTSIDER - FIRST_NODE;
const MAX_PODS: u8 = 240;
const MAX_OUTSIDERS: u8 = 14;
/// With this variable services are served at the sockets of every cluster.
const SOCKETS: &str = "TULLE_TEST_SOCKETS";
/// With this variable, a mode, XDP is at the uplinks of every cluster.
pub(crate) const XDP: &str = "TULLE_TEST_XDP";
/// Smallest uplink that leaves IPv6's minimum of 1280 to pods.
const MIN_UPLINK_MTU: u32 = 1280 + OVERLAY_OVERHEAD;

/// Describes a cluster to be built.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    name: String,
    nodes: u8,
    pods: u8,
    ipv6: bool,
    uplink_mtu: u32,
    cgroups: bool,
    whole_checksums: bool,
}

impl ClusterBuilder {
    /// Two nodes of two pods, dual-stack, uplinks of 1500 bytes. The name
    /// begins the names of all namespaces.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 2,
            pods: 2,
            ipv6: true,
            uplink_mtu: 1500,
            cgroups: std::env::var_os(SOCKETS).is_some(),
            whole_checksums: std::env::var_os(XDP).is_some(),
        }
    }

    /// The same under a name that no other process uses.
    pub fn unique(label: &str) -> Self {
        Self::new(&netns::unique(label))
    }

    /// Number of nodes, at most 230.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Number of pods on each node, at most 240.
    #[must_use]
    pub fn pods_per_node(mut self, pods: u8) -> Self {
        self.pods = pods;
        self
    }

    /// Whether nodes and pods have IPv6 addresses.
    #[must_use]
    pub fn ipv6(mut self, ipv6: bool) -> Self {
        self.ipv6 = ipv6;
        self
    }

    /// MTU of the uplinks in bytes; pods get 50 less.
    #[must_use]
    pub fn uplink_mtu(mut self, mtu: u32) -> Self {
        self.uplink_mtu = mtu;
        self
    }

    /// Gives each node a cgroup for its processes and its pods', which its agent is told.
    /// Only this process can use them: such a cluster cannot be kept.
    #[must_use]
    pub fn cgroups(mut self) -> Self {
        self.cgroups = true;
        self
    }

    /// Has pods and hosts outside send whole checksums, as a wire has them: a veth's driver
    /// would leave them to the next device.
    #[must_use]
    pub fn whole_checksums(mut self) -> Self {
        self.whole_checksums = true;
        self
    }

    /// Builds it. Whatever was made is removed again if a part fails.
    pub fn build(self) -> Result<Cluster> {
        let Self {
            name,
            nodes,
            pods,
            ipv6,
            uplink_mtu,
            cgroups,
            whole_checksums,
        } = self;
        if !(MIN_UPLINK_MTU..=65_535).contains(&uplink_mtu) {
            return Err(Error::Invalid(format!(
                "cluster {name}: uplink MTU {uplink_mtu}: use {MIN_UPLINK_MTU} to 65535"
            )));
        }
        state::claim(&name)?;
        let switch =
            build_switch(&name, uplink_mtu, ipv6).inspect_err(|_| state::abandon(&name))?;
        let mut cluster = Cluster {
            name,
            ipv6,
            uplink_mtu,
            cgroups,
            whole_checksums,
            kept: false,
            switch,
            nodes: Vec::new(),
            outsiders: Vec::new(),
        };
        cluster.save()?;
        for _ in 0..nodes {
            let node = cluster.add_node()?.name().to_owned();
            for _ in 0..pods {
                cluster.add_pod(&node)?;
            }
        }
        Ok(cluster)
    }
}

impl Cluster {
    /// Adds a node without pods, under the lowest free number.
    pub fn add_node(&mut self) -> Result<&Node> {
        let taken: Vec<u8> = self.nodes.iter().map(Node::index).collect();
        let index = free(&taken, MAX_NODES).ok_or_else(|| full(&self.name, "nodes", MAX_NODES))?;
        let spec = NodeSpec::new(index, self.ipv6);
        let directory = state::directory(&self.name).join(&spec.name);
        let mut ns = NetNs::named(&format!("{}-{}", self.name, spec.name))?;
        attach(&self.switch, &ns, &spec.name, spec.mac, self.uplink_mtu)?;
        link::batch(&ns, &underlay_lines(spec.ip4, spec.ip6))?;
        link::wait_up(&self.switch, &spec.name)?;
        answers(&self.switch, spec.ip4)?;
        make_node_directory(&directory)?;
        let cgroup = format!("{}-{}", self.name, spec.name);
        let cgroup = self.cgroups.then(|| Cgroup::new(&cgroup)).transpose()?;
        ns.set_cgroup(cgroup.as_ref().map(Cgroup::path));
        if self.kept {
            ns.keep();
        }
        self.nodes.push(Node {
            spec,
            ns,
            cgroup,
            directory,
            switch: self.switch.name().to_owned(),
            pods: Vec::new(),
        });
        if self.kept {
            self.forget_paths();
        }
        self.save()?;
        self.nodes
            .last()
            .ok_or_else(|| no_node(&self.name, "just added"))
    }

    /// Removes a node with its pods, and every process in them.
    pub fn remove_node(&mut self, node: &str) -> Result<()> {
        let at = self.position(node)?;
        let port = self.nodes[at].name().to_owned();
        let node = self.nodes.remove(at);
        link::ip(&self.switch, &["link", "del", &port])?;
        state::remove_node(node)?;
        self.save()
    }

    /// Adds a pod to a node, under the lowest free number.
    pub fn add_pod(&mut self, node: &str) -> Result<&Pod> {
        let at = self.position(node)?;
        let mtu = self.pod_mtu();
        let node = &self.nodes[at];
        let taken: Vec<u8> = node.pods.iter().map(Pod::index).collect();
        let index = free(&taken, MAX_PODS).ok_or_else(|| full(node.name(), "pods", MAX_PODS))?;
        let spec = PodSpec::new(&node.spec, index);
        let mut ns = NetNs::named(&format!("{}-{}", self.name, spec.name))?;
        join_pod(&node.ns, &ns, &spec, mtu)?;
        if self.whole_checksums {
            link::send_whole_checksums(&ns, UPLINK)?;
        }
        ns.set_cgroup(node.cgroup());
        if self.kept {
            ns.keep();
        }
        self.nodes[at].pods.push(Pod { spec, ns });
        self.save()?;
        self.nodes[at]
            .pods
            .last()
            .ok_or_else(|| no_node(&self.name, "just added"))
    }

    /// Removes a pod, and every process in it.
    pub fn remove_pod(&mut self, pod: &str) -> Result<()> {
        let found = self.nodes.iter().enumerate().find_map(|(n, node)| {
            node.pods
                .iter()
                .position(|p| p.name() == pod)
                .map(|p| (n, p))
        });
        let Some((n, p)) = found else {
            return Err(Error::Invalid(format!(
                "cluster {} has no pod {pod}",
                self.name
            )));
        };
        let pod = self.nodes[n].pods.remove(p);
        link::ip(&self.nodes[n].ns, &["link", "del", pod.host_if()])?;
        state::remove_namespace(&pod.ns)?;
        self.save()
    }

    /// Adds a host on the underlay that is no node: an external client, or one
    /// who forges overlay packets.
    pub fn add_outsider(&mut self, name: &str) -> Result<&Outsider> {
        let taken: Vec<u8> = self.outsiders.iter().map(|o| o.index).collect();
        let index = free(&taken, MAX_OUTSIDERS)
            .ok_or_else(|| full(&self.name, "outsiders", MAX_OUTSIDERS))?;
        let mut ns = NetNs::named(&format!("{}-{name}", self.name))?;
        let host = FIRST_OUTSIDER + index;
        attach(
            &self.switch,
            &ns,
            &format!("out{index}"),
            [2, 0x0e, 0, 0, 0, index],
            self.uplink_mtu,
        )?;
        link::batch(
            &ns,
            &underlay_lines(underlay4(host), self.ipv6.then(|| underlay6(host))),
        )?;
        link::wait_up(&self.switch, &format!("out{index}"))?;
        answers(&self.switch, underlay4(host))?;
        if self.whole_checksums {
            link::send_whole_checksums(&ns, UPLINK)?;
        }
        if self.kept {
            ns.keep();
        }
        self.outsiders.push(Outsider {
            index,
            name: name.to_owned(),
            ns,
        });
        self.save()?;
        self.outsiders
            .last()
            .ok_or_else(|| no_node(&self.name, "just added"))
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.position(name).map(|at| &self.nodes[at])
    }

    fn position(&self, node: &str) -> Result<usize> {
        self.nodes
            .iter()
            .position(|n| n.name() == node)
            .ok_or_else(|| no_node(&self.name, node))
    }
}

impl NodeSpec {
    fn new(index: u8, ipv6: bool) -> Self {
        let pods4 = Ipv4Net::new_assert(Ipv4Addr::new(10, 244, index, 0), 24);
        let pods6 = Ipv6Net::new_assert(Ipv6Addr::new(0xfd44, 0, 0, digits(index), 0, 0, 0, 0), 64);
        Self {
            index,
            name: format!("node-{index}"),
            ip4: underlay4(FIRST_NODE + index),
            ip6: ipv6.then(|| underlay6(FIRST_NODE + index)),
            mac: [0x02, 0x77, 0, 0, 0, index],
            pods4,
            pods6: ipv6.then_some(pods6),
        }
    }
}

impl PodSpec {
    fn new(node: &NodeSpec, index: u8) -> Self {
        let host = FIRST_POD + index;
        let ip6 = Ipv6Addr::new(0xfd44, 0, 0, digits(node.index), 0, 0, 0, digits(host));
        Self {
            index,
            name: format!("{}-pod-{index}", node.name),
            host_if: format!("pod{index}"),
            ip4: Ipv4Addr::new(10, 244, node.index, host),
            ip6: node.pods6.map(|_| ip6),
            mac: [0x02, 0x44, 0, 0x01, node.index, index],
            host_mac: [0x02, 0x44, 0, 0x02, node.index, index],
        }
    }
}

pub(super) fn underlay4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, host)
}

pub(super) fn underlay6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, digits(host))
}

/// The number whose hexadecimal digits read as `n` does in decimal.
fn digits(n: u8) -> u16 {
    let n = u16::from(n);
    ((n / 100) << 8) | ((n / 10 % 10) << 4) | (n % 10)
}

fn free(taken: &[u8], max: u8) -> Option<u8> {
    (1..=max).find(|n| !taken.contains(n))
}

fn build_switch(cluster: &str, mtu: u32, ipv6: bool) -> Result<NetNs> {
    let ns = NetNs::named(&format!("{cluster}-switch"))?;
    link::bridge(&ns, BRIDGE)?;
    link::set_mtu(&ns, BRIDGE, mtu)?;
    link::address(&ns, BRIDGE, &format!("{ROUTER4}/24"))?;
    if ipv6 {
        link::address(&ns, BRIDGE, &format!("{ROUTER6}/64"))?;
    }
    Ok(ns)
}

/// Joins a host to the switch by its uplink.
fn attach(switch: &NetNs, host: &NetNs, port: &str, mac: MacAddr, mtu: u32) -> Result<()> {
    link::batch(
        switch,
        &[
            format!(
                "link add {port} mtu {mtu} type veth peer name {UPLINK} address {} mtu {mtu} netns {}",
                format_mac(mac),
                host.name()
            ),
            format!("link set {port} master {BRIDGE} up"),
        ],
    )
}

fn underlay_lines(ip4: Ipv4Addr, ip6: Option<Ipv6Addr>) -> Vec<String> {
    let mut lines = vec![
        format!("link set {UPLINK} up"),
        format!("addr add {ip4}/24 brd + dev {UPLINK}"),
        format!("route add default via {ROUTER4} dev {UPLINK}"),
    ];
    if let Some(ip6) = ip6 {
        lines.push(format!("addr add {ip6}/64 dev {UPLINK} nodad"));
        lines.push(format!("route add ::/0 via {ROUTER6} dev {UPLINK}"));
    }
    lines
}

/// Joins a pod to its node by a point-to-point link with fixed neighbours on
/// both sides, so that neither ARP nor neighbour discovery is needed.
fn join_pod(node: &NetNs, pod: &NetNs, spec: &PodSpec, mtu: u32) -> Result<()> {
    let host_if = &spec.host_if;
    let (mac, host_mac) = (format_mac(spec.mac), format_mac(spec.host_mac));
    let ip4 = spec.ip4;
    let mut host = vec![
        format!(
            "link add {host_if} address {host_mac} mtu {mtu} type veth \
             peer name {UPLINK} address {mac} mtu {mtu} netns {}",
            pod.name()
        ),
        format!("link set {host_if} up"),
    ];
    let mut inside = vec![
        format!("link set {UPLINK} up"),
        format!("addr add {ip4}/32 dev {UPLINK}"),
        format!("neigh add 169.254.1.1 lladdr {host_mac} dev {UPLINK} nud permanent"),
        format!("route add default via 169.254.1.1 dev {UPLINK} onlink"),
    ];
    if let Some(ip6) = spec.ip6 {
        inside.push(format!("addr add {ip6}/128 dev {UPLINK} nodad"));
        inside.push(format!(
            "neigh add fe80::1 lladdr {host_mac} dev {UPLINK} nud permanent"
        ));
        inside.push(format!("route add ::/0 via fe80::1 dev {UPLINK}"));
    }
    host.push(format!("route add {ip4}/32 dev {host_if} scope link"));
    host.push(format!(
        "neigh add {ip4} lladdr {mac} dev {host_if} nud permanent"
    ));
    if let Some(ip6) = spec.ip6 {
        host.push(format!("route add {ip6}/128 dev {host_if}"));
        host.push(format!(
            "neigh add {ip6} lladdr {mac} dev {host_if} nud permanent"
        ));
    }
    link::batch(node, &host)?;
    link::batch(pod, &inside)?;
    link::wait_up(node, host_if)?;
    answers(node, ip4)
}

/// Waits until an address answers, so that a built cluster loses no packet for
/// want of a link that is still coming up.
fn answers(from: &NetNs, to: Ipv4Addr) -> Result<()> {
    let what = format!("no echo reply from {to} in namespace {}", from.name());
    wait::until(&what, Duration::from_secs(5), || {
        match ping(from, to.into(), 0, Duration::from_millis(100)) {
            Ok(_) => Ok(Some(())),
            Err(Error::Timeout { .. } | Error::Io { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    })
}

fn make_node_directory(directory: &std::path::Path) -> Result<()> {
    let bpf = directory.join("bpf");
    for path in [&bpf, &directory.join("run")] {
        std::fs::create_dir_all(path).trying(|| format!("make {}", path.display()))?;
    }
    registry::acquire(|| {
        mount(
            Some("bpf"),
            &bpf,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .trying(|| format!("mount a BPF file system at {}", bpf.display()))?;
        Ok((Resource::Mount(bpf.clone()), ()))
    })
}

fn full(owner: &str, what: &str, max: u8) -> Error {
    Error::Invalid(format!(
        "{owner} has {max} {what} already, which is the most there can be"
    ))
}

fn no_node(cluster: &str, node: &str) -> Error {
    Error::Invalid(format!("cluster {cluster} has no node {node}"))
}
