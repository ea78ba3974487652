//! What the agent does by netlink: the slow path (a VXLAN device with routes,
//! neighbours and forwarding entries, as flannel sets them up), the facts that
//! the datapath needs (uplink, local pods, next hops), and a stream of changes.
//!
//! What is wanted is computed, what is there is listed, and the difference is
//! data: [`overlay`], `device` and `diff` are pure; [`reconcile`] writes.

pub mod bridge;
pub mod cleanup;
pub mod device;
mod diff;
pub mod link;
pub mod netlink;
pub mod next_hop;
pub mod overlay;
pub mod pods;
pub mod reconcile;
pub mod report;
mod routes;
mod rows;
pub mod sysctl;
pub mod uplink;
pub mod watch;

pub use bridge::Bridge;
pub use cleanup::{CleanupError, cleanup};
pub use netlink::{Netlink, NetlinkError};
pub use next_hop::{NextHop, NextHopError, next_hops, ways_out};
pub use overlay::{OVERHEAD, Overlay, Peer, ROUTE_PROTOCOL, device_name};
pub use pods::{LocalPod, LocalPods, set_pod_mtu};
pub use reconcile::{ReconcileError, SlowPath};
pub use report::Report;
pub use uplink::{Uplink, UplinkError};
pub use watch::{Interest, NetChanged, Watcher};
