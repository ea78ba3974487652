//! Service numbers: one for each service port and family, as long as it lives.
//! Rows of sources, affinity, flows and traffic go by them, so a number is given
//! out again only when nothing of its former port is left.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use super::allocator::GRACE;
use super::desired::PortKey;

/// Numbers of a former agent that are looked after, at most: what is in rows
/// may be anything.
const MOST_LEFT_BEHIND: u32 = 1 << 16;

/// Which number stands for which service port.
#[derive(Clone, Debug)]
pub struct Numbers {
    by_port: HashMap<PortKey, u32>,
    by_number: BTreeMap<u32, PortKey>,
    /// The highest that was ever given out.
    last: u32,
    /// Numbers whose port is gone, and since when.
    retired: BTreeMap<u32, Instant>,
    /// Numbers of which nothing is left.
    free: BTreeSet<u32>,
    /// Numbers that somebody got or lost, if that is to be noted.
    renamed: Option<BTreeSet<u32>>,
}

impl Numbers {
    /// No numbers given out; those up to `highest` are left to [`Numbers::of`].
    pub fn after(highest: u32) -> Self {
        Self {
            by_port: HashMap::new(),
            by_number: BTreeMap::new(),
            last: highest,
            retired: BTreeMap::new(),
            free: BTreeSet::new(),
            renamed: None,
        }
    }

    /// The number of `port`; if it has none yet, the one that its frontend's
    /// row holds, unless another port has that.
    pub fn of(&mut self, port: &PortKey, in_row: Option<u32>) -> u32 {
        if let Some(number) = self.by_port.get(port) {
            return *number;
        }
        let adopted = in_row.filter(|n| *n != 0 && !self.by_number.contains_key(n));
        let number = adopted.unwrap_or_else(|| self.fresh());
        self.retired.remove(&number);
        self.free.remove(&number);
        self.by_port.insert(port.clone(), number);
        self.by_number.insert(number, port.clone());
        self.note(number);
        number
    }

    /// The highest number that was ever given out.
    pub const fn last(&self) -> u32 {
        self.last
    }

    /// There is something of a former agent's up to this number.
    pub fn expect(&mut self, highest: u32) {
        self.last = self.last.max(highest);
    }

    /// Notes numbers that somebody gets or loses from now on.
    pub fn note_renamed(&mut self) {
        self.renamed.get_or_insert_default();
    }

    /// Those that were noted, and whose they are.
    pub fn take_renamed(&mut self) -> Vec<(u32, Option<PortKey>)> {
        let renamed = self.renamed.as_mut().map(std::mem::take);
        let named = |number| (number, self.by_number.get(&number).cloned());
        renamed.into_iter().flatten().map(named).collect()
    }

    fn note(&mut self, number: u32) {
        if let Some(renamed) = &mut self.renamed {
            renamed.insert(number);
        }
    }

    /// The service port behind a number.
    pub fn name(&self, number: u32) -> Option<&PortKey> {
        self.by_number.get(&number)
    }

    /// The number of `port`, if it has one.
    pub fn get(&self, port: &PortKey) -> Option<u32> {
        self.by_port.get(port).copied()
    }

    /// Service ports with this number or a higher one.
    pub fn count_from(&self, number: u32) -> usize {
        self.by_number.range(number..).count()
    }

    /// The service port is gone, and so are the rows that the agent writes.
    pub fn release(&mut self, port: &PortKey, now: Instant) {
        if let Some(number) = self.by_port.remove(port) {
            self.by_number.remove(&number);
            self.note(number);
            self.retired.insert(number, now);
        }
    }

    /// All ports are known now: what a former agent gave out besides is nobody's.
    pub fn release_unknown(&mut self, now: Instant) {
        let unknown = (1..=self.last.min(MOST_LEFT_BEHIND))
            .filter(|number| !self.by_number.contains_key(number));
        for number in unknown {
            self.retired.entry(number).or_insert(now);
        }
    }

