//! Worlds: services, pods, peers and nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{
    BackendState, Config, Feature, Frontend, FrontendFlags, IdleTicks, Ip4, Ip6, Mac, Node, Via,
    ViaKind, proto,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::model::{BackendRow, World};

/// How many configurations there are; each is loaded once.
pub const CONFIGS: u8 = 4;

const PROTOS: [u8; 3] = [proto::TCP, proto::UDP, proto::SCTP];
const PORTS: [u16; 5] = [53, 80, 443, 8080, 40000];

/// A configuration by number: 0 as usual, 1 with limits, another VNI and port,
/// a small MTU and an old kernel, 2 without overlay, 3 with an MTU that little
/// fits and one grant of each kind.
pub fn config(number: u8) -> Config {
    let idle = IdleTicks {
        tcp_opening: 6,
        tcp_established: 40,
        tcp_closing: 5,
        udp_opening: 3,
        udp_established: 12,
        sctp_opening: 7,
        sctp_established: 50,
        sctp_closing: 4,
    };
    let usual = Config {
        node_ip4: Ip4::new([192, 168, 7, 1]),
        pod_net4: Ip4::new([10, 244, 1, 0]),
        pod_mask4: Ip4::new([255, 255, 255, 0]),
        router_ip4: Ip4::new([10, 244, 1, 254]),
        pod_net6: Ip6::from(Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0)),
        pod_mask6: Ip6::from(Ipv6Addr::from_bits(!0 << 64)),
        router_ip6: Ip6::from(Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0xfe)),
        uplink: 9,
        vni: 1,
        vxlan_port: 8472,
        overlay_mtu: 1450,
        vtep_mac: Mac::new([0xee, 1, 1, 1, 1, 1]),
        uplink_mac: Mac::new([0x52, 0x54, 0, 7, 7, 7]),
        features: Feature::OVERLAY | Feature::DECAP_6_IN_4,
        node_ip6: Ip6::from(Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, 1)),
        vtep: 11,
        snat_first: 10_000,
        snat_ports: 64,
        flows_per_tick: 0,
        errors_per_tick: 0,
        idle,
    };
    match number % CONFIGS {
        0 => usual,
        1 => Config {
            vni: 0x00ab_cdef,
            vxlan_port: 4789,
            overlay_mtu: 600,
            features: Feature::OVERLAY,
            flows_per_tick: 4,
            errors_per_tick: 3,
            ..usual
        },
        2 => Config {
            features: 0,
            ..usual
        },
        _ => Config {
            overlay_mtu: 90,
            flows_per_tick: 1,
            errors_per_tick: 1,
            ..usual
        },
    }
}

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

/// Where a backend is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Local(u8),
    Remote(u8),
    Kernel(u8),
}

#[derive(Clone, Debug)]
struct ServicePlan {
    v6: bool,
    address: u8,
    port: Index,
    proto: Index,
    flows_decide: bool,
    may_be_lost: bool,
    address_row: bool,
    backends: Vec<Index>,
}

#[derive(Clone, Debug)]
struct BackendPlan {
    v6: bool,
    place: Place,
    port: Index,
    generation: u32,
}

/// A world, planned.
#[derive(Clone, Debug)]
pub struct WorldPlan {
    config: u8,
    pods: u8,
    peers: Vec<(u8, u8)>,
    nodes: u8,
    services: Vec<ServicePlan>,
    backends: Vec<BackendPlan>,
}

/// Up to 20 services with up to 8 endpoints out of a shared stock.
pub fn world() -> impl Strategy<Value = WorldPlan> {
    let place = prop_oneof![
        4 => (0..6_u8).prop_map(Place::Local),
        4 => (0..40_u8).prop_map(Place::Remote),
        1 => (0..4_u8).prop_map(Place::Kernel),
    ];
    let backend = (any::<bool>(), place, any::<Index>(), 0..3_u32).prop_map(
        |(v6, place, port, generation)| BackendPlan {
            v6,
            place,
            port,
            generation,
        },
    );
    let service = (
        any::<bool>(),
        0..8_u8,
        any::<Index>(),
        any::<Index>(),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.9),
        vec(any::<Index>(), 0..=8),
    )
        .prop_map(
            |(v6, address, port, proto, flows_decide, may_be_lost, address_row, backends)| {
                ServicePlan {
                    v6,
                    address,
                    port,
                    proto,
                    flows_decide,
                    may_be_lost,
                    address_row,
                    backends,
                }
            },
        );
    (
        prop_oneof![5 => Just(0), 2 => Just(1), 1 => Just(2), 1 => Just(3_u8)],
        1..6_u8,
        vec(
            (
                0..4_u8,
                prop_oneof![Just(24_u8), Just(28), Just(26), Just(32)],
            ),
            0..5,
        ),
        0..4_u8,
        vec(service, 0..=20),
        vec(backend, 0..12),
    )
        .prop_map(
            |(config, pods, peers, nodes, services, backends)| WorldPlan {
                config,
                pods,
                peers,
                nodes,
                services,
                backends,
            },
        )
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

