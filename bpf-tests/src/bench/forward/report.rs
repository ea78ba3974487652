//! The table of services by XDP, its aims, and its plot.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::Figure;
use super::way::Way;
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
        let direct = figure.way != Way::Translated.name();
        let aim = AIMS.iter().find(|(packet, version, flows, _)| {
            direct && (*packet, *version, *flows) == (figure.packet, figure.version, figure.flows)
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

/// A plot: its file, its title, what the names of its packets begin with, and whether a logarithm
/// is needed to see all.
const PLOTS: [(&str, &str, &str, bool); 2] = [
    (
        "services-by-xdp.svg",
        "Services by XDP: known flows",
        "known flow",
        false,
    ),
    (
        "services-by-xdp-new.svg",
        "Services by XDP: new flows",
        "new flow, room",
        true,
    ),
];

/// Writes the plots into a directory and returns the lines that show them, for a page beside that
/// directory.
pub fn draw(figures: &[Figure], directory: &Path) -> Result<String> {
    std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let name = directory.file_name().and_then(|name| name.to_str());
    let name = name.context("the directory of plots has no name")?;
    let mut lines = String::new();
    for (file, title, packet, log) in PLOTS {
        let path = directory.join(file);
        let svg = plot(figures, title, packet, log)?;
        std::fs::write(&path, svg).with_context(|| format!("write {}", path.display()))?;
        // Writing to a String cannot fail.
        let _ = write!(lines, "\n![{title}]({name}/{file})\n");
    }
    Ok(lines)
}

/// What the legend, which is narrow, calls a way.
fn short(way: &str) -> Option<&'static str> {
    let way = Way::ALL.into_iter().find(|known| known.name() == way)?;
    Some(match way {
        Way::Translated => "translated",
        Way::Direct => "direct",
    })
}

/// Nanoseconds of a packet over live flows by each way, as SVG.
fn plot(figures: &[Figure], title: &str, packet: &str, log: bool) -> Result<String> {
    let mut series: Vec<Series> = Vec::new();
    for figure in figures.iter().filter(|figure| figure.packet == packet) {
        let Some(way) = short(figure.way) else {
            continue;
        };
        let name = format!("{way}, IPv{}", figure.version);
        let point = (f64::from(figure.flows), figure.over_empty.middle);
        match series.iter_mut().find(|series| series.name == name) {
            Some(held) => held.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    let plot = Plot {
        title: title.to_owned(),
        x: Axis {
            name: "live flows",
            log: true,
        },
        y: Axis {
            name: "nanoseconds over the empty program",
            log,
        },
        series,
    };
    plot.svg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::Spread;

    fn figure(way: Way, packet: &'static str, flows: u32, middle: f64) -> Figure {
        Figure {
            packet,
            way: way.name(),
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
            figure(Way::Direct, "known flow", 1, 44.0),
            figure(Way::Direct, "known flow", 16_000, 60.0),
            figure(Way::Direct, "known flow", 1_000_000, 251.0),
            figure(Way::Translated, "known flow", 1, 200.0),
        ];
        let text = markdown(&figures);
        assert!(text.contains("| 1 | 44 | 44–44 | 45: met |"), "{text}");
        assert!(text.contains("| 16,000 | 60 | 60–60 | – |"), "{text}");
        assert!(text.contains("| 251 | 251–251 | 250: missed |"), "{text}");
        assert!(text.contains("| 200 | 200–200 | – |"), "{text}");
    }

    #[test]
    fn a_plot_shows_all_ways_of_its_packet() {
        let figures = [
            figure(Way::Translated, "known flow", 1, 200.0),
            figure(Way::Direct, "known flow", 1, 44.0),
            figure(Way::Direct, "for no service", 1, 22.0),
        ];
        let svg = plot(&figures, "all ways", "known flow", false).unwrap();
        for name in ["translated, IPv4", "direct, IPv4"] {
            assert!(svg.contains(name), "{name} in {svg}");
        }
        let marks = svg.matches("<circle").count();
        assert_eq!(marks, 2, "the first way has a point, and one in the legend");
        assert!(plot(&figures, "nothing", "new flow, room", true).is_err());
    }
}
