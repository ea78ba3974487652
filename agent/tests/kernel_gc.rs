//! Expiry of flows, on real tables with rows of our own. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;

use std::collections::BTreeSet;

use aya::maps::{Array, Map};
use datapath_common::{
    Address as _, Affinity, AffinityKey, Backend, BackendState, Config, Counter, Flow, FlowKey,
    FlowState, Hook, IdleTicks, Ip4, Ip6, Reason, Traffic, Via, counter_index, maps, proto,
};
use kernel_support::{on_node, options, small};
use tulle_agent::kernel::gc::{STEP_ROWS, mate};
use tulle_agent::kernel::{
    AttachKind, Capacities, Clearing, Datapath, FlowGc, NamedBackend, Recount, now_ticks,
};
use tulle_agent::plan::FrontKey;

const NOW: u32 = 1_000_000;
const IDLE: IdleTicks = IdleTicks::DEFAULT;

fn key(sport: u16, protocol: u8) -> FlowKey<Ip4> {
    FlowKey {
        src: Ip4::new([10, 0, 0, 1]),
        dst: Ip4::new([10, 96, 0, 1]),
        sport,
        dport: 80,
        proto: protocol,
        direction: 0,
        reserved: 0,
    }
}

fn flow(state: FlowState, seen: u32) -> Flow<Ip4> {
    Flow {
        addr: Ip4::new([10, 0, 1, 9]),
        port: 8080,
        state: state as u8,
        hairpin: 0,
        backend: 5,
        generation: 2,
        service: 11,
        opened: 900_000,
        seen,
        ..Flow::default()
    }
}

fn put(datapath: &mut Datapath, key: FlowKey<Ip4>, row: Flow<Ip4>) {
    datapath.maps.flow_v4.insert(key, row, 0).unwrap();
}

/// Both rows of a flow.
fn put_pair(datapath: &mut Datapath, key: FlowKey<Ip4>, there: Flow<Ip4>, back_seen: u32) {
    put(datapath, key, there);
    let back = Flow {
        addr: key.dst,
        port: key.dport,
        seen: back_seen,
        ..there
    };
    put(datapath, mate(&key, &there), back);
}

fn is_there(datapath: &Datapath, key: &FlowKey<Ip4>) -> bool {
    datapath.maps.flow_v4.get(key, 0).is_ok()
}

#[test]
fn rows_go_when_their_state_says_so() {
    on_node(|node| {
        let mut datapath = node.open();
        let cases = [
            (proto::TCP, FlowState::Opening, IDLE.tcp_opening),
            (proto::TCP, FlowState::Established, IDLE.tcp_established),
            (proto::TCP, FlowState::Closing, IDLE.tcp_closing),
            (proto::UDP, FlowState::Opening, IDLE.udp_opening),
            (proto::UDP, FlowState::Established, IDLE.udp_established),
            (proto::SCTP, FlowState::Established, IDLE.sctp_established),
        ];
        let mut expected = Vec::new();
        for (n, (protocol, state, limit)) in (0u16..).zip(cases) {
            let (alive, dead) = (key(2 * n, protocol), key(2 * n + 1, protocol));
            put(&mut datapath, alive, flow(state, NOW - limit));
            put(&mut datapath, dead, flow(state, NOW - limit - 1));
            expected.push((alive, dead));
        }
        let pass = FlowGc::run(&datapath.maps, &IDLE, NOW).unwrap();
        assert_eq!((pass.removed, pass.total(4), pass.total(6)), (6, 6, 0));
        assert_eq!(pass.rows[&(4, FlowState::Opening as u8)], 2);
        assert_eq!(pass.rows[&(4, FlowState::Established as u8)], 3);
        assert_eq!(pass.rows[&(4, FlowState::Closing as u8)], 1);
        for (alive, dead) in &expected {
            assert!(is_there(&datapath, alive), "{alive:?}");
            assert!(!is_there(&datapath, dead), "{dead:?}");
        }
        let pass = FlowGc::run(&datapath.maps, &IDLE, NOW).unwrap();
        assert_eq!((pass.removed, pass.total(4)), (0, 6));
    });
}

