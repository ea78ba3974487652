//! `/healthz`, `/livez`, `/readyz`.

use std::time::{Instant, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::health::{self, Answer, Now};
use super::server::Told;

/// The paths of `--health-address`.
pub fn routes(told: Told) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(told)
}

async fn healthz(State(told): State<Told>) -> Response {
    let answer = health::healthz(&told.snapshots.borrow().health, now(&told));
    told.metrics.proxy.healthz(answer.status);
    response(answer, "application/json")
}

async fn livez(State(told): State<Told>) -> Response {
    let answer = health::livez(&told.snapshots.borrow().health, now(&told));
    told.metrics.proxy.livez(answer.status);
    response(answer, "application/json")
}

async fn readyz(State(told): State<Told>) -> Response {
    response(ready(&told), "text/plain; charset=utf-8")
}

/// What `/readyz` answers now.
pub fn ready(told: &Told) -> Answer {
    let snapshot = told.snapshots.borrow();
    let waits_for = snapshot.status.waiting_for.as_deref();
    health::readyz(&snapshot.health, waits_for, now(told))
}

fn now(told: &Told) -> Now {
    Now {
        instant: Instant::now(),
        time: SystemTime::now(),
        busy: told.beat.busy_since(),
    }
}

fn response(answer: Answer, content_type: &'static str) -> Response {
    let status = match answer.status {
        200 => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers: [(HeaderName, &str); 2] = [
        (CONTENT_TYPE, content_type),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, answer.body).into_response()
}
