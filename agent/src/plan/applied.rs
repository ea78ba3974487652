//! What the kernel holds, as far as we know: every successful write advances it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use datapath_common::{
    Address, Backend, BackendState, Frontend, FrontendFlags, Ip4, Ip6, Node as NodeRow, PeerKey,
    SourceKey, Via, ViaKind, maps,
};
use ipnet::IpNet;

use super::allocator::{CapacityError, GRACE, Region, SegmentAllocator};
use super::backends::{BackendKey, BackendRow, Backends};
use super::lost::Lost;
use super::ops::{FrontKey, MapOp};
use super::sources::{SourceRange, Sources};
use crate::model::Family;

/// Deleted frontends that are remembered one by one.
const MAX_DELETED: usize = 65_536;

/// Sizes of the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacities {
    /// Entries of `tulle_front_v4` and of `tulle_front_v6`.
    pub frontends: u32,
    /// Entries of `tulle_back_v4` and of `tulle_back_v6`; id 0 is never used.
    pub backends: u32,
    /// Entries of `tulle_segments`.
    pub segments: u32,
    /// Entries of `tulle_srcs_v4` and of `tulle_srcs_v6`.
    pub sources: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        let entries = |name| {
            maps::ALL
                .iter()
                .find(|map| map.name == name)
                .map_or(0, |map| map.default_entries)
        };
        Self {
            frontends: entries(maps::FRONT_V4),
            backends: entries(maps::BACK_V4),
            segments: entries(maps::SEGMENTS),
            sources: entries(maps::SRCS_V4),
        }
    }
}

/// The maps' contents, with the allocators that go with them.
#[derive(Clone, Debug)]
pub struct Applied {
    pub(super) capacities: Capacities,
    pub(super) fronts: BTreeMap<FrontKey, Frontend>,
    /// Frontends whose segment cannot be trusted, with the ids in it that
    /// count as used. Their slots are in `limbo` until all are rewritten.
    pub(super) damaged: BTreeMap<FrontKey, Vec<u32>>,
    pub(super) limbo: Vec<Region>,
    pub(super) v4: Backends,
    pub(super) v6: Backends,
    pub(super) segments: SegmentAllocator,
    pub(super) slots: Vec<u32>,
    pub(super) pods: BTreeMap<IpAddr, Via>,
    pub(super) peers: BTreeMap<IpNet, Via>,
    pub(super) nodes: BTreeMap<Ipv4Addr, NodeRow>,
    pub(super) networks: BTreeMap<IpNet, u32>,
    pub(super) sources: Sources,
    fronts_v4: u32,
    /// Frontends that were deleted while flows through them may live on.
    deleted: BTreeMap<FrontKey, Instant>,
    /// Since when there may be flows of frontends that nobody remembers.
    unknown_flows: Option<Instant>,
    /// Where rows of living flows may be missing.
    pub(super) lost: Lost,
    /// Frontends with connections whose client's port is translated, which their rows,
    /// as they were written here, do not provide for.
    pub(super) moved: BTreeSet<FrontKey>,
}