#[test]
fn a_flow_lives_as_long_as_either_row() {
    on_node(|node| {
        let mut datapath = node.open();
        let old = NOW - IDLE.tcp_established - 10;
        let open = |seen| flow(FlowState::Established, seen);
        put_pair(&mut datapath, key(1, proto::TCP), open(old), NOW);
        put_pair(&mut datapath, key(2, proto::TCP), open(NOW), old);
        put_pair(&mut datapath, key(3, proto::TCP), open(old), old);
        // The reply row belongs to a later flow of the same backend and port.
        let (stale, later) = (key(4, proto::TCP), Ip4::new([10, 96, 0, 77]));
        put(&mut datapath, stale, open(old));
        let other = Flow {
            addr: later,
            port: 80,
            ..open(NOW)
        };
        put(&mut datapath, mate(&stale, &open(old)), other);
        let pass = FlowGc::run(&datapath.maps, &IDLE, NOW).unwrap();
        assert_eq!((pass.removed, pass.total(4)), (3, 5));
        assert!(is_there(&datapath, &key(1, proto::TCP)));
        assert!(is_there(&datapath, &key(2, proto::TCP)));
        assert!(!is_there(&datapath, &key(3, proto::TCP)));
        assert!(!is_there(&datapath, &stale));
    });
}

#[test]
fn a_walk_tells_backends_and_ages() {
    on_node(|node| {
        let mut datapath = node.open();
        let open = flow(FlowState::Established, NOW);
        put(
            &mut datapath,
            key(1, proto::TCP),
            Flow {
                opened: 700,
                ..open
            },
        );
        put(
            &mut datapath,
            key(2, proto::TCP),
            Flow {
                opened: 600,
                backend: 6,
                ..open
            },
        );
        put(
            &mut datapath,
            key(3, proto::TCP),
            Flow {
                service: 12,
                generation: 3,
                ..open
            },
        );
        let gone = flow(FlowState::Opening, NOW - 5000);
        put(
            &mut datapath,
            key(4, proto::TCP),
            Flow {
                opened: 1,
                backend: 99,
                ..gone
            },
        );
        let key6 = FlowKey {
            src: Ip6::new([1; 16]),
            dst: Ip6::new([2; 16]),
            sport: 1,
            dport: 2,
            proto: proto::UDP,
            direction: 0,
            reserved: 0,
        };
        let flow6 = Flow {
            addr: Ip6::new([3; 16]),
            port: 1,
            state: FlowState::Opening as u8,
            hairpin: 0,
            backend: 5,
            generation: 1,
            service: 13,
            opened: 5,
            seen: NOW,
            ..Flow::default()
        };
        datapath.maps.flow_v6.insert(key6, flow6, 0).unwrap();
        let pass = FlowGc::run(&datapath.maps, &IDLE, NOW).unwrap();
        let mut named: Vec<_> = pass
            .backends
            .iter()
            .map(|b| (b.version, b.id, b.generation))
            .collect();
        named.sort_unstable();
        assert_eq!(named, [(4, 5, 2), (4, 5, 3), (4, 6, 2), (6, 5, 1)]);
        assert!(pass.backends.contains(&NamedBackend {
            version: 6,
            id: 5,
            generation: 1
        }));
        assert!(pass.names(4, 6, 2) && !pass.names(6, 6, 2) && !pass.names(4, 99, 2));
        assert_eq!(
            (pass.oldest[&11], pass.oldest[&12], pass.oldest[&13]),
            (600, 900_000, 5)
        );
        assert_eq!((pass.began, pass.removed, pass.total(6)), (NOW, 1, 1));
    });
}

/// A backend's row, and its count of living flows.
fn backend(datapath: &mut Datapath, node: &kernel_support::Node, id: u32, count: u64) {
    let row = Backend {
        addr: Ip4::new([10, 0, 1, 9]),
        port: 8080,
        proto: proto::TCP,
        state: BackendState::Active as u8,
        generation: 2,
        via: Via::KERNEL,
    };
    datapath.maps.back_v4.set(id, row, 0).unwrap();
    let live = Map::Array(node.map(maps::LIVE_V4));
    let mut live: Array<_, u64> = live.try_into().unwrap();
    live.set(id, count, 0).unwrap();
}

