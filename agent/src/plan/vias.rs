//! Ways that many backends share, each kept once.

use std::collections::HashMap;

use datapath_common::Via;

/// A way as octets, to be looked for.
type Octets = [u8; size_of::<Via>()];

/// Ways by number, with how many have each.
#[derive(Clone, Debug, Default)]
pub(super) struct Vias {
    ways: Vec<(Via, u32)>,
    by_octets: HashMap<Octets, u32>,
    free: Vec<u32>,
}

impl Vias {
    /// One more has this way: its number.
    pub(super) fn share(&mut self, via: Via) -> u32 {
        let octets: Octets = bytemuck::cast(via);
        if let Some(&number) = self.by_octets.get(&octets) {
            self.ways[number as usize].1 += 1;
            return number;
        }
        let number = if let Some(number) = self.free.pop() {
            self.ways[number as usize] = (via, 1);
            number
        } else {
            self.ways.push((via, 1));
            self.ways.len() as u32 - 1
        };
        self.by_octets.insert(octets, number);
        number
    }

    /// One fewer has the way of this number, which [`Vias::share`] gave.
    pub(super) fn leave(&mut self, number: u32) {
        let (via, users) = &mut self.ways[number as usize];
        *users -= 1;
        if *users == 0 {
            let octets: Octets = bytemuck::cast(*via);
            self.by_octets.remove(&octets);
            self.free.push(number);
        }
    }

    /// The way of this number.
    pub(super) fn get(&self, number: u32) -> Via {
        self.ways[number as usize].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_kept_once_and_as_long_as_somebody_has_it() {
        let way = |ifindex| Via {
            ifindex,
            ..Via::KERNEL
        };
        let mut vias = Vias::default();
        let first = vias.share(way(1));
        assert_eq!(vias.share(way(1)), first);
        let second = vias.share(way(2));
        assert_eq!((vias.get(first), vias.get(second)), (way(1), way(2)));
        vias.leave(first);
        assert_eq!(vias.get(first), way(1), "one has it still");
        vias.leave(first);
        assert_eq!(vias.share(way(3)), first, "numbers come again");
        assert_eq!(vias.get(first), way(3));
    }
}
