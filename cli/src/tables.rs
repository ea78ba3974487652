//! Rows of the maps without their address family, as the reports want them.

use std::net::{IpAddr, SocketAddr};

use datapath_common::{
    Address, Affinity, AffinityKey, Backend, BackendState, Direction, Flow, FlowKey, FlowState,
    Frontend, FrontendFlags, FrontendKey, Hook, Ip4, Ip6, Mac, NodeClient, Reason, SourceNet, Via,
    ViaKind,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A row of `tulle_front_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrontendRow {
    /// Service address and port.
    pub addr: SocketAddr,
    /// IP protocol number.
    pub proto: u8,
    /// What the row holds.
    pub value: Frontend,
}

impl FrontendRow {
    /// From the map's key and value.
    pub fn new<A: Address>(key: FrontendKey<A>, value: Frontend) -> Self {
        Self {
            addr: SocketAddr::new(key.addr.to_ip(), key.port),
            proto: key.proto,
            value,
        }
    }

    /// Whether the row has any of these [`FrontendFlags`].
    pub const fn has(&self, flags: u16) -> bool {
        self.value.flags & flags != 0
    }

    /// Whether the row only marks a service address.
    pub const fn is_address(&self) -> bool {
        self.has(FrontendFlags::ADDRESS)
    }

    /// Whether every packet asks the flow table, whoever the client is.
    pub const fn asks_flow_table(&self) -> bool {
        const ASK: u16 = FrontendFlags::FLOWS_DECIDE
            | FrontendFlags::FLOWS_MAY_BE_LOST
            | FrontendFlags::SOURCE_RANGES;
        self.has(ASK) || self.value.affinity_secs != 0
    }

    /// Whether clients inside and outside have the same list of backends.
    pub const fn one_list(&self) -> bool {
        let Frontend {
            start,
            len,
            out_start,
            out_len,
            table,
            out_table,
            ..
        } = self.value;
        len == out_len && table == out_table && (start == out_start || len == 0)
    }
}

/// A row of `tulle_back_*` that is not free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendRow {
    /// Backend id, unique in its address family.
    pub id: u32,
    /// Address and port of the endpoint; tells the family.
    pub addr: SocketAddr,
    /// IP protocol number.
    pub proto: u8,
    /// A [`BackendState`], or a number that is none.
    pub state: u8,
    /// Generation of the row.
    pub generation: u32,
    /// How the endpoint is reached.
    pub via: Via,
}

impl BackendRow {
    /// From the map's index and value; `None` if the row is free.
    pub fn new<A: Address>(id: u32, value: Backend<A>) -> Option<Self> {
        (value.state != BackendState::Free as u8).then(|| Self {
            id,
            addr: SocketAddr::new(value.addr.to_ip(), value.port),
            proto: value.proto,
            state: value.state,
            generation: value.generation,
            via: value.via,
        })
    }

    /// Whether new flows may go here.
    pub const fn is_active(&self) -> bool {
        self.state == BackendState::Active as u8
    }

    /// The state's name.
    pub const fn state_name(&self) -> &'static str {
        const ACTIVE: u8 = BackendState::Active as u8;
        const DRAINING: u8 = BackendState::Draining as u8;
        match self.state {
            ACTIVE => "active",
            DRAINING => "draining",
            _ => "unknown",
        }
    }
}

/// Address family of an address, as people write it.
pub const fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 4,
        IpAddr::V6(_) => 6,
    }
}

/// Key of a flow row, to remove it by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FlowRowKey {
    /// In `tulle_flow_v4`.
    V4(FlowKey<Ip4>),
    /// In `tulle_flow_v6`.
    V6(FlowKey<Ip6>),
}

impl From<FlowKey<Ip4>> for FlowRowKey {
    fn from(key: FlowKey<Ip4>) -> Self {
        Self::V4(key)
    }
}

impl From<FlowKey<Ip6>> for FlowRowKey {
    fn from(key: FlowKey<Ip6>) -> Self {
        Self::V6(key)
    }
}

/// A row of `tulle_flow_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowRow {
    /// The row's key.
    pub key: FlowRowKey,
    /// Source of the packets, before translation.
    pub src: SocketAddr,
    /// Destination of the packets, before translation.
    pub dst: SocketAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Whether the packets go from the backend to the client.
    pub reply: bool,
    /// Forward: the backend. Reply: the frontend.
    pub target: SocketAddr,
    /// Where the source is translated too. Forward: what the backend sees.
    /// Reply: the client's own.
    pub nat: Option<SocketAddr>,
    /// The state, if the number is one.
    pub state: Option<FlowState>,
    /// Whether the client is its own backend.
    pub hairpin: bool,
    /// The client's place, if the number is one.
    pub node: Option<NodeClient>,
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend.
    pub generation: u32,
    /// Number of the service port.
    pub service: u32,
    /// When the flow opened, in ticks.
    pub opened: u32,
    /// When a packet was last seen, in ticks.
    pub seen: u32,
}

impl FlowRow {
    /// From the map's key and value.
    pub fn new<A: Address>(key: FlowKey<A>, flow: Flow<A>) -> Self
    where
        FlowKey<A>: Into<FlowRowKey>,
    {
        Self {
            key: key.into(),
            src: SocketAddr::new(key.src.to_ip(), key.sport),
            dst: SocketAddr::new(key.dst.to_ip(), key.dport),
            proto: key.proto,
            reply: key.direction == Direction::Reply as u8,
            target: SocketAddr::new(flow.addr.to_ip(), flow.port),
            nat: (flow.nat_port != 0)
                .then(|| SocketAddr::new(flow.nat_addr.to_ip(), flow.nat_port)),
            state: FlowState::from_u8(flow.state),
            hairpin: flow.hairpin != 0,
            node: NodeClient::from_u8(flow.node),
            backend: flow.backend,
            generation: flow.generation,
            service: flow.service,
            opened: flow.opened,
            seen: flow.seen,
        }
    }
}

/// Key of an affinity row, to remove it by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AffinityRowKey {
    /// In `tulle_affin_v4`.
    V4(AffinityKey<Ip4>),
    /// In `tulle_affin_v6`.
    V6(AffinityKey<Ip6>),
}

