//! v1/Pod: addresses and host ports.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;

use super::exposed::number;
use super::{Converted, namespaced, port_fault, protocol};
use crate::model::address::{not_unicast, parse_ip};
use crate::model::{Family, Fault, HostPort, Pod};

/// Converts a Pod; its namespace defaults to `default`.
pub fn pod(from: &api::Pod) -> Result<Converted<Pod>, Fault> {
    let mut notes = Vec::new();
    let object = Pod {
        name: namespaced(&from.metadata)?,
        node: from.spec.as_ref().and_then(|s| s.node_name.clone()),
        ips: ips(from, &mut notes),
        host_ports: match &from.spec {
            Some(spec) if !spec.host_network.unwrap_or(false) && !is_done(from) => {
                host_ports(spec, &mut notes)?
            }
            _ => Vec::new(),
        },
    };
    Ok(Converted { object, notes })
}

fn is_done(from: &api::Pod) -> bool {
    let phase = from.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The first address of each family.
fn ips(from: &api::Pod, notes: &mut Vec<Fault>) -> Vec<IpAddr> {
    let Some(status) = &from.status else {
        return Vec::new();
    };
    let mut listed: Vec<(String, &str)> = Vec::new();
    for (i, ip) in status.pod_ips.iter().flatten().enumerate() {
        listed.push((format!("status.podIPs[{i}].ip"), &ip.ip));
    }
    if listed.is_empty() {
        listed.extend(
            status
                .pod_ip
                .as_deref()
                .map(|ip| ("status.podIP".into(), ip)),
        );
    }
    let mut ips: Vec<IpAddr> = Vec::new();
    for (field, text) in listed.into_iter().filter(|(_, text)| !text.is_empty()) {
        match parse_ip(text).filter(|ip| not_unicast(*ip).is_none()) {
            Some(ip) if ips.iter().any(|held| Family::of(*held) == Family::of(ip)) => {}
            Some(ip) => ips.push(ip),
            None => notes.push(Fault::new(
                field,
                format!("{text:?} is not an address of a pod, so it is passed over"),
                "write the pod's address",
            )),
        }
    }
    ips
}

/// Those of containers, and of init containers that stay (sidecars).
fn host_ports(spec: &api::PodSpec, notes: &mut Vec<Fault>) -> Result<Vec<HostPort>, Fault> {
    let mut host_ports = Vec::new();
    let stays = |c: &api::Container| c.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().enumerate();
    let containers = spec.containers.iter().enumerate();
    let all = containers
        .map(|(i, c)| (format!("spec.containers[{i}]"), c))
        .chain(
            init.filter(|(_, c)| stays(c))
                .map(|(i, c)| (format!("spec.initContainers[{i}]"), c)),
        );
    for (container, from) in all {
        for (i, from) in from.ports.iter().flatten().enumerate() {
            let field = |part: &str| format!("{container}.ports[{i}].{part}");
            let Some(port) = number(&field("hostPort"), from.host_port)? else {
                continue;
            };
            let container_port = number(&field("containerPort"), Some(from.container_port))?
                .ok_or_else(|| port_fault(&field("containerPort"), from.container_port))?;
            let protocol = protocol(&field("protocol"), from.protocol.as_deref())?;
            match host_ip(&field("hostIP"), from.host_ip.as_deref()) {
                Ok(addr) => host_ports.push(HostPort {
                    addr,
                    port,
                    container_port,
                    protocol,
                }),
                Err(fault) => notes.push(fault),
            }
        }
    }
    Ok(host_ports)
}

/// `None` for all addresses of the node.
fn host_ip(field: &str, text: Option<&str>) -> Result<Option<IpAddr>, Fault> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match parse_ip(text) {
        Some(addr) if addr.is_unspecified() => Ok(None),
        Some(addr) if not_unicast(addr).is_none() => Ok(Some(addr)),
        _ => Err(Fault::new(
            field,
            format!("{text:?} is no address that others reach, so the port is not served"),
            "write an address of the node, or leave it out for all of them",
        )),
    }
}
