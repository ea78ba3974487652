//! A kernel that starts with any rows and checks nothing by itself.

use datapath_common::Address as _;
use tulle_agent::plan::{MapOp, MapWriter, Rows, WriteError};

use super::rows::{back_row, key, net, source};
use super::sim::Sim;

/// A kernel that starts with any rows and checks nothing by itself.
#[derive(Clone)]
pub struct Unchecked {
    pub sim: Sim,
}

impl Unchecked {
    pub fn from_rows(rows: &Rows) -> Self {
        let mut sim = Sim::default();
        sim.fronts
            .extend(rows.front_v4.iter().map(|(k, row)| (key(k), *row)));
        sim.fronts
            .extend(rows.front_v6.iter().map(|(k, row)| (key(k), *row)));
        sim.backs.extend(
            rows.back_v4
                .iter()
                .map(|(id, row)| ((true, *id), back_row(row))),
        );
        sim.backs.extend(
            rows.back_v6
                .iter()
                .map(|(id, row)| ((false, *id), back_row(row))),
        );
        sim.slots.extend((0..).zip(rows.segments.iter().copied()));
        sim.pods
            .extend(rows.pods_v4.iter().map(|(addr, via)| (addr.to_ip(), *via)));
        sim.pods
            .extend(rows.pods_v6.iter().map(|(addr, via)| (addr.to_ip(), *via)));
        let peers = rows
            .peers_v4
            .iter()
            .map(|(k, via)| (net(k.addr, k.prefix_len), *via));
        sim.peers.extend(peers);
        let peers = rows
            .peers_v6
            .iter()
            .map(|(k, via)| (net(k.addr, k.prefix_len), *via));
        sim.peers.extend(peers);
        sim.nodes.extend(
            rows.nodes_v4
                .iter()
                .map(|(addr, node)| (addr.to_ip(), *node)),
        );
        sim.sources.extend(rows.srcs_v4.iter().map(source));
        sim.sources.extend(rows.srcs_v6.iter().map(source));
        let v4 = rows.direct_v4.iter();
        sim.networks
            .extend(v4.map(|(k, bits)| (net(k.addr, k.prefix_len), *bits)));
        let v6 = rows.direct_v6.iter();
        sim.networks
            .extend(v6.map(|(k, bits)| (net(k.addr, k.prefix_len), *bits)));
        Self { sim }
    }
}

impl MapWriter for Unchecked {
    fn write(&mut self, op: &MapOp) -> Result<(), WriteError> {
        let sim = &mut self.sim;
        match op {
            MapOp::PutFront4 { key: k, row } => drop(sim.fronts.insert(key(k), *row)),
            MapOp::PutFront6 { key: k, row } => drop(sim.fronts.insert(key(k), *row)),
            MapOp::DeleteFront4 { key: k } => drop(sim.fronts.remove(&key(k))),
            MapOp::DeleteFront6 { key: k } => drop(sim.fronts.remove(&key(k))),
            MapOp::PutBackend4 { id, row } => drop(sim.backs.insert((true, *id), back_row(row))),
            MapOp::PutBackend6 { id, row } => drop(sim.backs.insert((false, *id), back_row(row))),
            MapOp::WriteSlots { start, ids } => {
                sim.slots.extend((*start..).zip(ids.iter().copied()));
            }
            MapOp::PutSource4 { key } => drop(sim.sources.insert(source(key))),
            MapOp::PutSource6 { key } => drop(sim.sources.insert(source(key))),
            MapOp::DeleteSource4 { key } => drop(sim.sources.remove(&source(key))),
            MapOp::DeleteSource6 { key } => drop(sim.sources.remove(&source(key))),
            MapOp::PutDirect4 { key, bits } => {
                sim.networks.insert(net(key.addr, key.prefix_len), *bits);
            }
            MapOp::DeleteDirect4 { key } => {
                sim.networks.remove(&net(key.addr, key.prefix_len));
            }
            MapOp::PutDirect6 { key, bits } => {
                sim.networks.insert(net(key.addr, key.prefix_len), *bits);
            }
            MapOp::DeleteDirect6 { key } => {
                sim.networks.remove(&net(key.addr, key.prefix_len));
            }
            MapOp::PutPod4 { addr, via } => drop(sim.pods.insert(addr.to_ip(), *via)),
            MapOp::PutPod6 { addr, via } => drop(sim.pods.insert(addr.to_ip(), *via)),
            MapOp::DeletePod4 { addr } => drop(sim.pods.remove(&addr.to_ip())),
            MapOp::DeletePod6 { addr } => drop(sim.pods.remove(&addr.to_ip())),
            MapOp::PutPeer4 { key, via } => {
                sim.peers.insert(net(key.addr, key.prefix_len), *via);
            }
            MapOp::PutPeer6 { key, via } => {
                sim.peers.insert(net(key.addr, key.prefix_len), *via);
            }
            MapOp::DeletePeer4 { key } => {
                sim.peers.remove(&net(key.addr, key.prefix_len));
            }
            MapOp::DeletePeer6 { key } => {
                sim.peers.remove(&net(key.addr, key.prefix_len));
            }
            MapOp::PutNode { addr, node } => drop(sim.nodes.insert(addr.to_ip(), *node)),
            MapOp::DeleteNode { addr } => drop(sim.nodes.remove(&addr.to_ip())),
        }
        Ok(())
    }
}
