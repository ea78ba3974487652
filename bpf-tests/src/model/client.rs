//! Who asks a service, and the way back to who is no pod of this node.

use datapath_common::{Feature, Hook, Reason};

use super::forward::{deliver, encapsulated, fits, route, turn_back};
use super::parse::Packet;
use super::rewrite::translate;
use super::{Ctx, FlowRow, Outcome, Tuple, World};

/// Who sent a packet to a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A pod of this node.
    Pod,
    /// What comes in by the uplink.
    Outside,
    /// The node itself.
    Node,
}

/// The live reply row of a packet whose client is not to be found by its
/// destination alone.
pub fn row_to_client(world: &World, packet: &Packet) -> Option<FlowRow> {
    if !world.has(Feature::UPLINK_SERVICES) || !packet.has_ports {
        return None;
    }
    world
        .live_reply(packet.tuple().reply())
        .filter(|row| !row.hairpin)
}

/// "To the client" of a reply row.
pub fn to_client(
    world: &mut World,
    hook: Hook,
    frame: &[u8],
    packet: &Packet,
    row: &FlowRow,
    ctx: &Ctx,
) -> Outcome {
    let untranslated = Outcome::kernel(Reason::SlowPath, frame);
    if packet.ip.ttl <= 1 {
        return untranslated;
    }
    let (dst, dport) = row
        .translated_source()
        .unwrap_or((packet.ip.dst, packet.dport));
    let to = Tuple {
        src: row.addr,
        sport: row.port,
        dst,
        dport,
        ..packet.tuple()
    };
    let mut out = frame.to_vec();
    if let Err(fault) = translate(&mut out, packet, &to) {
        return Outcome::drop(fault, frame);
    }
    let reason = Reason::ReplyTranslated;
    let outcome = if let Some(via) = world.local_pod(dst) {
        deliver(out, packet, &via, Client::Pod, reason)
    } else if let Some(via) = world.peer(dst) {
        if !fits(world, frame, packet, ctx) {
            return untranslated;
        }
        encapsulated(world, &out, packet, &via, reason)
    } else if world.node_address(dst) != Some(dst) {
        route(world, out, packet, reason)
    } else if hook == Hook::PodFrom {
        turn_back(world, out, reason)
    } else {
        Outcome::kernel(reason, &out)
    };
    world.note_reply(packet, row);
    world.leave_fragment_ports(packet);
    outcome
}
