//! The planner: takes changes in, carries out what they mean, retries what failed.

mod carry;
mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::allocator::GRACE;
use super::applied::Applied;
use super::compile::{Here, compile};
use super::desired::{Desired, PortKey};
use super::facts::NodeFacts;
use super::networks;
use super::numbers::Numbers;
use super::ops::{FrontKey, MapOp, MapWriter};
use super::outcome::{Counts, Outcome, Unit};
use super::peers::{Peer, Ways, differing, peers};
use crate::model::{Dirty, Family, Model, NamespacedName, Warning};
use crate::source::Batch;
use datapath_common::{BackendState, Frontend, FrontendFlags};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Errors that an [`Outcome`] carries.
const ERRORS_KEPT: usize = 2;

#[derive(Clone, Copy, Debug, Default)]
struct Retry {
    failures: u32,
    /// Whether the kernel refused a write, the last time; otherwise there was no room.
    refused: bool,
    not_before: Option<Instant>,
}

/// Model, desired and applied state of one node.
#[derive(Debug)]
pub struct Planner {
    here: Here,
    model: Model,
    facts: Option<NodeFacts>,
    source_warnings: Arc<[Warning]>,
    way_warnings: Vec<Warning>,
    /// All of them, and whether they are to be gathered anew.
    warnings: Arc<[Warning]>,
    warnings_stale: bool,
    dirty: Dirty,
    /// Whether the next run compiles every Service.
    full: bool,
    ways_stale: bool,
    adopted: bool,
    desired: Desired,
    ways: Ways,
    applied: Applied,
    numbers: Numbers,
    /// Service ports that are gone, until their frontends' rows are.
    leaving: BTreeMap<PortKey, BTreeSet<FrontKey>>,
    pending: BTreeMap<Unit, Retry>,
    releasing: BTreeSet<(Family, u32)>,
    /// Takes rows away that no agent writes, and that the plan has no word for.
    strays: Vec<MapOp>,
    /// Whether numbers of a former agent were looked for.
    numbers_known: bool,
}

impl Planner {
    /// A planner for the node of this name, whose maps hold `applied`.
    pub fn new(node: impl Into<String>, applied: Applied) -> Self {
        let in_rows = applied.frontends().map(|(_, row)| row.service);
        let highest = in_rows.chain(applied.sources.services()).max().unwrap_or(0);
        Self {
            here: Here {
                node: node.into(),
                ..Here::default()
            },
            model: Model::default(),
            facts: None,
            source_warnings: Arc::default(),
            way_warnings: Vec::new(),
            warnings: Arc::default(),
            warnings_stale: false,
            dirty: Dirty::default(),
            full: true,
            ways_stale: true,
            adopted: false,
            desired: Desired::default(),
            ways: Ways::default(),
            applied,
            numbers: Numbers::after(highest),
            leaving: BTreeMap::new(),
            pending: BTreeMap::new(),
            releasing: BTreeSet::new(),
            strays: Vec::new(),
            numbers_known: false,
        }
    }

    /// Takes in a batch of changes. Nothing is written before [`Planner::run`].
    pub fn ingest(&mut self, batch: Batch) {
        for change in batch.changes {
            self.model.apply(change, &mut self.dirty);
        }
        self.warnings_stale |= !Arc::ptr_eq(&self.source_warnings, &batch.warnings);
        self.source_warnings = batch.warnings;
        self.gather_warnings();
        self.ways_stale |= self.dirty.nodes || self.dirty.networks;
        (self.dirty.nodes, self.dirty.networks) = (false, false);
    }

    /// Services that [`Planner::run`] will compile anew: all that may have changed since it ran.
    pub const fn stale_services(&self) -> &BTreeSet<NamespacedName> {
        &self.dirty.services
    }

    /// Takes in what of this node decides its frontends. If it is another than
    /// before, every Service is compiled anew (KP-91).
    pub fn set_here(&mut self, here: Here) {
        if self.here == here {
            return;
        }
        self.full = true;
        self.ways_stale |= self.here.node != here.node;
        self.here = here;
        let dirty = &mut self.dirty.services;
        dirty.extend(self.model.owners().cloned());
        dirty.extend(self.desired.names().cloned());
    }

