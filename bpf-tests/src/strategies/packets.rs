//! Packets, biased to where the rules branch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{Direction, Hook, Mac, proto};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::Index;

use super::places::{node_ip, outside_ip, own_ip, pod_ip, remote_ip, service_ip};
use super::targets::{self, echo_of, pick_flow};
use crate::model::direct::{MARK, name};
use crate::model::flow::reply_of;
use crate::model::{Ctx, FlowId, FlowRow, Tuple, World};
use crate::packet::{Piece, Spec, Sum, Tunnel, Upper, tcp_flag, tunnel};

/// Places in an overlay packet without outer options.
mod tunnelled {
    use std::ops::Range;

    /// The octet behind the VNI.
    pub const MARK_AT: usize = 49;
    /// The inner Ethernet addresses.
    pub const NAME: Range<usize> = 50..62;
}

/// Where a packet is aimed at.
#[derive(Clone, Debug)]
pub enum Aim {
    /// A frontend.
    Frontend(Index),
    /// The reply of an open flow.
    Reply(Index),
    /// Another packet of an open flow.
    Again(Index),
    /// The frontend of an open flow, from another client.
    Beside(Index),
    /// Another frontend, with the backend of an open flow if there is one, from the
    /// client of that flow.
    Sibling(Index, Index),
    /// The backend of an open flow, straight from its client.
    Straight(Index),
    /// A service address, whatever the port.
    ServiceAddress(u8),
    /// A pod of this node, there or not.
    Pod(u8),
    /// A host of another node's pod network, known or not.
    Remote(u8, u8),
    /// This node: its own address or the VTEP device's.
    Own(bool),
    /// Out of the cluster, from a pod: to this host.
    Leaving(u8),
    /// An ICMP error that may be about a packet of an open flow.
    Error(Index, ErrorPlan),
    /// A place that nobody knows, or that is the kernel's: by number.
    Elsewhere(u8),
}

/// What is wrong with an ICMP error, or who sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorPlan {
    /// Its type: one of those of the family.
    kind: u8,
    /// Sent by whom the packet was for; otherwise by a router.
    by_target: bool,
    /// About something else: one more than the port.
    other: bool,
    /// About a later fragment.
    later: bool,
    /// Quotes options or extension headers.
    options: bool,
    /// Octets of the upper packet that are quoted.
    quoted: usize,
}

fn error_plan() -> impl Strategy<Value = ErrorPlan> {
    let rare = || prop::bool::weighted(0.06);
    let quoted =
        prop_oneof![6 => Just(8_usize), 2 => 8..60_usize, 1 => 0..8_usize, 1 => Just(1400)];
    (0..5_u8, any::<bool>(), rare(), rare(), rare(), quoted).prop_map(
        |(kind, by_target, other, later, options, quoted)| ErrorPlan {
            kind,
            by_target,
            other,
            later,
            options,
            quoted,
        },
    )
}

#[derive(Clone, Debug)]
struct TunnelPlan {
    node: u8,
    option_words: u8,
    piece: Option<Piece>,
    flags: u8,
    other_vni: bool,
    other_port: bool,
    other_mac: bool,
    other_destination: bool,
    /// Whether another node chose the backend.
    names: bool,
}

/// A packet, planned.
#[derive(Clone, Debug)]
pub struct PacketPlan {
    /// The hook that it meets.
    pub hook: Hook,
    aim: Aim,
    v6: bool,
    forwarded: bool,
    source: u8,
    sport: u16,
    dport: u16,
    upper: Upper,
    ttl: u8,
    payload: usize,
    dont_fragment: bool,
    piece: Option<Piece>,
    id: u32,
    option_words: u8,
    extensions: Vec<u8>,
    vlan: Option<u16>,
    sum: Sum,
    tunnel: Option<TunnelPlan>,
    padding: usize,
    cut: Option<(Index, usize)>,
    flips: Vec<(Index, u8)>,
}

fn upper() -> impl Strategy<Value = Upper> {
    use tcp_flag::{ACK, FIN, PSH, RST, SYN};
    prop_oneof![
        6 => prop_oneof![
            Just(SYN), Just(SYN | ACK), Just(ACK), Just(PSH | ACK), Just(FIN | ACK), Just(RST),
            any::<u8>(),
        ].prop_map(Upper::Tcp),
        4 => Just(Upper::Udp),
        3 => prop_oneof![
            (0..16_u8).prop_map(Some), Just(Some(0)), Just(Some(1)), Just(None)
        ].prop_map(Upper::Sctp),
        2 => prop_oneof![Just(8_u8), Just(8), Just(0), Just(3), Just(11), Just(128), Just(128), Just(129), Just(1), any::<u8>()]
            .prop_map(Upper::Icmp),
        1 => prop_oneof![Just(4_u8), Just(41), Just(47), Just(50), Just(51), any::<u8>()]
            .prop_map(Upper::Other),
    ]
}

