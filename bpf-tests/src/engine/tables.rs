//! The model's rows as the maps hold them, and back.

use std::net::IpAddr;

use anyhow::Context as _;
use datapath_common::{
    Address, Affinity, AffinityKey, Backend, Direction, Flow, FlowKey, FlowState, FragmentKey,
    FragmentPorts, FrontendKey, Ip4, Ip6, NodeClient, Scope, SourceNet, maps,
};

use crate::model::{
    AffinityId, AffinityRow, BackendRow, FlowId, FlowRow, FragmentId, FragmentRow, FrontendId,
    Tuple,
};

/// An address family: its map names, and addresses from the standard library's.
pub trait Family: Address + aya::Pod {
    /// Name of the frontends' map.
    const FRONTENDS: &str;
    /// Name of the backends' map.
    const BACKENDS: &str;
    /// Name of the pods' map.
    const PODS: &str;
    /// Name of the peers' map.
    const PEERS: &str;
    /// Name of the flows' map.
    const FLOWS: &str;
    /// Name of the affinities' map.
    const AFFINITIES: &str;
    /// Name of the source networks' map.
    const SOURCES: &str;
    /// Name of the fragments' map.
    const FRAGMENTS: &str;
    /// Name of the map of living flows.
    const LIVE: &str;
    /// Name of the map of networks that are not masqueraded to.
    const DIRECT: &str;
    /// The address, if it is of this family.
    fn from_ip(ip: IpAddr) -> Option<Self>;
}

impl Family for Ip4 {
    const FRONTENDS: &str = maps::FRONT_V4;
    const BACKENDS: &str = maps::BACK_V4;
    const PODS: &str = maps::PODS_V4;
    const PEERS: &str = maps::PEERS_V4;
    const FLOWS: &str = maps::FLOW_V4;
    const AFFINITIES: &str = maps::AFFIN_V4;
    const SOURCES: &str = maps::SRCS_V4;
    const FRAGMENTS: &str = maps::FRAG_V4;
    const DIRECT: &str = maps::DIRECT_V4;
    const LIVE: &str = maps::LIVE_V4;
    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(v4) => Some(v4.into()),
            IpAddr::V6(_) => None,
        }
    }
}

impl Family for Ip6 {
    const FRONTENDS: &str = maps::FRONT_V6;
    const BACKENDS: &str = maps::BACK_V6;
    const PODS: &str = maps::PODS_V6;
    const PEERS: &str = maps::PEERS_V6;
    const FLOWS: &str = maps::FLOW_V6;
    const AFFINITIES: &str = maps::AFFIN_V6;
    const SOURCES: &str = maps::SRCS_V6;
    const FRAGMENTS: &str = maps::FRAG_V6;
    const DIRECT: &str = maps::DIRECT_V6;
    const LIVE: &str = maps::LIVE_V6;
    fn from_ip(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V6(v6) => Some(v6.into()),
            IpAddr::V4(_) => None,
        }
    }
}

pub fn frontend_key<A: Family>(id: &FrontendId) -> Option<FrontendKey<A>> {
    let (addr, port, proto) = *id;
    Some(FrontendKey {
        addr: A::from_ip(addr)?,
        port,
        proto,
        scope: Scope::Any as u8,
    })
}

pub fn backend<A: Family>(row: &BackendRow) -> Option<Backend<A>> {
    Some(Backend {
        addr: A::from_ip(row.addr)?,
        port: row.port,
        proto: row.proto,
        state: row.state as u8,
        generation: row.generation,
        via: row.via,
    })
}

pub fn flow<A: Family>(id: &FlowId, row: &FlowRow) -> Option<(FlowKey<A>, Flow<A>)> {
    let Tuple {
        src,
        dst,
        sport,
        dport,
        proto,
    } = id.tuple;
    let key = FlowKey {
        src: A::from_ip(src)?,
        dst: A::from_ip(dst)?,
        sport,
        dport,
        proto,
        direction: id.direction as u8,
        reserved: 0,
    };
    let value = Flow {
        addr: A::from_ip(row.addr)?,
        port: row.port,
        state: row.state as u8,
        hairpin: u8::from(row.hairpin),
        nat_addr: match row.nat {
            Some((addr, _)) => A::from_ip(addr)?,
            None => A::UNSPECIFIED,
        },
        nat_port: row.nat.map_or(0, |(_, port)| port),
        node: row.node as u8,
        counted: u8::from(row.counted),
        backend: row.backend,
        generation: row.generation,
        service: row.service,
        opened: row.opened,
        seen: row.seen,
    };
    Some((key, value))
}

