//! `tulle backends`: what answers, and the way there.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use datapath_common::{Via, ViaKind};
use serde::{Deserialize, Serialize};

use crate::args::BackendsArgs;
use crate::context::Context;
use crate::datapath::TrafficById;
use crate::format;
use crate::links::{interface_name, interface_text};
use crate::names::{Names, Wanted, nothing_matches, service_text};
use crate::output::{Style, left, right, text};
use crate::services::ids_of;
use crate::tables::{BackendRow, FrontendRow, family, via_kind};
use crate::traffic::{self, Traffic};

/// States of backends, as filters name them.
const STATES: [&str; 2] = ["active", "draining"];

/// What `tulle backends` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Backends, by family and id.
    pub backends: Vec<Row>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Address family: 4 or 6. Each has ids of its own.
    pub family: u8,
    /// Backend id.
    pub id: u32,
    /// Generation of the row.
    pub generation: u32,
    /// Address and port.
    pub address: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `active` or `draining`.
    pub state: String,
    /// The way there.
    pub via: Way,
    /// Services that it belongs to: names, or `#number` without an agent.
    pub services: Vec<String>,
    /// Traffic since the row's number was first used; absent unless asked for,
    /// or if it is not counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic: Option<Traffic>,
}

/// How an address is reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Way {
    /// By the kernel's routing.
    Kernel,
    /// An address of this node itself.
    Host,
    /// A pod of this node.
    Local {
        /// Index of the veth's host side.
        ifindex: u32,
        /// Its name, if it is in this network namespace.
        interface: Option<String>,
    },
    /// A pod of another node.
    Vxlan {
        /// The node on the underlay.
        address: Ipv4Addr,
        /// Its name; absent without an agent.
        node: Option<String>,
        /// Next hop towards it.
        next_hop: Ipv4Addr,
        /// Index of the uplink.
        ifindex: u32,
        /// Its name, if it is in this network namespace.
        interface: Option<String>,
    },
}

impl Way {
    /// From a row, with names where there are some.
    pub fn new(via: &Via, names: &Names, interfaces: &dyn Fn(u32) -> Option<String>) -> Self {
        let (ifindex, interface) = (via.ifindex, || interfaces(via.ifindex));
        match via_kind(via) {
            ViaKind::Kernel => Self::Kernel,
            ViaKind::Host => Self::Host,
            ViaKind::Local => Self::Local {
                ifindex,
                interface: interface(),
            },
            ViaKind::Vxlan => {
                let address = Ipv4Addr::from(via.node);
                Self::Vxlan {
                    address,
                    node: names.node(IpAddr::V4(address)).map(str::to_owned),
                    next_hop: via.next_hop.into(),
                    ifindex,
                    interface: interface(),
                }
            }
        }
    }

    /// In a few words.
    pub fn text(&self) -> String {
        match self {
            Self::Kernel => "kernel".into(),
            Self::Host => "this node".into(),
            Self::Local { ifindex, interface } => {
                format!("local {}", interface_text(interface.as_deref(), *ifindex))
            }
            Self::Vxlan {
                address,
                node: Some(node),
                ..
            } => format!("vxlan {node} ({address})"),
            Self::Vxlan {
                address,
                node: None,
                ..
            } => format!("vxlan {address}"),
        }
    }
}

