//! Figures of all ways, as JSON and as the tables of `docs/benchmarks.md`.

use std::fmt::Write as _;

use serde::Serialize;

use super::aims;
use super::ways::{Figure, Front, Way, Work};
use crate::bench::plot::grouped;
use crate::bench::report::Machine;
use crate::bench::sample::Spread;

/// Ways that are compared: the first over the second.
const PAIRS: [(Way, Way); 9] = [
    (Way::TulleSockets, Way::TulleDirect),
    (Way::TullePackets, Way::TulleDirect),
    (Way::TullePackets, Way::Nftables),
    (Way::TullePackets, Way::Iptables),
    (Way::TullePackets, Way::Ipvs),
    (Way::TulleSockets, Way::Nftables),
    (Way::TulleSockets, Way::Iptables),
    // What no translation can be above.
    (Way::TulleDirect, Way::Nftables),
    (Way::TulleDirect, Way::Iptables),
];

/// Ways that translate, each with the one on its node that does not.
const ADDED: [(Way, Way); 5] = [
    (Way::TulleSockets, Way::TulleDirect),
    (Way::TullePackets, Way::TulleDirect),
    (Way::Nftables, Way::KernelDirect),
    (Way::Iptables, Way::KernelDirect),
    (Way::Ipvs, Way::KernelDirect),
];

/// What is measured: where, what, and with how many services.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Case {
    /// What is asked.
    pub front: Front,
    /// What is sent.
    pub work: Work,
    /// Services that are there.
    pub services: usize,
}

/// Readings of one case, round by round.
pub struct Readings {
    /// Of what.
    pub case: Case,
    /// For each way, the rounds' rate and times.
    rounds: Vec<(Way, Vec<Reading>)>,
}

/// One measurement.
struct Reading {
    rate: f64,
    first: Vec<f64>,
}

/// A figure of one way.
#[derive(Clone, Debug, Serialize)]
pub struct Value {
    /// Of what.
    #[serde(flatten)]
    pub case: Case,
    /// What was read.
    pub figure: Figure,
    /// How it got there.
    pub way: Way,
    /// Over all rounds.
    pub spread: Spread,
}

/// A way beside another.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// Of what.
    #[serde(flatten)]
    pub case: Case,
    /// What was read.
    pub figure: Figure,
    /// The numerator.
    pub way: Way,
    /// The denominator.
    pub over: Way,
    /// Of readings of the same round, over all rounds.
    pub spread: Spread,
}

/// What a way's translation takes.
#[derive(Clone, Debug, Serialize)]
pub struct Added {
    /// Of what.
    #[serde(flatten)]
    pub case: Case,
    /// What was read.
    pub figure: Figure,
    /// The way.
    pub way: Way,
    /// Microseconds over the pod's own address on the same node, of readings of
    /// the same round: of a rate, those of one exchange or connection.
    pub micros: Spread,
}

/// What was measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct ServicesReport {
    /// Where.
    pub machine: Machine,
    /// The program that iptables' rules were loaded with.
    pub iptables: &'static str,
    /// All figures.
    pub values: Vec<Value>,
    /// What is compared.
    pub ratios: Vec<Ratio>,
    /// What translation adds.
    pub added: Vec<Added>,
}

impl Readings {
    /// Without readings.
    pub fn new(case: Case) -> Self {
        let ways = case.front.ways().iter();
        Self {
            case,
            rounds: ways.map(|way| (*way, Vec::new())).collect(),
        }
    }

    /// Adds a measurement: each way has one in each round.
    pub fn add(&mut self, way: Way, rate: f64, first: Vec<f64>) {
        if let Some((_, rounds)) = self.rounds.iter_mut().find(|(of, _)| *of == way) {
            rounds.push(Reading { rate, first });
        }
    }

    /// A figure, round by round.
    fn read(&self, way: Way, figure: Figure) -> Vec<f64> {
        let rounds = self.rounds.iter().find(|(of, _)| *of == way);
        let rounds = rounds.map_or(&[][..], |(_, rounds)| rounds);
        let read = |reading: &Reading| figure.read(reading.rate, &reading.first);
        rounds.iter().filter_map(read).collect()
    }
}

