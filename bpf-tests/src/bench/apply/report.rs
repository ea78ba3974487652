//! Figures of the agent, as JSON and as the table of `docs/benchmarks.md`.

use std::fmt::Write as _;

use serde::Serialize;

use crate::bench::report::Machine;
use crate::bench::sample::Spread;

/// What a figure counts in; figures themselves are in nanoseconds and octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Nanoseconds, shown in milliseconds.
    Nanoseconds,
    /// Octets, shown in megabytes of 10^6.
    Octets,
}

/// What the agent took for something.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// From what to what.
    pub what: &'static str,
    /// How much there is in the cluster.
    pub among: &'static str,
    /// Of `value` and `aim`.
    pub unit: Unit,
    /// Readings that it is made of.
    pub readings: usize,
    /// The figure.
    pub value: Spread,
    /// What it is to be below.
    pub aim: Option<f64>,
}

/// What was measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct ApplyReport {
    /// Where.
    pub machine: Machine,
    /// All of it.
    pub figures: Vec<Figure>,
}

impl ApplyReport {
    /// The table.
    pub fn markdown(&self) -> String {
        let mut text = self.machine.markdown();
        text += "\n| what | among | median | middle half | readings | aim |\n|---|---|--:|--:|--:|---|\n";
        for figure in &self.figures {
            let Figure { value, .. } = figure;
            let aim = figure.aim.map_or("–".to_owned(), |aim| {
                let word = if value.middle < aim { "met" } else { "missed" };
                format!("< {}: {word}", figure.unit.shown(aim, true))
            });
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {}–{} | {} | {aim} |",
                figure.what,
                figure.among,
                figure.unit.shown(value.middle, true),
                figure.unit.shown(value.lower, false),
                figure.unit.shown(value.upper, false),
                figure.readings
            );
        }
        text
    }
}

impl Unit {
    fn shown(self, value: f64, with_name: bool) -> String {
        let (value, name) = match self {
            Self::Nanoseconds => (value / 1e6, "ms"),
            Self::Octets => (value / 1e6, "MB"),
        };
        let digits = match value {
            v if v.fract() == 0.0 || v >= 100.0 => 0,
            v if v >= 10.0 => 1,
            v if v >= 1.0 => 2,
            _ => 3,
        };
        let name = if with_name {
            format!(" {name}")
        } else {
            String::new()
        };
        format!("{value:.digits$}{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        let shown = |value| Unit::Nanoseconds.shown(value, true);
        assert_eq!(shown(1e6), "1 ms");
        assert_eq!(shown(123_456.0), "0.123 ms");
        assert_eq!(shown(5_234_567.0), "5.23 ms");
        assert_eq!(shown(312_345_678.0), "312 ms");
        assert_eq!(Unit::Octets.shown(39_650_000.0, false), "39.6");
    }

    #[test]
    fn an_aim_is_met_below_it_only() {
        let figure = |middle| Figure {
            what: "x",
            among: "y",
            unit: Unit::Octets,
            readings: 1,
            value: Spread {
                lower: middle,
                middle,
                upper: middle,
            },
            aim: Some(40e6),
        };
        let machine = Machine::detect().unwrap();
        let figures = vec![figure(40e6), figure(39e6)];
        let text = ApplyReport { machine, figures }.markdown();
        assert!(
            text.contains("| 40 MB | 40–40 | 1 | < 40 MB: missed |"),
            "{text}"
        );
        assert!(
            text.contains("| 39 MB | 39–39 | 1 | < 40 MB: met |"),
            "{text}"
        );
    }
}
