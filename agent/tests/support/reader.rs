//! The simulated maps, read back a piece at a time.

use std::collections::BTreeSet;
use std::convert::Infallible;

use datapath_common::{Address, Backend, Frontend, Ip4, Ip6, Via};
use tulle_agent::plan::{FrontKey, MapReader, Rows, Table};

use super::CAPACITIES;
use super::sim::Sim;

/// Where the reading stands.
#[derive(Default)]
pub struct Cursor {
    table: Option<Table>,
    /// Keys that were read, as bytes: whatever comes or goes, a row that stays is met.
    seen: BTreeSet<Vec<u8>>,
}

/// Reads what the kernel holds.
pub struct SimReader<'a> {
    pub sim: &'a Sim,
    pub cursor: &'a mut Cursor,
}

impl SimReader<'_> {
    fn unseen<K: bytemuck::Pod, V>(&mut self, rows: Vec<(K, V)>, room: u32) -> Vec<(K, V)> {
        let key = |key: &K| bytemuck::bytes_of(key).to_vec();
        let seen = &mut self.cursor.seen;
        let mut new: Vec<(K, V)> = rows
            .into_iter()
            .filter(|(k, _)| !seen.contains(&key(k)))
            .collect();
        new.truncate(room as usize);
        seen.extend(new.iter().map(|(k, _)| key(k)));
        new
    }

    /// Every row of an array is there.
    fn all<A: Copy>(written: &[(u32, Backend<A>)], none: A) -> Vec<(u32, Backend<A>)> {
        let zero = Backend {
            addr: none,
            port: 0,
            proto: 0,
            state: 0,
            generation: 0,
            via: Via::default(),
        };
        let row = |id| {
            let found = written.iter().find(|(at, _)| *at == id);
            found.map_or(zero, |(_, row)| *row)
        };
        (0..CAPACITIES.backends).map(|id| (id, row(id))).collect()
    }
}

impl MapReader for SimReader<'_> {
    type Error = Infallible;

    fn begin(&mut self, table: Table) {
        *self.cursor = Cursor {
            table: Some(table),
            seen: BTreeSet::new(),
        };
    }

    fn next(&mut self, room: u32) -> Result<Option<Rows>, Infallible> {
        let rows = self.sim.kernel().rows();
        let mut piece = Rows::default();
        let left = match self.cursor.table.unwrap() {
            Table::NodesV4 => {
                piece.nodes_v4 = self.unseen(rows.nodes_v4, room);
                piece.nodes_v4.len()
            }
            Table::DirectV4 => {
                piece.direct_v4 = self.unseen(rows.direct_v4, room);
                piece.direct_v4.len()
            }
            Table::DirectV6 => {
                piece.direct_v6 = self.unseen(rows.direct_v6, room);
                piece.direct_v6.len()
            }
            Table::PeersV4 => {
                piece.peers_v4 = self.unseen(rows.peers_v4, room);
                piece.peers_v4.len()
            }
            Table::PeersV6 => {
                piece.peers_v6 = self.unseen(rows.peers_v6, room);
                piece.peers_v6.len()
            }
            Table::PodsV4 => {
                piece.pods_v4 = self.unseen(rows.pods_v4, room);
                piece.pods_v4.len()
            }
            Table::PodsV6 => {
                piece.pods_v6 = self.unseen(rows.pods_v6, room);
                piece.pods_v6.len()
            }
            Table::BackV4 => {
                let all = Self::all(&rows.back_v4, Ip4::UNSPECIFIED);
                piece.back_v4 = self.unseen(all, room);
                piece.back_v4.len()
            }
            Table::BackV6 => {
                let all = Self::all(&rows.back_v6, Ip6::UNSPECIFIED);
                piece.back_v6 = self.unseen(all, room);
                piece.back_v6.len()
            }
            Table::SrcsV4 => {
                let keys = rows.srcs_v4.into_iter().map(|key| (key, ())).collect();
                let new = self.unseen(keys, room);
                piece.srcs_v4 = new.into_iter().map(|(key, ())| key).collect();
                piece.srcs_v4.len()
            }
            Table::SrcsV6 => {
                let keys = rows.srcs_v6.into_iter().map(|key| (key, ())).collect();
                let new = self.unseen(keys, room);
                piece.srcs_v6 = new.into_iter().map(|(key, ())| key).collect();
                piece.srcs_v6.len()
            }
            Table::FrontV4 => {
                piece.front_v4 = self.unseen(rows.front_v4, room);
                piece.front_v4.len()
            }
            Table::FrontV6 => {
                piece.front_v6 = self.unseen(rows.front_v6, room);
                piece.front_v6.len()
            }
            Table::Segments => panic!("slots are memory"),
        };
        Ok((left > 0).then_some(piece))
    }

    fn frontend(&mut self, key: &FrontKey) -> Result<Option<Frontend>, Infallible> {
        let key = (key.addr, key.port, key.proto);
        Ok(self.sim.kernel().fronts.get(&key).copied())
    }

    fn slots(&mut self, first: u32, count: u32) -> Result<Vec<u32>, Infallible> {
        let slots = &self.sim.kernel().slots;
        let end = (first + count).min(CAPACITIES.segments);
        Ok((first..end)
            .map(|slot| slots.get(&slot).copied().unwrap_or(0))
            .collect())
    }
}
