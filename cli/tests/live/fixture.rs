//! What the maps hold in these tests.

use aya::maps::lpm_trie::Key;
use datapath_common::{
    Affinity, AffinityKey, Backend, BackendState, Direction, Event, EventKind, Flow, FlowKey,
    FlowState, Frontend, FrontendFlags, FrontendKey, Hook, Ip4, Ip6, Mac, Reason, SourceNet, Via,
    ViaKind, maps, proto,
};

use crate::pins::Pins;

pub const VIP4: Ip4 = Ip4::new([10, 96, 0, 10]);
pub const POD4: Ip4 = Ip4::new([10, 244, 0, 5]);
pub const FAR4: Ip4 = Ip4::new([10, 244, 1, 7]);
pub const NODE4: Ip4 = Ip4::new([192, 168, 0, 2]);
/// This node, and the address of a load balancer.
pub const HOST4: Ip4 = Ip4::new([192, 168, 0, 1]);
pub const LB4: Ip4 = Ip4::new([203, 0, 113, 1]);
pub const VIP6: Ip6 = Ip6::new([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]);
pub const POD6: Ip6 = Ip6::new([0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5]);

pub fn local() -> Via {
    Via {
        kind: ViaKind::Local as u8,
        ifindex: 1,
        ..Via::KERNEL
    }
}

pub fn far() -> Via {
    Via {
        kind: ViaKind::Vxlan as u8,
        ifindex: 1,
        node: NODE4,
        next_hop: NODE4,
        dst_mac: Mac::new([2, 0, 0, 0, 0, 2]),
        src_mac: Mac::new([2, 0, 0, 0, 0, 1]),
        ..Via::KERNEL
    }
}

pub fn backend<A>(addr: A, state: BackendState, via: Via) -> Backend<A> {
    Backend {
        addr,
        port: 8080,
        proto: proto::TCP,
        state: state as u8,
        generation: 3,
        via,
    }
}

pub fn frontend(service: u32, start: u32, len: u32, flags: u16) -> Frontend {
    Frontend {
        service,
        start,
        len,
        out_start: start,
        out_len: len,
        flags,
        ..Frontend::default()
    }
}

/// Service 7: two backends, and a table of three slots.
fn weighted(flags: u16) -> Frontend {
    Frontend {
        table: 3,
        out_table: 3,
        ..frontend(7, 5000, 2, flags)
    }
}

/// Two services, IPv4 and IPv6, with three backends in all.
pub fn fill_services(pins: &Pins) {
    let mut back4 = pins.array::<Backend<Ip4>>(maps::BACK_V4);
    back4
        .set(1, backend(POD4, BackendState::Active, local()), 0)
        .unwrap();
    back4
        .set(4095, backend(FAR4, BackendState::Active, far()), 0)
        .unwrap();
    back4
        .set(3, backend(VIP4, BackendState::Draining, Via::KERNEL), 0)
        .unwrap();
    let mut back6 = pins.array::<Backend<Ip6>>(maps::BACK_V6);
    back6
        .set(1, backend(POD6, BackendState::Active, local()), 0)
        .unwrap();
    let mut segments = pins.array::<u32>(maps::SEGMENTS);
    // Two backends, and a table that gives the second one twice as many flows.
    for (slot, id) in (5000..).zip([1, 4095, 1, 4095, 4095]) {
        segments.set(slot, id, 0).unwrap();
    }
    segments.set(100, 1, 0).unwrap();
    let mut front4 = pins.hash::<FrontendKey<Ip4>, Frontend>(maps::FRONT_V4);
    let address = frontend(0, 0, 0, FrontendFlags::ADDRESS);
    front4
        .insert(FrontendKey::address(VIP4), address, 0)
        .unwrap();
    let key = FrontendKey {
        addr: VIP4,
        port: 80,
        proto: proto::TCP,
        scope: 0,
    };
    front4
        .insert(key, weighted(FrontendFlags::FLOWS_DECIDE), 0)
        .unwrap();
    let key = FrontendKey {
        addr: VIP4,
        port: 53,
        proto: proto::UDP,
        scope: 0,
    };
    front4.insert(key, frontend(9, 0, 0, 0), 0).unwrap();
    let mut front6 = pins.hash::<FrontendKey<Ip6>, Frontend>(maps::FRONT_V6);
    let key = FrontendKey {
        addr: VIP6,
        port: 80,
        proto: proto::TCP,
        scope: 0,
    };
    front6.insert(key, frontend(8, 100, 1, 0), 0).unwrap();
}

