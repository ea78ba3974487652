//! Histories: packets, edits of services, the life of backends, time.

use datapath_common::{BackendState, Feature, Frontend, FrontendFlags};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::packets::{PacketPlan, packet};
use super::worlds::{MASQUERADE, Slots, affinity_secs, policy_flags};
use crate::engine::Change;
use crate::model::{FrontendId, World, world::version_of};

/// What becomes of a service.
#[derive(Clone, Debug)]
pub enum ServiceEdit {
    /// Its segments are written anew from these backends of its protocol, the
    /// second for clients outside if they have one of their own; flows decide
    /// from then on.
    Replace(Vec<Index>, Option<Vec<Index>>),
    /// It gets other flags and another affinity; flows decide from then on.
    Policy(u16, u32),
    /// Its frontend row goes.
    Remove,
    /// Flows no longer decide.
    Settle,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A packet.
    Packet(PacketPlan),
    /// A service changes.
    Service(Index, ServiceEdit),
    /// A backend leaves every segment and drains.
    Drain(Index),
    /// A drained backend's row is freed.
    Free(Index),
    /// A free row is used again, in another generation.
    Reuse(Index),
    /// A backend goes while a segment still names it, as it never should.
    Vanish(Index),
    /// Time passes.
    Ticks(u32),
}

/// One event; most are packets.
pub fn event() -> impl Strategy<Value = Event> {
    let picks = || vec(any::<Index>(), 0..8);
    let outside = prop_oneof![1 => Just(None), 1 => picks().prop_map(Some)];
    let edit = prop_oneof![
        4 => (picks(), outside)
            .prop_map(|(inside, outside)| ServiceEdit::Replace(inside, outside)),
        2 => (policy_flags(), affinity_secs())
            .prop_map(|(flags, secs)| ServiceEdit::Policy(flags, secs)),
        1 => Just(ServiceEdit::Remove),
        1 => Just(ServiceEdit::Settle),
    ];
    prop_oneof![
        24 => packet().prop_map(Event::Packet),
        2 => (any::<Index>(), edit).prop_map(|(which, edit)| Event::Service(which, edit)),
        1 => any::<Index>().prop_map(Event::Drain),
        1 => any::<Index>().prop_map(Event::Free),
        1 => any::<Index>().prop_map(Event::Reuse),
        1 => any::<Index>().prop_map(Event::Vanish),
        2 => prop_oneof![Just(1_u32), Just(2), Just(3), 1..8_u32, Just(13), Just(41)]
            .prop_map(Event::Ticks),
    ]
}

/// A sequence of events.
pub fn history(length: usize) -> impl Strategy<Value = Vec<Event>> {
    vec(event(), 1..=length)
}

impl Event {
    /// The writes that the agent would make, in its order; none for packets.
    pub fn changes(&self, world: &World) -> Vec<Change> {
        match self {
            Self::Packet(_) => Vec::new(),
            Self::Service(which, edit) => service(world, *which, edit),
            Self::Drain(which) => drain(world, *which),
            Self::Free(which) => {
                backend(world, *which, BackendState::Draining, BackendState::Free, 0)
            }
            Self::Reuse(which) => {
                backend(world, *which, BackendState::Free, BackendState::Active, 1)
            }
            Self::Vanish(which) => {
                backend(world, *which, BackendState::Active, BackendState::Free, 0)
            }
            Self::Ticks(ticks) => vec![Change::Ticks(*ticks)],
        }
    }
}

fn services(world: &World) -> Vec<(FrontendId, Frontend)> {
    let mut all: Vec<_> = world
        .frontends
        .iter()
        .filter(|(id, _)| id.2 != 0)
        .map(|(id, row)| (*id, *row))
        .collect();
    all.sort_by_key(|(id, _)| *id);
    all
}

