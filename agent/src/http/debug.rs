//! What is below `/debug`: for who is on the node, wherever the server listens.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::clients::Peer;
use super::json;
use super::server::Told;

/// The paths.
pub fn routes(told: Told) -> Router {
    Router::new()
        .route("/debug/status", get(status))
        .route("/debug/faults", get(faults))
        .route("/debug/log", get(log).put(set_log))
        .route_layer(from_fn(for_this_node))
        .with_state(told)
}

/// Others are told nothing, not even which paths there are.
async fn for_this_node(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>();
    if peer.is_some_and(|Peer(peer)| peer.ip().to_canonical().is_loopback()) {
        next.run(request).await
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}

async fn status(State(told): State<Told>) -> Response {
    json(&told.snapshots.borrow().status)
}

async fn faults(State(told): State<Told>) -> Response {
    json(&told.snapshots.borrow().status.faults)
}

async fn log(State(told): State<Told>) -> String {
    told.log.now() + "\n"
}

async fn set_log(State(told): State<Told>, filter: String) -> Response {
    match told.log.set(&filter) {
        Ok(()) => (StatusCode::OK, told.log.now() + "\n").into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}\n")).into_response(),
    }
}
