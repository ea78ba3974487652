//! The table of services by XDP, its aims, and its plot.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Figure, TRANSLATED};
use crate::bench::plot::{Axis, Plot, Series, grouped};

/// What a packet of the aims may cost, in nanoseconds over the empty program: packet, IP
/// version, live flows. They are for direct server return, which has no source to translate.
const AIMS: [(&str, u8, u32, f64); 8] = [
    ("known flow", 4, 1, 45.0),
    ("known flow", 4, 1_000_000, 250.0),
    ("known flow", 6, 1, 55.0),
    ("for no service", 4, 1, 22.0),
    ("new flow, room", 4, 1, 250.0),
    ("new flow, room", 6, 1, 250.0),
    ("new flow, beyond the limit", 4, 1000, 100.0),
    ("new flow, beyond the limit", 6, 1000, 100.0),
];

/// The tables.
pub fn markdown(figures: &[Figure]) -> String {
    let mut text = String::from(
        "| packet | way | IP | live flows | ns | middle half | aim |\n|---|---|---|--:|--:|--:|---|\n",
    );
    for figure in figures {
        let Figure { over_empty, .. } = figure;
        let aim = AIMS.iter().find(|(packet, version, flows, _)| {
            (*packet, *version, *flows) == (figure.packet, figure.version, figure.flows)
        });
        let aim = aim.map_or("–".to_owned(), |(.., limit)| {
            let word = if over_empty.middle <= *limit {
                "met"
            } else {
                "missed"
            };
            format!("{limit:.0}: {word}")
        });
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.0} | {:.0}–{:.0} | {aim} |",
            figure.packet,
            figure.way,
            figure.version,
            grouped(&figure.flows.to_string()),
            over_empty.middle,
            over_empty.lower,
            over_empty.upper
        );
    }
    text
}

/// Writes the plot into a directory and returns the line that shows it, for a page beside that
/// directory.
pub fn draw(figures: &[Figure], directory: &Path) -> Result<String> {
    const FILE: &str = "services-by-xdp.svg";
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let name = directory.file_name().and_then(|name| name.to_str());
    let name = name.context("the directory of plots has no name")?;
    let path = directory.join(FILE);
    std::fs::write(&path, plot(figures)?).with_context(|| format!("write {}", path.display()))?;
    Ok(format!("\n![Services by XDP]({name}/{FILE})\n"))
}

/// Nanoseconds over live flows, as SVG.
fn plot(figures: &[Figure]) -> Result<String> {
    let mut series: Vec<Series> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.way == TRANSLATED) {
        let name = format!("{}, IPv{}", figure.packet, figure.version);
        let point = (f64::from(figure.flows), figure.over_empty.middle);
        match series.iter_mut().find(|series| series.name == name) {
            Some(held) => held.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    // One point is no line.
    series.retain(|series| series.points.len() > 1);
    let plot = Plot {
        title: "Services by XDP".to_owned(),
        x: Axis {
            name: "live flows",
            log: true,
        },
        y: Axis {
            name: "nanoseconds over the empty program",
            log: false,
        },
        series,
    };
    plot.svg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::Spread;

    fn figure(packet: &'static str, flows: u32, middle: f64) -> Figure {
        Figure {
            packet,
            way: TRANSLATED,
            version: 4,
            flows,
            over_empty: Spread {
                lower: middle,
                middle,
                upper: middle,
            },
        }
    }

    #[test]
    fn aims_are_held_against_their_own_figures() {
        let figures = [
            figure("known flow", 1, 44.0),
            figure("known flow", 16_000, 60.0),
            figure("known flow", 1_000_000, 251.0),
        ];
        let text = markdown(&figures);
        assert!(text.contains("| 1 | 44 | 44–44 | 45: met |"), "{text}");
        assert!(text.contains("| 16,000 | 60 | 60–60 | – |"), "{text}");
        assert!(text.contains("| 251 | 251–251 | 250: missed |"), "{text}");
        assert!(plot(&figures).unwrap().contains("known flow, IPv4"));
    }
}
