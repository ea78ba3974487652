//! How the demo looks: pages, bars, the picture of the cluster, excerpts.

pub mod bars;
pub mod excerpt;
pub mod page;
pub mod topology;

use std::time::Duration;

/// Columns that everything fits in.
pub const WIDTH: usize = 100;

/// "1 pod", "2 pods", "2 processes".
pub fn count(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        _ if what.ends_with('s') => format!("{n} {what}es"),
        _ => format!("{n} {what}s"),
    }
}

/// In milliseconds with three decimals.
pub fn millis(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}

/// Lines of at most `width` columns, broken at spaces.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else {
            break;
        };
        if line.is_empty() {
            line.push_str(word);
        } else if columns(line) + 1 + columns(word) <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// A line of a table in at most `width` columns: broken at spaces, and going on
/// below its last column.
pub fn fit(line: &str, width: usize) -> Vec<String> {
    let line = line.trim_end();
    if columns(line) <= width {
        return vec![line.to_owned()];
    }
    let letters: Vec<char> = line.chars().collect();
    let indent = letters
        .windows(2)
        .rposition(|pair| pair == [' ', ' '])
        .map_or(0, |at| at + 2)
        .min(width - width / 3);
    let (head, tail) = letters.split_at(indent);
    let tail: String = tail.iter().collect();
    let mut lines = wrap(&tail, width - indent);
    for (n, line) in lines.iter_mut().enumerate() {
        let start = if n == 0 {
            head.iter().collect()
        } else {
            " ".repeat(indent)
        };
        line.insert_str(0, &start);
    }
    lines
}

/// Columns of a text without wide or combining characters.
pub fn columns(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_plurals() {
        assert_eq!(count(1, "pod"), "1 pod");
        assert_eq!(count(0, "pod"), "0 pods");
        assert_eq!(count(3, "process"), "3 processes");
    }

    #[test]
    fn times_have_decimals() {
        assert_eq!(millis(Duration::from_micros(1234)), "1.234 ms");
        assert_eq!(millis(Duration::from_nanos(200)), "0.000 ms");
    }

    #[test]
    fn lines_break_at_spaces() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("äöü äöü", 7), ["äöü äöü"]);
        assert_eq!(wrap("toolongaword a", 4), ["toolongaword", "a"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn long_lines_of_tables_go_on_below_their_last_column() {
        assert_eq!(fit("a  b c d", 8), ["a  b c d"]);
        assert_eq!(fit("a  bb cc dd  ", 8), ["a  bb cc", "   dd"]);
        assert_eq!(fit("  → one two", 8), ["  → one", "  two"]);
        assert_eq!(fit("one two three", 8), ["one two", "three"]);
    }
}
