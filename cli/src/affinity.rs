//! `tulle affinity`: which client goes to which backend, and for how long.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use anyhow::bail;
use datapath_common::TICK_NANOS;
use serde::{Deserialize, Serialize};

use crate::args::{AffinityAction, AffinityArgs, AffinityFilter};
use crate::context::Context;
use crate::datapath::Datapath;
use crate::flows::{hidden, limit};
use crate::format;
use crate::names::{Names, Wanted, nothing_matches, service_text};
use crate::output::{Style, left, right};
use crate::services::ids_of;
use crate::tables::{AffinityRow, BackendRow, FrontendRow, family};

/// What `tulle affinity` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Rows that match, with or without those beyond the limit.
    pub matching: u64,
    /// Rows, the latest first.
    pub affinities: Vec<Row>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// Where a client of a service goes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The client, before any translation.
    pub client: IpAddr,
    /// `namespace/name:port`; absent without an agent.
    pub service: Option<String>,
    /// Number of the service port.
    pub number: u32,
    /// The backend; absent if its row is another's by now.
    pub backend: Option<SocketAddr>,
    /// Backend id.
    pub backend_id: u32,
    /// Generation of the backend when the row was written.
    pub generation: u32,
    /// Seconds since the client's last new flow.
    pub age_secs: u64,
    /// Session affinity of the service in seconds; 0 if it has none any more.
    pub affinity_secs: u32,
    /// Seconds that the row is still good for; 0 if it is not in use.
    pub remaining_secs: u64,
    /// What the row is worth.
    pub state: State,
}

/// What a row is worth to the client's next new flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It goes to the backend.
    Live,
    /// The time is over: it chooses anew.
    Expired,
    /// The backend takes no new flows of this service: it chooses anew.
    BackendGone,
}

impl State {
    const fn text(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Expired => "expired",
            Self::BackendGone => "backend gone",
        }
    }
}

/// What frontends say of their service port.
#[derive(Clone, Debug, Default)]
struct Service {
    affinity_secs: u32,
    ids: BTreeSet<u32>,
}

/// What affinity rows are judged by.
#[derive(Debug)]
pub struct Judge {
    services: HashMap<u32, Service>,
    backends: HashMap<(u8, u32), BackendRow>,
    now: u32,
}

impl Judge {
    /// From the rows of the maps and the present tick.
    pub fn new(
        frontends: &[FrontendRow],
        segments: &[u32],
        backends: &[BackendRow],
        now: u32,
    ) -> Self {
        let mut services: HashMap<u32, Service> = HashMap::new();
        for frontend in frontends.iter().filter(|row| row.value.affinity_secs != 0) {
            let service = services.entry(frontend.value.service).or_default();
            service.affinity_secs = service.affinity_secs.max(frontend.value.affinity_secs);
            service.ids.extend(ids_of(frontend, segments));
        }
        let backends = backends
            .iter()
            .map(|row| ((family(row.addr.ip()), row.id), *row))
            .collect();
        Self {
            services,
            backends,
            now,
        }
    }

    /// The row for people and programs.
    pub fn row(&self, row: &AffinityRow, names: &Names) -> Row {
        let none = Service::default();
        let service = self.services.get(&row.service).unwrap_or(&none);
        let backend = self.backends.get(&(family(row.client), row.value.backend));
        let backend = backend.filter(|backend| backend.generation == row.value.generation);
        let takes_flows =
            backend.is_some_and(BackendRow::is_active) && service.ids.contains(&row.value.backend);
        // As the programs do: in ticks, rounded down, the last one included.
        let ticks = u64::from(service.affinity_secs) * 1_000_000_000 / TICK_NANOS;
        let last = u64::from(row.value.seen) + ticks;
        let state = if service.affinity_secs == 0 || last < u64::from(self.now) {
            State::Expired
        } else if takes_flows {
            State::Live
        } else {
            State::BackendGone
        };
        Row {
            client: row.client,
            service: names.service(row.service).map(str::to_owned),
            number: row.service,
            backend: backend.map(|backend| backend.addr),
            backend_id: row.value.backend,
            generation: row.value.generation,
            age_secs: format::ticks_to_secs(row.value.seen, self.now),
            affinity_secs: service.affinity_secs,
            remaining_secs: match state {
                State::Live => {
                    format::ticks_to_secs(self.now, u32::try_from(last).unwrap_or(u32::MAX))
                }
                State::Expired | State::BackendGone => 0,
            },
            state,
        }
    }
}

