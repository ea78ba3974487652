//! Pure: cluster state and facts about this node → writes to the maps.
//!
//! [`Planner`] holds everything together for the one task that owns model,
//! plan and maps. It does no I/O of its own and reads no clock.

mod adopt;
mod allocator;
mod applied;
mod backends;
pub mod compile;
mod desired;
mod diff;
mod difference;
mod doubt;
mod facts;
mod kind;
mod lacking;
mod lost;
mod networks;
mod numbers;
mod ops;
mod outcome;
mod peers;
mod planner;
mod round;
mod sources;
pub mod table;
mod vias;

pub use allocator::{CapacityError, GRACE, Region, SegmentAllocator};
pub use applied::{Applied, Capacities, Rows};
pub use backends::{BackendKey, BackendRow, Backends};
pub use compile::{Here, compile};
pub use desired::{Claim, Desired, PortKey, Wanted};
pub use difference::{Difference, How, MapReader, Table};
pub use facts::{LocalPod, NodeFacts, derived_vtep_mac, outer_sum};
pub use kind::Kind;
pub use numbers::Numbers;
pub use ops::{FrontKey, MapOp, MapWriter, WriteError};
pub use outcome::{Counts, Failure, Outcome, PlanError, Unit};
pub use peers::{Peer, Ways, peers, underlay, vtep_mac};
pub use planner::Planner;
pub use round::Round;
pub use sources::SourceRange;
