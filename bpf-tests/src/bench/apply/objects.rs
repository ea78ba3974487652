//! The clusters that are measured: services with endpoints on a hundred nodes.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Result, ensure};
use testkit::manifests::{Endpoint, Protocol, Service};
use tulle_agent::source::{self, Change};

/// Other nodes.
const NODES: u32 = 100;
/// Endpoints on each node, at most, in a network of 1,024 addresses.
const PODS: u32 = 1000;
/// The first node's pod network; the others follow.
const PODS_FROM: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
/// The node with number 0 in the underlay.
const NODES_FROM: Ipv4Addr = Ipv4Addr::new(172, 31, 255, 0);
/// The first service's address; the others follow.
const SERVICES_FROM: Ipv4Addr = Ipv4Addr::new(10, 96, 16, 0);
/// Services in a file, as the operators of large clusters would have them.
const IN_FILE: usize = 500;

/// How many services of how many endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Services of one TCP port.
    pub services: u32,
    /// Endpoints of each, which are no other service's.
    pub endpoints: u32,
}

impl Shape {
    /// The ClusterIP of a service; the first has number 0.
    pub fn address(number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(SERVICES_FROM.to_bits() + number)
    }

    /// A service with this many of its endpoints.
    pub fn service(self, number: u32, endpoints: u32) -> Service {
        let name = format!("service-{number:05}");
        let mut service =
            Service::new(&name, &[Self::address(number).into()]).port(Protocol::Tcp, 80, 8080);
        let first = number * self.endpoints;
        service.endpoints = (first..first + endpoints).map(endpoint).collect();
        service
    }

    /// All services as files of YAML: names and texts. Those of `apart` are in a file of their own.
    pub fn files(self, apart: &[u32]) -> Vec<(String, String)> {
        let texts: Vec<String> = (0..self.services)
            .filter(|number| !apart.contains(number))
            .map(|number| self.service(number, self.endpoints).to_string())
            .collect();
        let many = texts.chunks(IN_FILE).enumerate();
        let mut files: Vec<(String, String)> = many
            .map(|(at, texts)| (format!("services-{at:03}.yaml"), texts.join("---\n")))
            .collect();
        for number in apart {
            let service = self.service(*number, self.endpoints);
            files.push((service.file(), service.to_string()));
        }
        files
    }

    /// The same as objects, as the agent reads them from these files.
    pub fn changes(self) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        for (name, text) in self.files(&[]) {
            changes.extend(parsed(&name, &text)?);
        }
        Ok(changes)
    }
}

/// What the agent reads from a text of YAML.
pub fn parsed(name: &str, text: &str) -> Result<Vec<Change>> {
    let (changes, warnings) = source::parse(Path::new(name), text);
    ensure!(
        warnings.is_empty(),
        "{name}: the agent warns of {warnings:?}"
    );
    Ok(changes)
}

fn endpoint(number: u32) -> Endpoint {
    let node = number / PODS;
    let addr = Ipv4Addr::from_bits(PODS_FROM.to_bits() + node * 1024 + 1 + number % PODS);
    Endpoint {
        ips: vec![IpAddr::V4(addr)],
        node: format!("node-{node:03}"),
        pod: format!("pod-{number:06}"),
        ready: true,
        serving: true,
        terminating: false,
    }
}

/// Underlay addresses of the other nodes.
pub fn underlay() -> impl Iterator<Item = Ipv4Addr> {
    (0..NODES).map(|node| Ipv4Addr::from_bits(NODES_FROM.to_bits() + 1 + node))
}

/// The other nodes as YAML.
pub fn nodes() -> String {
    let mut text = String::new();
    for (node, address) in (0..NODES).zip(underlay()) {
        let pods = Ipv4Addr::from_bits(PODS_FROM.to_bits() + node * 1024);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-{node:03}\nspec:\n  \
             podCIDR: {pods}/22\n  podCIDRs: [{pods}/22]\nstatus:\n  addresses:\n    \
             - {{type: InternalIP, address: {address}}}\n"
        );
    }
    text
}
