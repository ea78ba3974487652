//! Direct server return: "forward" at the node that the client asked, "to a named backend" at the
//! backend's.

use std::net::{IpAddr, Ipv6Addr};

use datapath_common::{Config, Feature, FlowState, NodeClient, Reason, Via, ViaKind, proto};

use super::client::Client;
use super::flow::{NewFlow, granted};
use super::forward::{deliver, over_bridge};
use super::icmp::is_martian;
use super::parse::Packet;
use super::rewrite::translate;
use super::{Ctx, FlowId, FlowRow, Outcome, Tuple, World, snat};

/// The octet behind the VNI of packets that name their backend.
pub const MARK: u8 = 0x44;

/// A backend as the two Ethernet addresses of an inner frame name it.
pub fn name(addr: IpAddr, port: u16) -> [u8; 12] {
    let mut name = [0; 12];
    match addr {
        IpAddr::V4(addr) => name[..4].copy_from_slice(&addr.octets()),
        IpAddr::V6(addr) => {
            let octets = addr.octets();
            name[..8].copy_from_slice(&octets[8..]);
            name[8..10].copy_from_slice(&octets[6..8]);
        }
    }
    name[10..].copy_from_slice(&port.to_be_bytes());
    name
}

/// What they name, at the node that has the pods.
pub fn named(config: &Config, v4: bool, name: [u8; 12]) -> (IpAddr, u16) {
    let port = u16::from_be_bytes([name[10], name[11]]);
    if v4 {
        return (IpAddr::from([name[0], name[1], name[2], name[3]]), port);
    }
    let mut octets = Ipv6Addr::from(config.pod_net6).octets();
    octets[8..].copy_from_slice(&name[..8]);
    octets[6..8].copy_from_slice(&name[8..10]);
    (IpAddr::from(octets), port)
}

/// Whether the node there answers clients itself.
pub fn is_direct(via: &Via) -> bool {
    via.kind == ViaKind::Vxlan as u8 && via.flags & Via::DIRECT != 0
}

/// The only row of a flow whose answers come by another node.
pub fn forward_row(world: &World, flow: &NewFlow, to: (IpAddr, u16), generation: u32) -> FlowRow {
    FlowRow {
        addr: to.0,
        port: to.1,
        nat: None,
        state: FlowState::Opening,
        hairpin: false,
        node: NodeClient::Direct,
        backend: flow.backend,
        generation,
        service: flow.service,
        counted: flow.counted,
        opened: world.now,
        seen: world.now,
    }
}

/// A packet for a backend of this node that another node chose.
pub fn to_named(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    to: (IpAddr, u16),
    ctx: &Ctx,
) -> Outcome {
    if !matches!(packet.ip.proto, proto::TCP | proto::UDP | proto::SCTP) {
        return Outcome::drop(Reason::BadHeader, frame);
    }
    let via = world.local_pod(to.0);
    let bridged = via.is_none() && world.is_bridged(to.0);
    if via.is_none() && !bridged {
        return Outcome::drop(Reason::BackendGone, frame);
    }
    let src = packet.ip.src;
    if world.in_pod_network(src) || is_martian(src) {
        return Outcome::drop(Reason::MartianSource, frame);
    }
    if packet.ip.ttl <= 1 {
        return Outcome::drop(Reason::TtlExceeded, frame);
    }
    let mut packet = *packet;
    world.add_fragment_ports(&mut packet);
    let (mut opened, mut sport) = (None, packet.sport);
    if packet.has_ports {
        match source_port(world, &packet, to, ctx) {
            Ok((port, id)) => (sport, opened) = (port, id),
            Err(reason) => return Outcome::drop(reason, frame),
        }
    }
    let new = Tuple {
        sport,
        dst: to.0,
        dport: to.1,
        ..packet.tuple()
    };
    let mut out = frame.to_vec();
    if let Err(fault) = translate(&mut out, &packet, &new) {
        return Outcome::drop(fault, frame);
    }
    if packet.has_ports {
        world.leave_fragment_ports(&packet);
    }
    let mut outcome = match via {
        Some(via) => deliver(out, &packet, &via, Client::Outside, Reason::Decapsulated),
        None => over_bridge(world, out, &packet, Reason::Decapsulated),
    };
    outcome.opened_flow = opened;
    outcome
}

/// The client's port as the backend sees it, and the flow if it opened.
fn source_port(
    world: &mut World,
    packet: &Packet,
    to: (IpAddr, u16),
    ctx: &Ctx,
) -> Result<(u16, Option<FlowId>), Reason> {
    let tuple = packet.tuple();
    let goes_there = |row: &FlowRow| {
        let kept = row
            .translated_source()
            .is_none_or(|(addr, _)| addr == tuple.src);
        row.node == NodeClient::Forwarded && (row.addr, row.port) == to && kept
    };
    let row = world.live(tuple.forward(), packet).filter(goes_there);
    if let Some(row) = row.filter(|row| world.note_forward(packet, row, true)) {
        let port = row.translated_source().map_or(tuple.sport, |nat| nat.1);
        return Ok((port, None));
    }
    if packet.closes() {
        return Ok((tuple.sport, None));
    }
    let (limit, now) = (world.config.flows_per_tick, world.now);
    if !granted(&mut world.flow_grants, limit, now) {
        return Err(Reason::NewFlowLimit);
    }
    let wish = snat::Wish {
        tuple,
        opens: packet.opens(),
        data: packet.is_data(),
        to,
        backend: (0, 0),
        addr: tuple.src,
    };
    let moves =
        tuple.sport != 0 && world.has(Feature::UPLINK_SERVICES) && world.config.snat_ports != 0;
    let nat = if moves && !wish.keeps(world, ctx.hash) {
        let port = snat::port(world, &wish, ctx.hash).ok_or(Reason::SnatPortsExhausted)?;
        Some((tuple.src, port))
    } else {
        None
    };
    let flow = NewFlow {
        service: 0,
        backend: 0,
        hairpin: false,
        nat,
        node: NodeClient::Forwarded,
        counted: false,
    };
    let id = world.open_to(packet, &flow, to, 0);
    Ok((nat.map_or(tuple.sport, |nat| nat.1), Some(id)))
}

/// What a later packet of the client says of a flow whose answers nobody sees.
pub fn state_after(packet: &Packet, row: &FlowRow) -> FlowState {
    let goes_on = packet.ip.proto == proto::UDP || packet.is_data();
    if packet.closes() {
        FlowState::Closing
    } else if goes_on {
        row.state.max(FlowState::Established)
    } else {
        row.state
    }
}