pub fn flow_id<A: Family>(key: &FlowKey<A>) -> anyhow::Result<FlowId> {
    anyhow::ensure!(
        key.reserved == 0,
        "flow key with reserved octets that are not zero"
    );
    let direction = match key.direction {
        0 => Direction::Forward,
        1 => Direction::Reply,
        other => anyhow::bail!("flow key with direction {other}"),
    };
    let tuple = Tuple {
        src: key.src.to_ip(),
        dst: key.dst.to_ip(),
        sport: key.sport,
        dport: key.dport,
        proto: key.proto,
    };
    Ok(FlowId { tuple, direction })
}

pub fn flow_row<A: Family>(value: &Flow<A>) -> anyhow::Result<FlowRow> {
    let state = FlowState::from_u8(value.state);
    let state = state.ok_or_else(|| anyhow::anyhow!("flow row with state {}", value.state))?;
    anyhow::ensure!(
        value.hairpin <= 1,
        "flow row with hairpin {}",
        value.hairpin
    );
    anyhow::ensure!(
        value.counted <= 1,
        "flow row with counted {}",
        value.counted
    );
    let node = NodeClient::from_u8(value.node)
        .with_context(|| format!("flow row with node client {}", value.node))?;
    let nat = (value.nat_addr.to_ip(), value.nat_port);
    Ok(FlowRow {
        addr: value.addr.to_ip(),
        port: value.port,
        nat: (nat != (A::UNSPECIFIED.to_ip(), 0)).then_some(nat),
        state,
        hairpin: value.hairpin == 1,
        node,
        backend: value.backend,
        generation: value.generation,
        service: value.service,
        counted: value.counted == 1,
        opened: value.opened,
        seen: value.seen,
    })
}

pub fn affinity<A: Family>(
    id: &AffinityId,
    row: &AffinityRow,
) -> Option<(AffinityKey<A>, Affinity)> {
    let (client, service) = *id;
    let key = AffinityKey {
        client: A::from_ip(client)?,
        service,
    };
    let value = Affinity {
        backend: row.backend,
        generation: row.generation,
        seen: row.seen,
    };
    Some((key, value))
}

pub fn affinity_back<A: Family>(
    key: &AffinityKey<A>,
    value: Affinity,
) -> (AffinityId, AffinityRow) {
    let Affinity {
        backend,
        generation,
        seen,
    } = value;
    let row = AffinityRow {
        backend,
        generation,
        seen,
    };
    ((key.client.to_ip(), key.service), row)
}

/// Prefix length and the bytes that it is of.
pub fn source<A: Family>(
    (service, network, length): &(u32, IpAddr, u8),
) -> Option<(u32, SourceNet<A>)> {
    let net = SourceNet::new(*service, A::from_ip(*network)?);
    Some((SourceNet::<A>::SERVICE_BITS + u32::from(*length), net))
}

pub fn fragment<A: Family>(
    id: &FragmentId,
    row: FragmentRow,
) -> Option<(FragmentKey<A>, FragmentPorts)> {
    let (src, dst) = (A::from_ip(id.src)?, A::from_ip(id.dst)?);
    let key = FragmentKey {
        src,
        dst,
        id: id.id,
        proto: u32::from(id.proto),
    };
    Some((
        key,
        FragmentPorts {
            sport: row.sport,
            dport: row.dport,
            seen: row.seen,
            first_octets: row.first_octets,
        },
    ))
}

pub fn fragment_back<A: Family>(
    key: &FragmentKey<A>,
    value: FragmentPorts,
) -> anyhow::Result<(FragmentId, FragmentRow)> {
    let id = FragmentId {
        src: key.src.to_ip(),
        dst: key.dst.to_ip(),
        id: key.id,
        proto: u8::try_from(key.proto)?,
    };
    Ok((
        id,
        FragmentRow {
            sport: value.sport,
            dport: value.dport,
            seen: value.seen,
            first_octets: value.first_octets,
        },
    ))
}
