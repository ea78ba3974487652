//! The rows of the flow table for a flow of a former proxy.

use std::net::{IpAddr, SocketAddr};

use aya::Pod;
use aya::maps::{HashMap as Table, MapData, MapError};
use datapath_common::{Address, Direction, Flow, FlowKey, FlowState, Ip4, Ip6, NodeClient};

use super::conntrack::{Entry, Stage};
use super::fate::Known;
use crate::kernel::{Maps, NO_EXIST, TableError};

/// The two rows of a flow, the reply's first. Without a backend the flow is the kernel's: only the
/// reply's row, by which the programs translate nothing (a *straight* one, `docs/datapath.md`).
fn rows<A: Address>(
    entry: &Entry,
    backend: Option<(u32, Known)>,
    now: u32,
    address: impl Fn(IpAddr) -> Option<A>,
) -> Option<Vec<(FlowKey<A>, Flow<A>)>> {
    let (client, front) = (entry.original.src, entry.original.dst);
    let (server, seen) = (entry.reply.src, entry.reply.dst);
    let key = |src: SocketAddr, dst: SocketAddr, direction| {
        Some(FlowKey {
            src: address(src.ip())?,
            dst: address(dst.ip())?,
            sport: src.port(),
            dport: dst.port(),
            proto: entry.proto,
            direction: direction as u8,
            reserved: 0,
        })
    };
    let state = match entry.stage {
        Stage::Opening => FlowState::Opening,
        Stage::Established => FlowState::Established,
        Stage::Closing | Stage::Over => FlowState::Closing,
    };
    let row = |at: SocketAddr, nat: Option<SocketAddr>| {
        let nat = nat.filter(|_| entry.is_masqueraded());
        Some(Flow {
            addr: address(at.ip())?,
            nat_addr: nat.map_or(Some(A::UNSPECIFIED), |nat| address(nat.ip()))?,
            port: at.port(),
            nat_port: nat.map_or(0, |nat| nat.port()),
            state: state as u8,
            hairpin: 0,
            node: NodeClient::No as u8,
            counted: 0,
            backend: backend.map_or(0, |(_, known)| known.id),
            generation: backend.map_or(0, |(_, known)| known.generation),
            service: backend.map_or(0, |(service, _)| service),
            opened: now,
            seen: now,
        })
    };
    let reply = key(server, seen, Direction::Reply)?;
    if backend.is_none() {
        return Some(vec![(reply, row(server, None)?)]);
    }
    let forward = key(client, front, Direction::Forward)?;
    Some(vec![
        (reply, row(front, Some(client))?),
        (forward, row(server, Some(seen))?),
    ])
}

/// Writes the rows of a flow, unless the programs have some of it already.
pub fn write(
    maps: &mut Maps,
    entry: &Entry,
    backend: Option<(u32, Known)>,
    now: u32,
) -> Result<(), TableError> {
    if entry.original.src.is_ipv4() {
        let four = |ip| match ip {
            IpAddr::V4(ip) => Some(Ip4::from(ip)),
            IpAddr::V6(_) => None,
        };
        let rows = rows(entry, backend, now, four);
        put(&mut maps.flow_v4, rows)
            .map_err(|e| maps.refused(datapath_common::maps::FLOW_V4, "a flow".to_owned(), e))
    } else {
        let six = |ip| match ip {
            IpAddr::V6(ip) => Some(Ip6::from(ip)),
            IpAddr::V4(_) => None,
        };
        let rows = rows(entry, backend, now, six);
        put(&mut maps.flow_v6, rows)
            .map_err(|e| maps.refused(datapath_common::maps::FLOW_V6, "a flow".to_owned(), e))
    }
}

fn put<A: Address>(
    map: &mut Table<MapData, FlowKey<A>, Flow<A>>,
    rows: Option<Vec<(FlowKey<A>, Flow<A>)>>,
) -> Result<(), MapError>
where
    FlowKey<A>: Pod,
    Flow<A>: Pod,
{
    for (key, row) in rows.into_iter().flatten() {
        match map.insert(key, row, NO_EXIST) {
            Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EEXIST) => {}
            done => done?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::fate::tests::entry;
    use super::*;

    fn four(ip: IpAddr) -> Option<Ip4> {
        match ip {
            IpAddr::V4(ip) => Some(ip.into()),
            IpAddr::V6(_) => None,
        }
    }

    #[test]
    fn rows_are_each_others_mates() {
        let known = Known {
            id: 7,
            generation: 3,
            via: 0,
        };
        for seen in ["10.244.1.9:1000", "192.0.2.1:2000"] {
            let entry = entry("10.244.1.9:1000", seen);
            let rows = rows(&entry, Some((9, known)), 5, four).unwrap();
            let [(reply_key, reply), (forward_key, forward)] = rows[..] else {
                panic!("{rows:?}");
            };
            assert_eq!(crate::kernel::gc::mate(&reply_key, &reply), forward_key);
            assert_eq!(crate::kernel::gc::mate(&forward_key, &forward), reply_key);
            assert_eq!((reply.port, forward.port), (80, 8080));
            assert_eq!(forward.nat_port != 0, entry.is_masqueraded());
        }
        let kernels = rows(&entry("192.0.2.1:1000", "192.0.2.1:2000"), None, 5, four).unwrap();
        let [(key, row)] = kernels[..] else {
            panic!("{kernels:?}");
        };
        assert_eq!((key.dport, row.backend, row.nat_port), (2000, 0, 0));
        assert_eq!((row.addr, row.port), (key.src, key.sport), "straight");
    }
}
