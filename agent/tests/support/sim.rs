//! A kernel made of plain maps that checks every write.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use datapath_common::{Address as _, BackendState, Frontend, FrontendFlags, Ip4, Ip6, Node, Via};
use tulle_agent::plan::{GRACE, MapOp, MapWriter, WriteError};

use super::CAPACITIES;
use super::rows::{BackRow, Key, back_row, key, net, source};
use super::unchecked::Unchecked;

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
    /// What the kernel holds, where somebody else writes too; what is checked is then
    /// what it would hold if nobody did.
    pub real: Option<Box<Unchecked>>,
    /// Whether what the kernel holds must be sound for each frontend that is put.
    pub strict: bool,
}

impl Sim {
    /// A run of the planner begins.
    pub fn begin(&mut self, now: Instant) {
        self.now = Some(now);
        self.restricted.clear();
    }

    /// What somebody else may change, and what is read back.
    pub fn kernel(&self) -> &Self {
        self.real.as_ref().map_or(self, |real| &real.sim)
    }

    /// From now on others write too.
    pub fn share(&mut self) -> &mut Self {
        let rows = self.rows();
        let real = self.real.insert(Box::new(Unchecked::from_rows(&rows)));
        &mut real.sim
    }

    /// A frontend that was just put names, in the kernel, the slots and backends that it should.
    fn check_put(&self, op: &MapOp) {
        let (key, row) = match op {
            MapOp::PutFront4 { key: k, row } => (key(k), row),
            MapOp::PutFront6 { key: k, row } => (key(k), row),
            _ => return,
        };
        let real = self.kernel();
        assert_eq!(real.inside(row), self.inside(row), "{key:?}");
        assert_eq!(real.outside(row), self.outside(row), "{key:?}");
        assert_eq!(real.table(row), self.table(row), "{key:?}");
        assert_eq!(real.out_table(row), self.out_table(row), "{key:?}");
        for id in self.inside(row).into_iter().chain(self.outside(row)) {
            let at = (key.0.is_ipv4(), id);
            assert_eq!(real.backs.get(&at), self.backs.get(&at), "{key:?}");
        }
        if has_ranges(row) {
            let networks = real.sources_of(row.service);
            assert_eq!(networks, self.sources_of(row.service), "{key:?}");
        }
    }

    /// The planner believes that a frontend is not there.
    pub fn miss(&mut self, key: &Key) {
        self.put_front(*key, None);
    }

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
        let lists = |row: &Frontend| (row.slots(), row.len, row.out_start, row.out_len);
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
            let (table, out_table) = (self.table(row), self.out_table(row));
            assert_eq!(
                inside.len()
                    + table.len()
                    + if row.out_start == row.start && row.len > 0 {
                        0
                    } else {
                        outside.len() + out_table.len()
                    },
                all.len(),
                "{key:?} {row:?}: the lists fill the segment"
            );
            for (list, table) in [(&inside, &table), (&outside, &out_table)] {
                let (all, some) = (BTreeSet::from_iter(list), BTreeSet::from_iter(table));
                assert!(
                    table.is_empty() || all == some,
                    "{key:?}: {table:?} of {list:?}"
                );
            }
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

    /// Ids by which new flows of clients inside are given one.
    pub fn table(&self, row: &Frontend) -> Vec<u32> {
        self.list(row.start + row.len, row.table.into())
    }

    /// The same of clients outside.
    pub fn out_table(&self, row: &Frontend) -> Vec<u32> {
        self.list(row.out_start + row.out_len, row.out_table.into())
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
}

fn has_ranges(row: &Frontend) -> bool {
    row.flags & FrontendFlags::SOURCE_RANGES != 0
}

/// All slots that a row names.
pub fn slots(row: &Frontend) -> std::ops::Range<u32> {
    let (start, len) = row.slots();
    start..start + len
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
        if let Some(real) = &mut self.real {
            real.write(op)?;
        }
        if self.strict {
            self.check_put(op);
        }
        self.log.push(op.clone());
        Ok(())
    }
}
