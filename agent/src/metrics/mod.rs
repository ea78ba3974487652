//! What Prometheus is told; `docs/metrics.md` says what each metric means.
//!
//! The loop writes into [`Metrics`], whose parts are atomics and short locks. What the programs
//! count is read from the maps when somebody asks, by `datapath.rs`, with handles of its own:
//! a scrape never asks the loop. What is dear to read is kept for a while ([`cache`]).
//! kube-proxy's names are in `proxy.rs`.

mod cache;
mod changes;
mod datapath;
mod exporter;
mod process;
mod proxy;
mod services;
mod source;
mod state;
mod text;

use std::sync::{Arc, OnceLock};

use prometheus_client::registry::Registry;

pub use datapath::Datapath;
pub use exporter::Exporter;
pub use proxy::ProxyMetrics;
pub use services::ServicePorts;
pub use source::SourceMetrics;
pub use state::{Sizes, StateMetrics};
pub use text::Format;

use crate::kernel::Readings;
pub use changes::{ChangeMetrics, Drift};

/// Everything that the agent's parts write into. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// What kube-proxy has too.
    pub proxy: ProxyMetrics,
    /// Changes on their way into the maps.
    pub changes: ChangeMetrics,
    /// How things are now.
    pub state: StateMetrics,
    /// Where objects come from.
    pub source: SourceMetrics,
    /// The maps, once there are any.
    pub maps: Arc<OnceLock<Readings>>,
    /// The names behind service numbers, where they are wanted.
    pub ports: ServicePorts,
}

impl Metrics {
    /// Those that are written; what is read belongs to the [`Exporter`].
    fn register(&self, registry: &mut Registry) {
        self.proxy.register(registry);
        self.changes.register(registry);
        self.state.register(registry);
        self.source.register(registry);
    }
}
