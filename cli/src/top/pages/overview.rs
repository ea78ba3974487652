//! The first page: what goes through the node, what is lost, what is full.

use std::cmp::Ordering;

use crate::format;
use crate::top::grid::{self, Column};
use crate::top::history::History;
use crate::top::list::Item;
use crate::top::page::Sort;
use crate::top::pages::{drops, maps};
use crate::top::text::{Line, Tone, curve, cut_line, piece, plain, rate, wrap};
use crate::top::view::View;

const SERVICES: [Column; 7] = [
    Column::words("SERVICES", None, (14, 14), 0),
    Column::numbers("FLOWS/S", Sort::Flows, 0, 1),
    Column::numbers("PKT/S", Sort::Packets, 0, 2),
    Column::numbers("BIT/S", Sort::Bits, 0, 3),
    Column::numbers("RE PKT/S", Sort::ReplyPackets, 0, 4),
    Column::numbers("RE BIT/S", Sort::ReplyBits, 0, 5),
    Column::words("NEW FLOWS", None, (10, 120), 6),
];

const HOOKS: [Column; 8] = [
    Column::words("AT", None, (8, 8), 0),
    Column::words("", None, (13, 13), 6),
    Column::numbers("PKT/S", Sort::Packets, 8, 1),
    Column::numbers("BIT/S", Sort::Bits, 0, 2),
    Column::numbers("FWD/S", Sort::Flows, 0, 4),
    Column::numbers("KERNEL/S", Sort::Total, 0, 5),
    Column::numbers("LOST/S", Sort::Full, 0, 3),
    Column::words("PACKETS", None, (10, 120), 7),
];

/// Where the packets go that a program sees.
fn direction(hook: &str) -> &'static str {
    match hook {
        "pod_from" => "from pods",
        "pod_to" => "to pods",
        "nic_in" => "from the wire",
        "xdp" => "wire, by XDP",
        "nic_out" => "to the wire",
        _ => "",
    }
}

/// The page in so many columns, and about so many lines: losses and maps share what is left.
pub fn lines(view: &View, history: Option<&History>, columns: usize, height: usize) -> Vec<Line> {
    let mut out = traffic(view, history, columns);
    out.push(Line::new());
    // A heading each, and a blank line between them.
    let left = height.saturating_sub(out.len() + 3);
    let lost = view.drops.len().clamp(1, (left / 2).max(1));
    out.extend(losses(view, columns, lost));
    out.push(Line::new());
    out.extend(fullest(view, columns, left.saturating_sub(lost).max(1)));
    out
}

/// What goes through services, and through the programs.
pub fn traffic(view: &View, history: Option<&History>, columns: usize) -> Vec<Line> {
    let mut out = services(view, history, columns);
    out.push(Line::new());
    out.extend(hooks(view, history, columns));
    out
}

/// Columns without the curve if there is no history.
fn columns_of<const N: usize>(all: &[Column; N], history: Option<&History>) -> Vec<Column> {
    let shown = if history.is_some() { N } else { N - 1 };
    all.iter().take(shown).copied().collect()
}

fn services(view: &View, history: Option<&History>, room: usize) -> Vec<Line> {
    let columns = columns_of(&SERVICES, history);
    let widths = grid::widths(&columns, room);
    let rates = view.all_services;
    let number = |value: Option<f64>| plain(rate(value));
    let width = widths.get(6).copied().unwrap_or(0);
    let curve = history.map_or_else(String::new, |history| curve(history.flows(), width));
    let ports = format::counted(view.services.len() as u64, "port");
    let backends = format::counted(view.backends.len() as u64, "backend");
    let cells = [
        plain(ports),
        number(rates.map(|r| r.flows)),
        number(rates.map(|r| r.packets)),
        number(rates.map(|r| r.bits)),
        number(rates.map(|r| r.reply_packets)),
        number(rates.map(|r| r.reply_bits)),
        piece(Tone::Good, curve),
    ];
    let draining = view
        .backends
        .iter()
        .filter(|b| b.state == "draining")
        .count();
    let mut second = backends;
    if draining > 0 {
        second.push_str(&format!(", {} draining", format::count(draining as u64)));
    }
    let empty = view.services.iter().filter(|s| s.backends == 0).count();
    let mut below = vec![plain(second)];
    if empty > 0 {
        let text = format!(
            ", {} without a backend",
            format::counted(empty as u64, "port")
        );
        below.push(piece(Tone::Warn, text));
    }
    vec![
        grid::titles(&columns, &widths, None),
        grid::row(&columns, &widths, cells),
        cut_line(below, room),
    ]
}

fn hooks(view: &View, history: Option<&History>, room: usize) -> Vec<Line> {
    let columns = columns_of(&HOOKS, history);
    let widths = grid::widths(&columns, room);
    let width = widths.get(7).copied().unwrap_or(0);
    let mut out = vec![grid::titles(&columns, &widths, None)];
    for (number, row) in view.hooks.iter().enumerate() {
        let rates = row.rates;
        let lost = rates.map(|r| r.lost);
        let lost_tone = if lost > Some(0.0) {
            Tone::Bad
        } else {
            Tone::Plain
        };
        let curve =
            history.map_or_else(String::new, |history| curve(history.packets(number), width));
        let cells = [
            plain(&row.hook),
            piece(Tone::Dim, direction(&row.hook)),
            plain(rate(rates.map(|r| r.packets))),
            plain(rate(rates.map(|r| r.bits))),
            plain(rate(rates.map(|r| r.forwarded))),
            plain(rate(rates.map(|r| r.passed))),
            piece(lost_tone, rate(lost)),
            piece(Tone::Good, curve),
        ];
        out.push(grid::row(&columns, &widths, cells));
    }
    out
}

fn losses(view: &View, room: usize, most: usize) -> Vec<Line> {
    let columns = drops::COLUMNS;
    let widths = grid::widths(&columns, room);
    let mut out = vec![grid::titles(&columns, &widths, None)];
    if view.drops.is_empty() {
        out.push(vec![piece(Tone::Good, "nothing lost")]);
        return out;
    }
    let mut rows: Vec<_> = view.drops.iter().collect();
    rows.sort_by(|a, b| a.compare(b, Sort::Packets));
    for row in rows.into_iter().take(most) {
        let cells = row.cells(&columns, &widths);
        out.push(grid::row(&columns, &widths, cells));
    }
    out
}

fn fullest(view: &View, room: usize, most: usize) -> Vec<Line> {
    let columns = maps::COLUMNS;
    let widths = grid::widths(&columns, room);
    let mut out = vec![grid::titles(&columns, &widths, None)];
    let mut rows: Vec<_> = view.maps.iter().collect();
    rows.retain(|map| maps::fullness(map).is_some());
    rows.sort_by(|a, b| match a.compare(b, Sort::Full) {
        Ordering::Equal => a.name.cmp(&b.name),
        other => other,
    });
    for row in rows.into_iter().take(most) {
        let cells = row.cells(&columns, &widths);
        out.push(grid::row(&columns, &widths, cells));
    }
    out
}

/// What stands in the place of a page if no map could be read.
pub fn blind(view: &View, again: &str, room: usize) -> Vec<Line> {
    let mut out = vec![Line::new()];
    for fault in &view.faults {
        let lines = wrap(fault, room.saturating_sub(2));
        out.extend(
            lines
                .into_iter()
                .map(|line| vec![piece(Tone::Bad, format!("  {line}"))]),
        );
        out.push(Line::new());
    }
    out.push(vec![piece(Tone::Dim, format!("  {again}"))]);
    out
}
