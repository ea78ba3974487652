//! The lines around each page.

use std::time::Duration;

use crate::format;
use crate::top::page::Page;
use crate::top::sample::Agent;
use crate::top::text::{Line, Tone, cut_line, line_width, piece, plain, spread};
use crate::top::view::View;

/// The agent in a few words.
pub fn agent(agent: &Agent) -> Line {
    match agent {
        Agent {
            running: false,
            error: None,
            ..
        } => vec![piece(Tone::Dim, "asking the agent")],
        Agent { running: false, .. } => vec![piece(Tone::Warn, "agent not running")],
        Agent {
            waiting_for: Some(_),
            ..
        } => vec![piece(Tone::Warn, "agent waiting")],
        _ => {
            let age = agent.age_secs.map_or_else(String::new, format::age);
            vec![piece(Tone::Good, format!("agent up {age}"))]
        }
    }
}

/// Seconds of an interval: `1s`, `0.5s`.
pub fn seconds(interval: Duration) -> String {
    format!("{}s", interval.as_secs_f64())
}

/// The first line: node, agent, interval, time.
pub fn title(view: &View, interval: Duration, paused: bool, columns: usize) -> Line {
    let mut left = vec![piece(Tone::Strong, "tulle top")];
    if let Some(node) = &view.agent.node {
        left.push(plain(format!("  {node}")));
    }
    left.push(plain("  "));
    left.extend(agent(&view.agent));
    if view.agent.warnings > 0 {
        let warnings = format::counted(view.agent.warnings, "warning");
        left.push(piece(Tone::Warn, format!("  {warnings}")));
    }
    left.push(plain(format!("  every {}", seconds(interval))));
    if paused {
        left.push(piece(Tone::Warn, "  PAUSED"));
    }
    let time = format::time_of_day(view.unix_nanos);
    let time = time.split('.').next().unwrap_or_default();
    let right = vec![piece(Tone::Dim, format!("{time} UTC"))];
    spread(left, right, columns)
}

/// Columns that the pages take in the second line.
pub const TABS_WIDTH: usize = 53;

/// The second line: the pages, and what is special about this one.
pub fn tabs(page: Page, right: Line, columns: usize) -> Line {
    let mut left = Vec::new();
    for (number, each) in (1..).zip(Page::ALL) {
        let text = format!(" {number} {} ", each.title());
        if each == page {
            // Brackets are seen without colours too.
            left.push(piece(Tone::Strong, format!("[{}]", text.trim())));
        } else {
            left.push(plain(text));
        }
    }
    spread(left, right, columns)
}

/// The third line: what is wrong or worth to know; empty if nothing is.
pub fn notice(view: &View, interval: Duration, columns: usize) -> Line {
    let faults: Vec<&String> = view.faults.iter().chain(&view.agent.faults).collect();
    let line = if let Some(first) = faults.first() {
        let more = match faults.len() {
            1 => String::new(),
            n => format!("({n}) "),
        };
        vec![piece(Tone::Bad, "fault  "), plain(format!("{more}{first}"))]
    } else if let Some(what) = &view.agent.waiting_for {
        vec![piece(Tone::Warn, format!("the agent waits for {what}"))]
    } else if let Some(note) = view.notes.first() {
        vec![piece(Tone::Warn, note)]
    } else if view.reading_micros as f64 > interval.as_micros() as f64 {
        let took = format::micros(view.reading_micros);
        vec![piece(
            Tone::Dim,
            format!(
                "a reading takes {took}: rates are over longer times than {}",
                seconds(interval)
            ),
        )]
    } else if !view.agent.running && view.services.iter().any(|row| row.service.is_none()) {
        vec![piece(
            Tone::Dim,
            "the agent does not run: some services have no name",
        )]
    } else {
        Vec::new()
    };
    cut_line(line, columns)
}

/// Keys that fit, with those that matter most first.
pub fn keys(hints: &[(&str, &str)], columns: usize) -> Line {
    let mut line = Line::new();
    for (key, what) in hints {
        let gap = if line.is_empty() { " " } else { "  " };
        let hint = [
            plain(gap),
            piece(Tone::Strong, *key),
            piece(Tone::Dim, format!(" {what}")),
        ];
        if line_width(&line) + line_width(&hint) > columns {
            break;
        }
        line.extend(hint);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &Line) -> String {
        line.iter().map(|piece| piece.text.as_str()).collect()
    }

    #[test]
    fn the_title_tells_of_the_agent() {
        let mut view = View {
            unix_nanos: 3_723_000_000_000,
            ..View::default()
        };
        let title = |view: &View| text(&super::title(view, Duration::from_millis(500), true, 72));
        view.agent.error = Some("no agent listens".into());
        assert_eq!(
            title(&view),
            "tulle top  agent not running  every 0.5s  PAUSED            01:02:03 UTC"
        );
        view.agent = Agent {
            running: true,
            node: Some("n1".into()),
            age_secs: Some(65),
            warnings: 2,
            ..Agent::default()
        };
        assert_eq!(
            title(&view),
            "tulle top  n1  agent up 1m05s  2 warnings  every 0.5s  PAUSED"
        );
    }

    #[test]
    fn the_worst_is_noticed_first() {
        let mut view = View {
            reading_micros: 2_000_000,
            ..View::default()
        };
        view.agent.running = true;
        let notice = |view: &View| text(&super::notice(view, Duration::from_secs(1), 40));
        assert_eq!(notice(&view), "a reading takes 2.00 s: rates are over …");
        view.notes.push("names may be old".into());
        assert_eq!(notice(&view), "names may be old");
        view.agent.waiting_for = Some("services".into());
        assert_eq!(notice(&view), "the agent waits for services");
        view.agent.faults.push("overlay: no".into());
        assert_eq!(notice(&view), "fault  overlay: no");
        view.faults.push("map tulle_events: no".into());
        assert_eq!(notice(&view), "fault  (2) map tulle_events: no");
    }

    #[test]
    fn keys_that_do_not_fit_are_left_out() {
        let hints = [("q", "quit"), ("?", "help"), ("Tab", "page")];
        assert_eq!(text(&keys(&hints, 80)), " q quit  ? help  Tab page");
        assert_eq!(text(&keys(&hints, 20)), " q quit  ? help");
        assert_eq!(
            text(&tabs(Page::Maps, Vec::new(), 200)).trim_end().len(),
            TABS_WIDTH
        );
        assert_eq!(
            text(&tabs(Page::Drops, Vec::new(), 30)),
            " 1 Overview  2 Services  3 Ba…"
        );
    }
}
