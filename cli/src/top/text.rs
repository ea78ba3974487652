//! Pieces of text that fit a number of columns: numbers, bars, small curves.

use std::borrow::Cow;

use unicode_width::UnicodeWidthChar;

use crate::format;

/// How a piece of text is to look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// Headings.
    Strong,
    /// Secondary text.
    Dim,
    /// What is well.
    Good,
    /// What should be looked at.
    Warn,
    /// Losses and faults.
    Bad,
}

/// A piece of a line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// How it looks.
    pub tone: Tone,
}

/// A line.
pub type Line = Vec<Piece>;

/// A piece of text.
pub fn piece(tone: Tone, text: impl Into<String>) -> Piece {
    Piece {
        text: text.into(),
        tone,
    }
}

/// Text as it is.
pub fn plain(text: impl Into<String>) -> Piece {
    piece(Tone::Plain, text)
}

/// Columns that a text takes. Signs that control a terminal are not sent to it; they count as one.
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(char: char) -> usize {
    char.width().unwrap_or(1)
}

/// Columns that a line takes.
pub fn line_width(line: &[Piece]) -> usize {
    line.iter().map(|piece| width(&piece.text)).sum()
}

/// The text in at most so many columns; `…` stands for what is left out.
pub fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    if columns == 0 {
        return Cow::Borrowed("");
    }
    let mut short = String::new();
    let mut used = 0;
    for char in text.chars() {
        let wide = char_width(char);
        if used + wide > columns - 1 {
            break;
        }
        used += wide;
        short.push(char);
    }
    short.push('…');
    Cow::Owned(short)
}

/// The text in exactly so many columns.
pub fn fit(text: &str, columns: usize, right: bool) -> String {
    let text = cut(text, columns);
    let blank = " ".repeat(columns.saturating_sub(width(&text)));
    if right {
        blank + &text
    } else {
        text.into_owned() + &blank
    }
}

/// A line in at most so many columns.
pub fn cut_line(line: Line, columns: usize) -> Line {
    let mut left = columns;
    let mut short = Vec::with_capacity(line.len());
    for piece in line {
        if left == 0 {
            break;
        }
        let text = cut(&piece.text, left).into_owned();
        left -= width(&text).min(left);
        short.push(Piece { text, ..piece });
    }
    short
}

/// `left` and `right` at both ends of a line of so many columns; `right` goes if there is no room.
pub fn spread(left: Line, right: Line, columns: usize) -> Line {
    let used = line_width(&left) + line_width(&right);
    if used + 1 > columns {
        return cut_line(left, columns);
    }
    let mut line = left;
    line.push(plain(" ".repeat(columns - used)));
    line.extend(right);
    line
}

/// A text broken at blanks into lines of at most so many columns. A longer word is cut.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let word = cut(word, columns);
        if !line.is_empty() && width(&line) + 1 + width(&word) > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// A number for each second, in five columns at most: `0`, `0.02`, `12`, `1.23k`, `456M`.
/// A dash where there is none.
pub fn rate(per_second: Option<f64>) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    let Some(n) = per_second.filter(|n| n.is_finite()) else {
        return "-".into();
    };
    match n {
        _ if n <= 0.0 => return "0".into(),
        _ if n < 0.005 => return "<0.01".into(),
        _ if n < 0.095 => return format!("{n:.2}"),
        _ if n < 9.95 => {
            let text = format!("{n:.1}");
            return text.strip_suffix(".0").map_or(text.clone(), str::to_owned);
        }
        _ if n < 999.5 => return format!("{n:.0}"),
        _ => {}
    }
    let mut scaled = n;
    for unit in UNITS {
        scaled /= 1000.0;
        match scaled {
            _ if scaled < 9.995 => return format!("{scaled:.2}{unit}"),
            _ if scaled < 99.95 => return format!("{scaled:.1}{unit}"),
            _ if scaled < 999.5 => return format!("{scaled:.0}{unit}"),
            _ => {}
        }
    }
    "many".into()
}

/// A total, in six columns at most: `99,999`, `12.3M`.
pub fn total(n: u64) -> String {
    if n < 100_000 {
        format::count(n)
    } else {
        rate(Some(n as f64))
    }
}

