//! Writes to maps, as data.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use datapath_common::{
    Address, Backend, Frontend, FrontendKey, Ip4, Ip6, Node, PeerKey, Scope, SourceKey, SourceNet,
    Via, maps,
};
use ipnet::IpNet;

use super::backends::BackendRow;
use super::sources::SourceRange;

/// What a frontend answers on; port and protocol 0 for the row that marks the
/// address. Host order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FrontKey {
    /// Service address.
    pub addr: IpAddr,
    /// Service port.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
}

impl FrontKey {
    /// The row that marks `addr`.
    pub const fn address(addr: IpAddr) -> Self {
        Self {
            addr,
            port: 0,
            proto: 0,
        }
    }

    /// Whether it is the row that marks the address.
    pub const fn is_address(&self) -> bool {
        self.port == 0 && self.proto == 0
    }

    /// The row's key, at this address.
    pub(crate) const fn row<A>(self, addr: A) -> FrontendKey<A> {
        FrontendKey {
            addr,
            port: self.port,
            proto: self.proto,
            scope: Scope::Any as u8,
        }
    }
}

impl<A: Address> From<&FrontendKey<A>> for FrontKey {
    fn from(key: &FrontendKey<A>) -> Self {
        Self {
            addr: key.addr.to_ip(),
            port: key.port,
            proto: key.proto,
        }
    }
}

/// One write.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(
    missing_docs,
    reason = "key and value of the map that the variant names"
)]
pub enum MapOp {
    /// Put a row of `tulle_front_v4`.
    PutFront4 {
        key: FrontendKey<Ip4>,
        row: Frontend,
    },
    /// Put a row of `tulle_front_v6`.
    PutFront6 {
        key: FrontendKey<Ip6>,
        row: Frontend,
    },
    /// Delete a row of `tulle_front_v4`.
    DeleteFront4 { key: FrontendKey<Ip4> },
    /// Delete a row of `tulle_front_v6`.
    DeleteFront6 { key: FrontendKey<Ip6> },
    /// Put a row of `tulle_back_v4`.
    PutBackend4 { id: u32, row: Backend<Ip4> },
    /// Put a row of `tulle_back_v6`.
    PutBackend6 { id: u32, row: Backend<Ip6> },
    /// Write slots of `tulle_segments`, from `start` on.
    WriteSlots { start: u32, ids: Vec<u32> },
    /// Put a row of `tulle_pods_v4`.
    PutPod4 { addr: Ip4, via: Via },
    /// Put a row of `tulle_pods_v6`.
    PutPod6 { addr: Ip6, via: Via },
    /// Delete a row of `tulle_pods_v4`.
    DeletePod4 { addr: Ip4 },
    /// Delete a row of `tulle_pods_v6`.
    DeletePod6 { addr: Ip6 },
    /// Put a row of `tulle_peers_v4`.
    PutPeer4 { key: PeerKey<Ip4>, via: Via },
    /// Put a row of `tulle_peers_v6`.
    PutPeer6 { key: PeerKey<Ip6>, via: Via },
    /// Delete a row of `tulle_peers_v4`.
    DeletePeer4 { key: PeerKey<Ip4> },
    /// Delete a row of `tulle_peers_v6`.
    DeletePeer6 { key: PeerKey<Ip6> },
    /// Put a row of `tulle_nodes_v4`.
    PutNode { addr: Ip4, node: Node },
    /// Delete a row of `tulle_nodes_v4`.
    DeleteNode { addr: Ip4 },
    /// Put a row of `tulle_srcs_v4`.
    PutSource4 { key: SourceKey<Ip4> },
    /// Put a row of `tulle_srcs_v6`.
    PutSource6 { key: SourceKey<Ip6> },
    /// Delete a row of `tulle_srcs_v4`.
    DeleteSource4 { key: SourceKey<Ip4> },
    /// Delete a row of `tulle_srcs_v6`.
    DeleteSource6 { key: SourceKey<Ip6> },
    /// Put a row of `tulle_direct_v4`.
    PutDirect4 { key: PeerKey<Ip4>, bits: u32 },
    /// Put a row of `tulle_direct_v6`.
    PutDirect6 { key: PeerKey<Ip6>, bits: u32 },
    /// Delete a row of `tulle_direct_v4`.
    DeleteDirect4 { key: PeerKey<Ip4> },
    /// Delete a row of `tulle_direct_v6`.
    DeleteDirect6 { key: PeerKey<Ip6> },
}

