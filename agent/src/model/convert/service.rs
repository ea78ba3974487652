//! v1/Service.

use std::net::IpAddr;
use std::str::FromStr;

use k8s_openapi::api::core::v1 as api;

use super::{Converted, check_port_name, exposed, namespaced, port_fault, protocol};
use crate::model::address::{not_unicast, parse_ip};
use crate::model::{Choice, Exposure, Family, Fault, Service, ServicePort};

/// Label that hands a Service to another proxy (KP-01).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// Annotation with the name of a scheduler.
const SCHEDULER: &str = "tulle.io/scheduler";
/// Annotation with the weights of endpoints.
const WEIGHTS: &str = "tulle.io/weights";
/// Annotation that says how clients outside reach backends on other nodes.
const FORWARDING: &str = "tulle.io/forwarding";

/// Converts a Service; its namespace defaults to `default`.
pub fn service(from: &api::Service) -> Result<Converted<Service>, Fault> {
    let name = namespaced(&from.metadata)?;
    let empty = api::ServiceSpec::default();
    let spec = from.spec.as_ref().unwrap_or(&empty);
    let exposure = exposure(from, spec)?;
    let mut notes = Vec::new();
    if exposure != Exposure::Served {
        let mut object = Service::new(name, exposure);
        if exposure == Exposure::OtherProxy {
            // What is wrong with them is the other proxy's to say.
            object.cluster_ips = cluster_ips(spec, &mut Vec::new()).unwrap_or_default();
        }
        return Ok(Converted { object, notes });
    }
    let cluster_ips = cluster_ips(spec, &mut notes)?;
    let object = Service {
        name,
        exposure,
        external_ips: exposed::external_ips(spec, &cluster_ips, &mut notes),
        vips: exposed::vips(from, &cluster_ips, &mut notes),
        cluster_ips,
        ports: ports(spec)?,
        internal_policy: exposed::internal_policy(spec)?,
        external_policy: exposed::external_policy(spec)?,
        affinity_secs: exposed::affinity_secs(spec)?,
        source_ranges: exposed::source_ranges(spec, &mut notes),
        load_balancer: exposed::is_load_balancer(spec),
        health_check_node_port: exposed::health_check_node_port(spec, &mut notes)?,
        choice: choice(from, &mut notes),
        forwarding: annotation(
            from,
            FORWARDING,
            "write snat or dsr, or leave the annotation out",
            &mut notes,
        ),
    };
    Ok(Converted { object, notes })
}

/// What annotations say of the choice of a backend; what they say badly counts as not said.
fn choice(from: &api::Service, notes: &mut Vec<Fault>) -> Choice {
    let scheduler = annotation(
        from,
        SCHEDULER,
        "write one of these, or leave the annotation out",
        notes,
    );
    let weights = annotation(
        from,
        WEIGHTS,
        "write addresses or networks of endpoints with their weights, such as 10.244.1.7=0,10.244.2.0/24=3",
        notes,
    );
    Choice {
        scheduler,
        weights: weights.unwrap_or_default(),
    }
}

fn annotation<T: FromStr<Err = String>>(
    from: &api::Service,
    name: &str,
    mend: &str,
    notes: &mut Vec<Fault>,
) -> Option<T> {
    let text = from.metadata.annotations.as_ref()?.get(name)?;
    let parsed = text.parse();
    let fault = |problem| Fault::new(format!("metadata.annotations[{name}]"), problem, mend);
    parsed.map_err(|problem| notes.push(fault(problem))).ok()
}

fn exposure(from: &api::Service, spec: &api::ServiceSpec) -> Result<Exposure, Fault> {
    let labels = from.metadata.labels.as_ref();
    if labels.is_some_and(|l| l.contains_key(PROXY_NAME)) {
        return Ok(Exposure::OtherProxy);
    }
    match spec.type_.as_deref() {
        Some("ExternalName") => return Ok(Exposure::ExternalName),
        None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer") => {}
        Some(other) => {
            return Err(Fault::new(
                "spec.type",
                format!("{other:?} is not a type"),
                "write ClusterIP, NodePort, LoadBalancer or ExternalName",
            ));
        }
    }
    let first = spec.cluster_ips.as_ref().and_then(|ips| ips.first());
    let headless = spec
        .cluster_ip
        .as_ref()
        .or(first)
        .is_some_and(|ip| ip == "None");
    Ok(if headless {
        Exposure::Headless
    } else {
        Exposure::Served
    })
}

