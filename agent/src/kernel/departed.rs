//! What sockets were given, as the tables say it: those of datagrams whose backend is gone, and
//! rows that nobody needs any more.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use datapath_common::{
    Address, Backend, BackendState, Connection, Frontend, FrontendKey, IdleTicks, Ip4, Ip6, Scope,
    SocketId, SocketKey, SocketPeer, maps, proto,
};

use super::maps::{Maps, TableError, typed};
use super::scan;
use super::sys::{NO_EXIST, RawMap};

/// A socket that was given a backend which does not serve it any more.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Departed {
    /// The socket's cookie, low word first.
    pub cookie: [u32; 2],
    /// The backend.
    pub backend: SocketAddr,
    /// When the row was written, in ticks.
    pub seen: u32,
}

/// The tables, for a thread of its own.
#[derive(Debug)]
pub struct SocketTables {
    v4: Tables,
    v6: Tables,
}

#[derive(Debug)]
struct Tables {
    conns: Named,
    socks: Named,
    front: OwnedFd,
    back: OwnedFd,
    segments: OwnedFd,
}

/// A table by its descriptor.
#[derive(Debug)]
struct Named {
    name: &'static str,
    fd: OwnedFd,
}

impl Named {
    fn fail(&self, source: io::Error) -> ReadError {
        let map = self.name;
        ReadError { map, source }
    }

    fn raw(&self) -> Result<RawMap<'_>, ReadError> {
        RawMap::new(self.fd.as_fd()).map_err(|e| self.fail(e))
    }
}

/// A row of a connected socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Connected {
    /// The socket's cookie, low word first.
    pub cookie: [u32; 2],
    /// When the row was written, in ticks.
    pub seen: u32,
}

/// A table cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot read or write {map}: {source}")]
pub struct ReadError {
    map: &'static str,
    #[source]
    source: io::Error,
}

impl Maps {
    /// The tables that say what sockets were given.
    pub fn socket_tables(&self) -> Result<SocketTables, TableError> {
        let clone = |map: &'static str| {
            let fail = |source| TableError::Kernel {
                map,
                what: "open it".into(),
                source,
            };
            let data = self.by_name.get(map);
            let data = data.ok_or_else(|| fail(io::Error::from_raw_os_error(libc::ENOENT)))?;
            data.fd().as_fd().try_clone_to_owned().map_err(fail)
        };
        let named = |name| {
            Ok::<_, TableError>(Named {
                name,
                fd: clone(name)?,
            })
        };
        let tables = |conns, socks, front, back| {
            Ok::<_, TableError>(Tables {
                conns: named(conns)?,
                socks: named(socks)?,
                front: clone(front)?,
                back: clone(back)?,
                segments: clone(maps::SEGMENTS)?,
            })
        };
        Ok(SocketTables {
            v4: tables(
                maps::CONNS_V4,
                maps::SOCKS_V4,
                maps::FRONT_V4,
                maps::BACK_V4,
            )?,
            v6: tables(
                maps::CONNS_V6,
                maps::SOCKS_V6,
                maps::FRONT_V6,
                maps::BACK_V6,
            )?,
        })
    }
}

impl SocketTables {
    /// Every connected socket that was given a backend for datagrams which its service does not
    /// have any more (KP-117). Some may be closed by now.
    pub fn departed(&self) -> Result<Vec<Departed>, ReadError> {
        let mut found = self.v4.departed::<Ip4>(maps::FRONT_V4)?;
        found.extend(self.v6.departed::<Ip6>(maps::FRONT_V6)?);
        Ok(found)
    }

    /// Removes rows of sockets that were silent for longer than a flow of UDP may be; how many.
    pub fn expire(&self, now: u32) -> Result<usize, ReadError> {
        Ok(self.v4.expire::<Ip4>(now)? + self.v6.expire::<Ip6>(now)?)
    }

    /// Rows of connected sockets, of the tables that are at least half full: nobody makes room
    /// in them when sockets go whose end the programs do not see.
    pub fn crowded(&self) -> Result<Vec<Connected>, ReadError> {
        let mut found = self.v4.crowded::<Ip4>()?;
        found.extend(self.v6.crowded::<Ip6>()?);
        Ok(found)
    }

    /// Removes these rows, unless they were written anew; how many were there.
    pub fn forget(&self, rows: &HashSet<Connected>) -> Result<usize, ReadError> {
        Ok(self.v4.forget::<Ip4>(rows)? + self.v6.forget::<Ip6>(rows)?)
    }
}

/// A frontend, and a backend of it by its id and generation.
type Pair<A> = (FrontendKey<A>, u32, u32);

