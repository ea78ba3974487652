//! What a Service says beyond its cluster addresses: where else it is reached,
//! by whom, and which endpoints serve whom.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::time::Duration;

use super::{Service, quoted};

/// Addresses and policies of a [`Service`]; the default is that of the API.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Exposure {
    /// External IPs.
    pub external_ips: Vec<IpAddr>,
    /// Addresses that a load balancer has given it.
    pub balancer_ips: Vec<IpAddr>,
    /// Networks that may use the load balancer's addresses; all if there is none.
    pub source_ranges: Vec<String>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// Session affinity by client address, so long after the latest flow; whole seconds.
    pub affinity: Option<Duration>,
}

impl Service {
    /// Gives the latest port a node port.
    #[must_use]
    pub fn node_port(mut self, node_port: u16) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port.node_port = Some(node_port);
        }
        self
    }

    /// `LoadBalancer`, `NodePort` or `ClusterIP`, by what it has.
    fn kind(&self) -> &'static str {
        if !self.exposure.balancer_ips.is_empty() {
            "LoadBalancer"
        } else if self.ports.iter().any(|port| port.node_port.is_some()) {
            "NodePort"
        } else {
            "ClusterIP"
        }
    }

    /// Fields of `spec`.
    pub(super) fn write_exposure(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exposure = &self.exposure;
        writeln!(f, "  type: {}", self.kind())?;
        if !exposure.external_ips.is_empty() {
            writeln!(f, "  externalIPs: [{}]", list(&exposure.external_ips))?;
        }
        if !exposure.source_ranges.is_empty() {
            let ranges = exposure.source_ranges.join("\", \"");
            writeln!(f, "  loadBalancerSourceRanges: [\"{ranges}\"]")?;
        }
        if exposure.external_local {
            writeln!(f, "  externalTrafficPolicy: Local")?;
        }
        if exposure.internal_local {
            writeln!(f, "  internalTrafficPolicy: Local")?;
        }
        if let Some(timeout) = exposure.affinity {
            let seconds = timeout.as_secs();
            writeln!(f, "  sessionAffinity: ClientIP\n  sessionAffinityConfig:")?;
            writeln!(f, "    clientIP: {{timeoutSeconds: {seconds}}}")?;
        }
        Ok(())
    }

    /// The document's `status`.
    pub(super) fn write_status(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ingress = String::new();
        for ip in &self.exposure.balancer_ips {
            writeln!(ingress, "      - ip: {}", quoted(*ip))?;
        }
        match ingress.as_str() {
            "" => Ok(()),
            some => write!(f, "status:\n  loadBalancer:\n    ingress:\n{some}"),
        }
    }
}

fn list(ips: &[IpAddr]) -> String {
    let ips: Vec<String> = ips.iter().map(|ip| quoted(*ip)).collect();
    ips.join(", ")
}
