//! `tulle flows`: who talks to which backend.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use anyhow::bail;
use datapath_common::{FlowState, NodeClient, proto};
use serde::{Deserialize, Serialize};

use crate::args::{FlowFilter, FlowsAction, FlowsArgs, Format};
use crate::context::Context;
use crate::datapath::Datapath;
use crate::flows_summary;
use crate::format;
use crate::names::{NO_SERVICE, Names, OTHER_NODES, Wanted, service_text};
use crate::output::{Style, left, right};
use crate::tables::{FlowRow, FlowRowKey};

/// Flows that a table shows unless told otherwise.
const SHOWN: usize = 100;

/// What `tulle flows` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Flows that match, with or without those beyond the limit.
    pub matching: u64,
    /// Flows, the latest first.
    pub flows: Vec<Row>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// A flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// `TCP`, `UDP`, `SCTP`, or `ICMP` or `ICMPv6` for echoes.
    pub protocol: String,
    /// Who opened it.
    pub client: SocketAddr,
    /// What the backend sees as the client, if the flow is masqueraded.
    pub translated: Option<SocketAddr>,
    /// What the client talks to; absent for a flow through no service that is
    /// only masqueraded.
    pub frontend: Option<SocketAddr>,
    /// Who answers.
    pub backend: SocketAddr,
    /// Backend id; 0 for a flow through no service.
    pub backend_id: u32,
    /// Generation of the backend when the flow opened.
    pub generation: u32,
    /// `namespace/name:port`; absent without an agent.
    pub service: Option<String>,
    /// Number of the service port.
    pub number: u32,
    /// `opening`, `established`, `closing` or `unknown`.
    pub state: String,
    /// Seconds since it opened.
    pub age_secs: u64,
    /// Seconds since a packet was seen, to about two seconds.
    pub idle_secs: u64,
    /// Whether the client is its own backend.
    pub hairpin: bool,
    /// Whether the backend's node answers the client: such a flow has a forward row only.
    pub direct: bool,
    /// Whether another node chose the backend, and this one answers the client.
    pub forwarded: bool,
    /// Rows of the flow: `both`, or `forward` or `reply` where only one is left.
    pub rows: String,
}

/// A flow out of its one or two rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowView {
    /// IP protocol number.
    pub proto: u8,
    /// Who opened it.
    pub client: SocketAddr,
    /// What the backend sees as the client, if the flow is masqueraded.
    pub translated: Option<SocketAddr>,
    /// What the client talks to; absent for a flow through no service.
    pub frontend: Option<SocketAddr>,
    /// Who answers.
    pub backend: SocketAddr,
    /// The row that was seen last.
    pub latest: FlowRow,
    /// Key of the forward row.
    pub forward: Option<FlowRowKey>,
    /// Key of the reply row.
    pub reply: Option<FlowRowKey>,
}

impl FlowView {
    fn new(row: FlowRow) -> Self {
        let (client, translated, frontend, backend) = match (row.reply, row.nat) {
            (false, nat) => (row.src, nat, row.dst, row.target),
            (true, Some(client)) => (client, Some(row.dst), row.target, row.src),
            // A hairpin's replies go to the frontend, the client's port is theirs.
            (true, None) if row.hairpin => {
                let client = SocketAddr::new(row.src.ip(), row.dst.port());
                (client, None, row.target, row.src)
            }
            (true, None) => (row.dst, None, row.target, row.src),
        };
        // Without a service the client talks to whoever answers.
        let forwarded = row.node == Some(NodeClient::Forwarded);
        let of_service = row.backend != 0 || forwarded;
        let backend = match (of_service, row.reply) {
            (true, _) | (false, true) => backend,
            (false, false) => row.dst,
        };
        let frontend = of_service.then_some(frontend);
        Self {
            proto: row.proto,
            client,
            translated,
            frontend,
            backend,
            latest: row,
            forward: (!row.reply).then_some(row.key),
            reply: row.reply.then_some(row.key),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.forward = self.forward.or(other.forward);
        self.reply = self.reply.or(other.reply);
        let order = |row: &FlowRow| (row.state, row.seen);
        if order(&other.latest) > order(&self.latest) {
            self.latest = other.latest;
        }
    }

    /// Name of the state.
    pub fn state_name(&self) -> &'static str {
        self.latest.state.map_or("unknown", FlowState::name)
    }

    /// Whether the filter takes it.
    pub fn matches(&self, filter: &FlowFilter) -> bool {
        let known = [
            Some(self.client),
            self.translated,
            self.frontend,
            Some(self.backend),
        ];
        let mut ends = known.into_iter().flatten();
        filter
            .addr
            .is_none_or(|net| ends.clone().any(|end| net.contains(&end.ip())))
            && filter
                .port
                .is_none_or(|port| ends.any(|end| end.port() == port))
            && filter.proto.is_none_or(|proto| proto.is(self.proto))
            && filter
                .state
                .is_none_or(|state| self.latest.state == Some(state.into()))
    }
}