#[test]
fn counted_flows_that_a_walk_removes_count_no_more() {
    on_node(|node| {
        let mut datapath = node.open();
        backend(&mut datapath, node, 5, 4);
        backend(&mut datapath, node, 6, 4);
        let counted = Flow {
            counted: 1,
            ..flow(FlowState::Opening, NOW - 5000)
        };
        put_pair(&mut datapath, key(1, proto::UDP), counted, NOW - 5000);
        let former = Flow {
            generation: 1,
            ..counted
        };
        put(&mut datapath, key(2, proto::UDP), former);
        let living = Flow {
            backend: 6,
            seen: NOW,
            ..counted
        };
        put(&mut datapath, key(3, proto::UDP), living);
        let pass = FlowGc::run(&datapath.maps, &IDLE, NOW).unwrap();
        let live = |id| datapath.maps.live.get(4, id);
        // The reply row is marked too, which no program does: two rows of backend 5.
        assert_eq!((live(5), live(6)), (2, 4));
        assert_eq!(pass.counted.values().sum::<u64>(), 1);
    });
}

#[test]
fn what_two_walks_find_wrong_in_the_counts_is_corrected() {
    on_node(|node| {
        let mut datapath = node.open();
        for (id, count) in [(5, 7), (6, 0), (7, u64::MAX), (8, 3)] {
            backend(&mut datapath, node, id, count);
        }
        for (sport, id) in [(1, 5), (2, 5), (3, 6), (4, 8), (5, 8), (6, 8)] {
            let row = Flow {
                backend: id,
                counted: 1,
                ..flow(FlowState::Established, NOW)
            };
            put(&mut datapath, key(sport, proto::TCP), row);
        }
        let backends = || {
            (5..=8).map(|id| NamedBackend {
                version: 4,
                id,
                generation: 2,
            })
        };
        let live = |datapath: &Datapath| [5, 6, 7, 8].map(|id| datapath.maps.live.get(4, id));
        let mut recount = Recount::default();
        let mut walk = |datapath: &Datapath| {
            let counts = &datapath.maps.live;
            recount.begin(counts, backends());
            let pass = FlowGc::run(&datapath.maps, &IDLE, NOW).unwrap();
            recount.finish(counts, &pass, backends())
        };
        // Once may be by chance.
        assert_eq!(walk(&datapath), 0);
        assert_eq!(live(&datapath), [7, 0, -1, 3]);
        assert_eq!(walk(&datapath), 5 + 1 + 1);
        assert_eq!(live(&datapath), [2, 1, 0, 3]);
        assert_eq!((walk(&datapath), walk(&datapath)), (0, 0));
        assert_eq!(live(&datapath), [2, 1, 0, 3]);
    });
}

#[test]
fn a_large_table_is_walked_in_small_steps() {
    on_node(|node| {
        let capacities = tulle_agent::kernel::Capacities {
            flows: 65_536,
            ..kernel_support::small()
        };
        let options = kernel_support::options(tulle_agent::kernel::AttachKind::Tcx);
        let config = datapath_common::Config::EMPTY;
        let mut datapath = Datapath::open(&node.pins, &config, &capacities, &options).unwrap();
        for n in 0..20_000 {
            let seen = if n % 2 == 0 {
                NOW
            } else {
                NOW - IDLE.tcp_opening - 1
            };
            put(
                &mut datapath,
                key(n, proto::TCP),
                flow(FlowState::Opening, seen),
            );
        }
        let mut gc = FlowGc::new();
        let mut steps = 1;
        let pass = loop {
            if let Some(pass) = gc.step(&datapath.maps, &IDLE, NOW, &|_| false).unwrap() {
                break pass;
            }
            steps += 1;
        };
        assert!((20_000 / STEP_ROWS..=12).contains(&steps), "{steps} steps");
        assert_eq!((pass.removed, pass.total(4)), (10_000, 10_000));
        // The next walk begins by itself.
        assert!(
            gc.step(&datapath.maps, &IDLE, NOW + 1, &|_| false)
                .unwrap()
                .is_none()
        );
    });
}

/// Rows that are refreshed while they are judged stay, whatever the timing.
#[test]
fn refreshing_wins_against_removing() {
    on_node(|node| {
        let mut datapath = node.open();
        let writer = node.open();
        for round in 0..40u16 {
            let old = NOW - IDLE.tcp_opening - 1;
            for n in 0..200 {
                put(
                    &mut datapath,
                    key(n, proto::TCP),
                    flow(FlowState::Opening, old),
                );
            }
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // As a program does it: only rows that are there are refreshed (BPF_EXIST).
                    let mut map = aya::maps::HashMap::<_, FlowKey<Ip4>, Flow<Ip4>>::try_from(
                        aya::maps::Map::from_map_data(node.map("tulle_flow_v4")).unwrap(),
                    )
                    .unwrap();
                    let mut refreshed = Vec::new();
                    for n in (0u16..200).rev() {
                        let k = key((n + round) % 200, proto::TCP);
                        if map.insert(k, flow(FlowState::Opening, NOW), 2).is_ok() {
                            refreshed.push(k);
                        }
                    }
                    for k in refreshed {
                        // Removed before the refresh was seen, then put back: at most
                        // microseconds later.
                        kernel_support::eventually("a refreshed row is there", || {
                            map.get(&k, 0).is_ok_and(|f| f.seen == NOW)
                        });
                    }
                });
                FlowGc::run(&writer.maps, &IDLE, NOW).unwrap();
            });
        }
    });
}

