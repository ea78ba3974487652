//! Rows read back against what was written: what differs is believed and queued, so that the next
//! run writes it in the ordinary order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;
use std::time::Instant;

use datapath_common::{
    Address, Backend, BackendState, Frontend, FrontendFlags, FrontendKey, PeerKey, Scope, SourceKey,
};

use super::{Planner, Retry};
use crate::model::Family;
use crate::plan::applied::{Rows, backend_row, net};
use crate::plan::difference::{Difference, How, Table};
use crate::plan::doubt::is_as_written;
use crate::plan::ops::{FrontKey, MapOp};
use crate::plan::outcome::Unit;
use crate::plan::sources::SourceRange;

impl Planner {
    /// Compares rows that are in `table` now. Tells what is changed or foreign, and how many
    /// of the rows are the plan's.
    pub(in crate::plan) fn compare(
        &mut self,
        table: Table,
        rows: &Rows,
        now: Instant,
        found: &mut Vec<Difference>,
    ) -> usize {
        let applied = &mut self.applied;
        let (known, news) = match table {
            Table::NodesV4 => {
                let rows = rows.nodes_v4.iter().map(|(k, v)| ((*k).into(), *v));
                take_in(&mut applied.nodes, rows, Unit::Node)
            }
            Table::PodsV4 => {
                let rows = rows.pods_v4.iter().map(|(k, v)| (k.to_ip(), *v));
                take_in(&mut applied.pods, rows, Unit::Pod)
            }
            Table::PodsV6 => {
                let rows = rows.pods_v6.iter().map(|(k, v)| (k.to_ip(), *v));
                take_in(&mut applied.pods, rows, Unit::Pod)
            }
            Table::PeersV4 => take_in(&mut applied.peers, nets(&rows.peers_v4), Unit::Peer),
            Table::PeersV6 => take_in(&mut applied.peers, nets(&rows.peers_v6), Unit::Peer),
            Table::DirectV4 => take_in(&mut applied.networks, nets(&rows.direct_v4), Unit::Network),
            Table::DirectV6 => take_in(&mut applied.networks, nets(&rows.direct_v6), Unit::Network),
            Table::BackV4 => (0, self.compare_backends(Family::V4, &rows.back_v4)),
            Table::BackV6 => (0, self.compare_backends(Family::V6, &rows.back_v6)),
            Table::SrcsV4 => self.compare_sources(&rows.srcs_v4),
            Table::SrcsV6 => self.compare_sources(&rows.srcs_v6),
            Table::FrontV4 => {
                let delete = |key| MapOp::DeleteFront4 { key };
                self.compare_fronts(&rows.front_v4, delete, now)
            }
            Table::FrontV6 => {
                let delete = |key| MapOp::DeleteFront6 { key };
                self.compare_fronts(&rows.front_v6, delete, now)
            }
            // Those are compared by `compare_slots`.
            Table::Segments => (0, Vec::new()),
        };
        for (unit, how) in news {
            self.doubt(table, unit, how, found);
        }
        known
    }

    /// Asks for what puts a row right, and tells of it.
    fn doubt(&mut self, table: Table, unit: Unit, how: How, found: &mut Vec<Difference>) {
        // Written at once, however long a former failure would have it wait.
        self.pending.insert(unit, Retry::default());
        found.push(Difference { table, unit, how });
    }

    fn compare_backends<A: Address>(
        &mut self,
        family: Family,
        rows: &[(u32, Backend<A>)],
    ) -> Vec<(Unit, How)> {
        let backends = self.applied.backends_mut(family);
        let (Some((first, _)), Some((last, _))) = (rows.first(), rows.last()) else {
            return Vec::new();
        };
        let left = backends.left_generations(*first, *last);
        let mut news = Vec::new();
        // Ids that were never given out are read by nobody.
        let given = 1..backends.end();
        for (id, row) in rows.iter().filter(|(id, _)| given.contains(id)) {
            let found = backend_row(row);
            let generation = left.get(id).copied().unwrap_or(0);
            let (as_written, how) = if let Some(written) = backends.row(*id) {
                (found == written, How::Changed)
            } else {
                let free = found.state == BackendState::Free;
                (free && found.generation == generation, How::Foreign)
            };
            // One that could not be put right yet was told of before.
            if !as_written && backends.doubt(*id, generation) {
                news.push((Unit::Backend(family, *id), how));
            }
        }
        news
    }

    fn compare_sources<A: Address>(&mut self, rows: &[SourceKey<A>]) -> (usize, Vec<(Unit, How)>) {
        let sources = &mut self.applied.sources;
        let (mut known, mut news) = (0, Vec::new());
        for (service, range) in rows.iter().map(SourceRange::of_row) {
            if sources.has(service, &range) {
                known += 1;
            } else {
                sources.put(service, range);
                news.push((Unit::Sources(service), How::Foreign));
            }
        }
        (known, news)
    }

