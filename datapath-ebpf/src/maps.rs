//! Every map of the object. Names and purposes are in `datapath_common::maps`.
//! Sizes are defaults; the loader sets what the agent was told.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
use datapath_common::{
    Affinity, AffinityKey, Backend, COUNTERS, Connection, Counter, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Held, HeldKey, Ip4, Ip6, Limit, MonitorControl, NextHop,
    Node, Part, SocketClient, SocketId, SocketKey, SocketPeer, SourceNet, Traffic, Via, Work,
    XdpPart,
    maps::{LIMIT_NEXT_HOPS, LOCK_WORDS, NEXT_HOP_ROWS},
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "tulle_front_v4")]
pub static FRONT_V4: HashMap<FrontendKey<Ip4>, Frontend, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "tulle_front_v6")]
pub static FRONT_V6: HashMap<FrontendKey<Ip6>, Frontend, 65_536, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "tulle_segments")]
pub static SEGMENTS: Array<u32, 1_048_576, MMAPABLE> = Array::new();
#[btf_map(name = "tulle_back_v4")]
pub static BACK_V4: Array<Backend<Ip4>, 65_536> = Array::new();
#[btf_map(name = "tulle_back_v6")]
pub static BACK_V6: Array<Backend<Ip6>, 65_536> = Array::new();
#[btf_map(name = "tulle_flow_v4")]
pub static FLOW_V4: LruHashMap<FlowKey<Ip4>, Flow<Ip4>, 131_072> = LruHashMap::new();
#[btf_map(name = "tulle_flow_v6")]
pub static FLOW_V6: LruHashMap<FlowKey<Ip6>, Flow<Ip6>, 131_072> = LruHashMap::new();
#[btf_map(name = "tulle_affin_v4")]
pub static AFFIN_V4: LruHashMap<AffinityKey<Ip4>, Affinity, 16_384> = LruHashMap::new();
#[btf_map(name = "tulle_affin_v6")]
pub static AFFIN_V6: LruHashMap<AffinityKey<Ip6>, Affinity, 16_384> = LruHashMap::new();
#[btf_map(name = "tulle_conns_v4")]
pub static CONNS_V4: HashMap<SocketId, Connection<Ip4>, 32_768, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "tulle_conns_v6")]
pub static CONNS_V6: HashMap<SocketId, Connection<Ip6>, 32_768, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "tulle_socks_v4")]
pub static SOCKS_V4: LruHashMap<SocketKey<Ip4>, SocketPeer<Ip4>, 32_768> = LruHashMap::new();
#[btf_map(name = "tulle_socks_v6")]
pub static SOCKS_V6: LruHashMap<SocketKey<Ip6>, SocketPeer<Ip6>, 32_768> = LruHashMap::new();
#[btf_map(name = "tulle_sk_affin")]
pub static SK_AFFIN: LruHashMap<SocketClient, Affinity, 16_384> = LruHashMap::new();
#[btf_map(name = "tulle_srcs_v4")]
pub static SRCS_V4: LpmTrie<SourceNet<Ip4>, u32, 16_384> = LpmTrie::new();
#[btf_map(name = "tulle_srcs_v6")]
pub static SRCS_V6: LpmTrie<SourceNet<Ip6>, u32, 16_384> = LpmTrie::new();
#[btf_map(name = "tulle_frag_v4")]
pub static FRAG_V4: LruHashMap<FragmentKey<Ip4>, FragmentPorts, 4_096> = LruHashMap::new();
#[btf_map(name = "tulle_frag_v6")]
pub static FRAG_V6: LruHashMap<FragmentKey<Ip6>, FragmentPorts, 4_096> = LruHashMap::new();
#[btf_map(name = "tulle_held_v4")]
pub static HELD_V4: LruHashMap<HeldKey<Ip4>, Held, 256> = LruHashMap::new();
#[btf_map(name = "tulle_held_v6")]
pub static HELD_V6: LruHashMap<HeldKey<Ip6>, Held, 256> = LruHashMap::new();
#[btf_map(name = "tulle_held_work")]
pub static HELD_WORK: PerCpuArray<Held, 1> = PerCpuArray::new();
#[btf_map(name = "tulle_pods_v4")]
pub static PODS_V4: HashMap<Ip4, Via, 4_096, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "tulle_pods_v6")]
pub static PODS_V6: HashMap<Ip6, Via, 4_096, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "tulle_peers_v4")]
pub static PEERS_V4: LpmTrie<Ip4, Via, 16_384> = LpmTrie::new();
#[btf_map(name = "tulle_peers_v6")]
pub static PEERS_V6: LpmTrie<Ip6, Via, 16_384> = LpmTrie::new();
#[btf_map(name = "tulle_nodes_v4")]
pub static NODES_V4: HashMap<Ip4, Node, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "tulle_direct_v4")]
pub static DIRECT_V4: LpmTrie<Ip4, u32, 1_024> = LpmTrie::new();
#[btf_map(name = "tulle_direct_v6")]
pub static DIRECT_V6: LpmTrie<Ip6, u32, 1_024> = LpmTrie::new();
#[btf_map(name = "tulle_svc_stats")]
pub static SVC_STATS: PerCpuArray<Traffic, 8_192> = PerCpuArray::new();
#[btf_map(name = "tulle_bk_stats4")]
pub static BK_STATS4: PerCpuArray<Traffic, 8_192> = PerCpuArray::new();
#[btf_map(name = "tulle_bk_stats6")]
pub static BK_STATS6: PerCpuArray<Traffic, 8_192> = PerCpuArray::new();
#[btf_map(name = "tulle_turns")]
pub static TURNS: Array<u64, 262_146> = Array::new();
#[btf_map(name = "tulle_live_v4")]
pub static LIVE_V4: Array<u64, 65_536, MMAPABLE> = Array::new();
#[btf_map(name = "tulle_live_v6")]
pub static LIVE_V6: Array<u64, 65_536, MMAPABLE> = Array::new();
#[btf_map(name = "tulle_work_v4")]
pub static WORK_V4: PerCpuArray<Work<Ip4>, 1> = PerCpuArray::new();
#[btf_map(name = "tulle_work_v6")]
pub static WORK_V6: PerCpuArray<Work<Ip6>, 1> = PerCpuArray::new();
#[btf_map(name = "tulle_locks")]
pub static LOCKS: Array<u64, { LOCK_WORDS as usize }> = Array::new();
#[btf_map(name = "tulle_counters")]
pub static COUNTS: PerCpuArray<Counter, { COUNTERS as usize }> = PerCpuArray::new();
#[btf_map(name = "tulle_limits")]
pub static LIMITS: PerCpuArray<Limit, { (LIMIT_NEXT_HOPS + NEXT_HOP_ROWS) as usize }> =
    PerCpuArray::new();
#[btf_map(name = "tulle_hops")]
pub static HOPS: PerCpuArray<NextHop, { NEXT_HOP_ROWS as usize }> = PerCpuArray::new();
#[btf_map(name = "tulle_events")]
pub static EVENTS: RingBuf<(), 262_144> = RingBuf::new();
#[btf_map(name = "tulle_monitor")]
pub static MONITOR: Array<MonitorControl, 1> = Array::new();
#[btf_map(name = "tulle_parts")]
pub static PARTS: ProgramArray<{ Part::ALL.len() }> = ProgramArray::new();
#[btf_map(name = "tulle_xdp_parts")]
pub static XDP_PARTS: ProgramArray<{ XdpPart::ALL.len() }> = ProgramArray::new();
