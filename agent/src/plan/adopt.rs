//! After a restart: the maps' rows → [`Applied`]. Nothing in the rows is
//! trusted; what is inconsistent is marked so that the ordinary diff rewrites it.

use std::collections::BTreeMap;
use std::time::Instant;

use datapath_common::{Address, Backend, BackendState, Frontend, Scope};

use super::allocator::Region;
use super::applied::{Applied, Capacities, Rows, backend_row, layout, net};
use super::backends::Backends;
use super::ops::FrontKey;
use crate::model::Family;

impl Applied {
    /// Rebuilds what a former agent had applied. A frontend whose segment
    /// overlaps another's, ends outside the map, whose two lists are not side by
    /// side, or that names a backend that is not active, is kept as it is and
    /// rewritten by the next plan. Slots of no
    /// frontend are free at once: no packet is under way for as long as a process starts.
    pub fn from_rows(capacities: Capacities, rows: &Rows, now: Instant) -> Self {
        let mut applied = Self::new(capacities);
        adopt_backends(&mut applied.v4, &rows.back_v4, now);
        adopt_backends(&mut applied.v6, &rows.back_v6, now);
        let slots = rows.segments.len().min(capacities.segments as usize);
        applied.slots = rows.segments[..slots].to_vec();
        let mut fronts: BTreeMap<FrontKey, Frontend> = BTreeMap::new();
        let any = Scope::Any as u8;
        let v4 = rows.front_v4.iter().filter(|(k, _)| k.scope == any);
        let v6 = rows.front_v6.iter().filter(|(k, _)| k.scope == any);
        fronts.extend(v4.map(|(key, row)| (FrontKey::from(key), *row)));
        fronts.extend(v6.map(|(key, row)| (FrontKey::from(key), *row)));
        let suspect: Vec<FrontKey> = fronts
            .iter()
            .filter(|(k, row)| !applied.own_segment(k, row))
            .map(|(k, _)| *k)
            .collect();
        for key in suspect {
            let Some(row) = fronts.remove(&key) else {
                continue;
            };
            applied.adopt_damaged(key, row, now);
        }
        for (key, row) in fronts {
            applied.put_front(key, row, now);
        }
        if !applied.fronts.is_empty() || applied.v4.any_used() || applied.v6.any_used() {
            applied.expect_unknown_flows(now);
        }
        let pods = rows.pods_v4.iter().map(|(addr, via)| (addr.to_ip(), *via));
        applied.pods = pods.collect();
        applied
            .pods
            .extend(rows.pods_v6.iter().map(|(addr, via)| (addr.to_ip(), *via)));
        applied.peers = rows
            .peers_v4
            .iter()
            .filter_map(|(k, v)| Some((net(k)?, *v)))
            .collect();
        applied.peers.extend(
            rows.peers_v6
                .iter()
                .filter_map(|(k, v)| Some((net(k)?, *v))),
        );
        applied.nodes = rows
            .nodes_v4
            .iter()
            .map(|(addr, node)| ((*addr).into(), *node))
            .collect();
        let v4 = rows.direct_v4.iter();
        let v6 = rows.direct_v6.iter();
        applied.networks = v4.filter_map(|(k, v)| Some((net(k)?, *v))).collect();
        applied
            .networks
            .extend(v6.filter_map(|(k, v)| Some((net(k)?, *v))));
        for key in &rows.srcs_v4 {
            applied.put_source(key);
        }
        for key in &rows.srcs_v6 {
            applied.put_source(key);
        }
        for service in applied.sources.services().collect::<Vec<_>>() {
            applied.sources.ask(service);
        }
        applied
    }

    /// Takes the slots out of the free ones if all of both lists is sound.
    pub(super) fn own_segment(&mut self, key: &FrontKey, row: &Frontend) -> bool {
        let Some((start, len)) = layout(row) else {
            return false;
        };
        let Some(region) = Region::new(start, len) else {
            return true;
        };
        let backends = self.backends(Family::of(key.addr));
        let active = |id: &u32| {
            backends
                .row(*id)
                .is_some_and(|row| row.state == BackendState::Active)
        };
        let ids = self.ids(row);
        let sound = ids.len() == region.len as usize && ids.iter().all(active);
        sound && self.segments.take_at(region)
    }

    /// Takes in a row whose slots cannot be trusted, until it is rewritten.
    pub(super) fn adopt_damaged(&mut self, key: FrontKey, row: Frontend, now: Instant) {
        // No slots while it is put, so that they are not counted twice.
        self.put_front(
            key,
            Frontend {
                start: 0,
                len: 0,
                out_start: 0,
                out_len: 0,
                table: 0,
                out_table: 0,
                ..row
            },
            now,
        );
        self.fronts.insert(key, row);
        let named = self.hold_slots(Family::of(key.addr), &row);
        self.damaged.insert(key, named);
    }

    /// Keeps the free slots that a row names from being given out until it is rewritten, and
    /// counts the backends in all of its slots as used. Gives these.
    pub(super) fn hold_slots(&mut self, family: Family, row: &Frontend) -> Vec<u32> {
        let inside = row.len.saturating_add(row.table.into());
        let outside = row.out_len.saturating_add(row.out_table.into());
        let lists = [(row.start, inside), (row.out_start, outside)];
        let mut named = Vec::new();
        for region in lists
            .into_iter()
            .filter_map(|(start, len)| Region::new(start, len))
        {
            self.limbo.extend(self.segments.take_within(region));
            let slots = region.slots();
            let end = slots.end.min(self.slots.len());
            named.extend_from_slice(self.slots.get(slots.start..end).unwrap_or_default());
        }
        let backends = self.backends_mut(family);
        named.retain(|id| backends.row(*id).is_some());
        for id in &named {
            backends.use_id(*id);
        }
        named
    }
}

fn adopt_backends<A: Address>(backends: &mut Backends, rows: &[(u32, Backend<A>)], now: Instant) {
    let mut rows: Vec<_> = rows.iter().filter(|(id, _)| *id != 0).collect();
    rows.sort_unstable_by_key(|(id, _)| *id);
    for (id, row) in rows {
        let row = backend_row(row);
        if row.state != BackendState::Free || row.generation != 0 {
            backends.adopt(*id, row, now);
        }
    }
    backends.finish_adoption();
}
