//! The agent once it has the datapath: plan and maps, facts, attachments.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use admin_api::{LinkAttachment, MapFault};
use anyhow::Context;
use datapath_common::{Hook, maps};

use super::departed;
use super::faults::Part;
use super::flows::{FlowWalk, lost_at_start};
use super::found::Found;
use super::here::here;
use super::node::NodeView;
use super::rounds::Rounds;
use super::shared::Shared;
use super::status;
use crate::health;
use crate::kernel::{AttachKind, Datapath, Options, Place, Report, XdpChoice, XdpMode};
use crate::metrics::Drift;
use crate::model::{Kind, NamespacedName, Node, Object};
use crate::net::{LocalPods, Overlay, next_hops, set_pod_mtu};
use crate::plan::{Applied, Outcome, PlanError, Planner};
use crate::source::{Batch, Change, Trigger};

mod config;
mod telling;

use config::{config, vtep};

/// A map's error is shown so long after its last failure, longer than any retry takes to come.
const MAP_FAULT_KEPT: Duration = Duration::from_secs(25);

/// Model, plan, maps and attachments; one task owns them.
pub struct Serving {
    node: Node,
    /// What this node is.
    pub view: NodeView,
    /// Index of the VTEP device, 0 while there is none.
    vtep: u32,
    /// Index of the bridge that pods are behind, 0 if there is none.
    bridge: u32,
    /// Whether there has been a ServiceCIDR.
    service_networks: bool,
    /// Maps, programs, links.
    pub datapath: Datapath,
    /// Model and plan.
    pub planner: Planner,
    walk: FlowWalk,
    rounds: Rounds,
    departed: departed::Watch,
    found: Found,
    /// What became of XDP, and why.
    pub xdp: Option<XdpChoice>,
    xdp_fault: Option<String>,
    /// Where programs are attached.
    pub links: Vec<LinkAttachment>,
    map_faults: BTreeMap<&'static str, (String, Instant)>,
    /// When the change of a Node was noticed whose rows are not yet written.
    node_change: Option<Instant>,
    /// Whether some service ports have no row for their traffic.
    has_uncounted: bool,
    /// Services whose health check port may say something else now.
    touched: BTreeSet<NamespacedName>,
    /// Whether the uplink lacks a program that serves clients outside.
    uplink_fails: bool,
    /// What caused changes of endpoints that may not be in the maps yet.
    triggers: Vec<Trigger>,
    /// Whether the first plan was carried out and everything attached.
    pub attached: bool,
}

impl Serving {
    /// Takes over or makes the datapath, and knows what its maps hold. Nothing
    /// is written or attached yet.
    /// `bridge` is the index of the one that pods are behind, 0 without.
    pub fn open(shared: &Shared, node: Node, objects: Batch, bridge: u32) -> anyhow::Result<Self> {
        let args = &shared.args;
        let view = NodeView::new(&node, &shared.uplink, &args.overlay);
        let vtep = vtep(shared);
        let service_networks = objects.changes.iter().any(is_service_cidr);
        let config = config(&view, vtep, bridge, shared, service_networks);
        let options = Options {
            attach: shared.kernel.attach,
            ..Options::default()
        };
        let datapath =
            Datapath::open(&args.places.bpffs, &config, &(&args.sizes).into(), &options)?;
        for warning in &datapath.opened().warnings {
            tracing::warn!("{warning}");
        }
        let rows = datapath.maps.read_back()?;
        let applied = Applied::from_rows((&args.sizes).into(), &rows, Instant::now());
        let uplink = shared.uplink.index;
        let found = Found::new(uplink, applied.next_hops(uplink));
        let mut planner = Planner::new(args.node.as_str(), applied);
        planner.expect_numbers(datapath.maps.last_counted()?);
        if args.http.service_metrics {
            planner.note_renamed();
        }
        let triggers = objects.triggers.clone();
        planner.ingest(objects);
        let touched = planner.stale_services().clone();
        planner.set_here(here(&node, &shared.uplink, &args.services));
        lost_at_start(&datapath, &mut planner, Instant::now());
        let interval = Duration::from_secs(u64::from(args.limits.gc_interval));
        let departed = departed::Watch::start(datapath.maps.socket_tables()?)
            .context("cannot watch sockets")?;
        Ok(Self {
            node,
            view,
            vtep,
            bridge,
            service_networks,
            datapath,
            planner,
            departed,
            walk: FlowWalk::new(interval, Instant::now()),
            rounds: Rounds::new(args.limits.sync_period, Instant::now()),
            found,
            xdp: None,
            xdp_fault: None,
            links: Vec::new(),
            map_faults: BTreeMap::new(),
            node_change: None,
            has_uncounted: false,
            touched,
            uplink_fails: false,
            triggers,
            attached: false,
        })
    }