impl Tables {
    fn departed<A>(&self, front: &'static str) -> Result<Vec<Departed>, ReadError>
    where
        A: Address + std::hash::Hash,
        Connection<A>: bytemuck::Pod,
        FrontendKey<A>: bytemuck::Pod,
        Backend<A>: bytemuck::Pod,
    {
        let map = self.conns.raw()?;
        let rows = scan::all(&map).map_err(|e| self.conns.fail(e))?;
        let mut known = HashMap::<Pair<A>, bool>::new();
        let mut found = Vec::new();
        for (key, row) in typed::<SocketId, Connection<A>>(&rows) {
            if row.proto != proto::UDP {
                continue;
            }
            let service = FrontendKey {
                addr: row.service_addr,
                port: row.service_port,
                proto: row.proto,
                scope: Scope::Any as u8,
            };
            let pair = (service, row.backend, row.generation);
            let serves = match known.get(&pair) {
                Some(serves) => *serves,
                None => self
                    .serves(pair)
                    .map_err(|source| ReadError { map: front, source })?,
            };
            known.insert(pair, serves);
            if !serves {
                found.push(Departed {
                    cookie: key.cookie,
                    backend: SocketAddr::new(row.backend_addr.to_ip(), row.backend_port),
                    seen: row.seen,
                });
            }
        }
        Ok(found)
    }

    fn expire<A>(&self, now: u32) -> Result<usize, ReadError>
    where
        A: Address,
        SocketKey<A>: bytemuck::Pod,
        SocketPeer<A>: bytemuck::Pod,
    {
        let map = self.socks.raw()?;
        let rows = scan::all(&map).map_err(|e| self.socks.fail(e))?;
        let mut removed = 0;
        for (key, row) in typed::<SocketKey<A>, SocketPeer<A>>(&rows) {
            if has_expired(row.seen, now) {
                let gone = |row: &SocketPeer<A>| has_expired(row.seen, now);
                let taken = take_if(&map, bytemuck::bytes_of(&key), gone);
                removed += usize::from(taken.map_err(|e| self.socks.fail(e))?);
            }
        }
        Ok(removed)
    }

    fn crowded<A>(&self) -> Result<Vec<Connected>, ReadError>
    where
        A: Address,
        Connection<A>: bytemuck::Pod,
    {
        let map = self.conns.raw()?;
        let rows = scan::all(&map).map_err(|e| self.conns.fail(e))?;
        let rows = typed::<SocketId, Connection<A>>(&rows).map(|(key, row)| Connected {
            cookie: key.cookie,
            seen: row.seen,
        });
        let rows: Vec<Connected> = rows.collect();
        let is_crowded = rows.len() >= map.shape().max_entries as usize / 2;
        Ok(if is_crowded { rows } else { Vec::new() })
    }

    fn forget<A>(&self, rows: &HashSet<Connected>) -> Result<usize, ReadError>
    where
        A: Address,
        Connection<A>: bytemuck::Pod,
    {
        let map = self.conns.raw()?;
        let mut removed = 0;
        for row in rows {
            let same = |found: &Connection<A>| found.seen == row.seen;
            let key = SocketId { cookie: row.cookie };
            let taken = take_if(&map, bytemuck::bytes_of(&key), same);
            removed += usize::from(taken.map_err(|e| self.conns.fail(e))?);
        }
        Ok(removed)
    }

    /// Whether a frontend has the backend for clients inside.
    fn serves<A>(&self, (service, id, generation): Pair<A>) -> io::Result<bool>
    where
        A: Address,
        FrontendKey<A>: bytemuck::Pod,
        Backend<A>: bytemuck::Pod,
    {
        let front = RawMap::new(self.front.as_fd())?.get(bytemuck::bytes_of(&service))?;
        let back = RawMap::new(self.back.as_fd())?.get(&id.to_ne_bytes())?;
        let (Some(front), Some(back)) = (front, back) else {
            return Ok(false);
        };
        let front: Frontend = read(&front)?;
        let back: Backend<A> = read(&back)?;
        if back.generation != generation || back.state != BackendState::Active as u8 {
            return Ok(false);
        }
        // Ids ascend in a segment.
        let segments = RawMap::new(self.segments.as_fd())?;
        let (mut low, mut len) = (front.start, front.len);
        while len > 0 {
            let half = len / 2;
            let Some(slot) = segments.get(&(low + half).to_ne_bytes())? else {
                return Ok(false);
            };
            match read::<u32>(&slot)?.cmp(&id) {
                std::cmp::Ordering::Equal => return Ok(true),
                std::cmp::Ordering::Less => {
                    low += half + 1;
                    len -= half + 1;
                }
                std::cmp::Ordering::Greater => len = half,
            }
        }
        Ok(false)
    }
}

fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> io::Result<T> {
    bytemuck::try_pod_read_unaligned(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a row of another size"))
}

/// Whether nothing was sent for so long that it is no flow any more.
const fn has_expired(seen: u32, now: u32) -> bool {
    // A program may be a tick ahead.
    let age = now.wrapping_sub(seen);
    age > IdleTicks::DEFAULT.udp_established && age < u32::MAX / 2
}

/// Removes a row, unless it is another one by now: then it is put back, if nobody wrote it anew.
fn take_if<V: bytemuck::AnyBitPattern>(
    map: &RawMap<'_>,
    key: &[u8],
    is_it: impl Fn(&V) -> bool,
) -> io::Result<bool> {
    let Some(row) = map.take(key)? else {
        return Ok(false);
    };
    if is_it(&read::<V>(&row)?) {
        return Ok(true);
    }
    match map.put(key, &row, NO_EXIST) {
        Err(e) if e.raw_os_error() != Some(libc::EEXIST) => Err(e),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_expire_after_their_idle_time_and_not_before_they_were_written() {
        let idle = IdleTicks::DEFAULT.udp_established;
        for (seen, now, expired) in [
            (1000, 1000, false),
            (1000, 1000 + idle, false),
            (1000, 1001 + idle, true),
            (1001, 1000, false),
            (u32::MAX, idle - 1, false),
            (u32::MAX, idle + 1, true),
        ] {
            assert_eq!(has_expired(seen, now), expired, "{seen} {now}");
        }
    }
}
