//! `tulle-agent run`: one task owns model, plan and maps and joins the parts.
//!
//! [`run`] checks the node, then [`agent::Agent`] takes events one at a time:
//! changed objects are applied at once, everything else when its
//! [`pace::Pace`] says so. Until the first full list and this node's own Node
//! are there it [`waiting::Waiting`]s and touches nothing.

pub mod agent;
mod anew;
mod by_xdp;
mod complaints;
mod crowding;
pub mod departed;
pub mod faults;
pub mod flows;
pub mod found;
pub mod here;
mod inherit;
pub mod logging;
pub mod node;
pub mod pace;
pub mod prospects;
pub mod rounds;
pub mod serving;
pub mod shared;
pub mod slow;
pub mod sockets;
mod spare;
pub mod status;
pub mod stripped;
pub mod waiting;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin;
use crate::args::{RunArgs, absolute, port_range};
use crate::config::{Changed, Follow};
use crate::health;
use crate::http;
use crate::kernel::InstanceLock;
use crate::kernel::probe::{self, Kernel, Sources};
use crate::metrics::Metrics;
use crate::net::{Netlink, Uplink};
use crate::source::Source;
use crate::source::cluster::Cluster;
use crate::source::manifests::{Manifests, Timing};
use agent::Agent;
use logging::LogFilter;
use shared::Shared;
use sockets::{SocketChoice, Surroundings};
use status::Snapshot;

/// Serves the node until a signal comes, or until its configuration file says something else:
/// then this process begins anew.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    match until_ended(args)? {
        Ended::Told => Ok(()),
        Ended::Reconfigured => Err(anew::begin()),
    }
}

/// Why serving ended.
enum Ended {
    /// By a signal.
    Told,
    /// The configuration file says something else.
    Reconfigured,
}

fn until_ended(mut args: RunArgs) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    // A signal that comes while the agent gets ready ends it as any other does.
    let entered = runtime.enter();
    let signals = Signals::expect()?;
    let follow = Follow::new(std::env::args_os().collect(), &args);
    drop(entered);
    let log = LogFilter::start(&args.log)?;
    for note in &args.notes {
        tracing::warn!("{note}");
    }
    args.cluster.state = args.cluster.state.as_deref().map(absolute);
    let kernel = probe::probe(&Sources::default(), &args.places.bpffs)?;
    let _lock = InstanceLock::take(&args.places.run_dir)?;
    let source = source(&args)?;
    runtime.block_on(serve(args, kernel, source, log, signals, follow))
}

/// The signals that end an agent.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn expect() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?,
        })
    }

    /// Its name, when one has come.
    async fn come(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Objects are read while the rest gets ready.
fn source(args: &RunArgs) -> anyhow::Result<Source> {
    let source = match &args.cluster.state {
        Some(state) => Source::Manifests(Manifests::watch(state, Timing::default())?),
        None => Source::Cluster(Cluster::follow(args.cluster.options(&args.node))?),
    };
    tracing::info!("objects come from {source}");
    Ok(source)
}

async fn serve(
    args: RunArgs,
    kernel: Kernel,
    source: Source,
    log: LogFilter,
    mut signals: Signals,
    mut follow: Follow,
) -> anyhow::Result<Ended> {
    tracing::info!(
        "tulle-agent {} serves node {}, process {}, Linux {}.{}",
        env!("CARGO_PKG_VERSION"),
        args.node,
        std::process::id(),
        kernel.version.0,
        kernel.version.1
    );
    for choice in &kernel.features {
        tracing::info!("{}: {}, {}", choice.name, choice.chosen, choice.why);
    }
    for warning in &kernel.warnings {
        tracing::warn!("{warning}");
    }
    let ephemeral = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let ephemeral = ephemeral.ok().and_then(|text| port_range(&text));
    for warning in args.services.snat_ports.overlaps(ephemeral) {
        tracing::warn!("{warning}");
    }
    let netlink = Netlink::open()?;
    let uplink = Uplink::find(&netlink, args.uplink.as_deref()).await?;
    tracing::info!(
        "uplink {}, {}, MTU {}, {}",
        uplink.name,
        uplink.ip4(),
        uplink.mtu,
        uplink.mac
    );
    let stripped_mac = stripped::sender(&args.places.stripped_mac())?;
    let services = &args.services;
    let sockets = SocketChoice::make(
        services.socket_services,
        services.cgroup.as_deref(),
        &Surroundings::look(),
    );
    tracing::info!("services at sockets: {}, {}", sockets.chosen(), sockets.why);
    let socket = admin::Server::bind(&args.places.socket())?;
    let (answers, publish, asked) = admin::Answers::new(Snapshot::default());
    let metrics = Metrics::default();
    if let Source::Cluster(cluster) = &source {
        metrics.source.follow(Arc::clone(cluster.gauges()));
    }
    let beat = Arc::<health::Beat>::default();
    let health = health::Ports::start(&args.node, args.services.uplink_services, &beat)
        .context("cannot answer on health check node ports")?;
    let told = http::Told {
        snapshots: answers.snapshots.clone(),
        beat: Arc::clone(&beat),
        metrics: metrics.clone(),
        log,
    };
    let http = http::Server::start(&args, told).await?;
    let mut agent = Agent::new(
        Shared::new(
            args,
            kernel,
            netlink,
            uplink,
            stripped_mac,
            sockets,
            metrics,
        ),
        source,
        health,
        http,
        beat,
        publish,
        asked,
    );
    let server = socket.start(answers)?;
    let mut ended = tokio::select! {
        biased;
        signal = signals.come() => Ok(Cause::Signal(signal)),
        changed = follow.changed() => Ok(Cause::File(changed)),
        error = agent.run() => Err(error),
    };
    // Without a publisher the socket goes, so that nobody waits for an answer.
    drop(agent);
    if server.join().is_err() {
        tracing::debug!("the socket's thread had ended early");
    }
    // A signal that came meanwhile ends this process, not the next one's beginning.
    if let Ok(signal) = tokio::time::timeout(Duration::ZERO, signals.come()).await {
        ended = ended.map(|_| Cause::Signal(signal));
    }
    match ended? {
        Cause::Signal(signal) => {
            tracing::info!(
                "ended by {signal}; the datapath goes on by its last state, `tulle-agent cleanup` removes it"
            );
            Ok(Ended::Told)
        }
        Cause::File(Changed(changes)) => {
            tracing::info!(
                "begins anew, for its configuration changed: {}",
                changes.join("; ")
            );
            Ok(Ended::Reconfigured)
        }
    }
}

enum Cause {
    Signal(&'static str),
    File(Changed),
}
