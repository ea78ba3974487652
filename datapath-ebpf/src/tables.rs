//! The maps as the pipeline asks for them.

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
    helpers::generated::bpf_ktime_get_coarse_ns,
};
use datapath_common::{
    Address, Affinity, AffinityKey, Backend, Config, Direction, EventKind, Feature, Flow, FlowKey,
    FragmentKey, FragmentPorts, Frontend, FrontendFlags, FrontendKey, Hook, Ip4, Ip6, Node, Reason,
    SourceNet, TICK_SHIFT, Traffic, Via,
    maps::{LIMIT_ERRORS, LIMIT_FLOWS},
};
use datapath_core::{Grant, Headers, Put, Tables, overlay::OverlayTables, states::Progress};

use crate::{
    exit::Origin,
    keys::{FrontendWords, write_flow_key},
    lock, maps,
    once::{
        tulle_below, tulle_claim_port4, tulle_claim_port6, tulle_claim4, tulle_claim6, tulle_holds,
        tulle_live4, tulle_live6, tulle_pick4, tulle_pick6, tulle_progress,
    },
    row::Row,
};

/// The word of a frontend's row that has its flags, by number, and the bit of
/// [`FrontendFlags::FLOWS_DECIDE`] in it.
const ASKS: (usize, u32) = {
    let at = core::mem::offset_of!(Frontend, flags);
    assert!(at.is_multiple_of(4) && at + 4 <= size_of::<Frontend>());
    let [a, b] = FrontendFlags::FLOWS_DECIDE.to_ne_bytes();
    (at / 4, u32::from_ne_bytes([a, b, 0, 0]))
};

/// What the agent fixed when it loaded the programs.
#[unsafe(no_mangle)]
static CONFIG: Config = Config::EMPTY;

/// The configuration. Opaque to the compiler, which would take the values of
/// the object for those of the loaded program; the verifier sees through it.
#[inline(always)]
pub fn config() -> &'static Config {
    core::hint::black_box(&CONFIG)
}

/// Whether functions are called rather than inline ([`Feature::CALLS`]).
#[inline(always)]
pub fn calls() -> bool {
    config().features & Feature::CALLS != 0
}

/// The maps, for one packet.
pub struct Maps {
    config: &'static Config,
    origin: Origin,
}

impl Maps {
    /// For a packet from `origin`.
    #[inline(always)]
    pub fn new(origin: Origin) -> Self {
        Self {
            config: config(),
            origin,
        }
    }

    /// For what asks nothing of a packet.
    #[inline(always)]
    pub fn nowhere() -> Self {
        Self::new(Origin {
            hook: Hook::PodFrom,
            ifindex: 0,
            len: 0,
        })
    }

    /// Counts the packet for what was noted of it last.
    #[inline(always)]
    pub fn count_noted(&self, v6: bool, direction: Direction) {
        let Some(work) = maps::WORK_V4.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: as in `note_count`.
        let noted = unsafe { (*work).facts };
        let (service, backend) = (noted as u32, (noted >> 32) as u32);
        if self.config.features & Feature::COUNT_SERVICES != 0 && backend != 0 {
            let bytes = self.origin.len as u64;
            add(maps::SVC_STATS.get_ptr_mut(service), direction, bytes);
            let row = if v6 {
                maps::BK_STATS6.get_ptr_mut(backend)
            } else {
                maps::BK_STATS4.get_ptr_mut(backend)
            };
            add(row, direction, bytes);
        }
    }

    /// The interface that the packet is at.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        self.origin.ifindex
    }

    /// Where the packet is.
    #[inline(always)]
    pub fn hook(&self) -> Hook {
        self.origin.hook
    }
}

/// Now, in ticks.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes nothing.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}

/// Whether one more is granted to this CPU in this tick.
#[inline(always)]
pub fn grant(row: u32, limit: u32) -> bool {
    if limit == 0 {
        return true;
    }
    let Some(row) = maps::LIMITS.get_ptr_mut(row) else {
        return true;
    };
    let now = now();
    // SAFETY: the row is this CPU's own; programs are not preempted by programs of the same kind.
    unsafe {
        if (*row).tick != now {
            (*row).tick = now;
            (*row).count = 0;
        }
        (*row).count += 1;
        (*row).count <= limit
    }
}

/// Whether this is the first time in this tick that this CPU asks for this row.
#[inline(always)]
pub fn is_first(row: u32) -> bool {
    let Some(row) = maps::LIMITS.get_ptr_mut(row) else {
        return true;
    };
    let now = now();
    // SAFETY: as in `grant`.
    unsafe {
        let last = (*row).tick;
        (*row).tick = now;
        last != now
    }
}

