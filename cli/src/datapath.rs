//! The pinned maps of a node, read with their types checked.

mod config;
mod error;
mod flows;
mod traffic;
mod usage;

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use bytemuck::AnyBitPattern;
use datapath_common::{
    Address, COUNTERS, Counter, Hook, Ip4, Ip6, MonitorControl, Node, SourceNet, Via, maps,
};

pub use error::DatapathError;
pub use traffic::TrafficById;

use crate::sys::{BatchReader, Chunk};
use crate::tables::{BackendRow, CounterRow, FrontendRow, NodeRow, PeerRow, SourceRow};

/// The maps pinned in a directory.
#[derive(Debug)]
pub struct Datapath {
    dir: PathBuf,
}

impl Datapath {
    /// The datapath pinned under `dir`.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Missing`] without any of the maps, [`DatapathError::Permission`].
    pub fn open(dir: &Path) -> Result<Self, DatapathError> {
        let owned = || dir.to_path_buf();
        let entries = fs::read_dir(dir).map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                DatapathError::Missing { dir: owned() }
            }
            ErrorKind::PermissionDenied => DatapathError::Permission { path: owned() },
            _ => DatapathError::Io {
                path: owned(),
                source,
            },
        })?;
        let any = entries
            .flatten()
            .any(|entry| maps::ALL.iter().any(|map| entry.file_name() == *map.name));
        if any {
            Ok(Self { dir: owned() })
        } else {
            Err(DatapathError::Missing { dir: owned() })
        }
    }

    /// Directory of the pins.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Rows of `tulle_front_v4` and `tulle_front_v6`.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn frontends(&self) -> Result<Vec<FrontendRow>, DatapathError> {
        let mut rows = self.rows(maps::FRONT_V4, FrontendRow::new::<Ip4>)?;
        rows.extend(self.rows(maps::FRONT_V6, FrontendRow::new::<Ip6>)?);
        Ok(rows)
    }

    /// Slots of `tulle_segments`, by slot number.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn segments(&self) -> Result<Vec<u32>, DatapathError> {
        // An array's batches come in the order of the index.
        self.rows(maps::SEGMENTS, |_: u32, backend: u32| backend)
    }

    /// The slots of `tulle_segments` before `end`, and maybe some after: what is not in use need not
    /// be read.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn segments_below(&self, end: u32) -> Result<Vec<u32>, DatapathError> {
        let map = maps::SEGMENTS;
        let data = self.map(map)?;
        let mut reader = self.reader(map, &data)?;
        let mut slots = Vec::new();
        while slots.len() < end as usize
            && let Some((_, values)) = self.chunk(map, &mut reader)?
        {
            let values = values.chunks_exact(size_of::<u32>());
            slots.extend(values.map(bytemuck::pod_read_unaligned::<u32>));
        }
        Ok(slots)
    }

    /// Rows of `tulle_back_v4` and `tulle_back_v6` that are not free.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn backends(&self) -> Result<Vec<BackendRow>, DatapathError> {
        let v4 = self.rows(maps::BACK_V4, BackendRow::new::<Ip4>)?;
        let v6 = self.rows(maps::BACK_V6, BackendRow::new::<Ip6>)?;
        Ok(v4.into_iter().chain(v6).flatten().collect())
    }

    /// Rows of `tulle_peers_v4` and `tulle_peers_v6`.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn peers(&self) -> Result<Vec<PeerRow>, DatapathError> {
        let mut rows = self.peers_of::<Ip4>(maps::PEERS_V4)?;
        rows.extend(self.peers_of::<Ip6>(maps::PEERS_V6)?);
        Ok(rows)
    }

    fn peers_of<A: Address + aya::Pod>(
        &self,
        map: &'static str,
    ) -> Result<Vec<PeerRow>, DatapathError> {
        self.trie(map, |prefix_len, addr: A, via: Via| {
            PeerRow::new(prefix_len, addr, via)
        })
    }

    /// Networks of `tulle_srcs_v4` and `tulle_srcs_v6`.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn sources(&self) -> Result<Vec<SourceRow>, DatapathError> {
        let mut rows = self.sources_of::<Ip4>(maps::SRCS_V4)?;
        rows.extend(self.sources_of::<Ip6>(maps::SRCS_V6)?);
        Ok(rows)
    }

    fn sources_of<A: Address>(&self, map: &'static str) -> Result<Vec<SourceRow>, DatapathError>
    where
        SourceNet<A>: aya::Pod,
    {
        self.trie(map, |prefix_len, net: SourceNet<A>, _: u32| {
            SourceRow::new(prefix_len, net)
        })
    }

    /// Rows of a trie, each turned by `make`, which gets the prefix length first.
    fn trie<K: aya::Pod, V: aya::Pod, R>(
        &self,
        map: &'static str,
        make: impl Fn(u32, K, V) -> Option<R>,
    ) -> Result<Vec<R>, DatapathError> {
        let trie: LpmTrie<_, K, V> = self.typed(map)?;
        let rows = trie.iter().map(|row| {
            let (key, value) = row.map_err(|source| DatapathError::Map { map, source })?;
            Ok(make(key.prefix_len(), key.data(), value))
        });
        rows.filter_map(Result::transpose).collect()
    }

    /// Rows of `tulle_nodes_v4`.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn nodes(&self) -> Result<Vec<NodeRow>, DatapathError> {
        self.rows(maps::NODES_V4, |addr, node: Node| NodeRow {
            addr,
            vtep_mac: node.vtep_mac,
        })
    }

    /// Rows of `tulle_counters` that are not zero, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn counters(&self) -> Result<Vec<CounterRow>, DatapathError> {
        let map = maps::COUNTERS;
        let array: PerCpuArray<_, Counter> = self.typed(map)?;
        let per_hook = COUNTERS / Hook::ALL.len() as u32;
        let mut rows = Vec::new();
        for (hook, start) in Hook::ALL
            .into_iter()
            .zip((0u32..).step_by(per_hook as usize))
        {
            for reason in 0..per_hook {
                let values = array
                    .get(&(start + reason), 0)
                    .map_err(|source| DatapathError::Map { map, source })?;
                let (packets, bytes) = sum(&values);
                if packets > 0 {
                    rows.push(CounterRow {
                        hook,
                        reason: reason as u8,
                        packets,
                        bytes,
                    });
                }
            }
        }
        Ok(rows)
    }

    /// The kernel's id of the map that is pinned under this name. Another map has another one.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn map_id(&self, map: &'static str) -> Result<u32, DatapathError> {
        let info = self.map(map)?.info();
        info.map(|info| info.id())
            .map_err(|source| DatapathError::Map { map, source })
    }

    /// `tulle_monitor`, to write leases.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn monitor(&self) -> Result<Array<MapData, MonitorControl>, DatapathError> {
        self.typed(maps::MONITOR)
    }

    /// `tulle_events`. Whoever reads an event takes it from all others.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn events(&self) -> Result<RingBuf<MapData>, DatapathError> {
        self.typed(maps::EVENTS)
    }

    /// All rows of a hash map or an array, each turned by `make`.
    fn rows<K: AnyBitPattern, V: AnyBitPattern, R>(
        &self,
        map: &'static str,
        make: impl Fn(K, V) -> R,
    ) -> Result<Vec<R>, DatapathError> {
        let data = self.map(map)?;
        let mut reader = self.reader(map, &data)?;
        let mut rows = Vec::new();
        while let Some((keys, values)) = self.chunk(map, &mut reader)? {
            let keys = keys
                .chunks_exact(size_of::<K>())
                .map(bytemuck::pod_read_unaligned);
            let values = values
                .chunks_exact(size_of::<V>())
                .map(bytemuck::pod_read_unaligned);
            rows.extend(keys.zip(values).map(|(key, value)| make(key, value)));
        }
        Ok(rows)
    }

    fn reader<'a>(
        &self,
        map: &'static str,
        data: &'a MapData,
    ) -> Result<BatchReader<'a>, DatapathError> {
        let (key, value) = maps::layout(map).ok_or_else(|| self.not_pinned(map))?;
        Ok(BatchReader::new(data.fd().as_fd(), key, value))
    }

    fn chunk<'a>(
        &self,
        map: &'static str,
        reader: &'a mut BatchReader<'_>,
    ) -> Result<Option<Chunk<'a>>, DatapathError> {
        let path = self.dir.join(map);
        reader
            .next_chunk()
            .map_err(|source| DatapathError::Io { path, source })
    }

    /// A map as aya's type for it.
    fn typed<T: TryFrom<Map, Error = MapError>>(
        &self,
        map: &'static str,
    ) -> Result<T, DatapathError> {
        let data = self.map(map)?;
        Map::from_map_data(data)
            .and_then(T::try_from)
            .map_err(|source| DatapathError::Map { map, source })
    }

    /// Opens a pin and compares its layout with ours.
    fn map(&self, map: &'static str) -> Result<MapData, DatapathError> {
        let path = self.dir.join(map);
        let data = MapData::from_pin(&path).map_err(|source| match os_error(&source) {
            Some(ErrorKind::NotFound) => self.not_pinned(map),
            Some(ErrorKind::PermissionDenied) => DatapathError::Permission { path },
            _ => DatapathError::Map { map, source },
        })?;
        let info = data
            .info()
            .map_err(|source| DatapathError::Map { map, source })?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        let (known_key, known_value) = maps::layout(map).ok_or_else(|| self.not_pinned(map))?;
        if (key, value) == (known_key, known_value) {
            Ok(data)
        } else {
            Err(DatapathError::Layout {
                map,
                key,
                value,
                known_key,
                known_value,
            })
        }
    }

    fn not_pinned(&self, map: &'static str) -> DatapathError {
        DatapathError::NotPinned {
            map,
            dir: self.dir.clone(),
        }
    }
}

fn sum(values: &PerCpuValues<Counter>) -> (u64, u64) {
    values.iter().fold((0, 0), |(packets, bytes), cpu| {
        (
            packets.wrapping_add(cpu.packets),
            bytes.wrapping_add(cpu.bytes),
        )
    })
}

fn os_error(error: &MapError) -> Option<ErrorKind> {
    match error {
        MapError::SyscallError(e) => Some(e.io_error.kind()),
        MapError::IoError(e) => Some(e.kind()),
        _ => None,
    }
}
