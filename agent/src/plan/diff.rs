//! Applied × desired → writes, one unit (frontend, backend, …) at a time, in
//! an order in which every state in between is valid.
//!
//! A frontend comes last: backend rows, then slots that nobody reads yet and the
//! networks that may use it, then one put that makes both lists the frontend's. What it leaves behind is
//! taken away afterwards: slots after a grace period, backends by draining.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use datapath_common::{BackendState, Frontend, FrontendFlags};

use super::allocator::{CapacityError, Region};
use super::applied::Applied;
use super::backends::{BackendKey, BackendRow};
use super::desired::Claim;
use super::ops::{FrontKey, MapOp, MapWriter, WriteError};
use super::peers::Ways;
use super::sources::SourceRange;
use crate::model::Family;

/// Writes, and what they need that is not written yet.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) ops: Vec<MapOp>,
    region: Option<Region>,
    /// Family, id and generation.
    ids: Vec<(Family, u32, u32)>,
    /// Why a frontend is to be written without its table or its turns.
    pub(super) shortage: Option<CapacityError>,
}

impl From<Vec<MapOp>> for Draft {
    fn from(ops: Vec<MapOp>) -> Self {
        Self {
            ops,
            ..Self::default()
        }
    }
}

/// Writes that make a frontend what it should be: number of its service port
/// and what it does, or absent.
pub(super) fn frontend(
    applied: &mut Applied,
    ways: &Ways,
    key: FrontKey,
    want: Option<(u32, &Claim)>,
) -> Result<Draft, CapacityError> {
    let old = applied.fronts.get(&key).copied();
    let Some((service, claim)) = want else {
        return Ok(old
            .map(|_| MapOp::delete_front(key))
            .into_iter()
            .collect::<Vec<_>>()
            .into());
    };
    applied.room_for(&key)?;
    let mut draft = Draft::default();
    match segment(applied, ways, &mut draft, key, claim)
        .and_then(|segment| allow(applied, &mut draft, key, service, claim).map(|()| segment))
    {
        Ok(segment) => {
            let mut flags = flags(applied, key, claim, &segment);
            if flags & FrontendFlags::ROUND_ROBIN != 0
                && let Err(error) = applied.room_for_turns(service)
            {
                // By hash then, which the row says too.
                flags &= !FrontendFlags::ROUND_ROBIN;
                draft.shortage.get_or_insert(error);
            }
            let row = Frontend {
                service,
                affinity_secs: claim.affinity_secs,
                flags,
                ..segment.row()
            };
            // Slots that are held for a row which cannot be trusted are given back with its put.
            if old != Some(row) || applied.damaged.contains_key(&key) {
                draft.ops.push(MapOp::put_front(key, row));
            }
            Ok(draft)
        }
        Err(error) => {
            undo(applied, &draft);
            Err(error)
        }
    }
}

/// Adds the networks that may use the service port and have no row yet.
fn allow(
    applied: &Applied,
    draft: &mut Draft,
    key: FrontKey,
    service: u32,
    claim: &Claim,
) -> Result<(), CapacityError> {
    let family = Family::of(key.addr);
    let Some(ranges) = claim.ranges(family) else {
        return Ok(());
    };
    let missing: BTreeSet<SourceRange> = ranges
        .filter(|range| !applied.sources.has(service, range))
        .collect();
    applied.sources.room_for(family, missing.len())?;
    let put = |range| MapOp::source(service, range, true);
    draft.ops.extend(missing.into_iter().map(put));
    Ok(())
}

/// Deletes the networks that may no longer use the service port: all but
/// `wanted`, or, if nobody asks for any, all once no frontend looks at them.
pub(super) fn sources(
    applied: &Applied,
    service: u32,
    wanted: Option<&BTreeSet<SourceRange>>,
) -> Draft {
    if wanted.is_none() && applied.sources.is_used(service) {
        return Draft::default();
    }
    let excess = applied.sources.of(service);
    let excess = excess.filter(|range| !wanted.is_some_and(|wanted| wanted.contains(range)));
    let ops: Vec<MapOp> = excess
        .map(|range| MapOp::source(service, *range, false))
        .collect();
    ops.into()
}