/// A bar of so many columns, as full as `part` is of `whole`; what is not nothing is seen.
pub fn bar(part: u64, whole: u64, columns: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = u128::from(part.min(whole)) * columns as u128 * 8;
    let eighths = eighths.checked_div(u128::from(whole)).unwrap_or(0);
    let eighths = if part > 0 && columns > 0 && whole > 0 {
        eighths.max(1)
    } else {
        eighths
    } as usize;
    let mut text = "█".repeat(eighths / 8);
    text.push_str(EIGHTHS.get(eighths % 8).copied().unwrap_or_default());
    let empty = columns.saturating_sub(width(&text));
    text.push_str(&"░".repeat(empty));
    text
}

/// A curve of the last values, one column each, at the right end of so many columns; a blank where there
/// is no value. Its top is the largest value that is shown.
pub fn curve(values: impl DoubleEndedIterator<Item = Option<f64>>, columns: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut shown: Vec<Option<f64>> = values.rev().take(columns).collect();
    shown.reverse();
    let top = shown.iter().flatten().copied().fold(0.0, f64::max);
    let mut text = " ".repeat(columns - shown.len());
    text.extend(shown.into_iter().map(|value| match value {
        Some(value) if top > 0.0 => {
            // Rounded to the nearest.
            let above = |level: &u32| value / top * 7.0 >= f64::from(*level) - 0.5;
            let level = (1..8).filter(above).count();
            LEVELS.get(level).copied().unwrap_or('█')
        }
        Some(_) => '▁',
        None => ' ',
    }));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_have_five_columns() {
        let texts = [
            0.0, 0.004, 0.016, 0.1, 1.0, 9.94, 9.96, 999.4, 999.6, 1234.0, 45_678.0, 999_949.0,
            999_999.0, 1.5e9, 1e25,
        ]
        .map(|n| rate(Some(n)));
        assert_eq!(
            texts,
            [
                "0", "<0.01", "0.02", "0.1", "1", "9.9", "10", "999", "1.00k", "1.23k", "45.7k",
                "1.00M", "1.00M", "1.50G", "many"
            ]
        );
        assert_eq!((rate(None), rate(Some(f64::NAN))), ("-".into(), "-".into()));
        assert_eq!(total(99_999), "99,999");
        assert_eq!(total(12_345_678), "12.3M");
    }

    #[test]
    fn what_is_too_wide_ends_with_dots() {
        assert_eq!(cut("default/web:http", 16), "default/web:http");
        assert_eq!(cut("default/web:http", 8), "default…");
        assert_eq!((cut("ab", 1), cut("ab", 0)), ("…".into(), "".into()));
        assert_eq!(cut("日本語", 4), "日…", "no half of a wide letter");
        assert_eq!(
            (fit("ab", 4, true), fit("ab", 4, false)),
            ("  ab".into(), "ab  ".into())
        );
    }

    #[test]
    fn bars_show_that_there_is_something() {
        assert_eq!(bar(0, 100, 4), "░░░░");
        assert_eq!(bar(1, 1_000_000, 4), "▏░░░");
        assert_eq!(bar(50, 100, 4), "██░░");
        assert_eq!(bar(200, 100, 4), "████");
        assert_eq!((bar(1, 0, 2), bar(1, 1, 0)), ("░░".into(), String::new()));
    }

    #[test]
    fn curves_end_at_the_right() {
        let values = [Some(1.0), None, Some(0.0), Some(7.0)];
        assert_eq!(curve(values.into_iter(), 6), "  ▂ ▁█");
        assert_eq!(curve(values.into_iter(), 2), "▁█");
        assert_eq!(curve([Some(0.0)].into_iter(), 2), " ▁");
    }

    #[test]
    fn both_ends_of_a_line() {
        let ends = |columns| spread(vec![plain("left")], vec![plain("right")], columns);
        let text = |line: Line| line.into_iter().map(|p| p.text).collect::<String>();
        assert_eq!(text(ends(12)), "left   right");
        assert_eq!(text(ends(9)), "left");
        assert_eq!(text(ends(3)), "le…");
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("toolongaword a", 6), ["toolo…", "a"]);
    }

    proptest! {
        #[test]
        fn texts_fit(text in ".{0,40}", columns in 0usize..50, n in 0.0..1e20f64, part: u64, whole: u64) {
            prop_assert_eq!(width(&fit(&text, columns, true)), columns);
            prop_assert!(width(&cut(&text, columns)) <= columns);
            prop_assert!(width(&rate(Some(n))) <= 5);
            prop_assert!(width(&total(part)) <= 6);
            prop_assert_eq!(width(&bar(part, whole, columns)), columns);
            for line in wrap(&text, columns) {
                prop_assert!(width(&line) <= columns);
            }
        }
    }
}
