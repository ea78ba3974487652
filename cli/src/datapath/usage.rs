//! How full the maps are and what they cost.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{MapData, MapType};
use datapath_common::{Backend, BackendState, Ip4, Ip6, SourceNet, Via, maps};

use super::{Datapath, DatapathError};
use crate::tables::MapUsage;

/// Counting the rows of a map stops here.
const MOST_COUNTED: u64 = 1_000_000;
impl Datapath {
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
            MapType::LpmTrie => self.count_trie(name)?,
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

    /// Rows of a trie; `None` for one that this program does not know.
    fn count_trie(&self, map: &'static str) -> Result<Option<u64>, DatapathError> {
        Ok(Some(match map {
            maps::PEERS_V4 => self.trie_rows::<Ip4, Via>(map)?,
            maps::PEERS_V6 => self.trie_rows::<Ip6, Via>(map)?,
            maps::SRCS_V4 => self.trie_rows::<SourceNet<Ip4>, u32>(map)?,
            maps::SRCS_V6 => self.trie_rows::<SourceNet<Ip6>, u32>(map)?,
            maps::DIRECT_V4 => self.trie_rows::<Ip4, u32>(map)?,
            maps::DIRECT_V6 => self.trie_rows::<Ip6, u32>(map)?,
            _ => return Ok(None),
        }))
    }

    fn trie_rows<K: aya::Pod, V: aya::Pod>(&self, map: &'static str) -> Result<u64, DatapathError> {
        let trie: LpmTrie<_, K, V> = self.typed(map)?;
        let rows = trie.keys().map(|key| key.map(|_| 1));
        rows.sum::<Result<u64, _>>()
            .map_err(|source| DatapathError::Map { map, source })
    }
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
