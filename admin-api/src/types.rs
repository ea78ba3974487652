//! What the answers hold. Plain data; unknown fields are ignored when read.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How the agent does and what it chose.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version, `MAJOR.MINOR.PATCH`.
    pub agent_version: String,
    /// Process id, in the agent's own PID namespace.
    pub pid: u32,
    /// Name of the node that the agent serves.
    pub node: String,
    /// When the agent started, in seconds since 1970-01-01 UTC.
    pub started_at_secs: u64,
    /// Where the cluster's objects come from: `directory PATH` or `API server URL`.
    pub source: String,
    /// Name of the uplink interface.
    pub uplink: String,
    /// The overlay, if it is on.
    #[serde(default)]
    pub overlay: Option<Overlay>,
    /// What was chosen at the start, and why.
    #[serde(default)]
    pub features: Vec<Feature>,
    /// How many objects the agent knows.
    #[serde(default)]
    pub objects: ObjectCounts,
    /// From noticing the last change to the last map write for it, in
    /// microseconds; absent before the first change.
    #[serde(default)]
    pub last_sync_micros: Option<u64>,
    /// Syncs since the start, failed ones included.
    #[serde(default)]
    pub syncs: u64,
    /// Syncs that failed.
    #[serde(default)]
    pub sync_failures: u64,
    /// Links, routes, neighbours, programs and rows that were found changed by
    /// others and put right.
    #[serde(default)]
    pub drift_repairs: u64,
    /// The last round over the rows of the maps; absent before the first one is over.
    #[serde(default)]
    pub last_round: Option<RowRound>,
    /// What is wrong with the objects at the moment.
    #[serde(default)]
    pub warnings: Arc<[Warning]>,
    /// Where programs are attached.
    #[serde(default)]
    pub links: Vec<LinkAttachment>,
    /// Maps whose last write failed.
    #[serde(default)]
    pub map_errors: Vec<MapFault>,
    /// Whether the datapath serves what the first full list of objects says.
    #[serde(default)]
    pub ready: bool,
    /// What the agent waits for before it touches the datapath; absent once it does.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// Parts that do not work at the moment, each with its cause. The rest goes
    /// on, and they are tried again.
    #[serde(default)]
    pub faults: Vec<String>,
    /// Maps taken over from a former agent, with their rows.
    #[serde(default)]
    pub maps_adopted: u32,
    /// Maps that the agent made anew when it started.
    #[serde(default)]
    pub maps_created: u32,
}

/// A round that compared every row of the maps with what the agent had written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RowRound {
    /// When it ended, in seconds since 1970-01-01 UTC.
    pub ended_at_secs: u64,
    /// Rows that were missing, changed, or nobody's.
    pub found: u64,
    /// Rows that were found so, in this round or before, and are not put right yet.
    pub pending: u64,
}

/// The overlay of this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Overlay {
    /// Name of the kernel's VXLAN device.
    pub device: String,
    /// Largest inner packet in bytes, IP header included.
    pub mtu: u32,
    /// VXLAN network identifier (RFC 7348), 24 bits.
    pub vni: u32,
    /// VXLAN's UDP port.
    pub port: u16,
    /// This node on the underlay.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// This node's VTEP address, as `aa:bb:cc:dd:ee:ff`.
    #[serde(default)]
    pub vtep_mac: Option<String>,
}

/// A choice that the agent made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Feature {
    /// What was to be chosen, such as `attach`.
    pub name: String,
    /// What was chosen, such as `tcx`.
    pub chosen: String,
    /// Why, in a few words.
    pub why: String,
}

/// How many objects the agent knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ObjectCounts {
    /// Service objects.
    pub services: u64,
    /// `EndpointSlice` objects.
    pub endpoint_slices: u64,
    /// Node objects.
    pub nodes: u64,
    /// Pods of this node that the datapath delivers to.
    #[serde(default)]
    pub local_pods: u64,
}

/// Something wrong with an object. The object's last good state stays.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Warning {
    /// File that the object came from; empty if it came from elsewhere.
    pub file: String,
    /// Kind, namespace and name, such as `Service default/web`.
    pub object: String,
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong and how to mend it.
    pub message: String,
}

/// A program's attachment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkAttachment {
    /// Name of the program, such as `tulle_pod_from`.
    pub program: String,
    /// Name of the interface.
    pub interface: String,
    /// How it is attached: `tcx`, `clsact`, `xdp-native`, `xdp-generic`.
    pub mode: String,
}

/// A map whose last write failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapFault {
    /// Name of the map.
    pub map: String,
    /// What failed and what to do.
    pub message: String,
}

/// Transport protocol of a service port, written as Kubernetes does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// The names behind a service number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Number of the service port, as in the frontend and flow tables.
    pub number: u32,
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty if it has none.
    #[serde(default)]
    pub port_name: String,
    /// Address family: 4 or 6.
    pub family: u8,
    /// Addresses that it is reached at.
    #[serde(default)]
    pub frontends: Vec<FrontendAddress>,
}

impl Service {
    /// `namespace/name:port`, or `namespace/name` if the port has no name.
    pub fn full_name(&self) -> String {
        let Self {
            namespace,
            name,
            port_name,
            ..
        } = self;
        if port_name.is_empty() {
            format!("{namespace}/{name}")
        } else {
            format!("{namespace}/{name}:{port_name}")
        }
    }
}

/// An address that a service is reached at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct FrontendAddress {
    /// Address and port.
    pub address: SocketAddr,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// A node that pods are reached at through the overlay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Name of the node.
    pub node: String,
    /// The node's address on the underlay.
    pub address: IpAddr,
    /// Its pod networks, as `10.244.1.0/24`.
    #[serde(default)]
    pub pod_cidrs: Vec<String>,
    /// Its VTEP address, as `aa:bb:cc:dd:ee:ff`; absent until the node has told it.
    #[serde(default)]
    pub vtep_mac: Option<String>,
}

/// The services that a backend belongs to, draining ones included.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackendServices {
    /// Address family: 4 or 6. Each has ids of its own.
    pub family: u8,
    /// Backend id.
    pub id: u32,
    /// Names as [`Service::full_name`] gives them.
    pub services: Vec<String>,
}
