//! A flow table that is full of flows in use. Needs root, two CPUs and
//! `target/bpf/tulle.bpf.o`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bpf_tests::engine::{Engine as _, Kernel, object};
use bpf_tests::model::{Tuple, World};
use bpf_tests::packet::{Spec, Upper, tcp_flag};
use bpf_tests::strategies::config;
use datapath_common::{Feature, Frontend, FrontendFlags, Hook, proto};

/// So many flows, each of two rows, fill the table.
const FLOWS: u16 = 512;
const FIRST: u16 = 10_000;

fn address(v6: bool, number: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(number)).into()
    } else {
        Ipv4Addr::from_bits(0xc633_0000 + number).into()
    }
}

/// The client's side of the flow from `sport`.
fn forward(v6: bool, sport: u16) -> Tuple {
    Tuple {
        src: address(v6, 3),
        dst: address(v6, 2),
        sport,
        dport: 80,
        proto: proto::TCP,
    }
}

/// The backend's.
fn reply(v6: bool, sport: u16) -> Tuple {
    Tuple {
        src: address(v6, 1),
        dst: address(v6, 3),
        sport: 8080,
        dport: sport,
        proto: proto::TCP,
    }
}

fn packet(flag: u8, on: Tuple) -> Vec<u8> {
    Spec::new(Upper::Tcp(flag), on.src, on.sport, on.dst, on.dport).build()
}

fn world(v6: bool) -> World {
    let mut config = config(0);
    config.features |= Feature::UPLINK_SERVICES;
    config.flows_per_tick = 0;
    let mut world = World::new(config);
    world.now = 1_000_000;
    world.segments = vec![0, 1];
    world.add_backend(1, address(v6, 1));
    let frontend = Frontend {
        service: 1,
        start: 1,
        len: 1,
        out_start: 1,
        out_len: 1,
        flags: FrontendFlags::FLOWS_MAY_BE_LOST,
        ..Frontend::default()
    };
    let at = forward(v6, 0);
    world
        .frontends
        .insert((at.dst, at.dport, at.proto), frontend);
    world
}

#[test]
fn a_new_flow_is_answered_though_the_table_is_full_of_flows_in_use() {
    let mut kernel = Kernel::new(object().unwrap()).unwrap();
    for v6 in [false, true] {
        kernel.load(&world(v6)).unwrap();
        let mut lost: Vec<u16> = Vec::new();
        for new in FIRST..FIRST + 3 * FLOWS {
            // A connection's data opens it anew where its rows are gone.
            let flag = if new % 2 == 0 {
                tcp_flag::SYN
            } else {
                tcp_flag::ACK
            };
            let others = FIRST.max(new.saturating_sub(FLOWS))..new;
            let uses = |port: u16| {
                [forward(v6, port), reply(v6, port)].map(|on| packet(tcp_flag::ACK, on))
            };
            let mut pairs: Vec<[Vec<u8>; 2]> = others.map(uses).collect();
            let first = packet(flag, forward(v6, new));
            // Opens nothing.
            let other = packet(tcp_flag::RST, forward(v6, 1));
            pairs.push([first, other]);
            let rows = kernel.race(Hook::NicIn, &pairs).unwrap();
            if !rows.contains_key(&reply(v6, new).reply()) {
                lost.push(new);
            }
        }
        assert!(lost.is_empty(), "v6 {v6}: {lost:?}");
    }
}