/// Counts a packet in this CPU's row, if there is one.
#[inline(always)]
fn add(row: Option<*mut Traffic>, direction: Direction, bytes: u64) {
    let Some(row) = row else {
        return;
    };
    // SAFETY: the row is this CPU's own; a packet that interrupts another on the
    // same CPU can at worst hide one from the count.
    unsafe {
        match direction {
            Direction::Forward => {
                (*row).packets += 1;
                (*row).bytes += bytes;
            }
            Direction::Reply => {
                (*row).reply_packets += 1;
                (*row).reply_bytes += bytes;
            }
        }
    }
}

/// Leaves it to [`Maps::count_noted`] to count: `tulle_xdp` may find that it has to pass the
/// packet on, to be counted where it is served.
#[inline(always)]
fn note_count(service: u32, backend: u32) {
    if let Some(work) = maps::WORK_V4.get_ptr_mut(0) {
        // SAFETY: this CPU's own row; no program interrupts another at these hooks of the same CPU.
        unsafe { (*work).facts = service as u64 | (backend as u64) << 32 };
    }
}

/// A watcher's lease: whether it wants this kind of event now.
#[inline(always)]
pub fn is_watched(kind: EventKind) -> bool {
    let Some(control) = maps::MONITOR.get(0) else {
        return false;
    };
    let until = match kind {
        EventKind::Drop => control.drops_until,
        EventKind::FlowOpened => control.flows_until,
        EventKind::Trace => control.traces_until,
    };
    until != 0 && until.wrapping_sub(now()).cast_signed() >= 0
}