impl Applied {
    /// Empty maps.
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            fronts: BTreeMap::new(),
            damaged: BTreeMap::new(),
            limbo: Vec::new(),
            v4: Backends::new(Family::V4, capacities.backends),
            v6: Backends::new(Family::V6, capacities.backends),
            segments: SegmentAllocator::new(capacities.segments),
            slots: Vec::new(),
            pods: BTreeMap::new(),
            peers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            networks: BTreeMap::new(),
            sources: Sources::new(capacities.sources),
            fronts_v4: 0,
            deleted: BTreeMap::new(),
            unknown_flows: None,
            lost: Lost::default(),
            moved: BTreeSet::new(),
        }
    }

    /// Rows of `tulle_front_*`, those that mark addresses too.
    pub fn frontends(&self) -> impl Iterator<Item = (&FrontKey, &Frontend)> {
        self.fronts.iter()
    }

    /// How many of these there are of IPv4 and of IPv6.
    pub fn frontend_counts(&self) -> [usize; 2] {
        let v4 = self.fronts_v4 as usize;
        [v4, self.fronts.len().saturating_sub(v4)]
    }

    /// Row of one frontend.
    pub fn frontend(&self, key: &FrontKey) -> Option<&Frontend> {
        self.fronts.get(key)
    }

    /// Backend ids in all slots of a frontend, those for clients inside first.
    /// None for a row that an agent does not write.
    pub fn ids(&self, row: &Frontend) -> &[u32] {
        self.at(region(row))
    }

    /// Backend ids for clients inside.
    pub fn inside(&self, row: &Frontend) -> &[u32] {
        self.at(Region::new(row.start, row.len))
    }

    /// Backend ids for clients outside.
    pub fn outside(&self, row: &Frontend) -> &[u32] {
        self.at(Region::new(row.out_start, row.out_len))
    }

    /// The table behind the ids for clients inside.
    pub fn table(&self, row: &Frontend) -> &[u32] {
        let start = row.start.saturating_add(row.len);
        self.at(Region::new(start, row.table.into()))
    }

    /// The table behind the ids for clients outside.
    pub fn out_table(&self, row: &Frontend) -> &[u32] {
        let start = row.out_start.saturating_add(row.out_len);
        self.at(Region::new(start, row.out_table.into()))
    }

    fn at(&self, region: Option<Region>) -> &[u32] {
        region
            .and_then(|region| self.slots.get(region.slots()))
            .unwrap_or_default()
    }

    /// Backends of a family.
    pub const fn backends(&self, family: Family) -> &Backends {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Rows of `tulle_pods_*`.
    pub const fn pods(&self) -> &BTreeMap<IpAddr, Via> {
        &self.pods
    }

    /// Next hops that rows of `tulle_peers_*` name for this uplink, by node.
    pub fn next_hops(&self, uplink: u32) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
        let ours = |via: &&Via| via.kind == ViaKind::Vxlan as u8 && via.ifindex == uplink;
        let vias = self.peers.values().filter(ours);
        vias.map(|via| (via.node.into(), via.next_hop.into()))
            .collect()
    }

    /// Rows of `tulle_peers_*`.
    pub const fn peers(&self) -> &BTreeMap<IpNet, Via> {
        &self.peers
    }

    /// Rows of `tulle_nodes_v4`.
    pub const fn nodes(&self) -> &BTreeMap<Ipv4Addr, NodeRow> {
        &self.nodes
    }

    /// Rows of `tulle_direct_*`.
    pub const fn networks(&self) -> &BTreeMap<IpNet, u32> {
        &self.networks
    }

    /// Rows of `tulle_srcs_*`: service number and network.
    pub fn sources(&self) -> impl Iterator<Item = (u32, SourceRange)> {
        self.sources.rows()
    }

    /// Segment slots.
    pub const fn segments(&self) -> &SegmentAllocator {
        &self.segments
    }

    pub(super) const fn backends_mut(&mut self, family: Family) -> &mut Backends {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Whether flows may live that an earlier frontend of this key opened.
    pub(super) fn may_have_flows(&self, key: &FrontKey) -> bool {
        self.unknown_flows.is_some() || self.deleted.contains_key(key)
    }

    /// Whether the map of `key` takes one more row.
    pub(super) fn room_for(&self, key: &FrontKey) -> Result<(), CapacityError> {
        let v6 = self.fronts.len() as u32 - self.fronts_v4;
        let (map, rows) = match Family::of(key.addr) {
            Family::V4 => (maps::FRONT_V4, self.fronts_v4),
            Family::V6 => (maps::FRONT_V6, v6),
        };
        let limit = self.capacities.frontends;
        if rows < limit || self.fronts.contains_key(key) {
            return Ok(());
        }
        Err(CapacityError {
            map,
            flag: "--max-frontends",
            limit,
        })
    }

    /// Whether `tulle_turns` has rows for this service number. Ports that are there at once
    /// have room; numbers above those are given out while others' ports are gone, and
    /// nobody has yet seen that nothing is left of them.
    pub(super) fn room_for_turns(&self, service: u32) -> Result<(), CapacityError> {
        let limit = maps::turn_rows(self.capacities.frontends);
        if service < limit / 2 {
            return Ok(());
        }
        Err(CapacityError {
            map: maps::TURNS,
            flag: "--max-frontends",
            limit,
        })
    }

    /// Takes note of a write that the kernel took.
    pub(super) fn advance(&mut self, op: &MapOp, now: Instant) {
        match op {
            MapOp::PutFront4 { key, row } => self.put_front(key.into(), *row, now),
            MapOp::PutFront6 { key, row } => self.put_front(key.into(), *row, now),
            MapOp::DeleteFront4 { key } => self.delete_front(key.into(), now),
            MapOp::DeleteFront6 { key } => self.delete_front(key.into(), now),
            MapOp::PutBackend4 { id, row } => self.v4.put(*id, backend_row(row), now),
            MapOp::PutBackend6 { id, row } => self.v6.put(*id, backend_row(row), now),
            MapOp::WriteSlots { start, ids } => self.write_slots(*start, ids),
            MapOp::PutPod4 { addr, via } => set(&mut self.pods, addr.to_ip(), Some(*via)),
            MapOp::PutPod6 { addr, via } => set(&mut self.pods, addr.to_ip(), Some(*via)),
            MapOp::DeletePod4 { addr } => set(&mut self.pods, addr.to_ip(), None),
            MapOp::DeletePod6 { addr } => set(&mut self.pods, addr.to_ip(), None),
            MapOp::PutPeer4 { key, via } => set_net(&mut self.peers, key, Some(*via)),
            MapOp::PutPeer6 { key, via } => set_net(&mut self.peers, key, Some(*via)),
            MapOp::DeletePeer4 { key } => set_net(&mut self.peers, key, None),
            MapOp::DeletePeer6 { key } => set_net(&mut self.peers, key, None),
            MapOp::PutNode { addr, node } => set(&mut self.nodes, (*addr).into(), Some(*node)),
            MapOp::DeleteNode { addr } => set(&mut self.nodes, (*addr).into(), None),
            MapOp::PutSource4 { key } => self.put_source(key),
            MapOp::PutSource6 { key } => self.put_source(key),
            MapOp::DeleteSource4 { key } => self.delete_source(key),
            MapOp::DeleteSource6 { key } => self.delete_source(key),
            MapOp::PutDirect4 { key, bits } => set_net(&mut self.networks, key, Some(*bits)),
            MapOp::PutDirect6 { key, bits } => set_net(&mut self.networks, key, Some(*bits)),
            MapOp::DeleteDirect4 { key } => set_net(&mut self.networks, key, None),
            MapOp::DeleteDirect6 { key } => set_net(&mut self.networks, key, None),
        }
    }

    pub(super) fn put_source<A: Address>(&mut self, key: &SourceKey<A>) {
        let (service, range) = SourceRange::of_row(key);
        self.sources.put(service, range);
    }

    fn delete_source<A: Address>(&mut self, key: &SourceKey<A>) {
        let (service, range) = SourceRange::of_row(key);
        self.sources.delete(service, &range);
    }

    pub(super) fn put_front(&mut self, key: FrontKey, row: Frontend, now: Instant) {
        if has_ranges(&row) {
            self.sources.use_by(row.service);
        }
        let old = self.fronts.insert(key, row);
        if old.is_none() && key.addr.is_ipv4() {
            self.fronts_v4 += 1;
        }
        if let Some(old) = old.filter(has_ranges) {
            self.sources.unuse_by(old.service);
        }
        let slots = |row: &Frontend| (row.slots(), row.len, row.out_start, row.out_len);
        if old.as_ref().map(slots) == Some(slots(&row)) && !self.damaged.contains_key(&key) {
            return;
        }
        let family = Family::of(key.addr);
        for id in self.ids(&row).to_vec() {
            self.backends_mut(family).use_id(id);
        }
        if let Some(old) = old {
            self.leave_segment(key, &old, now);
        }
    }

    pub(super) fn delete_front(&mut self, key: FrontKey, now: Instant) {
        let Some(old) = self.fronts.remove(&key) else {
            return;
        };
        if key.addr.is_ipv4() {
            self.fronts_v4 -= 1;
        }
        if has_ranges(&old) {
            self.sources.unuse_by(old.service);
        }
        self.leave_segment(key, &old, now);
        if key.is_address() {
            return;
        }
        self.deleted.insert(key, now);
        if self.deleted.len() > MAX_DELETED {
            self.deleted.clear();
            self.expect_unknown_flows(now);
        }
    }

    /// From now on any new frontend may meet flows that are older than it.
    pub(super) fn expect_unknown_flows(&mut self, now: Instant) {
        self.unknown_flows = Some(now);
    }

    /// Takes in which frontends have flows, found by a scan that began at `scan_began`.
    pub(super) fn note_flows(&mut self, live: &BTreeSet<FrontKey>, scan_began: Instant) {
        let seen = |since: &Instant| *since + GRACE <= scan_began;
        self.deleted
            .retain(|key, since| !seen(since) || live.contains(key));
        if self.unknown_flows.as_ref().is_some_and(seen) {
            self.unknown_flows = None;
            let orphans = live.iter().filter(|key| !self.fronts.contains_key(key));
            self.deleted
                .extend(orphans.map(|key| (*key, scan_began)).collect::<Vec<_>>());
        }
    }

    fn leave_segment(&mut self, key: FrontKey, old: &Frontend, now: Instant) {
        let damaged = self.damaged.remove(&key);
        let trusted = damaged.is_none();
        let ids = damaged.unwrap_or_else(|| self.ids(old).to_vec());
        let backends = self.backends_mut(Family::of(key.addr));
        for id in ids {
            backends.unuse_id(id);
        }
        if trusted && let Some(region) = region(old) {
            self.segments.retire(region, now);
        }
        if self.damaged.is_empty() {
            for region in std::mem::take(&mut self.limbo) {
                self.segments.retire(region, now);
            }
        }
    }

    fn write_slots(&mut self, start: u32, ids: &[u32]) {
        let start = start as usize;
        let end = start + ids.len();
        if self.slots.len() < end {
            self.slots.resize(end, 0);
        }
        self.slots[start..end].copy_from_slice(ids);
    }
}

