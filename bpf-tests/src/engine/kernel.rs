//! The loaded programs, run through `BPF_PROG_TEST_RUN`.
//!
//! Limits of the test run (Linux 6.18, `net/bpf/test_run.c`): a frame of at
//! least 14 octets, at TC with a whole IP header if it says IP; no VLAN tag beside the frame; a redirect shows as code 7
//! without its target; what is counted tells which redirect it was.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::{Array, HashMap as BpfHash, LpmTrie, PerCpuArray, PerCpuValues, lpm_trie};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use datapath_common::{
    Affinity, AffinityKey, Backend, Config, Counter, Feature, Flow, FlowKey, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, Hook, Ip4, Ip6, Limit, Node, Reason, SourceNet, Traffic,
    Via, counter_index, maps,
};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::tables::{self, Family};
use super::{Change, Counted, Engine, Observed};
use crate::model::{
    AffinityId, AffinityRow, BackendRow, Ctx, FlowId, FlowRow, FragmentId, FragmentRow, FrontendId,
    World,
};
use crate::time::{Aged, tick};

/// Room in each table: small, since all rows are read after each packet.
const ENTRIES: u32 = 1024;
/// Room for what a program may add to a frame.
const GROWTH: usize = 256;
/// Octets of `struct __sk_buff` up to Linux 6.18.
pub(super) const SK_BUFF: usize = 192;

/// The object's bytes: the file that `TULLE_BPF_OBJECT` names, otherwise
/// where the build leaves it.
pub fn object() -> Result<Vec<u8>> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/tulle.bpf.o");
    let path = std::env::var("TULLE_BPF_OBJECT").unwrap_or_else(|_| built.to_owned());
    std::fs::read(&path)
        .with_context(|| format!("read {path}: build it with `cargo xtask build-ebpf`"))
}

/// What the programs write.
#[derive(Default)]
struct Rows {
    flows: HashMap<FlowId, FlowRow>,
    affinities: HashMap<AffinityId, AffinityRow>,
    turns: HashMap<u32, u64>,
    live: HashMap<(u8, u32), i64>,
    fragments: HashMap<FragmentId, FragmentRow>,
    service_traffic: HashMap<u32, Traffic>,
    backend_traffic: HashMap<(u8, u32), Traffic>,
}

/// The programs of one object, loaded once for each configuration.
pub struct Kernel {
    object: Vec<u8>,
    loaded: Vec<(Config, Ebpf)>,
    current: usize,
    /// Rows that the agent would have written, to be taken out again.
    world: World,
    /// Numbers of its service ports, those that are gone too.
    services: BTreeSet<u32>,
    /// Ticks that the model is ahead of the kernel's clock.
    ahead: u32,
    /// Interface that frames come by to XDP; 0 for whatever the kernel takes.
    xdp_device: u32,
}