    /// Takes in what the net side knows of this node now.
    pub fn set_facts(&mut self, facts: NodeFacts) {
        if self.facts.as_ref() != Some(&facts) {
            self.facts = Some(facts);
            self.ways_stale = true;
        }
    }

    /// Writes what is due. Before the first full list and the first facts
    /// nothing is: what a former agent wrote stays (KP-128).
    ///
    /// `clock` is [`Instant::now`] outside tests.
    pub fn run(&mut self, writer: &mut impl MapWriter, clock: impl Fn() -> Instant) -> Outcome {
        let clock: &dyn Fn() -> Instant = &clock;
        let mut outcome = Outcome::default();
        if !self.is_ready() {
            return outcome;
        }
        outcome.full = std::mem::take(&mut self.full);
        self.applied.segments.reclaim(clock());
        self.compile();
        self.gather_warnings();
        for stray in std::mem::take(&mut self.strays) {
            // One that stays is found again by the next round.
            outcome.written += usize::from(writer.write(&stray).is_ok());
        }
        self.run_units(writer, clock, &mut outcome, |unit| {
            !matches!(unit, Unit::Sources(_) | Unit::Backend(..))
        });
        for service in self.applied.sources.take_stale() {
            self.pending.entry(Unit::Sources(service)).or_default();
        }
        for family in [Family::V4, Family::V6] {
            for id in self.applied.backends_mut(family).take_idle() {
                self.pending.entry(Unit::Backend(family, id)).or_default();
            }
        }
        self.run_units(writer, clock, &mut outcome, |unit| {
            matches!(unit, Unit::Sources(_) | Unit::Backend(..))
        });
        self.release_numbers(clock());
        outcome.pending = self.pending.len();
        outcome
    }

    /// When [`Planner::run`] has something to do without a new change: a retry
    /// or slots to reclaim.
    pub fn next_run(&self) -> Option<Instant> {
        if !self.is_ready() {
            return None;
        }
        let retries = self.pending.values().filter_map(|retry| retry.not_before);
        retries.chain(self.applied.segments.next_reclaim()).min()
    }

    /// Frees draining backends that no flow names. `unused` is what a scan of
    /// the flow tables found that began at `scan_began`; backends that were
    /// still in use shortly before that are left for the next scan. The rows
    /// are written by the next [`Planner::run`].
    pub fn release_backends(
        &mut self,
        unused: impl IntoIterator<Item = (Family, u32)>,
        scan_began: Instant,
    ) {
        for (family, id) in unused {
            let backends = self.applied.backends(family);
            let quiet = backends
                .drained(id)
                .is_some_and(|since| since + GRACE <= scan_began);
            if quiet && backends.users(id) == 0 {
                self.releasing.insert((family, id));
                self.pending
                    .insert(Unit::Backend(family, id), Retry::default());
            }
        }
    }

    /// Service numbers that may be given out again once what programs know of
    /// them is cleared: no row that the agent writes has them, nor did a living
    /// flow when a scan of the flow tables that began at `scan_began` passed it.
    pub fn idle_numbers(
        &self,
        in_flows: impl Fn(u32) -> bool,
        scan_began: Instant,
    ) -> BTreeSet<u32> {
        let retired = self.numbers.retired_before(scan_began);
        let mut idle: BTreeSet<u32> = retired.filter(|number| !in_flows(*number)).collect();
        if !idle.is_empty() {
            for (_, row) in self.applied.frontends() {
                idle.remove(&row.service);
            }
            idle.retain(|number| !self.applied.sources.is_any_of(*number));
        }
        idle
    }

    /// Nobody remembers anything under these service numbers any more.
    pub fn reuse_numbers(&mut self, numbers: &BTreeSet<u32>) {
        self.numbers.reuse(numbers);
    }

    /// Service ports that have this number or a higher one.
    pub fn numbered_from(&self, number: u32) -> usize {
        self.numbers.count_from(number)
    }

    /// Takes in which frontends have flows, found by a scan of the flow tables
    /// that began at `scan_began`. A frontend that comes back while it has
    /// flows lets these decide; after a restart every new one does until the
    /// first scan.
    pub fn note_flows(&mut self, live: &BTreeSet<FrontKey>, scan_began: Instant) {
        self.applied.note_flows(live, scan_began);
    }

