//! `tulle_pod_from` and `tulle_pod_to`.

use datapath_common::{Hook, Reason, Via};

use super::client::{Client, as_reply, row_to_client, to_client};
use super::forward::{deliver, over_bridge, to_peer};
use super::icmp::refuse;
use super::leaving::{comes_straight, ends_former};
use super::parse::{Packet, parse};
use super::rewrite::translate;
use super::service::{frontend_of, service, service_address};
use super::{Ctx, Outcome, World};

/// A packet from a local pod.
pub fn pod_from(world: &mut World, frame: &[u8], ctx: &Ctx) -> Outcome {
    let mut packet = match parse(frame, ctx) {
        Ok(packet) => packet,
        Err(reason) => return Outcome::leave(reason, frame),
    };
    world.add_fragment_ports(&mut packet);
    packet.forget_echo();
    let packet = packet;
    let (dst, client) = (packet.ip.dst, Client::Pod);
    if let Some(frontend) = frontend_of(world, &packet) {
        return service(world, frame, &packet, &frontend, client, ctx);
    }
    if let Some(via) = world.local_pod(dst) {
        if packet.ip.ttl <= 1 {
            return refuse(world, frame, &packet, Reason::TtlExceeded, client, ctx);
        }
        return to_pod(world, frame, &packet, &via, Reason::DeliveredLocal, false);
    }
    if let Some(via) = world.peer(dst)
        // What came by the kernel goes by it.
        && !world.comes_by_bridge(packet.ip.src)
    {
        if packet.ip.ttl <= 1 {
            return refuse(world, frame, &packet, Reason::TtlExceeded, client, ctx);
        }
        return to_peer(world, frame, &packet, &via, client, ctx);
    }
    let own = world.vtep_address(dst) == dst;
    // Nobody but a pod's link would see what answers a pod behind the bridge.
    if (own || world.config.bridge != 0 || !world.in_pod_network(dst))
        && let Some(row) = row_to_client(world, &packet)
    {
        return to_client(world, Hook::PodFrom, frame, &packet, &row, ctx);
    }
    if packet.has_ports
        && packet.ip.ttl > 1
        && let Some(row) = world.replied(&packet, |row| row.hairpin)
    {
        // Whatever becomes of it, the backend was heard.
        world.note_reply(&packet, &row);
        world.leave_fragment_ports(&packet);
        if world.local_pod(packet.ip.src).is_some() {
            return service_address(world, frame, &packet, client, ctx);
        }
        if world.is_bridged(packet.ip.src) {
            let mut out = frame.to_vec();
            return match translate(&mut out, &packet, &as_reply(&packet, &row)) {
                Ok(()) => over_bridge(world, out, &packet, Reason::ReplyTranslated),
                Err(fault) => Outcome::drop(fault, frame),
            };
        }
    }
    if world.frontends.contains_key(&(dst, 0, 0)) {
        return service_address(world, frame, &packet, client, ctx);
    }
    if world.is_free(dst) {
        return Outcome::drop(Reason::FreeServiceAddress, frame);
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
    let Some(row) = world.replied(&packet, |row| !row.hairpin) else {
        ends_former(world, &packet);
        return untouched;
    };
    let mut frame = frame.to_vec();
    if translate(&mut frame, &packet, &as_reply(&packet, &row)).is_err() {
        return untouched;
    }
    world.note_reply(&packet, &row);
    world.leave_fragment_ports(&packet);
    Outcome::kernel(Reason::ReplyTranslated, &frame)
}

/// Reply look-up and delivery. `reason` is counted for what is no reply. `straight`:
/// from outside, and not through the overlay: the kernel's.
pub fn to_pod(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    via: &Via,
    reason: Reason,
    straight: bool,
) -> Outcome {
    let mut out = frame.to_vec();
    let mut reason = reason;
    let mut packet = *packet;
    world.add_fragment_ports(&mut packet);
    let packet = &packet;
    if straight {
        comes_straight(world, packet);
        return Outcome::kernel(Reason::SlowPath, frame);
    }
    if packet.has_ports
        && let Some(row) = world.replied(packet, |row| !row.hairpin)
    {
        if let Err(fault) = translate(&mut out, packet, &as_reply(packet, &row)) {
            return Outcome::drop(fault, frame);
        }
        world.note_reply(packet, &row);
        world.leave_fragment_ports(packet);
        reason = Reason::ReplyTranslated;
    } else {
        ends_former(world, packet);
    }
    deliver(out, packet, via, Client::Pod, reason)
}
