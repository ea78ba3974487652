//! The text of `tulle status`.

use admin_api::{RowRound, Status, Warning};
use datapath_common::maps;

use crate::format::{age, bytes, count, counted, micros, percent};
use crate::links::interface_text;
use crate::output::{Paint, Style, left, right, text};
use crate::status::Report;

/// The report as text.
pub fn render(report: &Report, style: Style) -> String {
    let parts = [
        agent(report, style),
        features(report, style),
        attachments(report, style),
        map_table(report, style),
        packets(report, style),
        faults(report, style),
        warnings(report, style),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

fn agent(report: &Report, style: Style) -> String {
    let Some(agent) = &report.agent else {
        let why = report.agent_error.as_deref().unwrap_or_default();
        let down = style.paint(Paint::Yellow, "not running");
        return format!(
            "Agent      {down} ({why})\n           the datapath goes on by its last state\n"
        );
    };
    let state = match agent.waiting_for {
        Some(_) => style.paint(Paint::Yellow, "waiting"),
        None => style.paint(Paint::Green, "running"),
    };
    let mut out = format!(
        "Agent      {state} on {}, version {}, pid {}, up {}\n",
        agent.node,
        agent.agent_version,
        agent.pid,
        age(report.agent_age_secs.unwrap_or_default()),
    );
    out.push_str(&format!(
        "Objects    {}: {}\n",
        agent.source,
        objects(agent)
    ));
    out.push_str(&format!("Syncs      {}\n", syncs(agent)));
    if let Some(round) = &agent.last_round {
        let ago = report.last_round_age_secs.unwrap_or_default();
        out.push_str(&format!("Rows       {}\n", rows(round, ago)));
    }
    out.push_str(&format!("Uplink     {}\n", agent.uplink));
    out.push_str("Overlay    ");
    out.push_str(&agent.overlay.as_ref().map_or_else(
        || "off".into(),
        |o| {
            let mtu = count(u64::from(o.mtu));
            format!(
                "{}, VNI {}, UDP port {}, MTU {mtu}",
                o.device, o.vni, o.port
            )
        },
    ));
    out.push('\n');
    out
}

fn objects(agent: &Status) -> String {
    let objects = &agent.objects;
    [
        counted(objects.services, "service"),
        counted(objects.endpoint_slices, "endpoint slice"),
        counted(objects.nodes, "node"),
        counted(objects.local_pods, "local pod"),
    ]
    .join(", ")
}

fn syncs(agent: &Status) -> String {
    let mut out = format!(
        "{} ({} failed)",
        count(agent.syncs),
        count(agent.sync_failures)
    );
    if let Some(last) = agent.last_sync_micros {
        out.push_str(&format!(
            ", the last one {} from change to map",
            micros(last)
        ));
    }
    out.push_str(&format!(
        "; {}",
        counted(agent.drift_repairs, "drift repair")
    ));
    out
}

/// The last round over the rows of the maps.
fn rows(round: &RowRound, ago_secs: u64) -> String {
    let found = match round.found {
        0 => "all as written".to_owned(),
        1 => "1 was not as written".to_owned(),
        many => format!("{} were not as written", count(many)),
    };
    let pending = match round.pending {
        0 if round.found == 0 => String::new(),
        0 => ", and put right".to_owned(),
        left => format!("; {} to be put right", count(left)),
    };
    format!("compared {} ago: {found}{pending}", age(ago_secs))
}

fn features(report: &Report, style: Style) -> String {
    let features = report.agent.iter().flat_map(|agent| &agent.features);
    let rows = features.map(|f| vec![f.name.clone(), f.chosen.clone(), f.why.clone()]);
    style.table(
        &[left("FEATURE"), left("CHOSEN"), text("WHY")],
        rows.collect(),
    )
}

fn attachments(report: &Report, style: Style) -> String {
    let columns = [left("PROGRAM"), left("INTERFACE"), left("ATTACHED BY")];
    let unknown = || "-".to_owned();
    let mut rows: Vec<Vec<String>> = report
        .links
        .iter()
        .map(|link| {
            let interface = link.ifindex.map_or_else(unknown, |index| {
                interface_text(link.interface.as_deref(), index)
            });
            vec![
                link.program.clone().unwrap_or_else(unknown),
                interface,
                link.mode.clone(),
            ]
        })
        .collect();
    if rows.is_empty() {
        // Without links (TC before Linux 6.6) only the agent knows.
        let links = report.agent.iter().flat_map(|agent| &agent.links);
        rows.extend(links.map(|l| vec![l.program.clone(), l.interface.clone(), l.mode.clone()]));
    }
    if rows.is_empty() {
        return "no pinned links\n".into();
    }
    style.table(&columns, rows)
}

fn map_table(report: &Report, style: Style) -> String {
    let columns = [
        left("MAP"),
        right("USED"),
        right("LIMIT"),
        right("FULL"),
        right("MEMORY"),
        text("HOLDS"),
    ];
    let rows = report.maps.iter().map(|map| {
        let ring = map.name == maps::EVENTS;
        vec![
            map.name.clone(),
            map.used.map_or_else(
                || "-".into(),
                |used| format!("{}{}", if map.at_least { "≥ " } else { "" }, count(used)),
            ),
            if ring {
                bytes(map.limit)
            } else {
                count(map.limit)
            },
            map.used
                .map_or_else(|| "-".into(), |used| percent(used, map.limit)),
            map.memory_bytes.map_or_else(|| "-".into(), bytes),
            map.what.clone(),
        ]
    });
    let mut out = style.table(&columns, rows.collect());
    let memory: u64 = report.maps.iter().filter_map(|map| map.memory_bytes).sum();
    if memory > 0 {
        out.push_str(&format!("all maps: {}\n", bytes(memory)));
    }
    out
}

fn packets(report: &Report, style: Style) -> String {
    let unknown = report.packets.iter().any(|totals| totals.unknown > 0);
    let mut columns = vec![
        left("PACKETS AT"),
        right("FORWARDED"),
        right("TO KERNEL"),
        right("REFUSED"),
        right("DROPPED"),
    ];
    if unknown {
        columns.push(right("UNKNOWN"));
    }
    let rows = report.packets.iter().map(|totals| {
        let mut cells = vec![
            totals.hook.clone(),
            count(totals.forwarded),
            count(totals.passed),
            count(totals.refused),
            count(totals.dropped),
        ];
        if unknown {
            cells.push(count(totals.unknown));
        }
        cells
    });
    let mut out = style.table(&columns, rows.collect());
    if report
        .packets
        .iter()
        .any(|totals| totals.refused + totals.dropped > 0)
    {
        out.push_str("why packets were refused or dropped: tulle drops\n");
    }
    out
}

fn faults(report: &Report, style: Style) -> String {
    let errors = report.agent.iter().flat_map(|agent| &agent.map_errors);
    let errors = errors.map(|error| format!("map {}: {}", error.map, error.message));
    let mut out = String::new();
    let told = report.agent.iter().flat_map(|agent| {
        let waiting = agent.waiting_for.iter();
        let waiting = waiting.map(|what| format!("the agent waits for {what}"));
        agent.faults.iter().cloned().chain(waiting)
    });
    for fault in report.faults.iter().cloned().chain(errors).chain(told) {
        out.push_str(&style.paint(Paint::Red, "fault"));
        out.push_str("  ");
        out.push_str(style.paragraph("", 7, &fault).trim_start());
    }
    out
}

fn warnings(report: &Report, style: Style) -> String {
    let mut out = String::new();
    for warning in report.agent.iter().flat_map(|agent| agent.warnings.iter()) {
        let Warning {
            file,
            object,
            field,
            message,
        } = warning;
        let place = [file, object, field]
            .into_iter()
            .filter(|part| !part.is_empty());
        let place = place.map(String::as_str).collect::<Vec<_>>().join(": ");
        out.push_str(&style.paint(Paint::Yellow, "warning"));
        out.push_str(&format!("  {place}\n"));
        out.push_str(&style.paragraph("", 9, message));
    }
    out
}