pub(super) fn has_ranges(row: &Frontend) -> bool {
    row.flags & FrontendFlags::SOURCE_RANGES != 0
}

/// First slot and number of slots that a row names; `None` if its two lists are
/// neither the same nor side by side, as no agent writes them.
pub(super) fn layout(row: &Frontend) -> Option<(u32, u32)> {
    let end = |start: u32, len: u32, table: u16| start.checked_add(len)?.checked_add(table.into());
    let middle = end(row.start, row.len, row.table)?;
    if (row.out_start, row.out_len, row.out_table) == (row.start, row.len, row.table) {
        return Some((row.start, middle - row.start));
    }
    let last = end(row.out_start, row.out_len, row.out_table)?;
    (row.out_start == middle).then(|| (row.start, last - row.start))
}

fn region(row: &Frontend) -> Option<Region> {
    layout(row).and_then(|(start, len)| Region::new(start, len))
}

fn set<K: Ord, V>(rows: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => rows.insert(key, value),
        None => rows.remove(&key),
    };
}

fn set_net<A: Address, V>(rows: &mut BTreeMap<IpNet, V>, key: &PeerKey<A>, value: Option<V>) {
    if let Some(net) = net(key) {
        set(rows, net, value);
    }
}

/// The network of a row, unless its prefix length is impossible.
pub(super) fn net<A: Address>(key: &PeerKey<A>) -> Option<IpNet> {
    let len = u8::try_from(key.prefix_len).ok()?;
    IpNet::new(key.addr.to_ip(), len)
        .ok()
        .map(|net| net.trunc())
}

