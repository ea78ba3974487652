//! Names of the maps, at most 15 characters, and their default sizes. The
//! definitions themselves are in the programs' `maps.rs`.

use crate::{
    Affinity, AffinityKey, Backend, Connection, Counter, Flow, FlowKey, FragmentKey, FragmentPorts,
    Frontend, FrontendKey, Held, HeldKey, Ip4, Ip6, Limit, MonitorControl, NextHop, Node, PeerKey,
    SocketClient, SocketId, SocketKey, SocketPeer, SourceKey, Traffic, Via, Work,
};

/// Changes whenever a key, a value or a map's kind changes. Pinned maps of
/// another version are migrated or refused, never reinterpreted.
pub const ABI_VERSION: u32 = 3;

/// What a map is for, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapInfo {
    /// Name of map and pin.
    pub name: &'static str,
    /// Entries unless the agent is told otherwise.
    pub default_entries: u32,
    /// Who writes it.
    pub writer: Writer,
    /// What it holds.
    pub what: &'static str,
}

/// The one writer of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writer {
    /// The agent; the programs only read, but for
    /// [`FLOWS_DECIDE`](crate::FrontendFlags::FLOWS_DECIDE), which they set.
    Agent,
    /// The programs; the agent only reads and removes what has expired.
    Programs,
    /// The CLI.
    Cli,
}

