//! What does not work at the moment, part by part: logged when it changes, shown while it lasts.

use std::collections::BTreeMap;
use std::fmt;

/// A part that can fail while the others go on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// The source of objects.
    Source,
    /// What this node's Node and uplink say of each other.
    Node,
    /// The uplink's facts.
    Uplink,
    /// The programs' read-only data.
    Programs,
    /// Attachments at the uplink.
    UplinkLinks,
    /// Services at sockets.
    Sockets,
    /// Attachments at pods.
    PodLinks,
    /// The list of local pods.
    Pods,
    /// Next hops towards other nodes.
    NextHops,
    /// MTU of pods' interfaces.
    PodMtu,
    /// The kernel's routes, neighbours and VXLAN device.
    SlowPath,
    /// Rows of the maps.
    Maps,
    /// Rounds over the maps' rows.
    Rows,
    /// Walks over the flow tables.
    Flows,
    /// Ports where load balancers ask for ready endpoints.
    HealthPorts,
    /// Addresses for probes and metrics.
    Http,
    /// The kernel's notifications.
    Notifications,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 17] = [
        Self::Source,
        Self::Node,
        Self::Uplink,
        Self::Programs,
        Self::UplinkLinks,
        Self::Sockets,
        Self::PodLinks,
        Self::Pods,
        Self::NextHops,
        Self::PodMtu,
        Self::SlowPath,
        Self::Maps,
        Self::Rows,
        Self::Flows,
        Self::HealthPorts,
        Self::Http,
        Self::Notifications,
    ];

    /// Its label in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Node => "node",
            Self::Uplink => "uplink",
            Self::Programs => "programs",
            Self::UplinkLinks => "uplink_links",
            Self::Sockets => "sockets",
            Self::PodLinks => "pod_links",
            Self::Pods => "pods",
            Self::NextHops => "next_hops",
            Self::PodMtu => "pod_mtu",
            Self::SlowPath => "slow_path",
            Self::Maps => "maps",
            Self::Rows => "rows",
            Self::Flows => "flows",
            Self::HealthPorts => "health_ports",
            Self::Http => "http",
            Self::Notifications => "notifications",
        }
    }
}

const _: () = assert!(
    Part::ALL.len() == Part::Notifications as usize + 1,
    "Part::ALL lacks a part"
);

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "cluster",
            Self::Node => "this node",
            Self::Uplink => "uplink",
            Self::Programs => "programs",
            Self::UplinkLinks => "attachment at the uplink",
            Self::Sockets => "services at sockets",
            Self::PodLinks => "attachment at pods",
            Self::Pods => "local pods",
            Self::NextHops => "next hops",
            Self::PodMtu => "MTU of pods",
            Self::SlowPath => "slow path",
            Self::Maps => "maps",
            Self::Rows => "comparison of maps",
            Self::Flows => "flow tables",
            Self::HealthPorts => "health check ports",
            Self::Http => "health and metrics",
            Self::Notifications => "notifications",
        })
    }
}

/// Sentences that a part keeps: thousands of rows may fail for one reason.
const KEPT: usize = 8;

/// The faults of all parts.
#[derive(Debug, Default)]
pub struct Faults(BTreeMap<Part, Vec<String>>);

impl Faults {
    /// Sets what is wrong with a part now; nothing means that it works. Says whether that is news.
    pub fn set(&mut self, part: Part, mut sentences: Vec<String>) -> bool {
        let more = sentences.len().saturating_sub(KEPT);
        sentences.truncate(KEPT);
        if more > 0 {
            sentences.push(format!("{more} more"));
        }
        let before = self.0.get(&part).map_or(&[][..], Vec::as_slice);
        if before == sentences {
            return false;
        }
        for sentence in sentences.iter().filter(|s| !before.contains(s)) {
            tracing::warn!("{part}: {sentence}");
        }
        if sentences.is_empty() {
            tracing::info!("{part}: works again");
            self.0.remove(&part);
        } else {
            self.0.insert(part, sentences);
        }
        true
    }

    /// Whether something is wrong with a part.
    pub fn has(&self, part: Part) -> bool {
        self.0.contains_key(&part)
    }

    /// Every sentence with its part.
    pub fn all(&self) -> impl Iterator<Item = (Part, &String)> {
        self.0
            .iter()
            .flat_map(|(part, sentences)| sentences.iter().map(|sentence| (*part, sentence)))
    }

    /// Everything that is wrong, each with its part.
    pub fn sentences(&self) -> Vec<String> {
        let of = |(part, sentences): (&Part, &Vec<String>)| {
            let part = *part;
            sentences
                .iter()
                .map(move |s| format!("{part}: {s}"))
                .collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_news() {
        let mut faults = Faults::default();
        assert!(!faults.set(Part::SlowPath, vec![]), "it worked before");
        assert!(faults.set(Part::SlowPath, vec!["a".into()]));
        assert!(!faults.set(Part::SlowPath, vec!["a".into()]));
        assert!(faults.set(Part::Uplink, vec!["b".into()]));
        assert_eq!(faults.sentences(), ["uplink: b", "slow path: a"]);
        assert!(faults.set(Part::SlowPath, vec![]));
        assert!(!faults.has(Part::SlowPath) && faults.has(Part::Uplink));
    }

    #[test]
    fn many_sentences_are_cut() {
        let mut faults = Faults::default();
        faults.set(Part::Maps, (0..100).map(|n| n.to_string()).collect());
        let sentences = faults.sentences();
        assert_eq!(sentences.len(), KEPT + 1);
        assert_eq!(sentences.last().unwrap(), "maps: 92 more");
    }
}
