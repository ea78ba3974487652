//! `tulle services`: what clients reach, and what answers.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::args::ServicesArgs;
use crate::context::Context;
use crate::format;
use crate::names::{Names, Wanted, service_text};
use crate::output::{Style, left, right, text};
use crate::tables::{BackendRow, FrontendRow, family};

/// Backends of a service that a table shows unless it is wide.
const SHORT_LIST: usize = 3;

/// What `tulle services` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Frontends, by service name and address.
    pub services: Vec<ServiceRow>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// A frontend and its backends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRow {
    /// `namespace/name:port`; absent without an agent.
    pub service: Option<String>,
    /// Number of the service port.
    pub number: u32,
    /// Address and port that clients use.
    pub frontend: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Whether flows may be alive that were opened before the backends changed:
    /// the flow table has the last word on where a flow goes.
    pub changed: bool,
    /// Session affinity in seconds, 0 for none.
    pub affinity_secs: u32,
    /// Slots of the segment.
    pub slots: u32,
    /// Backends in the order of their first slot.
    pub backends: Vec<ServiceBackend>,
}

/// A backend of a service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceBackend {
    /// Backend id.
    pub id: u32,
    /// Address and port; absent if the segment names a row that is free.
    pub address: Option<SocketAddr>,
    /// Slots that name it: its weight.
    pub slots: u32,
}

/// Frontends joined with their segments and backends.
pub fn rows(
    frontends: &[FrontendRow],
    segments: &[u32],
    backends: &[BackendRow],
    names: &Names,
    filter: Option<&str>,
) -> Report {
    let addresses: HashMap<(u8, u32), SocketAddr> = backends
        .iter()
        .map(|b| ((family(b.addr.ip()), b.id), b.addr))
        .collect();
    let mut services: Vec<ServiceRow> = frontends
        .iter()
        .filter(|frontend| !frontend.is_address())
        .map(|frontend| {
            let version = family(frontend.addr.ip());
            let backends = slots_of(frontend, segments)
                .into_iter()
                .map(|(id, slots)| ServiceBackend {
                    id,
                    address: addresses.get(&(version, id)).copied(),
                    slots,
                })
                .collect();
            ServiceRow {
                service: names.service(frontend.value.service).map(str::to_owned),
                number: frontend.value.service,
                frontend: frontend.addr,
                protocol: format::protocol(frontend.proto).into_owned(),
                changed: frontend.flows_decide(),
                affinity_secs: frontend.value.affinity_secs,
                slots: frontend.value.len,
                backends,
            }
        })
        .filter(|row| filter.is_none_or(|filter| matches(row, filter)))
        .collect();
    services.sort_by(|a, b| {
        let key = |row: &ServiceRow| (row.service.is_none(), row.service.clone(), row.number);
        key(a)
            .cmp(&key(b))
            .then_with(|| (a.frontend, &a.protocol).cmp(&(b.frontend, &b.protocol)))
    });
    Report {
        services,
        notes: names.notes.clone(),
    }
}

/// Backend ids of a segment with the number of their slots, in the order of
/// their first slot.
pub fn slots_of(frontend: &FrontendRow, segments: &[u32]) -> Vec<(u32, u32)> {
    let start = frontend.value.start as usize;
    let end = start
        .saturating_add(frontend.value.len as usize)
        .min(segments.len());
    let mut found: BTreeMap<u32, (usize, u32)> = BTreeMap::new();
    for (place, id) in segments
        .get(start..end)
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        found.entry(*id).or_insert((place, 0)).1 += 1;
    }
    let mut ids: Vec<_> = found.into_iter().collect();
    ids.sort_by_key(|&(_, (place, _))| place);
    ids.into_iter()
        .map(|(id, (_, slots))| (id, slots))
        .collect()
}

fn matches(row: &ServiceRow, filter: &str) -> bool {
    let filter = filter.to_lowercase();
    let backends = row
        .backends
        .iter()
        .filter_map(|b| b.address)
        .map(|a| a.to_string());
    service_text(row.service.as_deref(), row.number)
        .to_lowercase()
        .contains(&filter)
        || row.frontend.to_string().contains(&filter)
        || row.protocol.to_lowercase() == filter
        || backends
            .into_iter()
            .any(|address| address.contains(&filter))
}

/// The report as a table.
pub fn render(report: &Report, style: Style, wide: bool) -> String {
    if report.services.is_empty() {
        return "no services\n".into();
    }
    let mut columns = vec![
        left("SERVICE"),
        left("FRONTEND"),
        left("PROTO"),
        right("BACKENDS"),
    ];
    if wide {
        columns.extend([right("NUMBER"), right("SLOTS"), right("AFFINITY")]);
    }
    columns.extend([left("FLOWS"), text("ENDPOINTS")]);
    let rows = report.services.iter().map(|row| {
        let mut cells = vec![
            service_text(row.service.as_deref(), row.number),
            row.frontend.to_string(),
            row.protocol.clone(),
            format::count(row.backends.len() as u64),
        ];
        if wide {
            cells.push(row.number.to_string());
            cells.push(format::count(u64::from(row.slots)));
            cells.push(match row.affinity_secs {
                0 => "-".into(),
                secs => format::age(u64::from(secs)),
            });
        }
        cells.push(if row.changed { "changed" } else { "-" }.into());
        cells.push(endpoints(row, if wide { usize::MAX } else { SHORT_LIST }));
        cells
    });
    style.table(&columns, rows.collect())
}

fn endpoints(row: &ServiceRow, most: usize) -> String {
    if row.backends.is_empty() {
        return "none: clients are refused".into();
    }
    let weighted = row
        .backends
        .iter()
        .any(|b| b.slots != row.backends[0].slots);
    let shown = row.backends.iter().take(most).map(|backend| {
        let address = backend.address.map_or_else(
            || format!("id {} (free!)", backend.id),
            |address| address.to_string(),
        );
        if weighted {
            format!("{address} ×{}", backend.slots)
        } else {
            address
        }
    });
    let mut list = shown.collect::<Vec<_>>().join(" ");
    if row.backends.len() > most {
        list.push_str(&format!(" +{}", row.backends.len() - most));
    }
    list
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read or the output not be written.
pub fn run(context: &Context, args: &ServicesArgs) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    // Frontends first: a segment and its backends are written before, and freed long after.
    let frontends = datapath.frontends()?;
    let segments = datapath.segments()?;
    let backends = datapath.backends()?;
    let names = Names::load(context, &[Wanted::Services]);
    let report = rows(
        &frontends,
        &segments,
        &backends,
        &names,
        args.filter.as_deref(),
    );
    context.print("tulle.services", &report, &report.notes, |report, style| {
        render(report, style, args.wide)
    })
}

#[cfg(test)]
#[path = "tests/services.rs"]
mod tests;