/// Empties a frontend whose segment is damaged, where there is no room to rewrite it.
pub(super) fn blank(applied: &Applied, key: FrontKey) -> Option<Draft> {
    let old = applied
        .fronts
        .get(&key)
        .filter(|_| applied.damaged.contains_key(&key))?;
    let flags = FrontendFlags::FLOWS_DECIDE;
    let row = Frontend {
        service: old.service,
        flags,
        ..Frontend::default()
    };
    Some(vec![MapOp::put_front(key, row)].into())
}

/// Backend ids for one kind of client.
#[derive(PartialEq, Eq)]
struct List {
    /// Each once, in ascending order.
    ids: Vec<u32>,
    /// By which new flows are given one; empty if all have one share.
    table: Vec<u32>,
}

impl List {
    /// Slots of both.
    const fn slots(&self) -> u32 {
        (self.ids.len() + self.table.len()) as u32
    }

    /// Whether flows opened by a former list may have backends that this one would not give them.
    fn moves(&self, ids: &[u32], table: &[u32]) -> bool {
        // An empty list has opened no flow.
        !ids.is_empty() && (ids != self.ids || table != self.table)
    }
}

/// A frontend's two lists, and where they are.
struct Segment {
    inside: List,
    /// `None` if it is the same list.
    outside: Option<List>,
    start: u32,
    /// Whether the draft writes the slots.
    fresh: bool,
}

impl Segment {
    fn outside(&self) -> &List {
        self.outside.as_ref().unwrap_or(&self.inside)
    }

    /// Leaves the tables out. Says whether there were any.
    fn drop_tables(&mut self) -> bool {
        let mut any = false;
        for list in std::iter::once(&mut self.inside).chain(&mut self.outside) {
            any |= !std::mem::take(&mut list.table).is_empty();
        }
        any
    }

    /// The part of the row that says where the ids are.
    fn row(&self) -> Frontend {
        let apart = if self.outside.is_some() {
            self.inside.slots()
        } else {
            0
        };
        let outside = self.outside();
        Frontend {
            start: self.start,
            len: self.inside.ids.len() as u32,
            out_start: self.start + apart,
            out_len: outside.ids.len() as u32,
            table: self.inside.table.len() as u16,
            out_table: outside.table.len() as u16,
            ..Frontend::default()
        }
    }

    /// All slots, in the order of [`Frontend`].
    fn ids(&self) -> Vec<u32> {
        let lists = std::iter::once(&self.inside).chain(&self.outside);
        lists
            .flat_map(|list| list.ids.iter().chain(&list.table))
            .copied()
            .collect()
    }

    /// Whether `row` holds the same ids in the same way.
    fn is_in(&self, applied: &Applied, row: &Frontend) -> bool {
        let same = (row.start, row.len) == (row.out_start, row.out_len);
        let is = |list: &List, ids, table| list.ids == ids && list.table == table;
        same == self.outside.is_none()
            && is(&self.inside, applied.inside(row), applied.table(row))
            && is(self.outside(), applied.outside(row), applied.out_table(row))
    }
}

