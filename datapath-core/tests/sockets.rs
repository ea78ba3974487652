//! What a socket is given in the place of a frontend, over plain memory.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod socket_tables;

use std::collections::{BTreeMap, BTreeSet};

use datapath_common::{
    Address, BackendState, Direction, Feature, Frontend, FrontendFlags, Ip4, SocketKey, proto,
};
use datapath_core::socket::{Peer, Socket, Sockets, again, close};
use proptest::prelude::*;
use socket_tables::{
    NODE, Plain, connected, front_key, ip, named, pod, read_from, sent, socket, told, vip,
};

#[test]
fn connections_are_spread_counted_and_named() {
    let plain = Plain::new();
    let mut met = BTreeMap::<u8, u32>::new();
    for cookie in 0..400 {
        let s = socket(cookie, proto::TCP);
        let to = connected(&plain, &s, vip(1)).unwrap();
        *met.entry(to.addr.octets()[3]).or_default() += 1;
        assert_eq!(told(&plain, &s, to), vip(1));
        let other = socket(cookie + 1000, proto::TCP);
        assert_eq!(told(&plain, &other, to), to, "another socket's");
        if cookie % 2 == 0 {
            close(&plain, &s);
            assert_eq!(told(&plain, &s, to), to, "closed");
        }
    }
    assert!(met.len() == 4 && met.values().all(|n| *n > 60), "{met:?}");
    assert_eq!(plain.counts.borrow().values().sum::<u32>(), 400);
    assert_eq!(plain.connections.borrow().len(), 200);
    assert_eq!(plain.peers.borrow().len(), 0);
}

#[test]
fn a_table_decides_how_often() {
    let plain = Plain::new();
    // Behind the four of the service: backend 2 alone.
    plain.slots.borrow_mut().extend([2, 2, 2]);
    plain.front(proto::TCP, |front| front.table = 3);
    for cookie in 0..50 {
        let s = socket(cookie, proto::TCP);
        assert_eq!(connected(&plain, &s, vip(1)), Some(pod(2)));
    }
}

#[test]
fn connections_take_turns() {
    let plain = Plain::new();
    plain.front(proto::TCP, |front| front.flags = FrontendFlags::ROUND_ROBIN);
    for cookie in 0..12 {
        let s = socket(cookie, proto::TCP);
        let next = pod(1 + (cookie % 4) as u8);
        assert_eq!(connected(&plain, &s, vip(1)), Some(next));
    }
}

#[test]
fn what_cannot_be_honoured_is_left_to_packets() {
    type Change = fn(&mut Plain, &mut Socket);
    let changes: [(&str, Change); 12] = [
        ("source ranges", |p, _| {
            p.front(proto::UDP, |front| {
                front.flags = FrontendFlags::SOURCE_RANGES;
            });
        }),
        ("a choice by the source", |p, _| {
            p.front(proto::UDP, |front| front.flags = FrontendFlags::SOURCE_HASH);
        }),
        ("masquerade of pods", |p, _| {
            p.front(proto::UDP, |front| {
                front.flags = FrontendFlags::MASQUERADE_PODS;
            });
        }),
        ("a flag of a later version", |p, _| {
            p.front(proto::UDP, |front| front.flags = 1 << 15);
        }),
        ("no endpoint", |p, _| {
            p.front(proto::UDP, |front| front.len = 0);
        }),
        ("a backend that is gone", |p, _| {
            for backend in p.backends.borrow_mut().iter_mut() {
                backend.state = BackendState::Draining as u8;
            }
        }),
        ("backends that are frontends", |p, _| {
            for id in 0..=4 {
                let row = Frontend::default();
                let key = front_key(pod(id), proto::UDP);
                p.fronts.borrow_mut().insert(key, row);
            }
        }),
        ("no room", |p, _| p.is_full.set(true)),
        ("pods switched off", |p, _| {
            p.config.as_mut().unwrap().features = Feature::NODE_SOCKETS;
        }),
        ("the node switched off", |p, s| {
            p.config.as_mut().unwrap().features = Feature::POD_SOCKETS;
            s.netns = NODE;
        }),
        ("a bound socket", |_, s| s.is_bound = true),
        ("SCTP", |_, s| s.proto = proto::SCTP),
    ];
    for (what, change) in changes {
        let (mut plain, mut s) = (Plain::new(), socket(1, proto::UDP));
        assert!(connected(&plain, &s, vip(1)).is_some());
        plain.connections.borrow_mut().clear();
        change(&mut plain, &mut s);
        assert_eq!(connected(&plain, &s, vip(1)), None, "{what}");
        assert_eq!(sent(&plain, &s, vip(1)), None, "{what}");
    }
    // Only pods are masqueraded by address; the node's own source is chosen by its routes.
    let (plain, mut s) = (Plain::new(), socket(1, proto::TCP));
    plain.front(proto::TCP, |front| {
        front.flags = FrontendFlags::MASQUERADE_PODS
            | FrontendFlags::MASQUERADE_OUTSIDE
            | FrontendFlags::FLOWS_DECIDE
            | FrontendFlags::FLOWS_MAY_BE_LOST;
    });
    s.netns = NODE;
    assert!(connected(&plain, &s, vip(1)).is_some());
    assert_eq!(connected(&plain, &s, vip(2)), None, "no service");
}

