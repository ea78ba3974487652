//! Sockets while the tables change: between two look-ups of one call, and between two calls.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod socket_tables;

use std::collections::BTreeSet;

use datapath_common::{Backend, BackendState, Direction, Ip4, proto};
use datapath_core::socket::{Sockets, close};
use socket_tables::{Plain, connected, named, pod, read_from, sent, socket, told, vip};

/// The first service moves from backends 1 and 2 to 3, and what it had becomes the second's: the
/// slots, and the numbers of its backends for other addresses.
fn moves(plain: &Plain) {
    plain.service(1, &[3]);
    let mut slots = plain.slots.borrow_mut();
    slots[0] = 1;
    slots[1] = 2;
    for id in [1, 2] {
        let row = &mut plain.backends.borrow_mut()[id];
        *row = Backend {
            addr: pod(100 + id as u8).addr,
            generation: row.generation + 1,
            state: BackendState::Active as u8,
            ..*row
        };
    }
}

/// The first service has backends 1 and 2, in the first slots.
fn before() -> Plain {
    let plain = Plain::new();
    plain.fronts.borrow_mut().clear();
    plain.slots.borrow_mut().clear();
    plain.service(1, &[1, 2]);
    plain
}

#[test]
fn who_stands_still_while_a_service_changes_meets_nobody_elses_backend() {
    let mut met = BTreeSet::new();
    for udp in [false, true] {
        // Each look-up in turn is the one before which everything changes.
        for at in 0..12 {
            for round in 0..4 {
                let plain = before();
                for _ in 0..round {
                    plain.random();
                }
                plain.changes.borrow_mut().insert(at, Box::new(moves));
                let proto = if udp { proto::UDP } else { proto::TCP };
                let s = socket(1, proto);
                let to = if udp {
                    sent(&plain, &s, vip(1))
                } else {
                    connected(&plain, &s, vip(1))
                };
                let is_moved = plain.changes.borrow().is_empty();
                let wanted: &[_] = if is_moved {
                    // What it had a moment ago, or what it has.
                    &[Some(pod(1)), Some(pod(2)), Some(pod(3)), None]
                } else {
                    &[Some(pod(1)), Some(pod(2))]
                };
                assert!(wanted.contains(&to), "{to:?} by {proto} at {at}");
                met.insert(to.map(|to| to.addr));
            }
        }
    }
    assert!(
        met.contains(&Some(pod(3).addr)),
        "none chose again: {met:?}"
    );
}

#[test]
fn who_never_sees_a_service_twice_the_same_is_left_to_packets() {
    let plain = before();
    for at in 0..1000 {
        // Another list at each look-up.
        let change = move |plain: &Plain| plain.service(1, &[1 + at % 2]);
        plain.changes.borrow_mut().insert(at, Box::new(change));
    }
    let s = socket(1, proto::TCP);
    assert_eq!(connected(&plain, &s, vip(1)), None);
    assert!(plain.looks.get() < 40, "bounded: {}", plain.looks.get());
    assert_eq!(plain.connections.borrow().len(), 0);
    assert_eq!(plain.counts.borrow().len(), 0);
}

#[test]
fn a_socket_that_connects_keeps_whom_it_sent_to() {
    let plain = Plain::new();
    for cookie in 0..40 {
        let s = socket(cookie, proto::UDP);
        let first = sent(&plain, &s, vip(1)).unwrap();
        plain.now.set(plain.now.get() + 60);
        assert_eq!(connected(&plain, &s, vip(1)), Some(first));
        assert_eq!(told(&plain, &s, first), vip(1));
        // What came before it was connected, and after.
        assert_eq!(read_from(&plain, &s, first, first), vip(1));
    }
    assert_eq!(
        plain.counts.borrow().values().sum::<u32>(),
        40,
        "one flow each"
    );
    // Silent for too long, or its backend is gone: by chance, and of those that serve.
    let mut others = 0;
    for cookie in 0..40 {
        plain.now.set(plain.now.get() + 1000);
        let s = socket(cookie, proto::UDP);
        let first = sent(&plain, &s, vip(1)).unwrap();
        plain
            .now
            .set(plain.now.get() + plain.config().idle.udp_established + 1);
        others += u32::from(connected(&plain, &s, vip(1)) != Some(first));
    }
    assert!(others > 20, "only {others} of 40");
    let s = socket(100, proto::UDP);
    let first = sent(&plain, &s, vip(1)).unwrap();
    plain.drop_backend(proto::UDP, first.addr.octets()[3], 3);
    let second = connected(&plain, &s, vip(1)).unwrap();
    assert_ne!(second, first);
    assert_eq!(
        read_from(&plain, &s, second, first),
        vip(1),
        "a late answer"
    );
    // And one whose packets are translated stays with them.
    let mut s = socket(101, proto::UDP);
    s.names_source = true;
    assert_eq!(sent(&plain, &s, vip(1)), None);
    assert_eq!(connected(&plain, &s, vip(1)), None);
}

