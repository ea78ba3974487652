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
#[derive(Clone, Debug, Default)]
pub struct SourceMetrics {
    connected: Gauge,
    /// When the last batch came, if one did.
    heard: Arc<Mutex<Option<Instant>>>,
    /// An API server's.
    gauges: Arc<OnceLock<Arc<Gauges>>>,
}

impl SourceMetrics {
    /// Tells what these gauges say, from now on.
    pub fn follow(&self, gauges: Arc<Gauges>) {
        // There is one source in the life of an agent.
        drop(self.gauges.set(gauges));
    }

    /// Sets whether something keeps the source from seeing changes. It sees none before the first
    /// batch, which holds everything, has come.
    pub fn set_lost(&self, lost: bool) {
        let connected = !lost && self.last().is_some();
        self.connected.set(i64::from(connected));
    }

    /// A batch has come.
    pub fn heard(&self) {
        // Nothing can panic while it is held.
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn last(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago something was heard of each kind, where it ever was; a directory has no kinds.
    fn ages(&self) -> Vec<(&'static str, Duration)> {
        if let Some(gauges) = self.gauges.get() {
            let ages = gauges.ages();
            return ages
                .filter_map(|(kind, age)| Some((kind.name(), age?)))
                .collect();
        }
        let heard = self.last().map(|last| ("directory", last.elapsed()));
        heard.into_iter().collect()
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

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    /// Samples of a metric.
    fn samples(metrics: &SourceMetrics, name: &str) -> Vec<String> {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let of = text.lines().filter(|line| line.starts_with(name));
        of.map(str::to_owned).collect()
    }

    const AGE: &str = "tulle_source_last_event_age_seconds";
    const CONNECTED: &str = "tulle_source_connected";

    #[test]
    fn before_the_first_contact_there_is_no_age_and_no_connection() {
        let metrics = SourceMetrics::default();
        let connected = |is: u8| vec![format!("{CONNECTED} {is}")];
        assert_eq!(samples(&metrics, CONNECTED), connected(0));
        // Nobody has complained yet; nor has anybody said a word.
        metrics.set_lost(false);
        assert_eq!(samples(&metrics, CONNECTED), connected(0));
        assert_eq!(samples(&metrics, AGE), [""; 0]);
        metrics.heard();
        metrics.set_lost(false);
        assert_eq!(samples(&metrics, CONNECTED), connected(1));
        let ages = samples(&metrics, AGE);
        assert!(
            ages.len() == 1 && ages[0].contains("{kind=\"directory\"} 0."),
            "{ages:?}"
        );
        metrics.set_lost(true);
        assert_eq!(samples(&metrics, CONNECTED), connected(0));
    }

    #[test]
    fn each_kind_of_an_api_server_has_its_age_once_it_was_heard_of() {
        let metrics = SourceMetrics::default();
        let gauges = Arc::new(Gauges::new(KINDS));
        metrics.follow(Arc::clone(&gauges));
        assert_eq!(samples(&metrics, AGE), [""; 0]);
        gauges.heard(Kind::Node);
        let ages = samples(&metrics, AGE);
        assert!(
            ages.len() == 1 && ages[0].contains("{kind=\"Node\"} 0."),
            "{ages:?}"
        );
    }
}
