//! Traffic of services and backends, summed over the CPUs.

use std::collections::{BTreeSet, HashMap};

use aya::maps::{PerCpuArray, PerCpuValues};
use datapath_common::{Traffic, maps};

use super::{Datapath, DatapathError};

/// Traffic by service number or backend id.
pub type TrafficById = HashMap<u32, Traffic>;

impl Datapath {
    /// Rows of `tulle_svc_stats`. Numbers beyond the table are not counted and
    /// are absent.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn service_traffic(&self, numbers: &BTreeSet<u32>) -> Result<TrafficById, DatapathError> {
        self.traffic(maps::SVC_STATS, numbers)
    }

    /// Rows of `tulle_bk_stats4` or `tulle_bk_stats6`, as `family` is 4 or 6.
    /// Ids beyond the table are not counted and are absent.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn backend_traffic(
        &self,
        family: u8,
        ids: &BTreeSet<u32>,
    ) -> Result<TrafficById, DatapathError> {
        let map = if family == 4 {
            maps::BK_STATS4
        } else {
            maps::BK_STATS6
        };
        self.traffic(map, ids)
    }

    fn traffic(
        &self,
        map: &'static str,
        ids: &BTreeSet<u32>,
    ) -> Result<TrafficById, DatapathError> {
        let array: PerCpuArray<_, Traffic> = self.typed(map)?;
        let rows = ids.range(..array.len()).map(|id| {
            let values = array
                .get(id, 0)
                .map_err(|source| DatapathError::Map { map, source })?;
            Ok((*id, sum(&values)))
        });
        rows.collect()
    }
}

fn sum(values: &PerCpuValues<Traffic>) -> Traffic {
    values.iter().fold(Traffic::default(), |sum, cpu| Traffic {
        flows: sum.flows.wrapping_add(cpu.flows),
        packets: sum.packets.wrapping_add(cpu.packets),
        bytes: sum.bytes.wrapping_add(cpu.bytes),
        reply_packets: sum.reply_packets.wrapping_add(cpu.reply_packets),
        reply_bytes: sum.reply_bytes.wrapping_add(cpu.reply_bytes),
    })
}
