//! Which endpoints a service port uses on a node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{Endpoint, EndpointSlice, Family, Protocol, ServicePort};

/// The endpoints that new flows of a service port may go to, seen from one
/// node. Both lists ascend and hold each address and port once (KP-16).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointSets {
    /// Where the policy is Cluster.
    pub cluster: Vec<SocketAddr>,
    /// Where the policy is Local.
    pub local: Vec<SocketAddr>,
    /// Whether any endpoint can be used at all: an empty list drops if so, and
    /// refuses if not (KP-53, KP-54, KP-55, KP-56).
    pub any: bool,
}

/// What `port` uses on the node `node`, which is in `zone`.
pub fn select<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    port: &ServicePort,
    node: &str,
    zone: Option<&str>,
) -> EndpointSets {
    let merged = merge(slices, family, &port.name, port.protocol);
    let all: Vec<(SocketAddr, &Endpoint)> = merged.into_iter().collect();
    let here: Vec<(SocketAddr, &Endpoint)> = all
        .iter()
        .filter(|(_, e)| is_on(e, node))
        .copied()
        .collect();
    let ready: Vec<&Endpoint> = all.iter().map(|(_, e)| *e).filter(|e| e.ready).collect();
    let topology = Topology::of(&ready, node, zone);
    EndpointSets {
        // A hint for us is what turns a topology on, so this is never empty
        // where an endpoint is ready.
        cluster: ready_or_serving(&all, |e| topology.allows(e)),
        // Topology is for the cluster's set only (KP-90).
        local: ready_or_serving(&here, |_| true),
        any: all
            .iter()
            .any(|(_, e)| e.ready || (e.serving && e.terminating)),
    }
}

/// How many endpoints of `node` load balancers may count on: distinct addresses
/// with at least one ready port; those that terminate do not count (KP-82, KP-155).
pub fn ready_here<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    node: &str,
) -> usize {
    let slices: Vec<&EndpointSlice> = slices.into_iter().collect();
    let ports: BTreeSet<(&str, Protocol)> = slices
        .iter()
        .flat_map(|slice| &slice.ports)
        .map(|port| (port.name.as_str(), port.protocol))
        .collect();
    let ready: BTreeSet<IpAddr> = ports
        .into_iter()
        .flat_map(|(name, protocol)| merge(slices.iter().copied(), family, name, protocol))
        .filter(|(_, e)| e.ready && is_on(e, node))
        .map(|(at, _)| at.ip())
        .collect();
    ready.len()
}

/// Every endpoint of a port once. The port is known by name and protocol; its
/// number is each slice's own (KP-13, KP-14).
fn merge<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    name: &str,
    protocol: Protocol,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let mut merged: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in slices {
        if slice.family != Some(family) {
            continue;
        }
        let numbers = slice
            .ports
            .iter()
            .filter(|p| p.name == name && p.protocol == protocol);
        for number in numbers {
            for endpoint in &slice.endpoints {
                merged
                    .entry(SocketAddr::new(endpoint.addr, number.port))
                    .and_modify(|held| {
                        if rank(endpoint) > rank(held) {
                            *held = endpoint;
                        }
                    })
                    .or_insert(endpoint);
            }
        }
    }
    merged
}

/// Which of two entries of one address and port counts: never the terminating
/// one (KP-17), else the more usable, then any that the order of slices does not decide.
fn rank(e: &Endpoint) -> impl Ord + '_ {
    (
        (!e.terminating, e.ready, e.serving),
        (&e.node, e.node_hints(), e.zone_hints()),
    )
}

fn is_on(endpoint: &Endpoint, node: &str) -> bool {
    endpoint.node.as_deref() == Some(node)
}

/// The ready endpoints that `allowed` takes (KP-76, KP-80), or, if no endpoint
/// of this set is ready, those that terminate but still serve (KP-77, KP-78).
fn ready_or_serving(
    of: &[(SocketAddr, &Endpoint)],
    allowed: impl Fn(&Endpoint) -> bool,
) -> Vec<SocketAddr> {
    let pick = |wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        of.iter()
            .filter(|(_, e)| wanted(e))
            .map(|(at, _)| *at)
            .collect()
    };
    let ready = pick(&|e| e.ready && allowed(e));
    if ready.is_empty() {
        pick(&|e| e.serving && e.terminating)
    } else {
        ready
    }
}

/// By which hints the ready endpoints are narrowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Topology<'a> {
    /// Those that name this node (KP-85).
    Node(&'a str),
    /// Those that name this zone (KP-86).
    Zone(&'a str),
    /// Not at all (KP-87).
    Off,
}

impl<'a> Topology<'a> {
    /// Hints count where all ready endpoints have them and one is for us; what
    /// is not ready is not asked (KP-88).
    fn of(ready: &[&Endpoint], node: &'a str, zone: Option<&'a str>) -> Self {
        let usable = |hints: fn(&Endpoint) -> &[String], us: &str| {
            ready.iter().all(|e| !hints(e).is_empty()) && ready.iter().any(|e| names(hints(e), us))
        };
        if usable(Endpoint::node_hints, node) {
            return Self::Node(node);
        }
        match zone {
            Some(zone) if usable(Endpoint::zone_hints, zone) => Self::Zone(zone),
            _ => Self::Off,
        }
    }

    fn allows(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Node(node) => names(endpoint.node_hints(), node),
            Self::Zone(zone) => names(endpoint.zone_hints(), zone),
            Self::Off => true,
        }
    }
}

fn names(hints: &[String], us: &str) -> bool {
    hints.iter().any(|hint| hint == us)
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
