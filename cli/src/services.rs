//! `tulle services`: what clients reach, and what answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use datapath_common::{Frontend, FrontendFlags};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::args::ServicesArgs;
use crate::context::Context;
use crate::datapath::{Datapath, TrafficById};
use crate::format;
use crate::frontend_kind::{Kind, Kinds};
use crate::names::{FullName, Names, Wanted, nothing_matches, service_text};
use crate::services_text::render;
use crate::tables::{BackendRow, FrontendRow, SourceRow, family};
use crate::traffic::Traffic;

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
    /// Namespace of the Service; absent without an agent, like the next two.
    pub namespace: Option<String>,
    /// Name of the Service.
    pub name: Option<String>,
    /// Name of its port; empty if it has none.
    pub port_name: Option<String>,
    /// Address and port that clients use.
    pub frontend: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What kind of address that is.
    pub kind: Kind,
    /// Whether flows may be alive that were opened before the backends changed:
    /// the flow table has the last word on where a flow goes.
    pub changed: bool,
    /// Whether rows of living flows may be missing: every packet asks the flow table.
    pub flows_may_be_lost: bool,
    /// Session affinity in seconds, 0 for none.
    pub affinity_secs: u32,
    /// Whether pods of this node get another source address.
    pub masquerades_pods: bool,
    /// Whether clients outside do.
    pub masquerades_outside: bool,
    /// Whether clients outside are not masqueraded where the backend's node answers them itself.
    pub returns_directly: bool,
    /// Networks that may open flows; absent if all may.
    pub source_ranges: Option<Vec<IpNet>>,
    /// Whether the client's address alone selects a slot.
    pub by_source: bool,
    /// Whether the slots are given to new flows in turn.
    pub by_turn: bool,
    /// Whether a new flow has the better of two backends, by their living flows.
    pub by_flows: bool,
    /// Slots by which clients inside (pods of this node and the node itself) are given a backend.
    pub slots: u32,
    /// Their backends in the order of their first slot.
    pub backends: Vec<ServiceBackend>,
    /// What becomes of their packets if there is no backend for them.
    pub when_empty: WhenEmpty,
    /// Where clients outside go, if it is elsewhere.
    pub outside: Option<Outside>,
    /// Traffic of the service port at all its frontends; absent unless asked
    /// for, or if it is not counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic: Option<Traffic>,
}

/// Where clients outside go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outside {
    /// Slots by which they are given a backend.
    pub slots: u32,
    /// Backends in the order of their first slot.
    pub backends: Vec<ServiceBackend>,
    /// What becomes of their packets if there is no backend for them.
    pub when_empty: WhenEmpty,
}

/// What becomes of packets that no backend is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenEmpty {
    /// They are answered with a TCP reset or an ICMP error.
    Refuses,
    /// They are dropped: there are endpoints, but none that these clients may use.
    Drops,
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

/// The rows that services are told from.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// All frontends, with the rows that mark addresses.
    pub frontends: Vec<FrontendRow>,
    /// Backend ids by slot.
    pub segments: Vec<u32>,
    /// All backends.
    pub backends: Vec<BackendRow>,
    /// All source ranges.
    pub sources: Vec<SourceRow>,
}

impl Tables {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// If the maps cannot be read.
    pub fn read(datapath: &Datapath) -> anyhow::Result<Self> {
        // Frontends first: a segment and its backends are written before, and freed long after.
        Ok(Self {
            frontends: datapath.frontends()?,
            segments: datapath.segments()?,
            backends: datapath.backends()?,
            sources: datapath.sources()?,
        })
    }
}

/// Which services.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// Part of a name or an address.
    pub text: Option<&'a str>,
    /// The Service's namespace.
    pub namespace: Option<&'a str>,
    /// The Service's name.
    pub name: Option<&'a str>,
}

impl Filter<'_> {
    /// Whether something was asked for.
    fn is_some(&self) -> bool {
        self.text.or(self.namespace).or(self.name).is_some()
    }
}

