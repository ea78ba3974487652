//! The pinned maps of a node, read with their types checked.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, MapType, PerCpuArray, PerCpuValues, RingBuf,
};
use bytemuck::AnyBitPattern;
use datapath_common::{
    Address, Backend, BackendState, COUNTERS, Counter, Flow, FlowKey, FlowState, Hook, Ip4, Ip6,
    MonitorControl, Node, Via, maps,
};

use crate::sys::{BatchReader, Chunk};
use crate::tables::{
    BackendRow, CounterRow, FlowRow, FlowRowKey, FrontendRow, MapUsage, NodeRow, PeerRow,
};

/// Counting the rows of a map stops here.
const MOST_COUNTED: u64 = 1_000_000;
/// Write only over a row that is there (`linux/bpf.h`).
const BPF_EXIST: u64 = 2;

/// Why the maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// No pins.
    #[error(
        "no datapath under {dir}: is tulle-agent running? it pins its maps there; another \
         directory: --bpffs DIR"
    )]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// Not allowed.
    #[error("may not read {path}: tulle reads the kernel's maps and needs root; run it with sudo")]
    Permission {
        /// The directory or pin.
        path: PathBuf,
    },
    /// Pins of something else, or of another release.
    #[error(
        "map {map} is not pinned under {dir}, other maps of tulle are: the agent that pinned them \
         is of another release; use agent and tulle of one release"
    )]
    NotPinned {
        /// Name of the map.
        map: &'static str,
        /// The directory.
        dir: PathBuf,
    },
    /// Another layout.
    #[error(
        "map {map} has keys of {key} and values of {value} bytes, this program knows keys of \
         {known_key} and values of {known_value}: use agent and tulle of one release"
    )]
    Layout {
        /// Name of the map.
        map: &'static str,
        /// Bytes of a key.
        key: usize,
        /// Bytes of a value.
        value: usize,
        /// Bytes of a key as this program knows it.
        known_key: usize,
        /// Bytes of a value as this program knows it.
        known_value: usize,
    },
    /// The kernel or aya refuses.
    #[error("map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What is wrong.
        source: MapError,
    },
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}

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

    /// Rows of `tulle_flow_v4` and `tulle_flow_v6`, expired ones included.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn flows(&self) -> Result<Vec<FlowRow>, DatapathError> {
        let mut rows = self.rows(maps::FLOW_V4, FlowRow::new::<Ip4>)?;
        rows.extend(self.rows(maps::FLOW_V6, FlowRow::new::<Ip6>)?);
        Ok(rows)
    }

    /// Removes flow rows; rows that are gone already are no error. Returns how
    /// many were removed.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn remove_flows(
        &self,
        keys: impl IntoIterator<Item = FlowRowKey>,
    ) -> Result<u64, DatapathError> {
        let mut v4: HashMap<_, FlowKey<Ip4>, Flow<Ip4>> = self.typed(maps::FLOW_V4)?;
        let mut v6: HashMap<_, FlowKey<Ip6>, Flow<Ip6>> = self.typed(maps::FLOW_V6)?;
        let mut removed = 0;
        for key in keys {
            let (map, result) = match key {
                FlowRowKey::V4(key) => (maps::FLOW_V4, v4.remove(&key)),
                FlowRowKey::V6(key) => (maps::FLOW_V6, v6.remove(&key)),
            };
            match result {
                Ok(()) => removed += 1,
                Err(e) if is_absent(&e) => {}
                Err(source) => return Err(DatapathError::Map { map, source }),
            }
        }
        Ok(removed)
    }

    /// Moves flow rows to closing, as of the tick `now`; rows that are gone are
    /// no error. Returns how many there were.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn close_flows(
        &self,
        keys: impl IntoIterator<Item = FlowRowKey>,
        now: u32,
    ) -> Result<u64, DatapathError> {
        let mut v4: HashMap<_, FlowKey<Ip4>, Flow<Ip4>> = self.typed(maps::FLOW_V4)?;
        let mut v6: HashMap<_, FlowKey<Ip6>, Flow<Ip6>> = self.typed(maps::FLOW_V6)?;
        let mut closed = 0;
        for key in keys {
            let (map, result) = match key {
                FlowRowKey::V4(key) => (maps::FLOW_V4, close(&mut v4, &key, now)),
                FlowRowKey::V6(key) => (maps::FLOW_V6, close(&mut v6, &key, now)),
            };
            match result {
                Ok(()) => closed += 1,
                Err(e) if is_absent(&e) => {}
                Err(source) => return Err(DatapathError::Map { map, source }),
            }
        }
        Ok(closed)
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
        let trie: LpmTrie<_, A, Via> = self.typed(map)?;
        let rows = trie.iter().map(|row| {
            let (key, via) = row.map_err(|source| DatapathError::Map { map, source })?;
            Ok(PeerRow::new(key.prefix_len(), key.data(), via))
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

    /// How full a map is and what it costs.
    ///
    /// # Errors
    ///
    /// [`DatapathError`].
    pub fn usage(&self, map: &maps::MapInfo) -> Result<MapUsage, DatapathError> {
        let name = map.name;
        let failed = |source| DatapathError::Map { map: name, source };
        let data = self.map(name)?;
        let info = data.info().map_err(failed)?;
        let kind = info.map_type().map_err(failed)?;
        let mut at_least = false;
        let used = match kind {
            MapType::Hash | MapType::LruHash | MapType::Array => {
                let (used, complete) = self.count(name, &data)?;
                at_least = !complete;
                Some(used)
            }
            MapType::LpmTrie if name == maps::PEERS_V4 => {
                Some(self.peers_of::<Ip4>(maps::PEERS_V4)?.len() as u64)
            }
            MapType::LpmTrie if name == maps::PEERS_V6 => {
                Some(self.peers_of::<Ip6>(maps::PEERS_V6)?.len() as u64)
            }
            _ => None,
        };
        Ok(MapUsage {
            name: name.into(),
            what: map.what.into(),
            used,
            at_least,
            limit: u64::from(info.max_entries()),
            memory_bytes: memory_bytes(&data),
        })
    }

    /// Rows in use, and whether all were counted.
    fn count(&self, map: &'static str, data: &MapData) -> Result<(u64, bool), DatapathError> {
        let is_array = matches!(
            data.info().and_then(|info| info.map_type()),
            Ok(MapType::Array)
        );
        let mut used = 0;
        let mut seen = 0;
        let mut reader = self.reader(map, data)?;
        while let Some((_, values)) = self.chunk(map, &mut reader)? {
            let (_, value_size) = maps::layout(map).unwrap_or((4, 4));
            let rows = values.chunks_exact(value_size);
            seen += rows.len() as u64;
            used += if is_array {
                rows.filter(|row| in_use(map, row)).count() as u64
            } else {
                rows.len() as u64
            };
            if seen >= MOST_COUNTED {
                // The cap may have fallen together with the end: then "at least" is still true.
                return Ok((used, false));
            }
        }
        Ok((used, true))
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

/// Whether an array's row holds something: arrays have no absent rows.
fn in_use(map: &str, value: &[u8]) -> bool {
    const FREE: u8 = BackendState::Free as u8;
    match map {
        maps::BACK_V4 => bytemuck::try_pod_read_unaligned::<Backend<Ip4>>(value)
            .is_ok_and(|row| row.state != FREE),
        maps::BACK_V6 => bytemuck::try_pod_read_unaligned::<Backend<Ip6>>(value)
            .is_ok_and(|row| row.state != FREE),
        _ => value.iter().any(|&byte| byte != 0),
    }
}

/// Memory of a map in bytes, from the kernel's description of its descriptor.
fn memory_bytes(data: &MapData) -> Option<u64> {
    let fd = data.fd().as_fd().as_raw_fd();
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:"))?
        .trim()
        .parse()
        .ok()
}

fn os_error(error: &MapError) -> Option<ErrorKind> {
    match error {
        MapError::SyscallError(e) => Some(e.io_error.kind()),
        MapError::IoError(e) => Some(e.kind()),
        _ => None,
    }
}

/// Moves a flow row to closing, if it is there.
fn close<A: Address>(
    map: &mut HashMap<MapData, FlowKey<A>, Flow<A>>,
    key: &FlowKey<A>,
    now: u32,
) -> Result<(), MapError>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let flow = Flow {
        state: FlowState::Closing as u8,
        seen: now,
        ..map.get(key, 0)?
    };
    map.insert(key, flow, BPF_EXIST)
}

/// Whether the row was not there.
fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || os_error(error) == Some(ErrorKind::NotFound)
}