/// Underlay address of the other node `number`.
pub fn node_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 7, 2 + number)
}

impl WorldPlan {
    /// The rows.
    pub fn build(&self) -> World {
        let config = config(self.config);
        let overlay = config.features & Feature::OVERLAY != 0;
        let mut world = World::new(config);
        for number in 0..self.pods {
            for v6 in [false, true] {
                world.pods.insert(pod_ip(v6, number), local_via(number));
            }
        }
        for number in 0..self.nodes {
            let vtep_mac = vxlan_via(&config, node_ip(number)).dst_mac;
            world.nodes.insert(
                node_ip(number),
                Node {
                    vtep_mac,
                    reserved: 0,
                },
            );
        }
        if overlay {
            for (node, length) in &self.peers {
                // A longer prefix within a /24 belongs to another node.
                let via = vxlan_via(&config, node_ip(node + (length - 24)));
                let peer = (remote_ip(false, *node, 0), *length, via);
                let peer6 = (remote_ip(true, *node, 0), length - 24 + 64, via);
                for peer in [peer, peer6] {
                    if !world
                        .peers
                        .iter()
                        .any(|other| (other.0, other.1) == (peer.0, peer.1))
                    {
                        world.peers.push(peer);
                    }
                }
            }
        }
        self.add_services(&mut world, overlay);
        world
    }

    fn add_services(&self, world: &mut World, overlay: bool) {
        // Slot 0 stays unused, so that an offset forgotten shows.
        world.segments.push(0);
        for (number, plan) in self.services.iter().enumerate() {
            let proto = PROTOS[plan.proto.index(PROTOS.len())];
            let port = PORTS[plan.port.index(PORTS.len())];
            let addr = service_ip(plan.v6, plan.address);
            let version = if plan.v6 { 6 } else { 4 };
            let stock: Vec<(usize, &BackendPlan)> = self
                .backends
                .iter()
                .enumerate()
                .filter(|(_, b)| b.v6 == plan.v6)
                .collect();
            let start = world.segments.len() as u32;
            for pick in plan.backends.iter().filter(|_| !stock.is_empty()) {
                let (at, backend) = stock[pick.index(stock.len())];
                // One id for each protocol that the backend is used with.
                let place = PROTOS.iter().position(|p| *p == proto).unwrap_or(0);
                let id = 1 + (at * PROTOS.len() + place) as u32;
                let config = world.config;
                let row = backend.row(&config, proto, overlay);
                world.backends.insert((version, id), row);
                world.segments.push(id);
            }
            let frontend = Frontend {
                service: 1000 + number as u32,
                start,
                len: world.segments.len() as u32 - start,
                out_start: start,
                out_len: world.segments.len() as u32 - start,
                affinity_secs: 0,
                flags: [
                    (plan.flows_decide, FrontendFlags::FLOWS_DECIDE),
                    (plan.may_be_lost, FrontendFlags::FLOWS_MAY_BE_LOST),
                ]
                .into_iter()
                .filter(|(set, _)| *set)
                .fold(0, |flags, (_, flag)| flags | flag),
                reserved: 0,
            };
            world.frontends.insert((addr, port, proto), frontend);
            if plan.address_row {
                let marker = Frontend {
                    flags: FrontendFlags::ADDRESS,
                    ..Frontend::default()
                };
                world.frontends.insert((addr, 0, 0), marker);
            }
        }
    }
}

impl BackendPlan {
    fn row(&self, config: &Config, proto: u8, overlay: bool) -> BackendRow {
        let (addr, via) = match self.place {
            Place::Local(number) => (pod_ip(self.v6, number), local_via(number)),
            Place::Remote(number) if overlay => {
                let node = number % 4;
                (
                    remote_ip(self.v6, node, 10 + number),
                    vxlan_via(config, node_ip(node)),
                )
            }
            Place::Remote(number) => (remote_ip(self.v6, number % 4, 10 + number), Via::KERNEL),
            Place::Kernel(number) => (remote_ip(self.v6, 100, number), Via::KERNEL),
        };
        BackendRow {
            addr,
            port: PORTS[self.port.index(PORTS.len())],
            proto,
            state: BackendState::Active,
            generation: self.generation,
            via,
        }
    }
}