impl Kernel {
    /// An engine for an object file's bytes. Ties the thread to one CPU, since
    /// the limits count for each.
    pub fn new(object: Vec<u8>) -> Result<Self> {
        let mut cpus = CpuSet::new();
        cpus.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &cpus).context("tie the thread to CPU 0")?;
        let world = World::new(Config::EMPTY);
        Ok(Self {
            object,
            loaded: Vec::new(),
            current: 0,
            world,
            services: BTreeSet::new(),
            ahead: 0,
            xdp_device: 0,
        })
    }

    fn select(&mut self, config: Config) -> Result<()> {
        if let Some(at) = self.loaded.iter().position(|(other, _)| *other == config) {
            self.current = at;
            return Ok(());
        }
        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", &config, true);
        for map in maps::ALL {
            let fixed = [
                maps::COUNTERS,
                maps::LIMITS,
                maps::HOPS,
                maps::EVENTS,
                maps::MONITOR,
            ];
            if !fixed.contains(&map.name) {
                let entries = if map.name == maps::TURNS {
                    2 * ENTRIES
                } else {
                    ENTRIES
                };
                loader.map_max_entries(map.name, entries);
            }
        }
        let mut ebpf = loader.load(&self.object).context("load the object")?;
        crate::load::datapath(&mut ebpf)?;
        self.loaded.push((config, ebpf));
        self.current = self.loaded.len() - 1;
        Ok(())
    }

    /// Has frames come to XDP by an interface, which gets the program of the world that is
    /// loaded: without one its driver has no queue for them.
    pub(super) fn put_at_driver(&mut self, name: &str, index: u32) -> Result<()> {
        let program = self
            .ebpf()?
            .program_mut("tulle_xdp")
            .context("no tulle_xdp")?;
        let xdp = <&mut Xdp>::try_from(program)?;
        xdp.attach(name, XdpMode::Driver)
            .context("attach tulle_xdp")?;
        self.xdp_device = index;
        Ok(())
    }

    pub(super) fn ebpf(&mut self) -> Result<&mut Ebpf> {
        let entry = self.loaded.get_mut(self.current);
        entry
            .map(|(_, ebpf)| ebpf)
            .ok_or_else(|| anyhow!("no world was loaded"))
    }

    /// Removes every row that the engine or the programs wrote.
    fn clear(&mut self) -> Result<()> {
        let world = std::mem::replace(&mut self.world, World::new(Config::EMPTY));
        let services = std::mem::take(&mut self.services);
        let Ok(ebpf) = self.ebpf() else { return Ok(()) };
        clear_family::<Ip4>(ebpf, &world)?;
        clear_family::<Ip6>(ebpf, &world)?;
        let mut nodes: BpfHash<_, Ip4, Node> = table(ebpf, maps::NODES_V4)?;
        for node in world.nodes.keys() {
            nodes.remove(&(*node).into())?;
        }
        let mut slots: Array<_, u32> = table(ebpf, maps::SEGMENTS)?;
        for slot in 0..world.segments.len() as u32 {
            slots.set(slot, 0, 0)?;
        }
        let mut turns: Array<_, u64> = table(ebpf, maps::TURNS)?;
        for row in turn_rows(&services) {
            turns.set(row, 0, 0)?;
        }
        if world.has(Feature::COUNT_SERVICES) {
            for (map, numbers) in counted_rows(&world, &services) {
                let mut rows: PerCpuArray<_, Traffic> = table(ebpf, map)?;
                for number in numbers {
                    let zeros = vec![Traffic::default(); rows.get(&number, 0)?.len()];
                    rows.set(number, PerCpuValues::try_from(zeros)?, 0)?;
                }
            }
        }
        change_limits(ebpf, |_, _| Limit::default())
    }

    /// Reads the traffic of every service port and backend, and of number 0.
    fn read_traffic(&mut self, rows: &mut Rows) -> Result<()> {
        if !self.world.has(Feature::COUNT_SERVICES) {
            return Ok(());
        }
        let wanted = counted_rows(&self.world, &self.services);
        let ebpf = self.ebpf()?;
        for (map, numbers) in wanted {
            let values: PerCpuArray<_, Traffic> = table(ebpf, map)?;
            for number in numbers {
                let sum = values.get(&number, 0)?.iter().fold(Traffic::default(), add);
                if sum == Traffic::default() {
                    continue;
                }
                match map {
                    maps::SVC_STATS => drop(rows.service_traffic.insert(number, sum)),
                    maps::BK_STATS4 => drop(rows.backend_traffic.insert((4, number), sum)),
                    _ => drop(rows.backend_traffic.insert((6, number), sum)),
                }
            }
        }
        Ok(())
    }

    /// Reads the turns of every service port and the living flows of every backend.
    fn read_history(&mut self, rows: &mut Rows) -> Result<()> {
        let backends: Vec<(u8, u32)> = self.world.backends.keys().copied().collect();
        for (version, map) in [(4, maps::LIVE_V4), (6, maps::LIVE_V6)] {
            let live: Array<_, u64> = table(self.ebpf()?, map)?;
            for key in backends.iter().filter(|key| key.0 == version) {
                let count = live.get(&key.1, 0)?.cast_signed();
                if count != 0 {
                    rows.live.insert(*key, count);
                }
            }
        }
        let wanted: Vec<u32> = turn_rows(&self.services).collect();
        let turns: Array<_, u64> = table(self.ebpf()?, maps::TURNS)?;
        for row in wanted {
            let taken = turns.get(&row, 0)?;
            if taken != 0 {
                rows.turns.insert(row, taken);
            }
        }
        Ok(())
    }

    fn counters(&mut self) -> Result<Vec<Counted>> {
        let table: PerCpuArray<_, Counter> = table(self.ebpf()?, maps::COUNTERS)?;
        let mut counted = Vec::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                let values = table.get(&counter_index(hook, *reason), 0)?;
                let sum = values.iter().fold(Counter::default(), |sum, one| Counter {
                    packets: sum.packets + one.packets,
                    bytes: sum.bytes + one.bytes,
                });
                counted.push(Counted {
                    hook,
                    reason: *reason,
                    counter: sum,
                });
            }
        }
        Ok(counted)
    }

    fn execute(&mut self, hook: Hook, frame: &[u8], ctx: &Ctx) -> Result<(i32, Vec<u8>)> {
        ensure!(
            !ctx.vlan,
            "a test run cannot put a VLAN tag beside the frame"
        );
        let name = format!("tulle_{}", hook.name());
        let mut out = vec![0; frame.len() + GROWTH];
        let mut sk_buff = [0_u8; SK_BUFF];
        sk_buff[36..40].copy_from_slice(&ctx.ingress.to_ne_bytes());
        sk_buff[40..44].copy_from_slice(&ctx.ifindex.to_ne_bytes());
        sk_buff[176..180].copy_from_slice(&ctx.gso_size.to_ne_bytes());
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let frame_end = frame.len() as u32;
        let at_device = (self.xdp_device != 0).then_some(self.xdp_device);
        // `struct xdp_md`.
        let md = at_device.map(|index| [0, frame_end, 0, index, 0, 0].map(u32::to_ne_bytes));
        let program = self
            .ebpf()?
            .program(&name)
            .with_context(|| format!("no {name}"))?;
        let result = if hook == Hook::Xdp {
            options.ctx_in = md.as_ref().map(|words| words.as_flattened());
            <&Xdp>::try_from(program)?.test_run(options)
        } else {
            options.ctx_in = Some(&sk_buff);
            <&SchedClassifier>::try_from(program)?.test_run(options)
        };
        let result = result.with_context(|| format!("run {name}, {} octets", frame.len()))?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value.cast_signed(), out))
    }
}

