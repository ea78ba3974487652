//! Test hosts for Tulle: network namespaces with links between them, whole
//! clusters of nodes and pods, servers and clients inside pods, packets and
//! captures, snapshots of what a namespace holds.
//!
//! Synchronous; needs root and the commands `ip`, `tc`, `bridge` and, for
//! snapshots, `nft`. Every value that makes something outside the process
//! removes it when dropped; [`registry::remove_everything`] does the same from
//! a signal handler's thread.

pub mod agent;
pub mod apiserver;
pub mod bulk;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod echo;
pub mod error;
pub mod http;
pub mod link;
pub mod manifests;
pub mod netns;
pub mod packet;
pub mod ping;
pub mod probe;
pub mod process;
pub mod registry;
pub mod server;
pub mod snapshot;
pub mod wait;

pub use cluster::{Cluster, ClusterBuilder, Node, Pod};
pub use error::{Error, Result};
pub use netns::NetNs;
