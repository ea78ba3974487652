//! `tulle_nic_out`.

use datapath_common::{Feature, Ip4, Reason, proto};

use super::client::{Client, as_reply};
use super::forward::turn_back;
use super::icmp::is_martian;
use super::leaving::masquerade;
use super::parse::{Packet, parse};
use super::rewrite::translate;
use super::service::{frontend_of, service, service_address};
use super::{Ctx, FlowRow, Outcome, World};

/// Who sends a packet, if that is a process of the node.
fn sender(world: &World, packet: &Packet, ctx: &Ctx) -> Option<Client> {
    let src = packet.ip.src;
    let own = world.vtep_address(src) == src || !world.in_pod_network(src);
    let client = if world.config.loopback == ctx.ifindex {
        // 127.0.0.1 is nobody's address elsewhere.
        Some(Client::Loopback).filter(|_| !is_martian(src) && !is_martian(packet.ip.dst))
    } else {
        Some(Client::Node).filter(|_| ctx.ingress == 0)
    };
    client.filter(|_| own && world.has(Feature::UPLINK_SERVICES))
}

/// What leaves by the uplink, or by the loopback device.
pub fn nic_out(world: &mut World, frame: &[u8], ctx: &Ctx) -> Outcome {
    let untouched = Outcome::kernel(Reason::NotOurs, frame);
    let Ok(mut packet) = parse(frame, ctx) else {
        return untouched;
    };
    let sender = sender(world, &packet, ctx);
    // What is not served there is the kernel's as it is.
    if sender.is_none() && world.config.loopback == ctx.ifindex {
        return untouched;
    }
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
    if let Some(client) = sender {
        if let Some(frontend) = frontend_of(world, &packet) {
            return service(world, frame, &packet, &frontend, client, ctx);
        }
        // Other ports of an address of the node's own are not for services to refuse.
        if client == Client::Loopback {
            return untouched;
        }
        if world.frontends.contains_key(&(packet.ip.dst, 0, 0)) {
            return service_address(world, frame, &packet, client, ctx);
        }
        if world.is_free(packet.ip.dst) {
            return Outcome::drop(Reason::FreeServiceAddress, frame);
        }
        return untouched;
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
