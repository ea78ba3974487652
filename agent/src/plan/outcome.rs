//! What a run of the planner tells.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::allocator::CapacityError;
use super::ops::{FrontKey, WriteError};
use crate::model::Family;

/// What is written as a whole or not at all: an error in one leaves the others undisturbed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Unit {
    /// A row of `tulle_nodes_v4`.
    Node(Ipv4Addr),
    /// A row of `tulle_pods_*`.
    Pod(IpAddr),
    /// A row of `tulle_peers_*`.
    Peer(IpNet),
    /// A row of `tulle_direct_*`.
    Network(IpNet),
    /// A frontend with its segment and backends, or the row that marks an address.
    Frontend(FrontKey),
    /// Rows of `tulle_srcs_*` that a service number no longer needs.
    Sources(u32),
    /// A backend that is drained, freed or redirected.
    Backend(Family, u32),
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(addr) => write!(f, "node {addr}"),
            Self::Pod(addr) => write!(f, "pod {addr}"),
            Self::Peer(net) => write!(f, "pod network {net}"),
            Self::Network(net) => write!(f, "network {net}"),
            Self::Sources(service) => write!(f, "source ranges of service number {service}"),
            Self::Frontend(key) if key.is_address() => write!(f, "service address {}", key.addr),
            Self::Frontend(key) => {
                write!(
                    f,
                    "frontend {} port {} protocol {}",
                    key.addr, key.port, key.proto
                )
            }
            Self::Backend(family, id) => write!(f, "{} backend {id}", family.name()),
        }
    }
}

/// Why a unit could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A table has no room for it.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// A frontend is there, but new flows are given a backend without its table or its turns.
    #[error("not served as its scheduler and weights have it: {0}")]
    Table(#[source] CapacityError),
    /// The kernel refused a write.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl PlanError {
    /// Whether the kernel refused a write for another reason than that a map is full.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Capacity(_) | Self::Table(_) => false,
            Self::Write(error) => !error.is_full(),
        }
    }
}

/// A unit that failed.
#[derive(Debug, thiserror::Error)]
#[error("{unit}: {error}")]
pub struct Failure {
    /// Which.
    pub unit: Unit,
    /// Why.
    #[source]
    pub error: PlanError,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Writes that succeeded.
    pub written: usize,
    /// Units that failed in this run; they are tried again.
    pub failed: usize,
    /// The first two failures.
    pub errors: Vec<Failure>,
    /// Units that are still to be written.
    pub pending: usize,
    /// Whether every Service was compiled.
    pub full: bool,
}

/// Sizes for status and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Services with a frontend.
    pub services: usize,
    /// Frontend rows written, without those that mark addresses.
    pub frontends: usize,
    /// Active backends.
    pub backends: usize,
    /// Draining backends.
    pub draining: usize,
    /// Warnings.
    pub warnings: usize,
    /// Units that failed and wait for their retry.
    pub pending: usize,
}
