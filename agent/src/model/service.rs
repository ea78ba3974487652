//! Services: what of them decides frontends and who may reach which endpoints.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Choice, Forwarding, NamespacedName, Protocol};

/// How a Service is exposed, as far as this node's tables are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Exposure {
    /// Its frontends are served, whatever `spec.type` says (KP-04).
    Served,
    /// `clusterIP: None` (KP-02).
    Headless,
    /// Type ExternalName (KP-03).
    ExternalName,
    /// Labelled for another proxy (KP-01).
    OtherProxy,
}

/// Which endpoints a traffic policy allows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// Those of the whole cluster.
    Cluster,
    /// Those of the node that the traffic meets first.
    Local,
}

/// A Service. Everything but name and exposure is empty or the API's default
/// unless `exposure` is `Served`; `OtherProxy` has its ClusterIPs too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name.
    pub name: NamespacedName,
    /// How it is exposed.
    pub exposure: Exposure,
    /// At most one address of each family (KP-05).
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` of the families that have a ClusterIP (KP-05, KP-06).
    pub external_ips: Vec<IpAddr>,
    /// Addresses of `status.loadBalancer.ingress` that are delivered to nodes
    /// as they are (KP-41, KP-42), of the families that have a ClusterIP.
    pub vips: Vec<IpAddr>,
    /// Ports, unique by name, by (port, protocol) and by (node port, protocol).
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`: for ClusterIPs (KP-67).
    pub internal_policy: Policy,
    /// `spec.externalTrafficPolicy`: for all other frontends (KP-68). `Local`
    /// only where the type lets somebody outside in (KP-04, KP-32).
    pub external_policy: Policy,
    /// How long a client keeps its endpoint, in seconds; `None` without
    /// `sessionAffinity: ClientIP` (KP-95).
    pub affinity_secs: Option<u32>,
    /// `spec.loadBalancerSourceRanges` in ascending order. A family without a
    /// network here is open to all (KP-48).
    pub source_ranges: Vec<IpNet>,
    /// Whether the type is LoadBalancer.
    pub load_balancer: bool,
    /// `spec.healthCheckNodePort`; [`Service::health_port`] says whether it is open.
    pub health_check_node_port: Option<u16>,
    /// How new flows are given a backend: annotations.
    pub choice: Choice,
    /// How clients outside reach backends on other nodes, by annotation; `None`: as the node usually
    /// does it.
    pub forwarding: Option<Forwarding>,
}

impl Service {
    /// A Service of which nothing but name and exposure is said.
    pub fn new(name: NamespacedName, exposure: Exposure) -> Self {
        Self {
            name,
            exposure,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            vips: Vec::new(),
            ports: Vec::new(),
            internal_policy: Policy::Cluster,
            external_policy: Policy::Cluster,
            affinity_secs: None,
            forwarding: None,
            source_ranges: Vec::new(),
            load_balancer: false,
            health_check_node_port: None,
            choice: Choice::default(),
        }
    }

    /// The port that tells load balancers whether this node has ready endpoints (KP-51).
    pub fn health_port(&self) -> Option<u16> {
        self.health_check_node_port
            .filter(|_| self.load_balancer && self.external_policy == Policy::Local)
    }
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServicePort {
    /// Name; empty for the single unnamed port.
    pub name: String,
    /// Port number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the node's own addresses, if it has one (KP-04, KP-33).
    pub node_port: Option<u16>,
}
