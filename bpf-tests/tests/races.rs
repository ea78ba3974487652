//! Flows that open on two CPUs at once never get one port between them. Needs root, two
//! CPUs and `target/bpf/tulle.bpf.o`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bpf_tests::engine::{Engine as _, Kernel, object};
use bpf_tests::model::{FlowId, FlowRow, Tuple, World};
use bpf_tests::packet::{Spec, Upper, tcp_flag};
use bpf_tests::strategies::config;
use datapath_common::{
    Direction, Feature, FlowState, Frontend, FrontendFlags, Hook, NodeClient, proto,
};

/// Services, each with a backend of its own: so many races at a time. Few enough that the
/// flow table evicts nothing.
const SERVICES: u32 = 48;
/// Times that they are raced for.
const TURNS: u32 = 150;
/// Ports for translated sources.
const FIRST: u16 = 2000;
const PORTS: u16 = 2;
const NOW: u32 = 1_000_000;

/// Backend `number`, and the address of its service with `vip`.
fn address(v6: bool, vip: bool, number: u32) -> IpAddr {
    let number = number + if vip { 0x8000 } else { 0 };
    if v6 {
        Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(number)).into()
    } else {
        Ipv4Addr::from_bits(0xc633_0000 + number).into()
    }
}

fn client(v6: bool) -> IpAddr {
    address(v6, false, 0x4001)
}

/// Each service has frontends at ports 80 and 81.
fn world(v6: bool, flags: u16) -> World {
    let mut config = config(0);
    config.features |= Feature::UPLINK_SERVICES;
    config.flows_per_tick = 0;
    (config.snat_first, config.snat_ports) = (FIRST, PORTS);
    let mut world = World::new(config);
    world.now = NOW;
    world.segments = (0..=SERVICES).collect();
    for id in 1..=SERVICES {
        world.add_backend(id, address(v6, false, id));
        for port in [80, 81] {
            let frontend = Frontend {
                service: id,
                start: id,
                len: 1,
                out_start: id,
                out_len: 1,
                flags,
                ..Frontend::default()
            };
            world
                .frontends
                .insert((address(v6, true, id), port, proto::TCP), frontend);
        }
    }
    world
}

/// The dead reply row by which backend `id` answered `dst` and `port`.
fn dead(world: &mut World, v6: bool, id: u32, (dst, port): (IpAddr, u16), nat: bool) {
    let tuple = Tuple {
        src: address(v6, false, id),
        dst,
        sport: 8080,
        dport: port,
        proto: proto::TCP,
    };
    let row = FlowRow {
        addr: address(v6, true, id),
        port: 443,
        nat: nat.then(|| (client(v6), 999)),
        state: FlowState::Closing,
        hairpin: false,
        node: NodeClient::No,
        backend: id,
        generation: 1,
        service: id,
        counted: false,
        opened: NOW - 2000,
        seen: NOW - 2000,
    };
    world.flows.insert(tuple.reply(), row);
}

fn syn(v6: bool, sport: u16, id: u32, dport: u16) -> Spec {
    let upper = Upper::Tcp(tcp_flag::SYN);
    Spec::new(upper, client(v6), sport, address(v6, true, id), dport)
}

/// What the backend knows the client as, of a flow that is in the table.
fn known_as(flows: &HashMap<FlowId, FlowRow>, spec: &Spec) -> Option<(IpAddr, u16)> {
    let tuple = Tuple {
        src: spec.src,
        dst: spec.dst,
        sport: spec.sport,
        dport: spec.dport,
        proto: proto::TCP,
    };
    let row = flows.get(&tuple.forward())?;
    Some(row.translated_source().unwrap_or((spec.src, spec.sport)))
}