#[test]
fn datagrams_of_a_socket_stay_with_a_backend_while_it_serves() {
    let plain = Plain::new();
    let s = socket(1, proto::UDP);
    let first = sent(&plain, &s, vip(1)).unwrap();
    for _ in 0..100 {
        plain.now.set(plain.now.get() + 1);
        assert_eq!(sent(&plain, &s, vip(1)), Some(first));
        assert_eq!(named(&plain, &s, first), vip(1));
    }
    assert_eq!(plain.counts.borrow().values().sum::<u32>(), 1, "one flow");
    // Lost with the way back: it is written again with the next datagram.
    let reply = |k: &SocketKey<Ip4>| k.direction == Direction::Reply as u8;
    plain.peers.borrow_mut().retain(|k, _| !reply(k));
    assert_eq!(sent(&plain, &s, vip(1)), Some(first));
    assert_eq!(named(&plain, &s, first), vip(1));
    // Out of the service (KP-117), though others have it still.
    let id = first.addr.octets()[3];
    plain.drop_backend(proto::UDP, id, 3);
    let second = sent(&plain, &s, vip(1)).unwrap();
    assert_ne!(second, first);
    assert_eq!(sent(&plain, &s, vip(1)), Some(second));
    // Another backend has the id.
    let row = usize::from(second.addr.octets()[3]);
    plain.backends.borrow_mut()[row].generation += 1;
    plain.backends.borrow_mut()[row].addr = ip(244, 99);
    assert_eq!(named(&plain, &s, second), second, "somebody else");
    let third = sent(&plain, &s, vip(1)).unwrap();
    assert_ne!(third, second);
}

#[test]
fn a_connected_socket_sends_to_its_peer_by_the_services_name() {
    let plain = Plain::new();
    plain.service(2, &[1, 2, 3, 4]);
    let mut s = socket(1, proto::UDP);
    let peer = connected(&plain, &s, vip(1)).unwrap();
    // It has an address now.
    s.is_bound = true;
    let meant = |s: &Socket, peer: Peer<Ip4>, to: Peer<Ip4>| {
        let mut at = to;
        let is_again = again(&plain, s, &peer, &mut at);
        assert_eq!(is_again, at != to, "what is left is left as it is");
        at
    };
    assert_eq!(meant(&s, peer, vip(1)), peer);
    let port = Peer { port: 54, ..vip(1) };
    for other in [vip(2), port, pod(1)] {
        assert_eq!(meant(&s, peer, other), other, "another one's");
    }
    assert_eq!(meant(&socket(2, proto::UDP), peer, vip(1)), vip(1));
    let elsewhere = Peer { port: 1, ..peer };
    assert_eq!(meant(&s, elsewhere, vip(1)), vip(1), "connected elsewhere");
}

#[test]
fn a_silent_socket_chooses_anew() {
    let plain = Plain::new();
    let idle = plain.config().idle.udp_established;
    let mut moved = 0;
    for cookie in 0..40 {
        let s = socket(cookie, proto::UDP);
        let first = sent(&plain, &s, vip(1)).unwrap();
        plain.now.set(plain.now.get() + idle);
        assert_eq!(sent(&plain, &s, vip(1)), Some(first));
        plain.now.set(plain.now.get() + idle + 1);
        moved += u32::from(sent(&plain, &s, vip(1)) != Some(first));
    }
    assert!(moved > 20, "only {moved} of 40");
}