fn service(world: &World, which: Index, edit: &ServiceEdit) -> Vec<Change> {
    let all = services(world);
    if all.is_empty() {
        return Vec::new();
    }
    let (id, row) = all[which.index(all.len())];
    match edit {
        ServiceEdit::Remove => vec![Change::Frontend(id, None)],
        ServiceEdit::Settle => {
            let flags = row.flags & !FrontendFlags::FLOWS_DECIDE;
            vec![Change::Frontend(id, Some(Frontend { flags, ..row }))]
        }
        ServiceEdit::Policy(flags, affinity_secs) => {
            let kept = FrontendFlags::FLOWS_MAY_BE_LOST | FrontendFlags::ADDRESS;
            let mut flags = (row.flags & kept) | flags | FrontendFlags::FLOWS_DECIDE;
            if !world.has(Feature::UPLINK_SERVICES) {
                flags &= !MASQUERADE;
            }
            let row = Frontend {
                flags,
                affinity_secs: *affinity_secs,
                ..row
            };
            vec![Change::Frontend(id, Some(row))]
        }
        ServiceEdit::Replace(inside, outside) => {
            let version = version_of(id.0);
            let mut stock: Vec<u32> = world
                .backends
                .iter()
                .filter(|((v, _), b)| *v == version && b.proto == id.2)
                .filter(|(_, b)| b.state == BackendState::Active)
                .map(|((_, id), _)| *id)
                .collect();
            stock.sort_unstable();
            let pick = |picks: &Vec<Index>| {
                let picks = picks.iter().filter(|_| !stock.is_empty());
                let mut ids: Vec<u32> = picks.map(|pick| stock[pick.index(stock.len())]).collect();
                ids.sort_unstable();
                ids.dedup();
                ids
            };
            let start = world.segments.len() as u32;
            let slots = Slots::of(pick(inside), outside.as_ref().map(pick), row.table);
            segments(id, row, start, &slots)
        }
    }
}

/// Writes the slots from `start` on, then the frontend.
fn segments(id: FrontendId, row: Frontend, start: u32, slots: &Slots) -> Vec<Change> {
    let (ids, places) = slots.at(start);
    let row = Frontend {
        service: row.service,
        affinity_secs: row.affinity_secs,
        flags: row.flags | FrontendFlags::FLOWS_DECIDE,
        ..places
    };
    vec![
        Change::Slots { start, ids },
        Change::Frontend(id, Some(row)),
    ]
}

fn backend(
    world: &World,
    which: Index,
    from: BackendState,
    to: BackendState,
    generations: u32,
) -> Vec<Change> {
    let mut all: Vec<_> = world
        .backends
        .iter()
        .filter(|(_, b)| b.state == from)
        .collect();
    all.sort_by_key(|(key, _)| **key);
    if all.is_empty() {
        return Vec::new();
    }
    let ((version, id), row) = all[which.index(all.len())];
    let generation = row.generation.wrapping_add(generations);
    vec![Change::Backend(
        *version,
        *id,
        crate::model::BackendRow {
            state: to,
            generation,
            ..*row
        },
    )]
}

/// Every segment that names the backend is written without it; then it drains.
fn drain(world: &World, which: Index) -> Vec<Change> {
    let drained = backend(
        world,
        which,
        BackendState::Active,
        BackendState::Draining,
        0,
    );
    let Some(Change::Backend(version, gone, _)) = drained.first().cloned() else {
        return drained;
    };
    let mut changes = Vec::new();
    let mut start = world.segments.len() as u32;
    for (id, row) in services(world) {
        if version_of(id.0) != version || !world.ids_of(&row).contains(&gone) {
            continue;
        }
        let without = |start, len| {
            let ids = world.segment(start, len).into_iter();
            ids.filter(|id| *id != gone).collect::<Vec<u32>>()
        };
        let apart = (row.start, row.len) != (row.out_start, row.out_len);
        let outside = apart.then(|| without(row.out_start, row.out_len));
        let slots = Slots::of(without(row.start, row.len), outside, row.table);
        let written = segments(id, row, start, &slots);
        if let Some(Change::Slots { ids, .. }) = written.first() {
            start += ids.len() as u32;
        }
        changes.extend(written);
    }
    changes.extend(drained);
    changes
}
