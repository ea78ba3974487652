//! Clusters of nodes and pods as network namespaces.
//!
//! A switch namespace holds a bridge and the router's addresses
//! (192.168.77.1, `fd77::1`). Node *i* (from 1) has the uplink `eth0` with
//! 192.168.77.(10+i) and `fd77::(10+i)`, and the pod networks 10.244.i.0/24 and
//! `fd44:0:0:i::/64`. Pod *k* (from 1) of a node is joined to it by a veth: host
//! side `pod<k>`, pod side `eth0` with 10.244.i.(10+k) and `fd44:0:0:i::(10+k)`.
//! IPv6 addresses show the same decimal digits as IPv4 ones.

mod build;
mod state;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::error::{Error, Result};
use crate::link::{self, MacAddr};
use crate::netns::NetNs;

pub use build::ClusterBuilder;
pub(crate) use build::XDP;

/// Bytes that the overlay adds to a packet: IPv4, UDP, VXLAN, Ethernet.
pub const OVERLAY_OVERHEAD: u32 = 50;
/// A node's interface to the switch, and a pod's to its node.
pub const UPLINK: &str = "eth0";
/// The router's IPv4 address on the underlay.
pub const ROUTER4: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The router's IPv6 address on the underlay.
pub const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The switch's bridge.
pub const BRIDGE: &str = "br0";

/// A running cluster. Dropping it removes all of it, unless it is kept.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    ipv6: bool,
    uplink_mtu: u32,
    cgroups: bool,
    /// Whether pods and hosts outside send whole checksums.
    whole_checksums: bool,
    kept: bool,
    switch: NetNs,
    nodes: Vec<Node>,
    outsiders: Vec<Outsider>,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    ns: NetNs,
    cgroup: Option<Cgroup>,
    directory: PathBuf,
    /// Name of the namespace of its cluster's switch.
    switch: String,
    pods: Vec<Pod>,
}

/// A pod on a node.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    ns: NetNs,
}

/// A host on the underlay that is no node of the cluster.
#[derive(Debug)]
pub struct Outsider {
    index: u8,
    name: String,
    ns: NetNs,
}

/// What a node's number decides.
#[derive(Clone, Serialize, Deserialize, Debug)]
struct NodeSpec {
    index: u8,
    name: String,
    ip4: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
    mac: MacAddr,
    pods4: Ipv4Net,
    pods6: Option<Ipv6Net>,
}

/// What a pod's number decides.
#[derive(Clone, Serialize, Deserialize, Debug)]
struct PodSpec {
    index: u8,
    name: String,
    host_if: String,
    ip4: Ipv4Addr,
    ip6: Option<Ipv6Addr>,
    mac: MacAddr,
    host_mac: MacAddr,
}

impl Cluster {
    /// Its name, which begins the names of its namespaces.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The nodes, in the order they were added.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Every pod with its node.
    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Pod)> {
        self.nodes
            .iter()
            .flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }

    /// The namespace that holds the switch and the router's addresses.
    pub fn switch(&self) -> &NetNs {
        &self.switch
    }

    /// Hosts on the underlay that are no nodes.
    pub fn outsiders(&self) -> &[Outsider] {
        &self.outsiders
    }

    /// MTU of the nodes' uplinks in bytes.
    pub fn uplink_mtu(&self) -> u32 {
        self.uplink_mtu
    }

    /// MTU of the pods' links in bytes.
    pub fn pod_mtu(&self) -> u32 {
        self.uplink_mtu - OVERLAY_OVERHEAD
    }

    /// Directory of the cluster: a directory for each node, and room for
    /// manifests and logs. Removed with the cluster.
    pub fn directory(&self) -> PathBuf {
        state::directory(&self.name)
    }

    /// Lets the cluster outlive this value and this process, until
    /// [`Cluster::destroy`].
    pub fn keep(&mut self) -> Result<()> {
        if self.cgroups {
            let why = format!("cluster {} has cgroups of this process", self.name);
            return Err(Error::Invalid(why));
        }
        self.kept = true;
        for ns in self.namespaces_mut() {
            ns.keep();
        }
        self.forget_paths();
        self.save()
    }

    fn namespaces_mut(&mut self) -> impl Iterator<Item = &mut NetNs> {
        let nodes = self.nodes.iter_mut().flat_map(|node| {
            std::iter::once(&mut node.ns).chain(node.pods.iter_mut().map(|pod| &mut pod.ns))
        });
        let outsiders = self.outsiders.iter_mut().map(|o| &mut o.ns);
        std::iter::once(&mut self.switch)
            .chain(nodes)
            .chain(outsiders)
    }
}

