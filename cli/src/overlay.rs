//! `tulle overlay`: pod networks of other nodes, and the way there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use admin_api::Overlay;
use datapath_common::{Via, ViaKind};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::backends::Way;
use crate::context::Context;
use crate::format;
use crate::links::{interface_name, interface_text};
use crate::names::{Names, Wanted};
use crate::output::{Style, left};
use crate::tables::{NodeRow, PeerRow, via_kind};

/// What `tulle overlay` tells.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// This node's VTEP addresses, as the rows of the peers have them: one,
    /// unless it is just changing.
    pub vtep_macs: Vec<String>,
    /// The overlay as the agent has set it up; absent without an agent.
    pub overlay: Option<Overlay>,
    /// Pod networks of other nodes.
    pub peers: Vec<Peer>,
    /// Nodes whose overlay packets are accepted.
    pub nodes: Vec<Node>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
}

/// A pod network of another node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// The network.
    pub network: IpNet,
    /// VTEP address of the node; absent unless it is reached through VXLAN.
    pub vtep_mac: Option<String>,
    /// Whether the node answers clients of this one's services itself (`--forwarding dsr`).
    pub direct_return: bool,
    /// The way there.
    pub via: Way,
}

/// A node whose overlay packets are accepted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// The node on the underlay.
    pub address: Ipv4Addr,
    /// Its name; absent without an agent.
    pub node: Option<String>,
    /// Its VTEP address.
    pub vtep_mac: String,
}

/// Rows with names.
pub fn rows(
    peers: &[PeerRow],
    nodes: &[NodeRow],
    overlay: Option<Overlay>,
    names: &Names,
    interfaces: &dyn Fn(u32) -> Option<String>,
) -> Report {
    let vxlan = || {
        peers
            .iter()
            .filter(|peer| via_kind(&peer.via) == ViaKind::Vxlan)
    };
    let vtep_macs: BTreeSet<String> = vxlan().map(|peer| peer.via.src_mac.to_string()).collect();
    let mut networks: Vec<Peer> = peers
        .iter()
        .map(|peer| Peer {
            network: peer.network,
            vtep_mac: (via_kind(&peer.via) == ViaKind::Vxlan).then(|| peer.via.dst_mac.to_string()),
            direct_return: peer.via.flags & Via::DIRECT != 0,
            via: Way::new(&peer.via, names, interfaces),
        })
        .collect();
    networks.sort_by_key(|peer| peer.network);
    let mut accepted: Vec<Node> = nodes
        .iter()
        .map(|row| {
            let address = Ipv4Addr::from(row.addr);
            Node {
                address,
                node: names.node(IpAddr::V4(address)).map(str::to_owned),
                vtep_mac: row.vtep_mac.to_string(),
            }
        })
        .collect();
    accepted.sort_by_key(|node| node.address);
    Report {
        vtep_macs: vtep_macs.into_iter().collect(),
        overlay,
        peers: networks,
        nodes: accepted,
        notes: names.notes.clone(),
    }
}

/// The report as text.
pub fn render(report: &Report, style: Style) -> String {
    let mut out = this_node(report);
    out.push('\n');
    if report.peers.is_empty() {
        out.push_str("no pod networks of other nodes\n");
    } else {
        // Where nobody does the column would only take room.
        let returning = report.peers.iter().any(|peer| peer.direct_return);
        out.push_str(
            &style.table(
                &[
                    left("POD NETWORK"),
                    left("NODE"),
                    left("ADDRESS"),
                    left("VTEP MAC"),
                    left("NEXT HOP"),
                    left("INTERFACE"),
                ]
                .into_iter()
                .chain(returning.then(|| left("DIRECT RETURN")))
                .collect::<Vec<_>>(),
                report
                    .peers
                    .iter()
                    .map(|peer| peer_cells(peer, returning))
                    .collect(),
            ),
        );
    }
    out.push('\n');
    if report.nodes.is_empty() {
        out.push_str("no nodes whose overlay packets are accepted\n");
    } else {
        out.push_str(&style.heading("Overlay packets are accepted from"));
        let rows = report.nodes.iter().map(|node| {
            vec![
                node.node.clone().unwrap_or_else(|| "-".into()),
                node.address.to_string(),
                node.vtep_mac.clone(),
            ]
        });
        let columns = [left("NODE"), left("ADDRESS"), left("VTEP MAC")];
        out.push_str(&style.table(&columns, rows.collect()));
    }
    out
}

fn this_node(report: &Report) -> String {
    let mut out = String::from("This node: ");
    let known = report
        .overlay
        .as_ref()
        .and_then(|overlay| overlay.vtep_mac.clone());
    match (&report.vtep_macs[..], known) {
        ([], None) => out.push_str("VTEP not known (no other node yet)"),
        ([], Some(mac)) => out.push_str(&format!("VTEP {mac}")),
        (macs, _) => out.push_str(&format!("VTEP {}", macs.join(" and "))),
    }
    if let Some(overlay) = &report.overlay {
        if let Some(address) = overlay.address {
            out.push_str(&format!(" at {address}"));
        }
        let Overlay {
            device,
            mtu,
            vni,
            port,
            ..
        } = overlay;
        out.push_str(&format!(
            ", {device}: VNI {vni}, UDP port {port}, MTU {}",
            format::count(u64::from(*mtu))
        ));
    }
    out.push('\n');
    out
}

fn peer_cells(peer: &Peer, returning: bool) -> Vec<String> {
    let mac = peer.vtep_mac.clone().unwrap_or_else(|| "-".into());
    let dash = || "-".to_owned();
    let (node, address, next_hop, interface) = match &peer.via {
        Way::Vxlan {
            address,
            node,
            next_hop,
            ifindex,
            interface,
        } => (
            node.clone().unwrap_or_else(dash),
            address.to_string(),
            if next_hop == address {
                "direct".into()
            } else {
                next_hop.to_string()
            },
            interface_text(interface.as_deref(), *ifindex),
        ),
        Way::Local { ifindex, interface } => (
            dash(),
            dash(),
            dash(),
            interface_text(interface.as_deref(), *ifindex),
        ),
        Way::Kernel | Way::Host => (dash(), dash(), peer.via.text(), dash()),
    };
    let mut cells = vec![
        peer.network.to_string(),
        node,
        address,
        mac,
        next_hop,
        interface,
    ];
    if returning {
        cells.push(if peer.direct_return { "yes" } else { "-" }.to_owned());
    }
    cells
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read or the output not be written.
pub fn run(context: &Context) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    let (peers, nodes) = (datapath.peers()?, datapath.nodes()?);
    let names = Names::load(context, &[Wanted::Nodes]);
    // Without an agent the note about the names says it all.
    let status = context.agent().and_then(|mut agent| agent.status()).ok();
    let overlay = status.and_then(|status| status.overlay);
    let report = rows(&peers, &nodes, overlay, &names, &interface_name);
    context.print("tulle.overlay", &report, &report.notes, render)
}

#[cfg(test)]
#[path = "tests/overlay.rs"]
mod tests;