    /// Applies a batch of changes at once. Says whether Nodes are among them.
    pub fn batch(&mut self, shared: &mut Shared, batch: Batch) -> bool {
        let (noticed, changes) = (batch.noticed, batch.changes.len());
        if changes > 0 {
            shared.syncs.queue(noticed, batch.noticed_at);
            self.triggers.extend_from_slice(&batch.triggers);
        }
        let nodes = batch.changes.iter().any(concerns_nodes);
        if !self.service_networks && batch.changes.iter().any(is_service_cidr) {
            self.service_networks = true;
            shared.paces.programs.ask_now(Instant::now());
        }
        self.planner.ingest(batch);
        self.touched
            .extend(self.planner.stale_services().iter().cloned());
        let gone = nodes && !self.take_node(shared);
        let outcome = self.plan(shared);
        if changes > 0 && self.planner.is_ready() {
            let took = noticed.elapsed();
            shared.counted.syncs += 1;
            shared.counted.sync_failures += u64::from(outcome.failed > 0);
            shared.counted.last_sync = Some(took);
            shared.metrics.changes.written(took);
            tracing::info!(
                "applied {changes} {} by {} map writes, {} µs after {} noticed",
                if changes == 1 { "change" } else { "changes" },
                outcome.written,
                took.as_micros(),
                if changes == 1 { "it was" } else { "they were" },
            );
        }
        if nodes {
            self.node_change.get_or_insert(noticed);
            if gone {
                tracing::warn!(
                    "the Node {} is gone; the agent goes on with what it said last",
                    shared.args.node
                );
            }
        }
        nodes
    }

    /// Takes in what the Node of this name says now. False if there is none.
    fn take_node(&mut self, shared: &Shared) -> bool {
        let Some(node) = self.planner.model().node(&shared.args.node) else {
            return false;
        };
        self.node = node.clone();
        let here = here(&self.node, &shared.uplink, &shared.args.services);
        self.planner.set_here(here);
        true
    }

    /// Writes what is due, and takes note of what failed.
    pub fn plan(&mut self, shared: &mut Shared) -> Outcome {
        let outcome = self.write(shared);
        if outcome.written > 0 {
            self.departed.look();
        }
        outcome
    }

    /// The same without a look at whom changes left behind.
    fn write(&mut self, shared: &mut Shared) -> Outcome {
        let began = Instant::now();
        let outcome = self.planner.run(&mut self.datapath.maps, Instant::now);
        let now = Instant::now();
        self.tell_run(shared, &outcome, now - began);
        for failure in &outcome.errors {
            let map = match &failure.error {
                PlanError::Capacity(error) | PlanError::Table(error) => error.map,
                PlanError::Write(error) => error.map,
            };
            // The first sentence stays: each retry would name another row.
            self.map_faults
                .entry(map)
                .and_modify(|(_, last)| *last = now)
                .or_insert_with(|| (failure.to_string(), now));
        }
        let pending = outcome.pending > 0;
        self.map_faults
            .retain(|_, (_, last)| pending && *last + MAP_FAULT_KEPT > now);
        let sentences = self.map_faults.values().map(|(s, _)| s.clone()).collect();
        shared.faults.set(Part::Maps, sentences);
        self.tell_uncounted(shared);
        outcome
    }