/// Puts the two rows of each flow together; the latest flow comes first.
pub fn join(rows: &[FlowRow]) -> Vec<FlowView> {
    let mut views: Vec<FlowView> = Vec::new();
    let mut places = HashMap::new();
    for row in rows {
        let view = FlowView::new(*row);
        let id = (
            view.proto,
            view.client,
            view.translated,
            view.frontend,
            view.backend,
        );
        match places.entry(id).or_insert(views.len()) {
            place if *place == views.len() => views.push(view),
            place => {
                if let Some(known) = views.get_mut(*place) {
                    known.merge(&view);
                }
            }
        }
    }
    views.sort_by(|a, b| {
        let key = |view: &FlowView| (view.client, view.frontend, view.proto, view.backend);
        b.latest
            .seen
            .cmp(&a.latest.seen)
            .then_with(|| key(a).cmp(&key(b)))
    });
    views
}

/// Flows for people and programs, at most `limit`; `now` in ticks.
pub fn rows(views: &[FlowView], names: &Names, now: u32, limit: usize) -> Report {
    let flows = views
        .iter()
        .take(limit)
        .map(|view| Row::new(view, names, now));
    let mut notes = names.notes.clone();
    notes.extend(hidden(views.len(), limit, "flow"));
    Report {
        matching: views.len() as u64,
        flows: flows.collect(),
        notes,
    }
}

impl Row {
    /// For people and programs; `now` in ticks.
    pub fn new(view: &FlowView, names: &Names, now: u32) -> Self {
        let row = &view.latest;
        Self {
            protocol: format::protocol(view.proto).into_owned(),
            client: view.client,
            translated: view.translated,
            frontend: view.frontend,
            backend: view.backend,
            backend_id: row.backend,
            generation: row.generation,
            service: names.service(row.service).map(str::to_owned),
            number: row.service,
            state: view.state_name().into(),
            age_secs: format::ticks_to_secs(row.opened, now),
            idle_secs: format::ticks_to_secs(row.seen, now),
            hairpin: row.hairpin,
            direct: row.node == Some(NodeClient::Direct),
            forwarded: row.node == Some(NodeClient::Forwarded),
            rows: match (view.forward, view.reply) {
                (Some(_), Some(_)) => "both",
                (Some(_), None) => "forward",
                (None, _) => "reply",
            }
            .into(),
        }
    }

    /// The state, with an asterisk if a row is missing.
    pub fn state_text(&self) -> String {
        let half = if self.is_half() { "*" } else { "" };
        format!("{}{half}", self.state)
    }

    /// Whether one of its rows is missing.
    fn is_half(&self) -> bool {
        self.rows != "both" && !self.direct
    }

    /// The service in a word.
    pub fn service_text(&self) -> String {
        if self.forwarded {
            OTHER_NODES.into()
        } else if self.backend_id == 0 {
            NO_SERVICE.into()
        } else {
            service_text(self.service.as_deref(), self.number)
        }
    }
}

/// The note that says how many are not shown.
pub fn hidden(all: usize, limit: usize, noun: &str) -> Option<String> {
    (all > limit).then(|| {
        format!(
            "the latest {} of {}; all of them: --limit 0",
            format::count(limit as u64),
            format::counted(all as u64, noun)
        )
    })
}

/// How many to show: all in JSON, unless told otherwise.
pub fn limit(context: &Context, wanted: Option<usize>) -> usize {
    let limit = wanted.unwrap_or(match context.format {
        Format::Table => SHOWN,
        Format::Json => 0,
    });
    if limit == 0 { usize::MAX } else { limit }
}

/// The report as a table.
pub fn render(report: &Report, style: Style) -> String {
    if report.flows.is_empty() {
        return "no flows\n".into();
    }
    // Where nothing is translated the column would only take room.
    let translated = report.flows.iter().any(|flow| flow.translated.is_some());
    let mut columns = vec![left("PROTO"), left("CLIENT")];
    if translated {
        columns.push(left("TRANSLATED"));
    }
    columns.extend([
        left("FRONTEND"),
        left("BACKEND"),
        left("STATE"),
        right("AGE"),
        right("IDLE"),
        left("SERVICE"),
    ]);
    let rows = report.flows.iter().map(|flow| {
        let mut cells = vec![flow.protocol.clone(), flow.client.to_string()];
        if translated {
            cells.push(or_dash(flow.translated));
        }
        cells.extend([
            or_dash(flow.frontend),
            flow.backend.to_string(),
            flow.state_text(),
            format::age(flow.age_secs),
            format::age(flow.idle_secs),
            flow.service_text(),
        ]);
        cells
    });
    let mut out = style.table(&columns, rows.collect());
    out.push_str(half_flows(&report.flows));
    out
}

/// An address, or a dash.
pub fn or_dash(addr: Option<SocketAddr>) -> String {
    addr.map_or_else(|| "-".into(), |addr| addr.to_string())
}

