//! What this node is: given by the net side, with the ways to its own pods and to other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Ip4, Mac, Via, ViaKind};
use ipnet::IpNet;

/// A pod of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalPod {
    /// Host side of its veth.
    pub ifindex: u32,
    /// The pod's Ethernet address.
    pub pod_mac: Mac,
    /// The host side's Ethernet address.
    pub host_mac: Mac,
}

/// This node as it is now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeFacts {
    /// Its name in the cluster.
    pub name: String,
    /// The interface that joins it to the other nodes.
    pub uplink_ifindex: u32,
    /// Its IPv4 address on the underlay.
    pub node_ip4: Option<Ipv4Addr>,
    /// Its IPv6 address on the underlay.
    pub node_ip6: Option<Ipv6Addr>,
    /// Its VTEP's Ethernet address.
    pub vtep_mac: Mac,
    /// Its pods by address.
    pub local_pods: BTreeMap<IpAddr, LocalPod>,
    /// Underlay address of another node → that address if it is on the link, else the gateway.
    /// A node without an entry is left to the kernel's routing.
    pub next_hops: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Its own addresses: an endpoint there is a process of the node.
    pub own_addresses: BTreeSet<IpAddr>,
    /// Networks that pods reach without masquerade, besides pods.
    pub direct: BTreeSet<IpNet>,
    /// Networks that Services have their addresses from, besides those of ServiceCIDRs.
    pub services: BTreeSet<IpNet>,
    /// Whether this node takes part in the overlay.
    pub overlay: bool,
}

impl LocalPod {
    /// The way to the pod.
    pub fn via(&self) -> Via {
        Via {
            kind: ViaKind::Local as u8,
            ifindex: self.ifindex,
            dst_mac: self.pod_mac,
            src_mac: self.host_mac,
            ..Via::KERNEL
        }
    }
}

impl NodeFacts {
    /// The way to the pods of the node at `peer`; `None` where the overlay is
    /// off or nothing is known of the route.
    pub fn vxlan(&self, peer: Ipv4Addr, vtep_mac: Mac) -> Option<Via> {
        let node = self.node_ip4.filter(|_| self.overlay)?;
        let next_hop = *self.next_hops.get(&peer)?;
        Some(Via {
            kind: ViaKind::Vxlan as u8,
            flags: 0,
            outer_sum: outer_sum(node, peer),
            ifindex: self.uplink_ifindex,
            node: peer.into(),
            next_hop: next_hop.into(),
            dst_mac: vtep_mac,
            src_mac: self.vtep_mac,
        })
    }
}

/// The Ethernet address of a VTEP for which none is published: a fixed local
/// prefix and the node's underlay address, so that every node derives the same.
pub const fn derived_vtep_mac(underlay: Ipv4Addr) -> Mac {
    let [a, b, c, d] = underlay.octets();
    Mac::new([0x0a, 0x58, a, b, c, d])
}

/// One's-complement sum (RFC 1071) of the constant part of the outer IPv4
/// header, in 16-bit words as loaded from memory, folded, not complemented.
/// Total length, identification and checksum are zero.
pub fn outer_sum(src: Ipv4Addr, dst: Ipv4Addr) -> u16 {
    let word = |a: u8, b: u8| u32::from(u16::from_ne_bytes([a, b]));
    let address = |addr: Ipv4Addr| {
        let [a, b, c, d] = Ip4::from(addr).octets();
        word(a, b) + word(c, d)
    };
    // Version and header length, TOS; TTL, protocol.
    let mut sum = word(0x45, 0) + word(64, 17) + address(src) + address(dst);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outer_sum_completes_to_a_valid_header() {
        for (src, dst) in [
            ([192, 168, 0, 1], [192, 168, 0, 2]),
            ([255, 255, 255, 255], [255, 255, 255, 255]),
            ([10, 0, 0, 1], [10, 0, 255, 254]),
        ] {
            let mut header = [
                0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ];
            header[12..16].copy_from_slice(&src);
            header[16..].copy_from_slice(&dst);
            header[2..4].copy_from_slice(&1450_u16.to_be_bytes());
            header[4..6].copy_from_slice(&0xbeef_u16.to_be_bytes());
            let mut sum = u32::from(outer_sum(src.into(), dst.into()))
                + u32::from(1450_u16.to_be())
                + u32::from(0xbeef_u16.to_be());
            sum = (sum & 0xffff) + (sum >> 16);
            sum = (sum & 0xffff) + (sum >> 16);
            header[10..12].copy_from_slice(&(!(sum as u16)).to_ne_bytes());
            // The receiver's check (RFC 791), in network order: all ones.
            let total = header
                .chunks(2)
                .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
                .fold(0, |s, w| (s + w) % 0xffff);
            assert_eq!(total, 0, "{src:?} {dst:?}");
        }
    }

    #[test]
    fn derived_vtep_mac_holds_the_address() {
        let mac = derived_vtep_mac([192, 168, 1, 2].into());
        assert_eq!(mac.to_string(), "0a:58:c0:a8:01:02");
    }
}
