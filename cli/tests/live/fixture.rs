//! What the maps hold in these tests.

use datapath_common::{
    Backend, BackendState, Direction, Event, EventKind, Flow, FlowKey, FlowState, Frontend,
    FrontendFlags, FrontendKey, Hook, Ip4, Ip6, Mac, Reason, Via, ViaKind, maps, proto,
};

use crate::pins::Pins;

pub const VIP4: Ip4 = Ip4::new([10, 96, 0, 10]);
pub const POD4: Ip4 = Ip4::new([10, 244, 0, 5]);
pub const FAR4: Ip4 = Ip4::new([10, 244, 1, 7]);
pub const NODE4: Ip4 = Ip4::new([192, 168, 0, 2]);
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
        affinity_secs: 0,
        flags,
        reserved: 0,
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
    for (slot, id) in [(5000, 1), (5001, 4095), (5002, 4095), (100, 1)] {
        segments.set(slot, id, 0).unwrap();
    }
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
        .insert(key, frontend(7, 5000, 3, FrontendFlags::FLOWS_DECIDE), 0)
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
            reserved: 0,
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
