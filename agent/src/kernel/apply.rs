//! Carrying out the plan's writes.

use std::io;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError};
use datapath_common::{
    Address, Backend, BackendState, Frontend, FrontendFlags, FrontendKey, PeerKey, SourceKey,
    SourceNet, maps,
};

use super::maps::{Maps, TableError, io_of, source_key, trie_key};
use super::sys::{NO_EXIST, RawMap};
use crate::plan::{MapOp, MapWriter, WriteError};

impl MapWriter for Maps {
    fn write(&mut self, op: &MapOp) -> Result<(), WriteError> {
        if let MapOp::WriteSlots { start, ids } = op {
            return self
                .write_slots(*start, ids)
                .map_err(|e| refusal(maps::SEGMENTS, e));
        }
        let (map, done) = (op.map(), self.carry_out(op));
        done.map_err(|(row, error)| refusal(map, self.refused(map, row, error)))
    }

    /// Rows of backends go together: a service may have thousands, and nobody reads them
    /// before the frontend that comes after them.
    fn write_some(&mut self, ops: &[MapOp]) -> Result<usize, WriteError> {
        let rows = backends(ops, |op| match op {
            MapOp::PutBackend4 { id, row } => Some((*id, row)),
            _ => None,
        });
        let done = if rows.count > 1 {
            self.write_backends(maps::BACK_V4, 4, &rows)
        } else {
            let rows = backends(ops, |op| match op {
                MapOp::PutBackend6 { id, row } => Some((*id, row)),
                _ => None,
            });
            self.write_backends(maps::BACK_V6, 6, &rows)
        };
        match ops.first() {
            // One alone, or the first one that is refused, as its error says it best.
            Some(first) if done == 0 => self.write(first).map(|()| 1),
            _ => Ok(done),
        }
    }
}

/// Rows of backends that stand together at the beginning of a list of writes.
#[derive(Default)]
struct BackendRows {
    count: u32,
    ids: Vec<u32>,
    states: Vec<u8>,
    values: Vec<u8>,
}

fn backends<'a, A: Address>(
    ops: &'a [MapOp],
    of: impl Fn(&'a MapOp) -> Option<(u32, &'a Backend<A>)>,
) -> BackendRows
where
    Backend<A>: bytemuck::Pod,
{
    let mut rows = BackendRows::default();
    for (id, row) in ops.iter().map_while(of) {
        rows.count += 1;
        rows.ids.push(id);
        rows.states.push(row.state);
        rows.values.extend_from_slice(bytemuck::bytes_of(row));
    }
    rows
}

/// A full map keeps its sentence, with the flag; other answers keep their number.
fn refusal(map: &'static str, error: TableError) -> WriteError {
    let source = match error {
        TableError::Full { .. } | TableError::Beyond { .. } => {
            io::Error::new(io::ErrorKind::StorageFull, error)
        }
        TableError::Kernel { source, .. } => source,
        TableError::Kind { .. } => io::Error::other(error),
    };
    WriteError { map, source }
}

/// The slots are not in memory.
pub(super) fn unmapped(source: io::Error) -> TableError {
    TableError::Kernel {
        map: maps::SEGMENTS,
        what: "map it into memory".into(),
        source,
    }
}

/// Value of the rows that only have to be there.
const SET: u32 = 1;

type Done = Result<(), (String, MapError)>;

impl Maps {
    fn write_slots(&mut self, start: u32, ids: &[u32]) -> Result<(), TableError> {
        let written = self.segments.write(start, ids);
        if written.map_err(unmapped)? {
            return Ok(());
        }
        Err(TableError::Beyond {
            map: maps::SEGMENTS,
            limit: self.segments.len(),
            row: format!("a segment of {} slots from slot {start} on", ids.len()),
        })
    }

    /// Writes rows of backends in one go, and says how many of them, from the first on.
    fn write_backends(&self, map: &'static str, version: u8, rows: &BackendRows) -> usize {
        if rows.count < 2 {
            return 0;
        }
        let keys = bytemuck::cast_slice(&rows.ids);
        let put = |map: RawMap<'_>| map.put_batch(keys, &rows.values, rows.count);
        let done = self.raw(map).map_or(0, put);
        for (id, state) in rows.ids.iter().zip(&rows.states).take(done as usize) {
            self.begin_counting(version, *id, *state);
        }
        done as usize
    }

    /// Whoever gets a free id has no flows.
    fn begin_counting(&self, version: u8, id: u32, state: u8) {
        if state == BackendState::Free as u8 {
            self.live.clear(version, id);
        }
    }

