//! The loop: events in, work by its paces, a snapshot out.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;
use tokio::sync::{mpsc, watch};

use super::by_xdp;
use super::complaints::complaints;
use super::faults::Part;
use super::inherit;
use super::node::NodeView;
use super::serving::Serving;
use super::shared::Shared;
use super::slow::{self, Ended, Slow};
use super::spare;
use super::status::{self, Snapshot};
use super::waiting::Waiting;
use crate::admin::Asking;
use crate::health::{Beat, Ports};
use crate::http::{self, Health, NodeState};
use crate::metrics::{Drift, Sizes};
use crate::model::{Node, Warning};
use crate::net::{Bridge, Interest, NetChanged, NetlinkError, Uplink, Watcher, device_name};
use crate::source::{Batch, Source};

/// Until notifications are subscribed to again.
const WATCH_AGAIN: Duration = Duration::from_secs(1);
/// Until pods that could not be looked at are looked at again.
const PODS_AGAIN: Duration = Duration::from_millis(250);

enum State {
    /// Nothing is touched yet.
    Waiting(Box<Waiting>),
    /// The datapath is ours.
    Serving(Box<Serving>),
}

/// The agent's one task.
pub struct Agent {
    shared: Shared,
    source: Source,
    contact: Option<watch::Receiver<Vec<String>>>,
    /// Objects are looked at no earlier (KP-132).
    objects_from: Instant,
    watcher: Option<Watcher>,
    watch_again: Option<Instant>,
    slow: Slow,
    slow_passes: u64,
    health: Ports,
    http: http::Server,
    beat: Arc<Beat>,
    state: State,
    asked: mpsc::Receiver<Asking>,
    publish: watch::Sender<Arc<Snapshot>>,
    warnings: status::Warnings,
    complained: Option<Complained>,
}

/// What users were told of last.
#[derive(Debug)]
struct Complained {
    ready: bool,
    warnings: Arc<[Warning]>,
    faults: Vec<String>,
}

enum Event {
    Objects(Option<Batch>),
    Contact(Vec<String>),
    Net(Result<NetChanged, NetlinkError>),
    SlowPath(Ended),
    HealthPorts(Vec<String>),
    Http(Vec<String>),
    Asked(Asking),
    Time,
}

impl Agent {
    /// Before the first event.
    pub fn new(
        shared: Shared,
        source: Source,
        health: Ports,
        http: http::Server,
        beat: Arc<Beat>,
        publish: watch::Sender<Arc<Snapshot>>,
        asked: mpsc::Receiver<Asking>,
    ) -> Self {
        let slow = Slow::new(shared.netlink.clone(), shared.args.places.sysctls());
        Self {
            shared,
            contact: source.contact(),
            source,
            objects_from: Instant::now(),
            watcher: None,
            watch_again: Some(Instant::now()),
            slow,
            slow_passes: 0,
            health,
            http,
            beat,
            state: State::Waiting(Box::default()),
            asked,
            publish,
            warnings: status::Warnings::default(),
            complained: None,
        }
    }

