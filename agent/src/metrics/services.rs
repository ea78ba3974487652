//! What services were sent and answered: in all, and by service port where that is asked for.
//!
//! A row of `tulle_svc_stats` is its owner's only. Who owns which number is taken from the loop before
//! the rows are read, and once more behind them: what changed hands meanwhile is told the next time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use datapath_common::Traffic;
use prometheus_client::encoding::DescriptorEncoder;

use super::datapath::counters;
use crate::kernel::{Readings, TableError};
use crate::plan::PortKey;

/// What a service port has counted is known for so long after it is gone: longer than Prometheus
/// looks back (5 min), so that one which comes back by then goes on and does not fall.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Service ports that are gone and remembered, at most.
const MOST_GONE: usize = 10_000;

/// Who got or lost a service number, and the highest one: the loop tells, a scrape takes. Clones
/// share it.
#[derive(Clone, Debug, Default)]
pub struct ServicePorts(Arc<Mutex<News>>);

#[derive(Debug, Default)]
struct News {
    /// The highest number that was ever given out; none before the first plan.
    last: Option<u32>,
    renamed: Renamed,
}

/// Numbers that changed hands, and whose they are now.
type Renamed = BTreeMap<u32, Option<Arc<PortKey>>>;

impl ServicePorts {
    /// After a run of the planner: the highest number that was ever given out, and those that
    /// somebody got or lost.
    pub fn tell(&self, last: u32, renamed: impl IntoIterator<Item = (u32, Option<PortKey>)>) {
        let mut news = self.lock();
        news.last = Some(last);
        let renamed = renamed.into_iter();
        news.renamed
            .extend(renamed.map(|(number, port)| (number, port.map(Arc::new))));
    }

    /// The loop never waits for more than this: texts are written from the taker's own.
    fn take(&self) -> (Option<u32>, Renamed) {
        let mut news = self.lock();
        (news.last, std::mem::take(&mut news.renamed))
    }

    /// Whether there has been a plan: before, some services have no number yet.
    pub(super) fn are_known(&self) -> bool {
        self.lock().last.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        // Nothing can panic while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a scrape tells. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Told {
    total: Traffic,
    each: Arc<[(Arc<PortKey>, Traffic)]>,
}

/// What is kept between readings.
#[derive(Debug, Default)]
pub(super) struct Services {
    total: Traffic,
    owners: BTreeMap<u32, Owner>,
    gone: HashMap<Arc<PortKey>, (Traffic, Instant)>,
}

/// A service port with a number.
#[derive(Debug)]
struct Owner {
    port: Arc<PortKey>,
    /// What it had counted under a former number.
    before: Traffic,
    told: Traffic,
    /// Whether there is a row of its number: the table may be shorter.
    counted: bool,
}

impl Services {
    /// Reads the rows of all service ports; `each`: keeps them apart.
    pub(super) fn read(
        &mut self,
        ports: &ServicePorts,
        readings: &Readings,
        each: bool,
    ) -> Result<Told, TableError> {
        let (last, renamed) = ports.take();
        self.rename(renamed, Instant::now());
        let (mut sum, mut rows) = (Traffic::default(), Vec::new());
        readings.traffic(last.unwrap_or(0), |number, traffic| {
            sum = sum.plus(&traffic);
            if each && self.owners.contains_key(&number) {
                rows.push((number, traffic));
            }
        })?;
        let changed = self.rename(ports.take().1, Instant::now());
        self.take_in(&sum, rows, &changed);
        let told = |owner: &Owner| (Arc::clone(&owner.port), owner.told);
        Ok(Told {
            total: self.total,
            each: self.counted().map(told).collect(),
        })
    }

    fn counted(&self) -> impl Iterator<Item = &Owner> {
        self.owners.values().filter(|owner| owner.counted)
    }

    /// What was read, but of those whose number `changed` hands meanwhile.
    fn take_in(&mut self, sum: &Traffic, rows: Vec<(u32, Traffic)>, changed: &BTreeSet<u32>) {
        // A row that is moved while the table is read may be missed once.
        self.total = self.total.combined(sum, u64::max);
        for (number, row) in rows {
            if let Some(owner) = self.owners.get_mut(&number)
                && !changed.contains(&number)
            {
                let now = owner.before.plus(&row);
                owner.told = owner.told.combined(&now, u64::max);
                owner.counted = true;
            }
        }
    }

    /// Numbers have other owners. Says which.
    fn rename(&mut self, renamed: Renamed, now: Instant) -> BTreeSet<u32> {
        let mut changed = BTreeSet::new();
        let mut fresh = Vec::new();
        // All go before any comes: a port may have got another number.
        for (number, port) in renamed {
            let owner = self.owners.get(&number);
            if owner.map(|owner| &owner.port) == port.as_ref() {
                continue;
            }
            changed.insert(number);
            if let Some(owner) = self.owners.remove(&number) {
                self.gone.insert(owner.port, (owner.told, now));
            }
            fresh.extend(port.map(|port| (number, port)));
        }
        for (number, port) in fresh {
            let before = self.gone.remove(&port);
            let before = before.map_or_else(Traffic::default, |(told, _)| told);
            let owner = Owner {
                port,
                before,
                told: before,
                counted: false,
            };
            self.owners.insert(number, owner);
        }
        if self.gone.len() > MOST_GONE {
            self.gone.clear();
        }
        self.gone
            .retain(|_, (_, since)| now.saturating_duration_since(*since) < REMEMBERED);
        changed
    }
}

impl Told {
    /// The traffic of all, and with `each` that of each service port.
    pub(super) fn encode(&self, each: bool, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        all_services(&self.total, to)?;
        if each { self.services(to) } else { Ok(()) }
    }