    /// Says once that some service ports have no row for their traffic.
    fn tell_uncounted(&mut self, shared: &Shared) {
        let rows = shared.args.sizes.max_stats;
        let uncounted = if shared.args.services.count_services {
            self.planner.numbered_from(rows)
        } else {
            0
        };
        let news = uncounted > 0 && !self.has_uncounted;
        self.has_uncounted = uncounted > 0;
        if news {
            tracing::warn!(
                "{} has {rows} rows, too few for all service ports: traffic of {uncounted} is not \
                 counted; raise --max-stats",
                maps::SVC_STATS
            );
        }
    }

    /// Maps whose last write failed.
    pub fn map_errors(&self) -> Vec<MapFault> {
        let fault = |(map, (message, _)): (&&str, &(String, Instant))| MapFault {
            map: (*map).to_owned(),
            message: message.clone(),
        };
        self.map_faults.iter().map(fault).collect()
    }

    /// Looks at local pods and next hops, and writes what follows from them.
    /// Says whether the pods could be looked at; before they could once,
    /// nothing is written, or what a former agent wrote would be pruned.
    pub async fn refresh_facts(&mut self, shared: &mut Shared) -> bool {
        let look = LocalPods::discover(&shared.netlink, &self.view.pod_cidrs).await;
        let failed = match self.found.take_pods(look) {
            Ok(skipped) => {
                for (ip, why) in skipped {
                    tracing::info!("{ip} is left to the kernel: {why}");
                }
                Vec::new()
            }
            Err(error) if self.found.is_known() => vec![error.to_string()],
            Err(error) => vec![format!(
                "{error}; until the pods are known, nothing is written or attached"
            )],
        };
        let looked = failed.is_empty();
        shared.faults.set(Part::Pods, failed);
        if !self.found.is_known() {
            return false;
        }
        self.look_at_hops(shared).await;
        self.look_at_bridge(shared);
        let (name, uplink) = (&shared.args.node, &shared.uplink);
        if let Some(mut facts) = self.found.facts(&self.view, name, uplink) {
            let args = &shared.args.services;
            facts.direct = args.masquerade_exclude.iter().copied().collect();
            facts.services = args.service_cidr.iter().copied().collect();
            self.planner.set_facts(facts);
        }
        let outcome = self.plan(shared);
        if let Some(noticed) = self.node_change.take() {
            let took = noticed.elapsed();
            shared.counted.last_sync = Some(took);
            if outcome.written > 0 {
                tracing::info!(
                    "wrote {} rows for Nodes, {} µs after the change was noticed",
                    outcome.written,
                    took.as_micros()
                );
            }
        } else if outcome.written > 0 {
            tracing::info!("wrote {} rows for pods and next hops", outcome.written);
        }
        if self.attached {
            self.sync_pods(shared);
        }
        self.set_mtus(shared).await;
        looked
    }

    async fn look_at_hops(&mut self, shared: &mut Shared) {
        let peers = self.planner.peers();
        let nodes: Vec<Ipv4Addr> = peers.iter().map(|peer| peer.underlay).collect();
        let looks = next_hops(&shared.netlink, &nodes).await;
        let failed = self.found.take_hops(shared.uplink.index, looks);
        shared.faults.set(Part::NextHops, failed);
    }

    async fn set_mtus(&self, shared: &mut Shared) {
        let mtu = u32::from(self.view.mtu);
        let other: BTreeMap<u32, u32> = self
            .found
            .pods()
            .iter()
            .filter(|pod| pod.veth && pod.mtu != pod.host_mtu(mtu))
            .map(|pod| (pod.ifindex, pod.host_mtu(mtu)))
            .collect();
        let (mut changed, mut failed) = (0, Vec::new());
        for (ifindex, mtu) in other {
            match set_pod_mtu(&shared.netlink, ifindex, mtu).await {
                Ok(true) => changed += 1,
                Ok(false) => {}
                Err(error) => failed.push(error.to_string()),
            }
        }
        if changed > 0 {
            tracing::info!(
                "set the MTU of {changed} pods' host sides to {mtu}, or to their pods' own where that is larger"
            );
        }
        shared.faults.set(Part::PodMtu, failed);
    }

