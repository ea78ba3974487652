//! A kernel made of plain maps that checks every write, and helpers around it.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod world;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use datapath_common::{
    Address, Backend, BackendState, Frontend, FrontendFlags, FrontendKey, Ip4, Ip6, Mac, Node,
    PeerKey, SourceKey, SourceNet, Via,
};
use ipnet::IpNet;
use tulle_agent::model::Object;
use tulle_agent::plan::{
    Capacities, GRACE, LocalPod, MapOp, MapWriter, NodeFacts, Planner, Rows, WriteError,
};
use tulle_agent::source::{Batch, Change};

pub const CAPACITIES: Capacities = Capacities {
    frontends: 256,
    backends: 128,
    segments: 4096,
    sources: 64,
};

/// Both families' rows in one form: address, port, protocol.
type Key = (IpAddr, u16, u8);

#[derive(Clone, Copy, PartialEq, Debug)]
pub struct BackRow {
    pub key: Key,
    pub state: u8,
    pub generation: u32,
    pub via: Via,
}

/// The maps.
#[derive(Clone, Default)]
pub struct Sim {
    pub fronts: BTreeMap<Key, Frontend>,
    pub backs: BTreeMap<(bool, u32), BackRow>,
    pub slots: BTreeMap<u32, u32>,
    pub pods: BTreeMap<IpAddr, Via>,
    pub peers: BTreeMap<(IpAddr, u32), Via>,
    pub nodes: BTreeMap<IpAddr, Node>,
    /// Service number, prefix length with it, network.
    pub sources: BTreeSet<(u32, u32, IpAddr)>,
    /// Network and prefix length → bits of `Network`.
    pub networks: BTreeMap<(IpAddr, u32), u32>,
    pub log: Vec<MapOp>,
    /// Service numbers whose source ranges a frontend put in this run looks at.
    restricted: BTreeSet<u32>,
    /// Slots and when a frontend last named them.
    left: BTreeMap<u32, Instant>,
    now: Option<Instant>,
    /// Writes that fail: one for each attempt, from the front; then none.
    pub failures: Vec<bool>,
    /// Writes until every further one fails.
    pub dies_after: Option<usize>,
}

impl Sim {
    fn failing(&mut self) -> bool {
        if let Some(left) = &mut self.dies_after {
            if *left == 0 {
                return true;
            }
            *left -= 1;
        }
        self.failures.pop().unwrap_or(false)
    }

    fn put_front(&mut self, key: Key, row: Option<Frontend>) {
        self.restricted
            .extend(row.filter(has_ranges).map(|row| row.service));
        let old = match row {
            Some(row) => self.fronts.insert(key, row),
            None => self.fronts.remove(&key),
        };
        let now = self.now.unwrap();
        let lists = |row: &Frontend| (row.start, row.len, row.out_start, row.out_len);
        if let Some(old) = old.filter(|old| Some(lists(old)) != row.as_ref().map(lists)) {
            self.left.extend(slots(&old).map(|slot| (slot, now)));
        }
    }

    fn put_source(&mut self, row: (u32, u32, IpAddr)) {
        let late = self.restricted.contains(&row.0);
        assert!(!late, "{row:?} comes after a frontend that looks at it");
        self.sources.insert(row);
    }

    fn put_back(&mut self, v4: bool, id: u32, row: BackRow) {
        assert!(id > 0 && id < CAPACITIES.backends, "id {id}");
        let free = BackendState::Free as u8;
        let old = self.backs.get(&(v4, id)).copied();
        let (was_free, generation) = old.map_or((true, 0), |o| (o.state == free, o.generation));
        if was_free && row.state != free {
            assert_eq!(
                row.generation,
                generation + 1,
                "a new backend has a new generation"
            );
        } else {
            assert_eq!(row.generation, generation, "a backend keeps its generation");
        }
        if let Some(old) = old.filter(|_| !was_free && row.state != free) {
            assert_eq!(old.key, row.key, "an id that is not free keeps its backend");
        }
        self.backs.insert((v4, id), row);
    }