fn aim() -> impl Strategy<Value = Aim> {
    prop_oneof![
        10 => any::<Index>().prop_map(Aim::Frontend),
        6 => any::<Index>().prop_map(Aim::Reply),
        6 => any::<Index>().prop_map(Aim::Again),
        6 => any::<Index>().prop_map(Aim::Beside),
        6 => any::<(Index, Index)>().prop_map(|(flow, other)| Aim::Sibling(flow, other)),
        2 => any::<Index>().prop_map(Aim::Straight),
        2 => (0..8_u8).prop_map(Aim::ServiceAddress),
        3 => (0..7_u8).prop_map(Aim::Pod),
        3 => (0..5_u8, any::<u8>()).prop_map(|(node, host)| Aim::Remote(node, host)),
        1 => any::<bool>().prop_map(Aim::Own),
        6 => (0..6_u8).prop_map(Aim::Leaving),
        6 => (any::<Index>(), error_plan()).prop_map(|(pick, plan)| Aim::Error(pick, plan)),
        2 => (0..10_u8).prop_map(Aim::Elsewhere),
    ]
}

fn piece() -> impl Strategy<Value = Option<Piece>> {
    let piece = prop_oneof![
        3 => Just(Piece { offset: 0, more: true }),
        3 => Just(Piece { offset: 100, more: false }),
        1 => (any::<u16>(), any::<bool>())
            .prop_map(|(offset, more)| Piece { offset: offset & 0x1fff, more }),
    ];
    weighted(0.12, piece)
}

fn tunnel_plan() -> impl Strategy<Value = TunnelPlan> {
    let rare = || prop::bool::weighted(0.06);
    (
        0..5_u8,
        prop_oneof![15 => Just(0_u8), 1 => 1..3_u8],
        prop_oneof![19 => Just(None), 1 => piece()],
        prop_oneof![15 => Just(8_u8), 1 => any::<u8>()],
        (rare(), rare(), rare(), rare()),
        prop::bool::weighted(0.35),
    )
        .prop_map(
            |(node, option_words, piece, flags, other, names)| TunnelPlan {
                node,
                option_words,
                piece,
                flags,
                other_vni: other.0,
                other_port: other.1,
                other_mac: other.2,
                other_destination: other.3,
                names,
            },
        )
}

/// Any packet at any hook.
pub fn packet() -> impl Strategy<Value = PacketPlan> {
    let hook = prop_oneof![
        6 => Just(Hook::PodFrom), 1 => Just(Hook::PodTo), 6 => Just(Hook::NicIn),
        2 => Just(Hook::Xdp), 4 => Just(Hook::NicOut),
    ];
    let ttl =
        prop_oneof![12 => Just(64_u8), 1 => Just(0), 1 => Just(1), 2 => Just(2), 1 => any::<u8>()];
    let payload = prop_oneof![
        3 => 0..64_usize, 2 => 0..620_usize, 1 => 1380..1500_usize, 1 => 20..60_usize,
    ];
    let sum = prop_oneof![
        8 => Just(Sum::Right), 2 => (1..=u16::MAX).prop_map(Sum::Flipped), 1 => Just(Sum::Zero),
    ];
    let small_port = prop_oneof![
        Just(40000_u16),
        Just(40001),
        Just(40002),
        1024..1030_u16,
        any::<u16>()
    ];
    let ends = (
        aim(),
        any::<bool>(),
        0..9_u8,
        small_port,
        any::<u16>(),
        upper(),
        prop::bool::weighted(0.2),
    );
    let shape = (
        ttl,
        payload,
        prop::bool::weighted(0.6),
        piece(),
        0..4_u32,
        prop_oneof![9 => Just(0_u8), 1 => 1..11_u8],
        prop_oneof![
            9 => Just(Vec::new()),
            1 => vec(prop_oneof![Just(0_u8), Just(43), Just(60), Just(44)], 1..8),
        ],
        weighted(0.03, any::<u16>()),
        sum,
    );
    let damage = (
        prop_oneof![9 => Just(0_usize), 1 => 1..20_usize],
        weighted(
            0.1,
            (any::<Index>(), prop_oneof![Just(120_usize), Just(2000)]),
        ),
        prop_oneof![9 => Just(Vec::new()), 1 => vec((any::<Index>(), 1..=255_u8), 1..4)],
    );
    (hook, ends, shape, weighted(0.35, tunnel_plan()), damage).prop_map(
        |(hook, ends, shape, tunnel, damage)| {
            // Where most clients of flows are.
            let hook = match ends.0 {
                Aim::Sibling(..) | Aim::Straight(_) if !ends.6 => Hook::PodFrom,
                _ => hook,
            };
            PacketPlan {
                hook: match ends.0 {
                    Aim::Leaving(_) => Hook::NicOut,
                    _ => hook,
                },
                aim: ends.0,
                v6: ends.1,
                forwarded: ends.6,
                source: ends.2,
                sport: ends.3,
                dport: ends.4,
                upper: ends.5,
                ttl: shape.0,
                payload: shape.1,
                dont_fragment: shape.2,
                piece: shape.3,
                id: shape.4,
                option_words: shape.5,
                extensions: shape.6,
                vlan: shape.7,
                sum: shape.8,
                tunnel: tunnel.filter(|_| matches!(hook, Hook::NicIn | Hook::Xdp)),
                padding: damage.0,
                cut: damage.1,
                flips: damage.2,
            }
        },
    )
}