impl Node {
    /// Number from 1.
    pub fn index(&self) -> u8 {
        self.spec.index
    }

    /// Its name in Kubernetes: `node-<i>`.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its network namespace.
    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// Name of the namespace that holds its cluster's switch and router.
    pub fn switch(&self) -> &str {
        &self.switch
    }

    /// The cgroup of its processes and its pods', if nodes have one.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_ref().map(Cgroup::path)
    }

    /// Its IPv4 address on the underlay.
    pub fn ip4(&self) -> Ipv4Addr {
        self.spec.ip4
    }

    /// Its IPv6 address on the underlay.
    pub fn ip6(&self) -> Option<Ipv6Addr> {
        self.spec.ip6
    }

    /// Its addresses on the underlay, IPv4 first.
    pub fn ips(&self) -> Vec<IpAddr> {
        std::iter::once(IpAddr::V4(self.spec.ip4))
            .chain(self.spec.ip6.map(IpAddr::V6))
            .collect()
    }

    /// Its uplink's Ethernet address.
    pub fn uplink_mac(&self) -> MacAddr {
        self.spec.mac
    }

    /// The network of its IPv4 pods.
    pub fn pod_cidr4(&self) -> Ipv4Net {
        self.spec.pods4
    }

    /// The network of its IPv6 pods.
    pub fn pod_cidr6(&self) -> Option<Ipv6Net> {
        self.spec.pods6
    }

    /// Its pods, in the order they were added.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Its own BPF file system.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Its directory for sockets and locks.
    pub fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    /// The directory of its cluster.
    pub fn cluster_directory(&self) -> &Path {
        // A node's directory is always in its cluster's.
        self.directory.parent().unwrap_or(&self.directory)
    }

    /// Its directory, which holds the two others and logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Pod {
    /// Number from 1, within its node.
    pub fn index(&self) -> u8 {
        self.spec.index
    }

    /// Its name in Kubernetes: `node-<i>-pod-<k>`.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its network namespace.
    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// The host side of its link, in the node's namespace.
    pub fn host_if(&self) -> &str {
        &self.spec.host_if
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> Ipv4Addr {
        self.spec.ip4
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> Option<Ipv6Addr> {
        self.spec.ip6
    }

    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> Vec<IpAddr> {
        std::iter::once(IpAddr::V4(self.spec.ip4))
            .chain(self.spec.ip6.map(IpAddr::V6))
            .collect()
    }

    /// Its own Ethernet address.
    pub fn mac(&self) -> MacAddr {
        self.spec.mac
    }

    /// The Ethernet address of the host side.
    pub fn host_mac(&self) -> MacAddr {
        self.spec.host_mac
    }
}

impl Outsider {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace; its interface is [`UPLINK`].
    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// Its IPv4 address on the underlay: 192.168.77.(240+n).
    pub fn ip4(&self) -> Ipv4Addr {
        build::underlay4(build::FIRST_OUTSIDER + self.index)
    }

    /// Its IPv6 address on the underlay: `fd77::(240+n)`.
    pub fn ip6(&self) -> Ipv6Addr {
        build::underlay6(build::FIRST_OUTSIDER + self.index)
    }

    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ip4().into(), self.ip6().into()]
    }

    /// Sends what it has for the network (CIDR notation) to a node.
    pub fn route(&self, network: &str, via: &Node) -> Result<()> {
        let v6 = via.ip6().map(IpAddr::V6).filter(|_| network.contains(':'));
        let via = v6.unwrap_or(via.ip4().into()).to_string();
        link::ip(
            &self.ns,
            &["route", "replace", network, "via", &via, "dev", UPLINK],
        )
    }
}