/// Whether the filter takes the row.
fn matches(row: &AffinityRow, names: &Names, filter: &AffinityFilter) -> bool {
    filter.client.is_none_or(|net| net.contains(&row.client))
        && filter
            .service
            .as_ref()
            .is_none_or(|wanted| is_service(wanted, row.service, names.service(row.service)))
}

/// Whether a service is the one that is wanted by number or part of its name.
fn is_service(wanted: &str, number: u32, name: Option<&str>) -> bool {
    let wanted_number = wanted.strip_prefix('#').unwrap_or(wanted).parse();
    let wanted = wanted.to_lowercase();
    wanted_number == Ok(number) || name.is_some_and(|name| name.to_lowercase().contains(&wanted))
}

/// Rows for people and programs, the latest first, at most `limit`.
pub fn rows(rows: &[AffinityRow], judge: &Judge, names: &Names, limit: usize) -> Report {
    let mut sorted: Vec<_> = rows.iter().collect();
    sorted.sort_by(|a, b| {
        let key = |row: &AffinityRow| (row.client, row.service);
        let latest = b.value.seen.cmp(&a.value.seen);
        latest.then_with(|| key(a).cmp(&key(b)))
    });
    let mut notes = names.notes.clone();
    notes.extend(hidden(rows.len(), limit, "row"));
    let first = sorted.into_iter().take(limit);
    Report {
        matching: rows.len() as u64,
        affinities: first.map(|row| judge.row(row, names)).collect(),
        notes,
    }
}

/// The report as a table.
pub fn render(report: &Report, style: Style) -> String {
    if report.affinities.is_empty() {
        return "no session affinity\n".into();
    }
    let columns = [
        left("CLIENT"),
        left("SERVICE"),
        left("BACKEND"),
        right("AGE"),
        right("LEFT"),
        left("STATE"),
    ];
    let rows = report.affinities.iter().map(|row| {
        vec![
            row.client.to_string(),
            service_text(row.service.as_deref(), row.number),
            row.backend
                .map_or_else(|| format!("id {}", row.backend_id), |addr| addr.to_string()),
            format::age(row.age_secs),
            match row.state {
                State::Live => format::age(row.remaining_secs),
                State::Expired | State::BackendGone => "-".into(),
            },
            row.state.text().into(),
        ]
    });
    style.table(&columns, rows.collect())
}

/// What `tulle affinity flush` tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flushed {
    /// Rows that matched.
    pub matching: u64,
    /// Rows that were removed; fewer if some went meanwhile.
    pub rows_removed: u64,
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read or written or the output not be written.
pub fn run(context: &Context, args: &AffinityArgs) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    if let Some(AffinityAction::Flush { filter, yes }) = &args.action {
        let names = Names::load(context, &[Wanted::Services]);
        return flush(context, &datapath, filter, &names, *yes);
    }
    let judge = Judge::new(
        &datapath.frontends()?,
        &datapath.segments()?,
        &datapath.backends()?,
        format::now_tick()?,
    );
    let names = Names::load(context, &[Wanted::Services]);
    let mut found = datapath.affinities()?;
    found.retain(|row| matches(row, &names, &args.filter));
    if found.is_empty()
        && let Some(wanted) = &args.filter.service
    {
        let mut services = names.services.iter();
        if !services.any(|(number, name)| is_service(wanted, *number, Some(name))) {
            return Err(nothing_matches("service", "services", &names));
        }
    }
    let report = rows(&found, &judge, &names, limit(context, args.limit));
    context.print("tulle.affinity", &report, &report.notes, render)
}

fn flush(
    context: &Context,
    datapath: &Datapath,
    filter: &AffinityFilter,
    names: &Names,
    yes: bool,
) -> anyhow::Result<()> {
    let mut found = datapath.affinities()?;
    found.retain(|row| matches(row, names, filter));
    let matching = found.len() as u64;
    // Without names a filter by name takes nothing: say why.
    let notes = if filter.service.is_some() {
        names.notes.as_slice()
    } else {
        &[]
    };
    if !yes {
        for note in notes {
            eprintln!("{note}");
        }
        bail!(
            "{} would be forgotten; add --yes to do it",
            format::counted(matching, "row")
        );
    }
    let flushed = Flushed {
        matching,
        rows_removed: datapath.remove_affinities(found.iter().map(|row| row.key))?,
    };
    context.print("tulle.affinity.flush", &flushed, notes, |flushed, _| {
        format!(
            "{} forgotten\n",
            format::counted(flushed.rows_removed, "row")
        )
    })
}

#[cfg(test)]
#[path = "tests/affinity.rs"]
mod tests;