impl PacketPlan {
    /// What comes with the frame.
    pub fn ctx(&self) -> Ctx {
        Ctx {
            ingress: if self.forwarded { 7 } else { 0 },
            ..Ctx::default()
        }
    }

    /// The frame, at least 14 octets of it.
    pub fn build(&self, world: &World) -> Vec<u8> {
        let tuple = self.tuple(world);
        let upper = match (tuple.proto, self.upper) {
            (proto::TCP, Upper::Tcp(_)) | (proto::UDP, _) | (proto::SCTP, Upper::Sctp(_)) => {
                if tuple.proto == proto::UDP {
                    Upper::Udp
                } else {
                    self.upper
                }
            }
            // The aim wants a protocol that was not planned.
            (proto::TCP, _) => Upper::Tcp(if self.source & 1 == 0 {
                tcp_flag::SYN
            } else {
                tcp_flag::ACK
            }),
            (proto::SCTP, _) => Upper::Sctp(Some(self.source & 1)),
            (proto::ICMP | proto::ICMPV6, _) if self.follows_flow() => Upper::Icmp(echo_of(&tuple)),
            (_, upper) => upper,
        };
        let mut spec = Spec::new(upper, tuple.src, tuple.sport, tuple.dst, tuple.dport);
        if self.tunnel.is_some() {
            spec.dst_mac = world.config.vtep_mac;
        }
        if self.tunnel.as_ref().is_some_and(|plan| plan.other_mac) {
            spec.dst_mac = Mac::new([0xee, 9, 9, 9, 9, 9]);
        }
        match (self.hook, self.id % 4) {
            (Hook::NicOut, _) => spec.src_mac = world.config.uplink_mac,
            // Who pretends to come out of the overlay.
            (Hook::NicIn, 0) if self.tunnel.is_none() => spec.src_mac = world.config.vtep_mac,
            _ => {}
        }
        spec.ttl = self.ttl;
        spec.payload = (0..self.payload)
            .map(|at| (at * 7 + self.source as usize) as u8)
            .collect();
        spec.dont_fragment = self.dont_fragment;
        spec.piece = self.piece;
        spec.id = self.id;
        spec.option_words = self.option_words;
        spec.extensions.clone_from(&self.extensions);
        spec.vlan = self.vlan;
        spec.sum = self.sum;
        if let Aim::Error(pick, plan) = &self.aim
            && let Some((id, row)) = pick_flow(world, *pick)
        {
            self.make_error(&mut spec, *plan, id, &row);
        }
        let mut frame = spec.build();
        if let Some(plan) = &self.tunnel {
            frame = tunnel(&self.outer(plan, world), &frame);
            if plan.names {
                self.name_backend(world, tuple, &mut frame);
            }
        }
        frame.extend(vec![0xee; self.padding]);
        if let Some((cut, within)) = self.cut {
            // Half of the cuts fall among the headers.
            frame.truncate(14 + cut.index(frame.len().min(within) - 13));
        }
        for (at, bits) in &self.flips {
            let at = at.index(frame.len());
            frame[at] ^= bits;
        }
        frame
    }

