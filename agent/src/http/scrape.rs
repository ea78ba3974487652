//! The paths of `--metrics-address`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Mutex;

use super::server::Told;
use super::{debug, json, probes};
use crate::args::Settings;
use crate::metrics::{Exporter, Format};

/// What the datapath is, where kube-proxy says `iptables`, `ipvs` or `nftables` (KP-157).
const MODE: &str = "ebpf";

#[derive(Clone)]
struct Answers {
    told: Told,
    settings: Arc<Settings>,
    /// One scrape at a time: what is dear to read is read once.
    exporter: Arc<Mutex<Arc<Exporter>>>,
}

/// The paths.
pub fn routes(told: &Told, settings: Settings, each_service: bool) -> Router {
    let exporter = Arc::new(Exporter::new(&told.metrics, each_service));
    let answers = Answers {
        told: told.clone(),
        settings: Arc::new(settings),
        exporter: Arc::new(Mutex::new(exporter)),
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || text("ok")))
        .route("/proxyMode", get(async || text(MODE)))
        .route("/configz", get(configz))
        .with_state(answers)
        .merge(debug::routes(told.clone()))
}

/// Maps are read beside the thread that answers, which goes on.
async fn metrics(State(answers): State<Answers>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept);
    let exporter = answers.exporter.lock_owned().await;
    // As a probe would be told now: it is a matter of time, too, of which the loop says nothing.
    let ready = probes::ready(&answers.told).status == 200;
    answers.told.metrics.state.set_ready(ready);
    let read = tokio::task::spawn_blocking(move || exporter.text(format));
    match read.await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, format.content_type())], text).into_response(),
        other => {
            tracing::warn!("a scrape failed: {other:?}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn configz(State(answers): State<Answers>) -> Response {
    json(&BTreeMap::from([("tulle-agent", &*answers.settings)]))
}

fn text(text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, "text/plain; charset=utf-8"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}
