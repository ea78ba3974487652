//! Random worlds, packets and histories.
//!
//! What a strategy makes is a plan: numbers and indices without a world. A
//! plan is turned into rows or bytes with the world as it is at that moment,
//! so that histories shrink well and still aim at what is there.

mod history;
mod packets;
mod worlds;

pub use history::{Event, ServiceEdit, event, history};
pub use packets::{Aim, PacketPlan, packet};
pub use worlds::{CONFIGS, WorldPlan, config, local_via, vxlan_via, world};
