//! `tulle snat`: masqueraded flows, and the ports that they use.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use datapath_common::{Config, Reason};
use serde::{Deserialize, Serialize};

use crate::args::SnatArgs;
use crate::context::Context;
use crate::flows::{self, FlowView, Row, half_flows, hidden, or_dash};
use crate::format;
use crate::names::{Names, Wanted};
use crate::output::{Style, left, right};
use crate::tables::CounterRow;

/// Users of ports that text shows.
const USERS: usize = 5;
/// From this part of the ports on, in percent, new flows may find none: only 32
/// of them are tried.
const CROWDED_PERCENT: u64 = 75;

/// What `tulle snat` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Masqueraded flows that match, with or without those beyond the limit.
    pub matching: u64,
    /// Masqueraded flows, the latest first.
    pub flows: Vec<Row>,
    /// The ports that there are; absent if no program is loaded.
    pub ports: Option<Ports>,
    /// Ports in use, the largest number first; of all flows, for those backends
    /// that a flow matches.
    pub users: Vec<User>,
    /// Packets dropped since the maps were made because no port was free.
    pub exhausted: u64,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// The ports for translated sources.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ports {
    /// The first of them.
    pub first: u16,
    /// How many there are, for each translated address, backend and protocol.
    pub count: u16,
}

impl From<Config> for Ports {
    fn from(config: Config) -> Self {
        Self {
            first: config.snat_first,
            count: config.snat_ports,
        }
    }
}

/// Ports of a translated address in use towards a backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct User {
    /// What the backend sees as the client.
    pub translated: IpAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// `TCP`, `UDP`, `SCTP`, or `ICMP` or `ICMPv6` for echoes.
    pub protocol: String,
    /// Ports in use.
    pub ports: u64,
}

/// Who uses ports of its own: translated address, backend, protocol.
type Key = (IpAddr, SocketAddr, u8);

fn key(view: &FlowView) -> Option<(Key, u16)> {
    let translated = view.translated?;
    let key = (translated.ip(), view.backend, view.proto);
    Some((key, translated.port()))
}

/// Ports in use by what `shown` takes, the largest number first.
fn users(all: &[FlowView], shown: impl Fn(&FlowView) -> bool) -> Vec<User> {
    let mut ports: HashMap<Key, BTreeSet<u16>> = HashMap::new();
    let mut wanted = HashSet::new();
    for view in all {
        if let Some((key, port)) = key(view) {
            ports.entry(key).or_default().insert(port);
            if shown(view) {
                wanted.insert(key);
            }
        }
    }
    let mut users: Vec<(Key, u64)> = ports
        .into_iter()
        .filter(|(key, _)| wanted.contains(key))
        .map(|(key, ports)| (key, ports.len() as u64))
        .collect();
    users.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let user = |((translated, backend, proto), ports)| User {
        translated,
        backend,
        protocol: format::protocol(proto).into_owned(),
        ports,
    };
    users.into_iter().map(user).collect()
}

/// What a report is made of, besides the flows.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Names, if there are any.
    pub names: &'a Names,
    /// The programs' configuration, if any is loaded.
    pub config: Option<Config>,
    /// The counters.
    pub counters: &'a [CounterRow],
    /// The present tick.
    pub now: u32,
}

/// The masqueraded ones of all flows, at most `limit` of those that `shown` takes.
pub fn rows(
    all: &[FlowView],
    shown: impl Fn(&FlowView) -> bool,
    limit: usize,
    facts: Facts<'_>,
) -> Report {
    let shown = |view: &FlowView| view.translated.is_some() && shown(view);
    let matching: Vec<_> = all.iter().filter(|view| shown(view)).collect();
    let users = users(all, shown);
    let ports = facts.config.map(Ports::from);
    let exhausted = facts.counters.iter();
    let exhausted = exhausted
        .filter(|row| row.known() == Some(Reason::SnatPortsExhausted))
        .map(|row| row.packets)
        .sum();
    let mut notes = facts.names.notes.clone();
    notes.extend(hidden(matching.len(), limit, "flow"));
    notes.extend(crowded(&users, ports));
    let first = matching.iter().take(limit);
    Report {
        matching: matching.len() as u64,
        flows: first
            .map(|view| Row::new(view, facts.names, facts.now))
            .collect(),
        ports,
        users,
        exhausted,
        notes,
    }
}