/// Frontends joined with their segments and backends.
pub fn rows(tables: &Tables, names: &Names, filter: Filter<'_>) -> Report {
    let addresses: HashMap<(u8, u32), SocketAddr> = tables
        .backends
        .iter()
        .map(|b| ((family(b.addr.ip()), b.id), b.addr))
        .collect();
    let mut sources: HashMap<(u32, u8), Vec<IpNet>> = HashMap::new();
    for source in &tables.sources {
        let key = (source.service, family(source.network.addr()));
        sources.entry(key).or_default().push(source.network);
    }
    for networks in sources.values_mut() {
        networks.sort_unstable();
    }
    let kinds = Kinds::new(&tables.frontends);
    let mut services: Vec<ServiceRow> = tables
        .frontends
        .iter()
        .filter(|frontend| !frontend.is_address())
        .map(|frontend| {
            let version = family(frontend.addr.ip());
            let list = |place: Place| {
                place
                    .shares(&tables.segments)
                    .into_iter()
                    .map(|(id, slots)| ServiceBackend {
                        id,
                        address: addresses.get(&(version, id)).copied(),
                        slots,
                    })
                    .collect()
            };
            let sources = || sources.get(&(frontend.value.service, version));
            let ranges = frontend.has(FrontendFlags::SOURCE_RANGES);
            let source_ranges = ranges.then(|| sources().cloned().unwrap_or_default());
            row(frontend, names, kinds.of(frontend), source_ranges, list)
        })
        .filter(|row| matches(row, filter))
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

/// A frontend; `list` gives the backends of a segment.
fn row(
    frontend: &FrontendRow,
    names: &Names,
    kind: Kind,
    source_ranges: Option<Vec<IpNet>>,
    list: impl Fn(Place) -> Vec<ServiceBackend>,
) -> ServiceRow {
    let value = &frontend.value;
    let service = names.service(value.service);
    let full_name = service.map(FullName::of);
    let owned = |part: fn(&FullName<'_>) -> String| full_name.as_ref().map(part);
    let kind = if full_name.is_some_and(|name| name.is_pod()) {
        Kind::HostPort
    } else {
        kind
    };
    let when_empty = |flag| {
        if frontend.has(flag) {
            WhenEmpty::Drops
        } else {
            WhenEmpty::Refuses
        }
    };
    let inside = when_empty(FrontendFlags::DROP_INSIDE);
    let outside = when_empty(FrontendFlags::DROP_OUTSIDE);
    let one = frontend.one_list() && (value.len > 0 || inside == outside);
    ServiceRow {
        namespace: owned(|name| name.namespace.into()),
        name: owned(|name| name.name.into()),
        port_name: owned(|name| name.port.into()),
        service: service.map(str::to_owned),
        number: value.service,
        frontend: frontend.addr,
        protocol: format::protocol(frontend.proto).into_owned(),
        kind,
        changed: frontend.has(FrontendFlags::FLOWS_DECIDE),
        flows_may_be_lost: frontend.has(FrontendFlags::FLOWS_MAY_BE_LOST),
        affinity_secs: value.affinity_secs,
        masquerades_pods: frontend.has(FrontendFlags::MASQUERADE_PODS),
        masquerades_outside: frontend.has(FrontendFlags::MASQUERADE_OUTSIDE),
        returns_directly: frontend.has(FrontendFlags::DIRECT_RETURN),
        source_ranges,
        by_source: frontend.has(FrontendFlags::SOURCE_HASH),
        by_turn: frontend.has(FrontendFlags::ROUND_ROBIN),
        by_flows: frontend.has(FrontendFlags::LEAST_FLOWS),
        slots: Place::inside(value).slots(),
        backends: list(Place::inside(value)),
        when_empty: inside,
        outside: (!one).then(|| Outside {
            slots: Place::outside(value).slots(),
            backends: list(Place::outside(value)),
            when_empty: outside,
        }),
        traffic: None,
    }
}

/// Backend ids that a frontend names for any client.
pub fn ids_of(frontend: &FrontendRow, segments: &[u32]) -> BTreeSet<u32> {
    let value = &frontend.value;
    let lists = [Place::inside(value), Place::outside(value)];
    let ids = lists.iter().flat_map(|place| place.ids(segments));
    ids.copied().collect()
}

/// Where a segment and its table are.
#[derive(Clone, Copy, Debug)]
struct Place {
    start: u32,
    len: u32,
    table: u32,
}

impl Place {
    /// For clients inside.
    fn inside(row: &Frontend) -> Self {
        Self {
            start: row.start,
            len: row.len,
            table: row.table.into(),
        }
    }

    /// For clients outside.
    fn outside(row: &Frontend) -> Self {
        Self {
            start: row.out_start,
            len: row.out_len,
            table: row.out_table.into(),
        }
    }

    /// Slots by which new flows are given a backend.
    const fn slots(self) -> u32 {
        if self.table == 0 {
            self.len
        } else {
            self.table
        }
    }

    /// Ids of the segment.
    fn ids(self, segments: &[u32]) -> &[u32] {
        slots(self.start, self.len, segments)
    }

    /// Ids of the segment, each with the number of slots that give it to new flows.
    fn shares(self, segments: &[u32]) -> Vec<(u32, u32)> {
        let given = if self.table == 0 {
            self.ids(segments)
        } else {
            slots(self.start.saturating_add(self.len), self.table, segments)
        };
        let mut shares: BTreeMap<u32, u32> = BTreeMap::new();
        for id in given {
            *shares.entry(*id).or_default() += 1;
        }
        let ids = self.ids(segments).iter();
        let share = |id: &u32| (*id, shares.get(id).copied().unwrap_or(0));
        ids.map(share).collect()
    }
}

fn slots(start: u32, len: u32, segments: &[u32]) -> &[u32] {
    let start = start as usize;
    let end = start.saturating_add(len as usize).min(segments.len());
    segments.get(start..end).unwrap_or_default()
}

fn matches(row: &ServiceRow, filter: Filter<'_>) -> bool {
    let is = |wanted: Option<&str>, have: &Option<String>| {
        wanted.is_none_or(|wanted| have.as_deref() == Some(wanted))
    };
    is(filter.namespace, &row.namespace)
        && is(filter.name, &row.name)
        && filter.text.is_none_or(|text| contains(row, text))
}

fn contains(row: &ServiceRow, text: &str) -> bool {
    let text = text.to_lowercase();
    let outside = row.outside.iter().flat_map(|outside| &outside.backends);
    service_text(row.service.as_deref(), row.number)
        .to_lowercase()
        .contains(&text)
        || row.frontend.to_string().contains(&text)
        || row.protocol.to_lowercase() == text
        || row.kind.to_string().to_lowercase() == text
        || row
            .backends
            .iter()
            .chain(outside)
            .filter_map(|backend| backend.address)
            .any(|address| address.to_string().contains(&text))
}

/// Adds the traffic of the service ports.
pub fn add_traffic(report: &mut Report, traffic: &TrafficById) {
    for row in &mut report.services {
        row.traffic = traffic.get(&row.number).copied().map(Traffic::from);
    }
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read, the filter takes nothing, or the output cannot be written.
pub fn run(context: &Context, args: &ServicesArgs) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    let tables = Tables::read(&datapath)?;
    let names = Names::load(context, &[Wanted::Services]);
    let filter = Filter {
        text: args.filter.as_deref(),
        namespace: args.namespace.as_deref(),
        name: args.name.as_deref(),
    };
    let mut report = rows(&tables, &names, filter);
    if report.services.is_empty() && filter.is_some() {
        return Err(nothing_matches("service", "services", &names));
    }
    if args.stats {
        let numbers = report.services.iter().map(|row| row.number).collect();
        add_traffic(&mut report, &datapath.service_traffic(&numbers)?);
    }
    context.print("tulle.services", &report, &report.notes, |report, style| {
        render(report, style, args.wide, args.stats)
    })
}

#[cfg(test)]
#[path = "tests/services.rs"]
mod tests;
