//! Who comes to the servers: one request each, little time, little room.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tower::ServiceExt as _;

/// Until the next try after a client could not be taken.
const AGAIN: Duration = Duration::from_secs(1);
/// From a connection to the end of its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// From a connection to the end of its answer: a scrape may be much, and its reader far away.
const LIMIT: Duration = Duration::from_secs(30);
/// Of a request's line and headers; hyper takes no less.
const REQUEST_BYTES: usize = 8192;

/// Where a request comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer(pub SocketAddr);

/// Connections that are open. Who asks is done within milliseconds, so the one that is open
/// longest goes when there are too many.
#[derive(Debug)]
pub struct Crowd {
    most: usize,
    open: Mutex<VecDeque<AbortHandle>>,
}

impl Crowd {
    /// Nobody yet, at most `most` at a time.
    pub const fn new(most: usize) -> Self {
        Self {
            most,
            open: Mutex::new(VecDeque::new()),
        }
    }

    /// Takes in the task that serves another one.
    pub fn admit(&self, client: AbortHandle) {
        // Nothing can panic while it is held.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|client| !client.is_finished());
        if open.len() >= self.most
            && let Some(longest) = open.pop_front()
        {
            longest.abort();
        }
        open.push_back(client);
    }
}

/// Serves all who come to `listener`, each in a task.
pub async fn accept(listener: TcpListener, routes: Router, crowd: std::sync::Arc<Crowd>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let routes = routes.clone();
                let task = tokio::spawn(async move {
                    let served = tokio::time::timeout(LIMIT, serve(stream, peer, routes));
                    if let Ok(Err(error)) = served.await {
                        tracing::debug!(%error, "a client at {peer} went away");
                    }
                });
                crowd.admit(task.abort_handle());
            }
            // Too many open files, mostly: it passes.
            Err(error) => {
                tracing::debug!(%error, "cannot take a client");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, routes: Router) -> Result<(), hyper::Error> {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        routes.clone().oneshot(request)
    });
    http1::Builder::new()
        .keep_alive(false)
        .title_case_headers(true)
        .max_buf_size(REQUEST_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .serve_connection(TokioIo::new(stream), service)
        .await
}