    /// Makes the overlay packet `frame` one of which another node chose the backend: that of the
    /// flow if there is one, as a rule, or some pod.
    fn name_backend(&self, world: &World, tuple: Tuple, frame: &mut [u8]) {
        let row = world.flows.get(&tuple.forward());
        let (addr, port) = match row.filter(|_| !self.source.is_multiple_of(4)) {
            Some(row) => (row.addr, row.port),
            None => (pod_ip(tuple.src.is_ipv6(), self.source % 6), 8080),
        };
        frame[tunnelled::MARK_AT] = MARK;
        frame[tunnelled::NAME].copy_from_slice(&name(addr, port));
    }

    fn follows_flow(&self) -> bool {
        matches!(
            self.aim,
            Aim::Reply(_) | Aim::Again(_) | Aim::Beside(_) | Aim::Sibling(..) | Aim::Straight(_)
        )
    }

    /// Makes the packet an ICMP error about one that this row is for.
    fn make_error(&self, spec: &mut Spec, plan: ErrorPlan, id: FlowId, row: &FlowRow) {
        // Of masqueraded flows with two fifths of the ports, replies are quoted in vain.
        let back = match (id.direction, self.dport % 5) {
            (Direction::Forward, 0 | 1) => reply_of(id.tuple, row).tuple,
            _ => id.tuple,
        };
        let v6 = back.src.is_ipv6();
        let upper = match back.proto {
            proto::TCP => Upper::Tcp(tcp_flag::ACK),
            proto::UDP => Upper::Udp,
            proto::SCTP => Upper::Sctp(Some(0)),
            _ if v6 => Upper::Icmp(128),
            _ => Upper::Icmp(8),
        };
        let dport = back.sport.wrapping_add(u16::from(plan.other));
        let mut about = Spec::new(upper, back.dst, back.dport, back.src, dport);
        about.ttl = 1;
        if plan.later {
            let first = self.source.is_multiple_of(2);
            about.piece = Some(Piece {
                offset: if first { 0 } else { 100 },
                more: first,
            });
        }
        if plan.options {
            about.option_words = 1;
            about.extensions = vec![60];
        }
        about.payload = vec![self.source; plan.quoted];
        spec.dst = about.src;
        spec.src = match plan.by_target {
            true => about.dst,
            false if self.hook == Hook::PodFrom => pod_ip(v6, 1),
            false => outside_ip(v6, 200 + self.source),
        };
        let kinds = if v6 {
            [1, 2, 3, 4, 0]
        } else {
            [3, 4, 5, 11, 12]
        };
        spec.upper = Upper::Icmp(kinds[plan.kind as usize % 5]);
        let header = match (v6, about.piece) {
            (false, _) => 20,
            (true, None) => 40,
            (true, Some(_)) => 48,
        };
        spec.payload = about
            .build()
            .into_iter()
            .skip(14)
            .take(header + plan.quoted)
            .collect();
        spec.piece = self.piece;
    }

    fn outer(&self, plan: &TunnelPlan, world: &World) -> Tunnel {
        let config = &world.config;
        let mut nodes: Vec<Ipv4Addr> = world.nodes.keys().copied().collect();
        nodes.sort();
        // Number 4 is no node of any world.
        let src = match plan.node {
            4 => node_ip(200),
            number => nodes
                .get(number as usize % nodes.len().max(1))
                .copied()
                .unwrap_or(node_ip(1)),
        };
        let own: Ipv4Addr = config.node_ip4.into();
        Tunnel {
            src,
            dst: if plan.other_destination {
                node_ip(99)
            } else {
                own
            },
            sport: 50000 + u16::from(self.source),
            dport: if plan.other_port {
                9999
            } else {
                config.vxlan_port
            },
            flags: plan.flags,
            vni: if plan.other_vni {
                config.vni ^ 0x0001_0000
            } else {
                config.vni
            },
            option_words: plan.option_words,
            piece: plan.piece,
        }
    }

