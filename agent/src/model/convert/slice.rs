//! discovery.k8s.io/v1/EndpointSlice.

use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::discovery::v1 as api;
use k8s_openapi::jiff::Timestamp;

use super::{Converted, check_name, check_port_name, namespaced, port_fault, protocol};
use crate::model::address::{not_unicast, parse_ip};
use crate::model::shared::shared;
use crate::model::{Endpoint, EndpointSlice, Family, Fault, Hints, SlicePort};

/// Label that names the Service (KP-08).
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation that says when what changed the slice last happened, a pod became ready for
/// example (KP-160).
pub const CAUSE: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Label of slices that belong to headless Services (KP-09).
const HEADLESS: &str = "service.kubernetes.io/headless";

/// When what made a slice what it is happened, by the text of [`CAUSE`]. What cannot be read was
/// never said.
pub fn cause(text: &str) -> Option<SystemTime> {
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

/// Converts an EndpointSlice; its namespace defaults to `default`.
pub fn slice(from: &api::EndpointSlice) -> Result<Converted<EndpointSlice>, Fault> {
    let name = namespaced(&from.metadata)?;
    let mut notes = Vec::new();
    let service = service_label(from, &mut notes)?;
    let family = match from.address_type.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            return Err(Fault::new(
                "addressType",
                format!("{other:?} is not an address type"),
                "write IPv4 or IPv6",
            ));
        }
    };
    let ports = ports(from, &mut notes)?;
    let endpoints = match family {
        Some(family) => endpoints(
            from.endpoints.as_deref().unwrap_or_default(),
            family,
            &mut notes,
        )?,
        None => Vec::new(),
    };
    Ok(Converted {
        object: EndpointSlice {
            name,
            service,
            family,
            ports,
            endpoints,
        },
        notes,
    })
}

fn service_label(
    from: &api::EndpointSlice,
    notes: &mut Vec<Fault>,
) -> Result<Option<Arc<str>>, Fault> {
    let label = |name: &str| from.metadata.labels.as_ref().and_then(|l| l.get(name));
    if label(HEADLESS).is_some() {
        return Ok(None);
    }
    let field = format!("metadata.labels[{SERVICE_NAME}]");
    let Some(name) = label(SERVICE_NAME).filter(|name| !name.is_empty()) else {
        notes.push(Fault::new(
            field,
            "is missing, so the slice belongs to no Service",
            "set it to the name of a Service in the same namespace",
        ));
        return Ok(None);
    };
    check_name(&field, name)?;
    Ok(Some(name.as_str().into()))
}

/// A port without name or number is left out (KP-12).
fn ports(from: &api::EndpointSlice, notes: &mut Vec<Fault>) -> Result<Vec<SlicePort>, Fault> {
    let mut ports = Vec::new();
    for (i, from) in from.ports.iter().flatten().enumerate() {
        let field = |part: &str| format!("ports[{i}].{part}");
        let protocol = protocol(&field("protocol"), from.protocol.as_deref())?;
        let Some(name) = from.name.clone() else {
            notes.push(Fault::new(
                field("name"),
                "is missing, so the port is ignored",
                "write the Service's port name, or \"\" for its single unnamed port",
            ));
            continue;
        };
        check_port_name(&field("name"), &name)?;
        let number = from.port.unwrap_or(0);
        let port = u16::try_from(number).map_err(|_| port_fault(&field("port"), number))?;
        if port == 0 {
            notes.push(Fault::new(
                field("port"),
                "is missing or 0, so the port is ignored",
                "write the port that the endpoints listen on",
            ));
            continue;
        }
        ports.push(SlicePort {
            name,
            port,
            protocol,
        });
    }
    Ok(ports)
}

/// Only the first address of an endpoint counts (KP-15).
fn endpoints(
    from: &[api::Endpoint],
    family: Family,
    notes: &mut Vec<Fault>,
) -> Result<Vec<Endpoint>, Fault> {
    let mut endpoints = Vec::with_capacity(from.len());
    for (i, from) in from.iter().enumerate() {
        let field = format!("endpoints[{i}].addresses");
        let Some(text) = from.addresses.first() else {
            notes.push(Fault::new(
                field,
                "is empty, so the endpoint is ignored",
                "write the endpoint's address",
            ));
            continue;
        };
        let field = format!("{field}[0]");
        let mend = || format!("write an {} address that a pod or host has", family.name());
        let addr = parse_ip(text)
            .ok_or_else(|| Fault::new(&field, format!("{text:?} is not an address"), mend()))?;
        if Family::of(addr) != family {
            let problem = format!("{addr} is not of addressType {}", family.name());
            return Err(Fault::new(field, problem, mend()));
        }
        if let Some(what) = not_unicast(addr) {
            return Err(Fault::new(field, format!("{addr} is {what}"), mend()));
        }
        let conditions = from.conditions.as_ref();
        endpoints.push(Endpoint {
            addr,
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            node: from
                .node_name
                .as_deref()
                .filter(|name| !name.is_empty())
                .map(shared),
            hints: hints(from),
        });
    }
    Ok(endpoints)
}

fn hints(from: &api::Endpoint) -> Option<Box<Hints>> {
    let from = from.hints.as_ref()?;
    let nodes = from.for_nodes.iter().flatten();
    let zones = from.for_zones.iter().flatten();
    let hints = Hints {
        nodes: nodes.map(|node| node.name.clone()).collect(),
        zones: zones.map(|zone| zone.name.clone()).collect(),
    };
    (hints != Hints::default()).then(|| hints.into())
}
