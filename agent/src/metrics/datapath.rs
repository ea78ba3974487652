//! What the programs count and how full the maps are, read when somebody asks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use datapath_common::{Group, Hook, Traffic, maps};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Metrics;
use super::cache::Cache;
use crate::kernel::counters::Count;
use crate::kernel::{Readings, TableError};
use crate::plan::PortKey;

/// Rows are counted no more often than that.
const COUNT_ROWS: Duration = Duration::from_secs(15);
/// Traffic is summed up no more often than that.
const SUM_TRAFFIC: Duration = Duration::from_secs(1);

/// The names behind service numbers, and the highest number; the loop keeps them. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct ServicePorts(Arc<Mutex<Ports>>);

#[derive(Debug, Default)]
struct Ports {
    last: u32,
    named: BTreeMap<u32, PortKey>,
}

impl ServicePorts {
    /// Sets the highest number that was ever given out.
    pub fn set_last(&self, last: u32) {
        self.lock().last = last;
    }

    /// Sets who has a number.
    pub fn set(&self, number: u32, port: Option<PortKey>) {
        match port {
            Some(port) => self.lock().named.insert(number, port),
            None => self.lock().named.remove(&number),
        };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ports> {
        // Nothing can panic while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    rows: Cache<Vec<(&'static str, u32)>>,
    traffic: Cache<Told>,
    totals: Totals,
    failures: u64,
}

/// Traffic by service number, and that of all.
#[derive(Clone, Debug, Default)]
struct Told {
    total: Traffic,
    each: BTreeMap<u32, Traffic>,
}

/// Sums that never fall, although rows begin anew for other service ports.
#[derive(Debug, Default)]
struct Totals {
    total: Traffic,
    last: Vec<Traffic>,
}

impl Totals {
    fn add(&mut self, number: u32, now: Traffic) {
        let at = number as usize;
        if self.last.len() <= at {
            self.last.resize(at + 1, Traffic::default());
        }
        let before = std::mem::replace(&mut self.last[at], now);
        let total = &mut self.total;
        for (sum, now, before) in [
            (&mut total.flows, now.flows, before.flows),
            (&mut total.packets, now.packets, before.packets),
            (&mut total.bytes, now.bytes, before.bytes),
            (
                &mut total.reply_packets,
                now.reply_packets,
                before.reply_packets,
            ),
            (&mut total.reply_bytes, now.reply_bytes, before.reply_bytes),
        ] {
            // Less than before: cleared meanwhile, and counted since.
            *sum += now.checked_sub(before).unwrap_or(now);
        }
    }
}

impl Datapath {
    /// Reads by the handles of `metrics`, once there are any.
    pub fn new(metrics: Metrics, each_service: bool) -> Self {
        Self {
            metrics,
            each_service,
            held: Mutex::new(Held {
                rows: Cache::new(COUNT_ROWS),
                traffic: Cache::new(SUM_TRAFFIC),
                totals: Totals::default(),
                failures: 0,
            }),
        }
    }

    fn maps(&self, held: &mut Held, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(readings) = self.metrics.maps.get() else {
            return Ok(());
        };
        if let Some(counts) = held.note(readings.counts()) {
            packets(&counts, to)?;
        }
        if let Some(sizes) = held.note(readings.sizes()) {
            let bytes = sizes.iter().map(|size| ([("map", size.map)], size.bytes));
            gauges(
                to,
                "tulle_map_memory_bytes",
                "Memory of a map, by the kernel's account.",
                bytes,
            )?;
            let fills = sizes.iter().filter(|size| {
                let numbered = [maps::SEGMENTS, maps::BACK_V4, maps::BACK_V6];
                readings.is_counted(size.map) || numbered.contains(&size.map)
            });
            let limits = fills.map(|size| ([("map", size.map)], u64::from(size.limit)));
            gauges(
                to,
                "tulle_map_max_entries",
                "Entries that a map has room for.",
                limits,
            )?;
        }
        if let Some(rows) = self.rows(held, readings) {
            let rows = rows.iter().map(|(map, rows)| ([("map", *map)], *rows));
            gauges(
                to,
                "tulle_map_entries",
                "Entries of a map that are in use.",
                rows,
            )?;
        }
        let told = self.traffic(held, readings);
        if let Some(told) = held.note(told) {
            all_services(&told.total, to)?;
            if self.each_service {
                self.services(&told.each, to)?;
            }
        }
        Ok(())
    }

    /// Rows of the maps that tell how full they are: those that the loop knows, and those that
    /// are counted.
    fn rows(&self, held: &mut Held, readings: &Readings) -> Option<Vec<(&'static str, u64)>> {
        let mut rows = self.metrics.state.known_rows();
        let counted =
            |map: &str| readings.is_counted(map) && ![maps::FLOW_V4, maps::FLOW_V6].contains(&map);
        let read = || {
            let maps = maps::ALL.iter().map(|info| info.name);
            let maps = maps.filter(|map| counted(map));
            maps.map(|map| Ok::<_, TableError>((map, readings.rows(map)?)))
                .collect()
        };
        let counted = held.rows.get(Instant::now, read);
        let counted = held.note(counted)?;
        rows.extend(
            counted
                .into_iter()
                .map(|(map, rows)| (map, u64::from(rows))),
        );
        Some(rows)
    }

    fn traffic(&self, held: &mut Held, readings: &Readings) -> Result<Told, TableError> {
        let Held {
            traffic, totals, ..
        } = held;
        let last = self.metrics.ports.lock().last;
        let read = || {
            let mut each = BTreeMap::new();
            readings.traffic(last, |number, traffic| {
                totals.add(number, traffic);
                if self.each_service {
                    each.insert(number, traffic);
                }
            })?;
            Ok(Told {
                total: totals.total,
                each,
            })
        };
        traffic.get(Instant::now, read)
    }

    fn services(
        &self,
        each: &BTreeMap<u32, Traffic>,
        to: &mut DescriptorEncoder<'_>,
    ) -> fmt::Result {
        let named = self.metrics.ports.lock().named.clone();
        let rows: Vec<([(&str, &str); 5], &Traffic)> = named
            .iter()
            .filter_map(|(number, port)| {
                let labels = [
                    ("namespace", &*port.service.namespace),
                    ("service", &*port.service.name),
                    ("port", port.port.as_str()),
                    ("protocol", port.protocol.name()),
                    ("ip_family", port.family.name()),
                ];
                Some((labels, each.get(number)?))
            })
            .collect();
        counters(
            to,
            "tulle_service_port_flows_opened",
            "Flows opened to a service port.",
            rows.iter()
                .map(|(labels, traffic)| (*labels, traffic.flows)),
        )?;
        let both = |of: fn(&Traffic) -> [u64; 2]| {
            rows.iter().flat_map(move |(labels, traffic)| {
                let [namespace, service, port, protocol, family] = *labels;
                DIRECTIONS
                    .into_iter()
                    .zip(of(traffic))
                    .map(move |(direction, count)| {
                        let direction = ("direction", direction);
                        let labels = [namespace, service, port, protocol, family, direction];
                        (labels, count)
                    })
            })
        };
        counters(
            to,
            "tulle_service_port_packets",
            "Packets of a service port.",
            both(|traffic| [traffic.packets, traffic.reply_packets]),
        )?;
        counters(
            to,
            "tulle_service_port_bytes",
            "Bytes of a service port, from the Ethernet header on.",
            both(|traffic| [traffic.bytes, traffic.reply_bytes]),
        )
    }
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

const DIRECTIONS: [&str; 2] = ["to_backend", "to_client"];

fn all_services(total: &Traffic, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let flows: [([(&str, &str); 0], u64); 1] = [([], total.flows)];
    counters(
        to,
        "tulle_service_flows_opened",
        "Flows opened to services.",
        flows.into_iter(),
    )?;
    let both = |counts: [u64; 2]| {
        let label = |direction| [("direction", direction)];
        DIRECTIONS.map(label).into_iter().zip(counts)
    };
    counters(
        to,
        "tulle_service_packets",
        "Packets of services.",
        both([total.packets, total.reply_packets]),
    )?;
    counters(
        to,
        "tulle_service_bytes",
        "Bytes of services, from the Ethernet header on.",
        both([total.bytes, total.reply_bytes]),
    )
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

const fn outcome(group: Group) -> &'static str {
    match group {
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
                ("outcome", outcome(count.reason.group())),
                ("reason", count.reason.label()),
            ];
            (labels, count.packets)
        }),
    )?;
    // By outcome alone: reasons of bytes would be as many series again.
    let mut bytes = BTreeMap::<(&str, &str, &str), u64>::new();
    let mut drops = BTreeMap::<(&str, &str, &str), u64>::new();
    for count in counts {
        let (way, what) = (direction(count.hook), outcome(count.reason.group()));
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

fn counters<L: EncodeLabelSet>(
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

fn gauges<L: EncodeLabelSet>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (L, u64)>,
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

    #[test]
    fn sums_never_fall() {
        let mut totals = Totals::default();
        let traffic = |flows| Traffic {
            flows,
            reply_bytes: 10 * flows,
            ..Traffic::default()
        };
        totals.add(3, traffic(5));
        totals.add(1, traffic(1));
        assert_eq!((totals.total.flows, totals.total.reply_bytes), (6, 60));
        totals.add(3, traffic(7));
        assert_eq!(totals.total.flows, 8);
        // Another port got the number meanwhile, and has two flows.
        totals.add(3, traffic(2));
        assert_eq!((totals.total.flows, totals.total.reply_bytes), (10, 100));
        totals.add(3, traffic(2));
        assert_eq!(totals.total.flows, 10);
    }
}
