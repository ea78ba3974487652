//! Clients of the ports: one request each, little time, little room.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::answer::Answer;
use super::board::{Beat, Board};
use crate::http::Crowd;
use crate::model::{Family, NamespacedName};

/// Connections at the same time, over all ports.
pub const MOST: usize = 512;
/// From a connection to the end of its answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Of a request's line and headers; hyper takes no less.
const REQUEST_BYTES: usize = 8192;

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What every client is answered from, and who is there.
#[derive(Debug)]
pub struct Clients {
    /// The last board.
    pub boards: watch::Receiver<Arc<Board>>,
    /// Whether the loop still goes round.
    pub beat: Arc<Beat>,
    crowd: Crowd,
}

impl Clients {
    /// Nobody yet.
    pub fn new(boards: watch::Receiver<Arc<Board>>, beat: Arc<Beat>) -> Self {
        Self {
            boards,
            beat,
            crowd: Crowd::new(MOST),
        }
    }

    /// Serves a client in a task of its own.
    pub fn admit(self: &Arc<Self>, stream: TcpStream, name: &Arc<NamespacedName>, family: Family) {
        let (clients, name) = (Arc::clone(self), Arc::clone(name));
        let task = tokio::spawn(async move {
            let served = tokio::time::timeout(LIMIT, clients.serve(stream, &name, family));
            if let Ok(Err(error)) = served.await {
                tracing::debug!(%error, "a client of the health check port of {name} went away");
            }
        });
        self.crowd.admit(task.abort_handle());
    }

    async fn serve(
        &self,
        stream: TcpStream,
        name: &NamespacedName,
        family: Family,
    ) -> Result<(), hyper::Error> {
        let service = service_fn(async |_: Request<Incoming>| {
            let board = Arc::clone(&self.boards.borrow());
            let busy = self.beat.busy_since();
            let answer = Answer::of(&board, name, family, busy, Instant::now());
            // Without one the port is about to close: so does the connection.
            answer
                .map(response)
                .ok_or(io::Error::from(io::ErrorKind::NotConnected))
        });
        http1::Builder::new()
            .keep_alive(false)
            .title_case_headers(true)
            .max_buf_size(REQUEST_BYTES)
            .timer(TokioTimer::new())
            .header_read_timeout(LIMIT)
            .serve_connection(TokioIo::new(stream), service)
            .await
    }
}

fn response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() = match answer.status {
        200 => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(answer.weight));
    response
}
