//! What the tables hold, in the standard library's words.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use datapath_common::{
    BackendState, Config, Direction, Feature, FlowState, Frontend, Ip4, Limit, Network, Node,
    NodeClient, TICK_NANOS, Traffic, Via, proto,
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
    /// Address and port that the source is translated with, if it is. Forward:
    /// what the backend sees; reply: the client's own.
    pub nat: Option<(IpAddr, u16)>,
    /// The flow's state.
    pub state: FlowState,
    /// The backend sees the frontend's address as source: the client is its
    /// own backend.
    pub hairpin: bool,
    /// Whether the client is a process of this node.
    pub node: NodeClient,
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend when the flow opened.
    pub generation: u32,
    /// Number of the service port.
    pub service: u32,
    /// Whether its backend's living flows count it.
    pub counted: bool,
    /// Tick of opening.
    pub opened: u32,
    /// Tick of the last packet that was noted.
    pub seen: u32,
}

impl FlowRow {
    /// What the source is translated with, if it is: port 0 says that it stays.
    pub fn translated_source(&self) -> Option<(IpAddr, u16)> {
        self.nat.filter(|(_, port)| *port != 0)
    }

    /// A reply row of a flow that was not translated at all: from outside straight
    /// to a pod.
    pub fn is_straight(&self) -> bool {
        let forwarded = self.node == NodeClient::Forwarded;
        self.backend == 0 && self.translated_source().is_none() && !forwarded
    }
}

/// Where a client's last flow to a service port went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffinityRow {
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend then.
    pub generation: u32,
    /// Tick in which the flow opened.
    pub seen: u32,
}

/// Key of an affinity row: the client's own address, number of the service port.
pub type AffinityId = (IpAddr, u32);

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
    /// Octets of the first fragment's IP packet.
    pub first_octets: u32,
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
    /// `tulle_direct_*`: network, prefix length, bits of `datapath_common::Network`.
    pub networks: Vec<(IpAddr, u8, u32)>,
    /// `tulle_svc_stats` by number of the service port.
    pub service_traffic: HashMap<u32, Traffic>,
    /// `tulle_bk_stats*` by IP version (4, 6) and backend id.
    pub backend_traffic: HashMap<(u8, u32), Traffic>,
    /// `tulle_turns`: turns taken, where there are any.
    pub turns: HashMap<u32, u64>,
    /// `tulle_live_*` by IP version (4, 6) and backend id, where it is not 0.
    pub live: HashMap<(u8, u32), i64>,
    /// `tulle_nodes_v4`.
    pub nodes: HashMap<Ipv4Addr, Node>,
    /// `tulle_srcs_*`: number of the service port, network, prefix length
    /// without the number's bits.
    pub sources: Vec<(u32, IpAddr, u8)>,
    /// `tulle_affin_*`.
    pub affinities: HashMap<AffinityId, AffinityRow>,
    /// `tulle_flow_*`.
    pub flows: HashMap<FlowId, FlowRow>,
    /// `tulle_frag_*`.
    pub fragments: HashMap<FragmentId, FragmentRow>,
    /// The tick that it is.
    pub now: u32,
    /// IP version, service port and backend that the packet is a reply of.
    pub answered: Option<(u8, u32, u32)>,
    /// New flows granted in this tick.
    pub flow_grants: Limit,
    /// ICMP errors granted in this tick.
    pub error_grants: Limit,
}

/// The address of the same family as `family`.
fn of_family(family: IpAddr, v4: [u8; 4], v6: [u8; 16]) -> IpAddr {
    if family.is_ipv4() {
        IpAddr::from(v4)
    } else {
        IpAddr::from(v6)
    }
}

