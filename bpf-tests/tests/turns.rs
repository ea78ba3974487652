//! Turns and living flows are counted exactly, also where several CPUs open and close flows
//! at once. Needs root, two CPUs and `target/bpf/tulle.bpf.o`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bpf_tests::engine::{Change, Engine as _, Kernel, object};
use bpf_tests::model::{Ctx, FlowId, FlowRow, World};
use bpf_tests::packet::{Spec, Upper, tcp_flag};
use bpf_tests::strategies::config;
use datapath_common::{Direction, Feature, Frontend, FrontendFlags, Hook, proto};

/// What the backends weigh, by id less 1.
const WEIGHTS: [u64; 3] = [3, 1, 2];
/// Their turns in a table.
const TABLE: [u32; 6] = [1, 3, 1, 2, 3, 1];
/// Rounds of the table between two looks; each CPU opens half of the flows.
const ROUNDS: u64 = 40;
const SERVICE: u32 = 9;

fn address(v6: bool, number: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(number)).into()
    } else {
        Ipv4Addr::from_bits(0xc633_0000 + number).into()
    }
}

fn frontend(table: u16) -> Frontend {
    Frontend {
        service: SERVICE,
        start: 1,
        len: WEIGHTS.len() as u32,
        table,
        out_start: 1,
        out_len: WEIGHTS.len() as u32,
        out_table: table,
        flags: FrontendFlags::ROUND_ROBIN | FrontendFlags::FLOWS_DECIDE,
        ..Frontend::default()
    }
}

/// Where the service is.
fn at(v6: bool) -> (IpAddr, u16, u8) {
    (address(v6, 0x8000), 80, proto::TCP)
}

fn world(v6: bool) -> World {
    let mut config = config(0);
    config.features |= Feature::UPLINK_SERVICES | Feature::COUNT_SERVICES;
    config.flows_per_tick = 0;
    let mut world = World::new(config);
    world.now = 1_000_000;
    world.segments = [0, 1, 2, 3].into_iter().chain(TABLE).collect();
    for id in 1..=WEIGHTS.len() as u32 {
        world.add_backend(id, address(v6, id));
    }
    world.frontends.insert(at(v6), frontend(TABLE.len() as u16));
    world
}

/// The `number`th client's SYN.
fn syn(v6: bool, number: u32) -> Vec<u8> {
    from(v6, number, tcp_flag::SYN)
}

/// What the `number`th client sends.
fn from(v6: bool, number: u32, flag: u8) -> Vec<u8> {
    let (to, port, _) = at(v6);
    let from = address(v6, 0x4000 + number / 20_000);
    let sport = 20_000 + (number % 20_000) as u16;
    Spec::new(Upper::Tcp(flag), from, sport, to, port).build()
}

/// Flows that each backend was given so far, and turns that were taken. The look opens a
/// flow itself, which takes a turn.
fn opened(kernel: &mut Kernel, v6: bool, number: u32) -> (BTreeMap<u32, u64>, u64) {
    let frame = syn(v6, number);
    let seen = kernel.run(Hook::NicIn, &frame, &Ctx::default()).unwrap();
    let traffic = seen.backend_traffic.iter();
    let flows = traffic.map(|((_, id), traffic)| (*id, traffic.flows));
    (flows.collect(), seen.turns[&(2 * SERVICE)])
}

#[test]
fn kp_161_two_cpus_share_turns_exactly() {
    let mut kernel = Kernel::new(object().unwrap()).unwrap();
    for v6 in [false, true] {
        kernel.load(&world(v6)).unwrap();
        let mut next = 0;
        let mut number = || {
            next += 1;
            next
        };
        let (mut before, mut turns) = opened(&mut kernel, v6, number());
        assert_eq!((before.values().sum::<u64>(), turns), (1, 1));
        let flows = ROUNDS * TABLE.len() as u64;
        for look in 0..12 {
            let pair = |_| [syn(v6, number()), syn(v6, number())];
            let pairs: Vec<[Vec<u8>; 2]> = (0..flows / 2 - 1).map(pair).collect();
            kernel.race(Hook::NicIn, &pairs).unwrap();
            // The last two flows of the window: one more, and the look itself.
            let frame = syn(v6, number());
            kernel.run(Hook::NicIn, &frame, &Ctx::default()).unwrap();
            let (after, taken) = opened(&mut kernel, v6, number());
            assert_eq!(taken - turns, flows, "look {look}: a turn for each flow");
            for (id, weight) in (1..).zip(WEIGHTS) {
                let had = after[&id] - before.get(&id).copied().unwrap_or(0);
                assert_eq!(had, ROUNDS * weight, "look {look}, backend {id}");
            }
            (before, turns) = (after, taken);
        }
        // Another table goes on, by the same counter: without weights, backend after backend.
        let change = Change::Frontend(at(v6), Some(frontend(0)));
        kernel.apply_change(&change).unwrap();
        for _ in 0..7 {
            let turn = turns % WEIGHTS.len() as u64;
            let (after, taken) = opened(&mut kernel, v6, number());
            let id = turn as u32 + 1;
            assert_eq!(after[&id], before[&id] + 1, "turn {turns}");
            (before, turns) = (after, taken);
        }
    }
}