#[test]
fn a_row_that_is_old_or_of_another_backend_names_nobody() {
    let plain = Plain::new();
    let s = socket(1, proto::UDP);
    let first = sent(&plain, &s, vip(1)).unwrap();
    let idle = plain.config().idle.udp_established;
    plain.now.set(plain.now.get() + idle);
    assert_eq!(named(&plain, &s, first), vip(1));
    // Who reads answers all the time need not send.
    for _ in 0..4 {
        plain.now.set(plain.now.get() + idle);
        assert_eq!(named(&plain, &s, first), vip(1));
    }
    assert_eq!(sent(&plain, &s, vip(1)), Some(first), "and is where it was");
    plain.now.set(plain.now.get() + idle + 1);
    assert_eq!(named(&plain, &s, first), first, "of long ago");
    let second = sent(&plain, &s, vip(1)).unwrap();
    assert_eq!(named(&plain, &s, second), vip(1));
    plain.backends.borrow_mut()[usize::from(second.addr.octets()[3])].generation += 1;
    assert_eq!(
        named(&plain, &s, second),
        second,
        "another one has the number"
    );
}

#[test]
fn a_socket_that_connects_elsewhere_is_told_so() {
    let plain = Plain::new();
    let s = socket(1, proto::TCP);
    let first = connected(&plain, &s, vip(1)).unwrap();
    assert_eq!(told(&plain, &s, first), vip(1));
    // The first one failed; now it goes to the backend itself.
    assert_eq!(connected(&plain, &s, first), None);
    assert_eq!(told(&plain, &s, first), first);
    assert_eq!(plain.connections.borrow().len(), 0);
    // And one that sent to a service before.
    let s = socket(2, proto::UDP);
    let first = sent(&plain, &s, vip(1)).unwrap();
    assert_eq!(connected(&plain, &s, first), None);
    assert_eq!(told(&plain, &s, first), first);
    assert_eq!(read_from(&plain, &s, first, first), first);
}

#[test]
fn a_full_table_leaves_new_sockets_to_packets_and_old_ones_their_names() {
    let plain = Plain::new();
    let s = socket(1, proto::TCP);
    let first = connected(&plain, &s, vip(1)).unwrap();
    plain.is_full.set(true);
    assert_eq!(connected(&plain, &socket(2, proto::TCP), vip(1)), None);
    assert_eq!(told(&plain, &s, first), vip(1));
}

#[test]
fn what_is_closed_is_forgotten() {
    let plain = Plain::new();
    plain.service(2, &[1]);
    for (cookie, names_source) in [(1, false), (2, true)] {
        let mut s = socket(cookie, proto::UDP);
        s.names_source = names_source;
        sent(&plain, &s, vip(1));
        assert_ne!(plain.peers.borrow().len(), 0);
        close(&plain, &s);
        assert_eq!(plain.peers.borrow().len(), 0);
    }
    // Of several services the last one; the agent removes the others.
    let s = socket(3, proto::UDP);
    assert_eq!(sent(&plain, &s, vip(2)), Some(pod(1)));
    sent(&plain, &s, vip(1));
    connected(&plain, &s, vip(1));
    close(&plain, &s);
    assert_eq!(plain.connections.borrow().len(), 0);
    let left = plain.peers.borrow();
    let is_last = |addr: Ip4| addr == vip(1).addr;
    assert!(!left.keys().any(|key| is_last(key.addr)), "{left:?}");
    assert!(
        left.keys()
            .any(|key| key.direction == Direction::Forward as u8)
    );
}
