//! Frontends for clients outside: two lists, source ranges, and what of the
//! node decides them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::net::IpAddr;

use datapath_common::{FrontendFlags, Network, ViaKind};
use support::balanced::{VIP, here, object, row, service, slice};
use support::world::{World, outline};
use support::{CAPACITIES, Clock, Sim, apply, batch, facts, run};
use tulle_agent::model::{
    Endpoint, EndpointSlice, Hints, Node, Object, Policy, Service, ServicePort,
};
use tulle_agent::plan::{Applied, Capacities, FrontKey, Here, MapOp, Planner};
use tulle_agent::source::Change;

const DECIDE: u16 = FrontendFlags::FLOWS_DECIDE;

fn local(i: u8) -> Service {
    Service {
        external_policy: Policy::Local,
        ..service(i)
    }
}

fn ranges(i: u8, nets: &[&str]) -> Object {
    let source_ranges = nets.iter().map(|net| net.parse().unwrap()).collect();
    object(Service {
        source_ranges,
        ..service(i)
    })
}

/// Addresses in both lists of a frontend.
fn lists(world: &World, addr: &str) -> [Vec<String>; 2] {
    let row = row(world, addr, 80);
    [world.sim.inside(&row), world.sim.outside(&row)].map(|ids| {
        let addr = |id| world.sim.backs[&(true, id)].key.0.to_string();
        ids.into_iter().map(addr).collect()
    })
}

#[test]
fn both_lists_change_with_one_put() {
    let mut world = World::new([object(local(1))]);
    let ops = world.put(slice(1, &[("10.9.0.1", 1), ("10.9.0.2", 0)]));
    assert_eq!(
        outline(&ops),
        ["active", "slots", "front", "slots", "front"]
    );
    let both = ["10.9.0.1", "10.9.0.2"].map(str::to_owned).to_vec();
    assert_eq!(lists(&world, "10.96.0.1"), [both.clone(), both.clone()]);
    assert_eq!(lists(&world, VIP), [both, vec!["10.9.0.2".to_owned()]]);
    let vip = row(&world, VIP, 80);
    assert_eq!((vip.len, vip.out_start, vip.out_len), (2, vip.start + 2, 1));
    assert_eq!(vip.flags & DECIDE, 0, "empty lists have opened no flow");
    let cluster = row(&world, "10.96.0.1", 80);
    assert_eq!(
        (cluster.start, cluster.len),
        (cluster.out_start, cluster.out_len)
    );
    assert_eq!(cluster.service, vip.service, "one service port");

    // The same backends, but another one is this node's.
    let ops = world.put(slice(1, &[("10.9.0.1", 0), ("10.9.0.2", 1)]));
    assert_eq!(outline(&ops), ["slots", "front"]);
    assert_eq!(lists(&world, VIP)[1], ["10.9.0.1"]);
    assert_eq!(row(&world, VIP, 80).flags & DECIDE, DECIDE);
    assert_eq!(row(&world, "10.96.0.1", 80).flags & DECIDE, 0);

    world.put(slice(1, &[("10.9.0.1", 1), ("10.9.0.2", 1)]));
    assert_eq!(lists(&world, VIP)[1], [""; 0]);
    let drops = row(&world, VIP, 80).flags;
    assert_eq!(
        drops & FrontendFlags::DROP_OUTSIDE,
        FrontendFlags::DROP_OUTSIDE
    );
}

#[test]
fn ids_ascend_whatever_the_addresses() {
    let mut world = World::new([object(local(1)), slice(1, &[("10.9.0.9", 0)])]);
    world.put(slice(
        1,
        &[("10.9.0.9", 0), ("10.9.0.1", 0), ("10.9.0.5", 1)],
    ));
    let vip = row(&world, VIP, 80);
    assert_eq!(world.sim.inside(&vip), [1, 2, 3]);
    assert_eq!(world.sim.outside(&vip), [1, 2]);
    assert_eq!(lists(&world, VIP)[1], ["10.9.0.9", "10.9.0.1"]);
}

#[test]
fn both_lists_are_taken_over() {
    let objects = [
        object(local(1)),
        slice(1, &[("10.9.0.1", 1), ("10.9.0.2", 0)]),
    ];
    let mut world = World::new(objects.clone());
    world.restart();
    world.feed(objects.clone());
    assert_eq!(world.run(), [], "nothing has changed");

    // The second list is somewhere else than an agent puts it.
    let vip = (VIP.parse().unwrap(), 80, 6);
    let key = FrontKey {
        addr: vip.0,
        port: 80,
        proto: 6,
    };
    let before = world.sim.fronts[&vip];
    world.sim.fronts.get_mut(&vip).unwrap().out_start = before.start;
    let applied = Applied::from_rows(CAPACITIES, &world.sim.rows(), world.clock.now());
    world.planner = Planner::new("n0", applied);
    world.feed(objects);
    assert_eq!(outline(&world.run()), ["slots", "front"]);
    let after = world.planner.applied().frontend(&key).unwrap();
    assert_ne!(after.start, before.start, "fresh slots");
    assert_eq!(after.flags & DECIDE, DECIDE);
    assert_eq!(lists(&world, VIP)[1], ["10.9.0.2"]);
}

