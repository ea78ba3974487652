//! `tulle status`: agent, attachments, maps and totals.

use datapath_common::{Group, Hook, maps};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::datapath::DatapathError;
use crate::format;
use crate::links::{self, LinkRow};
use crate::status_text::render;
use crate::tables::{CounterRow, MapUsage};

/// What `tulle status` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Directory of the pins.
    pub bpffs: String,
    /// What the agent says; absent if it does not answer.
    pub agent: Option<admin_api::Status>,
    /// Why the agent does not answer.
    pub agent_error: Option<String>,
    /// Seconds since the agent started.
    pub agent_age_secs: Option<u64>,
    /// Seconds since the agent had compared all rows of the maps the last time.
    #[serde(default)]
    pub last_round_age_secs: Option<u64>,
    /// Pinned links.
    pub links: Vec<LinkRow>,
    /// Maps, in the order of the layouts.
    pub maps: Vec<MapUsage>,
    /// Packets by program.
    pub packets: Vec<HookTotals>,
    /// What is wrong with the datapath: maps that are missing or of another layout.
    pub faults: Vec<String>,
}

/// Packets of a program by what became of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HookTotals {
    /// The program's name without its prefix.
    pub hook: String,
    /// Forwarded by the datapath.
    pub forwarded: u64,
    /// Left to the kernel.
    pub passed: u64,
    /// Answered with an ICMP error.
    pub refused: u64,
    /// Dropped.
    pub dropped: u64,
    /// Counted under a number that this program does not know.
    pub unknown: u64,
}

/// Totals of every program, also of those that have counted nothing.
pub fn totals(counters: &[CounterRow]) -> Vec<HookTotals> {
    let one = |hook: Hook| {
        let mut totals = HookTotals {
            hook: hook.name().into(),
            ..HookTotals::default()
        };
        for counter in counters.iter().filter(|counter| counter.hook == hook) {
            let place = match counter.known().map(datapath_common::Reason::group) {
                Some(Group::Forwarded) => &mut totals.forwarded,
                Some(Group::Passed) => &mut totals.passed,
                Some(Group::Refused) => &mut totals.refused,
                Some(Group::Dropped) => &mut totals.dropped,
                None => &mut totals.unknown,
            };
            *place += counter.packets;
        }
        totals
    };
    Hook::ALL.into_iter().map(one).collect()
}

/// Runs the verb.
///
/// # Errors
///
/// If there is no datapath, it may not be read, or the output cannot be written.
/// Any other fault of a map is part of the report.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let agent = context.agent().and_then(|mut agent| agent.status());
    let (agent, agent_error) = match agent {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let now_secs = format::unix_nanos()? / 1_000_000_000;
    let mut report = Report {
        bpffs: context.bpffs.display().to_string(),
        agent_age_secs: agent
            .as_ref()
            .map(|a| now_secs.saturating_sub(a.started_at_secs)),
        last_round_age_secs: agent
            .as_ref()
            .and_then(|a| a.last_round)
            .map(|round| now_secs.saturating_sub(round.ended_at_secs)),
        agent,
        agent_error,
        ..Report::default()
    };
    let datapath = match context.datapath() {
        Ok(datapath) => datapath,
        // With the agent up there is still something to tell.
        Err(error @ DatapathError::Missing { .. }) if report.agent.is_some() => {
            report.faults.push(error.to_string());
            return context.print("tulle.status", &report, &[], render);
        }
        Err(error) => return Err(error.into()),
    };
    report.links = links::pinned(datapath.dir())?;
    for map in maps::ALL {
        match datapath.usage(map) {
            Ok(usage) => report.maps.push(usage),
            // It would be so for all of them.
            Err(error @ DatapathError::Permission { .. }) => return Err(error.into()),
            Err(error) => report.faults.push(error.to_string()),
        }
    }
    match datapath.counters() {
        Ok(counters) => report.packets = totals(&counters),
        // The map's own fault is in the list already.
        Err(DatapathError::NotPinned { .. } | DatapathError::Layout { .. }) => {}
        Err(error) => report.faults.push(error.to_string()),
    }
    context.print("tulle.status", &report, &[], render)
}

#[cfg(test)]
#[path = "tests/status.rs"]
mod tests;
