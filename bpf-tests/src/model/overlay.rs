//! `tulle_nic_in` and `tulle_xdp`.

use std::net::{IpAddr, Ipv4Addr};

use datapath_common::{Feature, Group, Hook, Reason, Via, proto};

use super::client::{Client, row_to_client, to_client};
use super::direct::{self, to_named};
use super::icmp::is_martian;
use super::icmp_errors::icmp_error;
use super::leaving::comes_straight;
use super::parse::{self, Packet, octets};
use super::pod::to_pod;
use super::rewrite::{OVERLAY, set_dst_mac, set_macs};
use super::service::{frontend_of, service, service_address};
use super::{Ctx, Outcome, Tuple, Verdict, World};
use crate::packet::{ETHERNET, IPV4, IPV6};

/// What stands in the way of taking a packet out of the overlay.
enum Overlay {
    /// Not an overlay packet of this node.
    No,
    /// One that leaves for this reason.
    Leaves(Reason),
    /// One for the pod behind this.
    Pod(Via),
    /// One for the VTEP address.
    Vtep,
    /// One for a backend that another node named.
    Named(IpAddr, u16),
}

/// What arrives at the uplink, before the stack.
pub fn xdp(world: &mut World, frame: &[u8], ctx: &Ctx) -> Outcome {
    let reason = match overlay(world, frame, ctx, Hook::Xdp) {
        Overlay::No => Reason::NotOurs,
        Overlay::Leaves(reason) => reason,
        // Only the other program can ask for a reply.
        Overlay::Vtep => Reason::OverlayToKernel,
        Overlay::Named(..) => Reason::LeftByXdp,
        Overlay::Pod(_) => {
            let mut out = frame[OVERLAY..].to_vec();
            let config = &world.config;
            set_macs(&mut out, config.uplink_mac, config.stripped_mac);
            return Outcome::new(Reason::Decapsulated, Verdict::Pass, out);
        }
    };
    let left = Outcome::leave(reason, frame);
    match left.verdict {
        Verdict::Kernel => Outcome {
            verdict: Verdict::Pass,
            ..left
        },
        _ => left,
    }
}

/// Whether the packet is at the VTEP device, which took it out of the overlay.
fn at_vtep(world: &World, ctx: &Ctx) -> bool {
    world.config.vtep == ctx.ifindex
}

/// What arrives at the uplink, or at the VTEP device.
pub fn nic_in(world: &mut World, frame: &[u8], ctx: &Ctx) -> Outcome {
    // An overlay within the overlay is nobody's here.
    let target = if at_vtep(world, ctx) {
        Overlay::No
    } else {
        overlay(world, frame, ctx, Hook::NicIn)
    };
    match target {
        Overlay::Leaves(reason) => return Outcome::leave(reason, frame),
        Overlay::No => return from_wire(world, frame, ctx),
        Overlay::Pod(_) | Overlay::Vtep | Overlay::Named(..) => {}
    }
    let inner = &frame[OVERLAY..];
    if let Overlay::Named(addr, port) = target {
        return match parse::parse(inner, &Ctx::default()) {
            Ok(packet) => to_named(world, inner, &packet, (addr, port), ctx),
            // Nobody else may have it.
            Err(reason) if reason.group() == Group::Dropped => Outcome::drop(reason, frame),
            Err(_) => Outcome::drop(Reason::BadHeader, frame),
        };
    }
    // XDP leaves the rest of the inner headers' faults to this.
    let packet = match parse::parse(inner, &Ctx::default()) {
        Ok(packet) => packet,
        Err(reason) => return Outcome::leave(reason, frame),
    };
    if let Some(outcome) = icmp_error(world, Hook::NicIn, inner, &Ctx::default()) {
        return outcome;
    }
    match target {
        Overlay::Pod(via) => to_pod(world, inner, &packet, &via, Reason::Decapsulated, false),
        _ => to_vtep(world, inner, &packet, ctx),
    }
}

/// Out of the overlay and to the VTEP address: a reply to who was masqueraded
/// with it, or the VTEP device's.
fn to_vtep(world: &mut World, frame: &[u8], packet: &Packet, ctx: &Ctx) -> Outcome {
    let mut packet = *packet;
    world.add_fragment_ports(&mut packet);
    if let Some(row) = row_to_client(world, &packet) {
        return to_client(world, Hook::NicIn, frame, &packet, &row, ctx);
    }
    let mut out = frame.to_vec();
    set_dst_mac(&mut out, world.config.vtep_mac);
    let ifindex = world.config.vtep;
    Outcome::new(
        Reason::OverlayToKernel,
        Verdict::RedirectIngress { ifindex },
        out,
    )
}