impl MapOp {
    /// Name of the map that is written.
    pub const fn map(&self) -> &'static str {
        match self {
            Self::PutFront4 { .. } | Self::DeleteFront4 { .. } => maps::FRONT_V4,
            Self::PutFront6 { .. } | Self::DeleteFront6 { .. } => maps::FRONT_V6,
            Self::PutBackend4 { .. } => maps::BACK_V4,
            Self::PutBackend6 { .. } => maps::BACK_V6,
            Self::WriteSlots { .. } => maps::SEGMENTS,
            Self::PutPod4 { .. } | Self::DeletePod4 { .. } => maps::PODS_V4,
            Self::PutPod6 { .. } | Self::DeletePod6 { .. } => maps::PODS_V6,
            Self::PutPeer4 { .. } | Self::DeletePeer4 { .. } => maps::PEERS_V4,
            Self::PutPeer6 { .. } | Self::DeletePeer6 { .. } => maps::PEERS_V6,
            Self::PutNode { .. } | Self::DeleteNode { .. } => maps::NODES_V4,
            Self::PutSource4 { .. } | Self::DeleteSource4 { .. } => maps::SRCS_V4,
            Self::PutSource6 { .. } | Self::DeleteSource6 { .. } => maps::SRCS_V6,
            Self::PutDirect4 { .. } | Self::DeleteDirect4 { .. } => maps::DIRECT_V4,
            Self::PutDirect6 { .. } | Self::DeleteDirect6 { .. } => maps::DIRECT_V6,
        }
    }

    pub(super) fn put_front(key: FrontKey, row: Frontend) -> Self {
        match key.addr {
            IpAddr::V4(a) => Self::PutFront4 {
                key: key.row(a.into()),
                row,
            },
            IpAddr::V6(a) => Self::PutFront6 {
                key: key.row(a.into()),
                row,
            },
        }
    }

    pub(super) fn delete_front(key: FrontKey) -> Self {
        match key.addr {
            IpAddr::V4(a) => Self::DeleteFront4 {
                key: key.row(a.into()),
            },
            IpAddr::V6(a) => Self::DeleteFront6 {
                key: key.row(a.into()),
            },
        }
    }

    pub(super) fn put_backend(id: u32, row: &BackendRow) -> Self {
        match row.key.addr {
            IpAddr::V4(a) => Self::PutBackend4 {
                id,
                row: backend(row, a.into()),
            },
            IpAddr::V6(a) => Self::PutBackend6 {
                id,
                row: backend(row, a.into()),
            },
        }
    }

    pub(super) fn pod(addr: IpAddr, via: Option<Via>) -> Self {
        match (addr, via) {
            (IpAddr::V4(a), Some(via)) => Self::PutPod4 {
                addr: a.into(),
                via,
            },
            (IpAddr::V6(a), Some(via)) => Self::PutPod6 {
                addr: a.into(),
                via,
            },
            (IpAddr::V4(a), None) => Self::DeletePod4 { addr: a.into() },
            (IpAddr::V6(a), None) => Self::DeletePod6 { addr: a.into() },
        }
    }

    pub(super) fn peer(net: IpNet, via: Option<Via>) -> Self {
        match (net.network(), via) {
            (IpAddr::V4(a), Some(via)) => Self::PutPeer4 {
                key: net_key(net, a.into()),
                via,
            },
            (IpAddr::V6(a), Some(via)) => Self::PutPeer6 {
                key: net_key(net, a.into()),
                via,
            },
            (IpAddr::V4(a), None) => Self::DeletePeer4 {
                key: net_key(net, a.into()),
            },
            (IpAddr::V6(a), None) => Self::DeletePeer6 {
                key: net_key(net, a.into()),
            },
        }
    }

    pub(super) fn network(net: IpNet, bits: Option<u32>) -> Self {
        match (net.network(), bits) {
            (IpAddr::V4(a), Some(bits)) => Self::PutDirect4 {
                key: net_key(net, a.into()),
                bits,
            },
            (IpAddr::V6(a), Some(bits)) => Self::PutDirect6 {
                key: net_key(net, a.into()),
                bits,
            },
            (IpAddr::V4(a), None) => Self::DeleteDirect4 {
                key: net_key(net, a.into()),
            },
            (IpAddr::V6(a), None) => Self::DeleteDirect6 {
                key: net_key(net, a.into()),
            },
        }
    }

    pub(super) fn source(service: u32, range: SourceRange, wanted: bool) -> Self {
        match (range.addr, wanted) {
            (IpAddr::V4(a), true) => Self::PutSource4 {
                key: source_key(service, range, a.into()),
            },
            (IpAddr::V6(a), true) => Self::PutSource6 {
                key: source_key(service, range, a.into()),
            },
            (IpAddr::V4(a), false) => Self::DeleteSource4 {
                key: source_key(service, range, a.into()),
            },
            (IpAddr::V6(a), false) => Self::DeleteSource6 {
                key: source_key(service, range, a.into()),
            },
        }
    }

    pub(super) fn node(addr: Ipv4Addr, node: Option<Node>) -> Self {
        match node {
            Some(node) => Self::PutNode {
                addr: addr.into(),
                node,
            },
            None => Self::DeleteNode { addr: addr.into() },
        }
    }
}

fn net_key<A>(net: IpNet, addr: A) -> PeerKey<A> {
    PeerKey {
        prefix_len: u32::from(net.prefix_len()),
        addr,
    }
}

const fn source_key<A: Address>(service: u32, range: SourceRange, addr: A) -> SourceKey<A> {
    SourceKey {
        prefix_len: range.prefix_len,
        net: SourceNet::new(service, addr),
    }
}

fn backend<A>(row: &BackendRow, addr: A) -> Backend<A> {
    Backend {
        addr,
        port: row.key.port,
        proto: row.key.proto,
        state: row.state as u8,
        generation: row.generation,
        via: row.via,
    }
}

/// The kernel did not take a write.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {map}: {source}")]
pub struct WriteError {
    /// Name of the map.
    pub map: &'static str,
    /// The kernel's answer.
    pub source: io::Error,
}

impl WriteError {
    /// Whether the map has no room.
    pub fn is_full(&self) -> bool {
        self.source.kind() == io::ErrorKind::StorageFull
    }
}

/// Where plans are carried out. An error means that the map is as it was,
/// except for [`MapOp::WriteSlots`], which may have written some of its slots.
pub trait MapWriter {
    /// Carries out one write. Deleting a row that is not there succeeds.
    fn write(&mut self, op: &MapOp) -> Result<(), WriteError>;

    /// Carries out the first of these writes, one or more in one go, and says how many.
    /// An error means that the first one was not carried out.
    fn write_some(&mut self, ops: &[MapOp]) -> Result<usize, WriteError> {
        match ops.first() {
            Some(first) => self.write(first).map(|()| 1),
            None => Ok(0),
        }
    }
}
