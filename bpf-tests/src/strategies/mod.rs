//! Random worlds, packets and histories.
//!
//! What a strategy makes is a plan: numbers and indices without a world. A
//! plan is turned into rows or bytes with the world as it is at that moment,
//! so that histories shrink well and still aim at what is there.

mod configs;
mod history;
mod packets;
mod places;
mod targets;
mod worlds;

pub use configs::{CONFIGS, config};
pub use history::{Event, ServiceEdit, event, history};
pub use packets::{Aim, PacketPlan, packet};
pub use places::{external_ip, host_via, local_via, outside_ip, own_ip, vxlan_via};
pub use worlds::{WorldPlan, world};