#[test]
fn counters_are_summed_over_cpus() {
    on_node(|node| {
        let mut datapath = node.open();
        assert!(
            datapath
                .maps
                .counts()
                .unwrap()
                .iter()
                .all(|c| c.packets == 0)
        );
        let cpus = aya::util::nr_cpus().unwrap();
        let each = vec![
            Counter {
                packets: 3,
                bytes: 1000
            };
            cpus
        ];
        let index = counter_index(Hook::NicIn, Reason::Decapsulated);
        datapath
            .maps
            .counters
            .set(index, each.try_into().unwrap(), 0)
            .unwrap();
        let sum = datapath
            .maps
            .count(Hook::NicIn, Reason::Decapsulated)
            .unwrap();
        assert_eq!(
            (sum.packets, sum.bytes),
            (3 * cpus as u64, 1000 * cpus as u64)
        );
        let counts = datapath.maps.counts().unwrap();
        assert_eq!(counts.len(), Hook::ALL.len() * Reason::ALL.len());
        let others = counts.iter().filter(|c| c.packets != 0).count();
        assert_eq!(others, 1);
    });
}

/// Clears service numbers. Returns in how many steps.
fn clear(datapath: &mut Datapath, numbers: BTreeSet<u32>) -> u32 {
    let (mut clearing, mut steps) = (Clearing::new(numbers), 1);
    while !clearing.step(&mut datapath.maps).unwrap() {
        steps += 1;
    }
    steps
}

#[test]
fn a_large_table_of_clients_is_cleared_in_steps() {
    const CLIENTS: u16 = 9000;
    on_node(|node| {
        let sizes = Capacities {
            affinities: 65_536,
            ..small()
        };
        let mut datapath = Datapath::open(
            &node.pins,
            &Config::EMPTY,
            &sizes,
            &options(AttachKind::Tcx),
        )
        .unwrap();
        let map = aya::maps::Map::LruHashMap(node.map("tulle_affin_v4"));
        let mut clients =
            aya::maps::HashMap::<_, AffinityKey<Ip4>, Affinity>::try_from(map).unwrap();
        let key = |client: u16| {
            let [high, low] = client.to_be_bytes();
            AffinityKey {
                client: Ip4::new([10, 0, high, low]),
                service: u32::from(client % 2) + 1,
            }
        };
        for client in 0..CLIENTS {
            clients.insert(key(client), Affinity::default(), 0).unwrap();
        }
        let mut clearing = Clearing::new([1].into());
        let mut left = usize::from(CLIENTS);
        loop {
            let done = clearing.step(&mut datapath.maps).unwrap();
            let now_left = clients.keys().count();
            // Half of the rows that are looked at are this service's.
            assert!(left - now_left < 3000, "{left} {now_left}");
            left = now_left;
            if done {
                break;
            }
        }
        assert_eq!(left, usize::from(CLIENTS / 2));
        assert!(clients.keys().all(|key| key.unwrap().service == 2));
    });
}