#[test]
fn what_flows_were_opened_by_and_is_no_longer_there_makes_flows_decide() {
    let plain = service(1);
    let sticky = Service {
        affinity_secs: Some(60),
        ..service(1)
    };
    let mut world = World::new([object(plain.clone()), slice(1, &[("10.9.0.1", 0)])]);
    let flags = |world: &World| row(world, VIP, 80).flags & DECIDE;
    world.put(object(sticky.clone()));
    assert_eq!(row(&world, VIP, 80).affinity_secs, 60);
    assert_eq!(flags(&world), 0, "an affinity asks the flow table itself");
    let ops = world.put(object(plain));
    assert_eq!(outline(&ops), ["front"], "the segment stays");
    assert_eq!(
        flags(&world),
        DECIDE,
        "the affinity may have chosen another"
    );

    let mut world = World::new([object(service(1)), slice(1, &[("10.9.0.1", 0)])]);
    world.put(object(local(1)));
    assert_eq!(flags(&world), DECIDE, "masqueraded flows live on");
    let mut world = World::new([object(local(1)), slice(1, &[("10.9.0.1", 0)])]);
    world.put(object(service(1)));
    assert_eq!(flags(&world), 0, "masquerade asks the flow table itself");
    // Nor has what never had a backend opened a flow.
    let mut world = World::new([object(sticky)]);
    world.put(object(service(1)));
    assert_eq!(flags(&world), 0);
}

#[test]
fn kp45_ranges_are_there_before_and_go_after() {
    let mut world = World::new([object(service(1)), slice(1, &[("10.9.0.1", 0)])]);
    let ops = world.put(ranges(1, &["192.0.2.0/24", "10.0.0.0/8"]));
    assert_eq!(outline(&ops), ["source", "restricted"]);
    let number = row(&world, VIP, 80).service;
    assert_eq!(world.sim.sources_of(number).len(), 2);
    let cluster = row(&world, "10.96.0.1", 80).flags;
    assert_eq!(cluster & FrontendFlags::SOURCE_RANGES, 0);

    assert_eq!(
        outline(&world.put(ranges(1, &["10.0.0.0/8"]))),
        ["unsource"]
    );
    let other = world.put(ranges(1, &["198.51.100.0/24", "fd00::/8"]));
    assert_eq!(outline(&other), ["source", "unsource"]);
    let net: IpAddr = [198, 51, 100, 0].into();
    assert_eq!(world.sim.sources_of(number), [(32 + 24, net)].into());

    world.restart();
    world.feed([
        ranges(1, &["198.51.100.0/24"]),
        slice(1, &[("10.9.0.1", 0)]),
    ]);
    assert_eq!(world.run(), [], "taken over");

    let ops = world.put(object(service(1)));
    assert_eq!(outline(&ops), ["front", "unsource"]);
    let service = ranges(1, &["10.0.0.0/8"]);
    world.put(service.clone());
    let ops = outline(&world.delete(&service));
    assert_eq!(ops, ["unmark", "delete", "unsource", "draining"]);
    assert!(world.sim.sources.is_empty());
}

#[test]
fn a_range_stays_while_a_frontend_looks_at_it() {
    let service = ranges(1, &["10.0.0.0/8"]);
    let mut world = World::new([service.clone()]);
    let number = row(&world, VIP, 80).service;
    world
        .planner
        .ingest(batch(vec![Change::Delete(service.key())]));
    // The unmarking, the ClusterIP's and the VIP's row fail; what is last fails first.
    world.sim.failures = vec![true; 3];
    world.run();
    assert_eq!(world.sim.fronts.len(), 3);
    assert_eq!(world.sim.sources_of(number).len(), 1);
    let at = world.planner.next_run().unwrap();
    world.clock.advance(at - world.clock.now());
    world.run();
    assert!(world.sim.fronts.is_empty() && world.sim.sources.is_empty());
    assert_eq!(world.planner.service_name(number), None);
}

#[test]
fn a_full_table_of_ranges_stops_its_frontend_and_no_other() {
    let capacities = Capacities {
        sources: 1,
        ..CAPACITIES
    };
    let mut planner = Planner::new("n0", Applied::new(capacities));
    let two = Service {
        vips: vec![[203, 0, 113, 2].into()],
        ..service(2)
    };
    let mut changes = apply([ranges(1, &["10.0.0.0/8", "192.0.2.0/24"]), object(two)]);
    changes.push(Change::Synced);
    planner.ingest(batch(changes));
    planner.set_facts(facts(&[]));
    let mut sim = Sim::default();
    let outcome = run(&mut planner, &mut sim, &Clock::new());
    assert_eq!((outcome.failed, outcome.pending), (1, 1));
    let text = outcome.errors[0].to_string();
    assert!(
        text.contains("tulle_srcs_v4") && text.contains("--max-sources"),
        "{text}"
    );
    assert!(sim.sources.is_empty(), "nothing is written in vain");
    let served: Vec<String> = sim.fronts.keys().map(|key| key.0.to_string()).collect();
    let marks_and_rows = [
        "10.96.0.1",
        "10.96.0.1",
        "10.96.0.2",
        "10.96.0.2",
        "203.0.113.2",
    ];
    assert_eq!(served, marks_and_rows);
}

