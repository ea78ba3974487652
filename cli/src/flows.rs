//! `tulle flows`: who talks to which backend.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use anyhow::bail;
use datapath_common::{FlowState, proto};
use serde::{Deserialize, Serialize};

use crate::args::{FlowFilter, FlowsAction, FlowsArgs, Format};
use crate::context::Context;
use crate::datapath::Datapath;
use crate::flows_summary;
use crate::format;
use crate::names::{Names, Wanted, service_text};
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
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Who opened it.
    pub client: SocketAddr,
    /// What the client talks to.
    pub frontend: SocketAddr,
    /// Who answers.
    pub backend: SocketAddr,
    /// Backend id.
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
    /// What the client talks to.
    pub frontend: SocketAddr,
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
        let (client, frontend, backend) = if row.reply {
            // A hairpin's replies go to the frontend, the client's port is theirs.
            let client = if row.hairpin {
                SocketAddr::new(row.src.ip(), row.dst.port())
            } else {
                row.dst
            };
            (client, row.target, row.src)
        } else {
            (row.src, row.dst, row.target)
        };
        Self {
            proto: row.proto,
            client,
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
        let ends = [self.client, self.frontend, self.backend];
        filter
            .addr
            .is_none_or(|net| ends.iter().any(|end| net.contains(&end.ip())))
            && filter
                .port
                .is_none_or(|port| ends.iter().any(|end| end.port() == port))
            && filter
                .proto
                .is_none_or(|proto| proto.number() == self.proto)
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
        let id = (view.proto, view.client, view.frontend, view.backend);
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

/// Flows for people and programs; `now` in ticks, `limit` 0 for all.
pub fn rows(views: &[FlowView], names: &Names, now: u32, limit: usize) -> Report {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let flows = views.iter().take(limit).map(|view| {
        let row = &view.latest;
        Row {
            protocol: format::protocol(view.proto).into_owned(),
            client: view.client,
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
            rows: match (view.forward, view.reply) {
                (Some(_), Some(_)) => "both",
                (Some(_), None) => "forward",
                (None, _) => "reply",
            }
            .into(),
        }
    });
    let mut notes = names.notes.clone();
    if views.len() > limit {
        notes.push(format!(
            "the latest {} of {}; all of them: --limit 0",
            format::count(limit as u64),
            format::counted(views.len() as u64, "flow")
        ));
    }
    Report {
        matching: views.len() as u64,
        flows: flows.collect(),
        notes,
    }
}

/// The report as a table.
pub fn render(report: &Report, style: Style) -> String {
    if report.flows.is_empty() {
        return "no flows\n".into();
    }
    let columns = [
        left("PROTO"),
        left("CLIENT"),
        left("FRONTEND"),
        left("BACKEND"),
        left("STATE"),
        right("AGE"),
        right("IDLE"),
        left("SERVICE"),
    ];
    let rows = report.flows.iter().map(|flow| {
        let half = if flow.rows == "both" { "" } else { "*" };
        vec![
            flow.protocol.clone(),
            flow.client.to_string(),
            flow.frontend.to_string(),
            flow.backend.to_string(),
            format!("{}{half}", flow.state),
            format::age(flow.age_secs),
            format::age(flow.idle_secs),
            service_text(flow.service.as_deref(), flow.number),
        ]
    });
    let mut out = style.table(&columns, rows.collect());
    if report.flows.iter().any(|flow| flow.rows != "both") {
        out.push_str("* only one of the two rows of the flow is in the table\n");
    }
    out
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
    let limit = args.limit.unwrap_or(match context.format {
        Format::Table => SHOWN,
        Format::Json => 0,
    });
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
            if !agent && unasking.contains(&(view.frontend, view.proto)) {
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
