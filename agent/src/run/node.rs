//! What this node is, from its Node object and its uplink (pure): the programs'
//! read-only data, the wanted slow path, the plan's facts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Config, Feature, IdleTicks, Ip6, Mac};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::by_xdp;
use super::here::addresses;
use crate::args::{OverlayArgs, RunArgs, per_tick};
use crate::kernel::LOOPBACK;
use crate::kernel::probe::Kernel;
use crate::model::Node;
use crate::net::{self, Interest, NextHop, OVERHEAD, Overlay, Uplink, device_name};
use crate::plan::{self, NodeFacts, Peer, derived_vtep_mac, underlay, vtep_mac};

/// This node, as far as only Node and uplink decide.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    /// Its address on the underlay.
    pub ip4: Ipv4Addr,
    /// Its IPv6 address on the underlay.
    pub ip6: Option<Ipv6Addr>,
    /// Its VTEP's address: what its Node announces, or what all nodes derive.
    pub vtep_mac: Mac,
    /// Network of its IPv4 pods.
    pub pods4: Option<Ipv4Net>,
    /// Network of its IPv6 pods.
    pub pods6: Option<Ipv6Net>,
    /// All networks of its pods, host bits cleared.
    pub pod_cidrs: Vec<IpNet>,
    /// Largest packet in the overlay, in bytes.
    pub mtu: u16,
    /// What the operator should know, one sentence each.
    pub notes: Vec<String>,
}

impl NodeView {
    /// Joins what the Node says with what the uplink has.
    pub fn new(node: &Node, uplink: &Uplink, overlay: &OverlayArgs) -> Self {
        let mut notes = Vec::new();
        let announced = underlay(node);
        let ip4 = match announced {
            Some(ip) if uplink.addresses4.contains(&ip) => ip,
            Some(ip) => {
                notes.push(format!(
                    "Node {} says {ip}, which uplink {} does not have: the overlay uses {}; other \
                     nodes reach this one only if {ip} is translated to it, else name another --uplink",
                    node.name,
                    uplink.name,
                    uplink.ip4()
                ));
                uplink.ip4()
            }
            None => uplink.ip4(),
        };
        let pod_cidrs: Vec<IpNet> = node.pod_cidrs.iter().map(IpNet::trunc).collect();
        let nets4: Vec<Ipv4Net> = pod_cidrs
            .iter()
            .filter_map(|net| match net {
                IpNet::V4(net) => Some(*net),
                IpNet::V6(_) => None,
            })
            .collect();
        let nets6: Vec<Ipv6Net> = pod_cidrs
            .iter()
            .filter_map(|net| match net {
                IpNet::V6(net) => Some(*net),
                IpNet::V4(_) => None,
            })
            .collect();
        if pod_cidrs.is_empty() {
            notes.push(format!(
                "Node {} has no spec.podCIDRs: it has no pods that the datapath delivers to",
                node.name
            ));
        }
        if nets4.len() > 1 || nets6.len() > 1 {
            notes.push(format!(
                "Node {} has several pod networks of one family: pods beyond the first one are \
                 reached through the kernel",
                node.name
            ));
        }
        Self {
            ip4,
            ip6: uplink
                .addresses6
                .iter()
                .copied()
                .find(|ip| !ip.is_unicast_link_local()),
            vtep_mac: vtep_mac(node).unwrap_or_else(|| derived_vtep_mac(ip4)),
            pods4: nets4.first().copied(),
            pods6: nets6.first().copied(),
            pod_cidrs,
            mtu: mtu(uplink, overlay, &mut notes),
            notes,
        }
    }

