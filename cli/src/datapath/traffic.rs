//! Traffic of services and backends, summed over the CPUs.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;

use aya::maps::PerCpuArray;
use datapath_common::{Traffic, maps};

use super::{Datapath, DatapathError};
use crate::sys::BatchReader;

/// Traffic by service number or backend id.
pub type TrafficById = HashMap<u32, Traffic>;

/// Rows up to which each is asked for alone.
const FEW: usize = 64;
/// Bytes that are asked for at once where there are more.
const PIECE: usize = 1 << 19;

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
        if ids.len() > FEW {
            return self.many(map, ids);
        }
        let array: PerCpuArray<_, Traffic> = self.typed(map)?;
        let rows = ids.range(..array.len()).map(|id| {
            let values = array
                .get(id, 0)
                .map_err(|source| DatapathError::Map { map, source })?;
            Ok((*id, sum(values.iter().copied())))
        });
        rows.collect()
    }

    /// The same in pieces of the map (Linux 5.13), up to the last id that is asked for.
    fn many(&self, map: &'static str, ids: &BTreeSet<u32>) -> Result<TrafficById, DatapathError> {
        // What the kernel gives for a row: a value for each CPU that there could be.
        let cpus = aya::util::nr_cpus().map_err(|(what, source)| DatapathError::Io {
            path: what.into(),
            source,
        })?;
        let row = cpus * size_of::<Traffic>();
        let data = self.map(map)?;
        let rows = (PIECE / row).max(1);
        let mut reader = BatchReader::with_rows(data.fd().as_fd(), size_of::<u32>(), row, rows);
        let last = ids.last().copied().unwrap_or(0);
        let mut found = TrafficById::with_capacity(ids.len());
        while let Some((keys, values)) = self.chunk(map, &mut reader)? {
            let mut after = 0;
            let keys = keys.chunks_exact(size_of::<u32>());
            for (key, values) in keys.zip(values.chunks_exact(row)) {
                let id: u32 = bytemuck::pod_read_unaligned(key);
                if ids.contains(&id) {
                    let cpus = values.chunks_exact(size_of::<Traffic>());
                    let cpus = cpus.map(bytemuck::pod_read_unaligned::<Traffic>);
                    found.insert(id, sum(cpus));
                }
                after = id;
            }
            // The rows of an array come in the order of the index.
            if after >= last {
                break;
            }
        }
        Ok(found)
    }
}

fn sum(cpus: impl Iterator<Item = Traffic>) -> Traffic {
    cpus.fold(Traffic::default(), |sum, cpu| sum.plus(&cpu))
}
