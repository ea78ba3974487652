//! How large the maps are, and the flag that says so.

use datapath_common::maps;

/// Entries of the maps, each for IPv4 and for IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacities {
    /// Service addresses and ports (`tulle_front_*`).
    pub frontends: u32,
    /// Slots of all segments (`tulle_segments`).
    pub slots: u32,
    /// Backends (`tulle_back_*`).
    pub backends: u32,
    /// Rows of the flow tables, two for each flow (`tulle_flow_*`).
    pub flows: u32,
    /// Fragmented datagrams under way (`tulle_frag_*`).
    pub fragments: u32,
    /// Pods of this node (`tulle_pods_*`).
    pub pods: u32,
    /// Pod networks of other nodes (`tulle_peers_*`), and nodes (`tulle_nodes_v4`).
    pub nodes: u32,
    /// Clients that session affinity remembers (`tulle_affin_*`).
    pub affinities: u32,
    /// Peers that sockets were given: connected ones (`tulle_conns_*`), and rows of others
    /// (`tulle_socks_*`).
    pub sockets: u32,
    /// Networks in the source ranges of all services (`tulle_srcs_*`).
    pub sources: u32,
    /// Networks that pods reach without masquerade, or that services have their addresses from (`tulle_direct_*`).
    pub direct: u32,
    /// Service numbers and backend ids whose traffic is counted (`tulle_svc_stats`, `tulle_bk_stats*`).
    pub stats: u32,
    /// Bytes of the event ring (`tulle_events`).
    pub event_bytes: u32,
}

const fn default_of(name: &str) -> u32 {
    let mut i = 0;
    while i < maps::ALL.len() {
        if const_eq(maps::ALL[i].name, name) {
            return maps::ALL[i].default_entries;
        }
        i += 1;
    }
    0
}

const fn const_eq(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

impl Capacities {
    /// The sizes that the object was built with.
    pub const DEFAULT: Self = Self {
        frontends: default_of(maps::FRONT_V4),
        slots: default_of(maps::SEGMENTS),
        backends: default_of(maps::BACK_V4),
        flows: default_of(maps::FLOW_V4),
        fragments: default_of(maps::FRAG_V4),
        pods: default_of(maps::PODS_V4),
        nodes: default_of(maps::NODES_V4),
        affinities: default_of(maps::AFFIN_V4),
        sockets: default_of(maps::SOCKS_V4),
        sources: default_of(maps::SRCS_V4),
        direct: default_of(maps::DIRECT_V4),
        stats: default_of(maps::SVC_STATS),
        event_bytes: default_of(maps::EVENTS),
    };

    /// Entries of the map of this name; `None` if its size is fixed.
    pub fn entries(&self, map: &str) -> Option<u32> {
        Some(match map {
            maps::FRONT_V4 | maps::FRONT_V6 => self.frontends,
            maps::TURNS => maps::turn_rows(self.frontends),
            maps::SEGMENTS => self.slots,
            maps::BACK_V4 | maps::BACK_V6 | maps::LIVE_V4 | maps::LIVE_V6 => self.backends,
            maps::FLOW_V4 | maps::FLOW_V6 => self.flows,
            maps::FRAG_V4 | maps::FRAG_V6 => self.fragments,
            maps::PODS_V4 | maps::PODS_V6 => self.pods,
            maps::PEERS_V4 | maps::PEERS_V6 | maps::NODES_V4 => self.nodes,
            maps::AFFIN_V4 | maps::AFFIN_V6 | maps::SK_AFFIN => self.affinities,
            maps::CONNS_V4 | maps::CONNS_V6 | maps::SOCKS_V4 | maps::SOCKS_V6 => self.sockets,
            maps::SRCS_V4 | maps::SRCS_V6 => self.sources,
            maps::DIRECT_V4 | maps::DIRECT_V6 => self.direct,
            maps::SVC_STATS | maps::BK_STATS4 | maps::BK_STATS6 => self.stats,
            maps::EVENTS => self.event_bytes,
            _ => return None,
        })
    }
}

impl Default for Capacities {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The agent's flag that sizes the map of this name; `None` if its size is fixed.
pub fn flag(map: &str) -> Option<&'static str> {
    Some(match map {
        maps::FRONT_V4 | maps::FRONT_V6 | maps::TURNS => "--max-frontends",
        maps::SEGMENTS => "--max-segments",
        maps::BACK_V4 | maps::BACK_V6 | maps::LIVE_V4 | maps::LIVE_V6 => "--max-backends",
        maps::FLOW_V4 | maps::FLOW_V6 => "--max-flows",
        maps::FRAG_V4 | maps::FRAG_V6 => "--max-fragments",
        maps::PODS_V4 | maps::PODS_V6 => "--max-pods",
        maps::PEERS_V4 | maps::PEERS_V6 | maps::NODES_V4 => "--max-nodes",
        maps::AFFIN_V4 | maps::AFFIN_V6 | maps::SK_AFFIN => "--max-affinities",
        maps::CONNS_V4 | maps::CONNS_V6 | maps::SOCKS_V4 | maps::SOCKS_V6 => "--max-sockets",
        maps::SRCS_V4 | maps::SRCS_V6 => "--max-sources",
        maps::DIRECT_V4 | maps::DIRECT_V6 => "--max-direct",
        maps::SVC_STATS | maps::BK_STATS4 | maps::BK_STATS6 => "--max-stats",
        maps::EVENTS => "--event-bytes",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use datapath_common::{Frontend, FrontendFlags};

    use super::*;

    #[test]
    fn every_sized_map_has_a_flag_and_its_default() {
        for info in maps::ALL {
            assert_eq!(
                Capacities::DEFAULT.entries(info.name).is_some(),
                flag(info.name).is_some()
            );
            if let Some(entries) = Capacities::DEFAULT.entries(info.name) {
                assert_eq!(entries, info.default_entries, "{}", info.name);
            }
        }
    }

    #[test]
    fn as_many_services_as_there_are_frontends_have_their_turns() {
        let local = FrontendFlags::LOCAL_INSIDE | FrontendFlags::LOCAL_OUTSIDE;
        for frontends in [1, 64, Capacities::DEFAULT.frontends] {
            let sizes = Capacities {
                frontends,
                ..Capacities::DEFAULT
            };
            // Numbers begin with 1 and are one sequence over both families.
            let last = Frontend {
                service: 2 * frontends,
                flags: local,
                ..Frontend::default()
            };
            let rows = sizes.entries(maps::TURNS);
            assert_eq!(rows, Some(last.turns(true) + 1), "{frontends} frontends");
        }
    }
}
