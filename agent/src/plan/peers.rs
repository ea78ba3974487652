//! The other nodes, and the tables that only nodes and pods decide.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use datapath_common::{Mac, Node as NodeRow, Via, ViaKind};
use ipnet::IpNet;

use super::facts::{NodeFacts, derived_vtep_mac};
use super::networks;
use crate::model::{DirectReturn, Fault, Model, Node, Warning};

/// Another node that takes part in the overlay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Name.
    pub name: String,
    /// Address on the underlay.
    pub underlay: Ipv4Addr,
    /// Its VTEP's Ethernet address.
    pub vtep_mac: Mac,
    /// Networks of its pods, without those that another node has.
    pub pod_cidrs: Vec<IpNet>,
    /// Of which families it answers other nodes' clients itself.
    pub direct_return: DirectReturn,
}

impl Peer {
    /// Bits of the way to one of its networks. Its programs know the first of each family, and of
    /// IPv6 addresses the packets carry the last ten octets.
    fn flags(&self, net: &IpNet) -> u8 {
        let family = net.addr().is_ipv4();
        let first = self
            .pod_cidrs
            .iter()
            .find(|other| other.addr().is_ipv4() == family);
        let taken = match net {
            IpNet::V4(_) => self.direct_return.v4,
            IpNet::V6(net) => self.direct_return.v6 && net.prefix_len() >= 48,
        };
        if taken && first == Some(net) {
            Via::DIRECT
        } else {
            0
        }
    }
}

/// A node's address on the IPv4 underlay: the annotation, else its first IPv4 InternalIP.
pub fn underlay(node: &Node) -> Option<Ipv4Addr> {
    node.public_ip.or_else(|| {
        node.internal_ips.iter().find_map(|addr| match addr {
            IpAddr::V4(addr) => Some(*addr),
            IpAddr::V6(_) => None,
        })
    })
}

/// A node's VTEP address: the published one, else the derived one.
pub fn vtep_mac(node: &Node) -> Option<Mac> {
    node.vtep_mac
        .or_else(|| underlay(node).map(derived_vtep_mac))
}

/// All nodes but `own_name` that can be reached through the overlay, by name,
/// and what is wrong with the others.
pub fn peers(
    model: &Model,
    own_name: &str,
    own_underlay: Option<Ipv4Addr>,
) -> (Vec<Peer>, Vec<Warning>) {
    let own = model.node(own_name);
    let mut nets: BTreeMap<IpNet, &str> = own
        .iter()
        .flat_map(|node| &node.pod_cidrs)
        .map(|net| (*net, own_name))
        .collect();
    let mut addresses: BTreeMap<Ipv4Addr, &str> = own_underlay
        .or_else(|| own.and_then(underlay))
        .map(|addr| (addr, own_name))
        .into_iter()
        .collect();
    let (mut peers, mut warnings) = (Vec::new(), Vec::new());
    if own.is_none() {
        let fault = Fault::new(
            "",
            "is this node, but there is no such Node, so its pod networks are unknown",
            "add the Node, or start the agent with the right --node",
        );
        warnings.push(Warning::new(format!("Node {own_name}"), fault));
    }
    for node in model.nodes().filter(|node| node.name != own_name) {
        let mut warn = |field: &str, problem: String, mend: &str| {
            let object = format!("Node {}", node.name);
            warnings.push(Warning::new(object, Fault::new(field, problem, mend)));
        };
        let Some(address) = underlay(node) else {
            warn(
                "status.addresses",
                "has no IPv4 InternalIP, so its pods cannot be reached".to_owned(),
                "add one, or annotate the node with flannel.alpha.coreos.com/public-ip",
            );
            continue;
        };
        if let Some(other) = addresses.get(&address) {
            warn(
                "status.addresses",
                format!("{address} is the address of node {other} too"),
                "give each node its own address",
            );
            continue;
        }
        addresses.insert(address, &node.name);
        if node.pod_cidrs.is_empty() {
            warn(
                "spec.podCIDRs",
                "is empty, so its pods cannot be reached".to_owned(),
                "list the networks of its pods",
            );
        }
        let mut pod_cidrs = Vec::new();
        for net in &node.pod_cidrs {
            if let Some(other) = nets.get(net) {
                let problem = format!("{net} is the pod network of node {other} too");
                warn("spec.podCIDRs", problem, "give each node its own network");
                continue;
            }
            nets.insert(*net, &node.name);
            pod_cidrs.push(*net);
        }
        let vtep_mac = node.vtep_mac.unwrap_or_else(|| derived_vtep_mac(address));
        peers.push(Peer {
            name: node.name.clone(),
            underlay: address,
            vtep_mac,
            pod_cidrs,
            direct_return: node.direct_return,
        });
    }
    (peers, warnings)
}