    fn carry_out(&mut self, op: &MapOp) -> Done {
        match op {
            MapOp::PutFront4 { key, row } => put_front(&mut self.front_v4, key, row),
            MapOp::PutFront6 { key, row } => put_front(&mut self.front_v6, key, row),
            MapOp::DeleteFront4 { key } => delete(&mut self.front_v4, key, || frontend(key)),
            MapOp::DeleteFront6 { key } => delete(&mut self.front_v6, key, || frontend(key)),
            MapOp::PutBackend4 { id, row } => {
                set(&mut self.back_v4, *id, row)?;
                self.begin_counting(4, *id, row.state);
                Ok(())
            }
            MapOp::PutBackend6 { id, row } => {
                set(&mut self.back_v6, *id, row)?;
                self.begin_counting(6, *id, row.state);
                Ok(())
            }
            MapOp::PutPod4 { addr, via } => put(&mut self.pods_v4, addr, via, || ip(*addr)),
            MapOp::PutPod6 { addr, via } => put(&mut self.pods_v6, addr, via, || ip(*addr)),
            MapOp::DeletePod4 { addr } => delete(&mut self.pods_v4, addr, || ip(*addr)),
            MapOp::DeletePod6 { addr } => delete(&mut self.pods_v6, addr, || ip(*addr)),
            MapOp::PutPeer4 { key, via } => {
                put_net(&mut self.peers_v4, &trie_key(*key), via, || peer(*key))
            }
            MapOp::PutPeer6 { key, via } => {
                put_net(&mut self.peers_v6, &trie_key(*key), via, || peer(*key))
            }
            MapOp::DeletePeer4 { key } => {
                delete_net(&mut self.peers_v4, &trie_key(*key), || peer(*key))
            }
            MapOp::DeletePeer6 { key } => {
                delete_net(&mut self.peers_v6, &trie_key(*key), || peer(*key))
            }
            MapOp::PutSource4 { key } => {
                put_net(&mut self.srcs_v4, &source_key(*key), &SET, || source(key))
            }
            MapOp::PutSource6 { key } => {
                put_net(&mut self.srcs_v6, &source_key(*key), &SET, || source(key))
            }
            MapOp::DeleteSource4 { key } => {
                delete_net(&mut self.srcs_v4, &source_key(*key), || source(key))
            }
            MapOp::DeleteSource6 { key } => {
                delete_net(&mut self.srcs_v6, &source_key(*key), || source(key))
            }
            MapOp::PutDirect4 { key, bits } => {
                put_net(&mut self.direct_v4, &trie_key(*key), bits, || peer(*key))
            }
            MapOp::PutDirect6 { key, bits } => {
                put_net(&mut self.direct_v6, &trie_key(*key), bits, || peer(*key))
            }
            MapOp::DeleteDirect4 { key } => {
                delete_net(&mut self.direct_v4, &trie_key(*key), || peer(*key))
            }
            MapOp::DeleteDirect6 { key } => {
                delete_net(&mut self.direct_v6, &trie_key(*key), || peer(*key))
            }
            MapOp::PutNode { addr, node } => put(&mut self.nodes_v4, addr, node, || ip(*addr)),
            MapOp::DeleteNode { addr } => delete(&mut self.nodes_v4, addr, || ip(*addr)),
            // Written through memory, in `write_slots`.
            MapOp::WriteSlots { .. } => Ok(()),
        }
    }
}

fn ip<A: Address>(addr: A) -> String {
    addr.to_ip().to_string()
}

fn frontend<A: Address>(key: &FrontendKey<A>) -> String {
    match key.addr.to_ip() {
        std::net::IpAddr::V4(a) => format!("{a}:{}/{}", key.port, key.proto),
        std::net::IpAddr::V6(a) => format!("[{a}]:{}/{}", key.port, key.proto),
    }
}

fn peer<A: Address>(key: PeerKey<A>) -> String {
    format!("{}/{}", key.addr.to_ip(), key.prefix_len)
}

fn source<A: Address>(key: &SourceKey<A>) -> String {
    let len = key.prefix_len.saturating_sub(SourceNet::<A>::SERVICE_BITS);
    let service = u32::from_be(key.net.service);
    format!("{}/{len} of service {service}", key.net.addr.to_ip())
}

/// Keeps what a program noted in the row of the same service: the plan learns of it only by
/// the next walk over the flow tables, and never takes it away itself.
fn put_front<A: Address>(
    map: &mut HashMap<MapData, FrontendKey<A>, Frontend>,
    key: &FrontendKey<A>,
    row: &Frontend,
) -> Done
where
    FrontendKey<A>: Pod,
{
    // Most rows are new.
    match map.insert(key, row, NO_EXIST) {
        Ok(()) => return Ok(()),
        Err(error) if is_there(&error) => {}
        Err(error) => return Err((frontend(key), error)),
    }
    let there = match map.get(key, 0) {
        Ok(there) if there.service == row.service => there.flags,
        Ok(_) | Err(MapError::KeyNotFound) => 0,
        Err(e) => return Err((frontend(key), e)),
    };
    let row = Frontend {
        flags: row.flags | there & FrontendFlags::FLOWS_DECIDE,
        ..*row
    };
    put(map, key, &row, || frontend(key))
}

/// Whether a row that was not to be there is there.
fn is_there(error: &MapError) -> bool {
    match error {
        MapError::SyscallError(e) => e.io_error.raw_os_error() == Some(libc::EEXIST),
        _ => false,
    }
}

fn put<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    value: &V,
    row: impl FnOnce() -> String,
) -> Done {
    map.insert(key, value, 0).map_err(|e| (row(), e))
}

fn delete<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    row: impl FnOnce() -> String,
) -> Done {
    unless_absent(map.remove(key)).map_err(|e| (row(), e))
}

fn set<V: Pod>(map: &mut Array<MapData, V>, id: u32, value: &V) -> Done {
    map.set(id, value, 0)
        .map_err(|e| (format!("backend {id}"), e))
}

fn put_net<K: Pod, V: Pod>(
    map: &mut LpmTrie<MapData, K, V>,
    key: &Key<K>,
    value: &V,
    row: impl FnOnce() -> String,
) -> Done {
    map.insert(key, value, 0).map_err(|e| (row(), e))
}

fn delete_net<K: Pod, V: Pod>(
    map: &mut LpmTrie<MapData, K, V>,
    key: &Key<K>,
    row: impl FnOnce() -> String,
) -> Done {
    unless_absent(map.remove(key)).map_err(|e| (row(), e))
}

/// Deleting what is not there is done already.
fn unless_absent(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(e) => {
            let errno = match &e {
                MapError::SyscallError(e) => e.io_error.raw_os_error(),
                _ => None,
            };
            if errno == Some(libc::ENOENT) || matches!(e, MapError::KeyNotFound) {
                return Ok(());
            }
            Err(io_of(e).into())
        }
        ok => ok,
    }
}