impl Engine for Kernel {
    fn load(&mut self, world: &World) -> Result<()> {
        self.clear()?;
        self.select(world.config)?;
        self.clear()?;
        self.ahead = world.now.wrapping_sub(tick(false)?);
        let ahead = self.ahead;
        let ebpf = self.ebpf()?;
        fill(ebpf, world, ahead)?;
        let (flows, errors) = (
            world.flow_grants.aged(ahead),
            world.error_grants.aged(ahead),
        );
        change_limits(ebpf, |row, _| {
            if row == maps::LIMIT_FLOWS {
                flows
            } else {
                errors
            }
        })?;
        self.world = world.clone();
        self.services = world.frontends.values().map(|row| row.service).collect();
        Ok(())
    }

    fn apply_change(&mut self, change: &Change) -> Result<()> {
        self.world.apply(change);
        let ebpf = self.ebpf()?;
        match change {
            Change::Frontend(id, row) => {
                write_frontend::<Ip4>(ebpf, id, *row)?;
                write_frontend::<Ip6>(ebpf, id, *row)?;
            }
            Change::Slots { start, ids } => {
                let mut slots: Array<_, u32> = table(ebpf, maps::SEGMENTS)?;
                for (at, id) in ids.iter().enumerate() {
                    slots.set(*start + at as u32, id, 0)?;
                }
            }
            Change::Backend(4, id, row) => write_backend::<Ip4>(ebpf, *id, row)?,
            Change::Backend(_, id, row) => write_backend::<Ip6>(ebpf, *id, row)?,
            Change::Ticks(ticks) => {
                age_family::<Ip4>(ebpf, *ticks)?;
                age_family::<Ip6>(ebpf, *ticks)?;
                change_limits(ebpf, |_, old| old.aged(*ticks))?;
                self.ahead = self.ahead.wrapping_add(*ticks);
            }
        }
        Ok(())
    }

