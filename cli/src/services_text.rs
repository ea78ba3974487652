//! `tulle services` as a table.

use crate::format;
use crate::names::service_text;
use crate::output::{Style, left, right, text};
use crate::services::{Report, ServiceBackend, ServiceRow, WhenEmpty};
use crate::traffic;

/// Backends of a list that a table shows unless it is wide.
const SHORT_LIST: usize = 3;

/// The report as a table: `wide` with every backend, `stats` with traffic.
pub fn render(report: &Report, style: Style, wide: bool, stats: bool) -> String {
    if report.services.is_empty() {
        return "no services\n".into();
    }
    let mut columns = vec![
        left("SERVICE"),
        left("FRONTEND"),
        left("PROTO"),
        left("KIND"),
        right("BACKENDS"),
    ];
    if wide {
        columns.extend([right("NUMBER"), right("SLOTS")]);
    }
    if stats {
        columns.extend(traffic::COLUMNS);
    }
    columns.extend([text("FLAGS"), text("ENDPOINTS")]);
    let rows = report.services.iter().map(|row| {
        let mut cells = vec![
            service_text(row.service.as_deref(), row.number),
            row.frontend.to_string(),
            row.protocol.clone(),
            row.kind.to_string(),
            numbers(
                row.backends.len() as u64,
                row.outside.as_ref().map(|o| o.backends.len() as u64),
            ),
        ];
        if wide {
            cells.push(row.number.to_string());
            let outside = row.outside.as_ref().map(|outside| outside.slots.into());
            cells.push(numbers(row.slots.into(), outside));
        }
        if stats {
            cells.extend(traffic::cells(row.traffic.as_ref()));
        }
        cells.push(flags(row, wide));
        cells.push(endpoints(row, if wide { usize::MAX } else { SHORT_LIST }));
        cells
    });
    style.table(&columns, rows.collect())
}

/// One number if the lists are the same: `3`, otherwise `3 in 1 out`.
fn numbers(inside: u64, outside: Option<u64>) -> String {
    let inside = format::count(inside);
    match outside {
        None => inside,
        Some(outside) => format!("{inside} in {} out", format::count(outside)),
    }
}

/// What the frontend does besides, in words.
fn flags(row: &ServiceRow, wide: bool) -> String {
    let mut words = Vec::new();
    match (row.masquerades_pods, row.masquerades_outside) {
        (true, true) => words.push("masq all".to_owned()),
        (true, false) => words.push("masq pods".to_owned()),
        (false, true) => words.push("masq outside".to_owned()),
        (false, false) => {}
    }
    if row.returns_directly {
        words.push("dsr".to_owned());
    }
    match &row.source_ranges {
        Some(ranges) if wide => {
            let list: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            words.push(format!("only from {}", list.join(" ")));
        }
        Some(ranges) => words.push(format::counted(ranges.len() as u64, "source range")),
        None => {}
    }
    if row.affinity_secs != 0 {
        let secs = u64::from(row.affinity_secs);
        words.push(format!("affinity {}", format::age(secs)));
    }
    if row.by_source {
        words.push("by client".to_owned());
    }
    if row.by_turn {
        words.push("in turn".to_owned());
    }
    if row.by_flows {
        words.push("fewest flows".to_owned());
    }
    if row.changed {
        words.push("changed".to_owned());
    }
    if row.flows_may_be_lost {
        words.push("flows may be lost".to_owned());
    }
    if words.is_empty() {
        "-".into()
    } else {
        words.join(", ")
    }
}

fn endpoints(row: &ServiceRow, most: usize) -> String {
    let inside = list(&row.backends, row.when_empty, most);
    match &row.outside {
        None => inside,
        Some(outside) => {
            let outside = list(&outside.backends, outside.when_empty, most);
            format!("inside {inside}; outside {outside}")
        }
    }
}

fn list(backends: &[ServiceBackend], when_empty: WhenEmpty, most: usize) -> String {
    if backends.is_empty() {
        return match when_empty {
            WhenEmpty::Refuses => "none: clients are refused",
            WhenEmpty::Drops => "none: packets are dropped",
        }
        .into();
    }
    let slots: u64 = backends.iter().map(|b| u64::from(b.slots)).sum();
    let percent = |b: &ServiceBackend| (u64::from(b.slots) * 200 + slots) / (slots * 2).max(1);
    // Shares of a Maglev table differ by a slot or two.
    let shares = || backends.iter().map(|backend| u64::from(backend.slots));
    let (least, greatest) = (shares().min().unwrap_or(0), shares().max().unwrap_or(0));
    let weighted = (greatest - least) * 50 > greatest;
    let shown = backends.iter().take(most).map(|backend| {
        let address = backend.address.map_or_else(
            || format!("id {} (free!)", backend.id),
            |address| address.to_string(),
        );
        if weighted {
            format!("{address} {}%", percent(backend))
        } else {
            address
        }
    });
    let mut list = shown.collect::<Vec<_>>().join(" ");
    if backends.len() > most {
        list.push_str(&format!(" +{}", backends.len() - most));
    }
    list
}