/// Whole ticks in so many seconds.
pub fn ticks_of(seconds: u32) -> u64 {
    u64::from(seconds) * 1_000_000_000 / TICK_NANOS
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
    /// Adds an active backend for TCP, at port 8080, that the kernel finds the way to.
    pub fn add_backend(&mut self, id: u32, addr: IpAddr) {
        let version = if addr.is_ipv6() { 6 } else { 4 };
        let row = BackendRow {
            addr,
            port: 8080,
            proto: proto::TCP,
            state: BackendState::Active,
            generation: 1,
            via: Via::KERNEL,
        };
        self.backends.insert((version, id), row);
    }

    /// A world with nothing in it.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            frontends: HashMap::new(),
            segments: Vec::new(),
            backends: HashMap::new(),
            pods: HashMap::new(),
            peers: Vec::new(),
            networks: Vec::new(),
            service_traffic: HashMap::new(),
            backend_traffic: HashMap::new(),
            turns: HashMap::new(),
            live: HashMap::new(),
            nodes: HashMap::new(),
            sources: Vec::new(),
            affinities: HashMap::new(),
            flows: HashMap::new(),
            fragments: HashMap::new(),
            now: 0,
            answered: None,
            flow_grants: Limit::default(),
            error_grants: Limit::default(),
        }
    }

    /// Whether a bit of `datapath_common::Feature` is set.
    pub fn has(&self, feature: u32) -> bool {
        self.config.features & feature != 0
    }

    /// Whether the address lies in this node's pod network.
    pub fn in_pod_network(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => {
                let bits = |ip: Ip4| u32::from_be_bytes(ip.octets());
                a.to_bits() & bits(self.config.pod_mask4) == bits(self.config.pod_net4)
            }
            IpAddr::V6(a) => {
                let mask = u128::from_be_bytes(self.config.pod_mask6.octets());
                a.to_bits() & mask == u128::from_be_bytes(self.config.pod_net6.octets())
            }
        }
    }

    /// The row of a pod of this node: in the pod network, and there.
    pub fn local_pod(&self, addr: IpAddr) -> Option<Via> {
        if self.in_pod_network(addr) {
            self.pods.get(&addr).copied()
        } else {
            None
        }
    }

    /// Whether the address is of a pod of this node that the kernel reaches by the bridge.
    pub fn is_bridged(&self, addr: IpAddr) -> bool {
        self.config.bridge != 0
            && self.in_pod_network(addr)
            && self.vtep_address(addr) != addr
            && !self.pods.contains_key(&addr)
    }

    /// Whether what a pod of this node sends comes from behind the bridge.
    pub fn comes_by_bridge(&self, src: IpAddr) -> bool {
        self.config.bridge != 0 && self.in_pod_network(src) && !self.pods.contains_key(&src)
    }

    /// This node's address of the other address's family; unspecified without.
    pub fn node_address(&self, family: IpAddr) -> IpAddr {
        let (v4, v6) = (self.config.node_ip4.octets(), self.config.node_ip6.octets());
        of_family(family, v4, v6)
    }

    /// The VTEP device's address of the other address's family; unspecified
    /// without.
    pub fn vtep_address(&self, family: IpAddr) -> IpAddr {
        let (v4, v6) = (self.config.pod_net4.octets(), self.config.pod_net6.octets());
        of_family(family, v4, v6)
    }

    /// Whether a source may open flows to a service port with source ranges.
    pub fn source_is_allowed(&self, service: u32, src: IpAddr) -> bool {
        self.sources
            .iter()
            .any(|(of, network, length)| *of == service && in_network(src, *network, *length))
    }

    /// Whether pods reach the address as themselves, though it is outside of the cluster.
    pub fn is_direct(&self, addr: IpAddr) -> bool {
        self.network(addr) & Network::DIRECT != 0
    }

    /// Whether only a service could have the address, and none has it.
    pub fn is_free(&self, addr: IpAddr) -> bool {
        self.has(Feature::SERVICE_NETWORKS)
            && self.network(addr) & Network::SERVICES != 0
            && !self.frontends.contains_key(&(addr, 0, 0))
    }

    /// What is true of the smallest network that holds the address.
    fn network(&self, addr: IpAddr) -> u32 {
        let mut smallest = (0, 0);
        for (network, length, bits) in &self.networks {
            if in_network(addr, *network, *length) && *length >= smallest.0 {
                smallest = (*length, *bits);
            }
        }
        smallest.1
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

    /// Ids in a segment, slot by slot.
    pub fn segment(&self, start: u32, len: u32) -> Vec<u32> {
        let slots = self.segments.iter().copied();
        slots.skip(start as usize).take(len as usize).collect()
    }

    /// Ids in both of a frontend's segments, each once, in ascending order.
    pub fn ids_of(&self, frontend: &Frontend) -> Vec<u32> {
        let mut ids = self.segment(frontend.start, frontend.len);
        ids.extend(self.segment(frontend.out_start, frontend.out_len));
        ids.sort_unstable();
        ids.dedup();
        ids
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
