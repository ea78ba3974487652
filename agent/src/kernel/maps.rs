//! Typed handles of the maps that the agent reads or writes.

use std::io;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use datapath_common::{
    Backend, BackendState, Counter, Flow, FlowKey, Frontend, FrontendKey, Ip4, Ip6, MonitorControl,
    Node, PeerKey, SourceKey, SourceNet, Traffic, Via, maps,
};

use super::capacity::flag;
use super::gc::NamedBackend;
use super::live::Live;
use super::scan;
use super::segments::Segments;
use super::sys::{RawMap, raw};
use crate::plan::Rows;

/// A hash map of frontends, pods, nodes or flows.
pub type Table<K, V> = HashMap<MapData, K, V>;
/// A longest-prefix table.
pub type Trie<A, V> = LpmTrie<MapData, A, V>;
/// A numbered table.
pub type List<V> = Array<MapData, V>;

/// Every map, opened once.
pub struct Maps {
    /// IPv4 frontends.
    pub front_v4: Table<FrontendKey<Ip4>, Frontend>,
    /// IPv6 frontends.
    pub front_v6: Table<FrontendKey<Ip6>, Frontend>,
    /// Slots of all segments.
    pub segments: Segments,
    /// Living flows of backends.
    pub live: Live,
    /// IPv4 backends by id.
    pub back_v4: List<Backend<Ip4>>,
    /// IPv6 backends by id.
    pub back_v6: List<Backend<Ip6>>,
    /// IPv4 pods of this node.
    pub pods_v4: Table<Ip4, Via>,
    /// IPv6 pods of this node.
    pub pods_v6: Table<Ip6, Via>,
    /// IPv4 pod networks of other nodes.
    pub peers_v4: Trie<Ip4, Via>,
    /// IPv6 pod networks of other nodes.
    pub peers_v6: Trie<Ip6, Via>,
    /// Nodes whose overlay packets are accepted.
    pub nodes_v4: Table<Ip4, Node>,
    /// IPv4 networks that may use a service.
    pub srcs_v4: Trie<SourceNet<Ip4>, u32>,
    /// IPv6 networks that may use a service.
    pub srcs_v6: Trie<SourceNet<Ip6>, u32>,
    /// IPv4 networks that pods reach without masquerade.
    pub direct_v4: Trie<Ip4, u32>,
    /// IPv6 networks that pods reach without masquerade.
    pub direct_v6: Trie<Ip6, u32>,
    /// IPv4 flows.
    pub flow_v4: Table<FlowKey<Ip4>, Flow<Ip4>>,
    /// IPv6 flows.
    pub flow_v6: Table<FlowKey<Ip6>, Flow<Ip6>>,
    /// Packets and bytes by hook and reason.
    pub counters: PerCpuArray<MapData, Counter>,
    /// Traffic by service number.
    pub svc_stats: PerCpuArray<MapData, Traffic>,
    /// What watchers want to see.
    pub monitor: List<MonitorControl>,
    /// All maps once more by name, for sizes and raw rows.
    pub(crate) by_name: std::collections::BTreeMap<&'static str, MapData>,
}

/// A map could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The map is at its limit.
    #[error("{map} is full ({limit} entries) and cannot take {row}; raise {}", flag(map).unwrap_or("its size"))]
    Full {
        /// The map.
        map: &'static str,
        /// Its limit.
        limit: u32,
        /// The row, for people.
        row: String,
    },
    /// An index beyond the end of a numbered table.
    #[error("{map} has {limit} entries, {row} does not exist; raise {}", flag(map).unwrap_or("its size"))]
    Beyond {
        /// The map.
        map: &'static str,
        /// Its limit.
        limit: u32,
        /// What was to be written.
        row: String,
    },
    /// The kernel refused.
    #[error("{map}: cannot {what}: {source}")]
    Kernel {
        /// The map.
        map: &'static str,
        /// What was tried, as the end of a sentence that begins with "cannot".
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The object's map is of another kind than the agent expects.
    #[error(
        "{map} is of another kind than this agent expects: {source}; build object and agent from one tree"
    )]
    Kind {
        /// The map.
        map: &'static str,
        /// What differs.
        #[source]
        source: Box<MapError>,
    },
}

