//! Direct server return in the plan: what changes with a Service's wish and with what nodes take.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::net::IpAddr;

use datapath_common::{FrontendFlags, Via};
use support::numbered::{name, service};
use support::world::{World, outline};
use tulle_agent::model::{
    DirectReturn, Endpoint, EndpointSlice, Family, Forwarding, Node, Object, Protocol, SlicePort,
};

const EXTERNAL: [u8; 4] = [198, 51, 100, 1];
const DECIDE: u16 = FrontendFlags::FLOWS_DECIDE;
const DIRECT: u16 = FrontendFlags::DIRECT_RETURN;

fn exposed(forwarding: Forwarding) -> Object {
    let Object::Service(mut service) = service(1) else {
        panic!("no service");
    };
    let changed = std::sync::Arc::make_mut(&mut service);
    changed.external_ips = vec![EXTERNAL.into()];
    changed.forwarding = Some(forwarding);
    Object::Service(service)
}

/// With a pod of the other node.
fn slice() -> Object {
    let slice = EndpointSlice {
        name: name(1),
        service: Some(name(1).name),
        family: Some(Family::V4),
        ports: vec![SlicePort {
            name: "http".to_owned(),
            port: 8080,
            protocol: Protocol::Tcp,
        }],
        endpoints: vec![Endpoint::new([10, 244, 1, 7].into())],
    };
    Object::Slice(slice.into())
}

fn node(v4: bool) -> Object {
    let mut node = Node::new("n1");
    node.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
    node.internal_ips = vec![IpAddr::from([192, 168, 0, 2])];
    node.direct_return = DirectReturn { v4, v6: false };
    Object::Node(node.into())
}

impl World {
    /// What the row of an address says of flows.
    fn says(&self, addr: [u8; 4]) -> u16 {
        let row = &self.sim.fronts[&(addr.into(), 80, 6)];
        row.flags & (DECIDE | DIRECT)
    }

    /// Flags of the way to the only backend.
    fn way(&self) -> u8 {
        self.sim.backs.values().next().unwrap().via.flags
    }
}

#[test]
fn a_node_that_begins_to_answer_changes_the_way_alone() {
    let mut world = World::new([exposed(Forwarding::Dsr), slice(), node(false)]);
    assert_eq!((world.says(EXTERNAL), world.way()), (DIRECT, 0));
    // Every packet asks the flow table, which knows how its flow was opened.
    let ops = world.put(node(true));
    assert_eq!(outline(&ops), ["peer", "active"]);
    assert_eq!((world.says(EXTERNAL), world.way()), (DIRECT, Via::DIRECT));
    assert_eq!(world.says([10, 96, 0, 1]), 0, "nobody is hidden otherwise");
}

#[test]
fn a_service_that_asks_for_something_else_changes_its_frontends_alone() {
    let mut world = World::new([exposed(Forwarding::Snat), slice(), node(true)]);
    assert_eq!((world.says(EXTERNAL), world.way()), (0, Via::DIRECT));
    assert_eq!(outline(&world.put(exposed(Forwarding::Dsr))), ["front"]);
    assert_eq!(world.says(EXTERNAL), DIRECT);
    assert_eq!(outline(&world.put(exposed(Forwarding::Snat))), ["front"]);
    assert_eq!(world.says(EXTERNAL), 0);
}

#[test]
fn every_packet_asks_where_answers_may_be_direct() {
    let world = World::new([exposed(Forwarding::Dsr), slice(), node(true)]);
    let row = &world.sim.fronts[&(EXTERNAL.into(), 80, 6)];
    assert_ne!(row.flags & FrontendFlags::MASQUERADE_OUTSIDE, 0);
}

#[test]
fn a_restart_alone_changes_nothing() {
    let objects = || [exposed(Forwarding::Dsr), slice(), node(true)];
    let mut world = World::new(objects());
    assert_eq!(world.says(EXTERNAL), DIRECT);
    world.restart();
    world.feed(objects());
    assert_eq!(world.run(), []);
    // What changed meanwhile is noticed.
    world.restart();
    world.feed([exposed(Forwarding::Dsr), slice(), node(false)]);
    assert_eq!(outline(&world.run()), ["peer", "active"]);
    assert_eq!((world.says(EXTERNAL), world.way()), (DIRECT, 0));
}