/// Rows that depend on nodes and pods only, and the way to any address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ways {
    /// Rows of `tulle_pods_*`.
    pub pods: BTreeMap<IpAddr, Via>,
    /// Rows of `tulle_peers_*`.
    pub peers: BTreeMap<IpNet, Via>,
    /// Rows of `tulle_nodes_v4`.
    pub nodes: BTreeMap<Ipv4Addr, NodeRow>,
    /// Rows of `tulle_direct_*`. Direct is what the operator excludes from masquerade, and
    /// pod networks that the programs do not know as such, because the kernel
    /// delivers there.
    pub networks: BTreeMap<IpNet, u32>,
    own: BTreeSet<IpNet>,
    hosts: BTreeSet<IpAddr>,
    /// Prefix lengths in `peers`, longest first by family.
    lengths: BTreeSet<(bool, std::cmp::Reverse<u8>)>,
}

/// To a process of this node.
const HOST: Via = Via {
    kind: ViaKind::Host as u8,
    ..Via::KERNEL
};

impl Ways {
    /// Compiles them; `services` are the networks that only Services have addresses from.
    pub fn new(
        model: &Model,
        facts: &NodeFacts,
        peers: &[Peer],
        services: &BTreeSet<IpNet>,
    ) -> Self {
        let mut ways = Self {
            own: model
                .node(&facts.name)
                .iter()
                .flat_map(|n| &n.pod_cidrs)
                .copied()
                .collect(),
            pods: facts
                .local_pods
                .iter()
                .map(|(addr, pod)| (*addr, pod.via()))
                .collect(),
            hosts: facts.own_addresses.clone(),
            ..Self::default()
        };
        let pods = peers.iter().flat_map(|peer| &peer.pod_cidrs);
        let mut direct: BTreeSet<IpNet> = facts
            .direct
            .iter()
            .chain(&ways.own)
            .chain(pods)
            .map(IpNet::trunc)
            .collect();
        let overlay = if facts.overlay { peers } else { &[] };
        for peer in overlay {
            let row = NodeRow {
                vtep_mac: peer.vtep_mac,
                reserved: 0,
            };
            ways.nodes.insert(peer.underlay, row);
            let Some(via) = facts.vxlan(peer.underlay, peer.vtep_mac) else {
                continue;
            };
            for net in &peer.pod_cidrs {
                let flags = peer.flags(net);
                ways.peers.insert(*net, Via { flags, ..via });
                if !facts.direct.contains(net) {
                    direct.remove(&net.trunc());
                }
                let family = net.addr().is_ipv4();
                ways.lengths
                    .insert((family, std::cmp::Reverse(net.prefix_len())));
            }
        }
        ways.networks = networks::rows(&direct, services, model.cluster_ips_elsewhere());
        ways
    }

    /// The way to an endpoint. An address of our own pod network that is no
    /// known pod is the kernel's.
    pub fn to(&self, addr: IpAddr) -> Via {
        if let Some(via) = self.pods.get(&addr) {
            return *via;
        }
        if self.hosts.contains(&addr) {
            return HOST;
        }
        let peer = self
            .lengths
            .iter()
            .filter(|(v4, _)| *v4 == addr.is_ipv4())
            .find_map(|(_, std::cmp::Reverse(len))| {
                let net = IpNet::new(addr, *len).ok()?.trunc();
                self.peers.get(&net).map(|via| (net, *via))
            });
        let Some((net, via)) = peer else {
            return Via::KERNEL;
        };
        let own = |own: &IpNet| own.contains(&addr) && own.prefix_len() >= net.prefix_len();
        if self.own.iter().any(own) {
            Via::KERNEL
        } else {
            via
        }
    }

    /// Ranges of addresses, both ends included, to which the way may differ from `before`.
    pub fn changed_since(&self, before: &Self) -> Vec<(IpAddr, IpAddr)> {
        let pods = differing(&self.pods, &before.pods).map(|addr| (*addr, *addr));
        let peers = differing(&self.peers, &before.peers);
        let own = self.own.symmetric_difference(&before.own);
        let nets = peers.chain(own).map(|net| (net.network(), net.broadcast()));
        let hosts = self.hosts.symmetric_difference(&before.hosts);
        let hosts = hosts.map(|addr| (*addr, *addr));
        pods.chain(nets).chain(hosts).collect()
    }
}

/// Keys whose values differ, or that only one of the two has.
pub(super) fn differing<'a, K: Ord, V: PartialEq>(
    a: &'a BTreeMap<K, V>,
    b: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let changed = a
        .iter()
        .filter(|(key, value)| b.get(key) != Some(value))
        .map(|(key, _)| key);
    changed.chain(b.keys().filter(|key| !a.contains_key(key)))
}
