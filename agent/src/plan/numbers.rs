//! Service numbers: one for each service port and family, as long as it lives.

use std::collections::HashMap;

use super::desired::PortKey;

/// Which number stands for which service port.
#[derive(Clone, Debug)]
pub struct Numbers {
    by_port: HashMap<PortKey, u32>,
    by_number: HashMap<u32, PortKey>,
    next: u32,
}

impl Numbers {
    /// No numbers given out; those up to `highest` are left to [`Numbers::of`].
    pub fn after(highest: u32) -> Self {
        Self {
            by_port: HashMap::new(),
            by_number: HashMap::new(),
            next: highest,
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
        self.by_port.insert(port.clone(), number);
        self.by_number.insert(number, port.clone());
        number
    }

    /// The service port behind a number.
    pub fn name(&self, number: u32) -> Option<&PortKey> {
        self.by_number.get(&number)
    }

    /// The number of `port`, if it has one.
    pub fn get(&self, port: &PortKey) -> Option<u32> {
        self.by_port.get(port).copied()
    }

    /// The service port is gone, and so are its rows.
    pub fn release(&mut self, port: &PortKey) {
        if let Some(number) = self.by_port.remove(port) {
            self.by_number.remove(&number);
        }
    }

    /// Numbers count up, so that flows of a port that is gone do not get another's name.
    fn fresh(&mut self) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1);
            if self.next != 0 && !self.by_number.contains_key(&self.next) {
                return self.next;
            }
        }
    }
}