    fn compare_fronts<A: Address>(
        &mut self,
        rows: &[(FrontendKey<A>, Frontend)],
        delete: impl Fn(FrontendKey<A>) -> MapOp,
        now: Instant,
    ) -> (usize, Vec<(Unit, How)>) {
        let (mut known, mut news) = (0, Vec::new());
        for (row_key, row) in rows {
            let key = FrontKey::from(row_key);
            let unit = Unit::Frontend(key);
            if row_key.scope != Scope::Any as u8 {
                // The plan has no word for it.
                self.strays.push(delete(*row_key));
                news.push((unit, How::Foreign));
                continue;
            }
            let how = match self.applied.fronts.get(&key) {
                Some(written) => {
                    known += 1;
                    if is_as_written(written, row) {
                        continue;
                    }
                    How::Changed
                }
                None => How::Foreign,
            };
            self.applied.find_front(key, Some(*row), now);
            news.push((unit, how));
        }
        (known, news)
    }

    /// Compares slots from `first` on.
    pub(in crate::plan) fn compare_slots(
        &mut self,
        first: u32,
        slots: &[u32],
        found: &mut Vec<Difference>,
    ) {
        for key in self.applied.find_slots(first, slots) {
            let unit = Unit::Frontend(key);
            self.doubt(Table::Segments, unit, How::Changed, found);
        }
    }

    /// How many slots there are to compare from `first` on: those that were ever written.
    pub(in crate::plan) fn slots_after(&self, first: u32) -> u32 {
        (self.applied.slots.len() as u32).saturating_sub(first)
    }

    /// Whether the rows of a table after these are none that were ever written.
    pub(in crate::plan) fn is_beyond(&self, table: Table, rows: &Rows) -> bool {
        let (family, last) = match table {
            Table::BackV4 => (Family::V4, rows.back_v4.last().map(|(id, _)| *id)),
            Table::BackV6 => (Family::V6, rows.back_v6.last().map(|(id, _)| *id)),
            _ => return false,
        };
        last.is_some_and(|id| id + 1 >= self.applied.backends(family).end())
    }

    /// Rows that a table has, as far as that can be missed.
    pub(in crate::plan) fn expected(&self, table: Table) -> Option<usize> {
        let applied = &self.applied;
        let [front_v4, front_v6] = applied.frontend_counts();
        let v4 = |addr: IpAddr| addr.is_ipv4();
        let pods = |is: bool| applied.pods.keys().filter(|k| v4(**k) == is).count();
        let peers = |is: bool| applied.peers.keys().filter(|k| v4(k.addr()) == is).count();
        let direct = |is: bool| {
            let networks = applied.networks.keys();
            networks.filter(|k| v4(k.addr()) == is).count()
        };
        Some(match table {
            Table::NodesV4 => applied.nodes.len(),
            Table::PodsV4 => pods(true),
            Table::PodsV6 => pods(false),
            Table::PeersV4 => peers(true),
            Table::PeersV6 => peers(false),
            Table::DirectV4 => direct(true),
            Table::DirectV6 => direct(false),
            Table::SrcsV4 => applied.sources.count(Family::V4),
            Table::SrcsV6 => applied.sources.count(Family::V6),
            Table::FrontV4 => front_v4,
            Table::FrontV6 => front_v6,
            Table::BackV4 | Table::BackV6 | Table::Segments => return None,
        })
    }

    /// Tells which rows of a small table are missing among all that it has.
    pub(in crate::plan) fn miss(&mut self, table: Table, all: &Rows, found: &mut Vec<Difference>) {
        let applied = &mut self.applied;
        let is_v4 = table.family() == Some(Family::V4);
        let ours = |addr: &IpAddr| addr.is_ipv4() == is_v4;
        let ours_of = |net: &ipnet::IpNet| net.addr().is_ipv4() == is_v4;
        let missing: Vec<Unit> = match table {
            Table::NodesV4 => {
                let there = all.nodes_v4.iter().map(|(k, _)| (*k).into());
                let any = |_: &Ipv4Addr| true;
                take_out(&mut applied.nodes, there, any, Unit::Node)
            }
            Table::PodsV4 => {
                let there = all.pods_v4.iter().map(|(k, _)| k.to_ip());
                take_out(&mut applied.pods, there, ours, Unit::Pod)
            }
            Table::PodsV6 => {
                let there = all.pods_v6.iter().map(|(k, _)| k.to_ip());
                take_out(&mut applied.pods, there, ours, Unit::Pod)
            }
            Table::PeersV4 => {
                let there = nets(&all.peers_v4).map(|(net, _)| net);
                take_out(&mut applied.peers, there, ours_of, Unit::Peer)
            }
            Table::PeersV6 => {
                let there = nets(&all.peers_v6).map(|(net, _)| net);
                take_out(&mut applied.peers, there, ours_of, Unit::Peer)
            }
            Table::DirectV4 => {
                let there = nets(&all.direct_v4).map(|(net, _)| net);
                take_out(&mut applied.networks, there, ours_of, Unit::Network)
            }
            Table::DirectV6 => {
                let there = nets(&all.direct_v6).map(|(net, _)| net);
                take_out(&mut applied.networks, there, ours_of, Unit::Network)
            }
            Table::SrcsV4 => self.miss_sources(&all.srcs_v4),
            Table::SrcsV6 => self.miss_sources(&all.srcs_v6),
            // Asked for one by one, or never missing.
            Table::FrontV4 | Table::FrontV6 | Table::BackV4 | Table::BackV6 | Table::Segments => {
                Vec::new()
            }
        };
        for unit in missing {
            self.doubt(table, unit, How::Missing, found);
        }
    }

