//! The kernel side: programs and maps. Nothing here knows Kubernetes.
//!
//! [`probe`](probe::probe) says what the node offers, [`Datapath::open`] loads
//! or takes over, `sync_uplink` and `sync_pods` attach, [`FlowGc`] removes what
//! has expired, [`cleanup`](cleanup::cleanup) removes everything. Everything
//! blocks shortly and runs on the thread whose network namespace is the node's.

mod apply;
pub mod attach;
pub mod capacity;
pub mod cgroup;
pub mod cleanup;
mod clsact;
pub mod compare;
pub mod counters;
pub mod departed;
pub mod gc;
pub mod live;
pub mod loader;
pub mod loading;
pub mod lock;
mod mapped;
pub mod maps;
mod numbers;
pub mod own_connections;
mod parts;
pub mod pins;
pub mod place;
pub mod probe;
pub mod programs;
pub mod readings;
mod rtnl;
mod scan;
pub mod segments;
pub mod shape;
pub mod sock_diag;
mod stage;
mod sys;
pub mod usage;
pub mod xdp;

pub use attach::{AttachKind, Report};
pub use capacity::Capacities;
pub use cgroup::{Cgroup, SocketReport};
pub use compare::Reading;
pub use gc::{FlowGc, NamedBackend, Pass, idle_limit};
pub use live::Recount;
pub use loader::{Datapath, LoadError, MapFate, Opened, Options};
pub use lock::InstanceLock;
pub use maps::{Maps, TableError};
pub use numbers::Clearing;
pub use place::{LOOPBACK, Place};
pub use readings::{Readings, Size};
pub(crate) use sys::NO_EXIST;
pub use xdp::{XdpChoice, XdpMode};

/// Now, in ticks of `CLOCK_MONOTONIC`, as the programs count them.
pub fn now_ticks() -> u32 {
    use nix::time::{ClockId, clock_gettime};
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(std::time::Duration::ZERO, std::time::Duration::from);
    (now.as_nanos() >> datapath_common::TICK_SHIFT) as u32
}