    /// Takes in that living flows through these frontends may miss rows in the
    /// flow table: until then their packets ask it, and write what is missing.
    /// The rows are written by the next [`Planner::run`].
    pub fn flows_may_be_lost(&mut self, fronts: impl IntoIterator<Item = (FrontKey, Instant)>) {
        for (front, until) in fronts {
            self.applied.lost.note(front, until);
        }
        self.review_lost();
    }

    /// The same of all flows of one protocol in a family's table.
    pub fn any_flow_may_be_lost(&mut self, family: Family, protocol: u8, until: Instant) {
        self.applied.lost.note_all(family, protocol, until);
        self.review_lost();
    }

    /// Ends what was expected until now or earlier.
    pub fn forget_lost_flows(&mut self, now: Instant) {
        self.applied.lost.forget(now);
        self.review_lost();
    }

    /// Takes in through which frontends there are connections whose client's port is
    /// translated: only the flow table knows it. The programs have noted so in the rows of
    /// these frontends; the next [`Self::run`] does, lest a later write takes it away.
    pub fn flows_are_moved(&mut self, fronts: &BTreeSet<FrontKey>) {
        let decides = |row: &Frontend| row.flags & FrontendFlags::FLOWS_DECIDE != 0;
        let Self {
            applied, pending, ..
        } = self;
        let rows = &applied.fronts;
        let noted = |key: &&FrontKey| rows.get(key).is_some_and(|row| !decides(row));
        applied.moved = fronts.iter().filter(noted).copied().collect();
        for key in &applied.moved {
            pending.entry(Unit::Frontend(*key)).or_default();
        }
    }

    /// Frontends whose rows say that flows may be lost.
    pub fn asking_fronts(&self) -> Vec<FrontKey> {
        let asks = |row: &Frontend| row.flags & FrontendFlags::FLOWS_MAY_BE_LOST != 0;
        let fronts = self.applied.fronts.iter();
        fronts
            .filter(|(_, row)| asks(row))
            .map(|(key, _)| *key)
            .collect()
    }

    /// Asks for the frontends again whose rows do not say what is expected.
    fn review_lost(&mut self) {
        let Self {
            applied, pending, ..
        } = self;
        let asks = |row: &Frontend| row.flags & FrontendFlags::FLOWS_MAY_BE_LOST != 0;
        for (key, row) in &applied.fronts {
            if asks(row) != applied.lost.expects(key) {
                pending.entry(Unit::Frontend(*key)).or_default();
            }
        }
    }

    /// Draining backends: those that a scan of the flow tables asks about.
    pub fn draining(&self) -> Vec<(Family, u32)> {
        let of = |family: Family| {
            let rows = self.applied.backends(family).rows();
            rows.filter(|(_, row)| row.state == BackendState::Draining)
                .map(move |(id, _)| (family, id))
        };
        of(Family::V4).chain(of(Family::V6)).collect()
    }

    /// Whether the first full list and the first facts are there.
    pub fn is_ready(&self) -> bool {
        self.model.is_synced() && self.facts.is_some()
    }

    /// Other nodes of the overlay: what the slow path has to be set up for,
    /// known as soon as Nodes are, before any facts.
    pub fn peers(&self) -> Vec<Peer> {
        let own = self.facts.as_ref().and_then(|facts| facts.node_ip4);
        peers(&self.model, &self.here.node, own).0
    }

    /// What of this node decides its frontends.
    pub const fn here(&self) -> &Here {
        &self.here
    }

    /// The cluster's state.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// What the maps hold.
    pub const fn applied(&self) -> &Applied {
        &self.applied
    }

    /// The frontends that should exist.
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Everything that is wrong with the cluster's state: the same slice for as long as it is the
    /// same.
    pub const fn warnings(&self) -> &Arc<[Warning]> {
        &self.warnings
    }

    /// There may be thousands, and most changes have nothing to do with any.
    fn gather_warnings(&mut self) {
        if !std::mem::take(&mut self.warnings_stale) {
            return;
        }
        let contests = self.desired.warnings();
        if self.way_warnings.is_empty() && contests.is_empty() {
            self.warnings = Arc::clone(&self.source_warnings);
            return;
        }
        let here = self.way_warnings.iter().chain(&contests);
        let all: Vec<Warning> = self.source_warnings.iter().chain(here).cloned().collect();
        if *self.warnings != *all {
            self.warnings = all.into();
        }
    }