/// A node port and a load balancer's address of service 7, beside [`fill_services`]:
/// clients outside have the node's own pod, or this node itself, or nothing.
pub fn fill_outside(pins: &Pins) {
    let mut back4 = pins.array::<Backend<Ip4>>(maps::BACK_V4);
    let host = Via {
        kind: ViaKind::Host as u8,
        ..Via::KERNEL
    };
    back4
        .set(2, backend(HOST4, BackendState::Active, host), 0)
        .unwrap();
    pins.array::<u32>(maps::SEGMENTS).set(5005, 2, 0).unwrap();
    let mut front4 = pins.hash::<FrontendKey<Ip4>, Frontend>(maps::FRONT_V4);
    let mut insert = |addr, port, out_len, affinity_secs, flags| {
        let key = FrontendKey {
            addr,
            port,
            proto: proto::TCP,
            scope: 0,
        };
        let value = Frontend {
            out_start: 5005,
            out_len,
            out_table: 0,
            affinity_secs,
            ..weighted(flags)
        };
        front4.insert(key, value, 0).unwrap();
    };
    insert(HOST4, 30_080, 1, 60, FrontendFlags::MASQUERADE_OUTSIDE);
    let vip = FrontendFlags::SOURCE_RANGES | FrontendFlags::DROP_OUTSIDE;
    insert(LB4, 80, 0, 60, vip);
    let mut sources = pins.trie::<SourceNet<Ip4>, u32>(maps::SRCS_V4);
    for (service, net, bits) in [(7, [203, 0, 112, 0], 23), (9, [0; 4], 0)] {
        let net = SourceNet::new(service, Ip4::new(net));
        sources.insert(&Key::new(32 + bits, net), 1, 0).unwrap();
    }
}

/// Session affinity of service 7: rows of five clients, `age` ticks old.
pub fn fill_affinity(pins: &Pins, now: u32, age: u32) {
    let mut rows = pins.hash::<AffinityKey<Ip4>, Affinity>(maps::AFFIN_V4);
    for last in 0..5 {
        let client = Ip4::new([10, 244, 0, 20 + last]);
        let affinity = Affinity {
            backend: 1,
            generation: 3,
            seen: now - age,
        };
        let key = AffinityKey { client, service: 7 };
        rows.insert(key, affinity, 0).unwrap();
    }
    let mut rows = pins.hash::<AffinityKey<Ip6>, Affinity>(maps::AFFIN_V6);
    let key = AffinityKey {
        client: POD6,
        service: 8,
    };
    rows.insert(key, Affinity::default(), 0).unwrap();
}

/// Flows of a client outside through the node port, each with a port of its
/// own from 50,000 on, and one of a pod that leaves the cluster.
pub fn fill_masqueraded(pins: &Pins, count: u16, now: u32) {
    let mut flows = pins.hash::<FlowKey<Ip4>, Flow<Ip4>>(maps::FLOW_V4);
    let outside = Ip4::new([203, 0, 113, 7]);
    let mut insert = |client, frontend, backend, nat, backend_id, service| {
        let flow = |(addr, port), (nat_addr, nat_port)| Flow {
            addr,
            port,
            nat_addr,
            nat_port,
            state: FlowState::Established as u8,
            backend: backend_id,
            service,
            opened: now - 60,
            seen: now,
            ..Flow::default()
        };
        let key = |(src, sport), (dst, dport), direction: Direction| FlowKey {
            src,
            dst,
            sport,
            dport,
            proto: proto::TCP,
            direction: direction as u8,
            reserved: 0,
        };
        let forward = key(client, frontend, Direction::Forward);
        flows.insert(forward, flow(backend, nat), 0).unwrap();
        let reply = key(backend, nat, Direction::Reply);
        flows.insert(reply, flow(frontend, client), 0).unwrap();
    };
    for number in 0..count {
        let client = (outside, 20_000 + number);
        let nat = (HOST4, 50_000 + number);
        insert(client, (HOST4, 30_080), (FAR4, 8080), nat, 4095, 7);
    }
    let remote = (Ip4::new([198, 51, 100, 1]), 443);
    insert((POD4, 33_000), remote, remote, (HOST4, 50_000), 0, 0);
}

/// Flows of clients 10.0.0.0/16 with the row of each direction; a few of them
/// are answered.
pub fn fill_flows(pins: &Pins, count: u16, now: u32) {
    let mut flows = pins.hash::<FlowKey<Ip4>, Flow<Ip4>>(maps::FLOW_V4);
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let client = Ip4::new([10, 0, high, low]);
        let state = if number < 4 {
            FlowState::Established
        } else {
            FlowState::Opening
        };
        let flow = |addr, port| Flow {
            addr,
            port,
            state: state as u8,
            hairpin: 0,
            node: 0,
            counted: 0,
            nat_addr: Ip4::default(),
            nat_port: 0,
            backend: 1,
            generation: 3,
            service: 7,
            opened: now - 60,
            seen: now - u32::from(number % 50),
        };
        let key = |src, sport, dst, dport, direction: Direction| FlowKey {
            src,
            dst,
            sport,
            dport,
            proto: proto::TCP,
            direction: direction as u8,
            reserved: 0,
        };
        let forward = key(client, 40_000, VIP4, 80, Direction::Forward);
        flows.insert(forward, flow(POD4, 8080), 0).unwrap();
        let reply = key(POD4, 8080, client, 40_000, Direction::Reply);
        flows.insert(reply, flow(VIP4, 80), 0).unwrap();
    }
}

pub fn now_tick() -> u32 {
    tulle_cli::format::now_tick().unwrap()
}

pub fn event(time: u64, reason: Reason) -> Event {
    let mut event: Event = bytemuck::Zeroable::zeroed();
    event.time = time;
    event.kind = EventKind::Drop as u8;
    event.hook = Hook::PodFrom as u8;
    event.reason = reason as u8;
    event.version = 4;
    event.proto = proto::TCP;
    event.ifindex = 1;
    event.len = 74;
    event.src[..4].copy_from_slice(&POD4.octets());
    event.dst[..4].copy_from_slice(&VIP4.octets());
    (event.sport, event.dport) = (40_000, 80);
    event
}
