//! The ways out: "Deliver", "Encapsulate", "Route", "Turn back".

use std::net::IpAddr;

use datapath_common::{Ip4, Mac, Reason, Via, proto};

use super::client::Client;
use super::direct;
use super::icmp::refuse;
use super::leaving::ends_former;
use super::parse::{Packet, octets};
use super::rewrite::{decrement_ttl, encapsulate, set_dst_mac, set_macs};
use super::{Ctx, Outcome, Verdict, World};
use crate::packet::ETHERNET;

/// Into a pod of this node.
pub fn deliver(
    mut frame: Vec<u8>,
    packet: &Packet,
    via: &Via,
    client: Client,
    reason: Reason,
) -> Outcome {
    decrement_ttl(&mut frame, &packet.ip);
    set_macs(&mut frame, via.dst_mac, via.src_mac);
    let ifindex = via.ifindex;
    let verdict = match client {
        Client::Pod | Client::Outside => Verdict::RedirectPeer { ifindex },
        // Where packets leave, only the veth's own egress can be reached.
        Client::Node | Client::Loopback => Verdict::Redirect { ifindex },
    };
    Outcome::new(reason, verdict, frame)
}

/// Out of the uplink, wherever the kernel's routes lead.
pub fn route(world: &World, mut frame: Vec<u8>, packet: &Packet, reason: Reason) -> Outcome {
    decrement_ttl(&mut frame, &packet.ip);
    let ifindex = world.config.uplink;
    Outcome::new(reason, Verdict::Route { ifindex }, frame)
}

/// To a pod behind the bridge, as the kernel knows its neighbours there.
pub fn over_bridge(world: &World, mut frame: Vec<u8>, packet: &Packet, reason: Reason) -> Outcome {
    decrement_ttl(&mut frame, &packet.ip);
    let ifindex = world.config.bridge;
    Outcome::new(reason, Verdict::Route { ifindex }, frame)
}

/// To the node's own stack, as if it had come in by the uplink.
pub fn turn_back(world: &World, mut frame: Vec<u8>, reason: Reason) -> Outcome {
    set_dst_mac(&mut frame, world.config.uplink_mac);
    let ifindex = world.config.uplink;
    Outcome::new(reason, Verdict::RedirectIngress { ifindex }, frame)
}

/// To a process of the node, as what it sends to itself.
pub fn to_loopback(world: &World, mut frame: Vec<u8>, reason: Reason) -> Outcome {
    set_dst_mac(&mut frame, Mac::new([0; 6]));
    let ifindex = world.config.loopback;
    Outcome::new(reason, Verdict::RedirectIngress { ifindex }, frame)
}

/// To a pod of another node, for no service.
pub fn to_peer(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    via: &Via,
    client: Client,
    ctx: &Ctx,
) -> Outcome {
    match size(world, frame, packet, ctx) {
        Size::Fits => {
            ends_former(world, packet);
            encapsulated(world, frame, packet, via, Reason::Encapsulated)
        }
        Size::Divisible => Outcome::kernel(Reason::SlowPath, frame),
        Size::TooBig => refuse(world, frame, packet, Reason::TooBig, client, ctx),
    }
}

/// What a packet is to the overlay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// It goes in.
    Fits,
    /// The kernel makes pieces of it that do.
    Divisible,
    /// It must not be divided.
    TooBig,
}

/// What a packet is to the overlay, by its size and that of its datagram's first fragment.
pub fn size(world: &World, frame: &[u8], packet: &Packet, ctx: &Ctx) -> Size {
    // What is to become segments of several sizes only the kernel can cut.
    if ctx.gso_size == 0xffff {
        return Size::Divisible;
    }
    let fits = fits(world, frame, packet, ctx);
    if packet.ip.dont_fragment {
        return if fits { Size::Fits } else { Size::TooBig };
    }
    // All of a datagram goes one way.
    let follows = packet.first_octets > usize::from(world.config.overlay_mtu);
    if fits && !follows {
        Size::Fits
    } else {
        Size::Divisible
    }
}

/// Into the overlay, whatever the size.
pub fn encapsulated(
    world: &World,
    out: &[u8],
    packet: &Packet,
    via: &Via,
    reason: Reason,
) -> Outcome {
    into_overlay(world, out, packet, via, None, reason)
}

/// The same; `named`: the backend that the node there is to give the packet to.
pub fn into_overlay(
    world: &World,
    out: &[u8],
    packet: &Packet,
    via: &Via,
    named: Option<(IpAddr, u16)>,
    reason: Reason,
) -> Outcome {
    let mut out = out.to_vec();
    decrement_ttl(&mut out, &packet.ip);
    let next_hop = <Ip4 as Into<std::net::Ipv4Addr>>::into(via.next_hop);
    let verdict = Verdict::RedirectNeigh {
        ifindex: via.ifindex,
        next_hop,
    };
    let name = named.map(|(addr, port)| direct::name(addr, port));
    Outcome::new(reason, verdict, encapsulate(world, via, &out, name))
}

/// Whether a packet fits the overlay.
pub fn fits(world: &World, frame: &[u8], packet: &Packet, ctx: &Ctx) -> bool {
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
