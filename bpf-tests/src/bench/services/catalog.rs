//! The services that are there: one that is asked, and others that nobody asks.
//! The same ones for Tulle and for both rulesets.

use std::net::Ipv4Addr;

use testkit::manifests::{Endpoint, Protocol, Service};

use crate::bench::traffic::{TCP_ECHO, UDP_ECHO};

/// Most services: their endpoints' ports are all different.
pub const MOST: usize = 50_000;
/// Address of the service that is asked.
pub const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Its port, of TCP and of UDP.
pub const PORT: u16 = 80;
/// Its node ports.
pub const NODE_PORTS: [(Proto, u16); 2] = [(Proto::Tcp, 30_500), (Proto::Udp, 30_501)];
/// The first of the others' addresses.
const OTHERS: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 0);
/// The first of the others' endpoint ports.
const OTHERS_TARGET: u16 = 10_000;
/// The first of the others' node ports, and how many of them have one: most of
/// the range that Kubernetes gives.
const OTHERS_NODE_PORTS: (u16, usize) = (30_600, 2_000);

/// A transport protocol of a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of a service with its one endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Namespace, name and port's name, as kube-proxy writes them.
    pub name: String,
    /// Address of the service.
    pub ip: Ipv4Addr,
    /// Protocol.
    pub proto: Proto,
    /// Port of the service.
    pub port: u16,
    /// Address of the endpoint.
    pub endpoint: Ipv4Addr,
    /// Port of the endpoint.
    pub target: u16,
    /// Node port.
    pub node_port: Option<u16>,
    /// Whether it is the service that is asked.
    pub asked: bool,
}

impl Proto {
    /// As rules write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The ports of the service that is asked.
pub fn asked(endpoint: Ipv4Addr) -> Vec<ServicePort> {
    let targets = [TCP_ECHO, UDP_ECHO];
    let ports = NODE_PORTS.into_iter().zip(targets);
    ports
        .map(|((proto, node_port), target)| ServicePort {
            name: format!("default/asked:{}-{PORT}", proto.name()),
            ip: CLUSTER_IP,
            proto,
            port: PORT,
            endpoint,
            target,
            node_port: Some(node_port),
            asked: true,
        })
        .collect()
}

/// The other service of this number, from 0 on.
pub fn other(number: usize, endpoint: Ipv4Addr) -> ServicePort {
    let (first, most) = OTHERS_NODE_PORTS;
    ServicePort {
        name: format!("default/other-{number:05}:tcp-{PORT}"),
        ip: Ipv4Addr::from_bits(OTHERS.to_bits() + number as u32),
        proto: Proto::Tcp,
        port: PORT,
        endpoint,
        target: OTHERS_TARGET + number as u16,
        node_port: (number < most).then(|| first + number as u16),
        asked: false,
    }
}

/// `services` of them in the order of rules: the one that is asked stands in the
/// middle, and so does its node port among node ports.
pub fn in_order(services: usize, endpoint: Ipv4Addr) -> Vec<ServicePort> {
    let others = services.saturating_sub(1);
    let with_node_port = others.min(OTHERS_NODE_PORTS.1);
    // Half of those with a node port before it, half of those without.
    let (with, without) = (with_node_port / 2, (others - with_node_port) / 2);
    let before = (0..with).chain(with_node_port..with_node_port + without);
    let after = (with..with_node_port).chain(with_node_port + without..others);
    let mut all: Vec<ServicePort> = before.map(|n| other(n, endpoint)).collect();
    all.extend(asked(endpoint));
    all.extend(after.map(|n| other(n, endpoint)));
    all
}

/// The object that is asked.
pub fn asked_object(endpoint: &Endpoint) -> Service {
    let mut service = Service::new("asked", &[CLUSTER_IP.into()]);
    for ((proto, node_port), target) in NODE_PORTS.into_iter().zip([TCP_ECHO, UDP_ECHO]) {
        let proto = match proto {
            Proto::Tcp => Protocol::Tcp,
            Proto::Udp => Protocol::Udp,
        };
        service = service.port(proto, PORT, target).node_port(node_port);
    }
    service.endpoints.push(endpoint.clone());
    service
}

/// The object of another service.
pub fn other_object(number: usize, endpoint: &Endpoint) -> Service {
    let like = other(number, Ipv4Addr::UNSPECIFIED);
    let name = format!("other-{number:05}");
    let mut service = Service::new(&name, &[like.ip.into()]);
    service = service.port(Protocol::Tcp, like.port, like.target);
    if let Some(node_port) = like.node_port {
        service = service.node_port(node_port);
    }
    service.endpoints.push(endpoint.clone());
    service
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 12);

    #[test]
    fn all_are_different_and_the_asked_one_stands_in_the_middle() {
        for services in [1, 2, 10, 1_000, 10_000, MOST] {
            let all = in_order(services, POD);
            // The asked one has two ports.
            assert_eq!(all.len(), services + 1);
            let frontends: HashSet<_> = all.iter().map(|s| (s.ip, s.proto.name())).collect();
            let targets: HashSet<_> = all.iter().map(|s| s.target).collect();
            let node_ports: Vec<_> = all.iter().filter_map(|s| s.node_port).collect();
            assert_eq!(frontends.len(), all.len());
            assert_eq!(targets.len(), all.len());
            assert_eq!(
                node_ports.iter().collect::<HashSet<_>>().len(),
                node_ports.len()
            );
            assert!(node_ports.iter().all(|p| (30_000..=32_767).contains(p)));
            let middle = |at: usize, of: usize| at.abs_diff(of / 2) <= 1;
            let at = all.iter().position(|s| s.asked).unwrap();
            assert!(middle(at, all.len()), "{at} of {}", all.len());
            let at = node_ports.iter().position(|p| *p == NODE_PORTS[0].1);
            assert!(middle(at.unwrap(), node_ports.len()));
        }
    }
}