/// Living flows that each backend has by the programs' count.
fn live(kernel: &mut Kernel, v6: bool) -> BTreeMap<u32, i64> {
    // Of a client that is not there: changes nothing.
    let frame = from(v6, 1_000_000, tcp_flag::RST);
    let seen = kernel.run(Hook::NicIn, &frame, &Ctx::default()).unwrap();
    seen.live
        .iter()
        .map(|((_, id), flows)| (*id, *flows))
        .collect()
}

/// What the backends of these flows send, by the client's port.
fn answers(flows: &HashMap<FlowId, FlowRow>, flag: u8) -> BTreeMap<u32, Vec<u8>> {
    let open = flows.iter().filter(|(_, row)| row.counted);
    open.map(|(id, row)| {
        assert_eq!(id.direction, Direction::Forward);
        let (to, port) = row.translated_source().unwrap();
        let spec = Spec::new(Upper::Tcp(flag), row.addr, row.port, to, port);
        (u32::from(id.tuple.sport), spec.build())
    })
    .collect()
}

#[test]
fn kp_161_two_cpus_count_each_flow_once_and_off_once() {
    const FLOWS: u32 = 48;
    let mut kernel = Kernel::new(object().unwrap()).unwrap();
    for v6 in [false, true] {
        let mut world = world(v6);
        // What the backends send comes to the node, and meets the same program.
        (world.config.snat_first, world.config.snat_ports) = (20_000, 40_000);
        for front in world.frontends.values_mut() {
            front.flags = FrontendFlags::LEAST_FLOWS
                | FrontendFlags::FLOWS_DECIDE
                | FrontendFlags::MASQUERADE_OUTSIDE;
            (front.table, front.out_table) = (0, 0);
        }
        for round in 0..40 {
            if round % 2 == 0 {
                // Closing rows would fill the table.
                kernel.load(&world).unwrap();
            }
            let first = round * 2 * FLOWS;
            let opened = (0..FLOWS).map(|n| [0, 1].map(|cpu| syn(v6, first + 2 * n + cpu)));
            let flows = kernel
                .race(Hook::NicIn, &opened.collect::<Vec<_>>())
                .unwrap();
            let rows = flows.values().filter(|row| row.counted).count();
            let counts = live(&mut kernel, v6);
            assert_eq!(
                counts.values().sum::<i64>(),
                i64::from(2 * FLOWS),
                "{counts:?}"
            );
            assert_eq!(rows, 2 * FLOWS as usize, "round {round}");
            // Two draws keep them near each other.
            let (most, least) = (counts.values().max(), counts.values().min());
            assert!(
                most.zip(least)
                    .is_some_and(|(most, least)| most - least <= 12),
                "{counts:?}"
            );
            let (fin, rst) = (tcp_flag::FIN | tcp_flag::ACK, tcp_flag::RST);
            let backends = |flag: u8| answers(&flows, flag);
            let clients = (0..2 * FLOWS).map(|n| (n, from(v6, first + n, fin)));
            let closed: Vec<[Vec<u8>; 2]> = match round % 4 {
                // Both ends of each flow at once.
                0 | 1 => {
                    let backends = backends(if round % 4 == 0 { fin } else { rst });
                    let both = |(n, client): (u32, Vec<u8>)| {
                        let mut both = [client, backends[&(20_000 + first + n)].clone()];
                        if n % 2 == 1 {
                            both.reverse();
                        }
                        both
                    };
                    clients.map(both).collect()
                }
                // The client twice.
                2 => {
                    let twice = |(n, client)| [client, from(v6, first + n, rst)];
                    clients.map(twice).collect()
                }
                // The backend alone, two flows at a time.
                _ => {
                    let backends: Vec<Vec<u8>> = backends(fin).into_values().collect();
                    let pairs = backends.chunks_exact(2);
                    pairs
                        .map(|pair| [pair[0].clone(), pair[1].clone()])
                        .collect()
                }
            };
            let flows = kernel.race(Hook::NicIn, &closed).unwrap();
            assert_eq!(flows.values().filter(|row| row.counted).count(), 0);
            assert_eq!(live(&mut kernel, v6), BTreeMap::new(), "round {round}");
        }
    }
}