    fn takes(&self, hook: Hook, frame: &[u8]) -> bool {
        let header = match frame.get(12..14) {
            Some([0x08, 0x00]) if hook != Hook::Xdp => 20,
            Some([0x86, 0xdd]) if hook != Hook::Xdp => 40,
            _ => 0,
        };
        frame.len() >= 14 + header
    }

    fn run(&mut self, hook: Hook, frame: &[u8], ctx: &Ctx) -> Result<Observed> {
        let before = self.counters()?;
        let earliest = tick(true)?;
        let (ret, frame) = self.execute(hook, frame, ctx)?;
        let latest = tick(false)?;
        let after = self.counters()?;
        let mut counted = Vec::new();
        for (old, new) in before.iter().zip(after) {
            let counter = Counter {
                packets: new.counter.packets - old.counter.packets,
                bytes: new.counter.bytes - old.counter.bytes,
            };
            if counter != Counter::default() {
                counted.push(Counted { counter, ..new });
            }
        }
        let ahead = self.ahead;
        let ebpf = self.ebpf()?;
        let mut rows = Rows::default();
        read_family::<Ip4>(ebpf, ahead, &mut rows)?;
        read_family::<Ip6>(ebpf, ahead, &mut rows)?;
        self.read_history(&mut rows)?;
        self.read_traffic(&mut rows)?;
        let ticks = (earliest.wrapping_add(ahead), latest.wrapping_add(ahead));
        Ok(Observed {
            ret,
            verdict: None,
            frame,
            counted,
            flows: rows.flows,
            affinities: rows.affinities,
            turns: rows.turns,
            live: rows.live,
            fragments: rows.fragments,
            service_traffic: rows.service_traffic,
            backend_traffic: rows.backend_traffic,
            ticks,
        })
    }
}

/// All flow rows, in the model's ticks.
pub(super) fn flow_rows(kernel: &mut Kernel) -> Result<HashMap<FlowId, FlowRow>> {
    let ahead = kernel.ahead;
    let ebpf = kernel.ebpf()?;
    let mut rows = Rows::default();
    read_family::<Ip4>(ebpf, ahead, &mut rows)?;
    read_family::<Ip6>(ebpf, ahead, &mut rows)?;
    Ok(rows.flows)
}

/// Writes every row of a world, whose clock is so many ticks ahead.
pub(crate) fn fill(ebpf: &mut Ebpf, world: &World, ahead: u32) -> Result<()> {
    fill_family::<Ip4>(ebpf, world, ahead)?;
    fill_family::<Ip6>(ebpf, world, ahead)?;
    let mut nodes: BpfHash<_, Ip4, Node> = table(ebpf, maps::NODES_V4)?;
    for (addr, node) in &world.nodes {
        nodes.insert(Ip4::from(*addr), node, 0)?;
    }
    let mut turns: Array<_, u64> = table(ebpf, maps::TURNS)?;
    for (row, taken) in &world.turns {
        turns.set(*row, taken, 0)?;
    }
    let mut slots: Array<_, u32> = table(ebpf, maps::SEGMENTS)?;
    for (slot, id) in world.segments.iter().enumerate() {
        slots.set(slot as u32, id, 0)?;
    }
    Ok(())
}

/// Rows of `tulle_turns` of these service numbers.
fn turn_rows(services: &BTreeSet<u32>) -> impl Iterator<Item = u32> {
    services
        .iter()
        .flat_map(|number| [2 * number, 2 * number + 1])
}