#[test]
fn a_source_that_is_named_later_moves_nothing() {
    let plain = Plain::new();
    let mut s = socket(1, proto::UDP);
    let first = sent(&plain, &s, vip(1)).unwrap();
    s.names_source = true;
    assert_eq!(sent(&plain, &s, vip(1)), Some(first));
    // And the other way round: what began by packets goes on so.
    let mut s = socket(2, proto::UDP);
    for names_source in [true, false, true, false] {
        s.names_source = names_source;
        assert_eq!(sent(&plain, &s, vip(1)), None);
        plain.now.set(plain.now.get() + 50);
    }
}

#[test]
fn two_services_of_a_socket_with_one_backend_are_left_to_packets() {
    let plain = Plain::new();
    plain.service(2, &[1]);
    plain.service(3, &[1]);
    let s = socket(1, proto::UDP);
    assert_eq!(sent(&plain, &s, vip(2)), Some(pod(1)));
    assert_eq!(sent(&plain, &s, vip(3)), None);
    // For as long as they are used; by another socket they are told apart.
    for _ in 0..300 {
        plain.now.set(plain.now.get() + 1);
        assert_eq!(sent(&plain, &s, vip(2)), None);
        assert_eq!(sent(&plain, &s, vip(3)), None);
    }
    assert_eq!(sent(&plain, &socket(2, proto::UDP), vip(3)), Some(pod(1)));
    plain
        .now
        .set(plain.now.get() + plain.config().idle.udp_established + 1);
    assert_eq!(sent(&plain, &s, vip(3)), Some(pod(1)));
    assert_eq!(named(&plain, &s, pod(1)), vip(3));
}

#[test]
fn kp94_a_network_namespace_is_a_client() {
    let plain = Plain::new();
    for proto in [proto::TCP, proto::UDP] {
        plain.front(proto, |front| front.affinity_secs = 60);
    }
    let first = connected(&plain, &socket(1, proto::TCP), vip(1)).unwrap();
    for cookie in 2..60 {
        plain.now.set(plain.now.get() + 30);
        let s = socket(cookie, proto::TCP);
        assert_eq!(
            connected(&plain, &s, vip(1)),
            Some(first),
            "KP-95: by each flow"
        );
    }
    let mut others = BTreeSet::new();
    for netns in 100..140 {
        let s = Socket {
            netns: [netns, 1],
            ..socket(netns, proto::TCP)
        };
        others.insert(connected(&plain, &s, vip(1)).unwrap().addr);
    }
    assert_eq!(others.len(), 4);
    // KP-96: it serves no more.
    let id = first.addr.octets()[3];
    plain.drop_backend(proto::TCP, id, 3);
    let second = connected(&plain, &socket(100, proto::TCP), vip(1)).unwrap();
    assert_ne!(second, first);
    assert_eq!(
        connected(&plain, &socket(101, proto::TCP), vip(1)),
        Some(second)
    );
    let mut later = BTreeSet::new();
    for cookie in 200..240 {
        plain.now.set(plain.now.get() + 61);
        later.insert(
            connected(&plain, &socket(cookie, proto::TCP), vip(1))
                .unwrap()
                .addr,
        );
    }
    assert_eq!(later.len(), 3, "forgotten after its time");
}

proptest! {
    /// Whatever sockets do, one that was translated reads the name that it used last, and
    /// gets only backends of that service.
    #[test]
    fn answers_have_the_name_that_was_asked(
        steps in prop::collection::vec((0u32..3, 1u8..4, any::<bool>(), 0u32..90), 1..60),
    ) {
        let plain = Plain::new();
        plain.service(2, &[1, 2]);
        plain.service(3, &[2]);
        let members: [&[u8]; 3] = [&[1, 2, 3, 4], &[1, 2], &[2]];
        for (cookie, service, is_new, silence) in steps {
            plain.now.set(plain.now.get() + silence);
            let s = socket(cookie, proto::UDP);
            let to = if is_new {
                connected(&plain, &s, vip(service))
            } else {
                sent(&plain, &s, vip(service))
            };
            if let Some(to) = to {
                prop_assert!(members[usize::from(service) - 1].contains(&to.addr.octets()[3]));
                if is_new {
                    prop_assert_eq!(told(&plain, &s, to), vip(service));
                    prop_assert_eq!(read_from(&plain, &s, to, to), vip(service));
                } else {
                    prop_assert_eq!(named(&plain, &s, to), vip(service));
                }
            }
            for (key, row) in plain.peers.borrow().iter() {
                prop_assert!(key.direction == Direction::Forward as u8 || row.addr != Ip4::UNSPECIFIED);
            }
        }
    }
}
