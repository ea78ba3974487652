//! The page of keys and words.

use crate::top::text::{Line, Tone, cut_line, piece, plain};

const KEYS: [(&str, &str); 13] = [
    ("Tab 1-5 ← →", "pages"),
    ("↑ ↓ PgUp PgDn", "move; Home and End: first and last row"),
    ("Enter", "backends of the chosen service; Backspace: back"),
    ("s > <", "sort by the next or the former column"),
    ("r", "reverse the order"),
    (
        "/",
        "show only what contains this; Esc takes the filter away",
    ),
    ("p Space", "pause and go on"),
    ("+ -", "read less or more often"),
    ("q Ctrl-C", "quit"),
    ("", ""),
    ("RE", "replies: what goes from backends to clients"),
    ("-", "no rate: not counted, new, or its counters began anew"),
    ("LOST", "dropped or refused: page 4 says why and what to do"),
];

/// Keys and words, in so many columns.
pub fn lines(columns: usize) -> Vec<Line> {
    let line = |(key, what): (&str, &str)| {
        let line = vec![
            plain("  "),
            piece(Tone::Strong, format!("{key:<14}")),
            plain(format!("  {what}")),
        ];
        cut_line(line, columns)
    };
    let mut out = vec![Line::new()];
    out.extend(KEYS.into_iter().map(line));
    out.push(Line::new());
    out.push(cut_line(
        vec![piece(
            Tone::Dim,
            "  Any key goes back. `tulle top --help` has the options.",
        )],
        columns,
    ));
    out
}
