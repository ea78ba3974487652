//! VXLAN (RFC 7348) over IPv4: what is accepted, and the header that is put on.

use datapath_common::{Address, Config, Feature, Ip4, Ip6, Node, Reason, Via, ViaKind, proto};

use crate::{ETH_LEN, Family, Packet, V4, V6, checksum::Sum, parse::Frame, wire};

/// Octets that encapsulation adds: outer IPv4, UDP, VXLAN, inner Ethernet.
pub const OVERHEAD: usize = 20 + 8 + 8 + ETH_LEN;

/// Where the inner Ethernet header starts.
const INNER_ETH: usize = ETH_LEN + 20 + 8 + 8;
/// Where the inner IP header starts.
pub const INNER_IP: usize = INNER_ETH + ETH_LEN;
/// VXLAN flags: "VNI is valid" and nothing else.
const FLAGS: u8 = 0x08;
/// The reserved octet behind the VNI, where the inner Ethernet addresses say which backend the packet is
/// for, and the packet is as a client sent it (direct server return). Who does not know it drops
/// the packet, Linux among them, or ignores it: then it is for nobody.
const NAMED: u8 = 0x44;

/// What an arriving packet is to the overlay.
#[derive(Clone, Copy, Debug)]
pub enum Arrival<'t> {
    /// No overlay packet for this node.
    Other,
    /// An overlay packet that only the kernel understands.
    Kernel(Reason),
    /// An overlay packet that goes nowhere.
    Drop(Reason),
    /// For the pod behind this row, with this inside.
    ForPod(&'t Via, Frame),
    /// For the VTEP device's address, with this inside: perhaps the reply to
    /// what was masqueraded.
    ForVtep(Frame),
    /// From a client outside, by way of another node, for the backend that [`Family::named`] reads
    /// from these words.
    Forwarded(Frame, [u32; 3]),
}

/// What [`arrival`] asks of the maps.
pub trait OverlayTables {
    /// This node's underlay address, VTEP address, port and VNI.
    fn config(&self) -> &Config;
    /// Row of `tulle_nodes_v4`.
    fn node(&self, addr: &Ip4) -> Option<&Node>;
    /// Row of `tulle_pods_v4`.
    fn pod4(&self, addr: &Ip4) -> Option<&Via>;
    /// Row of `tulle_pods_v6`.
    fn pod6(&self, addr: &Ip6) -> Option<&Via>;
}

/// Looks at a packet from the uplink.
#[inline(always)]
pub fn arrival<'t, P: Packet, T: OverlayTables>(packet: &P, tables: &'t T) -> Arrival<'t> {
    let config = tables.config();
    if config.features & Feature::OVERLAY == 0
        || packet.length() < INNER_IP as u32
        || packet.ethertype() != 0x0800
        || packet.is_tagged()
    {
        return Arrival::Other;
    }
    let Ok(ip) = packet.read::<wire::Ipv4>(ETH_LEN) else {
        return Arrival::Other;
    };
    let (version_ihl, src) = (ip.version_ihl, ip.src);
    // Neither with options nor a fragment nor the beginning of one.
    if ip.dst != config.node_ip4
        || ip.protocol != proto::UDP
        || version_ihl != 0x45
        || ip.fragment.get() & 0x3fff != 0
    {
        return Arrival::Other;
    }
    let Ok(vxlan) = packet.read::<wire::UdpVxlan>(ETH_LEN + 20) else {
        return Arrival::Other;
    };
    if vxlan.ports.dst.get() != config.vxlan_port {
        return Arrival::Other;
    }
    if vxlan.flags != FLAGS || vxlan.vni.get() >> 8 != config.vni {
        return Arrival::Kernel(Reason::ForeignVni);
    }
    let Ok(inner_eth) = packet.read::<wire::Ethernet>(INNER_ETH) else {
        return Arrival::Other;
    };
    if tables.node(&src).is_none() {
        return Arrival::Drop(Reason::UnknownNode);
    }
    if vxlan.vni.get() as u8 == NAMED && config.features & Feature::UPLINK_SERVICES != 0 {
        let (frame, header) = match inner_eth.ethertype.get() {
            0x0800 => (Frame::V4, V4::HEADER),
            0x86dd => (Frame::V6, V6::HEADER),
            _ => return Arrival::Drop(Reason::BadHeader),
        };
        return match packet.read::<[u32; 3]>(INNER_ETH) {
            Ok(words) if packet.length() >= (INNER_IP + header) as u32 => {
                Arrival::Forwarded(frame, words)
            }
            _ => Arrival::Drop(Reason::Truncated),
        };
    }
    if inner_eth.dst != config.vtep_mac {
        return Arrival::Kernel(Reason::OverlayToKernel);
    }
    match inner_eth.ethertype.get() {
        0x0800 => match packet.read::<wire::Ipv4>(INNER_IP) {
            Ok(ip) => {
                let via = tables.pod4(&ip.dst);
                inner::<V4>(config, ip.dst, ip.version_ihl, ip.ttl, via, Frame::V4)
            }
            Err(reason) => unreadable(reason),
        },
        // Two pieces: the whole header would be copied to the stack.
        0x86dd => match (
            packet.read::<Ip6>(INNER_IP + 24),
            packet.read::<[u8; 8]>(INNER_IP),
        ) {
            (Ok(dst), Ok(b)) => {
                let via = tables.pod6(&dst);
                inner::<V6>(config, dst, b[0], b[7], via, Frame::V6)
            }
            (Err(reason), _) | (_, Err(reason)) => unreadable(reason),
        },
        _ => Arrival::Kernel(Reason::OverlayToKernel),
    }
}