/// The segment that holds a claim's backends, whose writes go to the draft.
fn segment(
    applied: &mut Applied,
    ways: &Ways,
    draft: &mut Draft,
    key: FrontKey,
    claim: &Claim,
) -> Result<Segment, CapacityError> {
    let mut ids: BTreeMap<BackendKey, u32> = BTreeMap::new();
    let mut list = |(backends, table): (&[BackendKey], &[u16])| {
        let mut list = Vec::with_capacity(backends.len());
        for backend in backends {
            let id = match ids.entry(*backend) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => *new.insert(backend_id(applied, ways, draft, *backend)?),
            };
            list.push(id);
        }
        let mut table: Vec<u32> = table.iter().map(|at| list[usize::from(*at)]).collect();
        if claim.flags & FrontendFlags::LEAST_FLOWS != 0 {
            // They count how often an id is in it.
            table.sort_unstable();
        }
        // The programs look for ids in it.
        list.sort_unstable();
        Ok::<_, CapacityError>(List { ids: list, table })
    };
    let inside = list(claim.inside())?;
    let outside = claim.outside().map(list).transpose()?;
    let mut segment = Segment {
        inside,
        outside,
        start: 0,
        fresh: false,
    };
    match place(applied, draft, key, &mut segment) {
        // Flows are given a backend by the list, until there is room.
        Err(error) if segment.drop_tables() => {
            place(applied, draft, key, &mut segment)?;
            draft.shortage = Some(error);
        }
        placed => placed?,
    }
    Ok(segment)
}

/// Finds slots for a segment: those that the frontend has, if they hold it, otherwise new ones.
fn place(
    applied: &mut Applied,
    draft: &mut Draft,
    key: FrontKey,
    segment: &mut Segment,
) -> Result<(), CapacityError> {
    let held = applied
        .fronts
        .get(&key)
        .filter(|_| !applied.damaged.contains_key(&key));
    if let Some(row) = held.filter(|row| segment.is_in(applied, row)) {
        segment.start = row.start;
        return Ok(());
    }
    let slots = segment.ids();
    draft.region = applied.segments.take(slots.len() as u32)?;
    segment.fresh = true;
    if let Some(region) = draft.region {
        segment.start = region.start;
        draft.ops.push(MapOp::WriteSlots {
            start: region.start,
            ids: slots,
        });
    }
    Ok(())
}

/// The id of a backend, whose row the draft makes active and up to date.
fn backend_id(
    applied: &mut Applied,
    ways: &Ways,
    draft: &mut Draft,
    key: BackendKey,
) -> Result<u32, CapacityError> {
    let family = Family::of(key.addr);
    let via = ways.to(key.addr);
    let backends = applied.backends_mut(family);
    let known = backends
        .id(&key)
        .and_then(|id| Some((id, backends.row(id)?)));
    let (id, generation) = match known {
        Some((id, row))
            if row.state == BackendState::Active && row.via == via && !backends.is_doubted(id) =>
        {
            return Ok(id);
        }
        Some((id, row)) => (id, row.generation),
        None => {
            let (id, generation) = backends.take()?;
            draft.ids.push((family, id, generation));
            (id, generation)
        }
    };
    let row = BackendRow {
        key,
        state: BackendState::Active,
        generation,
        via,
    };
    draft.ops.push(MapOp::put_backend(id, &row));
    Ok(id)
}

/// The flow table decides once flows may be alive that the row would treat
/// otherwise, and is asked where rows may be missing.
fn flags(applied: &Applied, key: FrontKey, claim: &Claim, segment: &Segment) -> u16 {
    let decides = match applied.fronts.get(&key) {
        Some(old) if old.flags & FrontendFlags::FLOWS_DECIDE != 0 => true,
        Some(_) if applied.damaged.contains_key(&key) || applied.moved.contains(&key) => true,
        Some(old) => {
            let (inside, outside) = (applied.inside(old), applied.outside(old));
            let opened = !inside.is_empty() || !outside.is_empty();
            let moved = || {
                segment.inside.moves(inside, applied.table(old))
                    || segment.outside().moves(outside, applied.out_table(old))
            };
            segment.fresh && moved() || opened && forgets(old, claim)
        }
        None => applied.may_have_flows(&key),
    };
    let decides = decides || claim.flags & FrontendFlags::BY_HISTORY != 0;
    let lost = applied.lost.expects(&key);
    let planned = [
        (decides, FrontendFlags::FLOWS_DECIDE),
        (lost, FrontendFlags::FLOWS_MAY_BE_LOST),
    ];
    let planned = planned.into_iter().filter(|(set, _)| *set);
    planned.fold(claim.flags & !PLANNED, |flags, (_, flag)| flags | flag)
}

