//! Applied × desired → writes, one unit (frontend, backend, …) at a time, in
//! an order in which every state in between is valid.
//!
//! A frontend comes last: backend rows, then slots that nobody reads yet, then
//! one put that makes them the frontend's segment. What it leaves behind is
//! taken away afterwards: slots after a grace period, backends by draining.

use std::time::Instant;

use datapath_common::{BackendState, Frontend, FrontendFlags};

use super::allocator::{CapacityError, Region};
use super::applied::Applied;
use super::backends::{BackendKey, BackendRow};
use super::ops::{FrontKey, MapOp, MapWriter, WriteError};
use super::peers::Ways;
use crate::model::Family;

/// Writes, and what they need that is not written yet.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) ops: Vec<MapOp>,
    region: Option<Region>,
    /// Family, id and generation.
    ids: Vec<(Family, u32, u32)>,
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
/// and backends, or absent.
pub(super) fn frontend(
    applied: &mut Applied,
    ways: &Ways,
    key: FrontKey,
    want: Option<(u32, &[BackendKey])>,
) -> Result<Draft, CapacityError> {
    let old = applied.fronts.get(&key).copied();
    let Some((service, backends)) = want else {
        return Ok(old
            .map(|_| MapOp::delete_front(key))
            .into_iter()
            .collect::<Vec<_>>()
            .into());
    };
    applied.room_for(&key)?;
    let mut draft = Draft::default();
    match segment(applied, ways, &mut draft, key, backends) {
        Ok(segment) => {
            let region = match segment {
                Segment::Kept(region) | Segment::Fresh(region) => region,
            };
            let (start, len) = region.map_or((0, 0), |region| (region.start, region.len));
            let kept = matches!(segment, Segment::Kept(_));
            let flags = flags(applied, key, old, kept);
            let row = Frontend {
                service,
                start,
                len,
                out_start: start,
                out_len: len,
                affinity_secs: 0,
                flags,
                reserved: 0,
            };
            if old != Some(row) {
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

/// Where a frontend's backend ids are; no region if there are none.
#[derive(Clone, Copy)]
enum Segment {
    /// Where they have been.
    Kept(Option<Region>),
    /// In slots that the draft writes.
    Fresh(Option<Region>),
}

/// The segment that holds `backends`, whose writes go to the draft.
fn segment(
    applied: &mut Applied,
    ways: &Ways,
    draft: &mut Draft,
    key: FrontKey,
    backends: &[BackendKey],
) -> Result<Segment, CapacityError> {
    let mut ids = Vec::with_capacity(backends.len());
    for backend in backends {
        ids.push(backend_id(applied, ways, draft, *backend)?);
    }
    let held = applied
        .fronts
        .get(&key)
        .filter(|_| !applied.damaged.contains_key(&key));
    if let Some(row) = held.filter(|row| applied.ids(row) == ids) {
        return Ok(Segment::Kept(Region::new(row.start, row.len)));
    }
    draft.region = applied.segments.take(ids.len() as u32)?;
    if let Some(region) = draft.region {
        draft.ops.push(MapOp::WriteSlots {
            start: region.start,
            ids,
        });
    }
    Ok(Segment::Fresh(draft.region))
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
        .and_then(|id| Some((id, *backends.row(id)?)));
    let (id, generation) = match known {
        Some((id, row)) if row.state == BackendState::Active && row.via == via => return Ok(id),
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

/// The flow table decides once flows may be alive that the segment would send
/// elsewhere, and is asked where rows may be missing.
fn flags(applied: &Applied, key: FrontKey, old: Option<Frontend>, kept: bool) -> u16 {
    let decides = match old {
        Some(old) if old.flags & FrontendFlags::FLOWS_DECIDE != 0 => true,
        // An empty segment has opened no flow.
        Some(old) => !kept && (old.len != 0 || applied.damaged.contains_key(&key)),
        None => applied.may_have_flows(&key),
    };
    let lost = applied.lost.expects(&key);
    [
        (decides, FrontendFlags::FLOWS_DECIDE),
        (lost, FrontendFlags::FLOWS_MAY_BE_LOST),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(0, |flags, (_, flag)| flags | flag)
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
    } else if old == Some(&row) {
        Vec::new()
    } else {
        applied.room_for(&key)?;
        vec![MapOp::put_front(key, row)]
    };
    Ok(ops.into())
}

/// Writes that drain, free or redirect a backend.
pub(super) fn backend(
    applied: &Applied,
    ways: &Ways,
    family: Family,
    id: u32,
    release: bool,
) -> Draft {
    let backends = applied.backends(family);
    let Some(row) = backends.row(id) else {
        return Draft::default();
    };
    let unused = backends.users(id) == 0;
    let new = if unused && release && row.state == BackendState::Draining {
        backends.free_row(row.generation)
    } else if unused {
        BackendRow {
            state: BackendState::Draining,
            via: ways.to(row.key.addr),
            ..*row
        }
    } else {
        BackendRow {
            via: ways.to(row.key.addr),
            ..*row
        }
    };
    let ops = if new == *row {
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
    for op in &draft.ops {
        if let Err(error) = writer.write(op) {
            undo(applied, draft);
            return Err(error);
        }
        applied.advance(op, clock());
        *written += 1;
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
