//! `tulle_pod_from` and `tulle_pod_to`.

use datapath_common::{BackendState, Frontend, FrontendFlags, Ip4, Reason, Via, ViaKind, proto};

use super::flow::granted;
use super::icmp::{is_martian, refuse};
use super::parse::{Packet, octets, parse};
use super::rewrite::{decrement_ttl, encapsulate, set_macs, translate};
use super::world::version_of;
use super::{Choice, Ctx, Outcome, Tuple, Verdict, World};
use crate::packet::ETHERNET;
use crate::packet::tcp_flag::SYN;

/// A packet from a local pod.
pub fn pod_from(world: &mut World, frame: &[u8], ctx: &Ctx) -> Outcome {
    let mut packet = match parse(frame, ctx) {
        Ok(packet) => packet,
        Err(reason) => return Outcome::leave(reason, frame),
    };
    world.add_fragment_ports(&mut packet);
    let packet = packet;
    let dst = packet.ip.dst;
    let key = (dst, packet.dport, packet.ip.proto);
    if packet.has_ports
        && let Some(frontend) = world.frontends.get(&key).copied()
    {
        return service(world, frame, &packet, &frontend, ctx);
    }
    if let Some(via) = world.local_pod(dst) {
        if packet.ip.ttl <= 1 {
            return refuse(world, frame, &packet, Reason::TtlExceeded, ctx);
        }
        return to_pod(world, frame, &packet, &via, Reason::DeliveredLocal);
    }
    if let Some(via) = world.peer(dst) {
        if packet.ip.ttl <= 1 {
            return refuse(world, frame, &packet, Reason::TtlExceeded, ctx);
        }
        return to_peer(world, frame, frame, &packet, &via, false, ctx);
    }
    if world.frontends.contains_key(&(dst, 0, 0)) {
        return service_address(world, frame, &packet, ctx);
    }
    Outcome::kernel(Reason::NotOurs, frame)
}

/// What the kernel delivers to a pod.
pub fn pod_to(world: &mut World, frame: &[u8], ctx: &Ctx) -> Outcome {
    let untouched = Outcome::kernel(Reason::NotOurs, frame);
    let Ok(mut packet) = parse(frame, ctx) else {
        return untouched;
    };
    world.add_fragment_ports(&mut packet);
    let Some(row) = world
        .live_reply(packet.tuple().reply())
        .filter(|row| !row.hairpin)
    else {
        return untouched;
    };
    let mut frame = frame.to_vec();
    // The client of a hairpin flow is the backend itself.
    let dst = if row.hairpin {
        packet.ip.src
    } else {
        packet.ip.dst
    };
    let to = Tuple {
        src: row.addr,
        sport: row.port,
        dst,
        ..packet.tuple()
    };
    if translate(&mut frame, &packet, &to).is_err() {
        return untouched;
    }
    world.note_reply(&packet, &row);
    world.leave_fragment_ports(&packet);
    Outcome::kernel(Reason::ReplyTranslated, &frame)
}

/// Reply look-up and delivery. `reason` is counted for what is no reply.
pub fn to_pod(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    via: &Via,
    reason: Reason,
) -> Outcome {
    let mut out = frame.to_vec();
    let mut reason = reason;
    let mut packet = *packet;
    world.add_fragment_ports(&mut packet);
    let packet = &packet;
    if packet.has_ports
        && let Some(row) = world.live_reply(packet.tuple().reply())
        && !row.hairpin
    {
        let to = Tuple {
            src: row.addr,
            sport: row.port,
            ..packet.tuple()
        };
        if let Err(fault) = translate(&mut out, packet, &to) {
            return Outcome::drop(fault, frame);
        }
        world.note_reply(packet, &row);
        world.leave_fragment_ports(packet);
        reason = Reason::ReplyTranslated;
    }
    deliver(out, packet, via, reason)
}

fn deliver(mut frame: Vec<u8>, packet: &Packet, via: &Via, reason: Reason) -> Outcome {
    decrement_ttl(&mut frame, &packet.ip);
    set_macs(&mut frame, via.dst_mac, via.src_mac);
    Outcome::new(
        reason,
        Verdict::RedirectPeer {
            ifindex: via.ifindex,
        },
        frame,
    )
}

/// The service address itself: hairpin replies, and everything that is refused.
fn service_address(world: &mut World, frame: &[u8], packet: &Packet, ctx: &Ctx) -> Outcome {
    if packet.ip.ttl <= 1 {
        return refuse(world, frame, packet, Reason::TtlExceeded, ctx);
    }
    if packet.has_ports
        && let Some(row) = world.live_reply(packet.tuple().reply())
        && row.hairpin
        && let Some(via) = world.local_pod(packet.ip.src)
    {
        let to = Tuple {
            src: row.addr,
            sport: row.port,
            dst: packet.ip.src,
            ..packet.tuple()
        };
        let mut out = frame.to_vec();
        if let Err(fault) = translate(&mut out, packet, &to) {
            return Outcome::drop(fault, frame);
        }
        world.note_reply(packet, &row);
        world.leave_fragment_ports(packet);
        return deliver(out, packet, &via, Reason::ReplyTranslated);
    }
    if packet.is_later_fragment() {
        return Outcome::drop(Reason::FragmentWithoutFirst, frame);
    }
    refuse(world, frame, packet, Reason::NoSuchPort, ctx)
}

