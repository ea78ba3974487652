//! Sums of the per-CPU counters.

use aya::maps::{MapData, PerCpuArray};
use datapath_common::{Counter, Hook, Reason, counter_index, maps};

use super::maps::{Maps, TableError, io_of};

/// Packets and bytes that left a program for one reason, over all CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Count {
    /// The program.
    pub hook: Hook,
    /// Why they left it.
    pub reason: Reason,
    /// Packets; a segmentation-offload packet counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

impl Maps {
    /// Every counter, also those at zero, by hook and reason.
    pub fn counts(&self) -> Result<Vec<Count>, TableError> {
        let mut counts = Vec::with_capacity(Hook::ALL.len() * Reason::ALL.len());
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                counts.push(self.count(hook, *reason)?);
            }
        }
        Ok(counts)
    }

    /// One counter.
    pub fn count(&self, hook: Hook, reason: Reason) -> Result<Count, TableError> {
        sum(&self.counters, hook, reason)
    }
}

/// One counter over all CPUs.
pub(super) fn sum(
    counters: &PerCpuArray<MapData, Counter>,
    hook: Hook,
    reason: Reason,
) -> Result<Count, TableError> {
    let cpus = counters
        .get(&counter_index(hook, reason), 0)
        .map_err(|e| TableError::Kernel {
            map: maps::COUNTERS,
            what: "read it".into(),
            source: io_of(e),
        })?;
    let sum = cpus.iter().fold(Counter::default(), |sum, one| Counter {
        packets: sum.packets.wrapping_add(one.packets),
        bytes: sum.bytes.wrapping_add(one.bytes),
    });
    Ok(Count {
        hook,
        reason,
        packets: sum.packets,
        bytes: sum.bytes,
    })
}