    /// The highest service number that was ever given out.
    pub const fn last_number(&self) -> u32 {
        self.numbers.last()
    }

    /// A former agent left traffic under service numbers up to this one: they are cleared before
    /// anybody has them.
    pub fn expect_numbers(&mut self, highest: u32) {
        self.numbers.expect(highest);
    }

    /// From now on [`Self::take_renamed`] tells of numbers.
    pub fn note_renamed(&mut self) {
        self.numbers.note_renamed();
    }

    /// Numbers that somebody got or lost since this was asked last, and whose they are.
    pub fn take_renamed(&mut self) -> Vec<(u32, Option<PortKey>)> {
        self.numbers.take_renamed()
    }

    /// The service port behind a service number.
    pub fn service_name(&self, number: u32) -> Option<&PortKey> {
        self.numbers.name(number)
    }

    /// Sizes of things.
    pub fn counts(&self) -> Counts {
        let backends = |state| {
            let of = |family| self.applied.backends(family).rows();
            of(Family::V4)
                .chain(of(Family::V6))
                .filter(|(_, row)| row.state == state)
                .count()
        };
        Counts {
            services: self.desired.services(),
            frontends: self
                .applied
                .frontends()
                .filter(|(key, _)| !key.is_address())
                .count(),
            backends: backends(BackendState::Active),
            draining: backends(BackendState::Draining),
            warnings: self.warnings().len(),
            pending: self.pending.len(),
        }
    }

    fn compile(&mut self) {
        let mut touched = BTreeSet::new();
        for service in std::mem::take(&mut self.dirty.services) {
            self.compile_service(&service, &mut touched);
        }
        if !self.adopted {
            self.adopted = true;
            touched.extend(self.applied.frontends().map(|(key, _)| *key));
            for family in [Family::V4, Family::V6] {
                let ids = self.applied.backends(family).rows().map(|(id, _)| id);
                self.pending
                    .extend(ids.map(|id| (Unit::Backend(family, id), Retry::default())));
            }
        }
        if self.ways_stale {
            self.ways_stale = false;
            self.compile_ways();
        }
        let fronts = touched
            .into_iter()
            .map(|key| (Unit::Frontend(key), Retry::default()));
        self.pending.extend(fronts);
    }

    fn compile_service(&mut self, service: &NamespacedName, touched: &mut BTreeSet<FrontKey>) {
        self.warnings_stale |= self.desired.has_contests();
        let before = self.desired.claimed(service);
        for (_, port) in &before {
            // Fewer networks may be wanted now.
            if let Some(number) = self.numbers.get(port) {
                self.applied.sources.ask(number);
            }
        }
        self.desired
            .update(service, compile(&self.model, service, &self.here), touched);
        self.warnings_stale |= self.desired.has_contests();
        for (front, port) in before {
            if !self.desired.has_port(&port) {
                self.leaving.entry(port).or_default().insert(front);
            }
        }
    }

    fn compile_ways(&mut self) {
        let Some(facts) = &self.facts else { return };
        let (peers, mut warnings) = peers(&self.model, &self.here.node, facts.node_ip4);
        let (services, of_services) = networks::of_services(&self.model, facts);
        warnings.extend(of_services);
        let ways = Ways::new(&self.model, facts, &peers, &services);
        let mut units: BTreeSet<Unit> = BTreeSet::new();
        units.extend(
            differing(&ways.pods, &self.applied.pods)
                .copied()
                .map(Unit::Pod),
        );
        units.extend(
            differing(&ways.peers, &self.applied.peers)
                .copied()
                .map(Unit::Peer),
        );
        units.extend(
            differing(&ways.nodes, &self.applied.nodes)
                .copied()
                .map(Unit::Node),
        );
        units.extend(
            differing(&ways.networks, &self.applied.networks)
                .copied()
                .map(Unit::Network),
        );
        let changed = ways.changed_since(&self.ways);
        for family in [Family::V4, Family::V6] {
            let ids = self.applied.backends(family).within(&changed);
            units.extend(ids.into_iter().map(|id| Unit::Backend(family, id)));
        }
        self.pending
            .extend(units.into_iter().map(|unit| (unit, Retry::default())));
        self.warnings_stale |= self.way_warnings != warnings;
        self.way_warnings = warnings;
        self.ways = ways;
    }
}
