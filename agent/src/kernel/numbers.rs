//! Service numbers that begin anew.

use std::collections::BTreeSet;

use datapath_common::{Address, Affinity, AffinityKey, Ip4, Ip6, SocketClient, Traffic, maps};

use super::maps::{Maps, TableError, io_of, typed};
use super::scan::Scan;
use super::sys::Rows;

/// Rows that are looked at in one step.
const ROWS: usize = 4096;

/// Takes away what the programs wrote under service numbers that no frontend has:
/// whom they remember, and the traffic so far. In steps, between other work.
#[derive(Debug)]
pub struct Clearing {
    numbers: BTreeSet<u32>,
    next: Next,
}

/// What the next step is for.
#[derive(Debug)]
enum Next {
    Clients4(Scan),
    Clients6(Scan),
    Sockets(Scan),
    /// Traffic of this number and higher ones.
    Traffic(u32),
    Nothing,
}

impl Clearing {
    /// Of these numbers; nothing is done yet.
    pub fn new(numbers: BTreeSet<u32>) -> Self {
        Self {
            numbers,
            next: Next::Clients4(Scan::new()),
        }
    }

    /// The numbers.
    pub const fn numbers(&self) -> &BTreeSet<u32> {
        &self.numbers
    }

    /// Looks at about 4,096 rows more. Says whether that was all.
    ///
    /// # Errors
    ///
    /// That of the map that refuses; what is done stays done. The next step tries again.
    pub fn step(&mut self, maps: &mut Maps) -> Result<bool, TableError> {
        match &mut self.next {
            Next::Clients4(scan) => {
                if !maps.forget_addresses::<Ip4>(maps::AFFIN_V4, scan, &self.numbers)? {
                    self.next = Next::Clients6(Scan::new());
                }
            }
            Next::Clients6(scan) => {
                if !maps.forget_addresses::<Ip6>(maps::AFFIN_V6, scan, &self.numbers)? {
                    self.next = Next::Sockets(Scan::new());
                }
            }
            Next::Sockets(scan) => {
                let service = |client: &SocketClient| client.service;
                if !maps.forget_clients(maps::SK_AFFIN, scan, &self.numbers, service)? {
                    self.next = Next::Traffic(0);
                }
            }
            Next::Traffic(first) => {
                let end = maps.svc_stats.len();
                let rest = self.numbers.range(*first..end.max(*first));
                let (numbers, more) = piece(rest.copied());
                maps.clear_traffic(&numbers)?;
                self.next = more.map_or(Next::Nothing, Next::Traffic);
            }
            Next::Nothing => {}
        }
        Ok(matches!(self.next, Next::Nothing))
    }
}

/// What one step takes, and where the next one begins.
fn piece(mut numbers: impl Iterator<Item = u32>) -> (Vec<u32>, Option<u32>) {
    let these = numbers.by_ref().take(ROWS).collect();
    (these, numbers.next())
}

impl Maps {
    /// [`Self::forget_clients`] by address.
    fn forget_addresses<A>(
        &self,
        name: &'static str,
        scan: &mut Scan,
        numbers: &BTreeSet<u32>,
    ) -> Result<bool, TableError>
    where
        A: Address,
        AffinityKey<A>: bytemuck::Pod,
    {
        self.forget_clients(name, scan, numbers, |key: &AffinityKey<A>| key.service)
    }

    /// Goes on with a walk over a table of clients, of whose keys `service` reads the
    /// number; false at its end.
    fn forget_clients<K: bytemuck::Pod>(
        &self,
        name: &'static str,
        scan: &mut Scan,
        numbers: &BTreeSet<u32>,
        service: impl Fn(&K) -> u32,
    ) -> Result<bool, TableError> {
        let map = self.raw(name)?;
        let fail = |source| TableError::Kernel {
            map: name,
            what: "forget clients of services that are gone".into(),
            source,
        };
        let mut rows = Rows::default();
        let more = scan.step(&map, &mut rows, ROWS as u32).map_err(fail)?;
        for (key, _) in typed::<K, Affinity>(&rows) {
            if numbers.contains(&service(&key)) {
                map.take(bytemuck::bytes_of(&key)).map_err(fail)?;
            }
        }
        Ok(more)
    }

    /// The highest service number that has traffic to its name, 0 if none has. A former agent may
    /// have ended before it could clear what it had taken from a port.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn last_counted(&self) -> Result<u32, TableError> {
        let rows = super::scan::used(&self.raw(maps::SVC_STATS)?);
        let rows = rows.map_err(|source| TableError::Kernel {
            map: maps::SVC_STATS,
            what: "look through it".into(),
            source,
        })?;
        Ok(rows.saturating_sub(1))
    }

    /// Moves the traffic of these numbers to row 0, which is nobody's: so the sum over all rows never
    /// falls, whoever reads it, and whichever agent wrote them.
    fn clear_traffic(&mut self, numbers: &[u32]) -> Result<(), TableError> {
        for number in numbers.iter().filter(|number| **number != GONE) {
            let rows = self.traffic_of(*number)?;
            if rows.iter().all(|row| *row == Traffic::default()) {
                continue;
            }
            let zeros = vec![Traffic::default(); rows.len()];
            let mut gone = self.traffic_of(GONE)?;
            for (sum, row) in gone.iter_mut().zip(&rows) {
                *sum = sum.plus(row);
            }
            // First there, then away here: an agent that is killed between has them twice, once.
            self.set_traffic(GONE, gone)?;
            self.set_traffic(*number, zeros)?;
        }
        Ok(())
    }

    /// What each CPU counted.
    fn traffic_of(&self, number: u32) -> Result<Vec<Traffic>, TableError> {
        let rows = self.svc_stats.get(&number, 0);
        let rows = rows.map_err(|error| TableError::Kernel {
            map: maps::SVC_STATS,
            what: format!("read row {number}"),
            source: io_of(error),
        })?;
        Ok(rows.to_vec())
    }

    fn set_traffic(&mut self, number: u32, rows: Vec<Traffic>) -> Result<(), TableError> {
        let rows = rows.try_into().map_err(aya::maps::MapError::from);
        rows.and_then(|rows| self.svc_stats.set(number, rows, 0))
            .map_err(|error| TableError::Kernel {
                map: maps::SVC_STATS,
                what: format!("clear row {number}"),
                source: io_of(error),
            })
    }
}

/// Row of `tulle_svc_stats` for what service ports counted that are gone: no port has this number.
const GONE: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_limited_and_leave_nothing_out() {
        let rows = ROWS as u32;
        assert_eq!(piece(0..0), (vec![], None));
        assert_eq!(piece(0..rows), ((0..rows).collect(), None));
        assert_eq!(
            piece(7..rows + 9),
            ((7..rows + 7).collect(), Some(rows + 7))
        );
    }
}
