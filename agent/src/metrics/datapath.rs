//! What the programs count and how full the maps are, read when somebody asks, and kept for a while.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use datapath_common::{Group, Hook, Reason, maps};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, EncodeMetric,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Metrics;
use super::cache::Cache;
use super::services::{Services, Told};
use crate::kernel::counters::Count;
use crate::kernel::{Readings, Size, TableError};

/// Rows, and memory of maps, are counted no more often than that.
const COUNT_ROWS: Duration = Duration::from_secs(15);
/// Counters of programs and traffic of services are summed up no more often than that: less than a
/// second, so that who asks each second has new figures each time, and a second one asks for nothing.
const SUM_UP: Duration = Duration::from_millis(900);

/// The collector.
#[derive(Debug)]
pub struct Datapath {
    metrics: Metrics,
    /// Whether each service port's traffic is told.
    each_service: bool,
    held: Mutex<Held>,
}

/// What is kept between scrapes.
#[derive(Debug)]
struct Held {
    counts: Cache<Arc<[Count]>>,
    sizes: Cache<Arc<[Size]>>,
    rows: Cache<Arc<[(&'static str, u32)]>>,
    traffic: Cache<Told>,
    services: Services,
    failures: u64,
}

impl Datapath {
    /// Reads by the handles of `metrics`, once there are any.
    pub fn new(metrics: Metrics, each_service: bool) -> Self {
        Self {
            metrics,
            each_service,
            held: Mutex::new(Held {
                counts: Cache::new(SUM_UP),
                sizes: Cache::new(COUNT_ROWS),
                rows: Cache::new(COUNT_ROWS),
                traffic: Cache::new(SUM_UP),
                services: Services::default(),
                failures: 0,
            }),
        }
    }

    fn maps(&self, held: &mut Held, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(readings) = self.metrics.maps.get() else {
            return Ok(());
        };
        let counts = held
            .counts
            .get(Instant::now, || Ok(readings.counts()?.into()));
        if let Some(counts) = held.note(counts) {
            packets(&counts, to)?;
        }
        let sizes = held
            .sizes
            .get(Instant::now, || Ok(readings.sizes()?.into()));
        if let Some(sizes) = held.note(sizes) {
            self.fill(held, readings, &sizes, to)?;
        }
        // Before the first plan some services have no number, and their traffic would be missing.
        if self.metrics.ports.are_known() {
            let Held {
                traffic, services, ..
            } = &mut *held;
            let read = || services.read(&self.metrics.ports, readings, self.each_service);
            let told = traffic.get(Instant::now, read);
            if let Some(told) = held.note(told) {
                told.encode(self.each_service, to)?;
            }
        }
        ages(held, to)
    }

    /// How large the maps are, and how full those that tell it.
    fn fill(
        &self,
        held: &mut Held,
        readings: &Readings,
        sizes: &[Size],
        to: &mut DescriptorEncoder<'_>,
    ) -> fmt::Result {
        let bytes = sizes.iter().map(|size| ([("map", size.map)], size.bytes));
        gauges(
            to,
            "tulle_map_memory_bytes",
            "Memory of a map, by the kernel's account.",
            bytes,
        )?;
        let numbered = [maps::SEGMENTS, maps::BACK_V4, maps::BACK_V6];
        let fills = |size: &&Size| size.counted || numbered.contains(&size.map);
        let fills: BTreeMap<&str, &Size> = sizes
            .iter()
            .filter(fills)
            .map(|size| (size.map, size))
            .collect();
        let labels = |size: &Size| [("map", size.map), ("when_full", when_full(size))];
        let limits = fills.values();
        let limits = limits.map(|size| (labels(size), u64::from(size.limit)));
        gauges(
            to,
            "tulle_map_max_entries",
            "Entries that a map has room for.",
            limits,
        )?;
        // Rows of those that the loop knows, and of those that are counted.
        let mut rows = self.metrics.state.known_rows();
        let read = || {
            let walked = [maps::FLOW_V4, maps::FLOW_V6];
            let counted = sizes.iter().filter(|size| size.counted);
            let counted = counted.filter(|size| !walked.contains(&size.map));
            let count = |size: &Size| Ok::<_, TableError>((size.map, readings.rows(size.map)?));
            counted.map(count).collect()
        };
        let counted = held.rows.get(Instant::now, read);
        let Some(counted) = held.note(counted) else {
            return Ok(());
        };
        let counted = counted.iter();
        rows.extend(counted.map(|(map, rows)| (*map, u64::from(*rows))));
        let rows = rows
            .iter()
            .filter_map(|(map, rows)| Some((labels(fills.get(map)?), *rows)));
        gauges(
            to,
            "tulle_map_entries",
            "Entries of a map that are in use.",
            rows,
        )
    }
}

/// What becomes of a row that a full map is to take: an LRU table is full as a matter of course.
const fn when_full(size: &Size) -> &'static str {
    if size.evicts { "evicts" } else { "refuses" }
}

/// How old the figures are.
fn ages(held: &Held, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let now = Instant::now();
    let ages = [
        ("packets", held.counts.age(now)),
        ("memory", held.sizes.age(now)),
        ("entries", held.rows.age(now)),
        ("services", held.traffic.age(now)),
    ];
    let ages = ages
        .into_iter()
        .filter_map(|(what, age)| Some(([("what", what)], age?.as_secs_f64())));
    gauges(
        to,
        "tulle_reading_age_seconds",
        "Since what is told of the maps was read from them.",
        ages,
    )
}

impl Held {
    /// Counts what cannot be read; the rest is told all the same.
    fn note<T>(&mut self, read: Result<T, TableError>) -> Option<T> {
        read.inspect_err(|error| {
            self.failures += 1;
            tracing::warn!("a scrape lacks a part: {error}");
        })
        .ok()
    }
}

impl Collector for Datapath {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.maps(&mut held, &mut encoder)?;
        let failures = [([("what", "maps")], held.failures)];
        counters(
            &mut encoder,
            "tulle_scrape_failures",
            "Parts of scrapes that could not be read.",
            failures.into_iter(),
        )
    }
}