macro_rules! tables {
    ($addr:ty, $work:ident, $front:ident, $back:ident, $flow:ident, $frag:ident, $pods:ident, $peers:ident, $affin:ident, $srcs:ident, $direct:ident, $stats:ident, $claim_port:ident, $claim:ident, $pick:ident, $live:ident, $count_live:ident) => {
        impl Tables<$addr> for Maps {
            type Row = Row<$addr>;

            #[inline(always)]
            fn config(&self) -> &Config {
                self.config
            }
            #[inline(always)]
            fn now(&self) -> u32 {
                now()
            }
            #[inline(always)]
            fn grant(&self, what: Grant) -> bool {
                match what {
                    Grant::Flow => grant(LIMIT_FLOWS, self.config.flows_per_tick),
                    Grant::IcmpError => grant(LIMIT_ERRORS, self.config.errors_per_tick),
                }
            }
            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$addr>) -> Option<&Frontend> {
                let words = FrontendWords::new(key);
                // SAFETY: the agent replaces rows whole and never frees memory under a program.
                unsafe { maps::$front.get(words.key()) }
            }
            #[inline(always)]
            fn ask_flows(&self, key: &FrontendKey<$addr>) {
                let words = FrontendWords::new(key);
                let Some(row) = maps::$front.get_ptr_mut(words.key()) else {
                    return;
                };
                // SAFETY: the row stays valid until the program ends, and the word is aligned
                // and within it (`ASKS`). The agent may have replaced the row meanwhile and
                // written another in its place: nothing but this bit changes, in one step, and
                // a frontend that has it needlessly looks at the flow table needlessly.
                unsafe { lock::or(row.cast::<u32>().add(ASKS.0), ASKS.1) };
            }
            #[inline(always)]
            fn slot(&self, index: u32) -> Option<u32> {
                maps::SEGMENTS.get(index).copied()
            }
            #[inline(always)]
            fn holds(&self, start: u32, len: u32, id: u32) -> bool {
                tulle_holds(start, len, id) != 0
            }
            #[inline(always)]
            fn backend(&self, id: u32) -> Option<&Backend<$addr>> {
                maps::$back.get(id)
            }
            #[inline(always)]
            fn flow(&self, key: FlowKey<$addr>) -> Option<Row<$addr>> {
                let work = maps::$work.get_ptr_mut(0)?;
                // SAFETY: this CPU's own row; no program interrupts another at
                // these hooks of the same CPU.
                unsafe {
                    write_flow_key(&raw mut (*work).key, &key);
                    maps::$flow.get_ptr_mut(&(*work).key).map(Row)
                }
            }
            #[inline(always)]
            fn stage(&self, fill: impl FnOnce(&mut FlowKey<$addr>, &mut Flow<$addr>)) -> bool {
                let Some(work) = maps::$work.get_ptr_mut(0) else {
                    return false;
                };
                // SAFETY: as above.
                let work = unsafe { &mut *work };
                fill(&mut work.key, &mut work.flow);
                true
            }
            #[inline(always)]
            fn stage_port(&self, dport: u16) {
                if let Some(work) = maps::$work.get_ptr_mut(0) {
                    // SAFETY: as above.
                    unsafe { (*work).key.dport = dport };
                }
            }
            #[inline(always)]
            fn stage_moved(&self, moved: bool) {
                let Some(work) = maps::$work.get_ptr_mut(0) else {
                    return;
                };
                // SAFETY: as above.
                let work = unsafe { &mut *work };
                if moved {
                    (work.flow.nat_addr, work.flow.nat_port) = (work.key.dst, work.key.dport);
                } else {
                    work.key.dport = work.flow.nat_port;
                    (work.flow.nat_addr, work.flow.nat_port) = (<$addr>::UNSPECIFIED, 0);
                }
            }
            #[inline(always)]
            fn lock(&self) -> Option<u32> {
                let work = maps::$work.get_ptr_mut(0)?;
                // SAFETY: as above.
                let word = lock::word(unsafe { &(*work).key });
                lock::take(word).then_some(word)
            }
            #[inline(always)]
            fn unlock(&self, lock: u32) {
                lock::give_back(lock);
            }
            #[inline(always)]
            fn put(&self, how: Put) -> bool {
                let Some(work) = maps::$work.get_ptr_mut(0) else {
                    return false;
                };
                // SAFETY: as above.
                let work = unsafe { &mut *work };
                let flags = match how {
                    Put::New => BPF_NOEXIST,
                    Put::Over => BPF_ANY,
                };
                maps::$flow
                    .insert(&work.key, &work.flow, flags as u64)
                    .is_ok()
            }
            #[inline(always)]
            fn rival(&self) -> Option<(Row<$addr>, Row<$addr>)> {
                let work = maps::$work.get_ptr_mut(0)?;
                // SAFETY: as above; rows of an array stay.
                unsafe {
                    let there = maps::$flow.get_ptr_mut(&(*work).key)?;
                    Some((Row(&raw mut (*work).flow), Row(there)))
                }
            }
            #[inline(always)]
            fn claim_port(&self, hash: u32, facts: u32) -> u32 {
                $claim_port(hash, facts)
            }
            #[inline(always)]
            fn claim(&self, how: u32) -> u32 {
                $claim(how)
            }
            #[inline(always)]
            fn below(&self, first: u32, slots: u32, id: u32) -> u32 {
                tulle_below(first, slots, id)
            }
            #[inline(always)]
            fn pick(&self, list: u64, how: u64, hash: u32) -> u32 {
                $pick(list, how, hash)
            }
            #[inline(always)]
            fn turn(&self, row: u32) -> Option<u64> {
                let counter = maps::TURNS.get_ptr_mut(row)?;
                // SAFETY: rows of an array stay; programs touch them by atomic operations only.
                Some(unsafe { lock::fetch_add(counter, 1) })
            }
            #[inline(always)]
            fn live(&self, id: u32) -> u64 {
                let Some(row) = maps::$live.get_ptr_mut(id) else {
                    return 0;
                };
                // SAFETY: as above; a whole aligned word. Below 0 it may be for a moment, or until
                // the agent has corrected it.
                unsafe { ptr::read_volatile(row) }
                    .cast_signed()
                    .max(0)
                    .cast_unsigned()
            }
            #[inline(always)]
            fn count_live(&self, id: u32, opened: bool) {
                $count_live(id, opened as u32);
            }
            #[inline(always)]
            fn progress(&self, met: u32, seen: u32) -> Progress {
                if calls() {
                    Progress(tulle_progress(met, seen))
                } else {
                    Progress::of(&self.config.idle, met, seen, now())
                }
            }
            #[inline(always)]
            fn affinity(&self, key: AffinityKey<$addr>) -> Option<Affinity> {
                // SAFETY: the row found is copied at once; another CPU may be
                // writing it, and what is read is checked against the backend's row.
                unsafe { maps::$affin.get(&key).copied() }
            }
            #[inline(always)]
            fn remember_affinity(&self, key: AffinityKey<$addr>, affinity: Affinity) {
                // Best effort: without the row the next flow goes where it may.
                let _ = maps::$affin.insert(&key, &affinity, BPF_ANY as u64);
            }
            #[inline(always)]
            fn source_allowed(&self, service: u32, source: $addr) -> bool {
                let bits = SourceNet::<$addr>::SERVICE_BITS + <$addr>::BITS;
                let key = Key::new(bits, SourceNet::new(service, source));
                maps::$srcs.get(&key).is_some()
            }
            #[inline(always)]
            fn count(&self, service: u32, backend: u32, direction: Direction) {
                if self.config.features & Feature::COUNT_SERVICES == 0 || backend == 0 {
                    return;
                }
                if self.origin.hook == Hook::Xdp {
                    note_count(service, backend);
                } else {
                    let bytes = self.origin.len as u64;
                    add(maps::SVC_STATS.get_ptr_mut(service), direction, bytes);
                    add(maps::$stats.get_ptr_mut(backend), direction, bytes);
                }
            }
            #[inline(always)]
            fn count_flow(&self, service: u32, backend: u32) {
                if self.config.features & Feature::COUNT_SERVICES != 0 {
                    let rows = [
                        maps::SVC_STATS.get_ptr_mut(service),
                        maps::$stats.get_ptr_mut(backend),
                    ];
                    for row in rows.into_iter().flatten() {
                        // SAFETY: the row is this CPU's own.
                        unsafe { (*row).flows += 1 };
                    }
                }
            }
            #[inline(always)]
            fn ports(&self, key: FragmentKey<$addr>) -> Option<FragmentPorts> {
                let work = maps::$work.get_ptr_mut(0)?;
                // SAFETY: as above; the row found is copied at once.
                unsafe {
                    (*work).fragment = key;
                    maps::$frag.get(&(*work).fragment).copied()
                }
            }
            #[inline(always)]
            fn remember_ports(&self, key: FragmentKey<$addr>, ports: FragmentPorts) {
                let Some(work) = maps::$work.get_ptr_mut(0) else {
                    return;
                };
                // SAFETY: as above.
                let work = unsafe { &mut *work };
                work.fragment = key;
                // Best effort: without the row later fragments are dropped by name.
                let _ = maps::$frag.insert(&work.fragment, ports, BPF_ANY as u64);
            }
            #[inline(always)]
            fn pod(&self, addr: &$addr) -> Option<&Via> {
                // SAFETY: as for frontends.
                unsafe { maps::$pods.get(addr) }
            }
            #[inline(always)]
            fn peer(&self, addr: &$addr) -> Option<&Via> {
                let key = Key::new(<$addr>::BITS, *addr);
                maps::$peers.get(&key)
            }
            #[inline(always)]
            fn network(&self, addr: &$addr) -> u32 {
                let bits = maps::$direct.get(&Key::new(<$addr>::BITS, *addr));
                bits.copied().unwrap_or(0)
            }
            #[inline(always)]
            fn flow_opened(&self, h: &Headers<$addr>, addr: $addr, port: u16) {
                if is_watched(EventKind::FlowOpened) {
                    self.origin
                        .emit(EventKind::FlowOpened, Reason::NotOurs, |event| {
                            event.version = <$addr>::VERSION;
                            event.src = h.src.to_16();
                            event.dst = h.dst.to_16();
                            event.sport = h.sport;
                            event.dport = h.dport;
                            event.proto = h.proto;
                            event.backend = addr.to_16();
                            event.backend_port = port;
                        });
                }
            }
        }
    };
}

