//! Backend rows of one family: who has which id, in what state, used by how many slots.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use datapath_common::{BackendState, Via};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::allocator::CapacityError;
use super::vias::Vias;
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

/// A row that is not free; there may be very many.
#[derive(Clone, Copy, Debug)]
struct Held {
    key: BackendKey,
    state: BackendState,
    generation: u32,
    /// In [`Backends::vias`].
    via: u32,
    /// Slots of live segments that name it.
    users: u32,
}

/// The backend rows of one family as the kernel holds them.
#[derive(Clone, Debug)]
pub struct Backends {
    family: Family,
    /// Rows of the map; ids are 1 ..= `entries` - 1.
    entries: u32,
    /// By id.
    held: Vec<Option<Held>>,
    vias: Vias,
    /// Ids by the hash of their keys.
    by_key: HashTable<u32>,
    hasher: RandomState,
    /// Since when ids have been draining.
    drained: BTreeMap<u32, Instant>,
    /// Written free rows, longest free first, with the id's generation.
    free: VecDeque<(u32, u32)>,
    next: u32,
    /// Ids whose number of users fell to 0 and that may have to drain.
    idle: BTreeSet<u32>,
    /// Ids whose rows in the kernel are otherwise than they were written, with the generation of
    /// those that are free.
    doubted: BTreeMap<u32, u32>,
}

impl Backends {
    /// No rows, in a map of `entries`.
    pub fn new(family: Family, entries: u32) -> Self {
        Self {
            family,
            entries,
            held: Vec::new(),
            vias: Vias::default(),
            by_key: HashTable::new(),
            hasher: RandomState::new(),
            drained: BTreeMap::new(),
            free: VecDeque::new(),
            next: 1,
            idle: BTreeSet::new(),
            doubted: BTreeMap::new(),
        }
    }

    fn held(&self, id: u32) -> Option<&Held> {
        self.held.get(id as usize)?.as_ref()
    }

    /// How many rows are not free.
    pub fn count(&self) -> usize {
        self.by_key.len()
    }

    /// Id of a backend, active or draining.
    pub fn id(&self, key: &BackendKey) -> Option<u32> {
        let has = |id: &u32| self.held(*id).is_some_and(|held| held.key == *key);
        self.by_key.find(self.hasher.hash_one(key), has).copied()
    }

    /// The row of an id, unless it is free.
    pub fn row(&self, id: u32) -> Option<BackendRow> {
        self.held(id).map(|held| self.row_of(held))
    }

    fn row_of(&self, held: &Held) -> BackendRow {
        BackendRow {
            key: held.key,
            state: held.state,
            generation: held.generation,
            via: self.vias.get(held.via),
        }
    }

    fn all(&self) -> impl Iterator<Item = (u32, &Held)> {
        (0..)
            .zip(&self.held)
            .filter_map(|(id, held)| Some((id, held.as_ref()?)))
    }

    /// All rows that are not free, by id.
    pub fn rows(&self) -> impl Iterator<Item = (u32, BackendRow)> {
        self.all().map(|(id, held)| (id, self.row_of(held)))
    }

    /// Ids of the backends at addresses in any of these ranges, both ends included. Looks at all
    /// backends: they are not held by address.
    pub fn within(&self, ranges: &[(IpAddr, IpAddr)]) -> Vec<u32> {
        let ours = |(first, _): &(IpAddr, IpAddr)| Family::of(*first) == self.family;
        if !ranges.iter().any(ours) {
            return Vec::new();
        }
        let mut ranges = ranges.to_vec();
        ranges.sort_unstable();
        // Those that overlap become one, so that only the last which begins before an
        // address can hold it.
        ranges.dedup_by(|next, held| {
            let overlap = next.0 <= held.1;
            if overlap {
                held.1 = held.1.max(next.1);
            }
            overlap
        });
        let is_in = |addr: IpAddr| {
            let after = ranges.partition_point(|(first, _)| *first <= addr);
            after > 0 && addr <= ranges[after - 1].1
        };
        let all = self.all().filter(|(_, held)| is_in(held.key.addr));
        all.map(|(id, _)| id).collect()
    }

    /// Whether any id was ever given out.
    pub const fn any_used(&self) -> bool {
        self.next > 1
    }

    /// Slots that name an id.
    pub fn users(&self, id: u32) -> u32 {
        self.held(id).map_or(0, |held| held.users)
    }

