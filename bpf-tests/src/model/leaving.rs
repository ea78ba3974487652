//! Masquerade of pods that leave the cluster: step 4 of `tulle_nic_out`.

use datapath_common::{Feature, Reason};

use super::flow::{NewFlow, granted};
use super::parse::Packet;
use super::rewrite::translate;
use super::{Ctx, Outcome, Tuple, World, snat};

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
    } else {
        let (limit, now) = (world.config.flows_per_tick, world.now);
        if !granted(&mut world.flow_grants, limit, now) {
            return Outcome::drop(Reason::NewFlowLimit, frame);
        }
        let target = (tuple.dst, tuple.dport);
        let wish = snat::Wish {
            tuple,
            opens: packet.opens(),
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
    world.has(Feature::MASQUERADE)
        && packet.has_ports
        && world.in_pod_network(src)
        && src != world.vtep_address(src)
        && !world.in_pod_network(dst)
        && world.peer(dst).is_none()
        && !world.is_direct(dst)
}
