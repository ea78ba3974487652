//! Figures out of many noisy readings.

use serde::Serialize;

/// A distribution by its middle half, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Spread {
    /// A quarter of the readings is below.
    pub lower: f64,
    /// Mean of the middle half: steady as the median, and finer where the clock
    /// is coarse.
    pub middle: f64,
    /// Three quarters are below.
    pub upper: f64,
}

impl Spread {
    /// The same, further up.
    #[must_use]
    pub fn shifted(self, by: f64) -> Self {
        Self {
            lower: self.lower + by,
            middle: self.middle + by,
            upper: self.upper + by,
        }
    }

    /// Of readings; `None` without any.
    pub fn of(mut readings: Vec<f64>) -> Option<Self> {
        readings.sort_by(f64::total_cmp);
        Some(Self {
            lower: quantile(&readings, 1)?,
            middle: middle(&readings)?,
            upper: quantile(&readings, 3)?,
        })
    }
}

/// The mean of the middle half of sorted readings.
fn middle(sorted: &[f64]) -> Option<f64> {
    let quarter = sorted.len() / 4;
    let half = sorted.get(quarter..sorted.len() - quarter)?;
    if half.is_empty() {
        return None;
    }
    Some(half.iter().sum::<f64>() / half.len() as f64)
}

/// The quarter `quarters` of sorted readings, between two where it falls so.
fn quantile(sorted: &[f64], quarters: usize) -> Option<f64> {
    let at = sorted.len().checked_sub(1)? * quarters;
    let (low, rest) = (at / 4, (at % 4) as f64 / 4.0);
    let first = sorted.get(low)?;
    let second = sorted.get(low + 1).unwrap_or(first);
    Some(first + (second - first) * rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_fall_on_and_between_readings() {
        let spread = Spread::of(vec![5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!((spread.lower, spread.middle, spread.upper), (2.0, 3.0, 4.0));
        let spread = Spread::of(vec![4.0, 1.0]).unwrap();
        assert_eq!(
            (spread.lower, spread.middle, spread.upper),
            (1.75, 2.5, 3.25)
        );
        // One reading in a thousand that an interrupt fell into changes nothing.
        let spread = Spread::of(vec![1.0, 2.0, 3.0, 9000.0]).unwrap();
        assert!((spread.middle - 2.5).abs() < 1e-9);
        assert_eq!(Spread::of(Vec::new()), None);
    }
}