/// The note about users who have nearly all of their ports.
fn crowded(users: &[User], ports: Option<Ports>) -> Option<String> {
    let count = u64::from(ports?.count);
    let crowded = users
        .iter()
        .filter(|user| user.ports * 100 >= count * CROWDED_PERCENT);
    let number = crowded.count() as u64;
    (count > 0 && number > 0).then(|| {
        format!(
            "{} with {CROWDED_PERCENT} % of the ports in use or more: new flows there may find \
             none and be dropped (snat_ports_exhausted); widen --snat-ports or set \
             externalTrafficPolicy: Local",
            format::counted(number, "backend")
        )
    })
}

/// The report as text.
pub fn render(report: &Report, style: Style) -> String {
    let mut out = String::new();
    if report.flows.is_empty() {
        out.push_str("no masqueraded flows\n");
    } else {
        let columns = [
            left("PROTO"),
            left("CLIENT"),
            left("TRANSLATED"),
            left("BACKEND"),
            left("STATE"),
            right("IDLE"),
            left("FRONTEND"),
            left("SERVICE"),
        ];
        let rows = report.flows.iter().map(|flow| {
            vec![
                flow.protocol.clone(),
                flow.client.to_string(),
                or_dash(flow.translated),
                flow.backend.to_string(),
                flow.state_text(),
                format::age(flow.idle_secs),
                or_dash(flow.frontend),
                flow.service_text(),
            ]
        });
        out.push_str(&style.table(&columns, rows.collect()));
        out.push_str(half_flows(&report.flows));
    }
    out.push('\n');
    out.push_str(&summary(report));
    let shown = report.users.iter().take(USERS);
    let rows = shown.map(|user| {
        vec![
            user.translated.to_string(),
            user.backend.to_string(),
            user.protocol.clone(),
            format::count(user.ports),
            report.ports.map_or_else(
                || "-".into(),
                |ports| format::percent(user.ports, ports.count.into()),
            ),
        ]
    });
    let columns = [
        left("TRANSLATED"),
        left("BACKEND"),
        left("PROTO"),
        right("PORTS"),
        right("USED"),
    ];
    out.push_str(&style.table(&columns, rows.collect()));
    if report.users.len() > USERS {
        let more = (report.users.len() - USERS) as u64;
        out.push_str(&format!("and {} with fewer ports\n", format::count(more)));
    }
    out
}

fn summary(report: &Report) -> String {
    let flows = format::counted(report.matching, "masqueraded flow");
    let ports = match report.ports {
        None => "no program is loaded that says how many ports there are".to_owned(),
        Some(Ports { count: 0, .. }) => "masquerade is off: there are no ports for it".to_owned(),
        Some(Ports { first, count }) => format!(
            "{} ({first} to {}) for each translated address, backend and protocol",
            format::counted(count.into(), "port"),
            u32::from(first) + u32::from(count) - 1
        ),
    };
    let exhausted = match report.exhausted {
        0 => "none dropped for want of a port".to_owned(),
        n => format!(
            "{} dropped for want of a port",
            format::counted(n, "packet")
        ),
    };
    format!("{flows}; {ports}; {exhausted}\n")
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read or the output not be written.
pub fn run(context: &Context, args: &SnatArgs) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    let all = flows::join(&datapath.flows()?);
    let names = Names::load(context, &[Wanted::Services]);
    let facts = Facts {
        names: &names,
        config: datapath.config()?,
        counters: &datapath.counters()?,
        now: format::now_tick()?,
    };
    let limit = flows::limit(context, args.limit);
    let report = rows(&all, |view| view.matches(&args.filter), limit, facts);
    context.print("tulle.snat", &report, &report.notes, render)
}

#[cfg(test)]
#[path = "tests/snat.rs"]
mod tests;