#[test]
fn a_cleared_service_number_remembers_nobody_and_counts_from_zero() {
    on_node(|node| {
        let mut datapath = node.open();
        let cpus = aya::util::nr_cpus().unwrap();
        let key = |client: u8, service| AffinityKey {
            client: Ip4::new([10, 0, 0, client]),
            service,
        };
        let map = aya::maps::Map::LruHashMap(node.map("tulle_affin_v4"));
        let mut clients =
            aya::maps::HashMap::<_, AffinityKey<Ip4>, Affinity>::try_from(map).unwrap();
        for (client, service) in [(1, 3), (2, 3), (1, 4), (1, 5)] {
            clients
                .insert(key(client, service), Affinity::default(), 0)
                .unwrap();
        }
        let each = Traffic {
            packets: 7,
            ..Traffic::default()
        };
        for service in [3, 4] {
            let rows = vec![each; cpus].try_into().unwrap();
            datapath.maps.svc_stats.set(service, rows, 0).unwrap();
        }
        assert_eq!(datapath.maps.last_counted().unwrap(), 4);
        // 5 has no clients in IPv6, and nothing counts beyond the table.
        assert!(clear(&mut datapath, [3, 5, 16, u32::MAX].into()) > 1);
        let left: Vec<_> = clients.keys().map(Result::unwrap).collect();
        assert_eq!(left, [key(1, 4)]);
        let packets = |datapath: &Datapath, services: [u32; 3]| {
            services.map(|service| {
                let rows = datapath.maps.svc_stats.get(&service, 0).unwrap();
                rows.iter().map(|row| row.packets).sum::<u64>()
            })
        };
        let all = 7 * cpus as u64;
        // The sum over all rows stays what it was.
        assert_eq!(packets(&datapath, [0, 3, 4]), [all, 0, all]);
        clear(&mut datapath, [3, 4].into());
        assert_eq!(packets(&datapath, [0, 3, 4]), [2 * all, 0, 0]);
        assert_eq!(datapath.maps.last_counted().unwrap(), 0);
    });
}

#[test]
fn ticks_go_on() {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let ticks = seconds * 1e9 / f64::from(1 << datapath_common::TICK_SHIFT);
    assert!(
        (ticks - f64::from(now_ticks())).abs() < 30.0,
        "{ticks} {}",
        now_ticks()
    );
}

#[test]
fn a_flow_that_lost_a_row_is_told_of_once_somebody_asks() {
    on_node(|node| {
        let mut datapath = node.open();
        let open = flow(FlowState::Established, NOW);
        let to = |host: u8, protocol| FlowKey {
            dst: Ip4::new([10, 96, 0, host]),
            ..key(u16::from(host), protocol)
        };
        let front = |host, protocol| FrontKey {
            addr: to(host, protocol).dst.to_ip(),
            port: 80,
            proto: protocol,
        };
        // Both rows; one of them; both, then the other one; of no interest.
        put_pair(&mut datapath, to(1, proto::TCP), open, NOW);
        put(&mut datapath, to(2, proto::TCP), open);
        put_pair(&mut datapath, to(3, proto::SCTP), open, NOW);
        datapath.maps.flow_v4.remove(&to(3, proto::SCTP)).unwrap();
        put(&mut datapath, to(4, proto::UDP), open);
        put(&mut datapath, to(5, proto::TCP), open);
        let mut gc = FlowGc::new();
        let whole = |at: &FrontKey| *at != front(5, proto::TCP);
        let pass = loop {
            if let Some(pass) = gc.step(&datapath.maps, &IDLE, NOW, &whole).unwrap() {
                break pass;
            }
        };
        let torn: Vec<FrontKey> = pass.torn.into_iter().collect();
        assert_eq!(torn, [front(2, proto::TCP), front(3, proto::SCTP)]);
        let pass = FlowGc::run(&datapath.maps, &IDLE, NOW).unwrap();
        assert!(pass.torn.is_empty(), "nobody asked");
    });
}

#[test]
fn frontends_whose_clients_have_other_ports_are_told() {
    on_node(|node| {
        let mut datapath = node.open();
        let open = flow(FlowState::Established, NOW);
        let as_seen = |addr: [u8; 4]| Flow {
            nat_addr: Ip4::new(addr),
            nat_port: 20_000,
            ..open
        };
        let own = key(0, proto::TCP).src.octets();
        let to = |dport, protocol| FlowKey {
            dport,
            ..key(dport, protocol)
        };
        // A changed port; masquerade; neither; a flow of no connection.
        put_pair(&mut datapath, to(1, proto::TCP), as_seen(own), NOW);
        put_pair(
            &mut datapath,
            to(2, proto::TCP),
            as_seen([10, 9, 9, 9]),
            NOW,
        );
        put_pair(&mut datapath, to(3, proto::TCP), open, NOW);
        put_pair(&mut datapath, to(4, proto::UDP), as_seen(own), NOW);
        let pass = FlowGc::run(&datapath.maps, &IDLE, NOW).unwrap();
        let moved: Vec<u16> = pass.moved.iter().map(|front| front.port).collect();
        assert_eq!(moved, [1]);
    });
}
