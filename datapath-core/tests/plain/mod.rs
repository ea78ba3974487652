//! Plain memory as packet and tables: the pipeline's second implementation.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};

use datapath_common::{
    Address, Affinity, AffinityKey, Backend, BackendState, Config, Direction, Flow, FlowKey,
    FlowState, FragmentKey, FragmentPorts, Frontend, FrontendKey, Reason, Via, ViaKind,
};
use datapath_core::{
    ETH_LEN, FlowRow, Grant, Headers, Packet, Put, Tables, below, claim, claim_port, holds, pick,
    states::Progress,
};

/// A frame in plain memory.
pub struct Bytes<'a> {
    pub frame: &'a [u8],
    pub gso_size: u32,
}

impl<'a> Bytes<'a> {
    pub fn new(frame: &'a [u8]) -> Self {
        Self { frame, gso_size: 0 }
    }
}

impl Packet for Bytes<'_> {
    fn read<T: bytemuck::Pod>(&self, at: usize) -> Result<T, Reason> {
        self.frame
            .get(at..at + size_of::<T>())
            .map(bytemuck::pod_read_unaligned)
            .ok_or(Reason::Truncated)
    }
    fn length(&self) -> u32 {
        self.frame.len() as u32
    }
    fn gso_size(&self) -> u32 {
        self.gso_size
    }
    fn ethertype(&self) -> u16 {
        self.read(ETH_LEN - 2).map_or(0, u16::from_be)
    }
    fn opaque(&self, value: u64) -> u64 {
        value
    }
    fn is_tagged(&self) -> bool {
        false
    }
}

/// A row that is prepared, with its key.
pub type Staged<A> = (FlowKey<A>, &'static Cell<Flow<A>>);

/// The tables of one family.
pub struct Plain<A: 'static> {
    pub config: Config,
    pub now: Cell<u32>,
    pub grants: Cell<u32>,
    pub fronts: HashMap<FrontendKey<A>, Frontend>,
    pub slots: Vec<u32>,
    pub backends: Vec<Backend<A>>,
    pub flows: RefCell<HashMap<FlowKey<A>, &'static Cell<Flow<A>>>>,
    pub flow_limit: usize,
    pub fragments: RefCell<HashMap<FragmentKey<A>, FragmentPorts>>,
    pub affinities: RefCell<HashMap<AffinityKey<A>, Affinity>>,
    pub sources: HashSet<(u32, A)>,
    /// Bits of `Network` by address.
    pub networks: HashMap<A, u32>,
    /// What was filled last.
    pub staged: Cell<Option<Staged<A>>>,
    /// Whether somebody has the lock.
    pub locked: Cell<bool>,
    /// A row that another CPU writes when one is prepared.
    pub comes: Cell<Option<(FlowKey<A>, Flow<A>)>>,
    /// Frontends whose packets are to ask the flow table.
    pub asking: RefCell<HashSet<FrontendKey<A>>>,
    /// Packets by service, backend and direction.
    pub counts: RefCell<HashMap<(u32, u32, u8), u32>>,
    /// Turns that were taken, by row.
    pub turns: RefCell<Vec<u64>>,
    /// Living flows that are counted, by backend.
    pub live: RefCell<HashMap<u32, u64>>,
    pub pods: HashMap<A, Via>,
    pub peers: Vec<(A, u32, Via)>,
}