/// What comes in by the uplink and not through the overlay, or by the VTEP device.
fn from_wire(world: &mut World, frame: &[u8], ctx: &Ctx) -> Outcome {
    let ether_type = match parse::ethernet(frame, ctx) {
        Ok(ether_type) => ether_type,
        Err(reason) => return Outcome::leave(reason, frame),
    };
    let taken_out = is_taken_out(world, frame) || at_vtep(world, ctx);
    if let Some(outcome) = icmp_error(world, Hook::NicIn, frame, ctx) {
        let src = parse::parse(frame, ctx).map(|packet| packet.ip.src);
        return match src {
            Ok(src) if !taken_out && is_own_source(world, src) => {
                Outcome::drop(Reason::MartianSource, frame)
            }
            _ => outcome,
        };
    }
    let services = world.has(Feature::UPLINK_SERVICES);
    let via = destination(frame, ether_type).and_then(|dst| world.local_pod(dst));
    // No further than the destination, unless somebody asks for more.
    if via.is_none() && !services {
        return Outcome::kernel(Reason::NotOurs, frame);
    }
    let mut packet = match parse::parse(frame, ctx) {
        Ok(packet) => packet,
        // What is broken and for no pod is the kernel's to count.
        Err(_) if via.is_none() => return Outcome::kernel(Reason::NotOurs, frame),
        Err(reason) => return Outcome::leave(reason, frame),
    };
    if let Some(via) = via {
        // The kernel answers for the node when the TTL is used up.
        if packet.ip.ttl <= 1 {
            return Outcome::kernel(Reason::SlowPath, frame);
        }
        if taken_out {
            return to_pod(world, frame, &packet, &via, Reason::DeliveredLocal, false);
        }
        if is_own_source(world, packet.ip.src) {
            world.add_fragment_ports(&mut packet);
            return if is_ours(world, &packet) {
                Outcome::drop(Reason::MartianSource, frame)
            } else {
                Outcome::kernel(Reason::SlowPath, frame)
            };
        }
        return to_pod(world, frame, &packet, &via, Reason::DeliveredLocal, true);
    }
    world.add_fragment_ports(&mut packet);
    let own_source = is_own_source(world, packet.ip.src);
    if !taken_out && own_source && is_ours(world, &packet) {
        return Outcome::drop(Reason::MartianSource, frame);
    }
    let (dst, client) = (packet.ip.dst, Client::Outside);
    if world.is_bridged(dst) && !taken_out && !own_source {
        comes_straight(world, &packet);
    }
    let own = [world.node_address(dst), world.vtep_address(dst)].contains(&dst);
    if own && let Some(row) = row_to_client(world, &packet) {
        return to_client(world, Hook::NicIn, frame, &packet, &row, ctx);
    }
    // Out of the overlay nobody is served.
    if at_vtep(world, ctx) {
        return Outcome::kernel(Reason::NotOurs, frame);
    }
    if let Some(frontend) = frontend_of(world, &packet) {
        return service(world, frame, &packet, &frontend, client, ctx);
    }
    if world.frontends.contains_key(&(dst, 0, 0)) {
        return service_address(world, frame, &packet, client, ctx);
    }
    if world.is_free(dst) {
        return Outcome::drop(Reason::FreeServiceAddress, frame);
    }
    Outcome::kernel(Reason::NotOurs, frame)
}

/// XDP marks what it took out of the overlay by a sender's address that nobody knows.
fn is_taken_out(world: &World, frame: &[u8]) -> bool {
    frame[6..12] == world.config.stripped_mac.octets()
}

/// A source that nothing on the uplink's link has: this node's, its pods' or nobody's.
fn is_own_source(world: &World, src: IpAddr) -> bool {
    src == world.node_address(src) || world.in_pod_network(src) || is_martian(src)
}

/// Whether the packet is for a service or answers through one, or through masquerade.
fn is_ours(world: &World, packet: &Packet) -> bool {
    let Tuple {
        dst, dport, proto, ..
    } = packet.tuple();
    let served = |port, proto| world.frontends.contains_key(&(dst, port, proto));
    let answers = || world.flows.contains_key(&packet.tuple().reply());
    served(0, 0) || (packet.has_ports && (served(dport, proto) || answers()))
}

