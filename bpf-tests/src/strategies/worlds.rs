//! Worlds: services, pods, peers and nodes.

use datapath_common::{
    BackendState, Config, Feature, Frontend, FrontendFlags, Network, Node, Via, proto,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::configs::{CONFIGS, config};
use super::places::{
    SOURCES, external_ip, host_via, local_via, node_ip, outside_ip, own_ip, pod_ip, remote_ip,
    service_ip, source_network, vxlan_via,
};
use crate::model::{BackendRow, World};

const PROTOS: [u8; 3] = [proto::TCP, proto::UDP, proto::SCTP];
const PORTS: [u16; 5] = [53, 80, 443, 8080, 40000];

/// Where a backend is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Local(u8),
    Remote(u8),
    Kernel(u8),
    /// In this node's pod network, without a row.
    Bridged(u8),
    /// Outside of the cluster, where clients are too.
    Outside(u8),
    /// This node itself.
    Host,
}

/// What kind of address a frontend has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Cluster,
    NodePort,
    External,
}

/// What a frontend says besides its backends.
#[derive(Clone, Debug)]
struct PolicyPlan {
    kind: Kind,
    /// Which of the backends clients inside have, bit by bit.
    inside: u8,
    /// The same for clients outside; `None` if both have the same segment.
    outside: Option<u8>,
    flags: u16,
    affinity_secs: u32,
    /// Bits of [`SOURCES`].
    sources: u8,
    /// Slots of the tables behind its segments, 0 for none.
    table: u16,
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
    policy: PolicyPlan,
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
    /// Length in bits less than an address's of a network outside that pods reach as themselves.
    direct: Option<u8>,
    /// The same of a network of services, and an address in it with bits of its own.
    service_network: Option<(u8, Option<(u8, u32)>)>,
}

/// Seconds of affinity, for none and for a few ticks.
pub(super) fn affinity_secs() -> impl Strategy<Value = u32> {
    prop_oneof![4 => Just(0_u32), 1 => Just(1), 2 => 2..20_u32, 1 => Just(86_400)]
}

/// Backend ids of a frontend.
pub(super) struct Slots {
    inside: Vec<u32>,
    /// `None`: the same.
    outside: Option<Vec<u32>>,
    /// Slots of the tables behind them, 0 for none.
    table: u16,
}

impl Slots {
    pub(super) const fn of(inside: Vec<u32>, outside: Option<Vec<u32>>, table: u16) -> Self {
        Self {
            inside,
            outside,
            table,
        }
    }

    /// All slots, if they begin at `start`, and a row that names them.
    pub(super) fn at(&self, start: u32) -> (Vec<u32>, Frontend) {
        // The ids in turn, the last one first; ascending, for where that matters.
        let table = |ids: &[u32]| {
            let turns = ids.iter().rev().cycle().take(self.table.into());
            let mut table: Vec<u32> = turns.copied().collect();
            table.sort_unstable();
            table
        };
        let inside = table(&self.inside);
        let mut row = Frontend {
            start,
            len: self.inside.len() as u32,
            table: inside.len() as u16,
            ..Frontend::default()
        };
        let mut slots = [self.inside.as_slice(), &inside].concat();
        let ids = self.outside.as_deref().unwrap_or(&self.inside);
        let outside = table(ids);
        (row.out_start, row.out_len, row.out_table) =
            (start, ids.len() as u32, outside.len() as u16);
        if self.outside.is_some() {
            row.out_start += slots.len() as u32;
            slots.extend(ids.iter().chain(&outside));
        }
        (slots, row)
    }
}