#[test]
fn kp28_only_cluster_ips_are_marked() {
    let node_port = Service {
        external_ips: vec![[198, 51, 100, 9].into()],
        ports: vec![ServicePort {
            node_port: Some(30_080),
            ..service(1).ports[0].clone()
        }],
        ..service(1)
    };
    let mut world = World::new([]);
    world.planner.set_here(here());
    world.put(object(node_port.clone()));
    let fronts = &world.sim.fronts;
    let marked = fronts.keys().filter(|key| key.2 == 0);
    let marked: Vec<String> = marked.map(|key| key.0.to_string()).collect();
    assert_eq!(marked, ["10.96.0.1"]);
    assert_eq!(fronts.len(), 5);
    world.delete(&object(node_port));
    assert!(world.sim.fronts.is_empty());
}

#[test]
fn kp91_another_zone_or_address_compiles_every_service_anew() {
    let node_port = Service {
        vips: Vec::new(),
        ports: vec![ServicePort {
            node_port: Some(30_080),
            ..service(1).ports[0].clone()
        }],
        ..service(1)
    };
    let zoned = |addr: &str, zone: &str| Endpoint {
        hints: Some(
            Hints {
                zones: vec![zone.to_owned()],
                ..Hints::default()
            }
            .into(),
        ),
        ..Endpoint::new(addr.parse().unwrap())
    };
    let Object::Slice(slice) = slice(1, &[]) else {
        panic!("a slice");
    };
    let slice = EndpointSlice {
        endpoints: vec![zoned("10.9.0.1", "a"), zoned("10.9.0.2", "b")],
        ..(*slice).clone()
    };
    let mut world = World::new([object(node_port), Object::Slice(slice.into())]);
    assert_eq!(lists(&world, "10.96.0.1")[0].len(), 2);
    let in_zone = |zone: &str| Here {
        zone: Some(zone.to_owned()),
        ..here()
    };
    for (zone, backend) in [("a", "10.9.0.1"), ("b", "10.9.0.2")] {
        world.planner.set_here(in_zone(zone));
        world.run();
        assert_eq!(lists(&world, "10.96.0.1")[0], [backend]);
    }
    assert!(row(&world, "192.168.0.1", 30_080).len > 0);
    world.planner.set_here(in_zone("b"));
    assert_eq!(world.run(), [], "as before");
    world.planner.set_here(Here {
        node_port_addresses: vec![[192, 168, 0, 9].into()],
        ..in_zone("b")
    });
    assert_eq!(outline(&world.run()), ["delete", "slots", "front"]);
    assert!(row(&world, "192.168.0.9", 30_080).len > 0);
}

#[test]
fn an_endpoint_at_the_nodes_own_address_is_the_node() {
    let mut world = World::new([object(service(1)), slice(1, &[("192.168.0.1", 0)])]);
    let kind = |world: &World| world.sim.backs[&(true, 1)].via.kind;
    assert_eq!(kind(&world), ViaKind::Host as u8);
    let mut facts = facts(&["10.244.0.1"]);
    facts.own_addresses.clear();
    world.planner.set_facts(facts);
    assert_eq!(outline(&world.run()), ["active"]);
    assert_eq!(kind(&world), ViaKind::Kernel as u8);
}

#[test]
fn a_pod_network_is_a_peers_or_direct_at_every_moment() {
    let node = |i: u8, net: &str| {
        let mut node = Node::new(format!("n{i}"));
        node.pod_cidrs = vec![net.parse().unwrap()];
        node.internal_ips = vec![[192, 168, 0, i + 1].into()];
        Object::Node(node.into())
    };
    let nodes = [node(0, "10.244.0.0/24"), node(1, "10.244.1.0/24")];
    let mut world = World::new(nodes);
    let direct = |world: &World| -> Vec<String> {
        let nets = world.sim.networks.iter();
        nets.map(|((addr, len), bits)| {
            assert_eq!(*bits, Network::DIRECT);
            format!("{addr}/{len}")
        })
        .collect()
    };
    assert_eq!(direct(&world), ["10.244.0.0/24"], "our own");
    let mut away = facts(&["10.244.0.1"]);
    away.next_hops.clear();
    away.direct.insert("192.0.2.0/24".parse().unwrap());
    world.planner.set_facts(away.clone());
    assert_eq!(outline(&world.run()), ["direct", "unpeer"]);
    assert_eq!(
        direct(&world),
        ["10.244.0.0/24", "10.244.1.0/24", "192.0.2.0/24"]
    );
    world.restart();
    let nodes = [node(0, "10.244.0.0/24"), node(1, "10.244.1.0/24")];
    world.feed(nodes);
    world.planner.set_facts(away);
    assert_eq!(world.run(), [], "taken over");
    world.planner.set_facts(facts(&["10.244.0.1"]));
    let ops = world.run();
    assert_eq!(outline(&ops), ["peer", "undirect"]);
    assert!(matches!(ops[0], MapOp::PutPeer4 { .. }));
}
