//! Where objects come from, as the source itself tells it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use crate::model::Kind;
use crate::source::cluster::Gauges;

/// Kinds that an API server is always asked for.
const KINDS: [Kind; 4] = [
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::ServiceCidr,
];
/// Why watches begin anew: 0 before it has happened, not absent.
const REASONS: [&str; 9] = [
    "gone",
    "silent",
    "broken",
    "garbled",
    "unauthorized",
    "forbidden",
    "throttled",
    "server_error",
    "refused",
];

/// What is told of the source. Clones share it.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    connected: Gauge,
    /// When the last batch came, for sources that tell no more.
    heard: Arc<Mutex<Instant>>,
    /// An API server's.
    gauges: Arc<OnceLock<Arc<Gauges>>>,
}

impl Default for SourceMetrics {
    fn default() -> Self {
        Self {
            connected: Gauge::default(),
            heard: Arc::new(Mutex::new(Instant::now())),
            gauges: Arc::default(),
        }
    }
}

impl SourceMetrics {
    /// Tells what these gauges say, from now on.
    pub fn follow(&self, gauges: Arc<Gauges>) {
        // There is one source in the life of an agent.
        drop(self.gauges.set(gauges));
    }

    /// Sets whether nothing keeps the source from seeing changes.
    pub fn set_connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
    }

    /// A batch has come.
    pub fn heard(&self) {
        // Nothing can panic while it is held.
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long ago something was heard of each kind, where it ever was; a directory has no kinds.
    fn ages(&self) -> Vec<(&'static str, Duration)> {
        if let Some(gauges) = self.gauges.get() {
            let ages = gauges.ages();
            return ages
                .filter_map(|(kind, age)| Some((kind.name(), age?)))
                .collect();
        }
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        vec![("directory", heard.elapsed())]
    }

    fn restarts(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let kinds = KINDS.into_iter().map(Kind::name);
        let none = kinds.flat_map(|kind| REASONS.map(|reason| ((kind, reason), 0)));
        let mut restarts: BTreeMap<_, _> = none.collect();
        let known = self.gauges.get().map(|gauges| gauges.restarts());
        for ((kind, reason), count) in known.into_iter().flatten() {
            restarts.insert((kind.name(), reason), count);
        }
        restarts
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "tulle_source_connected",
            "1 while nothing keeps the agent from seeing changes",
            self.connected.clone(),
        );
        registry.register_collector(Box::new(Asked(self.clone())));
    }
}

/// What is as it is when somebody asks.
#[derive(Debug)]
struct Asked(SourceMetrics);

impl Collector for Asked {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut ages = encoder.encode_descriptor(
            "tulle_source_last_event_age_seconds",
            "Since something was heard of the source of objects.",
            None,
            MetricType::Gauge,
        )?;
        for (kind, age) in self.0.ages() {
            let age = ConstGauge::new(age.as_secs_f64());
            age.encode(ages.encode_family(&[("kind", kind)])?)?;
        }
        let mut restarts = encoder.encode_descriptor(
            "tulle_source_watch_restarts",
            "Lists and watches that failed and began anew.",
            None,
            MetricType::Counter,
        )?;
        for ((kind, reason), count) in self.0.restarts() {
            let labels = [("kind", kind), ("reason", reason)];
            ConstCounter::new(count).encode(restarts.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