/// What a map error says, with the kernel's number where there is one.
pub(crate) fn io_of(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(e) => e.io_error,
        MapError::IoError(e) => e,
        MapError::KeyNotFound | MapError::ElementNotFound => {
            io::Error::from_raw_os_error(libc::ENOENT)
        }
        other => io::Error::other(other),
    }
}

/// Finds a handle by its name and gives it its type.
struct Taker<'a>(&'a mut dyn FnMut(&'static str) -> Result<MapData, TableError>);

impl Taker<'_> {
    fn take<T>(&mut self, name: &'static str) -> Result<T, TableError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let data = (self.0)(name)?;
        Map::from_map_data(data)
            .and_then(T::try_from)
            .map_err(|e| TableError::Kind {
                map: name,
                source: Box::new(e),
            })
    }
}

impl Maps {
    /// Opens the maps from the handles of a loaded object.
    pub(crate) fn take(
        by_name: std::collections::BTreeMap<&'static str, MapData>,
    ) -> Result<Self, TableError> {
        let mut again = |name: &'static str| {
            let fail = |source| TableError::Kernel {
                map: name,
                what: "open it".into(),
                source,
            };
            let data = by_name
                .get(name)
                .ok_or_else(|| fail(io::Error::from_raw_os_error(libc::ENOENT)))?;
            let fd = std::os::fd::AsFd::as_fd(data.fd())
                .try_clone_to_owned()
                .map_err(fail)?;
            MapData::from_fd(fd).map_err(|e| fail(io_of(e)))
        };
        let segments =
            Segments::new(&again(maps::SEGMENTS)?).map_err(|source| TableError::Kernel {
                map: maps::SEGMENTS,
                what: "map it into memory".into(),
                source,
            })?;
        let live = Live::new(&again(maps::LIVE_V4)?, &again(maps::LIVE_V6)?);
        let live = live.map_err(|source| TableError::Kernel {
            map: maps::LIVE_V4,
            what: "map it and its like into memory".into(),
            source,
        })?;
        let mut taker = Taker(&mut again);
        Ok(Self {
            front_v4: taker.take(maps::FRONT_V4)?,
            front_v6: taker.take(maps::FRONT_V6)?,
            segments,
            live,
            back_v4: taker.take(maps::BACK_V4)?,
            back_v6: taker.take(maps::BACK_V6)?,
            pods_v4: taker.take(maps::PODS_V4)?,
            pods_v6: taker.take(maps::PODS_V6)?,
            peers_v4: taker.take(maps::PEERS_V4)?,
            peers_v6: taker.take(maps::PEERS_V6)?,
            nodes_v4: taker.take(maps::NODES_V4)?,
            srcs_v4: taker.take(maps::SRCS_V4)?,
            srcs_v6: taker.take(maps::SRCS_V6)?,
            direct_v4: taker.take(maps::DIRECT_V4)?,
            direct_v6: taker.take(maps::DIRECT_V6)?,
            flow_v4: taker.take(maps::FLOW_V4)?,
            flow_v6: taker.take(maps::FLOW_V6)?,
            counters: taker.take(maps::COUNTERS)?,
            svc_stats: taker.take(maps::SVC_STATS)?,
            monitor: taker.take(maps::MONITOR)?,
            by_name,
        })
    }

    /// A map by name, with its rows as bytes.
    pub(crate) fn raw(&self, name: &'static str) -> Result<RawMap<'_>, TableError> {
        let fail = |source| TableError::Kernel {
            map: name,
            what: "look at it".into(),
            source,
        };
        let data = self
            .by_name
            .get(name)
            .ok_or_else(|| fail(io::Error::from_raw_os_error(libc::ENOENT)))?;
        raw(data).map_err(fail)
    }

    /// Counts a flow of this backend down, whose row is gone, if the id is still its.
    pub(super) fn count_down(&self, backend: NamedBackend) -> Result<(), TableError> {
        let NamedBackend { version, id, .. } = backend;
        let (map, row) = if version == 6 {
            let row = self.back_v6.get(&id, 0);
            (maps::BACK_V6, row.map(|row| (row.generation, row.state)))
        } else {
            let row = self.back_v4.get(&id, 0);
            (maps::BACK_V4, row.map(|row| (row.generation, row.state)))
        };
        let (generation, state) = row.map_err(|error| TableError::Kernel {
            map,
            what: format!("read row {id}"),
            source: io_of(error),
        })?;
        if generation == backend.generation && state != BackendState::Free as u8 {
            self.live.add(version, id, -1);
        }
        Ok(())
    }

    /// Number of entries that the map of this name can hold.
    pub(crate) fn limit(&self, name: &'static str) -> u32 {
        self.raw(name).map_or(0, |map| map.shape().max_entries)
    }

    /// Names the map, its limit and the flag in a refused write.
    pub(crate) fn refused(&self, map: &'static str, row: String, error: MapError) -> TableError {
        if let MapError::OutOfBounds { .. } = error {
            return TableError::Beyond {
                map,
                limit: self.limit(map),
                row,
            };
        }
        let source = io_of(error);
        match source.raw_os_error() {
            // Hashes and arrays say E2BIG, the trie ENOSPC.
            Some(libc::E2BIG | libc::ENOSPC) => TableError::Full {
                map,
                limit: self.limit(map),
                row,
            },
            _ => TableError::Kernel {
                map,
                what: format!("write {row}"),
                source,
            },
        }
    }

    /// All rows that the agent wrote, as they are in the kernel.
    pub fn read_back(&self) -> Result<Rows, TableError> {
        Ok(Rows {
            front_v4: self.rows(maps::FRONT_V4)?,
            front_v6: self.rows(maps::FRONT_V6)?,
            segments: self.segments.read().map_err(super::apply::unmapped)?,
            back_v4: self.used_rows(maps::BACK_V4)?,
            back_v6: self.used_rows(maps::BACK_V6)?,
            pods_v4: self.rows(maps::PODS_V4)?,
            pods_v6: self.rows(maps::PODS_V6)?,
            peers_v4: self.rows(maps::PEERS_V4)?,
            peers_v6: self.rows(maps::PEERS_V6)?,
            nodes_v4: self.rows(maps::NODES_V4)?,
            srcs_v4: self.keys::<_, u32>(maps::SRCS_V4)?,
            srcs_v6: self.keys::<_, u32>(maps::SRCS_V6)?,
            direct_v4: self.rows(maps::DIRECT_V4)?,
            direct_v6: self.rows(maps::DIRECT_V6)?,
        })
    }

    /// Every row of the map of this name.
    pub(crate) fn rows<K, V>(&self, name: &'static str) -> Result<Vec<(K, V)>, TableError>
    where
        K: bytemuck::Pod,
        V: bytemuck::Pod,
    {
        let map = self.raw(name)?;
        let rows = scan::all(&map).map_err(|source| TableError::Kernel {
            map: name,
            what: "read it".into(),
            source,
        })?;
        Ok(typed(&rows).collect())
    }

    /// Every key of the map of this name, whose values are `V`.
    fn keys<K, V>(&self, name: &'static str) -> Result<Vec<K>, TableError>
    where
        K: bytemuck::Pod,
        V: bytemuck::Pod,
    {
        let rows = self.rows::<K, V>(name)?;
        Ok(rows.into_iter().map(|(key, _)| key).collect())
    }

    /// Rows of a numbered table that are not all zero.
    fn used_rows<V: bytemuck::Pod>(&self, name: &'static str) -> Result<Vec<(u32, V)>, TableError> {
        let mut rows: Vec<(u32, V)> = self.rows(name)?;
        rows.retain(|(_, v)| bytemuck::bytes_of(v).iter().any(|b| *b != 0));
        Ok(rows)
    }
}

/// Rows with their types. The shape was checked when the map was taken.
pub(crate) fn typed<K, V>(rows: &super::sys::Rows) -> impl Iterator<Item = (K, V)>
where
    K: bytemuck::Pod,
    V: bytemuck::Pod,
{
    let keys = rows.keys.chunks_exact(size_of::<K>());
    keys.zip(rows.values.chunks_exact(size_of::<V>()))
        .map(|(k, v)| {
            (
                bytemuck::pod_read_unaligned(k),
                bytemuck::pod_read_unaligned(v),
            )
        })
}

/// The trie's key in aya's words.
pub(crate) const fn trie_key<A: aya::Pod>(key: PeerKey<A>) -> Key<A> {
    Key::new(key.prefix_len, key.addr)
}

/// The same of a source.
pub(crate) const fn source_key<A: Copy>(key: SourceKey<A>) -> Key<SourceNet<A>>
where
    SourceNet<A>: aya::Pod,
{
    Key::new(key.prefix_len, key.net)
}
