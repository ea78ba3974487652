//! Masquerade of pods that leave the cluster: step 4 of `tulle_nic_out`; and of
//! whom it is kept away.

use std::net::IpAddr;

use datapath_common::{Feature, FlowState, NodeClient, Reason, proto};

use super::flow::{NewFlow, granted};
use super::parse::Packet;
use super::rewrite::translate;
use super::{Ctx, FlowRow, Outcome, Tuple, World, snat};

/// The packet with the node's address as source, if it is to have it.
pub fn masquerade(world: &mut World, frame: &[u8], packet: &Packet, ctx: &Ctx) -> Outcome {
    let untouched = Outcome::kernel(Reason::NotOurs, frame);
    let tuple = packet.tuple();
    let own = world.node_address(tuple.src);
    let impossible = tuple.sport == 0 || own.is_unspecified() || world.config.snat_ports == 0;
    if !is_wanted(world, packet) || impossible {
        return untouched;
    }
    let known = world
        .live(tuple.forward(), packet)
        .filter(|row| row.backend == 0)
        .and_then(|row| row.translated_source().map(|source| (row, source)))
        .filter(|(row, _)| world.note_forward(packet, row, false));
    let mut opened = None;
    let (src, sport) = if let Some((_, source)) = known {
        source
    } else if packet.closes() || packet.accepts() {
        // It opens nothing, and belongs to nothing that is known.
        return untouched;
    } else {
        let (limit, now) = (world.config.flows_per_tick, world.now);
        if !granted(&mut world.flow_grants, limit, now) {
            return Outcome::drop(Reason::NewFlowLimit, frame);
        }
        let target = (tuple.dst, tuple.dport);
        let wish = snat::Wish {
            tuple,
            opens: packet.opens(),
            data: packet.is_data(),
            to: target,
            backend: (0, 0),
            addr: own,
        };
        let Some(port) = snat::port(world, &wish, ctx.hash) else {
            return Outcome::drop(Reason::SnatPortsExhausted, frame);
        };
        let flow = NewFlow {
            service: 0,
            backend: 0,
            hairpin: false,
            nat: Some((own, port)),
            node: NodeClient::No,
            counted: false,
        };
        opened = Some(world.open_to(packet, &flow, target, 0));
        (own, port)
    };
    world.leave_fragment_ports(packet);
    let mut out = frame.to_vec();
    if let Err(fault) = translate(
        &mut out,
        packet,
        &Tuple {
            src,
            sport,
            ..tuple
        },
    ) {
        return Outcome::drop(fault, frame);
    }
    let mut outcome = Outcome::kernel(Reason::Masqueraded, &out);
    outcome.opened_flow = opened;
    outcome
}

fn is_wanted(world: &World, packet: &Packet) -> bool {
    let (src, dst) = (packet.ip.src, packet.ip.dst);
    packet.has_ports && src != world.vtep_address(src) && leaves(world, src, dst)
}

/// Whether what this node's pods send there is masqueraded.
fn leaves(world: &World, src: IpAddr, dst: IpAddr) -> bool {
    world.has(Feature::MASQUERADE)
        && world.in_pod_network(src)
        && !world.in_pod_network(dst)
        && world.peer(dst).is_none()
        && !world.is_direct(dst)
}

/// What comes back.
fn back(tuple: Tuple) -> Tuple {
    Tuple {
        src: tuple.dst,
        dst: tuple.src,
        sport: tuple.dport,
        dport: tuple.sport,
        proto: tuple.proto,
    }
}

/// A packet for no service goes to a pod: if it opens a connection, what its client had
/// through a service by the same ports is over if it was closing.
pub fn ends_former(world: &mut World, packet: &Packet) {
    let id = back(packet.tuple()).reply();
    let row = world.flows.get(&id);
    if packet.opens() && row.is_some_and(|row| row.state == FlowState::Closing) {
        world.end(id);
    }
}

/// Notes a packet from outside that goes straight to a pod, so that what the pod
/// answers is not masqueraded.
pub fn comes_straight(world: &mut World, packet: &Packet) {
    let tuple = packet.tuple();
    let back = back(tuple);
    let has_flow = matches!(tuple.proto, proto::TCP | proto::UDP | proto::SCTP);
    if !packet.has_ports || !has_flow || !leaves(world, back.src, back.dst) {
        return;
    }
    if let Some(row) = world.live_reply(back.reply())
        && !(packet.opens() && row.state == FlowState::Closing)
    {
        let state = if packet.closes() {
            FlowState::Closing
        } else {
            row.state
        };
        if row.is_straight() && world.is_written(&row, state) {
            world.write(back.reply(), state);
        }
        return;
    }
    // What the pod itself opened keeps the node's address.
    let own = world.live_reply(back.forward());
    if own.is_some_and(|row| row.backend == 0 && row.translated_source().is_some()) {
        return;
    }
    let (limit, now) = (world.config.flows_per_tick, world.now);
    if !granted(&mut world.flow_grants, limit, now) {
        return;
    }
    let row = FlowRow {
        addr: back.src,
        port: back.sport,
        nat: None,
        state: if packet.closes() {
            FlowState::Closing
        } else {
            FlowState::Opening
        },
        hairpin: false,
        node: NodeClient::No,
        backend: 0,
        generation: 0,
        service: 0,
        counted: false,
        opened: now,
        seen: now,
    };
    world.flows.insert(back.reply(), row);
}