/// Bits that the planner gives a row, whatever the Service says.
const PLANNED: u16 =
    FrontendFlags::FLOWS_DECIDE | FrontendFlags::FLOWS_MAY_BE_LOST | FrontendFlags::ADDRESS;

/// Whether what flows were opened by is no longer asked for: the list does not
/// name the backend that an affinity chose, a masqueraded flow has its
/// port in the flow table only, and another hash selects another slot.
fn forgets(old: &Frontend, claim: &Claim) -> bool {
    let masquerade = FrontendFlags::MASQUERADE_PODS | FrontendFlags::MASQUERADE_OUTSIDE;
    old.affinity_secs != 0 && claim.affinity_secs == 0
        || old.flags & !claim.flags & masquerade != 0
        || (old.flags ^ claim.flags) & FrontendFlags::SOURCE_HASH != 0
}

/// Writes that make the row which marks an address present or absent.
pub(super) fn address(
    applied: &Applied,
    key: FrontKey,
    wanted: bool,
) -> Result<Draft, CapacityError> {
    let old = applied.fronts.get(&key);
    let row = Frontend {
        flags: FrontendFlags::ADDRESS,
        ..Frontend::default()
    };
    let ops = if !wanted {
        old.map(|_| MapOp::delete_front(key)).into_iter().collect()
    } else if old == Some(&row) && !applied.damaged.contains_key(&key) {
        Vec::new()
    } else {
        applied.room_for(&key)?;
        vec![MapOp::put_front(key, row)]
    };
    Ok(ops.into())
}

/// Writes that drain, free or redirect a backend, or put its row right.
pub(super) fn backend(
    applied: &Applied,
    ways: &Ways,
    family: Family,
    id: u32,
    release: bool,
) -> Draft {
    let backends = applied.backends(family);
    let Some(row) = backends.row(id) else {
        let free = backends.doubted_free(id);
        let ops = free.map(|row| MapOp::put_backend(id, &row));
        return ops.into_iter().collect::<Vec<_>>().into();
    };
    let unused = backends.users(id) == 0;
    let new = if unused && release && row.state == BackendState::Draining {
        backends.free_row(row.generation)
    } else if unused {
        BackendRow {
            state: BackendState::Draining,
            via: ways.to(row.key.addr),
            ..row
        }
    } else {
        BackendRow {
            via: ways.to(row.key.addr),
            ..row
        }
    };
    let ops = if new == row && !backends.is_doubted(id) {
        Vec::new()
    } else {
        vec![MapOp::put_backend(id, &new)]
    };
    ops.into()
}

/// Carries out a draft until the first error; `applied` follows each success,
/// and what was reserved for the rest is given back. `written` counts.
pub(super) fn execute(
    draft: &Draft,
    writer: &mut impl MapWriter,
    applied: &mut Applied,
    clock: &dyn Fn() -> Instant,
    written: &mut usize,
) -> Result<(), WriteError> {
    let mut left = &draft.ops[..];
    while !left.is_empty() {
        let done = match writer.write_some(left) {
            Ok(done) => done.clamp(1, left.len()),
            Err(error) => {
                undo(applied, draft);
                return Err(error);
            }
        };
        let (written_now, rest) = left.split_at(done);
        let now = clock();
        for op in written_now {
            applied.advance(op, now);
        }
        *written += done;
        left = rest;
    }
    Ok(())
}

/// The fresh region was read by nobody, since its frontend was not written.
fn undo(applied: &mut Applied, draft: &Draft) {
    if let Some(region) = draft.region {
        applied.segments.give_back(region);
    }
    for (family, id, generation) in draft.ids.iter().rev() {
        applied.backends_mut(*family).give_back(*id, *generation);
    }
}