impl From<AffinityKey<Ip4>> for AffinityRowKey {
    fn from(key: AffinityKey<Ip4>) -> Self {
        Self::V4(key)
    }
}

impl From<AffinityKey<Ip6>> for AffinityRowKey {
    fn from(key: AffinityKey<Ip6>) -> Self {
        Self::V6(key)
    }
}

/// A row of `tulle_affin_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffinityRow {
    /// The row's key.
    pub key: AffinityRowKey,
    /// The client, before any translation; tells the family.
    pub client: IpAddr,
    /// Number of the service port.
    pub service: u32,
    /// Where the client's last new flow went.
    pub value: Affinity,
}

impl AffinityRow {
    /// From the map's key and value.
    pub fn new<A: Address>(key: AffinityKey<A>, value: Affinity) -> Self
    where
        AffinityKey<A>: Into<AffinityRowKey>,
    {
        Self {
            key: key.into(),
            client: key.client.to_ip(),
            service: key.service,
            value,
        }
    }
}

/// A row of `tulle_srcs_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceRow {
    /// Number of the service port.
    pub service: u32,
    /// A network that may use it.
    pub network: IpNet,
}

impl SourceRow {
    /// From the map's key; `None` if the prefix is not one of an address.
    pub fn new<A: Address>(prefix_len: u32, net: SourceNet<A>) -> Option<Self> {
        let bits = prefix_len.checked_sub(SourceNet::<A>::SERVICE_BITS)?;
        let network = IpNet::new(net.addr.to_ip(), u8::try_from(bits).ok()?).ok()?;
        Some(Self {
            service: u32::from_be(net.service),
            network,
        })
    }
}

/// A row of `tulle_peers_*`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerRow {
    /// Pod network of another node.
    pub network: IpNet,
    /// The way there.
    pub via: Via,
}

impl PeerRow {
    /// From the map's key and value; `None` if the prefix is longer than the address.
    pub fn new<A: Address>(prefix_len: u32, addr: A, via: Via) -> Option<Self> {
        let prefix_len = u8::try_from(prefix_len).ok()?;
        let network = IpNet::new(addr.to_ip(), prefix_len).ok()?;
        Some(Self { network, via })
    }
}

/// A row of `tulle_nodes_v4`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeRow {
    /// The node on the underlay.
    pub addr: Ip4,
    /// Its VTEP address.
    pub vtep_mac: Mac,
}

/// A counter, summed over the CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CounterRow {
    /// Where it was counted.
    pub hook: Hook,
    /// Number of the reason, which a later agent may know and we do not.
    pub reason: u8,
    /// Packets.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

impl CounterRow {
    /// The reason, if this program knows it.
    pub const fn known(&self) -> Option<Reason> {
        Reason::from_u8(self.reason)
    }
}

/// A map as the kernel tells it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapUsage {
    /// Name of the map.
    pub name: String,
    /// What it holds.
    pub what: String,
    /// Rows in use; absent where rows have no such thing (counters, the ring).
    pub used: Option<u64>,
    /// Whether counting stopped early: there are at least `used`.
    pub at_least: bool,
    /// Most rows; bytes for the ring.
    pub limit: u64,
    /// Bytes of memory; absent if the kernel does not tell.
    pub memory_bytes: Option<u64>,
}

/// What kind of way a [`Via`] is; a number that is none counts as the kernel's.
pub const fn via_kind(via: &Via) -> ViaKind {
    const LOCAL: u8 = ViaKind::Local as u8;
    const VXLAN: u8 = ViaKind::Vxlan as u8;
    const HOST: u8 = ViaKind::Host as u8;
    match via.kind {
        LOCAL => ViaKind::Local,
        VXLAN => ViaKind::Vxlan,
        HOST => ViaKind::Host,
        _ => ViaKind::Kernel,
    }
}