/// Flags that a policy sets.
pub(super) fn policy_flags() -> impl Strategy<Value = u16> {
    let rare = || prop::bool::weighted(0.3);
    let half = || prop::bool::ANY;
    let ranges = prop::bool::weighted(0.15);
    let local = || {
        prop_oneof![
            Just(0),
            Just(FrontendFlags::LOCAL_INSIDE),
            Just(FrontendFlags::LOCAL_OUTSIDE)
        ]
    };
    let in_turn = local().prop_map(|local| FrontendFlags::ROUND_ROBIN | local);
    let by_history = prop_oneof![
        3 => Just(0),
        1 => in_turn,
        1 => Just(FrontendFlags::LEAST_FLOWS),
    ];
    (
        rare(),
        rare(),
        half(),
        half(),
        ranges,
        prop::bool::weighted(0.2),
        by_history,
        prop::bool::weighted(0.4),
    )
        .prop_map(
            |(inside, outside, pods, clients, ranges, by_source, by_history, direct)| {
                [
                    (inside, FrontendFlags::DROP_INSIDE),
                    (outside, FrontendFlags::DROP_OUTSIDE),
                    (pods, FrontendFlags::MASQUERADE_PODS),
                    (clients, FrontendFlags::MASQUERADE_OUTSIDE),
                    (ranges, FrontendFlags::SOURCE_RANGES),
                    (by_source, FrontendFlags::SOURCE_HASH),
                    (direct, FrontendFlags::DIRECT_RETURN),
                ]
                .into_iter()
                .filter(|(set, _)| *set)
                .fold(by_history, |flags, (_, flag)| flags | flag)
            },
        )
}

/// Flags that mean nothing without services on the uplink.
pub(super) const MASQUERADE: u16 =
    FrontendFlags::MASQUERADE_PODS | FrontendFlags::MASQUERADE_OUTSIDE;

fn policy() -> impl Strategy<Value = PolicyPlan> {
    let mask = || prop_oneof![4 => Just(!0_u8), 2 => any::<u8>(), 1 => Just(0)];
    (
        prop_oneof![4 => Just(Kind::Cluster), 3 => Just(Kind::NodePort), 3 => Just(Kind::External)],
        mask(),
        prop::option::weighted(0.4, mask()),
        policy_flags(),
        affinity_secs(),
        any::<u8>(),
        prop_oneof![2 => Just(0), 1 => 1..12_u16],
    )
        .prop_map(
            |(kind, inside, outside, flags, affinity_secs, sources, table)| PolicyPlan {
                kind,
                inside,
                outside,
                flags,
                affinity_secs,
                sources,
                table,
            },
        )
}

