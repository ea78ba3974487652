//! The model as an engine, with a hash and an outer source port of its own.
//! It shows that the harness runs, and with a fault that the checks bite.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use datapath_common::{Counter, Hook};

use super::{Change, Counted, Engine, Observed};
use crate::model::{self, Ctx, Hash, Verdict, World};
use crate::packet::{ETHERNET, internet_checksum};

/// A fault to build into the engine.
pub type Fault = fn(&mut Observed);

/// The model, run as if it were the programs.
pub struct InProcess {
    world: World,
    fault: Option<Fault>,
}

impl InProcess {
    /// An engine that follows the rules, or breaks one.
    pub fn new(fault: Option<Fault>) -> Self {
        Self {
            world: World::new(datapath_common::Config::EMPTY),
            fault,
        }
    }
}

impl Engine for InProcess {
    fn load(&mut self, world: &World) -> anyhow::Result<()> {
        self.world = world.clone();
        Ok(())
    }

    fn apply_change(&mut self, change: &Change) -> anyhow::Result<()> {
        self.world.apply(change);
        Ok(())
    }

    fn run(&mut self, hook: Hook, frame: &[u8], ctx: &Ctx) -> anyhow::Result<Observed> {
        let packet = model::sent_packet(&self.world, frame, ctx);
        let hash = packet.map_or(0, |packet| {
            let mut hasher = DefaultHasher::new();
            packet.tuple().hash(&mut hasher);
            hasher.finish()
        });
        let ctx = Ctx {
            hash: Hash::Is((hash >> 32) as u32),
            ..*ctx
        };
        let outcome = model::run(&mut self.world, hook, frame, &ctx);
        let mut out = outcome.frame;
        if matches!(outcome.verdict, Verdict::RedirectNeigh { .. }) {
            let port = 32768 + (hash % 28232) as u16;
            out[ETHERNET + 20..ETHERNET + 22].copy_from_slice(&port.to_be_bytes());
            out[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&[0xab, 0xcd]);
            out[ETHERNET + 10..ETHERNET + 12].fill(0);
            let sum = internet_checksum(&[&out[ETHERNET..ETHERNET + 20]]);
            out[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let counter = Counter {
            packets: 1,
            bytes: frame.len() as u64,
        };
        let mut observed = Observed {
            ret: outcome.verdict.code(hook),
            verdict: Some(outcome.verdict),
            frame: out,
            counted: vec![Counted {
                hook,
                reason: outcome.reason,
                counter,
            }],
            flows: self.world.flows.clone(),
            affinities: self.world.affinities.clone(),
            live: self.world.live.clone(),
            turns: self.world.turns.clone(),
            service_traffic: self.world.service_traffic.clone(),
            backend_traffic: self.world.backend_traffic.clone(),
            fragments: self.world.fragments.clone(),
            ticks: (self.world.now, self.world.now),
        };
        if let Some(fault) = self.fault {
            fault(&mut observed);
        }
        Ok(observed)
    }
}