impl<A: Address + std::hash::Hash + 'static> Plain<A> {
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: Cell::new(1000),
            grants: Cell::new(u32::MAX),
            fronts: HashMap::new(),
            slots: vec![0],
            backends: vec![Self::nobody()],
            flows: RefCell::default(),
            flow_limit: usize::MAX,
            fragments: RefCell::default(),
            affinities: RefCell::default(),
            sources: HashSet::new(),
            networks: HashMap::new(),
            staged: Cell::new(None),
            locked: Cell::new(false),
            comes: Cell::new(None),
            asking: RefCell::default(),
            counts: RefCell::default(),
            turns: RefCell::new(vec![0; 64]),
            live: RefCell::default(),
            pods: HashMap::new(),
            peers: Vec::new(),
        }
    }

    fn nobody() -> Backend<A> {
        Backend {
            addr: A::UNSPECIFIED,
            port: 0,
            proto: 0,
            state: BackendState::Free as u8,
            generation: 0,
            via: Via::KERNEL,
        }
    }

    /// Adds a service with these backends; returns the first backend's id.
    pub fn service(&mut self, key: FrontendKey<A>, backends: &[(A, u16, Via)], flags: u16) -> u32 {
        let first = self.backends.len() as u32;
        let start = self.slots.len() as u32;
        for (addr, port, via) in backends {
            self.slots.push(self.backends.len() as u32);
            self.backends.push(Backend {
                addr: *addr,
                port: *port,
                proto: key.proto,
                state: BackendState::Active as u8,
                generation: 1,
                via: *via,
            });
        }
        let len = backends.len() as u32;
        let front = Frontend {
            service: start,
            start,
            len,
            out_start: start,
            out_len: len,
            flags,
            ..Frontend::default()
        };
        self.fronts.insert(key, front);
        self.fronts
            .insert(FrontendKey::address(key.addr), Frontend::default());
        first
    }

    /// Writes a row; false if the table is full.
    fn open_flow(&self, key: FlowKey<A>, flow: Flow<A>) -> bool {
        let mut flows = self.flows.borrow_mut();
        if !flows.contains_key(&key) && flows.len() >= self.flow_limit {
            return false;
        }
        flows.insert(key, leak(flow));
        true
    }

    pub fn flow_at(&self, key: FlowKey<A>) -> Option<Flow<A>> {
        self.flows.borrow().get(&key).map(|cell| cell.get())
    }
}

/// A row. Leaked: a test is over before it matters, and handles stay `Copy`.
pub fn leak<A>(flow: Flow<A>) -> &'static Cell<Flow<A>> {
    Box::leak(Box::new(Cell::new(flow)))
}

/// A `via` to a pod of this node.
pub fn local(ifindex: u32) -> Via {
    Via {
        kind: ViaKind::Local as u8,
        ifindex,
        ..Via::KERNEL
    }
}

/// A `via` through the overlay.
pub fn vxlan(node: [u8; 4]) -> Via {
    let node = datapath_common::Ip4::new(node);
    Via {
        kind: ViaKind::Vxlan as u8,
        ifindex: 2,
        node,
        next_hop: node,
        ..Via::KERNEL
    }
}

#[derive(Clone, Copy)]
pub struct Handle<A: 'static>(&'static Cell<Flow<A>>);

impl<A: Copy> FlowRow<A> for Handle<A> {
    fn get(&self) -> Flow<A> {
        self.0.get()
    }
    fn touch(&self, state: FlowState, seen: u32) {
        let mut flow = self.0.get();
        (flow.state, flow.seen) = (state as u8, seen);
        self.0.set(flow);
    }
    fn uncount(&self, state: FlowState) -> u32 {
        let flow = self.0.get();
        if state != FlowState::Closing || flow.counted == 0 {
            return 0;
        }
        self.0.set(Flow { counted: 0, ..flow });
        flow.backend
    }
}

