//! What the agent says over HTTP: to load balancers and probes whether the node is served, to
//! Prometheus how. A thread of its own answers from what the loop has published last: no client
//! ever asks the loop, nor can one hold it up.
//!
//! [`Syncs`] is the loop's side: which family has a change that is not written yet. It becomes a
//! part of the published snapshot as [`Health`], whose rules are in `health.rs` (pure).
//! `server.rs` opens the addresses and keeps trying, `clients.rs` serves who comes.

mod clients;
mod debug;
mod health;
mod listen;
mod probes;
mod scrape;
mod server;
mod syncs;

pub use clients::Crowd;
pub use health::{Health, NodeState};
pub use listen::listen;
pub use server::{Server, Told};
pub use syncs::Syncs;

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};

/// A value as an answer.
fn json(value: &impl serde::Serialize) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    match serde_json::to_string_pretty(value) {
        Ok(text) => (headers, text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
