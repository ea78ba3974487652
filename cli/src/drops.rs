//! `tulle drops`: packets lost, why, and what to do about it.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use datapath_common::{Group, Hook};
use serde::{Deserialize, Serialize};

use crate::args::{DropsArgs, Format};
use crate::context::Context;
use crate::format;
use crate::monitor::interrupted;
use crate::output::{self, Paint, Style, left, right};
use crate::tables::CounterRow;

/// What `tulle drops` tells.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Reasons with a count, the most packets first.
    pub reasons: Vec<Row>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// A reason with its counts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The reason's label, as in metrics; `reason_N` for a number that this program does not know.
    pub reason: String,
    /// `dropped`, `refused`, `forwarded`, `passed` or `unknown`.
    pub group: String,
    /// Packets since the maps were made.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
    /// Packets for each second since the look before; only while watching.
    pub per_second: Option<f64>,
    /// Packets by program, without the programs that have none.
    pub hooks: BTreeMap<String, u64>,
    /// What it means.
    pub what: String,
    /// What to do about it; empty if there is nothing to do.
    pub next_step: String,
}

/// A [`Group`]'s name.
pub const fn group_name(group: Group) -> &'static str {
    match group {
        Group::Passed => "passed",
        Group::Forwarded => "forwarded",
        Group::Refused => "refused",
        Group::Dropped => "dropped",
    }
}

/// Whether a counter's packets got lost. A reason that we do not know may be a loss: shown rather
/// than hidden.
pub fn is_loss(counter: &CounterRow) -> bool {
    counter
        .known()
        .is_none_or(|reason| reason.group().is_loss())
}

/// A counter's reason in words, without counts.
pub fn explain(counter: &CounterRow) -> Row {
    let known = counter.known();
    Row {
        reason: known.map_or_else(
            || format!("reason_{}", counter.reason),
            |r| r.label().into(),
        ),
        group: known
            .map_or("unknown", |reason| group_name(reason.group()))
            .into(),
        packets: 0,
        bytes: 0,
        per_second: None,
        hooks: BTreeMap::new(),
        what: known
            .map_or("a reason of a later release", |reason| reason.what())
            .into(),
        next_step: known
            .map_or("Use agent and tulle of one release.", |reason| {
                reason.next_step()
            })
            .into(),
    }
}

/// Losses, or with `all` every reason, summed up by reason.
pub fn rows(counters: &[CounterRow], all: bool) -> Report {
    let mut reasons: BTreeMap<u8, Row> = BTreeMap::new();
    let mut notes = Vec::new();
    for counter in counters.iter().filter(|counter| all || is_loss(counter)) {
        let row = reasons
            .entry(counter.reason)
            .or_insert_with(|| explain(counter));
        row.packets += counter.packets;
        row.bytes += counter.bytes;
        *row.hooks.entry(counter.hook.name().into()).or_default() += counter.packets;
    }
    if counters.is_empty() {
        notes.push("no packet has been counted yet".to_owned());
    }
    let mut reasons: Vec<Row> = reasons.into_values().collect();
    reasons.sort_by(|a, b| {
        b.packets
            .cmp(&a.packets)
            .then_with(|| a.reason.cmp(&b.reason))
    });
    Report { reasons, notes }
}

/// Adds rates from the report of a look before.
pub fn add_rates(report: &mut Report, before: &Report, between: Duration) {
    let secs = between.as_secs_f64();
    for row in &mut report.reasons {
        let earlier = before.reasons.iter().find(|old| old.reason == row.reason);
        let more = row
            .packets
            .saturating_sub(earlier.map_or(0, |old| old.packets));
        #[expect(
            clippy::cast_precision_loss,
            reason = "a rate for people; exact to 2^53"
        )]
        let more = more as f64;
        row.per_second = Some(if secs > 0.0 { more / secs } else { 0.0 });
    }
}

/// The report as text: numbers in a table, explanations below.
pub fn render(report: &Report, style: Style) -> String {
    if report.reasons.is_empty() {
        return style.paint(Paint::Green, "nothing lost") + "\n";
    }
    let rated = report.reasons.iter().any(|row| row.per_second.is_some());
    let hooks = Hook::ALL.into_iter().map(Hook::name).filter(|hook| {
        report
            .reasons
            .iter()
            .any(|row| row.hooks.contains_key(*hook))
    });
    let hooks: Vec<&'static str> = hooks.collect();
    let mut columns = vec![
        left("REASON"),
        left("OUTCOME"),
        right("PACKETS"),
        right("BYTES"),
    ];
    if rated {
        columns.push(right("PER SECOND"));
    }
    columns.extend(hooks.iter().map(|hook| right(hook)));
    let rows = report.reasons.iter().map(|row| {
        let mut cells = vec![
            row.reason.clone(),
            row.group.clone(),
            format::count(row.packets),
            format::bytes(row.bytes),
        ];
        if rated {
            cells.push(format!("{:.1}", row.per_second.unwrap_or_default()));
        }
        cells.extend(hooks.iter().map(|hook| {
            row.hooks
                .get(*hook)
                .map_or_else(|| "-".to_owned(), |packets| format::count(*packets))
        }));
        cells
    });
    let mut out = style.table(&columns, rows.collect());
    for row in &report.reasons {
        out.push('\n');
        out.push_str(&style.heading(&row.reason));
        out.push_str(&style.paragraph("", 2, &row.what));
        if !row.next_step.is_empty() {
            out.push_str(&style.paragraph("→ ", 2, &row.next_step));
        }
    }
    out
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read or the output not be written.
pub fn run(context: &Context, args: &DropsArgs) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    if !args.watch {
        let report = rows(&datapath.counters()?, args.all);
        return context.print("tulle.drops", &report, &report.notes, render);
    }
    let stop = interrupted()?;
    let mut before: Option<(Report, Instant)> = None;
    while !stop.load(Ordering::Relaxed) {
        let mut report = rows(&datapath.counters()?, args.all);
        let now = Instant::now();
        if let Some((before, then)) = &before {
            add_rates(&mut report, before, now - *then);
        }
        show(context, &report)?;
        before = Some((report, now));
        let next = now + Duration::from_secs(args.interval);
        // In short naps: a signal does not end a sleep.
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(50).min(next - now));
        }
    }
    Ok(())
}

fn show(context: &Context, report: &Report) -> anyhow::Result<()> {
    let text = match context.format {
        Format::Json => output::document("tulle.drops", report, false)?,
        Format::Table if io::stdout().is_terminal() => {
            // Home, then the text, then clear what is below: no flicker.
            let text = render(report, context.style).replace('\n', "\x1b[K\n");
            format!("\x1b[H{text}\x1b[J")
        }
        Format::Table => render(report, context.style) + "\n",
    };
    output::print(&text)?;
    Ok(())
}

#[cfg(test)]
#[path = "tests/drops.rs"]
mod tests;
