//! How a Service's new flows are given a backend.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Which backend a new flow is given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Scheduler {
    /// Any, by a hash over addresses, ports and protocol (KP-101).
    #[default]
    Random,
    /// By the client's address: its flows share a backend while the list stays.
    SourceHash,
    /// By a Maglev table and the hash over addresses, ports and protocol: every node
    /// chooses the same, and few flows of others would move when a backend comes or goes
    /// (Eisenbud et al., NSDI 2016).
    Maglev,
    /// By a Maglev table and the client's address.
    MaglevSource,
    /// In turn, as often as they weigh; exactly, over all CPUs of the node.
    RoundRobin,
    /// The one of two with fewer living flows for its weight.
    LeastConnection,
}

/// Names that a [`Scheduler`] goes by: its own first, then that of IPVS (KP-161).
const NAMES: [(&str, Scheduler); 12] = [
    ("random", Scheduler::Random),
    ("source-hash", Scheduler::SourceHash),
    ("sh", Scheduler::SourceHash),
    ("maglev", Scheduler::Maglev),
    ("mh", Scheduler::MaglevSource),
    ("round-robin", Scheduler::RoundRobin),
    ("rr", Scheduler::RoundRobin),
    ("wrr", Scheduler::RoundRobin),
    ("least-connection", Scheduler::LeastConnection),
    ("lc", Scheduler::LeastConnection),
    ("wlc", Scheduler::LeastConnection),
    ("sed", Scheduler::LeastConnection),
];

/// The other schedulers of IPVS, which would not keep their meaning.
const FOREIGN: [&str; 6] = ["dh", "nq", "lblc", "lblcr", "fo", "ovf"];

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, scheduler)| scheduler == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for Scheduler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some((_, scheduler)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*scheduler);
        }
        let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        let problem = if FOREIGN.contains(&text) {
            "is a scheduler of IPVS that Tulle does not have"
        } else {
            "is no scheduler"
        };
        Err(format!(
            "{text:?} {problem}; there are {}",
            names.join(", ")
        ))
    }
}

/// The weight of what no rule names.
const USUAL: u16 = 1;
/// The highest weight.
pub const MAX_WEIGHT: u16 = 1000;

/// How many of the new flows a backend is given beside the others. 0 drains it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Weights {
    /// Addresses of endpoints, the longest prefix first.
    rules: Vec<(IpNet, u16)>,
}

impl Weights {
    /// The weight of an endpoint's address: that of the longest network which holds it.
    pub fn of(&self, addr: IpAddr) -> u16 {
        let rule = self.rules.iter().find(|(net, _)| net.contains(&addr));
        rule.map_or(USUAL, |(_, weight)| *weight)
    }
}

impl FromStr for Weights {
    type Err = String;

    /// From `address=weight` or `network=weight`, separated by commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let rule = |part: &str| {
            let (place, weight) = part.split_once('=').ok_or_else(|| {
                format!("{part:?} is not an address, an equals sign and a weight")
            })?;
            let place = place.trim();
            let net = place
                .parse::<IpNet>()
                .or_else(|_| place.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| format!("{place:?} is neither an address nor a network"))?;
            match weight.trim().parse::<u16>() {
                Ok(weight) if weight <= MAX_WEIGHT => Ok((net.trunc(), weight)),
                _ => Err(format!(
                    "{:?} is no weight from 0 to {MAX_WEIGHT}",
                    weight.trim()
                )),
            }
        };
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let mut rules: Vec<(IpNet, u16)> = parts.map(rule).collect::<Result<_, String>>()?;
        rules.sort_by_key(|(net, _)| (std::cmp::Reverse(net.prefix_len()), *net));
        if let Some(pair) = rules.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("{} has two weights", pair[0].0));
        }
        Ok(Self { rules })
    }
}

/// How the new flows of one Service are given a backend.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Choice {
    /// What the Service asks for; `None`: as the node usually does.
    pub scheduler: Option<Scheduler>,
    /// Weights of its endpoints.
    pub weights: Weights,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kp_161_names_of_ipvs_keep_their_meaning_or_are_refused() {
        let of = str::parse::<Scheduler>;
        assert_eq!(of(" sh "), Ok(Scheduler::SourceHash));
        assert_eq!(of("mh"), Ok(Scheduler::MaglevSource));
        assert_eq!(of("maglev"), Ok(Scheduler::Maglev));
        assert_eq!(of("rr"), Ok(Scheduler::RoundRobin));
        assert_eq!(of("wrr"), Ok(Scheduler::RoundRobin));
        for name in ["lc", "wlc", "sed"] {
            assert_eq!(of(name), Ok(Scheduler::LeastConnection));
        }
        for foreign in FOREIGN {
            let error = of(foreign).unwrap_err();
            assert!(error.contains("IPVS that Tulle does not have"), "{error}");
            assert!(
                error.ends_with("rr, wrr, least-connection, lc, wlc, sed"),
                "{error}"
            );
        }
        assert!(of("fast").unwrap_err().contains("is no scheduler"));
        for (name, scheduler) in NAMES {
            assert_eq!(of(name), Ok(scheduler));
            assert_eq!(of(&scheduler.to_string()), Ok(scheduler));
        }
    }

    #[test]
    fn the_longest_network_says_the_weight() {
        let weights: Weights = "10.244.0.0/16=2, 10.244.1.7=0, 10.244.1.0/24=5, fd00::/8=3"
            .parse()
            .unwrap();
        let of = |addr: &str| weights.of(addr.parse().unwrap());
        assert_eq!(
            [of("10.244.1.7"), of("10.244.1.8"), of("10.244.2.7")],
            [0, 5, 2]
        );
        assert_eq!([of("10.245.0.1"), of("fd00::1")], [1, 3]);
        assert_eq!("".parse(), Ok(Weights::default()));
    }

    #[test]
    fn bad_weights_are_told() {
        for (text, problem) in [
            ("10.0.0.1", "equals sign"),
            ("node-1=3", "neither an address nor a network"),
            ("10.0.0.1=1001", "no weight from 0 to 1000"),
            ("10.0.0.1=-1", "no weight"),
            ("10.0.0.1=1,10.0.0.1/32=2", "has two weights"),
        ] {
            let error = text.parse::<Weights>().unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
