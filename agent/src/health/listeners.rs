//! The listening sockets, opened and closed after the board.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::board::Board;
use super::clients::Clients;
use crate::http::listen;
use crate::model::{Family, NamespacedName};

/// Until the next try after a client could not be taken.
const AGAIN: Duration = Duration::from_secs(1);

/// A Service and where its port is open.
type Place = (Arc<NamespacedName>, SocketAddr);

/// The sockets that are open, each with the task that takes its clients.
#[derive(Debug)]
pub struct Listeners {
    open: BTreeMap<Place, JoinHandle<()>>,
    /// Sockets at the same time.
    most: usize,
    clients: Arc<Clients>,
}

impl Listeners {
    /// None yet, at most `most` at a time.
    pub const fn new(clients: Arc<Clients>, most: usize) -> Self {
        Self {
            open: BTreeMap::new(),
            most,
            clients,
        }
    }

    /// Closes what the board has no more and opens what it has. Gives a sentence
    /// for each socket that cannot be opened; the others are undisturbed (KP-154).
    pub async fn follow(&mut self, board: &Board) -> Vec<String> {
        let wanted = places(board);
        // A port may go from one Service to another: it is closed before it is opened.
        for (place, task) in self.open.extract_if(.., |place, _| !wanted.contains(place)) {
            task.abort();
            // What is left of it is the word that it was aborted.
            let _ = task.await;
            tracing::info!("closed the health check port of {} at {}", place.0, place.1);
        }
        let mut failed = Vec::new();
        for place in wanted {
            if self.open.contains_key(&place) {
                continue;
            }
            if let Err(sentence) = self.open(place) {
                failed.push(sentence);
            }
        }
        failed
    }

    fn open(&mut self, place: Place) -> Result<(), String> {
        let (service, at) = (&place.0, place.1);
        if self.open.len() >= self.most {
            return Err(format!(
                "Service {service}: {at} stays closed, this process may have no more than {} of \
                 these sockets; raise its limit of open files",
                self.most
            ));
        }
        let listener = listen(at).map_err(|error| {
            let other = self.open.keys().find(|(_, taken)| *taken == at);
            match other {
                Some((other, _)) => format!(
                    "Service {service}: cannot listen at {at}: Service {other} has this \
                     spec.healthCheckNodePort too; give one of them another"
                ),
                None => format!(
                    "Service {service}: cannot listen at {at} for load balancers: {error}; free \
                     the port, or give the Service another spec.healthCheckNodePort"
                ),
            }
        })?;
        tracing::info!("opened the health check port of {service} at {at}");
        let (clients, service) = (Arc::clone(&self.clients), Arc::clone(service));
        let task = tokio::spawn(accept(listener, Family::of(at.ip()), clients, service));
        self.open.insert(place, task);
        Ok(())
    }
}

/// Every socket that should be open (pure).
fn places(board: &Board) -> BTreeSet<Place> {
    let of = |address: &IpAddr| {
        let address = *address;
        board.probes.iter().filter_map(move |(service, probe)| {
            probe.ready(Family::of(address))?;
            Some((Arc::clone(service), SocketAddr::new(address, probe.port)))
        })
    };
    board.addresses.iter().flat_map(of).collect()
}

async fn accept(
    listener: TcpListener,
    family: Family,
    clients: Arc<Clients>,
    service: Arc<NamespacedName>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => clients.admit(stream, &service, family),
            // Too many open files, mostly: it passes.
            Err(error) => {
                tracing::debug!(%error, "cannot take a client at the health check port of {service}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