    /// Networks that are missing are written with a frontend that looks at them.
    fn miss_sources<A: Address>(&mut self, all: &[SourceKey<A>]) -> Vec<Unit> {
        let there: BTreeSet<_> = all.iter().map(SourceRange::of_row).collect();
        let is_v4 = A::VERSION == 4;
        let sources = &mut self.applied.sources;
        let ours = sources
            .rows()
            .filter(|(_, range)| range.addr.is_ipv4() == is_v4);
        let missing: Vec<_> = ours.filter(|row| !there.contains(row)).collect();
        let mut readers: BTreeMap<u32, FrontKey> = BTreeMap::new();
        if !missing.is_empty() {
            let looks = |row: &Frontend| row.flags & FrontendFlags::SOURCE_RANGES != 0;
            let fronts = self
                .applied
                .fronts
                .iter()
                .filter(|(key, row)| key.addr.is_ipv4() == is_v4 && looks(row));
            readers.extend(fronts.map(|(key, row)| (row.service, *key)));
        }
        let mut units = Vec::new();
        for (service, range) in missing {
            self.applied.sources.delete(service, &range);
            let reader = readers.get(&service).map(|key| Unit::Frontend(*key));
            units.push(reader.unwrap_or(Unit::Sources(service)));
        }
        units
    }

    /// The next frontends of a family that were written.
    pub(in crate::plan) fn frontends_after(
        &self,
        family: Family,
        after: Option<FrontKey>,
        count: usize,
    ) -> Vec<FrontKey> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let fronts = self.applied.fronts.range((from, Bound::Unbounded));
        let ours = fronts.map(|(key, _)| *key);
        let ours = ours.skip_while(|key| Family::of(key.addr) != family);
        let ours = ours.take_while(|key| Family::of(key.addr) == family);
        // An address and its ports together: a mark that is written before the ports are known to
        // be missing would have their packets refused.
        let mut taken: Vec<FrontKey> = Vec::new();
        for key in ours {
            if taken.len() >= count && taken.last().is_none_or(|last| last.addr != key.addr) {
                break;
            }
            taken.push(key);
        }
        taken
    }

    /// A frontend that was written is not there.
    pub(in crate::plan) fn miss_frontend(
        &mut self,
        table: Table,
        key: FrontKey,
        now: Instant,
        found: &mut Vec<Difference>,
    ) {
        self.applied.find_front(key, None, now);
        self.doubt(table, Unit::Frontend(key), How::Missing, found);
    }

    /// Whether this is still to be written.
    pub fn is_pending(&self, unit: &Unit) -> bool {
        self.pending.contains_key(unit)
    }
}

fn nets<A: Address, V: Copy>(rows: &[(PeerKey<A>, V)]) -> impl Iterator<Item = (ipnet::IpNet, V)> {
    rows.iter()
        .filter_map(|(key, value)| Some((net(key)?, *value)))
}

/// Believes rows that were read. Gives how many were known, and what is news.
fn take_in<K: Ord + Copy, V: Copy + PartialEq>(
    held: &mut BTreeMap<K, V>,
    rows: impl Iterator<Item = (K, V)>,
    unit: impl Fn(K) -> Unit,
) -> (usize, Vec<(Unit, How)>) {
    let (mut known, mut news) = (0, Vec::new());
    for (key, value) in rows {
        let before = held.get(&key).copied();
        known += usize::from(before.is_some());
        if before == Some(value) {
            continue;
        }
        held.insert(key, value);
        let how = before.map_or(How::Foreign, |_| How::Changed);
        news.push((unit(key), how));
    }
    (known, news)
}

/// Believes that no other rows of these are there.
fn take_out<K: Ord + Copy, V>(
    held: &mut BTreeMap<K, V>,
    there: impl Iterator<Item = K>,
    ours: impl Fn(&K) -> bool,
    unit: impl Fn(K) -> Unit,
) -> Vec<Unit> {
    let there: BTreeSet<K> = there.collect();
    let gone = held.extract_if(.., |key, _| ours(key) && !there.contains(key));
    gone.map(|(key, _)| unit(key)).collect()
}
