//! The slow path that we want (pure): from the overlay's facts to the list of
//! rows that the kernel should hold.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::Mac;
use ipnet::IpNet;

/// What VXLAN over IPv4 adds to a packet, in bytes: Ethernet 14, IPv4 20,
/// UDP 8, VXLAN 8.
pub const OVERHEAD: u32 = 50;

/// Protocol number (`rtm_protocol`) of every route that is Tulle's.
pub const ROUTE_PROTOCOL: u8 = 116;

/// Metric of the `unreachable` routes over our own pod networks: behind
/// anything that a person or a CNI plugin installs.
pub const UNREACHABLE_METRIC: u32 = 1_000_000;

/// The overlay that the kernel should be set up for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Name of the VXLAN device: `flannel.<VNI>`, see [`device_name`].
    pub device: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port, host order.
    pub port: u16,
    /// This node's address on the underlay.
    pub local: Ipv4Addr,
    /// Index of the uplink.
    pub uplink: u32,
    /// The device's and the routes' MTU in bytes: the uplink's minus [`OVERHEAD`].
    pub mtu: u32,
    /// This node's VTEP address.
    pub mac: Mac,
    /// Network address of our IPv4 pod network, the node's own address in the overlay.
    pub address4: Option<Ipv4Addr>,
    /// Network address of our IPv6 pod network.
    pub address6: Option<Ipv6Addr>,
    /// The other nodes.
    pub peers: Vec<Peer>,
    /// Pod networks of this node.
    pub own_pod_cidrs: Vec<IpNet>,
    /// Whether programs give packets back to the node by its loopback device.
    pub answers_by_loopback: bool,
}

/// Another node of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address on the underlay.
    pub node: Ipv4Addr,
    /// Its VTEP address.
    pub vtep_mac: Mac,
    /// Its pod networks.
    pub pod_cidrs: Vec<IpNet>,
}

/// Name of the VXLAN device for a VNI: flannel's.
pub fn device_name(vni: u32) -> String {
    format!("flannel.{vni}")
}

/// One row that the kernel should hold, on the overlay's device unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    /// An address of the device, /32 or /128.
    Address(IpAddr),
    /// Permanent neighbour.
    Neighbour { ip: IpAddr, mac: Mac },
    /// Forwarding entry.
    Forward { mac: Mac, node: Ipv4Addr },
    /// `destination via gateway onlink mtu N`.
    Route {
        destination: IpNet,
        gateway: IpAddr,
        mtu: u32,
    },
    /// `unreachable destination metric 1000000`, on no device.
    Unreachable { destination: IpNet },
}

impl Item {
    /// IPv6 rows are left out where the kernel has no IPv6.
    pub(crate) fn is_ipv6(&self) -> bool {
        match self {
            Self::Address(ip) | Self::Neighbour { ip, .. } => ip.is_ipv6(),
            Self::Forward { .. } => false,
            Self::Route { destination, .. } | Self::Unreachable { destination } => {
                destination.addr().is_ipv6()
            }
        }
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(ip) => write!(f, "address {ip}"),
            Self::Neighbour { ip, mac } => write!(f, "neighbour {ip} at {mac}"),
            Self::Forward { mac, node } => write!(f, "forwarding entry {mac} to {node}"),
            Self::Route {
                destination,
                gateway,
                mtu,
            } => write!(f, "route {destination} via {gateway} mtu {mtu}"),
            Self::Unreachable { destination } => write!(f, "unreachable route {destination}"),
        }
    }
}

/// All wanted rows, and what of the input could not be honoured.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Desired {
    pub(crate) items: Vec<Item>,
    pub(crate) notes: Vec<String>,
}

