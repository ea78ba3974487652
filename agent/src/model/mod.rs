//! Cluster state in our words: only what the datapath is compiled from, already
//! checked, with one canonical form for each thing.

pub mod address;
mod choice;
pub mod convert;
mod endpoints;
mod forwarding;
mod pod;
mod service;
pub(crate) mod shared;
mod state;
mod warning;

pub use choice::{Choice, MAX_WEIGHT, Scheduler, Weights};
pub use endpoints::{EndpointSets, ready_here, select};
pub use forwarding::{DirectReturn, Forwarding};
pub use pod::{HostPort, Pod};
pub use service::{Exposure, Policy, Service, ServicePort};
pub use state::{Dirty, Model};
pub use warning::{Fault, Warning};

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use datapath_common::{Mac, proto};
use ipnet::IpNet;

/// Namespace and name of an object. Copies share the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NamespacedName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// From its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Address family.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The name that Kubernetes uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Transport protocol of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => proto::TCP,
            Self::Udp => proto::UDP,
            Self::Sctp => proto::SCTP,
        }
    }

    /// The name that Kubernetes uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// An EndpointSlice.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndpointSlice {
    /// Namespace and name of the slice itself.
    pub name: NamespacedName,
    /// Name of the Service it belongs to, in its namespace (KP-08). `None` for
    /// a slice that feeds nothing: no label, or labelled headless (KP-09).
    pub service: Option<Arc<str>>,
    /// Family of its addresses; `None` for FQDN (KP-10).
    pub family: Option<Family>,
    /// Ports by name and protocol.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SlicePort {
    /// Name that ties it to a Service's port (KP-13).
    pub name: String,
    /// Port number on the endpoints, never 0 (KP-12).
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// An endpoint: its first address (KP-15), its conditions, defaults filled in (KP-18),
/// and where it is wanted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    /// Address.
    pub addr: IpAddr,
    /// Condition `ready`; absent means true.
    pub ready: bool,
    /// Condition `serving`; absent means true.
    pub serving: bool,
    /// Condition `terminating`; absent means false.
    pub terminating: bool,
    /// Name of its node; without one it is local nowhere (KP-20).
    pub node: Option<Arc<str>>,
    /// Where it is wanted; `None` where nothing is said of it.
    pub hints: Option<Box<Hints>>,
}

/// Where an endpoint is wanted.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Hints {
    /// `hints.forNodes` (KP-85).
    pub nodes: Vec<String>,
    /// `hints.forZones` (KP-86, KP-89).
    pub zones: Vec<String>,
}

impl Endpoint {
    /// An endpoint of which nothing but the address is said.
    pub const fn new(addr: IpAddr) -> Self {
        Self {
            addr,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hints: None,
        }
    }

    /// Nodes whose clients it is for.
    pub fn node_hints(&self) -> &[String] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }

    /// Zones whose clients it is for.
    pub fn zone_hints(&self) -> &[String] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }
}

/// A Node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Networks of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of type InternalIP, in their order.
    pub internal_ips: Vec<IpAddr>,
    /// Addresses of type ExternalIP, in their order.
    pub external_ips: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`, unless it is empty (KP-84, KP-87).
    pub zone: Option<String>,
    /// Annotation `flannel.alpha.coreos.com/public-ip` (FL-14).
    pub public_ip: Option<Ipv4Addr>,
    /// `VtepMAC` of annotation `flannel.alpha.coreos.com/backend-data` (FL-15).
    pub vtep_mac: Option<Mac>,
    /// Annotation `tulle.io/direct-return`: what it takes of [`Forwarding::Dsr`].
    pub direct_return: DirectReturn,
    /// Why load balancers should leave it, if they should (KP-151).
    pub leaving: Option<Leaving>,
}

/// Why a node is about to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaving {
    /// `metadata.deletionTimestamp` is set.
    Deleted,
    /// It has the taint `ToBeDeletedByClusterAutoscaler`, of whatever value and effect.
    ScaledDown,
}

impl Node {
    /// A Node of which nothing but the name is said.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            pod_cidrs: Vec::new(),
            internal_ips: Vec::new(),
            external_ips: Vec::new(),
            zone: None,
            public_ip: None,
            vtep_mac: None,
            direct_return: DirectReturn::default(),
            leaving: None,
        }
    }

    /// The first address of each family, InternalIP before ExternalIP; the
    /// first of all is the primary one (KP-144).
    pub fn addresses(&self) -> Vec<IpAddr> {
        let mut firsts: Vec<IpAddr> = Vec::with_capacity(2);
        for addr in self.internal_ips.iter().chain(&self.external_ips) {
            if firsts.iter().all(|f| f.is_ipv4() != addr.is_ipv4()) {
                firsts.push(*addr);
            }
        }
        firsts
    }
}

/// An object of the cluster; cheap to clone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    Slice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
    /// A Pod.
    Pod(Arc<Pod>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
}

/// A ServiceCIDR: networks that Services have their addresses from (KP-29).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceCidr {
    /// Name.
    pub name: String,
    /// At most one of each family, host bits cleared.
    pub cidrs: Vec<IpNet>,
}

/// Kind of an [`Object`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// v1/Service.
    Service,
    /// discovery.k8s.io/v1/EndpointSlice.
    EndpointSlice,
    /// v1/Node.
    Node,
    /// v1/Pod.
    Pod,
    /// networking.k8s.io/v1/ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    /// The kind as manifests write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// Whether objects of the kind are in no namespace.
    pub const fn is_cluster_wide(self) -> bool {
        match self {
            Self::Node | Self::ServiceCidr => true,
            Self::Service | Self::EndpointSlice | Self::Pod => false,
        }
    }
}

/// What identifies an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace (empty for what is in none) and name.
    pub name: NamespacedName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_cluster_wide() {
            write!(f, "{} {}", self.kind.name(), self.name.name)
        } else {
            write!(f, "{} {}", self.kind.name(), self.name)
        }
    }
}

impl Object {
    /// What identifies this object.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Service(s) => ObjectKey {
                kind: Kind::Service,
                name: s.name.clone(),
            },
            Self::Slice(s) => ObjectKey {
                kind: Kind::EndpointSlice,
                name: s.name.clone(),
            },
            Self::Node(n) => ObjectKey {
                kind: Kind::Node,
                name: NamespacedName::new("", n.name.as_str()),
            },
            Self::Pod(p) => ObjectKey {
                kind: Kind::Pod,
                name: p.name.clone(),
            },
            Self::ServiceCidr(c) => ObjectKey {
                kind: Kind::ServiceCidr,
                name: NamespacedName::new("", c.name.as_str()),
            },
        }
    }
}
