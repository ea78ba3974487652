//! Two readings become rows with rates.
//!
//! A rate is there only where both readings are of the same thing, counted in the same map, and no
//! counter fell: what was given a number that another had is not charged with the other's packets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use datapath_common::{Group, Hook, Traffic as Counters};
use serde::{Deserialize, Serialize};

use crate::drops;
use crate::format;
use crate::names::service_text;
use crate::tables::{CounterRow, MapUsage};
use crate::top::sample::{Agent, BackendId, BackendSample, Part, Sample, ServiceSample};
use crate::traffic::Traffic;

/// What a page shows, after two readings.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct View {
    /// When the second reading was finished, in nanoseconds since 1970-01-01 UTC.
    pub unix_nanos: u64,
    /// Seconds between the two readings of the programs' counters; absent after the first.
    pub between_secs: Option<f64>,
    /// How long the second reading took, in microseconds.
    pub reading_micros: u64,
    /// What the agent says.
    pub agent: Agent,
    /// Rates of all services together, as far as they are counted.
    pub all_services: Option<Rates>,
    /// Packets by program.
    pub hooks: Vec<HookRow>,
    /// Service ports, by number.
    pub services: Vec<ServiceRow>,
    /// Backends, by family and id.
    pub backends: Vec<BackendRow>,
    /// Losses by reason and program.
    pub drops: Vec<DropRow>,
    /// Maps, in the order of the layouts.
    pub maps: Vec<MapUsage>,
    /// Seconds since the maps' rows were counted.
    pub maps_age_secs: f64,
    /// What could not be read, and why.
    pub faults: Vec<String>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// Numbers for each second of a service port or a backend.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    /// New flows.
    pub flows: f64,
    /// Packets from clients.
    pub packets: f64,
    /// Their bits, from the Ethernet header on.
    pub bits: f64,
    /// Packets to clients.
    pub reply_packets: f64,
    /// Their bits.
    pub reply_bits: f64,
}

/// A program at a hook.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HookRow {
    /// The program's name without its prefix.
    pub hook: String,
    /// Packets and bits for each second; absent where there is no rate.
    pub rates: Option<HookRates>,
    /// Packets since the maps were made.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

/// Numbers for each second of a program.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct HookRates {
    /// Packets.
    pub packets: f64,
    /// Their bits.
    pub bits: f64,
    /// Packets that the datapath forwarded.
    pub forwarded: f64,
    /// Packets that were left to the kernel.
    pub passed: f64,
    /// Packets that were dropped or refused, or counted under a number that this program does not know.
    pub lost: f64,
}

/// A service port.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ServiceRow {
    /// `namespace/name:port`; absent if the agent has not told it.
    pub service: Option<String>,
    /// Number of the service port.
    pub number: u32,
    /// Addresses and ports that clients use.
    pub frontends: Vec<SocketAddr>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Backends that any client may be given.
    pub backends: u64,
    /// Numbers for each second; absent where there is no rate.
    pub rates: Option<Rates>,
    /// Totals; absent if it is not counted.
    pub traffic: Option<Traffic>,
}

impl ServiceRow {
    /// The name, or the number and the first address.
    pub fn label(&self) -> String {
        match (&self.service, self.frontends.first()) {
            (None, Some(frontend)) => format!("#{} {frontend} {}", self.number, self.protocol),
            (name, _) => service_text(name.as_deref(), self.number),
        }
    }
}

/// A backend.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BackendRow {
    /// Address family: 4 or 6.
    pub family: u8,
    /// Backend id.
    pub id: u32,
    /// Generation of the row.
    pub generation: u32,
    /// Address and port.
    pub address: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `active` or `draining`.
    pub state: String,
    /// Numbers of its services.
    pub numbers: Vec<u32>,
    /// Their names, or `#number`.
    pub services: Vec<String>,
    /// Numbers for each second; absent where there is no rate.
    pub rates: Option<Rates>,
    /// Totals since its id was first used, by whichever backend; absent if it is not counted.
    pub traffic: Option<Traffic>,
}

impl BackendRow {
    /// Family, id and generation.
    pub const fn key(&self) -> BackendId {
        (self.family, self.id, self.generation)
    }
}