/// Up to 20 services with up to 8 endpoints out of a shared stock.
pub fn world() -> impl Strategy<Value = WorldPlan> {
    let place = prop_oneof![
        8 => (0..6_u8).prop_map(Place::Local),
        8 => (0..40_u8).prop_map(Place::Remote),
        2 => (0..4_u8).prop_map(Place::Kernel),
        2 => (0..4_u8).prop_map(Place::Bridged),
        1 => (0..4_u8).prop_map(Place::Outside),
        2 => Just(Place::Host),
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
        0..CONFIGS,
        any::<Index>(),
        any::<Index>(),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.9),
        vec(any::<Index>(), 0..=8),
        policy(),
    )
        .prop_map(
            |(
                v6,
                address,
                port,
                proto,
                flows_decide,
                may_be_lost,
                address_row,
                backends,
                policy,
            )| {
                ServicePlan {
                    v6,
                    address,
                    port,
                    proto,
                    flows_decide,
                    may_be_lost,
                    address_row,
                    backends,
                    policy,
                }
            },
        );
    (
        prop_oneof![
            5 => Just(0_u8), 2 => Just(1), 1 => Just(2), 1 => Just(3),
            8 => Just(4), 3 => Just(5), 3 => Just(6), 3 => Just(9),
        ],
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
        prop::option::weighted(0.4, 0..4_u8),
        prop::option::weighted(
            0.5,
            (0..9_u8, prop::option::weighted(0.5, (0..8_u8, 0..4_u32))),
        ),
    )
        .prop_map(
            |(config, pods, peers, nodes, services, backends, direct, service_network)| WorldPlan {
                config,
                pods,
                peers,
                nodes,
                services,
                backends,
                direct,
                service_network,
            },
        )
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
        if let Some(bits) = self.direct {
            for (v6, all) in [(false, 32), (true, 128)] {
                world
                    .networks
                    .push((outside_ip(v6, 8), all - bits, Network::DIRECT));
            }
        }
        if let Some((bits, own)) = self.service_network {
            for (v6, all) in [(false, 32), (true, 128)] {
                let network = service_ip(v6, 0);
                world
                    .networks
                    .push((network, all - bits, Network::SERVICES));
                if let Some((address, flags)) = own.filter(|(address, _)| bits > 0 || *address > 0)
                {
                    world.networks.push((service_ip(v6, address), all, flags));
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
            let (addr, port) = match plan.policy.kind {
                Kind::Cluster => (service_ip(plan.v6, plan.address), port),
                Kind::External => (external_ip(plan.v6, plan.address), port),
                Kind::NodePort => (own_ip(plan.v6), 30_000 + u16::from(plan.address)),
            };
            let ids = self.backends_of(world, plan, proto, overlay);
            let pick = |mask: u8| {
                let bit = |at: usize| mask & (1 << (at % 8)) != 0;
                let ids = ids.iter().enumerate();
                let chosen = ids.filter(|(at, _)| bit(*at)).map(|(_, id)| *id);
                chosen.collect::<Vec<u32>>()
            };
            let outside = plan.policy.outside.map(pick);
            let slots = Slots::of(pick(plan.policy.inside), outside, plan.policy.table);
            let (ids, row) = slots.at(world.segments.len() as u32);
            world.segments.extend(ids);
            let service = 1000 + number as u32;
            let mut flags = plan.policy.flags;
            if world.config.features & Feature::UPLINK_SERVICES == 0 {
                flags &= !MASQUERADE;
            }
            for (set, flag) in [
                (plan.flows_decide, FrontendFlags::FLOWS_DECIDE),
                (plan.may_be_lost, FrontendFlags::FLOWS_MAY_BE_LOST),
            ] {
                flags |= if set { flag } else { 0 };
            }
            for one in (0..SOURCES).filter(|one| plan.policy.sources & (1 << one) != 0) {
                let (network, length) = source_network(plan.v6, one);
                world.sources.push((service, network, length));
            }
            let frontend = Frontend {
                service,
                affinity_secs: plan.policy.affinity_secs,
                flags,
                ..row
            };
            world.frontends.insert((addr, port, proto), frontend);
            // A node's own address is never all a service's.
            if plan.address_row && plan.policy.kind != Kind::NodePort {
                let marker = Frontend {
                    flags: FrontendFlags::ADDRESS,
                    ..Frontend::default()
                };
                world.frontends.insert((addr, 0, 0), marker);
            }
        }
        let backends = world.backends.keys();
        let live = backends.map(|key| (*key, i64::from(key.1 * 7 % 5)));
        world.live = live.filter(|(_, count)| *count > 0).collect();
        let rows = world
            .frontends
            .values()
            .map(|row| (row.turns(false), u64::from(row.start)));
        world.turns = rows.filter(|(row, turns)| *row > 0 && *turns > 0).collect();
    }

    /// Writes the backends of a service and gives their ids in ascending order.
    fn backends_of(
        &self,
        world: &mut World,
        plan: &ServicePlan,
        proto: u8,
        overlay: bool,
    ) -> Vec<u32> {
        let version = if plan.v6 { 6 } else { 4 };
        let stock: Vec<(usize, &BackendPlan)> = self
            .backends
            .iter()
            .enumerate()
            .filter(|(_, b)| b.v6 == plan.v6)
            .collect();
        let mut ids = Vec::new();
        for pick in plan.backends.iter().filter(|_| !stock.is_empty()) {
            let (at, backend) = stock[pick.index(stock.len())];
            // One id for each protocol that the backend is used with.
            let place = PROTOS.iter().position(|p| *p == proto).unwrap_or(0);
            let id = 1 + (at * PROTOS.len() + place) as u32;
            let row = backend.row(&world.config, proto, overlay);
            world.backends.insert((version, id), row);
            ids.push(id);
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl BackendPlan {
    fn row(&self, config: &Config, proto: u8, overlay: bool) -> BackendRow {
        let (addr, via) = match self.place {
            Place::Local(number) => (pod_ip(self.v6, number), local_via(number)),
            Place::Remote(number) if overlay => {
                let node = number % 4;
                let mut via = vxlan_via(config, node_ip(node));
                // Some of the nodes answer clients themselves.
                via.flags = if node % 2 == 0 { Via::DIRECT } else { 0 };
                (remote_ip(self.v6, node, 10 + number), via)
            }
            Place::Remote(number) => (remote_ip(self.v6, number % 4, 10 + number), Via::KERNEL),
            Place::Kernel(number) => (remote_ip(self.v6, 100, number), Via::KERNEL),
            // Some of them send, too.
            Place::Bridged(number) => (pod_ip(self.v6, 4 + number), Via::KERNEL),
            Place::Outside(number) => (outside_ip(self.v6, 6 + number), Via::KERNEL),
            Place::Host => (own_ip(self.v6), host_via()),
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
