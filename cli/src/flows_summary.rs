//! `tulle flows --summary`: flows by service and by client.

use std::collections::HashMap;
use std::net::IpAddr;

use datapath_common::{FlowState, maps};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::datapath::Datapath;
use crate::flows::FlowView;
use crate::format;
use crate::names::{Names, service_text};
use crate::output::{Style, left, right};
use crate::tables::MapUsage;

/// Clients that are shown.
const CLIENTS: usize = 10;

/// What `tulle flows --summary` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Flows that match.
    pub matching: u64,
    /// By service, the most flows first.
    pub services: Vec<ServiceFlows>,
    /// Clients with the most flows.
    pub clients: Vec<ClientFlows>,
    /// The flow tables, whatever matches.
    pub tables: Vec<MapUsage>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// Flows of a service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceFlows {
    /// `namespace/name:port`; absent without an agent.
    pub service: Option<String>,
    /// Number of the service port.
    pub number: u32,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Flows that nobody has answered.
    pub opening: u64,
    /// Flows both ends of which have spoken.
    pub established: u64,
    /// Flows that are being closed.
    pub closing: u64,
    /// All of them.
    pub total: u64,
}

/// Flows of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClientFlows {
    /// The client.
    pub client: IpAddr,
    /// Flows that nobody has answered.
    pub opening: u64,
    /// All of them.
    pub total: u64,
}

/// Sums flows up.
pub fn rows(views: &[FlowView], tables: Vec<MapUsage>, names: &Names) -> Report {
    let mut services: HashMap<(u32, u8), ServiceFlows> = HashMap::new();
    let mut clients: HashMap<IpAddr, ClientFlows> = HashMap::new();
    for view in views {
        let number = view.latest.service;
        let service = services
            .entry((number, view.proto))
            .or_insert_with(|| ServiceFlows {
                service: names.service(number).map(str::to_owned),
                number,
                protocol: format::protocol(view.proto).into_owned(),
                opening: 0,
                established: 0,
                closing: 0,
                total: 0,
            });
        let ip = view.client.ip();
        let client = clients.entry(ip).or_insert(ClientFlows {
            client: ip,
            opening: 0,
            total: 0,
        });
        service.total += 1;
        client.total += 1;
        match view.latest.state {
            Some(FlowState::Opening) => {
                service.opening += 1;
                client.opening += 1;
            }
            Some(FlowState::Established) => service.established += 1,
            Some(FlowState::Closing) => service.closing += 1,
            None => {}
        }
    }
    let mut services: Vec<_> = services.into_values().collect();
    services.sort_by(|a, b| {
        b.total
            .cmp(&a.total)
            .then_with(|| (a.number, &a.protocol).cmp(&(b.number, &b.protocol)))
    });
    let mut clients: Vec<_> = clients.into_values().collect();
    clients.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.client.cmp(&b.client)));
    clients.truncate(CLIENTS);
    Report {
        matching: views.len() as u64,
        services,
        clients,
        tables,
        notes: names.notes.clone(),
    }
}

/// The report as text.
pub fn render(report: &Report, style: Style) -> String {
    let mut out = format!("{}\n", format::counted(report.matching, "flow"));
    let services = report.services.iter().map(|row| {
        vec![
            service_text(row.service.as_deref(), row.number),
            row.protocol.clone(),
            format::count(row.opening),
            format::count(row.established),
            format::count(row.closing),
            format::count(row.total),
        ]
    });
    let columns = [
        left("SERVICE"),
        left("PROTO"),
        right("OPENING"),
        right("ESTABLISHED"),
        right("CLOSING"),
        right("TOTAL"),
    ];
    let clients = report.clients.iter().map(|row| {
        vec![
            row.client.to_string(),
            format::count(row.opening),
            format::count(row.total),
        ]
    });
    let tables = report.tables.iter().map(|table| {
        let used = table.used.unwrap_or_default();
        vec![
            table.name.clone(),
            format!(
                "{}{}",
                if table.at_least { "≥ " } else { "" },
                format::count(used)
            ),
            format::count(table.limit),
            format::percent(used, table.limit),
        ]
    });
    let parts = [
        style.table(&columns, services.collect()),
        style.table(
            &[left("CLIENT"), right("OPENING"), right("TOTAL")],
            clients.collect(),
        ),
        style.table(
            &[left("TABLE"), right("ROWS"), right("LIMIT"), right("FULL")],
            tables.collect(),
        ),
    ];
    for part in parts.iter().filter(|part| !part.is_empty()) {
        out.push('\n');
        out.push_str(part);
    }
    out
}

/// Prints the summary.
///
/// # Errors
///
/// If the maps cannot be read or the output not be written.
pub fn run(
    context: &Context,
    datapath: &Datapath,
    views: &[FlowView],
    names: &Names,
) -> anyhow::Result<()> {
    let flow_tables = [maps::FLOW_V4, maps::FLOW_V6];
    let tables = maps::ALL
        .iter()
        .filter(|map| flow_tables.contains(&map.name));
    let tables = tables
        .map(|map| datapath.usage(map))
        .collect::<Result<_, _>>()?;
    let report = rows(views, tables, names);
    context.print("tulle.flows.summary", &report, &report.notes, render)
}
