//! Time steps without waiting: the programs read the kernel's clock, which
//! tests cannot set, so rows are made older instead.

use datapath_common::{Address, Affinity, Flow, FragmentPorts, Limit, TICK_SHIFT};
use nix::time::{ClockId, clock_gettime};

/// A row that holds ticks.
pub trait Aged {
    /// The row as if it had been written this many ticks earlier. Ticks wrap.
    #[must_use]
    fn aged(self, ticks: u32) -> Self;
}

impl<A: Address> Aged for Flow<A> {
    fn aged(self, ticks: u32) -> Self {
        let (opened, seen) = (
            self.opened.wrapping_sub(ticks),
            self.seen.wrapping_sub(ticks),
        );
        Self {
            opened,
            seen,
            ..self
        }
    }
}

impl Aged for Affinity {
    fn aged(self, ticks: u32) -> Self {
        Self {
            seen: self.seen.wrapping_sub(ticks),
            ..self
        }
    }
}

impl Aged for FragmentPorts {
    fn aged(self, ticks: u32) -> Self {
        Self {
            seen: self.seen.wrapping_sub(ticks),
            ..self
        }
    }
}

impl Aged for Limit {
    fn aged(self, ticks: u32) -> Self {
        Self {
            tick: self.tick.wrapping_sub(ticks),
            ..self
        }
    }
}

/// The tick that it is by `CLOCK_MONOTONIC`, and by its coarse sibling, which
/// may be a timer interrupt behind. A program reads one of the two.
pub fn tick(coarse: bool) -> nix::Result<u32> {
    let clock = if coarse {
        ClockId::CLOCK_MONOTONIC_COARSE
    } else {
        ClockId::CLOCK_MONOTONIC
    };
    let now = clock_gettime(clock)?;
    let nanos = now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs();
    Ok((nanos >> TICK_SHIFT) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ageing_wraps_below_zero() {
        let row = Limit { tick: 3, count: 9 }.aged(5);
        assert_eq!((row.tick, row.count), (u32::MAX - 1, 9));
    }

    #[test]
    fn the_coarse_clock_is_not_ahead() {
        let coarse = tick(true).unwrap();
        assert!(coarse <= tick(false).unwrap());
    }
}
