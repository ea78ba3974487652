//! Tables of a segment: which of its backends each slot names (pure).
//!
//! Every node that has the same backends makes the same table of them.

use datapath_common::{Address, Ip4, Ip6};
use datapath_core::flow_hash;

use super::backends::BackendKey;

/// Most slots of a table: the largest prime of 16 bits.
pub const MAX_SLOTS: u16 = 65_521;

/// Slots of a Maglev table unless told otherwise: a prime, whatever the number of
/// backends, for another size would be another table altogether. When one of a hundred backends
/// leaves, at most 1.6 % of the others' slots change (of 32,749 slots 1 %), of ten 0.7 %.
pub const MAGLEV_SLOTS: u16 = 16_381;

/// Whether a Maglev table can have so many slots: a prime, so that each backend's
/// steps reach every slot.
pub fn is_size(slots: u16) -> bool {
    let divides = |n: &u16| slots.is_multiple_of(*n);
    (3..=MAX_SLOTS).contains(&slots)
        && !(2..=255)
            .take_while(|n| n * n <= slots)
            .any(|n| divides(&n))
}

/// Positions of the backends, each as often as its weight says; empty if all weigh
/// the same, or if there are more than slots. Weights are above 0. Their ratios
/// are exact unless they add up to more than [`MAX_SLOTS`].
pub fn weighted(weights: &[u16]) -> Vec<u16> {
    let max = usize::from(MAX_SLOTS);
    if weights.windows(2).all(|pair| pair[0] == pair[1]) || weights.len() > max {
        return Vec::new();
    }
    let common = weights.iter().copied().fold(0, gcd).max(1);
    let mut turns: Vec<usize> = weights.iter().map(|w| usize::from(w / common)).collect();
    let total: usize = turns.iter().sum();
    if total > max {
        // Each has a slot, the rest is shared.
        let spare = max - turns.len();
        for turns in &mut turns {
            *turns = 1 + (*turns - 1) * spare / total;
        }
    }
    let slots = (0..).zip(turns);
    slots
        .flat_map(|(position, turns)| std::iter::repeat_n(position, turns))
        .collect()
}

/// The same slots as [`weighted`], in an order in which each backend's are as far
/// apart as they can be: of `n` slots the k-th (from 0) is where `(k + 1/2) / n` of the table
/// has gone by.
pub fn in_turn(weights: &[u16]) -> Vec<u16> {
    let slots = weighted(weights);
    let mut places: Vec<(u64, u64, u16)> = Vec::with_capacity(slots.len());
    for turns in slots.chunk_by(|a, b| a == b) {
        let n = turns.len() as u64;
        places.extend(
            (0..)
                .zip(turns)
                .map(|(k, position)| (2 * k + 1, n, *position)),
        );
    }
    // Fractions of less than 2^17: their products are exact.
    places.sort_unstable_by(|(a, m, first), (b, n, second)| {
        (a * n).cmp(&(b * m)).then(first.cmp(second))
    });
    places.into_iter().map(|(.., position)| position).collect()
}

