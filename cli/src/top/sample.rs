//! One reading of the maps, joined: what `tulle top` takes rates from.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use datapath_common::Traffic;
use serde::{Deserialize, Serialize};

use crate::datapath::TrafficById;
use crate::services::ids_of;
use crate::tables::{BackendRow, CounterRow, FrontendRow, MapUsage, family};
use crate::top::names::ServiceNames;

/// A backend's address family, id and generation. No two backends ever have all three.
pub type BackendId = (u8, u32, u32);
/// Numbers of the services that may use a backend, by its family and id.
pub type Users = HashMap<(u8, u32), Vec<u32>>;
/// Numbers of the services that each backend belongs to.
pub type Owners = HashMap<BackendId, Vec<u32>>;

/// One reading.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// When it was finished, in nanoseconds since 1970-01-01 UTC.
    pub unix_nanos: u64,
    /// How long it took.
    pub took: Duration,
    /// What the agent says.
    pub agent: Agent,
    /// What the reader should know besides.
    pub notes: Vec<String>,
    /// What could not be read, and why.
    pub faults: Vec<String>,
    /// Service ports.
    pub services: Part<ServiceSample>,
    /// Backends.
    pub backends: Part<BackendSample>,
    /// Counters of the programs.
    pub counters: Part<CounterRow>,
    /// Maps.
    pub maps: Vec<MapUsage>,
    /// For how long the maps' rows have not been counted anew.
    pub maps_age: Duration,
}

impl Sample {
    /// A reading that failed: there is only the reason.
    pub fn failed(fault: String, unix_nanos: u64, agent: Agent) -> Self {
        Self {
            unix_nanos,
            agent,
            faults: vec![fault],
            ..Self::default()
        }
    }
}

/// Rows with counters, and what is needed to take rates of them.
#[derive(Clone, Debug)]
pub struct Part<T> {
    /// When the counters were read, on a clock that never jumps.
    pub at: Duration,
    /// The kernel's ids of the maps that they are in: other maps count from zero.
    pub maps: Vec<u32>,
    /// The rows.
    pub rows: Vec<T>,
}

impl<T> Default for Part<T> {
    fn default() -> Self {
        Self {
            at: Duration::ZERO,
            maps: Vec::new(),
            rows: Vec::new(),
        }
    }
}

/// What the agent says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Agent {
    /// Whether it answers.
    pub running: bool,
    /// Name of its node; the last one that was heard.
    pub node: Option<String>,
    /// Seconds since it started.
    pub age_secs: Option<u64>,
    /// What it waits for before it touches the datapath.
    pub waiting_for: Option<String>,
    /// Why it does not answer.
    pub error: Option<String>,
    /// Parts of it that do not work at the moment, and maps that it cannot write.
    pub faults: Vec<String>,
    /// Warnings about objects: `tulle status` has them.
    pub warnings: u64,
}

/// A service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceSample {
    /// Its number.
    pub number: u32,
    /// Its full name, if the agent told it.
    pub name: Option<String>,
    /// Addresses and protocols that clients use, in order.
    pub frontends: Vec<(SocketAddr, u8)>,
    /// Backends that any client may be given.
    pub backends: u64,
    /// Its counters; absent if it is not counted.
    pub traffic: Option<Traffic>,
}

impl ServiceSample {
    /// Whether this is the service port that `other` was. A number is given out again.
    pub fn is(&self, other: &Self) -> bool {
        if self.number != other.number {
            return false;
        }
        match (&self.name, &other.name) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.frontends.iter().any(|f| other.frontends.contains(f)),
        }
    }
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendSample {
    /// Its family, id and generation.
    pub id: BackendId,
    /// Address and port.
    pub addr: SocketAddr,
    /// IP protocol number.
    pub proto: u8,
    /// Name of its state.
    pub state: &'static str,
    /// Numbers of its services.
    pub services: Vec<u32>,
    /// Its counters; absent if it is not counted.
    pub traffic: Option<Traffic>,
}

impl BackendSample {
    /// Whether this is the backend that `other` was. An id is given out again.
    pub fn is(&self, other: &Self) -> bool {
        (self.id, self.addr, self.proto) == (other.id, other.addr, other.proto)
    }
}

/// Frontends by service port, without traffic yet, by number; and who uses which backend.
pub fn services(
    frontends: &[FrontendRow],
    segments: &[u32],
    names: &ServiceNames,
) -> (Vec<ServiceSample>, Users) {
    type Found = (Vec<(SocketAddr, u8)>, BTreeSet<(u8, u32)>);
    let mut found: HashMap<u32, Found> = HashMap::new();
    for frontend in frontends.iter().filter(|frontend| !frontend.is_address()) {
        let (addresses, ids) = found.entry(frontend.value.service).or_default();
        addresses.push((frontend.addr, frontend.proto));
        let version = family(frontend.addr.ip());
        ids.extend(
            ids_of(frontend, segments)
                .into_iter()
                .map(|id| (version, id)),
        );
    }
    let mut found: Vec<(u32, Found)> = found.into_iter().collect();
    found.sort_unstable_by_key(|(number, _)| *number);
    let mut users = Users::new();
    let mut rows = Vec::with_capacity(found.len());
    for (number, (mut frontends, ids)) in found {
        for id in &ids {
            users.entry(*id).or_default().push(number);
        }
        frontends.sort_unstable();
        rows.push(ServiceSample {
            number,
            name: names.name(number, &frontends).map(str::to_owned),
            frontends,
            backends: ids.len() as u64,
            traffic: None,
        });
    }
    (rows, users)
}

/// Backends with their services. One that is in no list any more has those that it had `before`.
pub fn backends(
    rows: &[BackendRow],
    users: &Users,
    before: &Owners,
    traffic: impl Fn(u8, u32) -> Option<Traffic>,
) -> Vec<BackendSample> {
    let sample = |row: &BackendRow| {
        let version = family(row.addr.ip());
        let id = (version, row.id, row.generation);
        let services = users.get(&(version, row.id)).or_else(|| before.get(&id));
        BackendSample {
            id,
            addr: row.addr,
            proto: row.proto,
            state: row.state_name(),
            services: services.cloned().unwrap_or_default(),
            traffic: traffic(version, row.id),
        }
    };
    rows.iter().map(sample).collect()
}

/// Whose backends these are, for the next reading.
pub fn owners(backends: &[BackendSample]) -> Owners {
    let owned = backends.iter().filter(|row| !row.services.is_empty());
    owned.map(|row| (row.id, row.services.clone())).collect()
}

/// Gives service ports their counters.
pub fn add_traffic(services: &mut [ServiceSample], traffic: &TrafficById) {
    for service in services {
        service.traffic = traffic.get(&service.number).copied();
    }
}

/// How many slots of the segments name backends of these frontends, from the first slot on.
pub fn segments_end(frontends: &[FrontendRow]) -> u32 {
    let ends = frontends.iter().map(|frontend| {
        let value = &frontend.value;
        let end = |start: u32, len: u32| {
            if len == 0 {
                0
            } else {
                start.saturating_add(len)
            }
        };
        end(value.start, value.len).max(end(value.out_start, value.out_len))
    });
    ends.max().unwrap_or(0)
}

#[cfg(test)]
#[path = "../tests/top_sample.rs"]
mod tests;
