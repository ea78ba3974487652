//! Rates of both sides, as JSON and as the table of `docs/benchmarks.md`.

use std::fmt::Write as _;

use serde::Serialize;

use super::hosts::{Side, Target};
use crate::bench::sample::Spread;
use crate::bench::traffic::Load;

/// What Tulle's request/response rate is to be, pod to pod, as a multiple of
/// the kernel's.
const AIM: f64 = 1.2;

/// Readings of one load.
pub struct Row {
    target: Target,
    /// The load.
    pub load: Load,
    tulle: Vec<f64>,
    kernel: Vec<f64>,
}

/// A load's rates.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// Where it goes.
    pub target: &'static str,
    /// What it is.
    pub load: &'static str,
    /// Unit of the rates.
    pub unit: &'static str,
    /// Tulle's.
    pub tulle: Spread,
    /// The kernel's.
    pub kernel: Spread,
    /// Tulle's over the kernel's, of measurements that followed each other.
    pub ratio: Spread,
}

/// What was measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct WireReport {
    /// Every load to every target.
    pub rates: Vec<Rate>,
}

impl Row {
    /// Without readings.
    pub fn new(target: Target, load: Load) -> Self {
        Self {
            target,
            load,
            tulle: Vec::new(),
            kernel: Vec::new(),
        }
    }

    /// Adds a reading.
    pub fn add(&mut self, side: &Side, rate: f64) {
        if side.is_kernel() {
            self.kernel.push(rate);
        } else {
            self.tulle.push(rate);
        }
    }

    fn rate(self) -> Option<Rate> {
        let pairs = self.tulle.iter().zip(&self.kernel);
        let ratio = Spread::of(pairs.map(|(tulle, kernel)| tulle / kernel).collect())?;
        Some(Rate {
            target: self.target.name(),
            load: self.load.name,
            unit: self.load.unit,
            tulle: Spread::of(self.tulle)?,
            kernel: Spread::of(self.kernel)?,
            ratio,
        })
    }
}

impl WireReport {
    /// Of all readings.
    pub fn new(rows: Vec<Row>) -> Self {
        Self {
            rates: rows.into_iter().filter_map(Row::rate).collect(),
        }
    }

    /// The table.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "\n### Pod to pod across nodes\n\n\
             | to | load | unit | Tulle | kernel | ratio | middle half | aim |\n\
             |---|---|---|--:|--:|--:|--:|---|\n",
        );
        for rate in &self.rates {
            let aim = if rate.target != Target::Pod.name() || rate.unit == "Gbit/s" {
                "–".to_owned()
            } else if rate.ratio.middle >= AIM {
                format!("{AIM}: met")
            } else {
                format!("{AIM}: missed")
            };
            let digits = if rate.unit == "Gbit/s" { 2 } else { 0 };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.digits$} | {:.digits$} | {:.2} | {:.2}–{:.2} | {aim} |",
                rate.target,
                rate.load,
                rate.unit,
                rate.tulle.middle,
                rate.kernel.middle,
                rate.ratio.middle,
                rate.ratio.lower,
                rate.ratio.upper,
            );
        }
        text
    }
}