fn service(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    frontend: &Frontend,
    ctx: &Ctx,
) -> Outcome {
    let (tuple, src) = (packet.tuple(), packet.ip.src);
    if is_martian(src) {
        return Outcome::drop(Reason::MartianSource, frame);
    }
    if packet.ip.ttl <= 1 {
        return refuse(world, frame, packet, Reason::TtlExceeded, ctx);
    }
    let asked = every_packet_asks(frontend) || packet.asks_flow_table() || frontend.len == 0;
    let row = if asked {
        world.live(tuple.forward(), packet)
    } else {
        None
    };
    let (mut choice, mut opened) = (None, None);
    let id = if let Some(row) = row {
        row.backend
    } else if frontend.len == 0 {
        return refuse(world, frame, packet, Reason::NoEndpoints, ctx);
    } else {
        let segment = world.segment(frontend);
        let id = segment
            .get(ctx.slot % segment.len().max(1))
            .copied()
            .unwrap_or(0);
        choice = Some(Choice {
            tuple,
            segment,
            backend: id,
        });
        id
    };
    let mut outcome = forward(
        world,
        frame,
        packet,
        frontend,
        id,
        row.is_none(),
        ctx,
        &mut opened,
    );
    if let Some(row) = row {
        let lost = frontend.flags & FrontendFlags::FLOWS_MAY_BE_LOST != 0;
        world.note_forward(packet, &row, lost);
    }
    (outcome.choice, outcome.opened_flow) = (choice, opened);
    outcome
}

/// Whether the frontend says that the segment alone does not do for data.
fn every_packet_asks(frontend: &Frontend) -> bool {
    let either = FrontendFlags::FLOWS_DECIDE | FrontendFlags::FLOWS_MAY_BE_LOST;
    frontend.flags & either != 0
}

/// Steps 4 to 7 for the backend `id`, which the segment named (`by_segment`)
/// or a live row.
#[expect(
    clippy::too_many_arguments,
    reason = "one step of the rules, with all that it looks at"
)]
fn forward(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    frontend: &Frontend,
    id: u32,
    by_segment: bool,
    ctx: &Ctx,
    opened: &mut Option<super::FlowId>,
) -> Outcome {
    let tuple = packet.tuple();
    let Some(backend) = world.backends.get(&(version_of(tuple.src), id)).copied() else {
        return Outcome::drop(Reason::BackendGone, frame);
    };
    if by_segment && backend.state != BackendState::Active {
        return Outcome::drop(Reason::BackendGone, frame);
    }
    let hairpin = backend.addr == tuple.src;
    let src = if hairpin { tuple.dst } else { tuple.src };
    let to = Tuple {
        src,
        dst: backend.addr,
        dport: backend.port,
        ..tuple
    };
    let mut out = frame.to_vec();
    if let Err(fault) = translate(&mut out, packet, &to) {
        return Outcome::drop(fault, frame);
    }
    // What is refused opens no flow and leaves no ports.
    let via = backend.via;
    if via.kind == ViaKind::Vxlan as u8 && !fits(world, frame, packet, ctx) {
        return refuse(world, frame, packet, Reason::TooBig, ctx);
    }
    let asks = every_packet_asks(frontend);
    let known = match packet.ip.proto {
        proto::TCP => packet.tcp_flags & SYN == 0 && !asks,
        // An SCTP packet of data is to a flow what a TCP segment is.
        proto::SCTP => !packet.asks_flow_table() && !asks,
        _ => false,
    };
    if by_segment && !known && !packet.closes() {
        let (limit, now) = (world.config.flows_per_tick, world.now);
        if !granted(&mut world.flow_grants, limit, now) {
            return Outcome::drop(Reason::NewFlowLimit, frame);
        }
        *opened = world.open(packet, frontend.service, id);
    }
    world.leave_fragment_ports(packet);
    if via.kind == ViaKind::Local as u8 {
        deliver(out, packet, &via, Reason::DeliveredLocal)
    } else if via.kind == ViaKind::Vxlan as u8 {
        to_peer(world, frame, &out, packet, &via, true, ctx)
    } else {
        Outcome::kernel(Reason::TranslatedToKernel, &out)
    }
}

/// Encapsulation of `out`, which the pod sent as `sent`.
fn to_peer(
    world: &mut World,
    sent: &[u8],
    out: &[u8],
    packet: &Packet,
    via: &Via,
    for_service: bool,
    ctx: &Ctx,
) -> Outcome {
    if !fits(world, out, packet, ctx) {
        if !for_service && !packet.ip.dont_fragment {
            return Outcome::kernel(Reason::SlowPath, sent);
        }
        return refuse(world, sent, packet, Reason::TooBig, ctx);
    }
    let mut out = out.to_vec();
    decrement_ttl(&mut out, &packet.ip);
    let next_hop = <Ip4 as Into<std::net::Ipv4Addr>>::into(via.next_hop);
    let verdict = Verdict::RedirectNeigh {
        ifindex: via.ifindex,
        next_hop,
    };
    Outcome::new(Reason::Encapsulated, verdict, encapsulate(world, via, &out))
}

fn fits(world: &World, frame: &[u8], packet: &Packet, ctx: &Ctx) -> bool {
    size_on_wire(frame, packet, ctx) <= usize::from(world.config.overlay_mtu)
}

/// Size of the packet, or of each segment that it will be cut into.
fn size_on_wire(frame: &[u8], packet: &Packet, ctx: &Ctx) -> usize {
    if ctx.gso_size == 0 {
        return frame.len() - ETHERNET;
    }
    let header = match packet.ip.proto {
        proto::TCP => {
            octets(frame, packet.ip.upper + 12).map_or(20, |[o]: [u8; 1]| usize::from(o >> 4) * 4)
        }
        proto::UDP => 8,
        _ => 0,
    };
    packet.ip.upper - ETHERNET + header + ctx.gso_size as usize
}