fn destination(frame: &[u8], ether_type: u16) -> Option<IpAddr> {
    if ether_type == IPV4 {
        octets::<4>(frame, ETHERNET + 16).map(IpAddr::from)
    } else {
        octets::<16>(frame, ETHERNET + 24).map(IpAddr::from)
    }
}

fn overlay(world: &World, frame: &[u8], ctx: &Ctx, hook: Hook) -> Overlay {
    let Some(source) = outer_source(world, frame, ctx) else {
        return Overlay::No;
    };
    inner(world, frame, source, hook).unwrap_or_else(Overlay::Leaves)
}

/// The source of an overlay packet: IPv4 without options, no fragment, UDP to
/// this node's underlay address and the VXLAN port.
fn outer_source(world: &World, frame: &[u8], ctx: &Ctx) -> Option<Ipv4Addr> {
    if ctx.vlan || !world.has(Feature::OVERLAY) || octets(frame, 12)? != IPV4.to_be_bytes() {
        return None;
    }
    let header: [u8; 20] = octets(frame, ETHERNET)?;
    let whole = matches!((header[6] & 0x3f, header[7]), (0, 0));
    let to_us = header[16..] == world.config.node_ip4.octets();
    let port: [u8; 2] = octets(frame, ETHERNET + 22)?;
    // What cannot hold an inner Ethernet header is no overlay packet.
    octets::<1>(frame, OVERLAY + ETHERNET - 1)?;
    let ours = header[0] == 0x45
        && whole
        && header[9] == proto::UDP
        && to_us
        && u16::from_be_bytes(port) == world.config.vxlan_port;
    ours.then(|| Ipv4Addr::new(header[12], header[13], header[14], header[15]))
}

/// Whom an overlay packet is for.
fn inner(world: &World, frame: &[u8], source: Ipv4Addr, hook: Hook) -> Result<Overlay, Reason> {
    let vxlan: [u8; 8] = octets(frame, ETHERNET + 28).ok_or(Reason::Truncated)?;
    let vni = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
    if vxlan[0] != 0x08 || vni != world.config.vni {
        return Err(Reason::ForeignVni);
    }
    if !world.nodes.contains_key(&source) {
        return Err(Reason::UnknownNode);
    }
    let inner = &frame[OVERLAY..];
    let header: [u8; ETHERNET] = octets(inner, 0).ok_or(Reason::Truncated)?;
    let ether_type = u16::from_be_bytes([header[12], header[13]]);
    if vxlan[7] == direct::MARK && world.has(Feature::UPLINK_SERVICES) {
        let size = match ether_type {
            IPV4 => 20,
            IPV6 => 40,
            _ => return Err(Reason::BadHeader),
        };
        if inner.len() < ETHERNET + size {
            return Err(Reason::Truncated);
        }
        let protocol_changes = ether_type == IPV6 && hook == Hook::NicIn;
        if protocol_changes && !world.has(Feature::DECAP_6_IN_4) {
            return Err(Reason::OverlayToKernel);
        }
        let name = octets(inner, 0).ok_or(Reason::Truncated)?;
        let (addr, port) = direct::named(&world.config, ether_type == IPV4, name);
        return Ok(Overlay::Named(addr, port));
    }
    if header[..6] != world.config.vtep_mac.octets() || !matches!(ether_type, IPV4 | IPV6) {
        return Err(Reason::OverlayToKernel);
    }
    // Faults that hide the destination; the others wait until it is a pod's.
    let (size, ttl_at, version) = if ether_type == IPV4 {
        (20, 8, 4)
    } else {
        (40, 7, 6)
    };
    let ip = inner
        .get(ETHERNET..ETHERNET + size)
        .ok_or(Reason::Truncated)?;
    if ip[0] >> 4 != version {
        return Err(Reason::BadHeader);
    }
    let dst = destination(inner, ether_type).ok_or(Reason::Truncated)?;
    let reaches_vtep = world.has(Feature::UPLINK_SERVICES) && world.config.vtep != 0;
    let target = match world.local_pod(dst) {
        Some(via) => Overlay::Pod(via),
        None if reaches_vtep && world.vtep_address(dst) == dst => Overlay::Vtep,
        None => return Err(Reason::OverlayToKernel),
    };
    let protocol_changes = ether_type == IPV6 && hook == Hook::NicIn;
    if ip[ttl_at] <= 1 || (protocol_changes && !world.has(Feature::DECAP_6_IN_4)) {
        return Err(Reason::OverlayToKernel);
    }
    Ok(target)
}