    /// The programs' read-only data. `vtep` is the index of the VTEP device, 0
    /// while there is none. The bridge, the sender that `tulle_xdp` leaves, and what the
    /// objects of the cluster switch on besides, are left out.
    pub fn config(&self, uplink: &Uplink, args: &RunArgs, vtep: u32, kernel: &Kernel) -> Config {
        let RunArgs {
            overlay,
            services,
            limits,
            ..
        } = args;
        let features = [
            (true, Feature::OVERLAY),
            (kernel.decap_6_in_4, Feature::DECAP_6_IN_4),
            (kernel.calls, Feature::CALLS),
            (kernel.tells_mptcp, Feature::TELLS_MPTCP),
            (true, Feature::ICMP_ERRORS),
            (true, Feature::HOLD_FRAGMENTS),
            (services.uplink_services, Feature::UPLINK_SERVICES),
            (services.count_services, Feature::COUNT_SERVICES),
            (
                services.uplink_services && by_xdp::wanted(overlay, uplink).is_ok(),
                Feature::XDP_SERVICES,
            ),
            (services.masquerade, Feature::MASQUERADE),
            (!services.service_cidr.is_empty(), Feature::SERVICE_NETWORKS),
        ];
        let on = features.into_iter().filter(|(on, _)| *on);
        let features = on.fold(0, |bits, (_, bit)| bits | bit);
        let none = Config::EMPTY;
        // An ICMPv6 error needs a source even where the underlay has no IPv6.
        let router6 = self.ip6.or_else(|| self.pods6.map(|net| net.network()));
        Config {
            node_ip4: self.ip4.into(),
            pod_net4: self.pods4.map_or(none.pod_net4, |net| net.network().into()),
            pod_mask4: self
                .pods4
                .map_or(none.pod_mask4, |net| net.netmask().into()),
            router_ip4: self.ip4.into(),
            pod_net6: self.pods6.map_or(none.pod_net6, |net| net.network().into()),
            pod_mask6: self
                .pods6
                .map_or(none.pod_mask6, |net| net.netmask().into()),
            router_ip6: router6.map_or(Ip6::new([0; 16]), Ip6::from),
            node_ip6: self.ip6.map_or(none.node_ip6, Ip6::from),
            uplink: uplink.index,
            vtep,
            loopback: if services.uplink_services {
                LOOPBACK
            } else {
                0
            },
            bridge: none.bridge,
            snat_first: services.snat_ports.first(),
            snat_ports: services.snat_ports.count(),
            vni: overlay.vni,
            vxlan_port: overlay.vxlan_port,
            overlay_mtu: self.mtu,
            vtep_mac: self.vtep_mac,
            uplink_mac: uplink.mac,
            stripped_mac: none.stripped_mac,
            reserved: none.reserved,
            features,
            flows_per_tick: per_tick(limits.flows_per_second),
            errors_per_tick: per_tick(limits.errors_per_second),
            idle: IdleTicks::DEFAULT,
            netns: none.netns,
        }
    }

    /// The slow path that the kernel should hold.
    pub fn overlay(&self, uplink: &Uplink, args: &RunArgs, peers: &[Peer]) -> Overlay {
        let RunArgs {
            overlay: args,
            services,
            ..
        } = args;
        Overlay {
            device: device_name(args.vni),
            vni: args.vni,
            port: args.vxlan_port,
            local: self.ip4,
            uplink: uplink.index,
            mtu: u32::from(self.mtu),
            mac: self.vtep_mac,
            address4: self.pods4.map(|net| net.network()),
            address6: self.pods6.map(|net| net.network()),
            peers: peers
                .iter()
                .map(|peer| net::Peer {
                    node: peer.underlay,
                    vtep_mac: peer.vtep_mac,
                    pod_cidrs: peer.pod_cidrs.clone(),
                })
                .collect(),
            own_pod_cidrs: self.pod_cidrs.clone(),
            answers_by_loopback: services.uplink_services,
        }
    }

    /// What notifications of the kernel matter.
    pub fn interest(&self, uplink: &Uplink, vni: u32) -> Interest {
        Interest {
            uplink: uplink.name.clone(),
            device: device_name(vni),
            own_pod_cidrs: self.pod_cidrs.clone(),
        }
    }

    /// The plan's facts. Pods behind other interfaces than veths are left to the kernel.
    pub fn facts(
        &self,
        name: &str,
        uplink: &Uplink,
        pods: &[net::LocalPod],
        next_hops: &BTreeMap<Ipv4Addr, Ipv4Addr>,
    ) -> NodeFacts {
        let local_pods = pods.iter().filter(|pod| pod.veth).map(|pod| {
            let row = plan::LocalPod {
                ifindex: pod.ifindex,
                pod_mac: pod.pod_mac,
                host_mac: pod.host_mac,
            };
            (pod.ip, row)
        });
        NodeFacts {
            name: name.to_owned(),
            uplink_ifindex: uplink.index,
            node_ip4: Some(self.ip4),
            node_ip6: self.ip6,
            vtep_mac: self.vtep_mac,
            local_pods: local_pods.collect(),
            next_hops: next_hops.clone(),
            own_addresses: addresses(uplink).collect(),
            direct: BTreeSet::new(),
            services: BTreeSet::new(),
            overlay: true,
        }
    }
}

/// A next hop that the programs can use: an IPv4 address on the uplink.
pub fn usable_hop(hop: &NextHop, uplink: u32) -> Option<Ipv4Addr> {
    match hop.via {
        IpAddr::V4(via) if hop.ifindex == uplink => Some(via),
        _ => None,
    }
}

fn mtu(uplink: &Uplink, overlay: &OverlayArgs, notes: &mut Vec<String>) -> u16 {
    let most = u16::try_from(uplink.mtu.saturating_sub(OVERHEAD)).unwrap_or(u16::MAX);
    let mtu = match overlay.mtu {
        Some(asked) if asked > most => {
            notes.push(format!(
                "--mtu {asked} does not fit uplink {}, whose MTU is {}: {most} is used",
                uplink.name, uplink.mtu
            ));
            most
        }
        Some(asked) => asked,
        None => most,
    };
    if mtu < 1280 {
        notes.push(format!(
            "the overlay's MTU is {mtu}: IPv6 needs 1280, so IPv6 between pods of different nodes \
             will not work; raise the MTU of uplink {}",
            uplink.name
        ));
    }
    mtu
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