impl ServicesReport {
    /// Of all readings.
    pub fn new(machine: Machine, iptables: &'static str, all: &[Readings]) -> Self {
        let (mut values, mut ratios, mut added) = (Vec::new(), Vec::new(), Vec::new());
        for readings in all {
            let case = readings.case;
            for figure in case.work.figures().iter().copied() {
                for way in case.front.ways().iter().copied() {
                    if let Some(spread) = Spread::of(readings.read(way, figure)) {
                        values.push(Value {
                            case,
                            figure,
                            way,
                            spread,
                        });
                    }
                }
                for (way, over) in PAIRS {
                    let (mine, theirs) = (readings.read(way, figure), readings.read(over, figure));
                    let pairs = mine.iter().zip(&theirs).map(|(mine, theirs)| mine / theirs);
                    if let Some(spread) = Spread::of(pairs.collect()) {
                        ratios.push(Ratio {
                            case,
                            figure,
                            way,
                            over,
                            spread,
                        });
                    }
                }
                for (way, over) in ADDED {
                    let micros = |way| {
                        let read = readings.read(way, figure).into_iter();
                        read.map(|value| figure.micros(value)).collect::<Vec<_>>()
                    };
                    let (mine, theirs) = (micros(way), micros(over));
                    let pairs = mine.iter().zip(&theirs).map(|(mine, theirs)| mine - theirs);
                    if let Some(micros) = Spread::of(pairs.collect()) {
                        added.push(Added {
                            case,
                            figure,
                            way,
                            micros,
                        });
                    }
                }
            }
        }
        Self {
            machine,
            iptables,
            values,
            ratios,
            added,
        }
    }

    /// Numbers of services, ascending.
    pub fn services(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.values.iter().map(|v| v.case.services).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether a way was measured at all.
    fn has(&self, way: Way) -> bool {
        self.values.iter().any(|value| value.way == way)
    }

    /// A way's figure.
    pub fn value(&self, case: Case, figure: Figure, way: Way) -> Option<Spread> {
        let mut of = self.values.iter();
        let found = of.find(|v| v.case == case && v.figure == figure && v.way == way);
        found.map(|v| v.spread)
    }

    /// A way over another.
    pub fn ratio(&self, case: Case, figure: Figure, way: Way, over: Way) -> Option<Spread> {
        let mut of = self.ratios.iter();
        let found =
            of.find(|r| r.case == case && r.figure == figure && r.way == way && r.over == over);
        found.map(|r| r.spread)
    }

    /// All tables.
    pub fn markdown(&self) -> String {
        let mut text = format!("\n{}", self.machine.markdown());
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "The rules of iptables were loaded by `{}-restore`.",
            self.iptables
        );
        text += "\n### Aims of services\n\n";
        text += &aims::table(self);
        text += "\n### Where Tulle loses\n\n";
        text += &aims::losses(self);
        text += "\n### What translation adds\n\n";
        text += &self.added_table();
        for front in Front::ALL {
            let _ = writeln!(text, "\n### Through a {}\n", front.name());
            text += &self.values_table(front);
            let _ = writeln!(text, "\n### Through a {}, ratios\n", front.name());
            text += &self.ratios_table(front);
        }
        text
    }

    fn added_table(&self) -> String {
        let mut text = String::from("| to | load | services |");
        let added = ADDED.into_iter().filter(|(way, _)| self.has(*way));
        let added: Vec<_> = added.collect();
        for (way, _) in &added {
            let _ = write!(text, " {}, µs |", way.name());
        }
        text += "\n|---|---|--:|";
        text += &"--:|".repeat(added.len());
        text.push('\n');
        for front in Front::ALL {
            for (work, figure) in steady() {
                for services in self.services() {
                    let case = Case {
                        front,
                        work,
                        services,
                    };
                    let (name, number) = (work.title(figure), grouped(&services.to_string()));
                    let _ = write!(text, "| {} | {name} | {number} |", front.name());
                    for (way, _) in &added {
                        let mut of = self.added.iter();
                        let found =
                            of.find(|a| a.case == case && a.figure == figure && a.way == *way);
                        let cell = found.map(|found| shown(found.micros));
                        let _ = write!(text, " {} |", cell.as_deref().unwrap_or("–"));
                    }
                    text.push('\n');
                }
            }
        }
        text
    }

    fn values_table(&self, front: Front) -> String {
        let ways: Vec<Way> = Way::ALL
            .into_iter()
            .filter(|way| front.ways().contains(way) && self.has(*way))
            .collect();
        let mut text = String::from("| load | unit | services |");
        for way in &ways {
            let _ = write!(text, " {} |", way.name());
        }
        text += "\n|---|---|--:|";
        text += &"--:|".repeat(ways.len());
        text.push('\n');
        for (work, figure) in figures() {
            for services in self.services() {
                let case = Case {
                    front,
                    work,
                    services,
                };
                let _ = write!(
                    text,
                    "| {} | {} | {} |",
                    work.title(figure),
                    work.unit(figure),
                    grouped(&services.to_string())
                );
                for way in &ways {
                    let cell = self.value(case, figure, *way).map(|value| {
                        let digits = usize::from(figure != Figure::Rate);
                        format!("{:.digits$}", value.middle)
                    });
                    let _ = write!(text, " {} |", cell.as_deref().unwrap_or("–"));
                }
                text.push('\n');
            }
        }
        text
    }