    /// Every state, also between two writes, must be one that serves.
    pub fn check(&self) {
        let mut owner: BTreeMap<u32, Key> = BTreeMap::new();
        for (key, row) in &self.fronts {
            let all = slots(row);
            assert!(all.end <= CAPACITIES.segments, "{key:?} {row:?}");
            for slot in all.clone() {
                assert_eq!(owner.insert(slot, *key), None, "slot {slot} has two owners");
            }
            let (inside, outside) = (self.inside(row), self.outside(row));
            assert_eq!(
                inside.len()
                    + if row.out_start == row.start && row.len > 0 {
                        0
                    } else {
                        outside.len()
                    },
                all.len(),
                "{key:?} {row:?}: the lists fill the segment"
            );
            for list in [&inside, &outside] {
                assert!(list.is_sorted_by(|a, b| a < b), "{key:?}: {list:?} ascend");
                for id in list {
                    let back = self.backs.get(&(key.0.is_ipv4(), *id));
                    let back = back.unwrap_or_else(|| panic!("{key:?}: no backend {id}"));
                    assert_eq!(back.state, BackendState::Active as u8, "{key:?}: {back:?}");
                    assert_eq!(back.key.2, key.2, "{key:?}: protocol of {back:?}");
                }
            }
        }
        for (key, row) in self.fronts.iter().filter(|(_, row)| has_ranges(row)) {
            let sources = self.sources_of(row.service);
            assert!(!sources.is_empty(), "{key:?}: nobody may use {row:?}");
        }
        let v4 = |v4| move |row: &&(u32, u32, IpAddr)| row.2.is_ipv4() == v4;
        for family in [true, false] {
            let rows = self.sources.iter().filter(v4(family)).count();
            assert!(rows <= CAPACITIES.sources as usize);
        }
        for v4 in [true, false] {
            let rows = self.fronts.keys().filter(|k| k.0.is_ipv4() == v4).count();
            assert!(rows <= CAPACITIES.frontends as usize);
        }
    }

    fn is_live(&self, slot: u32) -> bool {
        self.fronts.values().any(|row| slots(row).contains(&slot))
    }

    /// Ids for clients inside.
    pub fn inside(&self, row: &Frontend) -> Vec<u32> {
        self.list(row.start, row.len)
    }

    /// Ids for clients outside.
    pub fn outside(&self, row: &Frontend) -> Vec<u32> {
        self.list(row.out_start, row.out_len)
    }

    fn list(&self, start: u32, len: u32) -> Vec<u32> {
        let id = |slot| self.slots.get(&slot).copied().unwrap_or(0);
        (start..start + len).map(id).collect()
    }

    /// Networks that may use a service port.
    pub fn sources_of(&self, service: u32) -> BTreeSet<(u32, IpAddr)> {
        let of = self
            .sources
            .iter()
            .filter(|(number, ..)| *number == service);
        of.map(|(_, len, addr)| (*len, *addr)).collect()
    }

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

    /// What packets meet, without ids, slots, numbers and flags.
    pub fn meaning(&self) -> Meaning {
        let frontends = self
            .fronts
            .iter()
            .map(|(key, row)| {
                let back = |id: u32| self.backs[&(key.0.is_ipv4(), id)];
                let list = |ids: Vec<u32>| {
                    let mut list: Vec<BackRow> = ids.into_iter().map(back).collect();
                    list.sort_by_key(|b| b.key);
                    let words = list.iter().map(|b| format!("{:?} {:?}", b.key, b.via));
                    words.collect()
                };
                let planned = FrontendFlags::FLOWS_DECIDE | FrontendFlags::FLOWS_MAY_BE_LOST;
                let front = FrontMeaning {
                    inside: list(self.inside(row)),
                    outside: list(self.outside(row)),
                    flags: row.flags & !planned,
                    affinity_secs: row.affinity_secs,
                    sources: self.sources_of(row.service),
                };
                (*key, front)
            })
            .collect();
        let active = self
            .backs
            .values()
            .filter(|b| b.state == BackendState::Active as u8);
        Meaning {
            frontends,
            active: active.map(|b| b.key).collect(),
            pods: self.pods.clone(),
            peers: self.peers.clone(),
            nodes: self.nodes.clone(),
            networks: self.networks.clone(),
            source_rows: self.sources.len(),
        }
    }
}

