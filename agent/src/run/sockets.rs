//! Services at sockets: for whose, at which cgroup, and why.

use std::path::Path;
use std::time::Instant;

use datapath_common::{Config, Feature};

use super::faults::Part;
use super::serving::Serving;
use super::shared::Shared;
use crate::args::SocketServices;
use crate::kernel::Cgroup;
use crate::kernel::cgroup::netns_cookie;
use crate::metrics::Drift;

mod surroundings;

pub(super) use surroundings::FIRST_PIDS;
pub use surroundings::Surroundings;

/// What became of services at sockets, and why.
#[derive(Debug)]
pub struct SocketChoice {
    /// `All`, `Host` or `Off`.
    pub mode: SocketServices,
    /// One sentence.
    pub why: String,
    /// Where programs are attached, unless it is off.
    pub cgroup: Option<Cgroup>,
    /// The cookie of the node's network namespace, low word first.
    netns: [u32; 2],
    /// What is wrong, if the operator asked for it and cannot have it.
    pub fault: Option<String>,
    /// Whether the programs are attached, all of them.
    pub attached: bool,
    /// Why they are not.
    pub failed: Option<String>,
    /// The kernel does not take the programs: nothing else is tried.
    refused: bool,
}

impl SocketChoice {
    /// What the flags and this node make of it.
    pub fn make(asked: SocketServices, named: Option<&Path>, around: &Surroundings) -> Self {
        let made = around.decide(asked, named).and_then(|(mode, cgroup, why)| {
            let netns = netns_cookie()
                .map_err(|e| format!("the network namespace's cookie cannot be read: {e}"))?;
            Ok((mode, cgroup, why, netns))
        });
        match made {
            Ok((mode, cgroup, why, netns)) => Self {
                mode,
                why: why.to_owned(),
                cgroup: Some(cgroup),
                netns,
                fault: None,
                attached: false,
                failed: None,
                refused: false,
            },
            Err(why) => Self::off(asked, why),
        }
    }

    fn off(asked: SocketServices, why: String) -> Self {
        let wanted = matches!(asked, SocketServices::All | SocketServices::Host);
        Self {
            mode: SocketServices::Off,
            fault: wanted.then(|| why.clone()),
            why,
            cgroup: None,
            netns: [0; 2],
            attached: false,
            failed: None,
            refused: false,
        }
    }

    /// Whether to look again: the cgroup is not where it was, or there is none yet.
    fn is_stale(&self) -> bool {
        !self.refused && !self.cgroup.as_ref().is_some_and(Cgroup::is_there)
    }

    /// What it becomes now that the cgroup is not where it was; none if it is to stay: as it is
    /// off, or by a cgroup that no path leads to.
    fn next(&self, now: Self) -> Option<Self> {
        let stays = match (&self.cgroup, &now.cgroup) {
            (None, None) => self.why == now.why,
            (Some(had), None) => had.is_alive(),
            _ => false,
        };
        (!stays).then_some(now)
    }

    /// Switches on in the programs what it says. `node`: processes of the node have services.
    pub fn configure(&self, config: &mut Config, node: bool) {
        config.netns = self.netns;
        config.features |= self.features(node);
    }

    fn features(&self, node: bool) -> u32 {
        let mut features = 0;
        if self.mode == SocketServices::All {
            features |= Feature::POD_SOCKETS;
        }
        if self.mode != SocketServices::Off && node {
            features |= Feature::NODE_SOCKETS;
        }
        features
    }

    /// Whose sockets are served now, and why. `node`: processes of the node have services.
    pub fn served(&self, node: bool) -> (&'static str, String) {
        if self.mode == SocketServices::Off {
            return ("off", self.why.clone());
        }
        let features = self.features(node);
        if features == 0 {
            let why = "the node's processes have no services (--uplink-services false)";
            return ("off", why.to_owned());
        }
        if !self.attached {
            let why = self.failed.as_deref();
            return ("off", why.unwrap_or("not attached yet").to_owned());
        }
        let whose = match (
            features & Feature::POD_SOCKETS != 0,
            features & Feature::NODE_SOCKETS != 0,
        ) {
            (true, false) => "for pods' processes",
            _ => self.chosen(),
        };
        (whose, self.why.clone())
    }

    /// The mode in a word.
    pub const fn chosen(&self) -> &'static str {
        match self.mode {
            SocketServices::Auto => "auto",
            SocketServices::All => "for all processes",
            SocketServices::Host => "for the node's processes",
            SocketServices::Off => "off",
        }
    }
}

impl Serving {
    /// Attaches the programs at sockets, or detaches them.
    pub(super) fn sync_sockets(&mut self, shared: &mut Shared) {
        let asked = shared.args.services.socket_services;
        if let Some(why) = self.datapath.socket_refusal()
            && shared.sockets.mode != SocketServices::Off
        {
            let why = why.lines().next().unwrap_or_default();
            let why = format!("the kernel does not take the programs: {why}");
            tracing::warn!("no services at sockets, packets are translated: {why}");
            shared.sockets = SocketChoice {
                refused: true,
                ..SocketChoice::off(asked, why)
            };
        } else if asked != SocketServices::Off && shared.sockets.is_stale() {
            let named = shared.args.services.cgroup.as_deref();
            let now = SocketChoice::make(asked, named, &Surroundings::look());
            if let Some(next) = shared.sockets.next(now) {
                tracing::info!("services at sockets: {}, {}", next.chosen(), next.why);
                shared.sockets = next;
                // Programs that are loaded may not know of sockets.
                shared.paces.programs.ask_now(Instant::now());
            }
        }
        let report = self.datapath.sync_sockets(shared.sockets.cgroup.as_ref());
        let changed = report.attached + report.replaced + report.repaired + report.removed;
        if changed > 0 {
            // They are to be listed anew.
            self.links.clear();
            tracing::info!(
                "programs at sockets: {} attached, {} replaced, {} removed",
                report.attached + report.repaired,
                report.replaced,
                report.removed
            );
        }
        if report.repaired > 0 {
            shared.repaired(Drift::Sockets, u64::from(report.repaired));
            tracing::warn!(
                "attached {} programs at sockets again that somebody had removed",
                report.repaired
            );
        }
        let choice = &shared.sockets;
        let mut faults: Vec<String> = choice.fault.iter().cloned().collect();
        faults.extend(report.failed.iter().map(ToString::to_string));
        if !report.failed.is_empty() {
            faults.push("no socket is served, packets are translated".to_owned());
        }
        shared.sockets.attached = choice.cgroup.is_some() && report.failed.is_empty();
        shared.sockets.failed = report.failed.first().map(ToString::to_string);
        shared.faults.set(Part::Sockets, faults);
    }
}

#[cfg(test)]
#[path = "sockets_tests.rs"]
mod tests;