/// The rows for an overlay: FL-49, FL-50 and FL-51 for each peer and family, but
/// both families on one device, and FL-91's guard as `unreachable`.
pub(crate) fn desired(overlay: &Overlay) -> Desired {
    let mut desired = Desired::default();
    let addresses = [
        overlay.address4.map(IpAddr::V4),
        overlay.address6.map(IpAddr::V6),
    ];
    desired
        .items
        .extend(addresses.into_iter().flatten().map(Item::Address));
    let mut own: Vec<IpNet> = overlay.own_pod_cidrs.iter().map(IpNet::trunc).collect();
    own.sort_unstable();
    own.dedup();
    desired.items.extend(
        own.iter()
            .map(|&destination| Item::Unreachable { destination }),
    );

    let mut macs: HashMap<Mac, Ipv4Addr> = HashMap::with_capacity(overlay.peers.len());
    let mut networks: HashSet<IpNet> = HashSet::with_capacity(overlay.peers.len());
    let mut gateways: HashSet<IpAddr> = HashSet::with_capacity(overlay.peers.len());
    for peer in &overlay.peers {
        if peer.node == overlay.local {
            desired.notes.push(format!(
                "node {} is left out of the overlay: it has this node's own address",
                peer.node
            ));
            continue;
        }
        if peer.vtep_mac == overlay.mac {
            desired.notes.push(format!(
                "node {} is left out of the overlay: it announces this node's own VTEP MAC {}; \
                 correct its annotation",
                peer.node, peer.vtep_mac
            ));
            continue;
        }
        if let Some(other) = macs.get(&peer.vtep_mac).filter(|&&n| n != peer.node) {
            desired.notes.push(format!(
                "node {} is left out of the overlay: it announces VTEP MAC {}, which node {other} \
                 has; correct one of the annotations",
                peer.node, peer.vtep_mac
            ));
            continue;
        }
        if macs.insert(peer.vtep_mac, peer.node).is_none() {
            desired.items.push(Item::Forward {
                mac: peer.vtep_mac,
                node: peer.node,
            });
        }
        for cidr in &peer.pod_cidrs {
            let destination = cidr.trunc();
            if let Some(mine) = own.iter().find(|o| overlap(o, &destination)) {
                desired.notes.push(format!(
                    "pod network {destination} of node {} is left out: it overlaps this node's {mine}",
                    peer.node
                ));
                continue;
            }
            let gateway = destination.addr();
            if !networks.insert(destination) || !gateways.insert(gateway) {
                desired.notes.push(format!(
                    "pod network {destination} of node {} is left out: another node has it or one \
                     that begins with the same address",
                    peer.node
                ));
                continue;
            }
            desired.items.push(Item::Neighbour {
                ip: gateway,
                mac: peer.vtep_mac,
            });
            desired.items.push(Item::Route {
                destination,
                gateway,
                mtu: overlay.mtu,
            });
        }
    }
    desired
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn peer(number: u8) -> Peer {
        Peer {
            node: Ipv4Addr::new(192, 0, 2, number),
            vtep_mac: Mac::new([2, 0, 0, 0, 0, number]),
            pod_cidrs: vec![
                format!("10.244.{number}.0/24").parse().unwrap(),
                format!("fd00:10:244:{number:x}::/64").parse().unwrap(),
            ],
        }
    }

    pub(crate) fn overlay() -> Overlay {
        Overlay {
            device: device_name(1),
            vni: 1,
            port: 8472,
            local: Ipv4Addr::new(192, 0, 2, 1),
            uplink: 3,
            mtu: 1450,
            mac: Mac::new([2, 0, 0, 0, 0, 1]),
            address4: Some(Ipv4Addr::new(10, 244, 1, 0)),
            address6: Some("fd00:10:244:1::".parse().unwrap()),
            peers: vec![peer(2)],
            own_pod_cidrs: peer(1).pod_cidrs,
            answers_by_loopback: false,
        }
    }

    fn lines(desired: &Desired) -> Vec<String> {
        desired.items.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_peer_of_both_families_has_five_rows() {
        let desired = desired(&overlay());
        assert_eq!(desired.notes, [""; 0]);
        assert_eq!(
            lines(&desired),
            [
                "address 10.244.1.0",
                "address fd00:10:244:1::",
                "unreachable route 10.244.1.0/24",
                "unreachable route fd00:10:244:1::/64",
                "forwarding entry 02:00:00:00:00:02 to 192.0.2.2",
                "neighbour 10.244.2.0 at 02:00:00:00:00:02",
                "route 10.244.2.0/24 via 10.244.2.0 mtu 1450",
                "neighbour fd00:10:244:2:: at 02:00:00:00:00:02",
                "route fd00:10:244:2::/64 via fd00:10:244:2:: mtu 1450",
            ]
        );
    }

    #[test]
    fn host_bits_of_a_pod_network_do_not_matter() {
        let mut overlay = overlay();
        overlay.peers[0].pod_cidrs = vec!["10.244.2.7/24".parse().unwrap()];
        assert!(
            lines(&desired(&overlay))
                .contains(&"route 10.244.2.0/24 via 10.244.2.0 mtu 1450".into())
        );
    }

    #[test]
    fn contradictory_peers_are_left_out_with_a_word() {
        let mut overlay = overlay();
        let mut same_mac = peer(3);
        same_mac.vtep_mac = peer(2).vtep_mac;
        let mut same_network = peer(4);
        same_network.pod_cidrs = peer(2).pod_cidrs;
        let mut ours = peer(5);
        ours.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
        let mut our_mac = peer(6);
        our_mac.vtep_mac = overlay.mac;
        overlay
            .peers
            .extend([same_mac, same_network, ours, our_mac, peer(1)]);
        let got = desired(&overlay);
        assert_eq!(got.notes.len(), 6, "{:#?}", got.notes);
        let rows = got.items.len();
        overlay.peers.truncate(1);
        assert_eq!(
            rows,
            desired(&overlay).items.len() + 2,
            "two more forwarding entries only"
        );
    }
}