/// Rows that traffic may be counted in, by map.
fn counted_rows(world: &World, services: &BTreeSet<u32>) -> [(&'static str, BTreeSet<u32>); 3] {
    let zero = || std::iter::once(0);
    let services = services.iter().copied();
    let backends = |version: u8| {
        let ids = world.backends.keys().filter(move |key| key.0 == version);
        zero().chain(ids.map(|key| key.1)).collect()
    };
    [
        (maps::SVC_STATS, zero().chain(services).collect()),
        (maps::BK_STATS4, backends(4)),
        (maps::BK_STATS6, backends(6)),
    ]
}

fn add(sum: Traffic, one: &Traffic) -> Traffic {
    Traffic {
        flows: sum.flows + one.flows,
        packets: sum.packets + one.packets,
        bytes: sum.bytes + one.bytes,
        reply_packets: sum.reply_packets + one.reply_packets,
        reply_bytes: sum.reply_bytes + one.reply_bytes,
    }
}

/// Writes that each next hop of XDP has had this tick's packet by the stack.
pub(crate) fn hear_of_next_hops(ebpf: &mut Ebpf) -> Result<()> {
    let now = tick(true)?;
    let mut limits: PerCpuArray<_, Limit> = table(ebpf, maps::LIMITS)?;
    for row in maps::LIMIT_NEXT_HOPS..maps::LIMIT_NEXT_HOPS + maps::NEXT_HOP_ROWS {
        let heard = Limit {
            tick: now,
            ..Limit::default()
        };
        let all = vec![heard; limits.get(&row, 0)?.len()];
        limits.set(row, PerCpuValues::try_from(all)?, 0)?;
    }
    Ok(())
}

/// A map of the object, typed.
pub(crate) fn table<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<T>
where
    T: TryFrom<&'a mut aya::maps::Map>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf
        .map_mut(name)
        .with_context(|| format!("the object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name}"))
}

fn change_limits(ebpf: &mut Ebpf, change: impl Fn(u32, Limit) -> Limit) -> Result<()> {
    let mut limits: PerCpuArray<_, Limit> = table(ebpf, maps::LIMITS)?;
    for row in [maps::LIMIT_FLOWS, maps::LIMIT_ERRORS] {
        let values: Vec<Limit> = limits
            .get(&row, 0)?
            .iter()
            .map(|old| change(row, *old))
            .collect();
        limits.set(row, PerCpuValues::try_from(values)?, 0)?;
    }
    Ok(())
}