const fn gcd(a: u16, b: u16) -> u16 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A Maglev table of `slots` slots, a prime: positions of the backends; empty if
/// there is nothing to choose, or not a slot for each. The backends take turns, and each takes the
/// first free slot in an order of its own: all in the first turn, then as often as they weigh.
/// Weights are above 0.
pub fn maglev(backends: &[BackendKey], weights: &[u16], slots: u16) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    if backends.len() < 2 || backends.len() > usize::from(slots) {
        return Vec::new();
    }
    let Some(heaviest) = weights.iter().copied().max() else {
        return Vec::new();
    };
    let size = usize::from(slots);
    let mut table = vec![FREE; size];
    let mut free = size;
    let mut seats: Vec<Seat> = backends.iter().map(|key| Seat::of(key, slots)).collect();
    for first in std::iter::once(true).chain(std::iter::repeat(false)) {
        for ((position, seat), weight) in (0..).zip(&mut seats).zip(weights) {
            if !first {
                seat.credit += weight;
                if seat.credit < heaviest {
                    continue;
                }
                seat.credit -= heaviest;
            }
            while table[seat.next] != FREE {
                seat.step(size);
            }
            table[seat.next] = position;
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
    table
}

/// A backend's way through a Maglev table.
struct Seat {
    next: usize,
    skip: usize,
    credit: u16,
}

impl Seat {
    fn of(key: &BackendKey, slots: u16) -> Self {
        let hash = |salt: u16| match key.addr {
            std::net::IpAddr::V4(ip) => {
                flow_hash(Ip4::from(ip), Ip4::UNSPECIFIED, key.port, salt, key.proto)
            }
            std::net::IpAddr::V6(ip) => {
                flow_hash(Ip6::from(ip), Ip6::UNSPECIFIED, key.port, salt, key.proto)
            }
        };
        let slots = u32::from(slots);
        Self {
            next: (hash(1) % slots) as usize,
            skip: (hash(2) % (slots - 1) + 1) as usize,
            credit: 0,
        }
    }

    const fn step(&mut self, size: usize) {
        self.next = (self.next + self.skip) % size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(count: u8) -> Vec<BackendKey> {
        let backend = |host| BackendKey {
            addr: [10, 244, host % 7, host].into(),
            port: 8080,
            proto: 6,
        };
        (1..=count).map(backend).collect()
    }

    /// How many slots each position has.
    fn shares(table: &[u16], backends: usize) -> Vec<usize> {
        let mut shares = vec![0; backends];
        for position in table {
            shares[usize::from(*position)] += 1;
        }
        shares
    }

    #[test]
    fn sizes_are_primes() {
        for size in [3, 251, MAGLEV_SLOTS, 32_749, MAX_SLOTS] {
            assert!(is_size(size), "{size}");
        }
        for other in [0, 1, 2, 4, 256, 16_384, 65_519 - 2, 65_535] {
            assert!(!is_size(other), "{other}");
        }
    }

    #[test]
    fn weights_are_shares() {
        assert_eq!(weighted(&[3, 3, 3]), [0; 0]);
        assert_eq!(weighted(&[]), [0; 0]);
        assert_eq!(weighted(&[2, 4]), [0, 1, 1]);
        assert_eq!(shares(&weighted(&[100, 300, 50]), 3), [2, 6, 1]);
        let mut many = vec![1000; 300];
        many.push(1);
        let shares = shares(&weighted(&many), many.len());
        assert!(shares.iter().sum::<usize>() <= usize::from(MAX_SLOTS));
        assert_eq!(shares[300], 1, "the lightest keeps a slot");
        assert!(shares[..300].iter().all(|share| *share == shares[0]));
        assert_eq!(weighted(&[&[2], &vec![1; 70_000][..]].concat()), [0; 0]);
    }

    #[test]
    fn turns_are_spread() {
        assert_eq!(in_turn(&[1, 1, 1]), [0; 0], "the list itself is in turn");
        assert_eq!(in_turn(&[2, 1]), [0, 1, 0]);
        assert_eq!(in_turn(&[5, 1, 1]), [0, 0, 0, 1, 2, 0, 0]);
        assert_eq!(in_turn(&[3, 2]), [0, 1, 0, 1, 0]);
        for weights in [
            vec![7, 3, 1],
            vec![1000, 999, 1, 40],
            vec![9; 3],
            vec![6, 4, 2, 2],
        ] {
            let table = in_turn(&weights);
            let common = weights.iter().copied().fold(0, gcd);
            let mut runs = weighted(&weights);
            let mut sorted = table.clone();
            sorted.sort_unstable();
            runs.sort_unstable();
            assert_eq!(sorted, runs, "{weights:?}");
            // In every stretch each has its share, but for one turn on either side.
            for (position, weight) in (0..).zip(&weights) {
                let share = f64::from(weight / common) / table.len() as f64;
                for end in 1..=table.len() {
                    let had = table[..end].iter().filter(|p| **p == position).count();
                    let due = share * end as f64;
                    let off = (had as f64 - due).abs();
                    assert!(off <= 1.5, "{weights:?}: {position} has {had} of {due}");
                }
            }
        }
    }

    #[test]
    fn a_maglev_table_is_shared_evenly() {
        let backends = backends(100);
        let table = maglev(&backends, &[1; 100], MAGLEV_SLOTS);
        assert_eq!(table.len(), usize::from(MAGLEV_SLOTS));
        let shares = shares(&table, 100);
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most - least <= 1, "{least} to {most}");
    }

    #[test]
    fn a_maglev_table_follows_weights() {
        let table = maglev(&backends(3), &[1, 2, 5], 1021);
        let shares = shares(&table, 3);
        assert_eq!(shares.iter().sum::<usize>(), 1021);
        for (share, weight) in shares.iter().zip([1, 2, 5]) {
            let right = 1021 * weight / 8;
            assert!(share.abs_diff(right) <= 5, "{share} for {right}");
        }
    }

    #[test]
    fn nobody_that_weighs_something_is_left_out() {
        let all = backends(200);
        let table = maglev(&all, &[1; 200], 211);
        assert!(shares(&table, 200).iter().all(|share| *share > 0));
        let table = maglev(&all[..3], &[1000, 1000, 1], 1021);
        assert_eq!(shares(&table, 3)[2], 1);
        assert_eq!(maglev(&all, &[1; 200], 199), [0; 0], "more than slots");
        assert_eq!(maglev(&all[..1], &[1], 199), [0; 0], "no choice");
    }

    /// The greatest part of the slots that did not name a backend and change when it leaves.
    fn moved(count: u8, slots: u16) -> f64 {
        let all = backends(count);
        let before = maglev(&all, &vec![1; all.len()], slots);
        let part = |gone: usize| {
            let mut left = all.clone();
            left.remove(gone);
            let after = maglev(&left, &vec![1; left.len()], slots);
            let others = before.iter().zip(&after);
            let others = others.filter(|(b, _)| usize::from(**b) != gone);
            let (mut stay, mut moved) = (0, 0);
            for (b, a) in others {
                if all[usize::from(*b)] == left[usize::from(*a)] {
                    stay += 1;
                } else {
                    moved += 1;
                }
            }
            f64::from(moved) / f64::from(stay + moved)
        };
        (0..all.len()).map(part).fold(0.0, f64::max)
    }

    #[test]
    fn few_flows_of_others_move_when_one_leaves() {
        for (count, slots, most) in [
            (100, 32_749, 0.01),
            (100, MAGLEV_SLOTS, 0.016),
            (26, MAGLEV_SLOTS, 0.012),
            (10, MAGLEV_SLOTS, 0.007),
            (3, MAGLEV_SLOTS, 0.002),
        ] {
            let part = moved(count, slots);
            assert!(part <= most, "{count} backends, {slots} slots: {part}");
        }
    }

    /// Nodes of another version have to agree with this one.
    #[test]
    fn a_table_is_the_same_on_every_node() {
        let backends = backends(3);
        let table = maglev(&backends, &[1; 3], 11);
        assert_eq!(table, maglev(&backends, &[7; 3], 11));
        assert_eq!(table, [2, 0, 0, 1, 0, 2, 1, 0, 2, 1, 1]);
    }
}
