//! Columns that fit a terminal: the ones that matter most are shown, names take what is left.

use crate::top::page::Sort;
use crate::top::text::{Line, Piece, Tone, fit, piece, plain};

/// Blanks between two columns.
const GAP: usize = 1;

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// What sorts by it.
    pub sort: Option<Sort>,
    /// Columns of the terminal that it needs.
    pub least: usize,
    /// Columns of the terminal that it has use for.
    pub most: usize,
    /// Whether it holds numbers.
    pub right: bool,
    /// The lower, the more it matters.
    pub rank: u8,
}

impl Column {
    /// A column of words, from `least` to `most` wide.
    pub const fn words(
        title: &'static str,
        sort: Option<Sort>,
        (least, most): (usize, usize),
        rank: u8,
    ) -> Self {
        Self {
            title,
            sort,
            least,
            most,
            right: false,
            rank,
        }
    }

    /// A column of numbers. Its title and the mark of a sorted column always fit.
    pub const fn numbers(title: &'static str, sort: Sort, width: usize, rank: u8) -> Self {
        // Titles are ASCII.
        let least = if width > title.len() {
            width
        } else {
            title.len() + 1
        };
        Self {
            title,
            sort: Some(sort),
            least,
            most: least,
            right: true,
            rank,
        }
    }
}

/// Width of each column in a room of so many; 0 for one that is left out.
pub fn widths(columns: &[Column], room: usize) -> Vec<usize> {
    let mut by_rank: Vec<usize> = (0..columns.len()).collect();
    by_rank.sort_by_key(|at| columns.get(*at).map(|column| column.rank));
    let mut widths = vec![0; columns.len()];
    let mut left = room;
    let mut first = true;
    for at in &by_rank {
        if let (Some(column), Some(width)) = (columns.get(*at), widths.get_mut(*at)) {
            let gap = if first { 0 } else { GAP };
            if column.least + gap <= left {
                *width = column.least;
                left -= column.least + gap;
                first = false;
            } else if first {
                // Nothing else has been shown: better cut than nothing.
                *width = left;
                left = 0;
                first = false;
            }
        }
    }
    for at in by_rank {
        if let (Some(column), Some(width)) = (columns.get(at), widths.get_mut(at))
            && *width > 0
        {
            let more = left.min(column.most.saturating_sub(*width));
            *width += more;
            left -= more;
        }
    }
    widths
}

/// The titles; the sorted column has a mark.
pub fn titles(columns: &[Column], widths: &[usize], sorted: Option<(Sort, bool)>) -> Line {
    let cells = columns.iter().map(|column| {
        let mark = match sorted {
            Some((sort, reversed)) if column.sort == Some(sort) => {
                // Names go upwards unless they are reversed, numbers downwards.
                if reversed == column.right {
                    "▲"
                } else {
                    "▼"
                }
            }
            _ => "",
        };
        let text = if column.right {
            format!("{mark}{}", column.title)
        } else {
            format!("{}{mark}", column.title)
        };
        piece(Tone::Strong, text)
    });
    row(columns, widths, cells)
}

/// A row: one cell for each column, of which those without room are left out.
pub fn row(columns: &[Column], widths: &[usize], cells: impl IntoIterator<Item = Piece>) -> Line {
    let mut line = Vec::with_capacity(columns.len() * 2);
    for ((column, width), cell) in columns.iter().zip(widths).zip(cells) {
        if *width == 0 {
            continue;
        }
        if !line.is_empty() {
            line.push(plain(" ".repeat(GAP)));
        }
        line.push(piece(cell.tone, fit(&cell.text, *width, column.right)));
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::top::text::line_width;

    const COLUMNS: [Column; 4] = [
        Column::words("NAME", Some(Sort::Name), (10, 30), 0),
        Column::numbers("PKT/S", Sort::Packets, 0, 2),
        Column::numbers("BIT/S", Sort::Bits, 0, 1),
        Column::words("FRONTEND", None, (20, 40), 3),
    ];

    fn text(line: Line) -> String {
        line.into_iter().map(|piece| piece.text).collect()
    }

    #[test]
    fn what_matters_most_is_shown() {
        assert_eq!(widths(&COLUMNS, 4), [4, 0, 0, 0]);
        assert_eq!(widths(&COLUMNS, 20), [13, 0, 6, 0]);
        assert_eq!(widths(&COLUMNS, 30), [16, 6, 6, 0]);
        assert_eq!(widths(&COLUMNS, 60), [25, 6, 6, 20]);
        assert_eq!(widths(&COLUMNS, 200), [30, 6, 6, 40]);
    }

    #[test]
    fn the_sorted_column_has_a_mark() {
        let shown = widths(&COLUMNS, 26);
        let title = |sorted| text(titles(&COLUMNS, &shown, sorted));
        assert_eq!(
            title(Some((Sort::Bits, false))),
            "NAME          PKT/S ▼BIT/S"
        );
        assert_eq!(
            title(Some((Sort::Bits, true))),
            "NAME          PKT/S ▲BIT/S"
        );
        assert_eq!(
            title(Some((Sort::Name, false))),
            "NAME▲         PKT/S  BIT/S"
        );
        let cells = ["web", "12", "3.4M", "left out"].map(plain);
        assert_eq!(
            text(row(&COLUMNS, &shown, cells)),
            "web              12   3.4M"
        );
    }

    proptest! {
        #[test]
        fn rows_fit(room in 0usize..200, cell in ".{0,60}") {
            let widths = widths(&COLUMNS, room);
            let cells = std::iter::repeat_n(plain(cell), COLUMNS.len());
            prop_assert!(line_width(&row(&COLUMNS, &widths, cells)) <= room);
            prop_assert!(line_width(&titles(&COLUMNS, &widths, None)) <= room);
        }
    }
}