/// A loss: a reason at a program.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DropRow {
    /// The reason's label, as in metrics.
    pub reason: String,
    /// `dropped`, `refused` or `unknown`.
    pub group: String,
    /// The program's name without its prefix.
    pub hook: String,
    /// Packets for each second; absent where there is no rate.
    pub packets_per_second: Option<f64>,
    /// Packets since the maps were made.
    pub packets: u64,
    /// Their bytes from the Ethernet header on.
    pub bytes: u64,
    /// What it means.
    pub what: String,
    /// What to do about it; empty if there is nothing to do.
    pub next_step: String,
}

impl View {
    /// What changed from one reading to the next one.
    pub fn new(before: Option<&Sample>, now: &Sample) -> Self {
        let services = services(before.map(|b| &b.services), &now.services);
        let labels: HashMap<u32, String> = services
            .iter()
            .map(|row| (row.number, service_text(row.service.as_deref(), row.number)))
            .collect();
        let counted = before.and_then(|before| between(&before.counters, &now.counters));
        Self {
            unix_nanos: now.unix_nanos,
            between_secs: counted.map(|time| time.as_secs_f64()),
            reading_micros: now.took.as_micros() as u64,
            agent: now.agent.clone(),
            all_services: sum(&services),
            hooks: hooks(before.map(|b| &b.counters), &now.counters),
            backends: backends(before.map(|b| &b.backends), &now.backends, &labels),
            services,
            drops: losses(before.map(|b| &b.counters), &now.counters),
            maps: now.maps.clone(),
            maps_age_secs: now.maps_age.as_secs_f64(),
            faults: now.faults.clone(),
            notes: now.notes.clone(),
        }
    }

    /// Whether no map could be read.
    pub fn is_blind(&self) -> bool {
        self.maps.is_empty() && self.hooks.is_empty() && !self.faults.is_empty()
    }
}

/// The time between two readings that rates can be taken from: both were made, of the same maps.
fn between<T>(before: &Part<T>, now: &Part<T>) -> Option<Duration> {
    let same = !now.maps.is_empty() && before.maps == now.maps;
    let time = now.at.checked_sub(before.at)?;
    (same && !time.is_zero()).then_some(time)
}

/// For each second; `None` if the counter fell.
fn per_second(before: u64, now: u64, secs: f64) -> Option<f64> {
    Some(now.checked_sub(before)? as f64 / secs)
}

fn rates(before: &Counters, now: &Counters, time: Duration) -> Option<Rates> {
    let secs = time.as_secs_f64();
    Some(Rates {
        flows: per_second(before.flows, now.flows, secs)?,
        packets: per_second(before.packets, now.packets, secs)?,
        bits: per_second(before.bytes, now.bytes, secs)? * 8.0,
        reply_packets: per_second(before.reply_packets, now.reply_packets, secs)?,
        reply_bits: per_second(before.reply_bytes, now.reply_bytes, secs)? * 8.0,
    })
}

fn sum(services: &[ServiceRow]) -> Option<Rates> {
    let rates = services.iter().filter_map(|row| row.rates);
    rates.reduce(|sum, one| Rates {
        flows: sum.flows + one.flows,
        packets: sum.packets + one.packets,
        bits: sum.bits + one.bits,
        reply_packets: sum.reply_packets + one.reply_packets,
        reply_bits: sum.reply_bits + one.reply_bits,
    })
}

fn services(before: Option<&Part<ServiceSample>>, now: &Part<ServiceSample>) -> Vec<ServiceRow> {
    let time = before.and_then(|before| between(before, now));
    let earlier: HashMap<u32, &ServiceSample> = before
        .iter()
        .flat_map(|before| &before.rows)
        .map(|row| (row.number, row))
        .collect();
    let row = |row: &ServiceSample| {
        let before = earlier.get(&row.number).filter(|before| row.is(before));
        let before = before.and_then(|before| before.traffic.as_ref());
        let proto = row.frontends.first().map_or(0, |(_, proto)| *proto);
        ServiceRow {
            service: row.name.clone(),
            number: row.number,
            frontends: row.frontends.iter().map(|(addr, _)| *addr).collect(),
            protocol: format::protocol(proto).into_owned(),
            backends: row.backends,
            rates: before
                .zip(row.traffic.as_ref())
                .zip(time)
                .and_then(|((before, now), time)| rates(before, now, time)),
            traffic: row.traffic.map(Traffic::from),
        }
    };
    now.rows.iter().map(row).collect()
}