/// Races for all services; says how often two flows had one tuple, how often the
/// reply row was not that of the flow that had it, and how often a packet was dropped
/// because the lock was not to be had.
fn faults(
    kernel: &mut Kernel,
    world: &World,
    v6: bool,
    pairs: impl Fn(u32) -> [Spec; 2],
) -> (u32, u32, u32) {
    kernel.load(world).unwrap();
    let pairs: Vec<_> = (1..=SERVICES).map(pairs).collect();
    let frames: Vec<_> = pairs
        .iter()
        .map(|pair| pair.each_ref().map(Spec::build))
        .collect();
    let flows = kernel.race(Hook::NicIn, &frames).unwrap();
    let replies = flows.keys().filter(|id| id.direction == Direction::Reply);
    assert!(replies.count() >= SERVICES as usize, "rows were evicted");
    let (mut twice, mut others, mut dropped) = (0, 0, 0);
    for (id, pair) in (1..).zip(&pairs) {
        let known = pair.each_ref().map(|spec| known_as(&flows, spec));
        assert_ne!(known, [None; 2], "neither flow was opened");
        dropped += u32::from(known.contains(&None));
        twice += u32::from(known[0] == known[1]);
        for (spec, known) in pair.iter().zip(known) {
            let Some((dst, dport)) = known else {
                continue;
            };
            let reply = Tuple {
                src: address(v6, false, id),
                dst,
                sport: 8080,
                dport,
                proto: proto::TCP,
            };
            let is_own = flows.get(&reply.reply()).is_some_and(|row| {
                (row.addr, row.port) == (spec.dst, spec.dport)
                    && row
                        .translated_source()
                        .is_none_or(|source| source.1 == spec.sport)
            });
            others += u32::from(!is_own);
        }
    }
    (twice, others, dropped)
}

fn race(
    turns: u32,
    flags: u16,
    prepare: impl Fn(&mut World, bool),
    pairs: impl Fn(bool, u32) -> [Spec; 2],
) {
    let mut kernel = Kernel::new(object().unwrap()).unwrap();
    let mut sum = (0, 0);
    let mut dropped = 0;
    for v6 in [false, true] {
        let mut world = world(v6, flags);
        prepare(&mut world, v6);
        for _ in 0..turns {
            let (twice, others, late) = faults(&mut kernel, &world, v6, |id| pairs(v6, id));
            sum = (sum.0 + twice, sum.1 + others);
            dropped += late;
        }
    }
    assert_eq!(
        sum,
        (0, 0),
        "of {} races: one tuple for two flows, and reply rows of others",
        2 * turns * SERVICES
    );
    // A CPU that is taken away keeps its lock: seldom, and the client comes again.
    assert!(
        dropped * 50 <= 2 * turns * SERVICES,
        "{dropped} packets met a lock"
    );
}

/// Two clients want the same few ports, all of which dead flows have.
#[test]
fn two_cpus_that_take_over_dead_ports_never_get_the_same() {
    let prepare = |world: &mut World, v6: bool| {
        let node = world.node_address(client(v6));
        for id in 1..=SERVICES {
            for port in FIRST..FIRST + PORTS {
                dead(world, v6, id, (node, port), true);
            }
        }
    };
    race(
        TURNS,
        FrontendFlags::MASQUERADE_OUTSIDE,
        prepare,
        |v6, id| [syn(v6, 40_000, id, 80), syn(v6, 40_001, id, 80)],
    );
}

/// One client port is used for two services with one backend.
#[test]
fn two_cpus_never_open_two_flows_with_one_tuple() {
    race(
        TURNS / 4,
        0,
        |_, _| {},
        |v6, id| [syn(v6, 40_000, id, 80), syn(v6, 40_000, id, 81)],
    );
}

/// The same where a dead flow had the tuple.
#[test]
fn two_cpus_never_open_two_flows_with_a_dead_ones_tuple() {
    let prepare = |world: &mut World, v6: bool| {
        for id in 1..=SERVICES {
            dead(world, v6, id, (client(v6), 40_000), false);
        }
    };
    race(TURNS / 4, 0, prepare, |v6, id| {
        [syn(v6, 40_000, id, 80), syn(v6, 40_000, id, 81)]
    });
}
