//! Networks that may use a service port (KP-45): rows of `tulle_srcs_*`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use datapath_common::{Address, SourceKey, SourceNet, maps};
use ipnet::IpNet;

use super::allocator::CapacityError;
use crate::model::Family;

/// A row of one service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SourceRange {
    /// Prefix length in bits, those of the service's number included.
    pub prefix_len: u32,
    /// Network address, host bits cleared.
    pub addr: IpAddr,
}

impl SourceRange {
    /// A network.
    pub fn new(net: &IpNet) -> Self {
        Self {
            prefix_len: u32::from(net.prefix_len())
                + SourceNet::<datapath_common::Ip4>::SERVICE_BITS,
            addr: net.network(),
        }
    }

    /// Service number and network of a row as the trie compares it; a prefix
    /// that ends within the number is none that an agent writes.
    pub(super) fn of_row<A: Address>(key: &SourceKey<A>) -> (u32, Self) {
        let (service, addr) = (u32::from_be(key.net.service), key.net.addr.to_ip());
        let bits = SourceNet::<A>::SERVICE_BITS;
        let net = key.prefix_len.checked_sub(bits).map(|len| {
            let len = u8::try_from(len).ok();
            len.and_then(|len| IpNet::new(addr, len).ok())
                .map_or(addr, |net| net.network())
        });
        let range = Self {
            prefix_len: key.prefix_len,
            addr: net.unwrap_or_else(|| A::UNSPECIFIED.to_ip()),
        };
        (service, range)
    }
}

/// The rows of both families, by service number.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    limit: u32,
    held: BTreeMap<u32, BTreeSet<SourceRange>>,
    rows_v4: u32,
    rows_v6: u32,
    /// Frontend rows that have `SOURCE_RANGES`, by service number.
    users: HashMap<u32, u32>,
    /// Services whose rows may be more than wanted.
    stale: BTreeSet<u32>,
}

impl Sources {
    /// No rows, in maps of `limit` entries.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            held: BTreeMap::new(),
            rows_v4: 0,
            rows_v6: 0,
            users: HashMap::new(),
            stale: BTreeSet::new(),
        }
    }

    /// Rows of a service port.
    pub(super) fn of(&self, service: u32) -> impl Iterator<Item = &SourceRange> {
        self.held.get(&service).into_iter().flatten()
    }

    pub(super) fn has(&self, service: u32, range: &SourceRange) -> bool {
        self.held
            .get(&service)
            .is_some_and(|set| set.contains(range))
    }

    /// Service ports that have rows.
    pub(super) fn services(&self) -> impl DoubleEndedIterator<Item = u32> {
        self.held.keys().copied()
    }

    pub(super) fn is_any_of(&self, service: u32) -> bool {
        self.held.contains_key(&service)
    }

    /// All rows.
    pub(super) fn rows(&self) -> impl Iterator<Item = (u32, SourceRange)> {
        let held = self.held.iter();
        held.flat_map(|(service, set)| set.iter().map(move |range| (*service, *range)))
    }

    /// Whether the map of a family takes so many rows more.
    pub(super) fn room_for(&self, family: Family, more: usize) -> Result<(), CapacityError> {
        let (map, rows) = match family {
            Family::V4 => (maps::SRCS_V4, self.rows_v4),
            Family::V6 => (maps::SRCS_V6, self.rows_v6),
        };
        if rows as usize + more <= self.limit as usize {
            return Ok(());
        }
        Err(CapacityError {
            map,
            flag: "--max-sources",
            limit: self.limit,
        })
    }

    /// Rows of a family.
    pub(super) const fn count(&self, family: Family) -> usize {
        match family {
            Family::V4 => self.rows_v4 as usize,
            Family::V6 => self.rows_v6 as usize,
        }
    }

    /// Takes note of a written row.
    pub(super) fn put(&mut self, service: u32, range: SourceRange) {
        if self.held.entry(service).or_default().insert(range) {
            *self.counter(range.addr) += 1;
        }
    }

    /// Takes note of a deleted row.
    pub(super) fn delete(&mut self, service: u32, range: &SourceRange) {
        let Some(set) = self.held.get_mut(&service) else {
            return;
        };
        let was = set.remove(range);
        if set.is_empty() {
            self.held.remove(&service);
        }
        if was {
            *self.counter(range.addr) -= 1;
        }
    }

    const fn counter(&mut self, addr: IpAddr) -> &mut u32 {
        match Family::of(addr) {
            Family::V4 => &mut self.rows_v4,
            Family::V6 => &mut self.rows_v6,
        }
    }

    /// One frontend row more has `SOURCE_RANGES`.
    pub(super) fn use_by(&mut self, service: u32) {
        *self.users.entry(service).or_default() += 1;
    }

    /// One fewer.
    pub(super) fn unuse_by(&mut self, service: u32) {
        let Some(users) = self.users.get_mut(&service) else {
            return;
        };
        *users -= 1;
        if *users == 0 {
            self.users.remove(&service);
            self.ask(service);
        }
    }

    /// Whether a frontend row looks at the rows of a service port.
    pub(super) fn is_used(&self, service: u32) -> bool {
        self.users.contains_key(&service)
    }

    /// Asks for a look at the rows of a service port.
    pub(super) fn ask(&mut self, service: u32) {
        if self.is_any_of(service) {
            self.stale.insert(service);
        }
    }

    /// Services that were asked for; each is told once.
    pub(super) fn take_stale(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.stale)
    }
}