    /// Since when an id has been draining.
    pub fn drained(&self, id: u32) -> Option<Instant> {
        self.drained.get(&id).copied()
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
        if self.held(id).is_none() {
            self.free.push_front((id, generation.wrapping_sub(1)));
        }
    }

    /// Takes note of a written row.
    pub fn put(&mut self, id: u32, row: BackendRow, now: Instant) {
        let old = self.held(id).copied();
        let doubted = self.doubted.remove(&id).is_some();
        if let Some(old) = old.filter(|old| row.state == BackendState::Free || old.key != row.key) {
            self.forget_key(id, &old.key);
        }
        if row.state == BackendState::Draining {
            self.drained.entry(id).or_insert(now);
        } else {
            self.drained.remove(&id);
        }
        if row.state == BackendState::Free {
            if let Some(old) = old {
                self.vias.leave(old.via);
                self.held[id as usize] = None;
            }
            self.idle.remove(&id);
            // One that was free before and only put right is in the queue, or was never given out.
            if old.is_some() || !doubted {
                self.free.push_back((id, row.generation));
            }
            return;
        }
        let held = Held {
            key: row.key,
            state: row.state,
            generation: row.generation,
            via: self.vias.share(row.via),
            users: old.map_or(0, |old| old.users),
        };
        if let Some(old) = old {
            self.vias.leave(old.via);
        }
        let index = id as usize;
        if self.held.len() <= index {
            self.held.resize(index + 1, None);
        }
        self.held[index] = Some(held);
        self.note_key(id, &row.key);
        if held.users == 0 && row.state == BackendState::Active {
            self.idle.insert(id);
        }
    }

    /// Another id that has the key already keeps it.
    fn note_key(&mut self, id: u32, key: &BackendKey) {
        let Self {
            held,
            by_key,
            hasher,
            ..
        } = self;
        let key_of = |id: &u32| held.get(*id as usize)?.as_ref().map(|held| held.key);
        let found = by_key.entry(
            hasher.hash_one(key),
            |id| key_of(id) == Some(*key),
            |id| key_of(id).map_or(0, |key| hasher.hash_one(key)),
        );
        if let Entry::Vacant(place) = found {
            place.insert(id);
        }
    }

    fn forget_key(&mut self, id: u32, key: &BackendKey) {
        let hash = self.hasher.hash_one(key);
        if let Ok(found) = self.by_key.find_entry(hash, |held| *held == id) {
            found.remove();
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
        let missing = (1..self.next).filter(|id| self.held(*id).is_none() && !free.contains(id));
        let missing: Vec<(u32, u32)> = missing.map(|id| (id, 0)).collect();
        self.free.extend(missing);
    }

    /// One more slot of a live segment names `id`.
    pub fn use_id(&mut self, id: u32) {
        if let Some(held) = self.held.get_mut(id as usize).and_then(Option::as_mut) {
            held.users += 1;
            self.idle.remove(&id);
        }
    }

    /// One slot fewer names `id`.
    pub fn unuse_id(&mut self, id: u32) {
        if let Some(held) = self.held.get_mut(id as usize).and_then(Option::as_mut) {
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

    /// First id that was never given out.
    pub(super) const fn end(&self) -> u32 {
        self.next
    }

    /// Generations that free ids from `first` to `last` have in the kernel, without those
    /// that were never written: theirs is 0.
    pub(super) fn left_generations(&self, first: u32, last: u32) -> BTreeMap<u32, u32> {
        let within = |(id, _): &&(u32, u32)| (first..=last).contains(id);
        self.free.iter().filter(within).copied().collect()
    }

    /// Takes note that the kernel's row of an id, with `generation` if it is free, is otherwise
    /// than it was written. Says whether that is news.
    pub(super) fn doubt(&mut self, id: u32, generation: u32) -> bool {
        self.doubted.insert(id, generation).is_none()
    }

    /// Whether the kernel's row of an id has to be written whatever it was written as.
    pub(super) fn is_doubted(&self, id: u32) -> bool {
        self.doubted.contains_key(&id)
    }

    /// The row that a free id should have, if the kernel has another.
    pub(super) fn doubted_free(&self, id: u32) -> Option<BackendRow> {
        let generation = self.doubted.get(&id)?;
        self.held(id).is_none().then(|| self.free_row(*generation))
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
