//! Tables, headings and JSON documents.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, presets};
use serde::Serialize;

/// How text is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Style {
    /// Whether escape sequences for colours may be written.
    pub color: bool,
    /// Columns of the terminal; without it nothing is wrapped.
    pub width: Option<u16>,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    right: bool,
    wraps: bool,
}

/// A column of words.
pub const fn left(title: &'static str) -> Column {
    Column {
        title,
        right: false,
        wraps: false,
    }
}

/// A column of numbers.
pub const fn right(title: &'static str) -> Column {
    Column {
        title,
        right: true,
        wraps: false,
    }
}

/// A column whose text may go on in the next line if the terminal is narrow.
pub const fn text(title: &'static str) -> Column {
    Column {
        title,
        right: false,
        wraps: true,
    }
}

/// Paint of a piece of text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paint {
    /// Headings.
    Bold,
    /// Secondary text.
    Dim,
    /// Losses.
    Red,
    /// Warnings.
    Yellow,
    /// What is well.
    Green,
}

impl Style {
    /// Text in a colour, if colours are on.
    pub fn paint(self, paint: Paint, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Bold => 1,
            Paint::Dim => 2,
            Paint::Red => 31,
            Paint::Yellow => 33,
            Paint::Green => 32,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A table without lines, two blanks between columns, ending with a line
    /// end. Empty without rows.
    pub fn table(self, columns: &[Column], rows: Vec<Vec<String>>) -> String {
        if rows.is_empty() {
            return String::new();
        }
        let mut table = comfy_table::Table::new();
        table.load_preset(presets::NOTHING);
        if let Some(width) = self.width {
            table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width);
        } else {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
        table.set_header(columns.iter().map(|column| column.title));
        for row in rows {
            table.add_row(row);
        }
        for (set, column) in table.column_iter_mut().zip(columns) {
            set.set_padding((0, 2));
            if column.right {
                set.set_cell_alignment(CellAlignment::Right);
            }
            if !column.wraps {
                set.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        let mut text = String::new();
        for (number, line) in table.lines().enumerate() {
            let line = line.trim_end();
            text.push_str(&if number == 0 {
                self.paint(Paint::Bold, line)
            } else {
                line.into()
            });
            text.push('\n');
        }
        text
    }

    /// A heading with its line end.
    pub fn heading(self, text: &str) -> String {
        self.paint(Paint::Bold, text) + "\n"
    }

    /// A paragraph, indented and broken at blanks, ending with a line end.
    pub fn paragraph(self, first: &str, indent: usize, words: &str) -> String {
        let width = self
            .width
            .map_or(usize::MAX, |w| usize::from(w).max(indent + 20));
        let mut text = format!("{:indent$}{first}", "");
        let hang = indent + first.chars().count();
        let mut column = hang;
        for (number, word) in words.split_whitespace().enumerate() {
            let length = word.chars().count();
            if number > 0 && column + 1 + length > width {
                text.push('\n');
                text.extend(std::iter::repeat_n(' ', hang));
                column = hang;
            } else if number > 0 {
                text.push(' ');
                column += 1;
            }
            text.push_str(word);
            column += length;
        }
        text.push('\n');
        text
    }
}

/// A JSON document: the report's fields behind the name and version of their
/// schema. The version changes when a field changes its meaning or goes;
/// fields may be added without.
#[derive(Serialize)]
struct Document<'a, T> {
    schema: &'static str,
    version: u32,
    #[serde(flatten)]
    report: &'a T,
}

/// Version of every schema.
pub const SCHEMA_VERSION: u32 = 1;

/// The JSON document of a report, with a line end.
///
/// # Errors
///
/// If JSON cannot be written.
pub fn document<T: Serialize>(
    schema: &'static str,
    report: &T,
    pretty: bool,
) -> serde_json::Result<String> {
    let document = Document {
        schema,
        version: SCHEMA_VERSION,
        report,
    };
    let text = if pretty {
        serde_json::to_string_pretty(&document)
    } else {
        serde_json::to_string(&document)
    };
    text.map(|text| text + "\n")
}

/// Writes to standard output and flushes it, so that a reader sees it now.
///
/// # Errors
///
/// What standard output says; a closed pipe is one.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STYLE: Style = Style {
        color: false,
        width: Some(40),
    };

    #[test]
    fn tables_align_and_wrap() {
        let rows = vec![
            vec!["a".into(), "1".into(), "one two three four five six".into()],
            vec!["longer".into(), "12,345".into(), "x".into()],
        ];
        let table = STYLE.table(&[left("NAME"), right("N"), text("WORDS")], rows);
        assert_eq!(
            table,
            "\
NAME         N  WORDS
a            1  one two three four
                five six
longer  12,345  x
"
        );
        assert_eq!(STYLE.table(&[left("NAME")], Vec::new()), "");
    }

    #[test]
    fn colour_is_only_added_when_asked_for() {
        assert_eq!(STYLE.paint(Paint::Red, "x"), "x");
        assert_eq!(
            Style {
                color: true,
                width: None
            }
            .paint(Paint::Red, "x"),
            "\x1b[31mx\x1b[0m"
        );
    }

    #[test]
    fn paragraphs_hang() {
        let text = STYLE.paragraph("→ ", 2, "one two three four five six seven eight nine");
        assert_eq!(
            text,
            "  → one two three four five six seven\n    eight nine\n"
        );
    }

    #[test]
    fn documents_name_their_schema() {
        let report = std::collections::BTreeMap::from([("a", 1)]);
        let text = document("tulle.test", &report, false).unwrap();
        assert_eq!(text, "{\"schema\":\"tulle.test\",\"version\":1,\"a\":1}\n");
    }
}