/// Backends joined with the services whose segments name them.
pub fn rows(
    backends: &[BackendRow],
    frontends: &[FrontendRow],
    segments: &[u32],
    names: &Names,
    interfaces: &dyn Fn(u32) -> Option<String>,
    filter: Option<&str>,
) -> Report {
    let mut users: HashMap<(u8, u32), BTreeSet<String>> = HashMap::new();
    for frontend in frontends.iter().filter(|frontend| !frontend.is_address()) {
        let number = frontend.value.service;
        let service = service_text(names.service(number), number);
        for id in ids_of(frontend, segments) {
            let key = (family(frontend.addr.ip()), id);
            users.entry(key).or_default().insert(service.clone());
        }
    }
    let mut rows: Vec<Row> = backends
        .iter()
        .map(|backend| {
            let key = (family(backend.addr.ip()), backend.id);
            let mut services = users.remove(&key).unwrap_or_default();
            // A draining backend is in no segment; the agent still knows whose it was.
            services.extend(names.backends.get(&key).into_iter().flatten().cloned());
            Row {
                family: key.0,
                id: backend.id,
                generation: backend.generation,
                address: backend.addr,
                protocol: format::protocol(backend.proto).into_owned(),
                state: backend.state_name().into(),
                via: Way::new(&backend.via, names, interfaces),
                services: services.into_iter().collect(),
                traffic: None,
            }
        })
        .filter(|row| filter.is_none_or(|filter| matches(row, filter)))
        .collect();
    rows.sort_by_key(|row| (row.family, row.id));
    Report {
        backends: rows,
        notes: names.notes.clone(),
    }
}

fn matches(row: &Row, filter: &str) -> bool {
    let filter = filter.to_lowercase();
    let has = |text: &str| text.to_lowercase().contains(&filter);
    has(&row.address.to_string())
        || has(&row.via.text())
        || row.state == filter
        || row.services.iter().any(|service| has(service))
}

/// Adds the traffic of the backends of a family.
pub fn add_traffic(report: &mut Report, family: u8, traffic: &TrafficById) {
    let rows = report.backends.iter_mut();
    for row in rows.filter(|row| row.family == family) {
        row.traffic = traffic.get(&row.id).copied().map(Traffic::from);
    }
}

/// The report as a table, with traffic if `stats`.
pub fn render(report: &Report, style: Style, stats: bool) -> String {
    if report.backends.is_empty() {
        return "no backends\n".into();
    }
    let mut columns = vec![
        right("ID"),
        right("GEN"),
        left("ADDRESS"),
        left("PROTO"),
        left("STATE"),
        left("VIA"),
    ];
    if stats {
        columns.extend(traffic::COLUMNS);
    }
    columns.push(text("SERVICES"));
    let rows = report.backends.iter().map(|row| {
        let mut cells = vec![
            row.id.to_string(),
            row.generation.to_string(),
            row.address.to_string(),
            row.protocol.clone(),
            row.state.clone(),
            row.via.text(),
        ];
        if stats {
            cells.extend(traffic::cells(row.traffic.as_ref()));
        }
        cells.push(if row.services.is_empty() {
            "-".into()
        } else {
            row.services.join(" ")
        });
        cells
    });
    style.table(&columns, rows.collect())
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read, the filter takes nothing, or the output cannot be written.
pub fn run(context: &Context, args: &BackendsArgs) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    let frontends = datapath.frontends()?;
    let segments = datapath.segments()?;
    let backends = datapath.backends()?;
    let names = Names::load(
        context,
        &[Wanted::Services, Wanted::Backends, Wanted::Nodes],
    );
    let filter = args.filter.as_deref();
    let mut report = rows(
        &backends,
        &frontends,
        &segments,
        &names,
        &interface_name,
        filter,
    );
    // That none is in a state is an answer.
    if report.backends.is_empty() && filter.is_some_and(|filter| !STATES.contains(&filter)) {
        return Err(nothing_matches("backend", "backends", &names));
    }
    if args.stats {
        for family in [4, 6] {
            let ours = report.backends.iter().filter(|row| row.family == family);
            let ids = ours.map(|row| row.id).collect();
            add_traffic(
                &mut report,
                family,
                &datapath.backend_traffic(family, &ids)?,
            );
        }
    }
    context.print("tulle.backends", &report, &report.notes, |report, style| {
        render(report, style, args.stats)
    })
}

#[cfg(test)]
#[path = "tests/backends.rs"]
mod tests;
