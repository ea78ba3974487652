//! What is said at `/healthz`, `/livez` and `/readyz` (pure).

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::syncs::Syncs;
use crate::health::PATIENCE;
use crate::model::{Family, Leaving, Node};

/// How a time is written that never was, as Go does it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// How far the changes of a family are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FamilySync {
    /// When the last one was.
    pub last: Option<SystemTime>,
    /// When one came last.
    pub queued: Option<SystemTime>,
    /// Since when one is not.
    pub waits: Option<Instant>,
}

/// Whether load balancers may send to this node at all (KP-151).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NodeState {
    /// There is no Node of this name, or none is known yet.
    #[default]
    Unknown,
    /// It is about to go.
    Leaving(Leaving),
    /// They may.
    Stays,
}

impl From<Option<&Node>> for NodeState {
    fn from(node: Option<&Node>) -> Self {
        match node {
            None => Self::Unknown,
            Some(node) => node.leaving.map_or(Self::Stays, Self::Leaving),
        }
    }
}

/// What the loop publishes for probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Health {
    /// Changes that are written, or not.
    pub syncs: Syncs,
    /// The own Node.
    pub node: NodeState,
    /// Whether the first plan was carried out and everything attached, slow path included.
    pub serves: bool,
}

/// When somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// To measure with.
    pub instant: Instant,
    /// To print.
    pub time: SystemTime,
    /// Since when the loop is at one piece of work.
    pub busy: Option<Instant>,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// 200 or 503.
    pub status: u16,
    /// JSON, or text for `/readyz`.
    pub body: String,
}

/// KP-152.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<&'static str, Status>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    last_updated: String,
    healthy: bool,
}

/// Whether changes are written in time: 503 once some family has one that waits for a minute (KP-150).
/// Nothing else that is wrong with the node counts here, such as an uplink that is gone: who asks starts
/// the agent anew, which mends none of that.
pub fn livez(health: &Health, now: Now) -> Answer {
    answer(health, now, None)
}

/// The same, whether the uplink has its programs, and whether the node stays (KP-151): load balancers
/// should go where packets are served.
pub fn healthz(health: &Health, now: Now) -> Answer {
    answer(health, now, Some(health.node == NodeState::Stays))
}

/// Whether the datapath serves the node: not before this agent has taken it over, and then for as
/// long as its programs are in place, whatever becomes of the source of objects.
/// `waits_for` is why it does not yet.
pub fn readyz(health: &Health, waits_for: Option<&str>, now: Now) -> Answer {
    let why = if overdue(health.syncs.programs_fail(), now) {
        Some("the programs cannot be attached at the uplink; see `tulle status`".to_owned())
    } else if health.serves {
        None
    } else {
        let what = waits_for.unwrap_or("its first look at the node");
        Some(format!("the agent waits for {what}"))
    };
    Answer {
        status: if why.is_none() { 200 } else { 503 },
        body: why.unwrap_or_else(|| "ok".to_owned()),
    }
}

fn answer(health: &Health, now: Now, node_eligible: Option<bool>) -> Answer {
    // Only load balancers are told of the node and of its uplink.
    let programs = node_eligible.and_then(|_| health.syncs.programs_fail());
    let late = [now.busy, programs]
        .into_iter()
        .any(|since| overdue(since, now));
    let families = health.syncs.families();
    let well = |sync: &FamilySync| !late && !overdue(sync.waits, now);
    let healthy = families.iter().all(well);
    let good = healthy && node_eligible != Some(false);
    let newest = families.iter().filter_map(|sync| sync.last).max();
    // While all is well it says "now", as it always did: see KP-152.
    let last = if good { Some(now.time) } else { newest };
    let names = [Family::V4, Family::V6].map(Family::name);
    let status = names.into_iter().zip(&families).map(|(name, sync)| {
        let status = Status {
            last_updated: printed(sync.last),
            healthy: well(sync),
        };
        (name, status)
    });
    let body = Body {
        last_updated: printed(last),
        current_time: printed(Some(now.time)),
        node_eligible,
        healthy,
        status: status.collect(),
    };
    Answer {
        status: if good { 200 } else { 503 },
        // A tree of strings: there is nothing that JSON cannot hold.
        body: serde_json::to_string(&body).unwrap_or_default(),
    }
}

fn overdue(since: Option<Instant>, now: Now) -> bool {
    since.is_some_and(|since| now.instant.saturating_duration_since(since) >= PATIENCE)
}

/// RFC 3339.
fn printed(time: Option<SystemTime>) -> String {
    let time = time.and_then(|time| Timestamp::try_from(time).ok());
    time.map_or_else(|| NEVER.to_owned(), |time| time.to_string())
}

#[cfg(test)]
#[path = "health_tests.rs"]
mod tests;
