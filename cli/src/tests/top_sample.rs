use datapath_common::{
    Backend, BackendState, Frontend, FrontendFlags, FrontendKey, Ip4, Ip6, Via, proto,
};

use super::*;
use crate::top::world;

fn value(service: u32, start: u32, len: u32) -> Frontend {
    Frontend {
        service,
        start,
        len,
        out_start: start,
        out_len: len,
        ..Frontend::default()
    }
}

fn front4(port: u16, value: Frontend) -> FrontendRow {
    let key = FrontendKey {
        addr: Ip4::new([10, 96, 0, 1]),
        port,
        proto: proto::TCP,
        scope: 0,
    };
    FrontendRow::new(key, value)
}

fn back4(id: u32, generation: u32, state: BackendState) -> BackendRow {
    let row = Backend {
        addr: Ip4::new([10, 244, 0, id as u8]),
        port: 8080,
        proto: proto::TCP,
        state: state as u8,
        generation,
        via: Via::KERNEL,
    };
    BackendRow::new(id, row).unwrap()
}

#[test]
fn frontends_of_a_service_are_one_row() {
    let six = FrontendKey {
        addr: Ip6::default(),
        port: 80,
        proto: proto::TCP,
        scope: 0,
    };
    let mut node_port = value(7, 0, 2);
    (node_port.out_start, node_port.out_len) = (4, 1);
    let mark = Frontend {
        flags: FrontendFlags::ADDRESS,
        ..Frontend::default()
    };
    let frontends = [
        front4(30_080, node_port),
        front4(80, value(7, 0, 2)),
        front4(81, value(9, 0, 0)),
        front4(0, mark),
        FrontendRow::new(six, value(8, 2, 1)),
    ];
    // Slot 3 is a hole that nobody names.
    let segments = [1, 2, 1, 77, 5];
    assert_eq!(segments_end(&frontends), 5);
    assert_eq!(segments_end(&[]), 0);
    let (services, users) = services(&frontends, &segments, &ServiceNames::default());
    let numbers: Vec<_> = services.iter().map(|s| (s.number, s.backends)).collect();
    assert_eq!(
        numbers,
        [(7, 3), (8, 1), (9, 0)],
        "each backend once, outside too"
    );
    let ports: Vec<_> = services[0]
        .frontends
        .iter()
        .map(|(a, _)| a.port())
        .collect();
    assert_eq!(ports, [80, 30_080]);

    let rows = [
        back4(1, 1, BackendState::Active),
        back4(2, 1, BackendState::Active),
        back4(5, 1, BackendState::Active),
        back4(6, 2, BackendState::Draining),
    ];
    let before = Owners::from([((4, 6, 2), vec![7]), ((4, 5, 1), vec![99])]);
    let traffic = |family: u8, id: u32| (family == 4 && id < 6).then(|| world::traffic(id.into()));
    let backends = backends(&rows, &users, &before, traffic);
    let owned: Vec<_> = backends
        .iter()
        .map(|b| (b.id.1, b.services.clone()))
        .collect();
    assert_eq!(
        owned,
        [(1, vec![7]), (2, vec![7]), (5, vec![7]), (6, vec![7])],
        "IPv6 has ids of its own; a draining backend keeps its service"
    );
    assert_eq!(backends[2].traffic.unwrap().flows, 5);
    assert_eq!(backends[3].traffic, None);
    let owners = owners(&backends);
    assert_eq!(owners.get(&(4, 6, 2)), Some(&vec![7]));
    // Another generation is another backend.
    let later = [back4(6, 3, BackendState::Draining)];
    let backends = super::backends(&later, &HashMap::new(), &owners, |_, _| None);
    assert!(backends[0].services.is_empty());
}
