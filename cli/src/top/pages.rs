//! What the pages show, as lines: on the screen and in `--once`.

pub mod backends;
pub mod drops;
pub mod header;
pub mod help;
pub mod maps;
pub mod overview;
pub mod services;

use crate::top::grid::{self, Column};
use crate::top::list::{Item, List};
use crate::top::text::Line;

/// The titles of a list and its rows on the screen, the chosen one marked.
pub struct Shown {
    /// Titles of the columns.
    pub titles: Line,
    /// Rows, and which is the chosen one.
    pub rows: Vec<(Line, bool)>,
}

/// The rows of a list that are on the screen, in lines of so many columns.
pub fn shown<T: Item>(list: &List<T::Id>, rows: &[T], columns: &[Column], room: usize) -> Shown {
    let widths = grid::widths(columns, room);
    let rows = list.shown(rows).map(|(row, chosen)| {
        let cells = row.cells(columns, &widths);
        (grid::row(columns, &widths, cells), chosen)
    });
    Shown {
        titles: grid::titles(columns, &widths, Some((list.sort, list.reversed))),
        rows: rows.collect(),
    }
}
