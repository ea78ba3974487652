//! Reading back what the agent wrote, a piece at a time, for the comparison with the plan.

use std::net::IpAddr;

use aya::maps::MapError;
use datapath_common::{Frontend, Ip4, Ip6};

use super::maps::{Maps, TableError, io_of, typed};
use super::scan::Scan;
use super::sys;
use crate::plan::{FrontKey, MapReader, Rows, Table};

/// Where the reading of a table stands. Its memory is that of a piece.
#[derive(Debug)]
pub struct Reading {
    table: Table,
    scan: Scan,
    rows: sys::Rows,
    /// Rows until a walk counts as endless: the kernel begins one key by key anew when the row
    /// that it stands at goes.
    left: u64,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            table: Table::NodesV4,
            scan: Scan::new(),
            rows: sys::Rows::default(),
            left: u64::MAX,
        }
    }
}

/// The maps with a reading of theirs.
pub struct RowReader<'a> {
    maps: &'a Maps,
    reading: &'a mut Reading,
}

impl Maps {
    /// Goes on with a reading.
    pub const fn reader<'a>(&'a self, reading: &'a mut Reading) -> RowReader<'a> {
        RowReader {
            maps: self,
            reading,
        }
    }
}

impl MapReader for RowReader<'_> {
    type Error = TableError;

    fn begin(&mut self, table: Table) {
        let rows = std::mem::take(&mut self.reading.rows);
        *self.reading = Reading {
            table,
            rows,
            ..Reading::default()
        };
    }

    fn next(&mut self, room: u32) -> Result<Option<Rows>, TableError> {
        let Reading {
            table,
            scan,
            rows,
            left,
        } = &mut *self.reading;
        let name = table.name();
        let map = self.maps.raw(name)?;
        *left = (*left).min(u64::from(map.shape().max_entries).saturating_mul(2));
        if *left == 0 {
            return Ok(None);
        }
        let more = scan
            .step(&map, rows, room)
            .map_err(|source| TableError::Kernel {
                map: name,
                what: "read it".into(),
                source,
            })?;
        if !more {
            return Ok(None);
        }
        let read = rows.keys.len() as u64 / u64::from(map.shape().key_size.max(1));
        *left = left.saturating_sub(read.max(1));
        Ok(Some(piece(*table, rows)))
    }

    fn frontend(&mut self, key: &FrontKey) -> Result<Option<Frontend>, TableError> {
        let (map, row) = match key.addr {
            IpAddr::V4(addr) => {
                let key = key.row(Ip4::from(addr));
                (Table::FrontV4, self.maps.front_v4.get(&key, 0))
            }
            IpAddr::V6(addr) => {
                let key = key.row(Ip6::from(addr));
                (Table::FrontV6, self.maps.front_v6.get(&key, 0))
            }
        };
        match row {
            Ok(row) => Ok(Some(row)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(TableError::Kernel {
                map: map.name(),
                what: format!("read the row of {} port {}", key.addr, key.port),
                source: io_of(error),
            }),
        }
    }

    fn slots(&mut self, first: u32, count: u32) -> Result<Vec<u32>, TableError> {
        let slots = self.maps.segments.range(first, count);
        slots.map_err(super::apply::unmapped)
    }
}

fn piece(table: Table, rows: &sys::Rows) -> Rows {
    let mut piece = Rows::default();
    match table {
        Table::NodesV4 => piece.nodes_v4 = typed(rows).collect(),
        Table::DirectV4 => piece.direct_v4 = typed(rows).collect(),
        Table::DirectV6 => piece.direct_v6 = typed(rows).collect(),
        Table::PeersV4 => piece.peers_v4 = typed(rows).collect(),
        Table::PeersV6 => piece.peers_v6 = typed(rows).collect(),
        Table::PodsV4 => piece.pods_v4 = typed(rows).collect(),
        Table::PodsV6 => piece.pods_v6 = typed(rows).collect(),
        Table::BackV4 => piece.back_v4 = typed(rows).collect(),
        Table::BackV6 => piece.back_v6 = typed(rows).collect(),
        Table::SrcsV4 => piece.srcs_v4 = typed::<_, u32>(rows).map(|(key, _)| key).collect(),
        Table::SrcsV6 => piece.srcs_v6 = typed::<_, u32>(rows).map(|(key, _)| key).collect(),
        Table::FrontV4 => piece.front_v4 = typed(rows).collect(),
        Table::FrontV6 => piece.front_v6 = typed(rows).collect(),
        // Read as memory.
        Table::Segments => {}
    }
    piece
}