macro_rules! maps {
    ($($konst:ident = $name:literal, $entries:expr, $writer:ident, $what:literal;)+) => {
        $(#[doc = $what] pub const $konst: &str = $name;)+
        /// Every map of the object.
        pub const ALL: &[MapInfo] = &[$(MapInfo {
            name: $name, default_entries: $entries, writer: Writer::$writer, what: $what,
        }),+];
        const _: () = { $(assert!($name.len() <= 15);)+ };
    };
}

maps! {
    FRONT_V4 = "tulle_front_v4", 65_536, Agent, "IPv4 frontends: address, port, protocol to segment";
    FRONT_V6 = "tulle_front_v6", 65_536, Agent, "IPv6 frontends: address, port, protocol to segment";
    SEGMENTS = "tulle_segments", 1_048_576, Agent, "segments: slot to backend id";
    BACK_V4 = "tulle_back_v4", 65_536, Agent, "IPv4 backends by id";
    BACK_V6 = "tulle_back_v6", 65_536, Agent, "IPv6 backends by id";
    FLOW_V4 = "tulle_flow_v4", 131_072, Programs, "IPv4 flows, a row for each direction";
    FLOW_V6 = "tulle_flow_v6", 131_072, Programs, "IPv6 flows, a row for each direction";
    AFFIN_V4 = "tulle_affin_v4", 16_384, Programs, "IPv4 session affinity: client and service to backend";
    AFFIN_V6 = "tulle_affin_v6", 16_384, Programs, "IPv6 session affinity: client and service to backend";
    CONNS_V4 = "tulle_conns_v4", 32_768, Programs, "IPv4 peers that connected sockets were given: socket to backend and service";
    CONNS_V6 = "tulle_conns_v6", 32_768, Programs, "IPv6 peers that connected sockets were given: socket to backend and service";
    SOCKS_V4 = "tulle_socks_v4", 32_768, Programs, "IPv4 peers of sockets that send datagrams unconnected: service to backend, backend to service";
    SOCKS_V6 = "tulle_socks_v6", 32_768, Programs, "IPv6 peers of sockets that send datagrams unconnected: service to backend, backend to service";
    SK_AFFIN = "tulle_sk_affin", 16_384, Programs, "session affinity of sockets: network namespace and service to backend";
    SRCS_V4 = "tulle_srcs_v4", 16_384, Agent, "IPv4 networks that may use a service";
    SRCS_V6 = "tulle_srcs_v6", 16_384, Agent, "IPv6 networks that may use a service";
    FRAG_V4 = "tulle_frag_v4", 4_096, Programs, "IPv4 fragments: identification to ports";
    FRAG_V6 = "tulle_frag_v6", 4_096, Programs, "IPv6 fragments: identification to ports";
    HELD_V4 = "tulle_held_v4", 256, Programs, "IPv4 fragments that came before the first of their datagram";
    HELD_V6 = "tulle_held_v6", 256, Programs, "IPv6 fragments that came before the first of their datagram";
    HELD_WORK = "tulle_held_work", 1, Programs, "a fragment that is about to be held, for each CPU";
    PODS_V4 = "tulle_pods_v4", 4_096, Agent, "IPv4 pods of this node";
    PODS_V6 = "tulle_pods_v6", 4_096, Agent, "IPv6 pods of this node";
    PEERS_V4 = "tulle_peers_v4", 16_384, Agent, "IPv4 pod networks of other nodes";
    PEERS_V6 = "tulle_peers_v6", 16_384, Agent, "IPv6 pod networks of other nodes";
    NODES_V4 = "tulle_nodes_v4", 16_384, Agent, "nodes whose overlay packets are accepted";
    DIRECT_V4 = "tulle_direct_v4", 1_024, Agent, "IPv4 networks that pods reach without masquerade, or that services have their addresses from";
    DIRECT_V6 = "tulle_direct_v6", 1_024, Agent, "IPv6 networks that pods reach without masquerade, or that services have their addresses from";
    SVC_STATS = "tulle_svc_stats", 8_192, Programs, "traffic of each service port, for each CPU";
    BK_STATS4 = "tulle_bk_stats4", 8_192, Programs, "traffic of each IPv4 backend, for each CPU";
    BK_STATS6 = "tulle_bk_stats6", 8_192, Programs, "traffic of each IPv6 backend, for each CPU";
    TURNS = "tulle_turns", turn_rows(65_536), Programs, "turns that new flows of round-robin services took: two counters for each service number, the second for the list of endpoints on this node";
    LIVE_V4 = "tulle_live_v4", 65_536, Programs, "living flows of each IPv4 backend, as far as services by least connections opened them";
    LIVE_V6 = "tulle_live_v6", 65_536, Programs, "living flows of each IPv6 backend, as far as services by least connections opened them";
    WORK_V4 = "tulle_work_v4", 1, Programs, "IPv4 keys under construction, for each CPU";
    WORK_V6 = "tulle_work_v6", 1, Programs, "IPv6 keys under construction, for each CPU";
    LOCKS = "tulle_locks", LOCK_WORDS, Programs, "locks of ports that flows take: a word is 1 while a CPU has it";
    COUNTERS = "tulle_counters", crate::COUNTERS, Programs, "packets and bytes by hook and reason, for each CPU";
    LIMITS = "tulle_limits", LIMIT_NEXT_HOPS + NEXT_HOP_ROWS, Programs, "new flows, ICMP errors and held fragments granted in this tick, and next hops of XDP, for each CPU";
    HOPS = "tulle_hops", NEXT_HOP_ROWS, Programs, "next hops towards other nodes that XDP asked the kernel for in this tick, for each CPU";
    EVENTS = "tulle_events", 262_144, Programs, "events for `tulle monitor` (a ring; its size is in bytes)";
    MONITOR = "tulle_monitor", 1, Cli, "what watchers want to see";
}

/// Entries of `tulle_turns` for so many frontends of each family. Every number that
/// services have at once has its two rows, and 0, which none has: numbers are one sequence
/// over both families.
pub const fn turn_rows(frontends: u32) -> u32 {
    frontends.saturating_mul(4).saturating_add(2)
}

/// Words of `tulle_locks`, a power of two. Keys of flow rows share them.
pub const LOCK_WORDS: u32 = 1_024;

/// Row of `tulle_limits` that counts new flows.
pub const LIMIT_FLOWS: u32 = 0;
/// Row of `tulle_limits` that counts ICMP errors.
pub const LIMIT_ERRORS: u32 = 1;
/// Row of `tulle_limits` that counts fragments that are held.
pub const LIMIT_HELD: u32 = 2;
/// First row of `tulle_limits` for next hops that XDP sends to: the last ones.
pub const LIMIT_NEXT_HOPS: u32 = 3;
/// How many rows there are for next hops, there and in `tulle_hops`: a power of two.
pub const NEXT_HOP_ROWS: u32 = 64;

/// Bytes of a key and of a value of a map, as both sides know them;
/// `None` for a name that is none of [`ALL`]. The ring has neither.
pub fn layout(map: &str) -> Option<(usize, usize)> {
    const fn of<K, V>() -> (usize, usize) {
        (size_of::<K>(), size_of::<V>())
    }
    Some(match map {
        FRONT_V4 => of::<FrontendKey<Ip4>, Frontend>(),
        FRONT_V6 => of::<FrontendKey<Ip6>, Frontend>(),
        SEGMENTS => of::<u32, u32>(),
        BACK_V4 => of::<u32, Backend<Ip4>>(),
        BACK_V6 => of::<u32, Backend<Ip6>>(),
        FLOW_V4 => of::<FlowKey<Ip4>, Flow<Ip4>>(),
        FLOW_V6 => of::<FlowKey<Ip6>, Flow<Ip6>>(),
        AFFIN_V4 => of::<AffinityKey<Ip4>, Affinity>(),
        AFFIN_V6 => of::<AffinityKey<Ip6>, Affinity>(),
        CONNS_V4 => of::<SocketId, Connection<Ip4>>(),
        CONNS_V6 => of::<SocketId, Connection<Ip6>>(),
        SOCKS_V4 => of::<SocketKey<Ip4>, SocketPeer<Ip4>>(),
        SOCKS_V6 => of::<SocketKey<Ip6>, SocketPeer<Ip6>>(),
        SK_AFFIN => of::<SocketClient, Affinity>(),
        SRCS_V4 => of::<SourceKey<Ip4>, u32>(),
        SRCS_V6 => of::<SourceKey<Ip6>, u32>(),
        DIRECT_V4 => of::<PeerKey<Ip4>, u32>(),
        DIRECT_V6 => of::<PeerKey<Ip6>, u32>(),
        SVC_STATS | BK_STATS4 | BK_STATS6 => of::<u32, Traffic>(),
        FRAG_V4 => of::<FragmentKey<Ip4>, FragmentPorts>(),
        FRAG_V6 => of::<FragmentKey<Ip6>, FragmentPorts>(),
        HELD_V4 => of::<HeldKey<Ip4>, Held>(),
        HELD_V6 => of::<HeldKey<Ip6>, Held>(),
        HELD_WORK => of::<u32, Held>(),
        PODS_V4 => of::<Ip4, Via>(),
        PODS_V6 => of::<Ip6, Via>(),
        PEERS_V4 => of::<PeerKey<Ip4>, Via>(),
        PEERS_V6 => of::<PeerKey<Ip6>, Via>(),
        NODES_V4 => of::<Ip4, Node>(),
        LOCKS | TURNS | LIVE_V4 | LIVE_V6 => of::<u32, u64>(),
        COUNTERS => of::<u32, Counter>(),
        LIMITS => of::<u32, Limit>(),
        HOPS => of::<u32, NextHop>(),
        WORK_V4 => of::<u32, Work<Ip4>>(),
        WORK_V6 => of::<u32, Work<Ip6>>(),
        EVENTS => (0, 0),
        MONITOR => of::<u32, MonitorControl>(),
        _ => return None,
    })
}