pub(super) fn backend_row<A: Address>(row: &Backend<A>) -> BackendRow {
    BackendRow {
        key: BackendKey {
            addr: row.addr.to_ip(),
            port: row.port,
            proto: row.proto,
        },
        state: match row.state {
            0 => BackendState::Free,
            1 => BackendState::Active,
            // A state of a later version takes no new flows, like a draining one.
            _ => BackendState::Draining,
        },
        generation: row.generation,
        via: row.via,
    }
}

/// Rows read back from the maps, in any order.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// `tulle_front_v4`.
    pub front_v4: Vec<(datapath_common::FrontendKey<Ip4>, Frontend)>,
    /// `tulle_front_v6`.
    pub front_v6: Vec<(datapath_common::FrontendKey<Ip6>, Frontend)>,
    /// `tulle_segments` from slot 0 on; may end where only zeros follow.
    pub segments: Vec<u32>,
    /// `tulle_back_v4` by id; rows that are all zeros may be left out.
    pub back_v4: Vec<(u32, Backend<Ip4>)>,
    /// `tulle_back_v6` by id; rows that are all zeros may be left out.
    pub back_v6: Vec<(u32, Backend<Ip6>)>,
    /// `tulle_pods_v4`.
    pub pods_v4: Vec<(Ip4, Via)>,
    /// `tulle_pods_v6`.
    pub pods_v6: Vec<(Ip6, Via)>,
    /// `tulle_peers_v4`.
    pub peers_v4: Vec<(PeerKey<Ip4>, Via)>,
    /// `tulle_peers_v6`.
    pub peers_v6: Vec<(PeerKey<Ip6>, Via)>,
    /// `tulle_nodes_v4`.
    pub nodes_v4: Vec<(Ip4, NodeRow)>,
    /// Keys of `tulle_srcs_v4`.
    pub srcs_v4: Vec<SourceKey<Ip4>>,
    /// Keys of `tulle_srcs_v6`.
    pub srcs_v6: Vec<SourceKey<Ip6>>,
    /// `tulle_direct_v4`.
    pub direct_v4: Vec<(PeerKey<Ip4>, u32)>,
    /// `tulle_direct_v6`.
    pub direct_v6: Vec<(PeerKey<Ip6>, u32)>,
}