impl<A: Address + std::hash::Hash + 'static> Tables<A> for Plain<A> {
    type Row = Handle<A>;

    fn config(&self) -> &Config {
        &self.config
    }
    fn now(&self) -> u32 {
        self.now.get()
    }
    fn grant(&self, _: Grant) -> bool {
        let left = self.grants.get();
        self.grants.set(left.saturating_sub(1));
        left > 0
    }
    fn frontend(&self, key: &FrontendKey<A>) -> Option<&Frontend> {
        self.fronts.get(key)
    }
    fn ask_flows(&self, key: &FrontendKey<A>) {
        self.asking.borrow_mut().insert(*key);
    }
    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(index as usize).copied()
    }
    fn holds(&self, start: u32, len: u32, id: u32) -> bool {
        holds(self, start, len, id)
    }
    fn backend(&self, id: u32) -> Option<&Backend<A>> {
        self.backends.get(id as usize)
    }
    fn flow(&self, key: FlowKey<A>) -> Option<Handle<A>> {
        self.flows.borrow().get(&key).copied().map(Handle)
    }
    fn stage(&self, fill: impl FnOnce(&mut FlowKey<A>, &mut Flow<A>)) -> bool {
        let unset = A::UNSPECIFIED;
        let mut key = FlowKey {
            src: unset,
            dst: unset,
            sport: 0,
            dport: 0,
            proto: 0,
            direction: 0,
            reserved: 0,
        };
        let mut flow = Flow {
            addr: unset,
            nat_addr: unset,
            port: 0,
            nat_port: 0,
            state: 0,
            hairpin: 0,
            node: 0,
            counted: 0,
            backend: 0,
            generation: 0,
            service: 0,
            opened: 0,
            seen: 0,
        };
        fill(&mut key, &mut flow);
        if let Some((key, flow)) = self.comes.take() {
            self.flows.borrow_mut().insert(key, leak(flow));
        }
        self.staged.set(Some((key, leak(flow))));
        true
    }
    fn stage_port(&self, dport: u16) {
        if let Some((key, flow)) = self.staged.get() {
            self.staged.set(Some((FlowKey { dport, ..key }, flow)));
        }
    }
    fn stage_moved(&self, moved: bool) {
        let Some((mut key, row)) = self.staged.get() else {
            return;
        };
        let mut flow = row.get();
        if moved {
            (flow.nat_addr, flow.nat_port) = (key.dst, key.dport);
        } else {
            key.dport = flow.nat_port;
            (flow.nat_addr, flow.nat_port) = (A::UNSPECIFIED, 0);
        }
        self.staged.set(Some((key, leak(flow))));
    }
    fn lock(&self) -> Option<u32> {
        (!self.locked.replace(true)).then_some(0)
    }
    fn unlock(&self, _: u32) {
        assert!(self.locked.replace(false), "nobody has the lock");
    }
    fn put(&self, how: Put) -> bool {
        self.staged.get().is_some_and(|(key, flow)| {
            let there = self.flow(key).is_some();
            let may = match how {
                Put::New => !there,
                Put::Over => true,
            };
            may && self.open_flow(key, flow.get())
        })
    }
    fn rival(&self) -> Option<(Handle<A>, Handle<A>)> {
        let (key, flow) = self.staged.get()?;
        Some((Handle(flow), self.flow(key)?))
    }
    fn claim_port(&self, hash: u32, facts: u32) -> u32 {
        claim_port(self, hash, facts)
    }
    fn progress(&self, met: u32, seen: u32) -> Progress {
        Progress::of(&self.config().idle, met, seen, self.now())
    }
    fn claim(&self, how: u32) -> u32 {
        claim(self, how)
    }
    fn below(&self, first: u32, slots: u32, id: u32) -> u32 {
        below(self, first, slots, id)
    }
    fn pick(&self, list: u64, how: u64, hash: u32) -> u32 {
        pick(self, list, how, hash)
    }
    fn turn(&self, row: u32) -> Option<u64> {
        let mut turns = self.turns.borrow_mut();
        let turn = turns.get_mut(row as usize)?;
        *turn += 1;
        Some(*turn - 1)
    }
    fn live(&self, id: u32) -> u64 {
        self.live.borrow().get(&id).copied().unwrap_or(0)
    }
    fn count_live(&self, id: u32, opened: bool) {
        if id == 0 {
            return;
        }
        let mut live = self.live.borrow_mut();
        let count = live.entry(id).or_default();
        *count = if opened { *count + 1 } else { *count - 1 };
    }
    fn affinity(&self, key: AffinityKey<A>) -> Option<Affinity> {
        self.affinities.borrow().get(&key).copied()
    }
    fn remember_affinity(&self, key: AffinityKey<A>, affinity: Affinity) {
        self.affinities.borrow_mut().insert(key, affinity);
    }
    fn source_allowed(&self, service: u32, source: A) -> bool {
        self.sources.contains(&(service, source))
    }
    fn ports(&self, key: FragmentKey<A>) -> Option<FragmentPorts> {
        self.fragments.borrow().get(&key).copied()
    }
    fn remember_ports(&self, key: FragmentKey<A>, ports: FragmentPorts) {
        self.fragments.borrow_mut().insert(key, ports);
    }
    fn pod(&self, addr: &A) -> Option<&Via> {
        self.pods.get(addr)
    }
    fn peer(&self, addr: &A) -> Option<&Via> {
        let covers = |net: A, bits: u32| {
            (0..4).all(|i| {
                let bits = bits.saturating_sub(32 * i as u32).min(32);
                let mask = (u64::MAX << (32 - bits)) as u32;
                (net.words()[i] ^ addr.words()[i]) & mask.to_be() == 0
            })
        };
        self.peers
            .iter()
            .filter(|(net, bits, _)| covers(*net, *bits))
            .max_by_key(|(_, bits, _)| *bits)
            .map(|(_, _, via)| via)
    }
    fn count(&self, service: u32, backend: u32, direction: Direction) {
        let mut counts = self.counts.borrow_mut();
        *counts
            .entry((service, backend, direction as u8))
            .or_default() += 1;
    }
    fn count_flow(&self, _: u32, _: u32) {}
    fn network(&self, addr: &A) -> u32 {
        self.networks.get(addr).copied().unwrap_or(0)
    }
    fn flow_opened(&self, _: &Headers<A>, _: A, _: u16) {}
}
