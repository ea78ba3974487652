//! What the programs count and how full the maps are, read by a thread of its own: whoever asks
//! holds up neither the loop nor the programs.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;

use aya::maps::{Map, MapData, PerCpuArray};
use datapath_common::{Counter, Hook, Reason, Traffic, maps};

use super::counters::{Count, sum};
use super::maps::{Maps, TableError, io_of};
use super::scan::Scan;
use super::shape::{is_array, is_lru, is_per_cpu, is_ring};
use super::sys::{RawMap, Rows, raw};
use super::usage::memory;

/// The maps once more, with handles of their own.
pub struct Readings {
    counters: PerCpuArray<MapData, Counter>,
    by_name: BTreeMap<&'static str, MapData>,
}

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readings").finish_non_exhaustive()
    }
}

/// A map's size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// The map.
    pub map: &'static str,
    /// Entries that fit; bytes for the event ring.
    pub limit: u32,
    /// Kernel memory in bytes, by the kernel's own account.
    pub bytes: u64,
    /// Whether counting its rows tells how full it is: those of arrays are always there.
    pub counted: bool,
    /// Whether it makes room by itself when it is full.
    pub evicts: bool,
}

impl Maps {
    /// Handles to read with elsewhere.
    ///
    /// # Errors
    ///
    /// [`TableError`]: out of file descriptors, mostly.
    pub fn readings(&self) -> Result<Readings, TableError> {
        let copy = |name: &'static str, data: &MapData| {
            let fd = data.fd().as_fd().try_clone_to_owned();
            fd.and_then(|fd| MapData::from_fd(fd).map_err(io_of))
                .map_err(|source| TableError::Kernel {
                    map: name,
                    what: "open it".into(),
                    source,
                })
        };
        let by_name: Result<BTreeMap<&'static str, MapData>, TableError> = self
            .by_name
            .iter()
            .map(|(name, data)| Ok((*name, copy(name, data)?)))
            .collect();
        let by_name = by_name?;
        let map = maps::COUNTERS;
        let data = by_name.get(map).ok_or_else(|| absent(map))?;
        let counters = Map::from_map_data(copy(map, data)?).and_then(PerCpuArray::try_from);
        Ok(Readings {
            counters: counters.map_err(|e| TableError::Kind {
                map,
                source: Box::new(e),
            })?,
            by_name,
        })
    }
}

impl Readings {
    /// Every counter, also those at zero, by hook and reason.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn counts(&self) -> Result<Vec<Count>, TableError> {
        let all = |hook| Reason::ALL.iter().map(move |reason| (hook, *reason));
        let of = |(hook, reason)| sum(&self.counters, hook, reason);
        Hook::ALL.into_iter().flat_map(all).map(of).collect()
    }

    /// The size of every map.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn sizes(&self) -> Result<Vec<Size>, TableError> {
        let size = |(name, data): (&&'static str, &MapData)| {
            let map = *name;
            let raw = raw(data).map_err(|source| failed(map, "look at it", source))?;
            let shape = raw.shape();
            Ok(Size {
                map,
                limit: shape.max_entries,
                bytes: memory(map, data)?,
                counted: !is_array(shape.map_type) && !is_ring(shape.map_type),
                evicts: is_lru(shape.map_type),
            })
        };
        self.by_name.iter().map(size).collect()
    }

    /// How many rows a map holds. Reads them all: not for each scrape.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn rows(&self, map: &'static str) -> Result<u32, TableError> {
        let data = self.by_name.get(map).ok_or_else(|| absent(map))?;
        let fail = |source| failed(map, "count it", source);
        let table = raw(data).map_err(fail)?;
        let (mut scan, mut rows, mut count) = (Scan::new(), Rows::default(), 0);
        while scan.step(&table, &mut rows, room(&table)).map_err(fail)? {
            count += rows.values.len() / table.value_len().max(1);
        }
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Traffic of every service number up to `last`, summed over the CPUs. Reads a piece of the
    /// map at a time.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn traffic(&self, last: u32, mut each: impl FnMut(u32, Traffic)) -> Result<(), TableError> {
        let map = maps::SVC_STATS;
        let fail = |source| failed(map, "read it", source);
        let data = self.by_name.get(map).ok_or_else(|| absent(map))?;
        let table = raw(data).map_err(fail)?;
        debug_assert!(is_per_cpu(table.shape().map_type));
        let cpus = table.value_len() / size_of::<Traffic>();
        let (mut scan, mut rows) = (Scan::new(), Rows::default());
        while scan.step(&table, &mut rows, room(&table)).map_err(fail)? {
            let numbers = rows.keys.chunks_exact(size_of::<u32>());
            for (number, values) in numbers.zip(rows.values.chunks_exact(table.value_len())) {
                let number: u32 = bytemuck::pod_read_unaligned(number);
                if number > last {
                    return Ok(());
                }
                each(number, add_up(values, cpus));
            }
        }
        Ok(())
    }
}

/// Rows that are read in one call: half a megabyte of them.
fn room(table: &RawMap<'_>) -> u32 {
    const BYTES: usize = 1 << 19;
    let rows = BYTES / table.value_len().max(1);
    u32::try_from(rows).unwrap_or(u32::MAX).clamp(16, 4096)
}

fn add_up(values: &[u8], cpus: usize) -> Traffic {
    let cpus = values.chunks_exact(size_of::<Traffic>()).take(cpus);
    let rows = cpus.map(bytemuck::pod_read_unaligned::<Traffic>);
    rows.fold(Traffic::default(), |sum, row| sum.plus(&row))
}

fn failed(map: &'static str, what: &str, source: io::Error) -> TableError {
    TableError::Kernel {
        map,
        what: what.into(),
        source,
    }
}

fn absent(map: &'static str) -> TableError {
    failed(map, "open it", io::Error::from_raw_os_error(libc::ENOENT))
}