impl Rows {
    /// How many rows these are.
    pub(super) fn count(&self) -> u32 {
        let Self {
            front_v4,
            front_v6,
            segments,
            back_v4,
            back_v6,
            pods_v4,
            pods_v6,
            peers_v4,
            peers_v6,
            nodes_v4,
            srcs_v4,
            srcs_v6,
            direct_v4,
            direct_v6,
        } = self;
        let services = front_v4.len() + front_v6.len() + srcs_v4.len() + srcs_v6.len();
        let backends = segments.len() + back_v4.len() + back_v6.len();
        let ways = pods_v4.len() + pods_v6.len() + peers_v4.len() + peers_v6.len();
        let networks = nodes_v4.len() + direct_v4.len() + direct_v6.len();
        u32::try_from(services + backends + ways + networks).unwrap_or(u32::MAX)
    }

    /// Adds the rows of another piece.
    pub(super) fn append(&mut self, mut more: Self) {
        self.front_v4.append(&mut more.front_v4);
        self.front_v6.append(&mut more.front_v6);
        self.segments.append(&mut more.segments);
        self.back_v4.append(&mut more.back_v4);
        self.back_v6.append(&mut more.back_v6);
        self.pods_v4.append(&mut more.pods_v4);
        self.pods_v6.append(&mut more.pods_v6);
        self.peers_v4.append(&mut more.peers_v4);
        self.peers_v6.append(&mut more.peers_v6);
        self.nodes_v4.append(&mut more.nodes_v4);
        self.srcs_v4.append(&mut more.srcs_v4);
        self.srcs_v6.append(&mut more.srcs_v6);
        self.direct_v4.append(&mut more.direct_v4);
        self.direct_v6.append(&mut more.direct_v6);
    }
}