    /// Runs until something makes going on impossible, or until it is dropped:
    /// what is set up stays.
    pub async fn run(&mut self) -> anyhow::Error {
        match self.go_on().await {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    async fn go_on(&mut self) -> anyhow::Result<Infallible> {
        self.publish();
        loop {
            let event = self.event().await;
            self.beat.begin();
            let mut synced = false;
            match event {
                Event::Objects(Some(batch)) => {
                    self.objects(batch).await?;
                    synced = true;
                }
                Event::Objects(None) => bail!(
                    "the thread that follows {} has ended; start the agent again",
                    self.source
                ),
                Event::Contact(lost) => {
                    self.shared.faults.set(Part::Source, lost);
                }
                Event::Net(Ok(changed)) => self.net(changed),
                Event::Net(Err(error)) => {
                    self.watcher = None;
                    self.watch_again = Some(Instant::now() + WATCH_AGAIN);
                    let faults = vec![error.to_string()];
                    self.shared.faults.set(Part::Notifications, faults);
                }
                Event::SlowPath(ended) => self.slow_path(ended),
                Event::HealthPorts(failed) => {
                    self.shared.faults.set(Part::HealthPorts, failed);
                }
                Event::Http(failed) => {
                    self.shared.faults.set(Part::Http, failed);
                }
                Event::Asked(asking) => self.tell_names(asking),
                Event::Time => {}
            }
            self.work().await;
            self.publish();
            if synced {
                let gap = self.shared.args.limits.min_sync_period;
                self.objects_from = Instant::now() + gap;
            }
            self.beat.end();
        }
    }

    /// The next event; objects first.
    async fn event(&mut self) -> Event {
        let wake = self.wake();
        let objects_from = Some(self.objects_from);
        let Self {
            source,
            contact,
            watcher,
            slow,
            health,
            http,
            asked,
            ..
        } = self;
        tokio::select! {
            biased;
            batch = objects(source, objects_from) => Event::Objects(batch),
            lost = lost(contact) => Event::Contact(lost),
            changed = heard(watcher) => Event::Net(changed),
            ended = slow.ended() => Event::SlowPath(ended),
            failed = health.failed() => Event::HealthPorts(failed),
            failed = http.failed() => Event::Http(failed),
            Some(asking) = asked.recv() => Event::Asked(asking),
            () = until(wake) => Event::Time,
        }
    }

    /// When there is something to do without an event: only what [`Agent::work`] then takes.
    fn wake(&self) -> Option<Instant> {
        let paces = &self.shared.paces;
        let due = match &self.state {
            State::Waiting(_) => paces.uplink.due(),
            // A pass that is under way ends by itself; its next turn cannot come before.
            State::Serving(serving) => paces
                .next(self.slow.is_idle())
                .into_iter()
                .chain(serving.next())
                .min(),
        };
        due.into_iter().chain(self.watch_again).min()
    }

    async fn objects(&mut self, mut batch: Batch) -> anyhow::Result<()> {
        let now = Instant::now();
        let started = self.shared.started_at;
        batch.triggers.retain(|trigger| trigger.at >= started);
        self.shared.metrics.proxy.came(&batch.changes);
        self.shared.metrics.source.heard();
        match &mut self.state {
            State::Waiting(waiting) => {
                waiting.take(batch);
                let Some(node) = waiting.node(&self.shared.args.node).cloned() else {
                    waiting.complain(&self.shared.args.node);
                    return Ok(());
                };
                let Some(objects) = std::mem::take(waiting).into_batch() else {
                    return Ok(());
                };
                let made = self.make_device(&node).await;
                let bridge = self.bridge(&node).await;
                match Serving::open(&self.shared, node, objects, bridge).map(Box::new) {
                    Ok(serving) => {
                        serving.tell_shortfall(&mut self.shared, Vec::new());
                        self.begin(serving).await;
                    }
                    Err(error) => {
                        if let Some(index) = made {
                            self.slow.delete_device(index).await;
                        }
                        return Err(error);
                    }
                }
            }
            State::Serving(serving) => {
                let large = batch.changes.len() >= spare::LARGE_BATCH;
                let nodes = serving.batch(&mut self.shared, batch);
                let paces = &mut self.shared.paces;
                if large {
                    paces.spare.ask(now + spare::REST);
                }
                if nodes {
                    paces.programs.ask_now(now);
                    paces.facts.ask_now(now);
                    paces.slow.ask(now);
                }
            }
        }
        Ok(())
    }

    /// The VTEP device, if there is none yet: its index is in the programs.
    async fn make_device(&mut self, node: &Node) -> Option<u32> {
        let (uplink, args) = (&self.shared.uplink, &self.shared.args);
        let overlay = NodeView::new(node, uplink, &args.overlay).overlay(uplink, args, &[]);
        self.slow.make_device(&overlay).await
    }

    /// Index of the bridge that pods are behind, 0 if there is none. Whoever looks at
    /// the pods next says what is wrong.
    async fn bridge(&self, node: &Node) -> u32 {
        let found = Bridge::find(&self.shared.netlink, &node.pod_cidrs).await;
        found.ok().flatten().map_or(0, |bridge| bridge.index)
    }

    /// The datapath is ours. Its maps and links stay as they are until the
    /// first facts are there.
    async fn begin(&mut self, mut serving: Box<Serving>) {
        let started = Instant::now();
        let shared = &mut self.shared;
        shared.faults.set(Part::Node, serving.view.notes.clone());
        shared.syncs.queue(started, SystemTime::now());
        match serving.datapath.maps.readings() {
            // There is one datapath in the life of an agent.
            Ok(readings) => drop(shared.metrics.maps.set(readings)),
            Err(error) => tracing::warn!("there are no metrics of the datapath: {error}"),
        }
        let opened = serving.datapath.opened();
        let adopted = adopted(opened);
        tracing::info!(
            "{} maps taken over, {} made",
            adopted,
            opened.maps.len() - adopted
        );
        if let Some(watcher) = &mut self.watcher {
            watcher.set_interest(
                serving
                    .view
                    .interest(&shared.uplink, shared.args.overlay.vni),
            );
        }
        self.slow.start(serving.overlay(shared), started);
        look_at_facts(&mut serving, shared).await;
        shared.paces.uplink.done(started, Instant::now());
        shared.paces.spare.ask(Instant::now() + spare::REST);
        self.state = State::Serving(serving);
    }

    fn net(&mut self, changed: NetChanged) {
        let now = Instant::now();
        let paces = &mut self.shared.paces;
        if changed.uplink {
            paces.uplink.ask(now);
        }
        if changed.pods || changed.uplink {
            paces.facts.ask(now);
        }
        if changed.overlay {
            paces.slow.ask(now);
        }
    }

    fn slow_path(&mut self, ended: Ended) {
        let first = self.slow_passes == 0;
        self.slow_passes += 1;
        let failed = match ended.result {
            Ok(report) => {
                slow::log(&report, first);
                if !first {
                    let repaired = report.repaired as u64;
                    self.shared.repaired(Drift::SlowPath, repaired);
                }
                report.failed
            }
            Err(error) => vec![error],
        };
        let now = Instant::now();
        let shared = &mut self.shared;
        shared.faults.set(Part::SlowPath, failed);
        shared.paces.slow.done(ended.began, now);
        if let State::Serving(serving) = &self.state
            && serving.has_other_vtep(shared)
        {
            shared.paces.programs.ask_now(now);
        }
    }

    /// Does what is due.
    async fn work(&mut self) {
        self.watch().await;
        self.look_at_uplink().await;
        let State::Serving(serving) = &mut self.state else {
            return;
        };
        let shared = &mut self.shared;
        let now = Instant::now();
        if shared.paces.programs.take(now) && serving.reconfigure(shared) {
            let paces = &mut shared.paces;
            paces.facts.ask_now(now);
            paces.slow.ask(now);
            let interest = serving
                .view
                .interest(&shared.uplink, shared.args.overlay.vni);
            if let Some(watcher) = &mut self.watcher {
                watcher.set_interest(interest);
            }
            paces.spare.ask(now + spare::REST);
            if serving.is_configured(shared) {
                serving.sync_links(shared, true);
            } else {
                shared.paces.programs.done(now, Instant::now());
            }
        }
        if shared.paces.facts.take(now) {
            look_at_facts(serving, shared).await;
        }
        if serving.planner.next_run().is_some_and(|due| due <= now) {
            serving.plan(shared);
        }
        if self.slow.is_idle() && shared.paces.slow.take(now) {
            self.slow.start(serving.overlay(shared), now);
        }
        if shared.paces.links.take(now) {
            serving.sync_links(shared, false);
            shared.paces.links.done(now, Instant::now());
        }
        if shared.paces.spare.take(now) {
            spare::give_back();
            shared.paces.spare.done(now, Instant::now());
        }
        serving.walk(shared);
        serving.compare(shared);
        if serving.attached {
            let attached = serving.serves_uplink(shared);
            shared.syncs.set_programs(attached, Instant::now());
            self.health
                .take(serving.health_news(shared), Instant::now());
        }
    }

    /// Whoever is told nothing is refused.
    fn tell_names(&mut self, asking: Asking) {
        // Who does not wait any more needs none, and they take long to make.
        if let (State::Serving(serving), false) = (&self.state, asking.is_closed()) {
            let _ = asking.send(status::names(&serving.planner));
            let spare = &mut self.shared.paces.spare;
            spare.ask(Instant::now() + spare::REST);
        }
    }

    /// Subscribes to notifications, the first time or again; what happened meanwhile is looked at.
    async fn watch(&mut self) {
        let now = Instant::now();
        if self.watch_again.is_none_or(|at| at > now) {
            return;
        }
        let shared = &mut self.shared;
        let interest = match &self.state {
            State::Serving(serving) => serving
                .view
                .interest(&shared.uplink, shared.args.overlay.vni),
            State::Waiting(_) => Interest {
                uplink: shared.uplink.name.clone(),
                device: device_name(shared.args.overlay.vni),
                own_pod_cidrs: Vec::new(),
            },
        };
        match Watcher::open(interest).await {
            Ok(watcher) => {
                shared.faults.set(Part::Notifications, Vec::new());
                self.watcher = Some(watcher);
                self.watch_again = None;
                self.net(NetChanged::ALL);
            }
            Err(error) => {
                shared
                    .faults
                    .set(Part::Notifications, vec![error.to_string()]);
                self.watch_again = Some(Instant::now() + WATCH_AGAIN);
            }
        }
    }

    async fn look_at_uplink(&mut self) {
        let began = Instant::now();
        let shared = &mut self.shared;
        if !shared.paces.uplink.take(began) {
            return;
        }
        match Uplink::find(&shared.netlink, shared.args.uplink.as_deref()).await {
            Ok(uplink) => {
                shared.faults.set(Part::Uplink, Vec::new());
                if uplink != shared.uplink {
                    tracing::info!(
                        "uplink {} changed: {}, MTU {}, {}",
                        uplink.name,
                        uplink.ip4(),
                        uplink.mtu,
                        uplink.mac
                    );
                    shared.uplink = uplink;
                    shared.paces.programs.ask_now(began);
                }
            }
            // The datapath goes on with what it has.
            Err(error) => {
                shared.faults.set(Part::Uplink, vec![error.to_string()]);
            }
        }
        shared.paces.uplink.done(began, Instant::now());
    }

    fn publish(&mut self) {
        let shared = &self.shared;
        let mut status = admin_api::Status {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: shared.args.node.clone(),
            started_at_secs: shared.started_secs,
            source: self.source.to_string(),
            uplink: shared.uplink.name.clone(),
            last_sync_micros: shared.counted.last_sync.map(|took| took.as_micros() as u64),
            syncs: shared.counted.syncs,
            sync_failures: shared.counted.sync_failures,
            drift_repairs: shared.counted.repairs,
            faults: shared.faults.sentences(),
            ..admin_api::Status::default()
        };
        let node = shared.args.services.uplink_services;
        match &self.state {
            State::Waiting(waiting) => {
                status.waiting_for = Some(waiting.reason(&shared.args.node));
                status.features = status::features(&shared.kernel, &shared.sockets, node, None);
                status.objects = status::objects(waiting.model(), 0);
                status.warnings = self.warnings.told(&waiting.warnings());
            }
            State::Serving(serving) => {
                let opened = serving.datapath.opened();
                let adopted = adopted(opened);
                status.ready = serving.attached && self.slow_passes > 0;
                status.overlay = Some(status::overlay(&serving.view, &shared.args.overlay));
                status.features =
                    status::features(&shared.kernel, &shared.sockets, node, serving.xdp.as_ref());
                status.features.extend(by_xdp::feature(shared, serving));
                status.objects = status::objects(serving.planner.model(), serving.local_pods());
                status.warnings = self.warnings.told(serving.planner.warnings());
                status.links.clone_from(&serving.links);
                status.map_errors = serving.map_errors();
                status.last_round = serving.last_round();
                status.maps_adopted = adopted as u32;
                status.maps_created = (opened.maps.len() - adopted) as u32;
            }
        }
        let has_names =
            matches!(&self.state, State::Serving(serving) if serving.planner.is_ready());
        let warnings = status.warnings.len();
        let (model, sizes) = match &self.state {
            State::Waiting(waiting) => {
                let objects = waiting.model().sizes();
                let sizes = Sizes {
                    objects,
                    warnings,
                    ..Sizes::default()
                };
                (waiting.model(), sizes)
            }
            State::Serving(serving) => (serving.planner.model(), serving.sizes(warnings)),
        };
        shared.tell(&sizes, &status);
        let health = Health {
            syncs: shared.syncs,
            node: NodeState::from(model.node(&shared.args.node)),
            serves: status.ready,
        };
        let ready = status.ready;
        let news = self.publish.send_if_modified(|snapshot| {
            let next = Snapshot {
                health,
                status,
                has_names,
            };
            let news = **snapshot != next;
            if news {
                *snapshot = Arc::new(next);
            }
            news
        });
        if news {
            self.complain(ready);
        }
    }

    /// Tells users what is wrong, if it is something else than before.
    fn complain(&mut self, ready: bool) {
        let warnings = match &self.state {
            State::Waiting(waiting) => waiting.warnings(),
            State::Serving(serving) => Arc::clone(serving.planner.warnings()),
        };
        let shared = &self.shared;
        let faults = shared.faults.sentences();
        let same = |told: &Complained| {
            told.ready == ready && Arc::ptr_eq(&told.warnings, &warnings) && told.faults == faults
        };
        if self.complained.as_ref().is_some_and(same) {
            return;
        }
        self.source
            .complain(|| complaints(&shared.args.node, ready, &warnings, shared.faults.all()));
        self.complained = Some(Complained {
            ready,
            warnings,
            faults,
        });
    }
}

/// Pods and next hops, with the plan that follows from them. After the first
/// plan, the attachments: no program runs on empty maps.
async fn look_at_facts(serving: &mut Serving, shared: &mut Shared) {
    let began = Instant::now();
    let looked = serving.refresh_facts(shared).await;
    shared.paces.facts.done(began, Instant::now());
    if !looked {
        shared.paces.facts.ask(Instant::now() + PODS_AGAIN);
    }
    if serving.attached || !serving.planner.is_ready() {
        return;
    }
    shared.counted.syncs += 1;
    let linking = Instant::now();
    inherit::attach(serving, shared).await;
    shared.paces.links.done(linking, Instant::now());
    let counts = serving.planner.counts();
    tracing::info!(
        "serving {} services by {} frontends and {} backends, {} other nodes, {} local pods",
        counts.services,
        counts.frontends,
        counts.backends,
        serving.planner.peers().len(),
        serving.local_pods()
    );
}

fn adopted(opened: &crate::kernel::Opened) -> usize {
    use crate::kernel::MapFate;
    let kept = |fate: &&MapFate| matches!(fate, MapFate::Adopted | MapFate::Resized { .. });
    opened.maps.values().filter(kept).count()
}

async fn objects(source: &mut Source, from: Option<Instant>) -> Option<Batch> {
    until(from).await;
    source.recv().await
}

/// What keeps the source from seeing changes, whenever that is another thing.
async fn lost(contact: &mut Option<watch::Receiver<Vec<String>>>) -> Vec<String> {
    let Some(contact) = contact else {
        return pending().await;
    };
    match contact.changed().await {
        Ok(()) => contact.borrow_and_update().clone(),
        // The source has ended, of which its batches tell.
        Err(_) => pending().await,
    }
}

async fn heard(watcher: &mut Option<Watcher>) -> Result<NetChanged, NetlinkError> {
    match watcher {
        Some(watcher) => watcher.next().await,
        None => pending().await,
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => pending().await,
    }
}
