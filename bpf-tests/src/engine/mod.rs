//! What runs packets: the model itself or the loaded programs.

mod driver;
mod in_process;
mod kernel;
mod race;
pub(crate) mod tables;

use std::collections::HashMap;

use datapath_common::{Counter, Frontend, Hook, Reason, Traffic};

use crate::model::{
    AffinityId, AffinityRow, BackendRow, Ctx, FlowId, FlowRow, FragmentId, FragmentRow, FrontendId,
    Verdict, World,
};

pub use driver::Driver;
pub use in_process::{Fault, InProcess};
pub use kernel::{Kernel, object};
pub(crate) use kernel::{fill, hear_of_next_hops, table};

/// A write to the tables, as the agent would make it, or a step in time.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// Writes or removes a frontend.
    Frontend(FrontendId, Option<Frontend>),
    /// Writes slots from `start` on.
    Slots {
        /// First slot.
        start: u32,
        /// Backend ids.
        ids: Vec<u32>,
    },
    /// Writes a backend row of an IP version.
    Backend(u8, u32, BackendRow),
    /// Lets this many ticks pass.
    Ticks(u32),
}

/// One line of `tulle_counters` that grew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// The program.
    pub hook: Hook,
    /// The reason.
    pub reason: Reason,
    /// By how much.
    pub counter: Counter,
}

/// What a program did to one packet.
#[derive(Clone, PartialEq, Debug)]
pub struct Observed {
    /// The program's return value.
    pub ret: i32,
    /// Where the packet went, if the engine can tell.
    pub verdict: Option<Verdict>,
    /// The frame after it.
    pub frame: Vec<u8>,
    /// Counters that grew.
    pub counted: Vec<Counted>,
    /// All flow rows after it, in the model's ticks.
    pub flows: HashMap<FlowId, FlowRow>,
    /// All affinity rows after it, in the model's ticks.
    pub affinities: HashMap<AffinityId, AffinityRow>,
    /// Turns taken after it, where there are any.
    pub turns: HashMap<u32, u64>,
    /// Living flows of backends after it, where there are any.
    pub live: HashMap<(u8, u32), i64>,
    /// Traffic of service ports after it; nothing for rows of zeros.
    pub service_traffic: HashMap<u32, Traffic>,
    /// Traffic of backends after it, by IP version and id.
    pub backend_traffic: HashMap<(u8, u32), Traffic>,
    /// All remembered fragments after it.
    pub fragments: HashMap<FragmentId, FragmentRow>,
    /// The earliest and the latest tick in which it may have run.
    pub ticks: (u32, u32),
}

/// Something that runs packets through the hooks.
pub trait Engine {
    /// Makes the tables those of `world`, nothing else in them.
    fn load(&mut self, world: &World) -> anyhow::Result<()>;
    /// Applies a change.
    fn apply_change(&mut self, change: &Change) -> anyhow::Result<()>;
    /// Whether the engine can be given this frame at this hook.
    fn takes(&self, _hook: Hook, _frame: &[u8]) -> bool {
        true
    }
    /// Runs one packet.
    fn run(&mut self, hook: Hook, frame: &[u8], ctx: &Ctx) -> anyhow::Result<Observed>;
}

impl World {
    /// Applies a change to the model's tables.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Frontend(id, Some(row)) => drop(self.frontends.insert(*id, *row)),
            Change::Frontend(id, None) => drop(self.frontends.remove(id)),
            Change::Slots { start, ids } => {
                let end = *start as usize + ids.len();
                if self.segments.len() < end {
                    self.segments.resize(end, 0);
                }
                self.segments[*start as usize..end].copy_from_slice(ids);
            }
            Change::Backend(version, id, row) => drop(self.backends.insert((*version, *id), *row)),
            Change::Ticks(ticks) => self.now = self.now.wrapping_add(*ticks),
        }
    }
}
