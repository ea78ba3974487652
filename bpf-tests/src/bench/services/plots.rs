//! The plots of `docs/benchmarks.md`: a figure over the number of services, a
//! line for each way.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::report::{Case, ServicesReport};
use super::ways::{Figure, Front, Way, Work};
use crate::bench::plot::{Axis, Plot, Series};

/// What is drawn for each front.
const DRAWN: [(Work, Figure); 4] = [
    (Work::Connect, Figure::Rate),
    (Work::Exchange, Figure::Rate),
    (Work::Connect, Figure::FirstMedian),
    (Work::Datagram, Figure::FirstMedian),
];

/// Writes all plots into a directory and returns the lines that show them, for a
/// page beside that directory.
pub fn write(report: &ServicesReport, directory: &Path) -> Result<String> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let mut text = String::from("\n### Plots of services\n\n");
    let name = directory.file_name().and_then(|name| name.to_str());
    let name = name.context("the directory of plots has no name")?;
    for front in Front::ALL {
        for (work, figure) in DRAWN {
            let file = format!("services-{}-{}.svg", front.file(), work.file(figure));
            let plot = plot(report, front, work, figure);
            if plot.series.iter().all(|series| series.points.is_empty()) {
                continue;
            }
            let path = directory.join(&file);
            std::fs::write(&path, plot.svg()?)
                .with_context(|| format!("write {}", path.display()))?;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "![{}]({name}/{file})\n", plot.title);
        }
    }
    Ok(text)
}

fn plot(report: &ServicesReport, front: Front, work: Work, figure: Figure) -> Plot {
    let ways = Way::ALL
        .into_iter()
        .filter(|way| front.ways().contains(way));
    let series = ways.map(|way| {
        let points = report.services().into_iter().filter_map(|services| {
            let case = Case {
                front,
                work,
                services,
            };
            let value = report.value(case, figure, way)?;
            Some((services as f64, value.middle))
        });
        Series {
            name: way.name().to_owned(),
            points: points.collect(),
        }
    });
    Plot {
        title: format!("{}: {}", front.name(), work.title(figure)),
        x: Axis {
            name: "services",
            log: true,
        },
        y: Axis {
            name: work.unit(figure),
            // Times differ by powers of ten.
            log: !figure.more_is_better(),
        },
        series: series.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_plot_has_a_line_for_each_way_of_its_front() {
        let report = report(&[1, 10, 1_000], |case, _| 1e6 / case.services as f64);
        for front in Front::ALL {
            for (work, figure) in DRAWN {
                let plot = plot(&report, front, work, figure);
                let points = plot.series.iter().map(|series| series.points.len());
                let drawn = points.filter(|points| *points == 3).count();
                assert_eq!(drawn, front.ways().len());
                assert!(plot.svg().unwrap().contains(front.name()));
            }
        }
    }
}
