//! Who asks a service, and the way back to who is no pod of this node.

use datapath_common::{Feature, Hook, NodeClient, Reason};

use super::forward::{deliver, encapsulated, fits, over_bridge, route, to_loopback, turn_back};
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
    /// The node itself, by the uplink.
    Node,
    /// The node itself, at an address of its own.
    Loopback,
}

impl Client {
    /// What the rows say of it.
    pub fn in_rows(self) -> NodeClient {
        match self {
            Self::Node => NodeClient::Uplink,
            Self::Loopback => NodeClient::Loopback,
            Self::Pod | Self::Outside => NodeClient::No,
        }
    }

    /// Whether it is a process of the node.
    pub fn is_node(self) -> bool {
        self.in_rows() != NodeClient::No
    }
}

/// The live reply row of a packet whose client is not to be found by its
/// destination alone.
pub fn row_to_client(world: &mut World, packet: &Packet) -> Option<FlowRow> {
    if !world.has(Feature::UPLINK_SERVICES) || !packet.has_ports {
        return None;
    }
    world.replied(packet, |row| !row.hairpin)
}

/// What a reply becomes: from the frontend, to whoever the flow's client is.
pub fn as_reply(packet: &Packet, row: &FlowRow) -> Tuple {
    let (dst, dport) = match row.translated_source() {
        Some(client) => client,
        None if row.hairpin => (packet.ip.src, packet.dport),
        None => (packet.ip.dst, packet.dport),
    };
    Tuple {
        src: row.addr,
        sport: row.port,
        dst,
        dport,
        ..packet.tuple()
    }
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
    // Whatever becomes of it, the backend was heard, and its fragments follow.
    world.note_reply(packet, row);
    world.leave_fragment_ports(packet);
    let untranslated = Outcome::kernel(Reason::SlowPath, frame);
    let to = as_reply(packet, row);
    let dst = to.dst;
    let mut out = frame.to_vec();
    let translated = translate(&mut out, packet, &to);
    let reason = Reason::ReplyTranslated;
    // Through no service: the kernel forwarded what this answers.
    let by_kernel = hook == Hook::NicIn && row.backend == 0;
    if packet.ip.ttl <= 1 && !by_kernel {
        return untranslated;
    }
    if let Err(fault) = translated {
        return Outcome::drop(fault, frame);
    }
    if by_kernel {
        return Outcome::kernel(reason, &out);
    }
    match (row.node, hook) {
        // Whichever of its addresses it uses.
        (NodeClient::Loopback, _) => return to_loopback(world, out, reason),
        (NodeClient::Uplink, Hook::PodFrom) => return turn_back(world, out, reason),
        (NodeClient::Uplink, _) => return Outcome::kernel(reason, &out),
        (NodeClient::No | NodeClient::Direct | NodeClient::Forwarded, _) => {}
    }
    if let Some(via) = world.local_pod(dst) {
        deliver(out, packet, &via, Client::Pod, reason)
    } else if world.config.bridge != 0 && world.in_pod_network(dst) {
        over_bridge(world, out, packet, reason)
    } else if world.in_pod_network(dst) {
        // Of this node, and of nobody that is known.
        Outcome::kernel(reason, &out)
    } else if let Some(via) = world.peer(dst) {
        if !fits(world, frame, packet, ctx) {
            return untranslated;
        }
        encapsulated(world, &out, packet, &via, reason)
    } else if world.node_address(dst) != dst {
        route(world, out, packet, reason)
    } else if hook == Hook::PodFrom {
        turn_back(world, out, reason)
    } else {
        Outcome::kernel(reason, &out)
    }
}