/// Functions over one family's maps; each is a plain function twice, since
/// the layouts are plain data for the two families and no others.
macro_rules! per_family {
    ($($(#[$doc:meta])* fn $name:ident<$A:ident>($($arg:ident: $ty:ty),* $(,)?) $body:block)+) => {$(
        $(#[$doc])*
        fn $name<$A: Family>($($arg: $ty),*) -> Result<()>
        where
            FrontendKey<$A>: aya::Pod,
            Backend<$A>: aya::Pod + bytemuck::Pod,
            FlowKey<$A>: aya::Pod,
            Flow<$A>: aya::Pod,
            FragmentKey<$A>: aya::Pod,
            AffinityKey<$A>: aya::Pod,
            SourceNet<$A>: aya::Pod,
        $body
    )+};
}

per_family! {
    fn clear_family<A>(ebpf: &mut Ebpf, world: &World) {
        let mut frontends: BpfHash<_, FrontendKey<A>, Frontend> = table(ebpf, A::FRONTENDS)?;
        for key in world.frontends.keys().filter_map(tables::frontend_key) {
            frontends.remove(&key)?;
        }
        let mut backends: Array<_, Backend<A>> = table(ebpf, A::BACKENDS)?;
        for (version, id) in world.backends.keys() {
            if *version == A::VERSION {
                backends.set(*id, <Backend<A> as bytemuck::Zeroable>::zeroed(), 0)?;
            }
        }
        let mut live: Array<_, u64> = table(ebpf, A::LIVE)?;
        for (version, id) in world.backends.keys() {
            if *version == A::VERSION {
                live.set(*id, 0, 0)?;
            }
        }
        let mut pods: BpfHash<_, A, Via> = table(ebpf, A::PODS)?;
        for key in world.pods.keys().filter_map(|ip| A::from_ip(*ip)) {
            pods.remove(&key)?;
        }
        let mut peers: LpmTrie<_, A, Via> = table(ebpf, A::PEERS)?;
        for (network, length, _) in &world.peers {
            if let Some(addr) = A::from_ip(*network) {
                peers.remove(&lpm_trie::Key::new(u32::from(*length), addr))?;
            }
        }
        let mut direct: LpmTrie<_, A, u32> = table(ebpf, A::DIRECT)?;
        for (network, length, _) in &world.networks {
            if let Some(addr) = A::from_ip(*network) {
                direct.remove(&lpm_trie::Key::new(u32::from(*length), addr))?;
            }
        }
        let mut flows: BpfHash<_, FlowKey<A>, Flow<A>> = table(ebpf, A::FLOWS)?;
        for key in flows.keys().collect::<Result<Vec<_>, _>>()? {
            flows.remove(&key)?;
        }
        let mut sources: LpmTrie<_, SourceNet<A>, u32> = table(ebpf, A::SOURCES)?;
        for (length, net) in world.sources.iter().filter_map(tables::source) {
            sources.remove(&lpm_trie::Key::new(length, net))?;
        }
        let mut affinities: BpfHash<_, AffinityKey<A>, Affinity> = table(ebpf, A::AFFINITIES)?;
        for key in affinities.keys().collect::<Result<Vec<_>, _>>()? {
            affinities.remove(&key)?;
        }
        let mut fragments: BpfHash<_, FragmentKey<A>, FragmentPorts> = table(ebpf, A::FRAGMENTS)?;
        for key in fragments.keys().collect::<Result<Vec<_>, _>>()? {
            fragments.remove(&key)?;
        }
        Ok(())
    }

    fn fill_family<A>(ebpf: &mut Ebpf, world: &World, ahead: u32) {
        for (id, row) in &world.frontends {
            write_frontend::<A>(ebpf, id, Some(*row))?;
        }
        for ((version, id), row) in &world.backends {
            if *version == A::VERSION {
                write_backend::<A>(ebpf, *id, row)?;
            }
        }
        let mut live: Array<_, u64> = table(ebpf, A::LIVE)?;
        for ((version, id), count) in &world.live {
            if *version == A::VERSION {
                live.set(*id, count.cast_unsigned(), 0)?;
            }
        }
        let mut pods: BpfHash<_, A, Via> = table(ebpf, A::PODS)?;
        for (ip, via) in &world.pods {
            if let Some(addr) = A::from_ip(*ip) {
                pods.insert(addr, via, 0)?;
            }
        }
        let mut peers: LpmTrie<_, A, Via> = table(ebpf, A::PEERS)?;
        for (network, length, via) in &world.peers {
            if let Some(addr) = A::from_ip(*network) {
                peers.insert(&lpm_trie::Key::new(u32::from(*length), addr), via, 0)?;
            }
        }
        let mut direct: LpmTrie<_, A, u32> = table(ebpf, A::DIRECT)?;
        for (network, length, bits) in &world.networks {
            if let Some(addr) = A::from_ip(*network) {
                direct.insert(&lpm_trie::Key::new(u32::from(*length), addr), bits, 0)?;
            }
        }
        let mut flows: BpfHash<_, FlowKey<A>, Flow<A>> = table(ebpf, A::FLOWS)?;
        for (key, row) in world.flows.iter().filter_map(|(id, row)| tables::flow::<A>(id, row)) {
            flows.insert(key, row.aged(ahead), 0)?;
        }
        let mut sources: LpmTrie<_, SourceNet<A>, u32> = table(ebpf, A::SOURCES)?;
        for (length, net) in world.sources.iter().filter_map(tables::source) {
            sources.insert(&lpm_trie::Key::new(length, net), 1, 0)?;
        }
        let mut affinities: BpfHash<_, AffinityKey<A>, Affinity> = table(ebpf, A::AFFINITIES)?;
        for (id, row) in &world.affinities {
            if let Some((key, row)) = tables::affinity::<A>(id, row) {
                affinities.insert(key, row.aged(ahead), 0)?;
            }
        }
        let mut fragments: BpfHash<_, FragmentKey<A>, FragmentPorts> = table(ebpf, A::FRAGMENTS)?;
        for (id, row) in &world.fragments {
            if let Some((key, row)) = tables::fragment::<A>(id, *row) {
                fragments.insert(key, row.aged(ahead), 0)?;
            }
        }
        Ok(())
    }

    fn write_frontend<A>(ebpf: &mut Ebpf, id: &FrontendId, row: Option<Frontend>) {
        let Some(key) = tables::frontend_key::<A>(id) else { return Ok(()) };
        let mut frontends: BpfHash<_, FrontendKey<A>, Frontend> = table(ebpf, A::FRONTENDS)?;
        match row {
            Some(row) => frontends.insert(key, row, 0)?,
            None => frontends.remove(&key)?,
        }
        Ok(())
    }

    fn write_backend<A>(ebpf: &mut Ebpf, id: u32, row: &BackendRow) {
        let row: Backend<A> = tables::backend(row)
            .with_context(|| format!("backend {id}: address of the other family"))?;
        let mut backends: Array<_, Backend<A>> = table(ebpf, A::BACKENDS)?;
        Ok(backends.set(id, row, 0)?)
    }

    /// Makes rows older by `ticks`.
    fn age_family<A>(ebpf: &mut Ebpf, ticks: u32) {
        let mut flows: BpfHash<_, FlowKey<A>, Flow<A>> = table(ebpf, A::FLOWS)?;
        for (key, row) in flows.iter().collect::<Result<Vec<_>, _>>()? {
            flows.insert(key, row.aged(ticks), 0)?;
        }
        let mut affinities: BpfHash<_, AffinityKey<A>, Affinity> = table(ebpf, A::AFFINITIES)?;
        for (key, row) in affinities.iter().collect::<Result<Vec<_>, _>>()? {
            affinities.insert(key, row.aged(ticks), 0)?;
        }
        let mut fragments: BpfHash<_, FragmentKey<A>, FragmentPorts> = table(ebpf, A::FRAGMENTS)?;
        for (key, row) in fragments.iter().collect::<Result<Vec<_>, _>>()? {
            fragments.insert(key, row.aged(ticks), 0)?;
        }
        Ok(())
    }

    fn read_family<A>(
        ebpf: &mut Ebpf,
        ahead: u32,
        rows: &mut Rows,
    ) {
        let back = ahead.wrapping_neg();
        let flows: BpfHash<_, FlowKey<A>, Flow<A>> = table(ebpf, A::FLOWS)?;
        for entry in &flows {
            let (key, row) = entry?;
            rows.flows.insert(tables::flow_id(&key)?, tables::flow_row(&row.aged(back))?);
        }
        let affinities: BpfHash<_, AffinityKey<A>, Affinity> = table(ebpf, A::AFFINITIES)?;
        for entry in &affinities {
            let (key, row) = entry?;
            let (id, row) = tables::affinity_back(&key, row.aged(back));
            rows.affinities.insert(id, row);
        }
        let fragments: BpfHash<_, FragmentKey<A>, FragmentPorts> = table(ebpf, A::FRAGMENTS)?;
        for entry in &fragments {
            let (key, row) = entry?;
            let (id, row) = tables::fragment_back(&key, row.aged(back))?;
            rows.fragments.insert(id, row);
        }
        Ok(())
    }
}
