//! Sockets of datagrams whose backend is gone: what the tables say of them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use datapath_common::{
    Address, Backend, BackendState, Direction, Frontend, FrontendKey, Ip4, Ip6, Scope, SocketKey,
    SocketPeer, maps, proto,
};

use super::maps::{Maps, TableError, typed};
use super::scan;
use super::sys::RawMap;

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
    socks: OwnedFd,
    front: OwnedFd,
    back: OwnedFd,
    segments: OwnedFd,
}

/// A table cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {map}: {source}")]
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
        let tables = |socks, front, back| {
            Ok::<_, TableError>(Tables {
                socks: clone(socks)?,
                front: clone(front)?,
                back: clone(back)?,
                segments: clone(maps::SEGMENTS)?,
            })
        };
        Ok(SocketTables {
            v4: tables(maps::SOCKS_V4, maps::FRONT_V4, maps::BACK_V4)?,
            v6: tables(maps::SOCKS_V6, maps::FRONT_V6, maps::BACK_V6)?,
        })
    }
}

impl SocketTables {
    /// Every socket that was given a backend for datagrams which its service does not have
    /// any more (KP-117). Some may be closed by now.
    pub fn departed(&self) -> Result<Vec<Departed>, ReadError> {
        let mut found = self.v4.departed::<Ip4>([maps::SOCKS_V4, maps::FRONT_V4])?;
        found.extend(self.v6.departed::<Ip6>([maps::SOCKS_V6, maps::FRONT_V6])?);
        Ok(found)
    }
}

/// A frontend, and a backend of it by its id and generation.
type Pair<A> = (FrontendKey<A>, u32, u32);

impl Tables {
    fn departed<A>(&self, names: [&'static str; 2]) -> Result<Vec<Departed>, ReadError>
    where
        A: Address + std::hash::Hash,
        SocketKey<A>: bytemuck::Pod,
        SocketPeer<A>: bytemuck::Pod,
        FrontendKey<A>: bytemuck::Pod,
        Backend<A>: bytemuck::Pod,
    {
        let [socks, front] = names;
        let fail = |map| move |source| ReadError { map, source };
        let rows = RawMap::new(self.socks.as_fd())
            .and_then(|map| scan::all(&map))
            .map_err(fail(socks))?;
        let mut known = HashMap::<Pair<A>, bool>::new();
        let mut found = Vec::new();
        for (key, row) in typed::<SocketKey<A>, SocketPeer<A>>(&rows) {
            if key.proto != proto::UDP || key.direction != Direction::Reply as u8 {
                continue;
            }
            let service = FrontendKey {
                addr: row.addr,
                port: row.port,
                proto: key.proto,
                scope: Scope::Any as u8,
            };
            let pair = (service, row.backend, row.generation);
            let serves = match known.get(&pair) {
                Some(serves) => *serves,
                None => self.serves(pair).map_err(fail(front))?,
            };
            known.insert(pair, serves);
            if !serves {
                found.push(Departed {
                    cookie: key.cookie,
                    backend: SocketAddr::new(key.addr.to_ip(), key.port),
                    seen: row.seen,
                });
            }
        }
        Ok(found)
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
