//! What the tables hold, in the standard library's words.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use datapath_common::{
    BackendState, Config, Direction, FlowState, Frontend, Ip4, Limit, Node, Via, proto,
};

/// Addresses, ports and protocol of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
}

/// Key of a flow row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowId {
    /// The packet's own tuple before translation.
    pub tuple: Tuple,
    /// Which way it goes.
    pub direction: Direction,
}

/// A flow row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowRow {
    /// Forward: the backend's address; reply: the frontend's.
    pub addr: IpAddr,
    /// The port with it, host order.
    pub port: u16,
    /// The flow's state.
    pub state: FlowState,
    /// The client is its own backend.
    pub hairpin: bool,
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend when the flow opened.
    pub generation: u32,
    /// Number of the service port.
    pub service: u32,
    /// Tick of opening.
    pub opened: u32,
    /// Tick of the last packet that was noted.
    pub seen: u32,
}

/// A backend row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendRow {
    /// Endpoint address.
    pub addr: IpAddr,
    /// Endpoint port, host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Life of the row.
    pub state: BackendState,
    /// Counts the row's reuses.
    pub generation: u32,
    /// How it is reached.
    pub via: Via,
}

/// Key of a remembered fragment.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FragmentId {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Identification.
    pub id: u32,
    /// IP protocol number.
    pub proto: u8,
}

/// What a first fragment left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentRow {
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// Tick of the first fragment.
    pub seen: u32,
}

/// Address, port, protocol of a frontend row; port 0 and protocol 0 mark a
/// service address.
pub type FrontendId = (IpAddr, u16, u8);

/// Every table of the datapath, and the time.
#[derive(Clone, PartialEq, Debug)]
pub struct World {
    /// Read-only data of the programs.
    pub config: Config,
    /// `tulle_front_*`.
    pub frontends: HashMap<FrontendId, Frontend>,
    /// `tulle_segments`, from slot 0 on.
    pub segments: Vec<u32>,
    /// `tulle_back_*` by IP version (4, 6) and id.
    pub backends: HashMap<(u8, u32), BackendRow>,
    /// `tulle_pods_*`.
    pub pods: HashMap<IpAddr, Via>,
    /// `tulle_peers_*`: network, prefix length, how it is reached.
    pub peers: Vec<(IpAddr, u8, Via)>,
    /// `tulle_nodes_v4`.
    pub nodes: HashMap<Ipv4Addr, Node>,
    /// `tulle_flow_*`.
    pub flows: HashMap<FlowId, FlowRow>,
    /// `tulle_frag_*`.
    pub fragments: HashMap<FragmentId, FragmentRow>,
    /// The tick that it is.
    pub now: u32,
    /// New flows granted in this tick.
    pub flow_grants: Limit,
    /// ICMP errors granted in this tick.
    pub error_grants: Limit,
}

/// 4 or 6.
pub fn version_of(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 4 } else { 6 }
}

/// Whether `addr` lies in `network`/`length`.
pub fn in_network(addr: IpAddr, network: IpAddr, length: u8) -> bool {
    match (addr, network) {
        (IpAddr::V4(a), IpAddr::V4(n)) => {
            length == 0 || (a.to_bits() ^ n.to_bits()) >> (32 - u32::from(length)) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(n)) => {
            length == 0 || (a.to_bits() ^ n.to_bits()) >> (128 - u32::from(length)) == 0
        }
        _ => false,
    }
}

impl Tuple {
    /// The forward row's key of this packet.
    pub fn forward(self) -> FlowId {
        FlowId {
            tuple: self,
            direction: Direction::Forward,
        }
    }

    /// The reply row's key of this packet.
    pub fn reply(self) -> FlowId {
        FlowId {
            tuple: self,
            direction: Direction::Reply,
        }
    }
}

impl World {
    /// A world with nothing in it.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            frontends: HashMap::new(),
            segments: Vec::new(),
            backends: HashMap::new(),
            pods: HashMap::new(),
            peers: Vec::new(),
            nodes: HashMap::new(),
            flows: HashMap::new(),
            fragments: HashMap::new(),
            now: 0,
            flow_grants: Limit::default(),
            error_grants: Limit::default(),
        }
    }

    /// Whether a bit of `datapath_common::Feature` is set.
    pub fn has(&self, feature: u32) -> bool {
        self.config.features & feature != 0
    }

    /// The row of a pod of this node: in the pod network, and there.
    pub fn local_pod(&self, addr: IpAddr) -> Option<Via> {
        let inside = match addr {
            IpAddr::V4(a) => {
                let bits = |ip: Ip4| u32::from_be_bytes(ip.octets());
                a.to_bits() & bits(self.config.pod_mask4) == bits(self.config.pod_net4)
            }
            IpAddr::V6(a) => {
                let mask = u128::from_be_bytes(self.config.pod_mask6.octets());
                a.to_bits() & mask == u128::from_be_bytes(self.config.pod_net6.octets())
            }
        };
        if inside {
            self.pods.get(&addr).copied()
        } else {
            None
        }
    }

    /// The peer with the longest prefix that holds the address.
    pub fn peer(&self, addr: IpAddr) -> Option<Via> {
        let holds = |(network, length, _): &&(IpAddr, u8, Via)| in_network(addr, *network, *length);
        self.peers
            .iter()
            .filter(holds)
            .max_by_key(|(_, length, _)| *length)
            .map(|(.., via)| *via)
    }

    /// Ids in a frontend's segment, slot by slot.
    pub fn segment(&self, frontend: &Frontend) -> Vec<u32> {
        let slots = self.segments.iter().copied();
        slots
            .skip(frontend.start as usize)
            .take(frontend.len as usize)
            .collect()
    }

    /// Idle limit of a flow, in ticks.
    pub fn idle_limit(&self, protocol: u8, state: FlowState) -> u32 {
        let idle = &self.config.idle;
        match (protocol, state) {
            (proto::TCP, FlowState::Opening) => idle.tcp_opening,
            (proto::TCP, FlowState::Established) => idle.tcp_established,
            (proto::TCP, FlowState::Closing) => idle.tcp_closing,
            (proto::SCTP, FlowState::Opening) => idle.sctp_opening,
            (proto::SCTP, FlowState::Established) => idle.sctp_established,
            (proto::SCTP, FlowState::Closing) => idle.sctp_closing,
            (_, FlowState::Opening) => idle.udp_opening,
            (_, FlowState::Established | FlowState::Closing) => idle.udp_established,
        }
    }
}
