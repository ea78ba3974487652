//! v1/Node, with flannel's annotations.

use std::net::{IpAddr, Ipv4Addr};

use datapath_common::Mac;
use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::{Converted, name};
use crate::model::address::{not_unicast, parse_ip, parse_mac, parse_net};
use crate::model::{DirectReturn, Fault, Leaving, Node};

/// The node's address on the underlay, if it is not its InternalIP (FL-13).
const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// The overlay's data, JSON with the VTEP's address (FL-15).
const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// The label that names the node's zone (KP-84).
const ZONE: &str = "topology.kubernetes.io/zone";
/// The families of which the node answers clients of other nodes' services itself.
const DIRECT_RETURN: &str = "tulle.io/direct-return";
/// The taint of a node that the autoscaler is about to remove (KP-151).
const SCALED_DOWN: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts a Node.
pub fn node(from: &api::Node) -> Result<Converted<Node>, Fault> {
    let mut notes = Vec::new();
    let object = Node {
        name: name(&from.metadata)?.to_owned(),
        pod_cidrs: pod_cidrs(from)?,
        internal_ips: internal_ips(from)?,
        external_ips: external_ips(from, &mut notes),
        zone: zone(from),
        public_ip: public_ip(from, &mut notes),
        vtep_mac: vtep_mac(from, &mut notes),
        direct_return: direct_return(from, &mut notes),
        leaving: leaving(from),
    };
    Ok(Converted { object, notes })
}

fn pod_cidrs(from: &api::Node) -> Result<Vec<IpNet>, Fault> {
    let Some(spec) = &from.spec else {
        return Ok(Vec::new());
    };
    let mut listed: Vec<(String, &str)> = spec
        .pod_cidrs
        .iter()
        .flatten()
        .enumerate()
        .map(|(i, text)| (format!("spec.podCIDRs[{i}]"), text.as_str()))
        .collect();
    if listed.is_empty() {
        let single = spec.pod_cidr.as_deref().filter(|t| !t.is_empty());
        listed.extend(single.map(|text| ("spec.podCIDR".to_owned(), text)));
    }
    let mut nets = Vec::with_capacity(listed.len());
    for (field, text) in listed {
        let mend = "write a network such as 10.244.1.0/24 or fd00:10:244:1::/64";
        let net = parse_net(text)
            .ok_or_else(|| Fault::new(&field, format!("{text:?} is not a network"), mend))?;
        if net.prefix_len() == 0 || not_unicast(net.addr()).is_some() {
            return Err(Fault::new(field, format!("{net} cannot hold pods"), mend));
        }
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    Ok(nets)
}

fn internal_ips(from: &api::Node) -> Result<Vec<IpAddr>, Fault> {
    addresses(from, "InternalIP").collect()
}

/// Nothing between nodes needs these, so a bad one is passed over, not the Node.
fn external_ips(from: &api::Node, notes: &mut Vec<Fault>) -> Vec<IpAddr> {
    addresses(from, "ExternalIP")
        .filter_map(|addr| addr.map_err(|fault| notes.push(fault)).ok())
        .collect()
}

fn addresses(from: &api::Node, kind: &str) -> impl Iterator<Item = Result<IpAddr, Fault>> {
    let listed = from
        .status
        .iter()
        .flat_map(|s| s.addresses.iter().flatten());
    listed
        .enumerate()
        .filter(move |(_, a)| a.type_ == kind)
        .map(|(i, address)| {
            let addr = parse_ip(&address.address).filter(|a| not_unicast(*a).is_none());
            addr.ok_or_else(|| {
                Fault::new(
                    format!("status.addresses[{i}].address"),
                    format!("{:?} is not an address of a host", address.address),
                    "write the node's address on the network that joins the nodes",
                )
            })
        })
}

fn zone(from: &api::Node) -> Option<String> {
    let zone = from.metadata.labels.as_ref()?.get(ZONE)?;
    (!zone.is_empty()).then(|| zone.clone())
}

fn annotation<'a>(from: &'a api::Node, key: &str) -> Option<&'a str> {
    let text = from.metadata.annotations.as_ref()?.get(key)?.trim();
    (!text.is_empty()).then_some(text)
}

/// An annotation is written by machines, so a bad one is passed over, not the Node.
fn public_ip(from: &api::Node, notes: &mut Vec<Fault>) -> Option<Ipv4Addr> {
    let text = annotation(from, PUBLIC_IP)?;
    match parse_ip(text) {
        Some(IpAddr::V4(addr)) if not_unicast(IpAddr::V4(addr)).is_none() => Some(addr),
        _ => {
            notes.push(Fault::new(
                format!("metadata.annotations[{PUBLIC_IP}]"),
                format!("{text:?} is not an IPv4 address, so InternalIP is used"),
                "write the node's IPv4 address on the underlay, or remove the annotation",
            ));
            None
        }
    }
}

fn vtep_mac(from: &api::Node, notes: &mut Vec<Fault>) -> Option<Mac> {
    let text = annotation(from, BACKEND_DATA)?;
    let mut note = |problem: String| {
        notes.push(Fault::new(
            format!("metadata.annotations[{BACKEND_DATA}]"),
            format!("{problem}, so the VTEP's address is derived from the node's"),
            r#"write {"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"} with the VTEP's address"#,
        ));
        None
    };
    let Ok(data) = serde_json::from_str::<serde_json::Value>(text) else {
        return note("is not JSON".to_owned());
    };
    // Backends without a VTEP write `null` (FL-18).
    let mac = data.get("VtepMAC")?;
    match mac
        .as_str()
        .and_then(parse_mac)
        .filter(|mac| is_unicast(*mac))
    {
        Some(mac) => Some(mac),
        None => note(format!("VtepMAC {mac} is not a unicast Ethernet address")),
    }
}

fn direct_return(from: &api::Node, notes: &mut Vec<Fault>) -> DirectReturn {
    let text = annotation(from, DIRECT_RETURN).unwrap_or_default();
    text.parse().unwrap_or_else(|problem| {
        notes.push(Fault::new(
            format!("metadata.annotations[{DIRECT_RETURN}]"),
            format!("{problem}, so packets for its pods are translated"),
            "write IPv4, IPv6 or IPv4,IPv6, or remove the annotation",
        ));
        DirectReturn::default()
    })
}

/// Other taints, and a node that is cordoned, say nothing of traffic (KP-151).
fn leaving(from: &api::Node) -> Option<Leaving> {
    if from.metadata.deletion_timestamp.is_some() {
        return Some(Leaving::Deleted);
    }
    let taints = from.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let mut keys = taints.map(|taint| taint.key.as_str());
    keys.any(|key| key == SCALED_DOWN)
        .then_some(Leaving::ScaledDown)
}

fn is_unicast(mac: Mac) -> bool {
    let octets = mac.octets();
    octets[0] & 1 == 0 && octets != [0; 6]
}
