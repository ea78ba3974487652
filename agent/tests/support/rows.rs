//! Rows of the maps in one form for both families, and back.

use std::net::IpAddr;

use datapath_common::{
    Address, Backend, Frontend, FrontendKey, Ip4, PeerKey, SourceKey, SourceNet, Via,
};
use ipnet::IpNet;
use tulle_agent::plan::Rows;

use super::CAPACITIES;
use super::sim::Sim;

/// Both families' rows in one form: address, port, protocol.
pub type Key = (IpAddr, u16, u8);

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct BackRow {
    pub key: Key,
    pub state: u8,
    pub generation: u32,
    pub via: Via,
}

impl Sim {
    /// As they are read back from the kernel.
    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        for ((addr, port, proto), row) in &self.fronts {
            match addr {
                IpAddr::V4(a) => rows
                    .front_v4
                    .push((front_key((*a).into(), *port, *proto), *row)),
                IpAddr::V6(a) => rows
                    .front_v6
                    .push((front_key((*a).into(), *port, *proto), *row)),
            }
        }
        for ((_, id), row) in &self.backs {
            match row.key.0 {
                IpAddr::V4(a) => rows.back_v4.push((*id, back(row, a.into()))),
                IpAddr::V6(a) => rows.back_v6.push((*id, back(row, a.into()))),
            }
        }
        rows.segments = (0..CAPACITIES.segments)
            .map(|slot| self.slots.get(&slot).copied().unwrap_or(0))
            .collect();
        for (addr, via) in &self.pods {
            match addr {
                IpAddr::V4(a) => rows.pods_v4.push(((*a).into(), *via)),
                IpAddr::V6(a) => rows.pods_v6.push(((*a).into(), *via)),
            }
        }
        for ((addr, prefix_len), via) in &self.peers {
            let prefix_len = *prefix_len;
            match addr {
                IpAddr::V4(a) => {
                    rows.peers_v4.push((
                        PeerKey {
                            prefix_len,
                            addr: (*a).into(),
                        },
                        *via,
                    ));
                }
                IpAddr::V6(a) => {
                    rows.peers_v6.push((
                        PeerKey {
                            prefix_len,
                            addr: (*a).into(),
                        },
                        *via,
                    ));
                }
            }
        }
        for (addr, node) in &self.nodes {
            if let IpAddr::V4(a) = addr {
                rows.nodes_v4.push(((*a).into(), *node));
            }
        }
        for ((addr, prefix_len), bits) in &self.networks {
            let prefix_len = *prefix_len;
            match addr {
                IpAddr::V4(a) => {
                    let addr = (*a).into();
                    rows.direct_v4.push((PeerKey { prefix_len, addr }, *bits));
                }
                IpAddr::V6(a) => {
                    let addr = (*a).into();
                    rows.direct_v6.push((PeerKey { prefix_len, addr }, *bits));
                }
            }
        }
        for (service, len, addr) in &self.sources {
            match addr {
                IpAddr::V4(a) => rows.srcs_v4.push(source_key(*service, *len, (*a).into())),
                IpAddr::V6(a) => rows.srcs_v6.push(source_key(*service, *len, (*a).into())),
            }
        }
        rows
    }
}

const fn source_key<A: Address>(service: u32, prefix_len: u32, addr: A) -> SourceKey<A> {
    SourceKey {
        prefix_len,
        net: SourceNet::new(service, addr),
    }
}

/// A row as the trie compares it.
pub fn source<A: Address>(key: &SourceKey<A>) -> (u32, u32, IpAddr) {
    let addr = match key.prefix_len.checked_sub(SourceNet::<A>::SERVICE_BITS) {
        Some(len) => net(key.net.addr, len).0,
        None => A::UNSPECIFIED.to_ip(),
    };
    (u32::from_be(key.net.service), key.prefix_len, addr)
}

pub fn net<A: Address>(addr: A, len: u32) -> (IpAddr, u32) {
    let net = IpNet::new(addr.to_ip(), u8::try_from(len).unwrap()).unwrap();
    (net.network(), len)
}

fn front_key<A>(addr: A, port: u16, proto: u8) -> FrontendKey<A> {
    FrontendKey {
        addr,
        port,
        proto,
        scope: 0,
    }
}

fn back<A>(row: &BackRow, addr: A) -> Backend<A> {
    let (_, port, proto) = row.key;
    Backend {
        addr,
        port,
        proto,
        state: row.state,
        generation: row.generation,
        via: row.via,
    }
}

pub fn key<A: Address>(key: &FrontendKey<A>) -> Key {
    (key.addr.to_ip(), key.port, key.proto)
}

pub fn back_row<A: Address>(row: &Backend<A>) -> BackRow {
    BackRow {
        key: (row.addr.to_ip(), row.port, row.proto),
        state: row.state,
        generation: row.generation,
        via: row.via,
    }
}