/// One address for each family, as `ipFamilies` orders them (KP-05).
fn cluster_ips(spec: &api::ServiceSpec, notes: &mut Vec<Fault>) -> Result<Vec<IpAddr>, Fault> {
    let listed = listed_addresses(spec)?;
    if listed.is_empty() {
        notes.push(Fault::new(
            "spec.clusterIP",
            "is missing, so the Service has no address",
            "write an address of the cluster's service network, or None for a headless Service",
        ));
        return Ok(listed);
    }
    let families = families(spec)?;
    if families.is_empty() {
        if listed.len() > 1 {
            notes.push(Fault::new(
                "spec.ipFamilies",
                "is missing, so only the first of clusterIPs is served",
                "list the families in the order of clusterIPs, such as [IPv4, IPv6]",
            ));
        }
        return Ok(listed.into_iter().take(1).collect());
    }
    for (i, (addr, family)) in listed.iter().zip(&families).enumerate() {
        if Family::of(*addr) != *family {
            return Err(Fault::new(
                format!("spec.clusterIPs[{i}]"),
                format!("{addr} is not an {} address", family.name()),
                format!("make it one, or change spec.ipFamilies[{i}]"),
            ));
        }
    }
    if listed.len() > families.len() {
        notes.push(Fault::new(
            format!("spec.clusterIPs[{}]", families.len()),
            "has no family, so it is not served",
            "list its family in spec.ipFamilies",
        ));
    }
    Ok(listed.into_iter().take(families.len()).collect())
}

fn listed_addresses(spec: &api::ServiceSpec) -> Result<Vec<IpAddr>, Fault> {
    let mut listed = Vec::new();
    for (i, text) in spec.cluster_ips.iter().flatten().enumerate() {
        listed.push(service_address(&format!("spec.clusterIPs[{i}]"), text)?);
    }
    if let Some(text) = spec.cluster_ip.as_deref().filter(|t| !t.is_empty()) {
        let addr = service_address("spec.clusterIP", text)?;
        match listed.first() {
            None => listed.push(addr),
            Some(first) if *first != addr => {
                return Err(Fault::new(
                    "spec.clusterIPs[0]",
                    format!("{first} differs from spec.clusterIP, {addr}"),
                    "write the same address in both",
                ));
            }
            Some(_) => {}
        }
    }
    Ok(listed)
}

fn service_address(field: &str, text: &str) -> Result<IpAddr, Fault> {
    let mend = "write an IPv4 or IPv6 address of the cluster's service network";
    let addr = parse_ip(text)
        .ok_or_else(|| Fault::new(field, format!("{text:?} is not an address"), mend))?;
    match not_unicast(addr) {
        Some(what) => Err(Fault::new(field, format!("{addr} is {what}"), mend)),
        None => Ok(addr),
    }
}

fn families(spec: &api::ServiceSpec) -> Result<Vec<Family>, Fault> {
    let mut families = Vec::new();
    for (i, text) in spec.ip_families.iter().flatten().enumerate() {
        let field = format!("spec.ipFamilies[{i}]");
        let family = match text.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => {
                let problem = format!("{text:?} is not a family");
                return Err(Fault::new(field, problem, "write IPv4 or IPv6"));
            }
        };
        if families.contains(&family) {
            return Err(Fault::new(
                field,
                format!("{text} is listed twice"),
                "list it once",
            ));
        }
        families.push(family);
    }
    Ok(families)
}

fn ports(spec: &api::ServiceSpec) -> Result<Vec<ServicePort>, Fault> {
    let listed = spec.ports.as_deref().unwrap_or_default();
    if listed.is_empty() {
        return Err(Fault::new(
            "spec.ports",
            "is empty",
            "list at least one port",
        ));
    }
    let mut ports: Vec<ServicePort> = Vec::with_capacity(listed.len());
    for (i, from) in listed.iter().enumerate() {
        let field = |part: &str| format!("spec.ports[{i}].{part}");
        let port = u16::try_from(from.port)
            .ok()
            .filter(|p| *p != 0)
            .ok_or_else(|| port_fault(&field("port"), from.port))?;
        let protocol = protocol(&field("protocol"), from.protocol.as_deref())?;
        let name = from.name.clone().unwrap_or_default();
        check_port_name(&field("name"), &name)?;
        if name.is_empty() && listed.len() > 1 {
            return Err(Fault::new(
                field("name"),
                "is missing",
                "name every port of a Service that has more than one",
            ));
        }
        if ports.iter().any(|p| p.name == name) {
            return Err(Fault::new(
                field("name"),
                format!("{name:?} names an earlier port"),
                "give each port its own name",
            ));
        }
        if ports
            .iter()
            .any(|p| p.port == port && p.protocol == protocol)
        {
            return Err(Fault::new(
                field("port"),
                format!("{port}/{} is listed twice", protocol.name()),
                "keep one of them, or change port or protocol",
            ));
        }
        let node_port = exposed::number(&field("nodePort"), from.node_port)?;
        if node_port.is_some()
            && ports
                .iter()
                .any(|p| p.node_port == node_port && p.protocol == protocol)
        {
            return Err(Fault::new(
                field("nodePort"),
                "is an earlier port's",
                "give each port of one protocol its own nodePort",
            ));
        }
        ports.push(ServicePort {
            name,
            port,
            protocol,
            node_port,
        });
    }
    Ok(ports)
}