    /// Numbers whose port was gone for so long at `began` that no packet
    /// on its way knew it.
    pub fn retired_before(&self, began: Instant) -> impl Iterator<Item = u32> {
        let quiet = move |since: &Instant| *since + GRACE <= began;
        let retired = self.retired.iter();
        retired
            .filter(move |(_, since)| quiet(since))
            .map(|(number, _)| *number)
    }

    /// Nothing is left of the former ports of these numbers.
    pub fn reuse(&mut self, numbers: &BTreeSet<u32>) {
        for number in numbers {
            if self.retired.remove(number).is_some() {
                self.free.insert(*number);
            }
        }
    }

    /// The lowest that is free: traffic of low numbers is counted.
    fn fresh(&mut self) -> u32 {
        if let Some(number) = self.free.pop_first() {
            return number;
        }
        loop {
            self.last = self.last.wrapping_add(1);
            let taken =
                self.by_number.contains_key(&self.last) || self.retired.contains_key(&self.last);
            if self.last != 0 && !taken {
                return self.last;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, NamespacedName, Protocol};

    fn port(n: u32) -> PortKey {
        PortKey {
            service: NamespacedName::new("default", format!("s{n}")),
            port: String::new(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        }
    }

    #[test]
    fn a_number_comes_back_when_it_was_quiet_and_cleared() {
        let now = Instant::now();
        let mut numbers = Numbers::after(0);
        assert_eq!([1, 2, 3].map(|n| numbers.of(&port(n), None)), [1, 2, 3]);
        numbers.release(&port(2), now);
        assert_eq!(numbers.of(&port(4), None), 4, "not at once");
        let retired = |numbers: &Numbers, at| numbers.retired_before(at).collect::<BTreeSet<_>>();
        assert_eq!(retired(&numbers, now), [].into());
        assert_eq!(retired(&numbers, now + GRACE), [2].into());
        numbers.reuse(&[1, 2].into());
        assert_eq!(numbers.of(&port(5), None), 2);
        assert_eq!(numbers.of(&port(6), None), 5, "1 has its port");
        assert_eq!(numbers.count_from(4), 2);
    }

    #[test]
    fn what_a_former_agent_left_is_looked_after() {
        let now = Instant::now();
        let mut numbers = Numbers::after(4);
        assert_eq!(numbers.of(&port(1), Some(3)), 3);
        assert_eq!(numbers.of(&port(2), None), 5);
        numbers.release_unknown(now);
        let retired: Vec<u32> = numbers.retired_before(now + GRACE).collect();
        assert_eq!(retired, [1, 2, 4]);
        assert_eq!(numbers.of(&port(4), Some(4)), 4, "a row that comes late");
        numbers.reuse(&retired.into_iter().collect());
        assert_eq!([6, 7, 8].map(|n| numbers.of(&port(n), None)), [1, 2, 6]);
    }

    /// It was killed when the last port was gone and its traffic not yet cleared.
    #[test]
    fn a_number_that_only_its_traffic_tells_of_is_given_to_nobody_before_it_is_cleared() {
        let now = Instant::now();
        let mut numbers = Numbers::after(1);
        numbers.expect(2);
        assert_eq!(numbers.of(&port(1), Some(1)), 1);
        assert_eq!(numbers.of(&port(2), None), 3);
        numbers.release_unknown(now);
        let retired: BTreeSet<u32> = numbers.retired_before(now + GRACE).collect();
        assert_eq!(retired, [2].into());
        numbers.reuse(&retired);
        assert_eq!(numbers.of(&port(3), None), 2);
        numbers.expect(1);
        assert_eq!(numbers.last(), 3);
    }

    #[test]
    fn numbers_from_anywhere_do_no_harm() {
        let mut numbers = Numbers::after(u32::MAX);
        assert_eq!(numbers.of(&port(1), Some(0)), 1, "0 is no number");
        numbers.release_unknown(Instant::now());
        assert_eq!(numbers.of(&port(2), Some(u32::MAX)), u32::MAX);
        numbers.release(&port(2), Instant::now());
        assert_eq!(numbers.of(&port(3), Some(u32::MAX)), u32::MAX);
    }
}
