//! kube-proxy's metrics, by its names and with its buckets, where the meaning is the same (KP-160).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::registry::Registry;

use crate::model::{Family, Kind, Object};
use crate::source::Change;

/// A gauge of seconds.
pub(super) type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

/// One label with its value.
pub(super) type Label = [(&'static str, &'static str); 1];

/// The label of a family.
pub(super) const fn of(family: Family) -> Label {
    [("ip_family", family.name())]
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The handles.
#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    syncs: Labelled<Label, Histogram>,
    full: Labelled<Label, Histogram>,
    partial: Labelled<Label, Histogram>,
    last: Labelled<Label, Seconds>,
    queued: Labelled<Label, Seconds>,
    programming: Labelled<Label, Histogram>,
    slices: Counter,
    slices_pending: Gauge,
    services: Counter,
    services_pending: Gauge,
    no_local: Labelled<[(&'static str, &'static str); 2], Gauge>,
    healthz: Labelled<Label, Counter>,
    livez: Labelled<Label, Counter>,
}

/// From 1 ms on, 15 times twice as much.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// From a quarter of a second to five minutes.
fn programming_buckets() -> Histogram {
    Histogram::new(
        linear_buckets(0.25, 0.25, 2)
            .chain(linear_buckets(1.0, 1.0, 59))
            .chain(linear_buckets(60.0, 5.0, 12))
            .chain(linear_buckets(120.0, 30.0, 7)),
    )
}

impl Default for ProxyMetrics {
    fn default() -> Self {
        let metrics = Self {
            syncs: Labelled::new_with_constructor(sync_buckets),
            full: Labelled::new_with_constructor(sync_buckets),
            partial: Labelled::new_with_constructor(sync_buckets),
            last: Labelled::default(),
            queued: Labelled::default(),
            programming: Labelled::new_with_constructor(programming_buckets),
            slices: Counter::default(),
            slices_pending: Gauge::default(),
            services: Counter::default(),
            services_pending: Gauge::default(),
            no_local: Labelled::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
        };
        // What has not happened yet is 0, not absent.
        for family in FAMILIES {
            for histogram in [
                &metrics.syncs,
                &metrics.full,
                &metrics.partial,
                &metrics.programming,
            ] {
                drop(histogram.get_or_create(&of(family)));
            }
            drop(metrics.last.get_or_create(&of(family)));
            drop(metrics.queued.get_or_create(&of(family)));
        }
        for probes in [&metrics.healthz, &metrics.livez] {
            for code in [200, 503] {
                drop(probes.get_or_create(&answered(code)));
            }
        }
        metrics.set_no_local([[0; 2]; 2]);
        metrics
    }
}

impl ProxyMetrics {
    /// Changes have come that are not in the maps yet.
    pub fn came(&self, changes: &[Change]) {
        for change in changes {
            let kind = match change {
                Change::Apply(Object::Service(_)) => Kind::Service,
                Change::Apply(Object::Slice(_)) => Kind::EndpointSlice,
                Change::Delete(key) => key.kind,
                Change::Apply(_) | Change::Synced => continue,
            };
            let (seen, pending) = match kind {
                Kind::Service => (&self.services, &self.services_pending),
                Kind::EndpointSlice => (&self.slices, &self.slices_pending),
                Kind::Node | Kind::Pod | Kind::ServiceCidr => continue,
            };
            seen.inc();
            pending.inc();
        }
    }

    /// All that have come are in a plan that was carried out.
    pub fn planned(&self) {
        self.services_pending.set(0);
        self.slices_pending.set(0);
    }

    /// A run over what had changed. `full` if it was over everything.
    pub fn synced(&self, family: Family, full: bool, took: Duration) {
        let kind = if full { &self.full } else { &self.partial };
        for histogram in [&self.syncs, kind] {
            let histogram = histogram.get_or_create(&of(family));
            histogram.observe(took.as_secs_f64());
        }
    }

    /// Sets when a family's changes were asked for, and written, the last time.
    pub fn set_times(&self, family: Family, queued: Option<SystemTime>, last: Option<SystemTime>) {
        self.queued.get_or_create(&of(family)).set(unix(queued));
        self.last.get_or_create(&of(family)).set(unix(last));
    }

    /// A change of endpoints is in the maps, so long after what caused it.
    pub fn programmed(&self, family: Family, after: Duration) {
        let histogram = self.programming.get_or_create(&of(family));
        histogram.observe(after.as_secs_f64());
    }

    /// Sets how many service ports have usable endpoints, but none that their policy lets this node
    /// use: internal and external policy, for IPv4 and IPv6 each.
    pub fn set_no_local(&self, counts: [[usize; 2]; 2]) {
        for (policy, counts) in ["internal", "external"].into_iter().zip(counts) {
            for (family, count) in FAMILIES.into_iter().zip(counts) {
                let labels = [("traffic_policy", policy), ("ip_family", family.name())];
                let gauge = self.no_local.get_or_create(&labels);
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// `/healthz` was answered so.
    pub fn healthz(&self, status: u16) {
        self.healthz.get_or_create(&answered(status)).inc();
    }

    /// `/livez` was answered so.
    pub fn livez(&self, status: u16) {
        self.livez.get_or_create(&answered(status)).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let mut histogram = |name: &str, help: &str, metric: &Labelled<Label, Histogram>| {
            registry.register(name, help, metric.clone());
        };
        histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "Time of each run over changes",
            &self.syncs,
        );
        histogram(
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "Time of each run over all Services",
            &self.full,
        );
        histogram(
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "Time of each run over the Services that changed",
            &self.partial,
        );
        histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From what caused a change of endpoints, as its EndpointSlice says, to the last map write",
            &self.programming,
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When changes were written the last time",
            self.last.clone(),
        );
        registry.register(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "When changes came the last time",
            self.queued.clone(),
        );
        for (what, seen, pending) in [
            ("endpoint", &self.slices, &self.slices_pending),
            ("service", &self.services, &self.services_pending),
        ] {
            let name = format!("kubeproxy_sync_proxy_rules_{what}_changes");
            registry.register(&name, format!("Changes of {what}s that came"), seen.clone());
            registry.register(
                format!("{name}_pending"),
                format!("Changes of {what}s that no run has taken yet"),
                pending.clone(),
            );
        }
        registry.register(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local policy and endpoints, but none on this node",
            self.no_local.clone(),
        );
        registry.register(
            "kubeproxy_proxy_healthz",
            "Answers at /healthz",
            self.healthz.clone(),
        );
        registry.register(
            "kubeproxy_proxy_livez",
            "Answers at /livez",
            self.livez.clone(),
        );
    }
}

const fn answered(status: u16) -> Label {
    [("code", if status == 200 { "200" } else { "503" })]
}

/// Seconds since 1970; 0 for what never was.
pub(super) fn unix(time: Option<SystemTime>) -> f64 {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or(0.0, |since| since.as_secs_f64())
}