/// Which way packets of a hook go, seen from the node.
pub(super) const fn direction(hook: Hook) -> &'static str {
    match hook {
        Hook::PodFrom => "from_pod",
        Hook::PodTo => "to_pod",
        Hook::NicIn | Hook::Xdp => "from_network",
        Hook::NicOut => "to_network",
    }
}

/// What became of it. What `tulle_xdp` lets through meets `tulle_nic_in` next, which counts it once
/// more: it has a word of its own, or sums over the programs of a direction would have it twice.
const fn outcome(hook: Hook, reason: Reason) -> &'static str {
    if matches!(hook, Hook::Xdp)
        && (matches!(reason.group(), Group::Passed) || matches!(reason, Reason::Decapsulated))
    {
        return "handed_on";
    }
    match reason.group() {
        Group::Passed => "passed",
        Group::Forwarded => "forwarded",
        Group::Refused => "refused",
        Group::Dropped => "dropped",
    }
}

fn packets(counts: &[Count], to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    counters(
        to,
        "tulle_packets",
        "Packets that left a program, by what became of them.",
        counts.iter().map(|count| {
            let labels = [
                ("program", count.hook.name()),
                ("direction", direction(count.hook)),
                ("outcome", outcome(count.hook, count.reason)),
                ("reason", count.reason.label()),
            ];
            (labels, count.packets)
        }),
    )?;
    // By outcome alone: reasons of bytes would be as many series again.
    let mut bytes = BTreeMap::<(&str, &str, &str), u64>::new();
    let mut drops = BTreeMap::<(&str, &str, &str), u64>::new();
    for count in counts {
        let what = outcome(count.hook, count.reason);
        let way = direction(count.hook);
        *bytes.entry((count.hook.name(), way, what)).or_default() += count.bytes;
        if count.reason.group().is_loss() {
            let label = count.reason.label();
            *drops.entry((way, what, label)).or_default() += count.packets;
        }
    }
    counters(
        to,
        "tulle_bytes",
        "Bytes of packets that left a program, from the Ethernet header on.",
        bytes.into_iter().map(|((program, direction, outcome), n)| {
            let labels = [
                ("program", program),
                ("direction", direction),
                ("outcome", outcome),
            ];
            (labels, n)
        }),
    )?;
    counters(
        to,
        "tulle_drops",
        "Packets that were dropped, or refused with an answer.",
        drops.into_iter().map(|((direction, outcome, reason), n)| {
            let labels = [
                ("direction", direction),
                ("outcome", outcome),
                ("reason", reason),
            ];
            (labels, n)
        }),
    )
}

pub(super) fn counters<L: EncodeLabelSet>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, count) in rows {
        ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges<L: EncodeLabelSet, N: EncodeGaugeValue>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (L, N)>,
) -> fmt::Result {
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows {
        ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes in is in one sum once, whether XDP is there or not.
    #[test]
    fn each_direction_has_a_packet_once() {
        let met = [
            // Taken out of the overlay by XDP, then delivered; not ours to either.
            (Hook::Xdp, Reason::Decapsulated),
            (Hook::NicIn, Reason::DeliveredLocal),
            (Hook::Xdp, Reason::NotOurs),
            (Hook::NicIn, Reason::NotOurs),
            // Sent on or dropped at once.
            (Hook::Xdp, Reason::Encapsulated),
            (Hook::Xdp, Reason::UnknownNode),
        ];
        let outcomes = met.map(|(hook, reason)| {
            assert_eq!(direction(hook), "from_network");
            outcome(hook, reason)
        });
        let whole = [
            "handed_on",
            "forwarded",
            "handed_on",
            "passed",
            "forwarded",
            "dropped",
        ];
        assert_eq!(outcomes, whole);
        assert_eq!(outcome(Hook::PodFrom, Reason::NotOurs), "passed");
    }
}
