//! The page of losses.

use std::cmp::Ordering;

use crate::format;
use crate::top::grid::Column;
use crate::top::list::{Item, downwards};
use crate::top::page::Sort;
use crate::top::text::{Line, Piece, Tone, piece, plain, rate, wrap};
use crate::top::view::DropRow;

/// Columns of the page.
pub const COLUMNS: [Column; 7] = [
    Column::words("REASON", Some(Sort::Name), (22, 30), 0),
    Column::words("AT", Some(Sort::Hook), (9, 9), 2),
    Column::words("OUTCOME", None, (8, 8), 5),
    Column::numbers("PKT/S", Sort::Packets, 0, 1),
    Column::numbers("PACKETS", Sort::Total, 13, 3),
    Column {
        title: "BYTES",
        sort: None,
        least: 10,
        most: 10,
        right: true,
        rank: 4,
    },
    Column::words("WHAT", None, (30, 160), 6),
];

/// Lines below the list that say what the chosen loss means and what to do about it.
pub const DETAIL: usize = 6;

/// What a loss means and what to do about it, in so many columns and at most so many lines.
pub fn detail(row: &DropRow, columns: usize, lines: usize) -> Vec<Line> {
    let mut out = vec![vec![piece(Tone::Strong, &row.reason)]];
    let indent = columns.saturating_sub(4);
    out.extend(
        wrap(&row.what, indent)
            .into_iter()
            .map(|line| vec![plain(format!("  {line}"))]),
    );
    for (number, line) in wrap(&row.next_step, indent).into_iter().enumerate() {
        let mark = if number == 0 { "→" } else { " " };
        out.push(vec![plain(format!("  {mark} {line}"))]);
    }
    if out.len() > lines {
        out.truncate(lines);
        if let Some(last) = out.last_mut() {
            last.push(piece(Tone::Dim, "…"));
        }
    }
    out
}

impl Item for DropRow {
    type Id = (String, String);

    fn id(&self) -> (String, String) {
        (self.reason.clone(), self.hook.clone())
    }

    fn matches(&self, part: &str) -> bool {
        self.reason.contains(part) || self.hook == part || self.group == part
    }

    fn compare(&self, other: &Self, by: Sort) -> Ordering {
        match by {
            // Nothing is lost at the moment: what was lost most.
            Sort::Packets => downwards(self.packets_per_second, other.packets_per_second)
                .then_with(|| other.packets.cmp(&self.packets)),
            Sort::Total => other.packets.cmp(&self.packets),
            Sort::Hook => self.hook.cmp(&other.hook),
            _ => (&self.reason, &self.hook).cmp(&(&other.reason, &other.hook)),
        }
    }

    fn cells(&self, _: &[Column], _: &[usize]) -> Vec<Piece> {
        let now = self.packets_per_second.is_some_and(|rate| rate > 0.0);
        let tone = match (now, self.group.as_str()) {
            (false, _) => Tone::Plain,
            (true, "refused") => Tone::Warn,
            (true, _) => Tone::Bad,
        };
        vec![
            piece(tone, &self.reason),
            plain(&self.hook),
            plain(&self.group),
            piece(tone, rate(self.packets_per_second)),
            plain(format::count(self.packets)),
            plain(format::bytes(self.bytes)),
            piece(Tone::Dim, &self.what),
        ]
    }
}