    fn ratios_table(&self, front: Front) -> String {
        let has = |way: &Way| front.ways().contains(way) && self.has(*way);
        let pairs = PAIRS.iter().filter(|(way, _)| !way.is_direct());
        let pairs: Vec<_> = pairs.filter(|(way, over)| has(way) && has(over)).collect();
        let mut text = String::from("| load | services |");
        for (way, over) in &pairs {
            let _ = write!(text, " {} / {} |", way.name(), over.name());
        }
        text += "\n|---|--:|";
        text += &"--:|".repeat(pairs.len());
        text.push('\n');
        for (work, figure) in steady() {
            for services in self.services() {
                let case = Case {
                    front,
                    work,
                    services,
                };
                let name = work.title(figure);
                let _ = write!(text, "| {name} | {} |", grouped(&services.to_string()));
                for (way, over) in &pairs {
                    let cell = self.ratio(case, figure, *way, *over).map(shown);
                    let _ = write!(text, " {} |", cell.as_deref().unwrap_or("–"));
                }
                text.push('\n');
            }
        }
        text
    }
}

/// A ratio, or a few microseconds, with its middle half.
pub fn shown(spread: Spread) -> String {
    let Spread {
        lower,
        middle,
        upper,
    } = spread;
    format!("{middle:.2} ({lower:.2}–{upper:.2})")
}

/// All figures of all loads.
pub fn figures() -> impl Iterator<Item = (Work, Figure)> {
    let works = Work::ALL.into_iter();
    works.flat_map(|work| work.figures().iter().map(move |figure| (work, *figure)))
}

/// Those that one late packet does not move.
fn steady() -> impl Iterator<Item = (Work, Figure)> {
    figures().filter(|(_, figure)| *figure != Figure::FirstLate)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A report in which each way has a rate and a time in each of three rounds.
    pub fn report(services: &[usize], of: impl Fn(Case, Way) -> f64) -> ServicesReport {
        let mut all = Vec::new();
        for front in Front::ALL {
            for work in Work::ALL {
                for services in services.iter().copied() {
                    let case = Case {
                        front,
                        work,
                        services,
                    };
                    let mut readings = Readings::new(case);
                    // Rounds differ by much, ways within a round do not.
                    for round in [1.0, 2.0, 4.0] {
                        for way in front.ways() {
                            let rate = of(case, *way) * round;
                            readings.add(*way, rate, vec![1e6 / rate; 10]);
                        }
                    }
                    all.push(readings);
                }
            }
        }
        let machine = Machine {
            kernel: "6.18".into(),
            cpu: "a processor".into(),
            cpus: 2,
            spectre_v2: "none".into(),
            return_overflow: "none".into(),
        };
        ServicesReport::new(machine, "iptables-legacy", &all)
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let report = report(&[1, 10], |_, way| match way {
            Way::TullePackets => 300.0,
            Way::Nftables => 200.0,
            _ => 100.0,
        });
        let case = Case {
            front: Front::ClusterIp,
            work: Work::Connect,
            services: 10,
        };
        let ratio = report.ratio(case, Figure::Rate, Way::TullePackets, Way::Nftables);
        let ratio = ratio.unwrap();
        assert_eq!((ratio.lower, ratio.middle, ratio.upper), (1.5, 1.5, 1.5));
        let value = report.value(case, Figure::Rate, Way::TullePackets).unwrap();
        assert!(value.lower < value.middle && value.middle < value.upper);
        assert_eq!(report.services(), [1, 10]);
        // 1/200 s, less 1/100 s, and twice and four times as fast.
        let mut added = report.added.iter();
        let added =
            added.find(|a| a.case == case && a.figure == Figure::Rate && a.way == Way::Nftables);
        let added = added.unwrap().micros;
        assert_eq!((added.lower, added.upper), (-3750.0, -1875.0));
    }

    #[test]
    fn tables_have_a_row_for_each_figure_and_number() {
        let report = report(&[1, 50_000], |_, _| 100.0);
        let text = report.markdown();
        let rows = text
            .lines()
            .filter(|line| line.contains("| 50,000 |"))
            .count();
        // Two fronts: six figures, four of them as ratios, and as what is added.
        assert_eq!(rows, 2 * (6 + 4 + 4));
        assert!(!text.contains("NaN") && !text.contains("inf"));
        // Every line of a table has as many cells as its head.
        for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
            let cells = |line: &str| line.matches('|').count();
            let mut lines = table.lines();
            let head = cells(lines.next().unwrap());
            assert!(lines.all(|line| cells(line) == head), "{table}");
        }
    }
}