fn has_ranges(row: &Frontend) -> bool {
    row.flags & FrontendFlags::SOURCE_RANGES != 0
}

/// All slots that a row names.
pub fn slots(row: &Frontend) -> std::ops::Range<u32> {
    let (start, len) = row.slots();
    start..start + len
}

#[derive(PartialEq, Debug)]
pub struct FrontMeaning {
    pub inside: Vec<String>,
    pub outside: Vec<String>,
    pub flags: u16,
    pub affinity_secs: u32,
    pub sources: BTreeSet<(u32, IpAddr)>,
}

const fn source_key<A: Address>(service: u32, prefix_len: u32, addr: A) -> SourceKey<A> {
    SourceKey {
        prefix_len,
        net: SourceNet::new(service, addr),
    }
}

/// A row as the trie compares it.
fn source<A: Address>(key: &SourceKey<A>) -> (u32, u32, IpAddr) {
    let addr = match key.prefix_len.checked_sub(SourceNet::<A>::SERVICE_BITS) {
        Some(len) => net(key.net.addr, len).0,
        None => A::UNSPECIFIED.to_ip(),
    };
    (u32::from_be(key.net.service), key.prefix_len, addr)
}

fn net<A: Address>(addr: A, len: u32) -> (IpAddr, u32) {
    let net = IpNet::new(addr.to_ip(), u8::try_from(len).unwrap()).unwrap();
    (net.network(), len)
}

