//! What the maps mean to packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_common::{BackendState, FrontendFlags, Node, Via};

use super::rows::{BackRow, Key};
use super::sim::Sim;

#[derive(PartialEq, Debug)]
pub struct FrontMeaning {
    pub inside: Vec<String>,
    pub outside: Vec<String>,
    /// Slot by slot.
    pub table: Vec<Key>,
    pub out_table: Vec<Key>,
    pub flags: u16,
    pub affinity_secs: u32,
    pub sources: BTreeSet<(u32, IpAddr)>,
}

#[derive(PartialEq, Debug)]
pub struct Meaning {
    pub frontends: BTreeMap<Key, FrontMeaning>,
    pub active: BTreeSet<Key>,
    pub pods: BTreeMap<IpAddr, Via>,
    pub peers: BTreeMap<(IpAddr, u32), Via>,
    pub nodes: BTreeMap<IpAddr, Node>,
    pub networks: BTreeMap<(IpAddr, u32), u32>,
    pub source_rows: usize,
}

impl Sim {
    /// What packets meet, without ids, slots, numbers and flags.
    pub fn meaning(&self) -> Meaning {
        let frontends = self
            .fronts
            .iter()
            .map(|(key, row)| {
                let back = |id: u32| self.backs[&(key.0.is_ipv4(), id)];
                let list = |ids: Vec<u32>| {
                    let mut list: Vec<BackRow> = ids.into_iter().map(back).collect();
                    list.sort_by_key(|b| b.key);
                    let words = list.iter().map(|b| format!("{:?} {:?}", b.key, b.via));
                    words.collect()
                };
                let slots = |ids: Vec<u32>| ids.into_iter().map(|id| back(id).key).collect();
                let planned = FrontendFlags::FLOWS_DECIDE | FrontendFlags::FLOWS_MAY_BE_LOST;
                let front = FrontMeaning {
                    inside: list(self.inside(row)),
                    outside: list(self.outside(row)),
                    table: slots(self.table(row)),
                    out_table: slots(self.out_table(row)),
                    flags: row.flags & !planned,
                    affinity_secs: row.affinity_secs,
                    sources: self.sources_of(row.service),
                };
                (*key, front)
            })
            .collect();
        let active = self
            .backs
            .values()
            .filter(|b| b.state == BackendState::Active as u8);
        Meaning {
            frontends,
            active: active.map(|b| b.key).collect(),
            pods: self.pods.clone(),
            peers: self.peers.clone(),
            nodes: self.nodes.clone(),
            networks: self.networks.clone(),
            source_rows: self.sources.len(),
        }
    }
}