fn backends(
    before: Option<&Part<BackendSample>>,
    now: &Part<BackendSample>,
    labels: &HashMap<u32, String>,
) -> Vec<BackendRow> {
    let time = before.and_then(|before| between(before, now));
    let earlier: HashMap<BackendId, &BackendSample> = before
        .iter()
        .flat_map(|before| &before.rows)
        .map(|row| (row.id, row))
        .collect();
    let row = |row: &BackendSample| {
        let before = earlier.get(&row.id).filter(|before| row.is(before));
        let before = before.and_then(|before| before.traffic.as_ref());
        let label = |number: &u32| {
            let label = labels.get(number);
            label.map_or_else(|| service_text(None, *number), Clone::clone)
        };
        let (family, id, generation) = row.id;
        BackendRow {
            family,
            id,
            generation,
            address: row.addr,
            protocol: format::protocol(row.proto).into_owned(),
            state: row.state.into(),
            numbers: row.services.clone(),
            services: row.services.iter().map(label).collect(),
            rates: before
                .zip(row.traffic.as_ref())
                .zip(time)
                .and_then(|((before, now), time)| rates(before, now, time)),
            traffic: row.traffic.map(Traffic::from),
        }
    };
    now.rows.iter().map(row).collect()
}

/// Rows of all programs, none if the counters could not be read.
fn hooks(before: Option<&Part<CounterRow>>, now: &Part<CounterRow>) -> Vec<HookRow> {
    if now.maps.is_empty() {
        return Vec::new();
    }
    let time = before.and_then(|before| between(before, now));
    let of = |part: &Part<CounterRow>, hook: Hook| {
        let mut sums = HookSums::default();
        part.rows
            .iter()
            .filter(|row| row.hook == hook)
            .for_each(|row| sums.add(row));
        sums
    };
    let row = |hook: Hook| {
        let sums = of(now, hook);
        let rates = before.zip(time).and_then(|(before, time)| {
            let (before, secs) = (of(before, hook), time.as_secs_f64());
            Some(HookRates {
                packets: per_second(before.packets, sums.packets, secs)?,
                bits: per_second(before.bytes, sums.bytes, secs)? * 8.0,
                forwarded: per_second(before.forwarded, sums.forwarded, secs)?,
                passed: per_second(before.passed, sums.passed, secs)?,
                lost: per_second(before.lost, sums.lost, secs)?,
            })
        });
        HookRow {
            hook: hook.name().into(),
            rates,
            packets: sums.packets,
            bytes: sums.bytes,
        }
    };
    Hook::ALL.into_iter().map(row).collect()
}

#[derive(Clone, Copy, Default)]
struct HookSums {
    packets: u64,
    bytes: u64,
    forwarded: u64,
    passed: u64,
    lost: u64,
}

impl HookSums {
    const fn add(&mut self, row: &CounterRow) {
        let part = match row.known() {
            Some(reason) => match reason.group() {
                Group::Forwarded => &mut self.forwarded,
                Group::Passed => &mut self.passed,
                Group::Refused | Group::Dropped => &mut self.lost,
            },
            None => &mut self.lost,
        };
        *part += row.packets;
        self.packets += row.packets;
        self.bytes += row.bytes;
    }
}

fn losses(before: Option<&Part<CounterRow>>, now: &Part<CounterRow>) -> Vec<DropRow> {
    let time = before.and_then(|before| between(before, now));
    let row = |row: &CounterRow| {
        let explained = drops::explain(row);
        let rate = before.zip(time).and_then(|(before, time)| {
            let same = |old: &&CounterRow| old.hook == row.hook && old.reason == row.reason;
            // Rows that are zero are not read.
            let earlier = before.rows.iter().find(same).map_or(0, |old| old.packets);
            per_second(earlier, row.packets, time.as_secs_f64())
        });
        DropRow {
            reason: explained.reason,
            group: explained.group,
            hook: row.hook.name().into(),
            packets_per_second: rate,
            packets: row.packets,
            bytes: row.bytes,
            what: explained.what,
            next_step: explained.next_step,
        }
    };
    let lost = now.rows.iter().filter(|row| drops::is_loss(row));
    lost.map(row).collect()
}

#[cfg(test)]
#[path = "../tests/top_view.rs"]
mod tests;
