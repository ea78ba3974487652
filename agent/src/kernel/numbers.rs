//! Service numbers that begin anew.

use std::collections::BTreeSet;

use datapath_common::{Address, Affinity, AffinityKey, Ip4, Ip6, Traffic, maps};

use super::maps::{Maps, TableError, io_of, typed};
use super::scan::Scan;
use super::sys::Rows;

/// Rows that are looked at at once.
const ROWS: u32 = 4096;

impl Maps {
    /// Takes away what the programs wrote under service numbers that no frontend
    /// has: whom they remember, and the traffic so far.
    ///
    /// # Errors
    ///
    /// That of the first map that refuses; what is done stays done.
    pub fn clear_services(&mut self, numbers: &BTreeSet<u32>) -> Result<(), TableError> {
        self.forget_clients::<Ip4>(maps::AFFIN_V4, numbers)?;
        self.forget_clients::<Ip6>(maps::AFFIN_V6, numbers)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| TableError::Kernel {
            map: maps::SVC_STATS,
            what: "find out how many CPUs it is for".into(),
            source,
        })?;
        for number in numbers.range(..self.svc_stats.len()) {
            let zero = vec![Traffic::default(); cpus].try_into();
            zero.map_err(aya::maps::MapError::from)
                .and_then(|zero| self.svc_stats.set(*number, zero, 0))
                .map_err(|error| TableError::Kernel {
                    map: maps::SVC_STATS,
                    what: format!("clear row {number}"),
                    source: io_of(error),
                })?;
        }
        Ok(())
    }

    fn forget_clients<A>(
        &self,
        name: &'static str,
        numbers: &BTreeSet<u32>,
    ) -> Result<(), TableError>
    where
        A: Address,
        AffinityKey<A>: bytemuck::Pod,
        Affinity: bytemuck::Pod,
    {
        let map = self.raw(name)?;
        let fail = |source| TableError::Kernel {
            map: name,
            what: "forget clients of services that are gone".into(),
            source,
        };
        let (mut scan, mut rows) = (Scan::new(), Rows::default());
        while scan.step(&map, &mut rows, ROWS).map_err(fail)? {
            for (key, _) in typed::<AffinityKey<A>, Affinity>(&rows) {
                if numbers.contains(&key.service) {
                    map.take(bytemuck::bytes_of(&key)).map_err(fail)?;
                }
            }
        }
        Ok(())
    }
}