#[derive(PartialEq, Debug)]
pub struct Meaning {
    pub frontends: BTreeMap<Key, FrontMeaning>,
    pub active: BTreeSet<Key>,
    pub pods: BTreeMap<IpAddr, Via>,
    pub peers: BTreeMap<(IpAddr, u32), Via>,
    pub nodes: BTreeMap<IpAddr, Node>,
    pub networks: BTreeMap<(IpAddr, u32), u32>,
    pub source_rows: usize,
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

fn key<A: Address>(key: &FrontendKey<A>) -> Key {
    (key.addr.to_ip(), key.port, key.proto)
}

fn back_row<A: Address>(row: &Backend<A>) -> BackRow {
    BackRow {
        key: (row.addr.to_ip(), row.port, row.proto),
        state: row.state,
        generation: row.generation,
        via: row.via,
    }
}

impl MapWriter for Sim {
    fn write(&mut self, op: &MapOp) -> Result<(), WriteError> {
        if self.failing() {
            return Err(WriteError {
                map: op.map(),
                source: io::Error::other("injected"),
            });
        }
        match op {
            MapOp::PutFront4 { key: k, row } => self.put_front(key::<Ip4>(k), Some(*row)),
            MapOp::PutFront6 { key: k, row } => self.put_front(key::<Ip6>(k), Some(*row)),
            MapOp::DeleteFront4 { key: k } => self.put_front(key(k), None),
            MapOp::DeleteFront6 { key: k } => self.put_front(key(k), None),
            MapOp::PutBackend4 { id, row } => self.put_back(true, *id, back_row(row)),
            MapOp::PutBackend6 { id, row } => self.put_back(false, *id, back_row(row)),
            MapOp::WriteSlots { start, ids } => {
                for (slot, id) in (*start..).zip(ids) {
                    assert!(!self.is_live(slot), "slot {slot} is live");
                    let quiet = self
                        .left
                        .get(&slot)
                        .is_none_or(|at| *at + GRACE <= self.now.unwrap());
                    assert!(quiet, "slot {slot} was live a moment ago");
                    self.slots.insert(slot, *id);
                }
            }
            MapOp::PutPod4 { addr, via } => drop(self.pods.insert(addr.to_ip(), *via)),
            MapOp::PutPod6 { addr, via } => drop(self.pods.insert(addr.to_ip(), *via)),
            MapOp::DeletePod4 { addr } => drop(self.pods.remove(&addr.to_ip())),
            MapOp::DeletePod6 { addr } => drop(self.pods.remove(&addr.to_ip())),
            MapOp::PutPeer4 { key, via } => {
                self.peers.insert(net(key.addr, key.prefix_len), *via);
            }
            MapOp::PutPeer6 { key, via } => {
                self.peers.insert(net(key.addr, key.prefix_len), *via);
            }
            MapOp::DeletePeer4 { key } => {
                self.peers.remove(&net(key.addr, key.prefix_len));
            }
            MapOp::DeletePeer6 { key } => {
                self.peers.remove(&net(key.addr, key.prefix_len));
            }
            MapOp::PutNode { addr, node } => drop(self.nodes.insert(addr.to_ip(), *node)),
            MapOp::DeleteNode { addr } => drop(self.nodes.remove(&addr.to_ip())),
            MapOp::PutSource4 { key } => self.put_source(source(key)),
            MapOp::PutSource6 { key } => self.put_source(source(key)),
            MapOp::DeleteSource4 { key } => drop(self.sources.remove(&source(key))),
            MapOp::DeleteSource6 { key } => drop(self.sources.remove(&source(key))),
            MapOp::PutDirect4 { key, bits } => {
                self.networks.insert(net(key.addr, key.prefix_len), *bits);
            }
            MapOp::PutDirect6 { key, bits } => {
                self.networks.insert(net(key.addr, key.prefix_len), *bits);
            }
            MapOp::DeleteDirect4 { key } => {
                self.networks.remove(&net(key.addr, key.prefix_len));
            }
            MapOp::DeleteDirect6 { key } => {
                self.networks.remove(&net(key.addr, key.prefix_len));
            }
        }
        self.check();
        self.log.push(op.clone());
        Ok(())
    }
}

/// Time that stands still unless told otherwise.
pub struct Clock(Cell<Instant>);

impl Clock {
    pub fn new() -> Self {
        Self(Cell::new(Instant::now()))
    }
    pub fn now(&self) -> Instant {
        self.0.get()
    }
    pub fn advance(&self, by: Duration) {
        self.0.set(self.0.get() + by);
    }
}

pub fn run(planner: &mut Planner, sim: &mut Sim, clock: &Clock) -> tulle_agent::plan::Outcome {
    sim.now = Some(clock.now());
    sim.restricted.clear();
    planner.run(sim, || clock.now())
}

pub fn batch(changes: Vec<Change>) -> Batch {
    Batch {
        changes,
        warnings: [].into(),
        noticed: Instant::now(),
        noticed_at: std::time::SystemTime::now(),
    }
}

pub fn apply(objects: impl IntoIterator<Item = Object>) -> Vec<Change> {
    objects.into_iter().map(Change::Apply).collect()
}

/// Node `n0` at 192.168.0.1 with pods 10.244.0.0/24; its neighbours are on one link.
pub fn facts(local: &[&str]) -> NodeFacts {
    let pod = |i: usize| LocalPod {
        ifindex: 10 + i as u32,
        pod_mac: Mac::new([2, 0, 0, 0, 1, i as u8]),
        host_mac: Mac::new([2, 0, 0, 0, 2, i as u8]),
    };
    NodeFacts {
        name: "n0".to_owned(),
        uplink_ifindex: 2,
        node_ip4: Some([192, 168, 0, 1].into()),
        node_ip6: None,
        vtep_mac: Mac::new([0x0a, 0x58, 192, 168, 0, 1]),
        local_pods: local
            .iter()
            .enumerate()
            .map(|(i, addr)| (addr.parse().unwrap(), pod(i)))
            .collect(),
        next_hops: (1..=9)
            .map(|i| ([192, 168, 0, i].into(), [192, 168, 0, i].into()))
            .collect(),
        own_addresses: [[192, 168, 0, 1].into()].into(),
        direct: BTreeSet::new(),
        services: BTreeSet::new(),
        overlay: true,
    }
}

/// A kernel that starts with any rows and checks nothing by itself.
pub struct Unchecked {
    pub sim: Sim,
}

impl Unchecked {
    pub fn from_rows(rows: &Rows) -> Self {
        let mut sim = Sim::default();
        sim.fronts
            .extend(rows.front_v4.iter().map(|(k, row)| (key(k), *row)));
        sim.fronts
            .extend(rows.front_v6.iter().map(|(k, row)| (key(k), *row)));
        sim.backs.extend(
            rows.back_v4
                .iter()
                .map(|(id, row)| ((true, *id), back_row(row))),
        );
        sim.backs.extend(
            rows.back_v6
                .iter()
                .map(|(id, row)| ((false, *id), back_row(row))),
        );
        sim.slots.extend((0..).zip(rows.segments.iter().copied()));
        sim.pods
            .extend(rows.pods_v4.iter().map(|(addr, via)| (addr.to_ip(), *via)));
        sim.pods
            .extend(rows.pods_v6.iter().map(|(addr, via)| (addr.to_ip(), *via)));
        let peers = rows
            .peers_v4
            .iter()
            .map(|(k, via)| (net(k.addr, k.prefix_len), *via));
        sim.peers.extend(peers);
        let peers = rows
            .peers_v6
            .iter()
            .map(|(k, via)| (net(k.addr, k.prefix_len), *via));
        sim.peers.extend(peers);
        sim.nodes.extend(
            rows.nodes_v4
                .iter()
                .map(|(addr, node)| (addr.to_ip(), *node)),
        );
        sim.sources.extend(rows.srcs_v4.iter().map(source));
        sim.sources.extend(rows.srcs_v6.iter().map(source));
        let v4 = rows.direct_v4.iter();
        sim.networks
            .extend(v4.map(|(k, bits)| (net(k.addr, k.prefix_len), *bits)));
        let v6 = rows.direct_v6.iter();
        sim.networks
            .extend(v6.map(|(k, bits)| (net(k.addr, k.prefix_len), *bits)));
        Self { sim }
    }
}

impl MapWriter for Unchecked {
    fn write(&mut self, op: &MapOp) -> Result<(), WriteError> {
        let sim = &mut self.sim;
        match op {
            MapOp::PutFront4 { key: k, row } => drop(sim.fronts.insert(key(k), *row)),
            MapOp::PutFront6 { key: k, row } => drop(sim.fronts.insert(key(k), *row)),
            MapOp::DeleteFront4 { key: k } => drop(sim.fronts.remove(&key(k))),
            MapOp::DeleteFront6 { key: k } => drop(sim.fronts.remove(&key(k))),
            MapOp::PutBackend4 { id, row } => drop(sim.backs.insert((true, *id), back_row(row))),
            MapOp::PutBackend6 { id, row } => drop(sim.backs.insert((false, *id), back_row(row))),
            MapOp::WriteSlots { start, ids } => {
                sim.slots.extend((*start..).zip(ids.iter().copied()));
            }
            MapOp::PutSource4 { key } => drop(sim.sources.insert(source(key))),
            MapOp::PutSource6 { key } => drop(sim.sources.insert(source(key))),
            MapOp::DeleteSource4 { key } => drop(sim.sources.remove(&source(key))),
            MapOp::DeleteSource6 { key } => drop(sim.sources.remove(&source(key))),
            MapOp::PutDirect4 { key, bits } => {
                sim.networks.insert(net(key.addr, key.prefix_len), *bits);
            }
            MapOp::DeleteDirect4 { key } => {
                sim.networks.remove(&net(key.addr, key.prefix_len));
            }
            MapOp::PutDirect6 { key, bits } => {
                sim.networks.insert(net(key.addr, key.prefix_len), *bits);
            }
            MapOp::DeleteDirect6 { key } => {
                sim.networks.remove(&net(key.addr, key.prefix_len));
            }
            _ => {}
        }
        Ok(())
    }
}
