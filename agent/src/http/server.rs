//! The thread that answers, and its addresses: one that is taken is tried again.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use tokio::sync::{oneshot, watch};

use super::clients::{Crowd, accept};
use super::listen::{Door, doors, is_without_family, listen};
use super::{probes, scrape};
use crate::args::{ListenAt, RunArgs};
use crate::health::Beat;
use crate::metrics::Metrics;
use crate::run::logging::LogFilter;
use crate::run::status::Snapshot;

/// Until an address that is taken is tried again (KP-156).
const AGAIN: Duration = Duration::from_secs(5);
/// Connections at the same time to one of the two servers.
const MOST: usize = 128;

/// What answers are made of.
#[derive(Clone, Debug)]
pub struct Told {
    /// What the loop published last.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether it still goes round.
    pub beat: Arc<Beat>,
    /// What is counted.
    pub metrics: Metrics,
    /// What is logged.
    pub log: LogFilter,
}

/// The loop's end of it.
#[derive(Debug)]
pub struct Server {
    failed: Option<watch::Receiver<Vec<String>>>,
}

/// One address of one server.
struct Place {
    door: Door,
    flag: &'static str,
    routes: Router,
    crowd: Arc<Crowd>,
}

impl Server {
    /// Starts the thread and opens what can be opened. It ends with the process, or when
    /// nobody publishes any more.
    ///
    /// # Errors
    ///
    /// There can be no thread; or, with `--bind-address-hard-fail`, an address cannot be had.
    pub async fn start(args: &RunArgs, told: Told) -> anyhow::Result<Self> {
        let places = places(args, &told);
        let (tell, mut failed) = watch::channel(Vec::new());
        let (opened, first) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the thread that answers over HTTP")?;
        let serve = async move {
            let mut published = told.snapshots;
            let closed = async { while published.changed().await.is_ok() {} };
            tokio::select! {
                () = closed => {}
                () = keep_open(places, tell, opened) => {}
            }
        };
        std::thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || runtime.block_on(serve))
            .context("cannot start the thread that answers over HTTP")?;
        // It says so once it has tried each address, and cannot end before.
        let _ = first.await;
        let sentences = failed.borrow_and_update().clone();
        if args.http.bind_address_hard_fail && !sentences.is_empty() {
            bail!("{}", sentences.join("; "));
        }
        if !sentences.is_empty() {
            failed.mark_changed();
        }
        Ok(Self {
            failed: Some(failed),
        })
    }

    /// What cannot be opened, a sentence each, whenever that changes.
    pub async fn failed(&mut self) -> Vec<String> {
        let Some(failed) = &mut self.failed else {
            return pending().await;
        };
        if failed.changed().await.is_ok() {
            return failed.borrow_and_update().clone();
        }
        self.failed = None;
        vec!["the thread that answers over HTTP has ended; start the agent again".to_owned()]
    }
}

fn places(args: &RunArgs, told: &Told) -> Vec<Place> {
    let http = &args.http;
    let scrape = || scrape::routes(told, args.settings.clone(), http.service_metrics);
    let servers: [(ListenAt, &str, Router); 2] = [
        (
            http.health_address,
            "--health-address",
            probes::routes(told.clone()),
        ),
        (http.metrics_address, "--metrics-address", scrape()),
    ];
    let mut places = Vec::new();
    for (at, flag, routes) in servers {
        let crowd = Arc::new(Crowd::new(MOST));
        let doors = at.address().map(doors).unwrap_or_default();
        places.extend(doors.into_iter().map(|door| Place {
            door,
            flag,
            routes: routes.clone(),
            crowd: Arc::clone(&crowd),
        }));
    }
    places
}

/// Opens every place, again and again until it is open.
async fn keep_open(
    mut closed: Vec<Place>,
    tell: watch::Sender<Vec<String>>,
    opened: oneshot::Sender<()>,
) {
    let mut opened = Some(opened);
    loop {
        let mut failed = Vec::new();
        closed.retain(|place| match open(place) {
            Ok(()) => false,
            Err(sentence) => {
                failed.extend(sentence);
                true
            }
        });
        tell.send_if_modified(|told| {
            let news = *told != failed;
            *told = failed;
            news
        });
        if let Some(opened) = opened.take() {
            // Nobody waits any more only if the start was given up.
            let _ = opened.send(());
        }
        if closed.is_empty() {
            return pending().await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Nothing is said of a family that this node does not have and nobody asked for.
fn open(place: &Place) -> Result<(), Option<String>> {
    let Place {
        door: Door { at, named },
        flag,
        ..
    } = place;
    match listen(*at) {
        Ok(listener) => {
            tracing::info!("answers at http://{at} ({flag})");
            let (routes, crowd) = (place.routes.clone(), Arc::clone(&place.crowd));
            tokio::spawn(accept(listener, routes, crowd));
            Ok(())
        }
        Err(error) if !named && is_without_family(&error) => Err(None),
        Err(error) => Err(Some(format!(
            "cannot listen at {at}: {error}; free the port, or give {flag} another"
        ))),
    }
}
