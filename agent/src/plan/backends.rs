//! Backend rows of one family: who has which id, in what state, used by how many slots.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use datapath_common::{BackendState, Via};

use super::allocator::CapacityError;
use crate::model::Family;

/// What a backend is: address, port (host order), IP protocol number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BackendKey {
    /// Address.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
}

/// A backend row, either family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BackendRow {
    /// Whose row it is; unspecified address and zeros in a free one.
    pub key: BackendKey,
    /// State.
    pub state: BackendState,
    /// How often the id has been given out.
    pub generation: u32,
    /// How it is reached.
    pub via: Via,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    row: BackendRow,
    /// Slots of live segments that name it.
    users: u32,
    drained: Option<Instant>,
}

/// The backend rows of one family as the kernel holds them.
#[derive(Clone, Debug)]
pub struct Backends {
    family: Family,
    /// Rows of the map; ids are 1 ..= `entries` - 1.
    entries: u32,
    held: BTreeMap<u32, Held>,
    by_key: BTreeMap<BackendKey, u32>,
    /// Written free rows, longest free first, with the id's generation.
    free: VecDeque<(u32, u32)>,
    next: u32,
    /// Ids whose number of users fell to 0 and that may have to drain.
    idle: BTreeSet<u32>,
}

impl Backends {
    /// No rows, in a map of `entries`.
    pub const fn new(family: Family, entries: u32) -> Self {
        Self {
            family,
            entries,
            held: BTreeMap::new(),
            by_key: BTreeMap::new(),
            free: VecDeque::new(),
            next: 1,
            idle: BTreeSet::new(),
        }
    }

    /// Id of a backend, active or draining.
    pub fn id(&self, key: &BackendKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The row of an id, unless it is free.
    pub fn row(&self, id: u32) -> Option<&BackendRow> {
        self.held.get(&id).map(|held| &held.row)
    }

    /// All rows that are not free, by id.
    pub fn rows(&self) -> impl Iterator<Item = (u32, &BackendRow)> {
        self.held.iter().map(|(id, held)| (*id, &held.row))
    }

    /// Ids of the backends at addresses `first ..= last`.
    pub fn at(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = u32> {
        let key = |addr, port, proto| BackendKey { addr, port, proto };
        self.by_key
            .range(key(first, 0, 0)..=key(last, u16::MAX, u8::MAX))
            .map(|(_, id)| *id)
    }

    /// Whether any id was ever given out.
    pub const fn any_used(&self) -> bool {
        self.next > 1
    }

    /// Slots that name an id.
    pub fn users(&self, id: u32) -> u32 {
        self.held.get(&id).map_or(0, |held| held.users)
    }

    /// Since when an id has been draining.
    pub fn drained(&self, id: u32) -> Option<Instant> {
        self.held.get(&id)?.drained
    }

    /// Reserves an id and its next generation.
    pub fn take(&mut self) -> Result<(u32, u32), CapacityError> {
        if let Some((id, generation)) = self.free.pop_front() {
            return Ok((id, generation.wrapping_add(1)));
        }
        if self.next >= self.entries {
            let map = match self.family {
                Family::V4 => datapath_common::maps::BACK_V4,
                Family::V6 => datapath_common::maps::BACK_V6,
            };
            return Err(CapacityError {
                map,
                flag: "--max-backends",
                limit: self.entries,
            });
        }
        self.next += 1;
        Ok((self.next - 1, 1))
    }

    /// Gives back a reserved id that was not written.
    pub fn give_back(&mut self, id: u32, generation: u32) {
        if !self.held.contains_key(&id) {
            self.free.push_front((id, generation.wrapping_sub(1)));
        }
    }

    /// Takes note of a written row.
    pub fn put(&mut self, id: u32, row: BackendRow, now: Instant) {
        if row.state == BackendState::Free {
            if let Some(held) = self.held.remove(&id)
                && self.by_key.get(&held.row.key) == Some(&id)
            {
                self.by_key.remove(&held.row.key);
            }
            self.idle.remove(&id);
            self.free.push_back((id, row.generation));
            return;
        }
        self.by_key.entry(row.key).or_insert(id);
        let held = self.held.entry(id).or_insert(Held {
            row,
            users: 0,
            drained: None,
        });
        held.row = row;
        held.drained = match row.state {
            BackendState::Draining => held.drained.or(Some(now)),
            BackendState::Active | BackendState::Free => None,
        };
        if held.users == 0 && row.state == BackendState::Active {
            self.idle.insert(id);
        }
    }

    /// Takes in a row that the kernel holds after a restart.
    pub fn adopt(&mut self, id: u32, row: BackendRow, now: Instant) {
        self.next = self.next.max(id.saturating_add(1));
        self.put(id, row, now);
    }

    /// Makes the never written ids below the highest adopted one available.
    pub fn finish_adoption(&mut self) {
        let free: BTreeSet<u32> = self.free.iter().map(|(id, _)| *id).collect();
        let missing = (1..self.next).filter(|id| !self.held.contains_key(id) && !free.contains(id));
        self.free
            .extend(missing.map(|id| (id, 0)).collect::<Vec<_>>());
    }

    /// One more slot of a live segment names `id`.
    pub fn use_id(&mut self, id: u32) {
        if let Some(held) = self.held.get_mut(&id) {
            held.users += 1;
            self.idle.remove(&id);
        }
    }

    /// One slot fewer names `id`.
    pub fn unuse_id(&mut self, id: u32) {
        if let Some(held) = self.held.get_mut(&id) {
            held.users = held.users.saturating_sub(1);
            if held.users == 0 {
                self.idle.insert(id);
            }
        }
    }

    /// Active rows that no slot names; each is told once.
    pub fn take_idle(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.idle)
    }

    /// Free row of an id that has `generation`.
    pub const fn free_row(&self, generation: u32) -> BackendRow {
        let addr = match self.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        BackendRow {
            key: BackendKey {
                addr,
                port: 0,
                proto: 0,
            },
            state: BackendState::Free,
            generation,
            via: Via::KERNEL,
        }
    }
}