/// The inner IP header: version, TTL, and whose pod it is for.
#[inline(always)]
fn inner<'t, F: Family>(
    config: &Config,
    dst: F::Addr,
    version: u8,
    ttl: u8,
    via: Option<&'t Via>,
    frame: Frame,
) -> Arrival<'t> {
    if version >> 4 != F::Addr::VERSION {
        return Arrival::Drop(Reason::BadHeader);
    }
    match via {
        // What is to expire here is the kernel's to answer.
        Some(via) if ttl > 1 && via.kind == ViaKind::Local as u8 => Arrival::ForPod(via, frame),
        None if ttl > 1
            && dst == F::vtep(config)
            && config.vtep != 0
            && config.features & Feature::UPLINK_SERVICES != 0 =>
        {
            Arrival::ForVtep(frame)
        }
        _ => Arrival::Kernel(Reason::OverlayToKernel),
    }
}

#[inline(always)]
fn unreadable<'t>(reason: Reason) -> Arrival<'t> {
    if reason.group().is_loss() {
        Arrival::Drop(reason)
    } else {
        Arrival::Kernel(reason)
    }
}

/// Destination and source MAC address of a way, as they follow each other in a frame. In words:
/// octets would be loaded and stored one by one.
#[inline(always)]
pub fn macs(via: &Via) -> [u32; 3] {
    const FIRST: usize = core::mem::offset_of!(Via, dst_mac) / 4;
    const {
        assert!(core::mem::offset_of!(Via, dst_mac) == 4 * FIRST);
        assert!(core::mem::offset_of!(Via, src_mac) == 4 * FIRST + 6);
    }
    let words: &[u32; size_of::<Via>() / 4] = bytemuck::cast_ref(via);
    [words[FIRST], words[FIRST + 1], words[FIRST + 2]]
}

/// The word that is the last half of `a` and the first half of `b` in memory.
#[inline(always)]
const fn straddle(a: u32, b: u32) -> u32 {
    if cfg!(target_endian = "little") {
        a >> 16 | b << 16
    } else {
        a << 16 | b >> 16
    }
}

/// Where [`header`] is written: at the outer EtherType.
pub const HEADER_AT: usize = ETH_LEN - 2;

/// The outer EtherType, the outer headers and the inner Ethernet header for an
/// inner IP packet of `inner_len` octets, as words in memory order. `id` is the
/// outer identification; the UDP checksum is zero (RFC 7348 §4.1). `named`: the backend that the node
/// there is to give the packet to, as [`Family::name`] says.
#[inline(always)]
pub fn header<F: Family>(
    via: &Via,
    named: Option<[u32; 3]>,
    config: &Config,
    sport: u16,
    inner_len: u32,
    id: u16,
) -> [u32; 13] {
    let total = (inner_len as u16).wrapping_add(OVERHEAD as u16);
    let c = Sum::ZERO
        .add(via.outer_sum as u32)
        .add(total.to_be() as u32)
        .add(id.to_be() as u32)
        .to_field()
        .to_ne_bytes();
    let (t, i) = (total.to_be_bytes(), id.to_be_bytes());
    let (s, d) = (config.node_ip4.word(), via.node.word());
    let (sp, dp) = (sport.to_be_bytes(), config.vxlan_port.to_be_bytes());
    let u = total.wrapping_sub(20).to_be_bytes();
    let v = config.vni.to_be_bytes();
    let ([dst, both, src], mark) = match named {
        None => (macs(via), 0),
        Some(name) => (name, NAMED),
    };
    let w = u32::from_ne_bytes;
    // As the outer EtherType goes before the outer header, so does half a word before each of its words.
    let ethertype = if F::Addr::VERSION == 4 {
        w([0x08, 0x00, 0, 0])
    } else {
        w([0x86, 0xdd, 0, 0])
    };
    let ports = w([sp[0], sp[1], dp[0], dp[1]]);
    [
        w([0x08, 0x00, 0x45, 0]),
        w([t[0], t[1], i[0], i[1]]),
        w([0, 0, 64, proto::UDP]),
        straddle(w([0, 0, c[0], c[1]]), s),
        straddle(s, d),
        straddle(d, ports),
        straddle(ports, w([u[0], u[1], 0, 0])),
        w([0, 0, FLAGS, 0]),
        w([0, 0, v[1], v[2]]),
        straddle(w([0, 0, v[3], mark]), dst),
        straddle(dst, both),
        straddle(both, src),
        straddle(src, ethertype),
    ]
}

/// The part of the outer IPv4 header's sum that does not change from packet to
/// packet: what [`Via::outer_sum`] holds.
pub fn outer_sum(src: Ip4, dst: Ip4) -> u16 {
    Sum::ZERO
        .add_bytes(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto::UDP, 0, 0])
        .add(src.word())
        .add(dst.word())
        .fold16()
}
