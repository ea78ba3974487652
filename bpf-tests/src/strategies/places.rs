//! Addresses, and how they are reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Config, Ip4, Mac, Via, ViaKind, proto};

use super::configs::config;

/// Networks that may use a service, by number: see [`source_network`].
pub const SOURCES: u8 = 6;

/// The way to a local pod.
pub fn local_via(number: u8) -> Via {
    Via {
        kind: ViaKind::Local as u8,
        ifindex: 100 + u32::from(number),
        dst_mac: Mac::new([0xa, 0, 0, 0, 0, number]),
        src_mac: Mac::new([0xb, 0, 0, 0, 0, number]),
        ..Via::KERNEL
    }
}

/// The way to a node of the overlay, with the outer header's sum as the agent
/// computes it.
pub fn vxlan_via(config: &Config, node: Ipv4Addr) -> Via {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto::UDP, 0, 0];
    header.extend(config.node_ip4.octets());
    header.extend(node.octets());
    let mut sum = 0_u32;
    for pair in header.chunks_exact(2) {
        sum += u32::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Via {
        kind: ViaKind::Vxlan as u8,
        flags: 0,
        outer_sum: sum as u16,
        ifindex: config.uplink,
        node: node.into(),
        next_hop: Ip4::new([192, 168, 7, 254]),
        dst_mac: Mac::new([0xee, 2, 2, 2, 2, node.octets()[3]]),
        src_mac: config.vtep_mac,
    }
}

/// Pod `number` of this node.
pub fn pod_ip(v6: bool, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 2 + u16::from(number)).into()
    } else {
        Ipv4Addr::new(10, 244, 1, 2 + number).into()
    }
}

/// Host `host` in the pod network of the other node `node`.
pub fn remote_ip(v6: bool, node: u8, host: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(
            0xfd00,
            0x244,
            2 + u16::from(node),
            0,
            0,
            0,
            0,
            u16::from(host),
        )
        .into()
    } else {
        Ipv4Addr::new(10, 244, 2 + node, host).into()
    }
}

/// Service address `number`.
pub fn service_ip(v6: bool, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 10 + u16::from(number)).into()
    } else {
        Ipv4Addr::new(10, 96, 0, 10 + number).into()
    }
}

/// Load balancer's address `number`.
pub fn external_ip(v6: bool, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0xcb, 0, 0, 0, 0, u16::from(number)).into()
    } else {
        Ipv4Addr::new(203, 0, 113, number).into()
    }
}

/// Host `number` outside of the cluster.
pub fn outside_ip(v6: bool, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)).into()
    } else {
        Ipv4Addr::new(198, 51, 100, number).into()
    }
}

/// This node's own address.
pub fn own_ip(v6: bool) -> IpAddr {
    let usual = config(0);
    if v6 {
        IpAddr::from(usual.node_ip6.octets())
    } else {
        IpAddr::from(usual.node_ip4.octets())
    }
}

/// The way to this node itself.
pub fn host_via() -> Via {
    Via {
        kind: ViaKind::Host as u8,
        ..Via::KERNEL
    }
}

/// Network `number` of those that source ranges name.
pub fn source_network(v6: bool, number: u8) -> (IpAddr, u8) {
    let all = if v6 { 128 } else { 32 };
    match number {
        0 => (pod_ip(v6, 1), all),
        1 => (outside_ip(v6, 9), all),
        2 => (own_ip(v6), all),
        3 => (outside_ip(v6, 0), all - 4),
        4 if v6 => (remote_ip(v6, 0, 0), 64),
        4 => (remote_ip(v6, 0, 0), 24),
        _ if v6 => (Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0).into(), 64),
        _ => (Ipv4Addr::new(10, 244, 1, 0).into(), 24),
    }
}

/// Underlay address of the other node `number`.
pub fn node_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 7, 2 + number)
}
