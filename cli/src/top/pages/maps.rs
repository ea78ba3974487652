//! The page of maps.

use std::cmp::Ordering;

use datapath_common::maps;

use crate::format;
use crate::tables::MapUsage;
use crate::top::grid::Column;
use crate::top::list::{Item, downwards};
use crate::top::page::Sort;
use crate::top::text::{Piece, Tone, bar, piece, plain};

/// Columns of the page.
pub const COLUMNS: [Column; 7] = [
    Column::words("MAP", Some(Sort::Name), (15, 15), 0),
    Column::words(BAR, None, (10, 40), 4),
    Column::numbers("FULL", Sort::Full, 7, 1),
    Column::numbers("USED", Sort::Total, 11, 2),
    Column {
        title: "LIMIT",
        sort: None,
        least: 11,
        most: 11,
        right: true,
        rank: 3,
    },
    Column::numbers("MEMORY", Sort::Memory, 10, 5),
    Column::words("HOLDS", None, (30, 160), 6),
];

/// Title of the column of bars.
const BAR: &str = "";

/// Maps whose rows belong to numbers that exist elsewhere, to words that are shared, or to a watcher:
/// they never fill up.
const FIXED: [&str; 5] = [
    maps::LIVE_V4,
    maps::LIVE_V6,
    maps::LOCKS,
    maps::MONITOR,
    maps::TURNS,
];

/// Part of the map that is in use, if it can fill up.
pub fn fullness(map: &MapUsage) -> Option<f64> {
    if FIXED.contains(&map.name.as_str()) || map.limit == 0 {
        return None;
    }
    map.used.map(|used| used as f64 / map.limit as f64)
}

/// How a map looks that is as full as this.
pub fn tone(fullness: Option<f64>) -> Tone {
    match fullness {
        Some(part) if part >= 0.9 => Tone::Bad,
        Some(part) if part >= 0.75 => Tone::Warn,
        Some(part) if part > 0.0 => Tone::Good,
        _ => Tone::Dim,
    }
}

impl Item for MapUsage {
    type Id = String;

    fn id(&self) -> String {
        self.name.clone()
    }

    fn matches(&self, part: &str) -> bool {
        self.name.contains(part) || self.what.to_lowercase().contains(part)
    }

    fn compare(&self, other: &Self, by: Sort) -> Ordering {
        match by {
            // Of those that were not counted to the end nobody knows: they come first.
            Sort::Full => other
                .at_least
                .cmp(&self.at_least)
                .then_with(|| downwards(fullness(self), fullness(other)))
                .then_with(|| other.used.cmp(&self.used)),
            Sort::Total => other.used.cmp(&self.used),
            Sort::Memory => other.memory_bytes.cmp(&self.memory_bytes),
            _ => self.name.cmp(&other.name),
        }
    }

    fn cells(&self, columns: &[Column], widths: &[usize]) -> Vec<Piece> {
        let part = fullness(self);
        let tone = match tone(part) {
            Tone::Good | Tone::Dim if self.at_least => Tone::Warn,
            tone => tone,
        };
        let least = if self.at_least { "≥" } else { "" };
        let columns = columns.iter().zip(widths);
        let room = columns.filter(|(column, _)| column.title == BAR);
        let room = room.map(|(_, width)| *width).next().unwrap_or(0);
        let ring = self.name == maps::EVENTS;
        let used = self.used.map_or_else(
            || "-".into(),
            |used| format!("{least}{}", format::count(used)),
        );
        let (bar, full) = match (part, self.used) {
            (Some(_), Some(used)) => (
                bar(used, self.limit, room),
                format!("{least}{}", format::percent(used, self.limit)),
            ),
            _ => (String::new(), "-".into()),
        };
        let limit = if ring {
            format::bytes(self.limit)
        } else {
            format::count(self.limit)
        };
        vec![
            plain(&self.name),
            piece(tone, bar),
            piece(tone, full),
            plain(used),
            plain(limit),
            plain(self.memory_bytes.map_or_else(|| "-".into(), format::bytes)),
            piece(Tone::Dim, &self.what),
        ]
    }
}