    fn tuple(&self, world: &World) -> Tuple {
        match &self.aim {
            Aim::Reply(pick) => pick_flow(world, *pick).map(|(id, row)| match id.direction {
                Direction::Reply => id.tuple,
                Direction::Forward => reply_of(id.tuple, &row).tuple,
            }),
            Aim::Again(pick) => pick_flow(world, *pick)
                .map(|(id, row)| crate::model::flow::forward_of_any(id, &row).tuple),
            Aim::Beside(pick) => pick_flow(world, *pick).map(|(id, row)| {
                let open = crate::model::flow::forward_of_any(id, &row).tuple;
                let src = self.source_ip(open.dst.is_ipv6());
                let sport = self.sport;
                Tuple { src, sport, ..open }
            }),
            Aim::Sibling(pick, other) => pick_flow(world, *pick)
                .and_then(|(id, row)| targets::sibling(world, id, &row, *other)),
            Aim::Straight(pick) => {
                pick_flow(world, *pick).map(|(id, row)| targets::straight(id, &row))
            }
            Aim::Frontend(pick) => {
                let mut all: Vec<_> = world.frontends.keys().filter(|key| key.2 != 0).collect();
                all.sort();
                let key = if all.is_empty() {
                    None
                } else {
                    Some(*all[pick.index(all.len())])
                };
                key.map(|(dst, dport, proto)| {
                    let src = self.source_ip(dst.is_ipv6());
                    Tuple {
                        src,
                        dst,
                        sport: self.sport,
                        dport,
                        proto,
                    }
                })
            }
            Aim::Leaving(number) => {
                let (src, dst) = (
                    pod_ip(self.v6, self.source % 5),
                    outside_ip(self.v6, 6 + number),
                );
                let spec = Spec::new(self.upper, src, self.sport, dst, self.dport % 3);
                Some(Tuple {
                    src,
                    dst,
                    sport: self.sport,
                    dport: self.dport % 3,
                    proto: spec.proto(),
                })
            }
            _ => None,
        }
        .unwrap_or_else(|| {
            let dst = self.destination();
            let src = self.source_ip(self.v6);
            let spec = Spec::new(self.upper, src, self.sport, dst, self.dport);
            Tuple {
                src,
                dst,
                sport: self.sport,
                dport: self.dport,
                proto: spec.proto(),
            }
        })
    }

    fn destination(&self) -> IpAddr {
        let v6 = self.v6;
        match self.aim {
            Aim::ServiceAddress(number) => service_ip(v6, number),
            Aim::Pod(number) => pod_ip(v6, number),
            Aim::Remote(node, host) => remote_ip(v6, node, host),
            Aim::Own(false) => own_ip(v6),
            Aim::Own(true) if v6 => Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0).into(),
            Aim::Own(true) => Ipv4Addr::new(10, 244, 1, 0).into(),
            Aim::Frontend(_)
            | Aim::Reply(_)
            | Aim::Again(_)
            | Aim::Beside(_)
            | Aim::Sibling(..)
            | Aim::Straight(_)
            | Aim::Leaving(_)
            | Aim::Error(..) => remote_ip(v6, 0, 1),
            Aim::Elsewhere(number) if v6 => match number {
                0 => Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
                1 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 5),
                2 => Ipv6Addr::LOCALHOST,
                3 => Ipv6Addr::UNSPECIFIED,
                other => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(other)),
            }
            .into(),
            Aim::Elsewhere(number) => match number {
                0 => Ipv4Addr::new(224, 0, 0, 251),
                1 => Ipv4Addr::BROADCAST,
                2 => Ipv4Addr::new(169, 254, 1, 1),
                3 => Ipv4Addr::LOCALHOST,
                4 => Ipv4Addr::UNSPECIFIED,
                5 => Ipv4Addr::new(239, 255, 0, 1),
                other => Ipv4Addr::new(198, 51, 100, other),
            }
            .into(),
        }
    }

    fn source_ip(&self, v6: bool) -> IpAddr {
        match (self.hook, self.source) {
            (Hook::NicOut, 0..=4) | (Hook::NicIn, 5) => return own_ip(v6),
            // Another address of the node, if it is not forwarded.
            (Hook::NicOut, 5) => return outside_ip(v6, 5),
            (Hook::NicIn, 0..=4) if self.tunnel.is_none() => {
                return outside_ip(v6, 6 + self.source);
            }
            _ => {}
        }
        // The last two numbers are a remote host and a source that cannot be.
        match (self.source, v6, self.sport % 4) {
            (0..=6, ..) => pod_ip(v6, self.source % 5),
            (7, ..) => remote_ip(v6, 1, 77),
            (_, false, 0) => Ipv4Addr::UNSPECIFIED.into(),
            (_, false, 1) => Ipv4Addr::new(127, 3, 2, 1).into(),
            (_, false, 2) => Ipv4Addr::new(225, 1, 1, 1).into(),
            (_, false, _) => Ipv4Addr::BROADCAST.into(),
            (_, true, 0) => Ipv6Addr::UNSPECIFIED.into(),
            (_, true, 1) => Ipv6Addr::LOCALHOST.into(),
            (_, true, _) => Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 2).into(),
        }
    }
}