/// The line that explains the asterisks of [`Row::state_text`].
pub fn half_flows(flows: &[Row]) -> &'static str {
    if flows.iter().any(Row::is_half) {
        "* only one of the two rows of the flow is in the table\n"
    } else {
        ""
    }
}

/// What `tulle flows flush` tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flushed {
    /// Flows that matched.
    pub matching: u64,
    /// Forward rows that were removed.
    pub rows_removed: u64,
    /// Reply rows that are closing: they translate what still comes back, and
    /// go when nothing does.
    pub rows_closing: u64,
    /// Reply rows that stay as they are, for want of an agent.
    pub rows_kept: u64,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read or the output not be written.
pub fn run(context: &Context, args: &FlowsArgs) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    if let Some(FlowsAction::Flush { filter, yes }) = &args.action {
        return flush(context, &datapath, filter, *yes);
    }
    let views = matching(&datapath, &args.filter)?;
    let names = Names::load(context, &[Wanted::Services]);
    if args.summary {
        return flows_summary::run(context, &datapath, &views, &names);
    }
    let limit = limit(context, args.limit);
    let report = rows(&views, &names, format::now_tick()?, limit);
    context.print("tulle.flows", &report, &report.notes, render)
}

fn matching(datapath: &Datapath, filter: &FlowFilter) -> anyhow::Result<Vec<FlowView>> {
    let mut views = join(&datapath.flows()?);
    views.retain(|view| view.matches(filter));
    Ok(views)
}

fn flush(
    context: &Context,
    datapath: &Datapath,
    filter: &FlowFilter,
    yes: bool,
) -> anyhow::Result<()> {
    let views = matching(datapath, filter)?;
    let matching = views.len() as u64;
    if !yes {
        bail!(
            "{} would be forgotten; add --yes to do it",
            format::counted(matching, "flow")
        );
    }
    let flushed = forget(datapath, &views, context.agent().is_ok())?;
    context.print(
        "tulle.flows.flush",
        &flushed,
        &flushed.notes,
        |flushed, _| {
            format!(
                "{} forgotten ({} removed, {} closing)\n",
                format::counted(flushed.matching, "flow"),
                format::counted(flushed.rows_removed, "row"),
                format::count(flushed.rows_closing)
            )
        },
    )
}

/// Forgets flows. `agent`: one runs, and will see what they leave behind.
///
/// # Errors
///
/// If the maps cannot be read or written.
pub fn forget(datapath: &Datapath, views: &[FlowView], agent: bool) -> anyhow::Result<Flushed> {
    let rows = Forgotten::of(views, &unasking(datapath)?, agent);
    // The reply rows first: a packet of the client that comes in between gives its own back.
    let rows_closing = datapath.close_flows(rows.closing, format::now_tick()?)?;
    let rows_removed = datapath.remove_flows(rows.removed)?;
    let mut notes = Vec::new();
    if rows.kept > 0 {
        notes.push(format!(
            "the agent does not run: {} of services that never changed stay, since only the agent \
             can have such connections written anew; start it, then flush again",
            format::counted(rows.kept, "reply row")
        ));
    }
    Ok(Flushed {
        matching: views.len() as u64,
        rows_removed,
        rows_closing,
        rows_kept: rows.kept,
        notes,
    })
}

/// Address, port and protocol of a frontend.
type Front = (SocketAddr, u8);

/// Frontends of TCP and SCTP whose data does not ask the flow table, and so
/// writes nothing that is missing in it.
fn unasking(datapath: &Datapath) -> anyhow::Result<HashSet<Front>> {
    let fronts = datapath.frontends()?;
    let unasking = fronts.iter().filter(|front| {
        !front.asks_flow_table() && matches!(front.proto, proto::TCP | proto::SCTP)
    });
    Ok(unasking.map(|front| (front.addr, front.proto)).collect())
}

/// What becomes of the rows of flows that are forgotten. The forward row goes:
/// the client's next packet chooses a backend anew. The reply row may still be
/// wanted, by what the backend says meanwhile; with the next packet to the same
/// backend it is written anew. Where packets do not ask the flow table yet, the
/// agent sees the half flow on its next walk and has them do so, well before a
/// closing row expires; without an agent the row has to stay.
#[derive(Debug, Default)]
struct Forgotten {
    removed: Vec<FlowRowKey>,
    closing: Vec<FlowRowKey>,
    kept: u64,
}

impl Forgotten {
    fn of(views: &[FlowView], unasking: &HashSet<Front>, agent: bool) -> Self {
        let mut all = Self::default();
        for view in views {
            all.removed.extend(view.forward);
            // What is masqueraded asks the flow table in any case.
            let front = view.frontend.filter(|_| view.translated.is_none());
            let unasking = front.is_some_and(|front| unasking.contains(&(front, view.proto)));
            if !agent && unasking {
                all.kept += u64::from(view.reply.is_some());
            } else {
                all.closing.extend(view.reply);
            }
        }
        all
    }
}

#[cfg(test)]
#[path = "tests/flows.rs"]
mod tests;