    fn services(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows: Vec<([(&str, &str); 5], &Traffic)> = self
            .each
            .iter()
            .map(|(port, traffic)| {
                let labels = [
                    ("namespace", &*port.service.namespace),
                    ("service", &*port.service.name),
                    ("port", port.port.as_str()),
                    ("protocol", port.protocol.name()),
                    ("ip_family", port.family.name()),
                ];
                (labels, traffic)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, NamespacedName, Protocol};

    fn port(name: &str) -> PortKey {
        PortKey {
            service: NamespacedName::new("shop", name),
            port: String::new(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        }
    }

    fn traffic(flows: u64) -> Traffic {
        Traffic {
            flows,
            reply_bytes: 10 * flows,
            ..Traffic::default()
        }
    }

    /// A scrape that reads these rows, while `meanwhile` changes hands.
    fn scrape(
        services: &mut Services,
        ports: &ServicePorts,
        rows: &[(u32, u64)],
        meanwhile: &[(u32, Option<PortKey>)],
    ) -> (u64, BTreeMap<String, u64>) {
        let now = Instant::now();
        services.rename(ports.take().1, now);
        let sum = rows.iter().map(|(_, flows)| flows).sum();
        let owned = rows
            .iter()
            .map(|(number, flows)| (*number, traffic(*flows)));
        ports.tell(9, meanwhile.iter().cloned());
        let changed = services.rename(ports.take().1, now);
        services.take_in(&traffic(sum), owned.collect(), &changed);
        let name = |owner: &Owner| (owner.port.service.name.to_string(), owner.told.flows);
        assert_eq!(services.total.reply_bytes, 10 * services.total.flows);
        (services.total.flows, services.counted().map(name).collect())
    }

    fn told(of: &[(&str, u64)]) -> BTreeMap<String, u64> {
        of.iter()
            .map(|(name, n)| ((*name).to_owned(), *n))
            .collect()
    }

    #[test]
    fn the_next_owner_of_a_number_begins_at_nothing() {
        let (mut services, ports) = (Services::default(), ServicePorts::default());
        assert!(!ports.are_known());
        ports.tell(9, [(3, Some(port("old"))), (4, Some(port("stays")))]);
        assert!(ports.are_known());
        let rows = [(3, 500), (4, 7)];
        let seen = scrape(&mut services, &ports, &rows, &[]);
        assert_eq!(seen, (507, told(&[("old", 500), ("stays", 7)])));
        // The row was read before it was cleared, and told of after it was given away.
        let meanwhile = [(3, Some(port("new")))];
        let seen = scrape(&mut services, &ports, &[(3, 501), (4, 8)], &meanwhile);
        assert_eq!(seen, (509, told(&[("stays", 8)])));
        let seen = scrape(&mut services, &ports, &[(0, 501), (3, 2), (4, 8)], &[]);
        assert_eq!(seen, (511, told(&[("new", 2), ("stays", 8)])));
        ports.tell(9, [(3, None)]);
        let seen = scrape(&mut services, &ports, &[(0, 501), (3, 2), (4, 8)], &[]);
        assert_eq!(seen, (511, told(&[("stays", 8)])));
    }

    #[test]
    fn nothing_falls_while_the_process_lives() {
        let (mut services, ports) = (Services::default(), ServicePorts::default());
        ports.tell(9, [(5, Some(port("web")))]);
        assert_eq!(scrape(&mut services, &ports, &[(5, 40)], &[]).0, 40);
        // Row 0 was read before the agent moved 5 there, and 5 after it.
        let seen = scrape(&mut services, &ports, &[(0, 0), (5, 0)], &[]);
        assert_eq!(seen, (40, told(&[("web", 40)])));
        // Deleted and made again: the same series, under a lower number.
        ports.tell(9, [(2, Some(port("web"))), (5, None)]);
        let seen = scrape(&mut services, &ports, &[(0, 40), (2, 1)], &[]);
        assert_eq!(seen, (41, told(&[("web", 41)])));
        ports.tell(9, [(2, None)]);
        assert_eq!(scrape(&mut services, &ports, &[(0, 41)], &[]).1, told(&[]));
        ports.tell(9, [(2, Some(port("web"))), (9, Some(port("uncounted")))]);
        let seen = scrape(&mut services, &ports, &[(0, 41), (2, 0)], &[]);
        assert_eq!(seen.1, told(&[("web", 41)]), "9 is beyond the table");
        // What was there long ago is forgotten.
        ports.tell(9, [(2, None)]);
        scrape(&mut services, &ports, &[(0, 41)], &[]);
        services.rename(BTreeMap::new(), Instant::now() + REMEMBERED);
        assert!(services.gone.is_empty());
    }

    #[test]
    fn a_port_that_keeps_its_number_goes_on() {
        let (mut services, ports) = (Services::default(), ServicePorts::default());
        ports.tell(9, [(5, Some(port("web")))]);
        scrape(&mut services, &ports, &[(5, 40)], &[]);
        ports.tell(9, [(5, None)]);
        ports.tell(9, [(5, Some(port("web")))]);
        let seen = scrape(&mut services, &ports, &[(5, 41)], &[]);
        assert_eq!(seen.1, told(&[("web", 41)]));
    }
}
