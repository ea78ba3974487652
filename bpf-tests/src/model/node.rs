//! `tulle_nic_out`.

use datapath_common::{Feature, Ip4, Reason, proto};

use super::client::{Client, as_reply};
use super::forward::turn_back;
use super::leaving::masquerade;
use super::parse::{Packet, parse};
use super::rewrite::translate;
use super::service::{frontend_of, service, service_address};
use super::{Ctx, FlowRow, Outcome, World};

/// What leaves by the uplink.
pub fn nic_out(world: &mut World, frame: &[u8], ctx: &Ctx) -> Outcome {
    let untouched = Outcome::kernel(Reason::NotOurs, frame);
    let Ok(mut packet) = parse(frame, ctx) else {
        return untouched;
    };
    world.add_fragment_ports(&mut packet);
    let packet = packet;
    if is_overlay(world, &packet) {
        return untouched;
    }
    if let Some(row) = world.answering(&packet, |_| true) {
        if row.is_straight() {
            world.note_reply(&packet, &row);
            world.leave_fragment_ports(&packet);
            return untouched;
        }
        return reply(world, frame, &packet, &row);
    }
    let own = world.node_address(packet.ip.src) == packet.ip.src;
    if own && world.has(Feature::UPLINK_SERVICES) {
        if let Some(frontend) = frontend_of(world, &packet) {
            return service(world, frame, &packet, &frontend, Client::Node, ctx);
        }
        if world.frontends.contains_key(&(packet.ip.dst, 0, 0)) {
            return service_address(world, frame, &packet, Client::Node, ctx);
        }
    }
    if world.is_free(packet.ip.dst) {
        return Outcome::drop(Reason::FreeServiceAddress, frame);
    }
    masquerade(world, frame, &packet, ctx)
}

fn is_overlay(world: &World, packet: &Packet) -> bool {
    let own = <Ip4 as Into<std::net::Ipv4Addr>>::into(world.config.node_ip4);
    packet.ip.proto == proto::UDP
        && packet.has_ports
        && packet.dport == world.config.vxlan_port
        && packet.ip.src == own
}

fn reply(world: &mut World, frame: &[u8], packet: &Packet, row: &FlowRow) -> Outcome {
    let mut out = frame.to_vec();
    if translate(&mut out, packet, &as_reply(packet, row)).is_err() {
        return Outcome::kernel(Reason::NotOurs, frame);
    }
    world.note_reply(packet, row);
    world.leave_fragment_ports(packet);
    if row.hairpin {
        turn_back(world, out, Reason::ReplyTranslated)
    } else {
        Outcome::kernel(Reason::ReplyTranslated, &out)
    }
}