tables!(
    Ip4,
    WORK_V4,
    FRONT_V4,
    BACK_V4,
    FLOW_V4,
    FRAG_V4,
    PODS_V4,
    PEERS_V4,
    AFFIN_V4,
    SRCS_V4,
    DIRECT_V4,
    BK_STATS4,
    tulle_claim_port4,
    tulle_claim4,
    tulle_pick4,
    LIVE_V4,
    tulle_live4
);
tables!(
    Ip6,
    WORK_V6,
    FRONT_V6,
    BACK_V6,
    FLOW_V6,
    FRAG_V6,
    PODS_V6,
    PEERS_V6,
    AFFIN_V6,
    SRCS_V6,
    DIRECT_V6,
    BK_STATS6,
    tulle_claim_port6,
    tulle_claim6,
    tulle_pick6,
    LIVE_V6,
    tulle_live6
);

impl OverlayTables for Maps {
    #[inline(always)]
    fn config(&self) -> &Config {
        self.config
    }
    #[inline(always)]
    fn node(&self, addr: &Ip4) -> Option<&Node> {
        // SAFETY: as for frontends.
        unsafe { maps::NODES_V4.get(addr) }
    }
    #[inline(always)]
    fn pod4(&self, addr: &Ip4) -> Option<&Via> {
        <Self as Tables<Ip4>>::pod(self, addr)
    }
    #[inline(always)]
    fn pod6(&self, addr: &Ip6) -> Option<&Via> {
        <Self as Tables<Ip6>>::pod(self, addr)
    }
}