    /// Attaches everything that should be attached; `full` also tries XDP once
    /// more. Before the first plan nothing is attached.
    pub fn sync_links(&mut self, shared: &mut Shared, full: bool) {
        if !self.attached {
            return;
        }
        self.sync_sockets(shared);
        let asked = XdpMode::from(shared.args.overlay.xdp);
        // A driver that refused once would be asked, and perhaps reset, each second.
        let refused = self
            .xdp
            .as_ref()
            .is_some_and(|choice| choice.mode == XdpMode::Off);
        let mode = if refused && !full {
            XdpMode::Off
        } else {
            asked
        };
        let (report, choice) = self.datapath.sync_uplink(shared.uplink.index, mode);
        let serves = [Hook::NicIn, Hook::NicOut].map(|hook| Place::new(hook, shared.uplink.index));
        self.uplink_fails = report.failed.iter().any(|(at, _)| serves.contains(at));
        let mut failed = sentences(&report);
        if mode == asked {
            let news = self.xdp.as_ref() != Some(&choice);
            if news {
                tracing::info!(
                    "XDP at {}: {}, {}",
                    shared.uplink.name,
                    status::xdp_mode(choice.mode),
                    choice.why
                );
            }
            let wanted = matches!(asked, XdpMode::Native | XdpMode::Generic);
            self.xdp_fault = (wanted && choice.mode == XdpMode::Off).then(|| choice.why.clone());
            self.xdp = Some(choice);
        } else {
            failed.extend(self.xdp_fault.clone());
        }
        self.note(shared, &report);
        shared.faults.set(Part::UplinkLinks, failed);
        self.sync_pods(shared);
    }

    fn sync_pods(&mut self, shared: &mut Shared) {
        let ends = self.found.host_ends(self.datapath.effective().bridge);
        let report = self.datapath.sync_pods(&ends);
        self.note(shared, &report);
        shared.faults.set(Part::PodLinks, sentences(&report));
    }

    fn note(&mut self, shared: &mut Shared, report: &Report) {
        if report.repaired > 0 {
            shared.repaired(Drift::Programs, u64::from(report.repaired));
            tracing::warn!(
                "attached {} programs again that somebody had removed",
                report.repaired
            );
        }
        let changed = report.attached + report.replaced + report.repaired + report.removed;
        if changed == 0 && !self.links.is_empty() {
            return;
        }
        if changed > 0 {
            tracing::info!(
                "programs: {} attached, {} replaced, {} removed",
                report.attached + report.repaired,
                report.replaced,
                report.removed
            );
        }
        let interface = |index: u32| {
            let name = nix::net::if_::if_indextoname(index).ok()?;
            Some(name.to_string_lossy().into_owned())
        };
        match self.datapath.attached() {
            Ok(places) => {
                let attach: AttachKind = shared.kernel.attach;
                let row =
                    |(place, _)| status::attachment(place, attach, self.xdp.as_ref(), interface);
                let cgroup = shared.sockets.cgroup.as_ref();
                let sockets = self.datapath.attached_sockets().into_iter();
                let sockets = sockets.map(|hook| status::at_cgroup(hook, cgroup));
                self.links = places.into_iter().map(row).chain(sockets).collect();
                self.links
                    .sort_by(|a, b| (&a.interface, &a.program).cmp(&(&b.interface, &b.program)));
            }
            Err(error) => tracing::debug!(%error, "attachments cannot be listed"),
        }
    }

    /// Makes a step over the flow tables if it is due.
    pub fn walk(&mut self, shared: &mut Shared) {
        let now = Instant::now();
        if !self.attached || now < self.walk.due() {
            return;
        }
        let state = &shared.metrics.state;
        match self
            .walk
            .step(&mut self.datapath, &mut self.planner, state, now)
        {
            Ok(true) => {
                let faults = self.walk.faults(&self.datapath);
                shared.faults.set(Part::Flows, faults);
                self.plan(shared);
            }
            Ok(false) => {}
            Err(error) => {
                shared.faults.set(Part::Flows, vec![error.to_string()]);
            }
        }
    }

    /// Compares the next rows of the maps if it is time, and writes what differs.
    pub fn compare(&mut self, shared: &mut Shared) {
        if !self.attached {
            return;
        }
        let maps = &self.datapath.maps;
        let changes = &shared.metrics.changes;
        // Sockets of rows that are still missing have not lost their backends.
        let fault = match self.rounds.step(maps, &mut self.planner, changes) {
            Ok(None) => None,
            Ok(Some(step)) => {
                if step.found {
                    self.write(shared);
                }
                // One table that cannot be read is at fault until a whole round went well.
                step.ended.then(Vec::new)
            }
            Err(error) => {
                // What was found before is written all the same.
                self.write(shared);
                Some(vec![error.to_string()])
            }
        };
        if let Some(fault) = fault {
            shared.faults.set(Part::Rows, fault);
        }
        if self.rounds.open() > 0 {
            let mended = self.rounds.settle(&self.planner);
            shared.counted.repairs += mended;
            shared.metrics.changes.repaired(Drift::Rows, mended);
        }
    }

    /// What `tulle status` says of the last round over the maps' rows.
    pub fn last_round(&self) -> Option<admin_api::RowRound> {
        let last = self.rounds.last()?;
        let at = last.at.duration_since(std::time::UNIX_EPOCH);
        Some(admin_api::RowRound {
            ended_at_secs: at.map_or(0, |at| at.as_secs()),
            found: last.found,
            pending: self.rounds.open() as u64,
        })
    }

    /// Whether the uplink has the programs that it should have.
    pub fn serves_uplink(&self, shared: &Shared) -> bool {
        let outdated = shared.faults.has(Part::Programs) && !self.is_configured(shared);
        !outdated && !self.uplink_fails
    }

    /// What health check node ports go by.
    pub fn health_news(&mut self, shared: &Shared) -> health::News<'_> {
        let asked = &shared.args.services.node_port_addresses;
        health::News {
            touched: std::mem::take(&mut self.touched),
            failing: self.planner.failing_services(),
            serves: self.serves_uplink(shared),
            addresses: health::addresses(asked, &self.planner.here().node_port_addresses),
            model: self.planner.model(),
        }
    }

    /// When there is something to do without an event.
    pub fn next(&self) -> Option<Instant> {
        let walk = self.attached.then(|| self.walk.due());
        let round = self.rounds.due().filter(|_| self.attached);
        let due = self.planner.next_run().into_iter().chain(walk);
        due.chain(round).min()
    }

    /// The slow path that the kernel should hold.
    pub fn overlay(&self, shared: &Shared) -> Overlay {
        let peers = self.planner.peers();
        self.view.overlay(&shared.uplink, &shared.args, &peers)
    }

    /// Pods that the datapath delivers to; one of both families counts once.
    pub fn local_pods(&self) -> usize {
        let veths = self.found.pods().iter().filter(|pod| pod.veth);
        veths.map(|pod| pod.ifindex).collect::<BTreeSet<_>>().len()
    }
}

fn is_service_cidr(change: &Change) -> bool {
    matches!(change, Change::Apply(Object::ServiceCidr(_)))
}

fn concerns_nodes(change: &Change) -> bool {
    match change {
        Change::Apply(object) => matches!(object, Object::Node(_)),
        Change::Delete(key) => key.kind == Kind::Node,
        Change::Synced => false,
    }
}

fn sentences(report: &Report) -> Vec<String> {
    report
        .failed
        .iter()
        .map(|(_, error)| error.to_string())
        .collect()
}
