//! Frontends that more than one object asks for.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use support::balanced::{here, object, row, service};
use support::world::World;
use tulle_agent::model::{HostPort, NamespacedName, Object, Pod, Protocol, Service, ServicePort};

#[test]
fn kp38_an_exact_address_beats_a_node_port_and_gives_it_back() {
    let node_port = Service {
        vips: Vec::new(),
        ports: vec![ServicePort {
            node_port: Some(80),
            ..service(1).ports[0].clone()
        }],
        ..service(1)
    };
    let exact = Service {
        vips: vec![[192, 168, 0, 1].into()],
        ..service(2)
    };
    let mut world = World::new([object(node_port)]);
    world.planner.set_here(here());
    world.run();
    let holder = |world: &World| {
        let number = row(world, "192.168.0.1", 80).service;
        world.planner.service_name(number).unwrap().to_string()
    };
    assert_eq!(holder(&world), "default/s1");
    world.put(object(exact.clone()));
    assert_eq!(holder(&world), "default/s2");
    assert_eq!(world.planner.warnings().len(), 2, "the Node and the loser");
    world.delete(&object(exact));
    assert_eq!(holder(&world), "default/s1");
}

#[test]
fn a_contest_names_the_fields_of_both_and_what_to_change() {
    let exposed = |i: u8| Service {
        ports: vec![ServicePort {
            node_port: Some(30_080),
            ..service(i).ports[0].clone()
        }],
        ..service(i)
    };
    let same_address = Service {
        cluster_ips: service(1).cluster_ips,
        ..exposed(2)
    };
    let external = Service {
        vips: Vec::new(),
        external_ips: service(1).vips,
        ..service(3)
    };
    let pod = Pod {
        name: NamespacedName::new("apps", "web"),
        node: Some("n0".into()),
        ips: vec![[10, 244, 0, 1].into()],
        host_ports: vec![HostPort {
            addr: None,
            port: 30_080,
            container_port: 8080,
            protocol: Protocol::Tcp,
        }],
    };
    let mut world = World::new([
        object(exposed(1)),
        object(same_address),
        object(external),
        Object::Pod(pod.into()),
    ]);
    world.planner.set_here(here());
    world.run();
    let warnings = world.planner.warnings().iter();
    let said: BTreeSet<String> = warnings
        .filter(|warning| warning.problem.contains("belongs"))
        .map(ToString::to_string)
        .collect();
    let expected = [
        "Pod apps/web: spec.containers[*].ports[*].hostPort: 192.168.0.1 port 30080 belongs to \
         Service default/s1, spec.ports[*].nodePort, already; give the container another hostPort, \
         or a hostIP of its own; a nodePort goes before a hostPort",
        "Service default/s2: spec.clusterIPs: 10.96.0.1 port 80 belongs to Service default/s1, \
         spec.clusterIPs, already; give each Service a ClusterIP of its own, or another port",
        "Service default/s2: spec.ports[*].nodePort: 192.168.0.1 port 30080 belongs to Service \
         default/s1, spec.ports[*].nodePort, already; give each Service a nodePort of its own",
        "Service default/s2: status.loadBalancer.ingress: 203.0.113.1 port 80 belongs to Service \
         default/s1, status.loadBalancer.ingress, already; give each Service a load balancer \
         address of its own, or another port",
        "Service default/s3: spec.externalIPs: 203.0.113.1 port 80 belongs to Service default/s1, \
         status.loadBalancer.ingress, already; give each Service an external IP of its own, or \
         another port",
    ];
    assert_eq!(said, expected.map(str::to_owned).into());
}

/// Whoever tells of warnings looks no further if the slice is the same.
#[test]
fn warnings_that_a_change_does_not_touch_are_not_gathered_again() {
    let contested = Service {
        cluster_ips: service(1).cluster_ips,
        ..service(2)
    };
    let mut world = World::new([object(service(1)), object(contested.clone())]);
    world.planner.set_here(here());
    world.run();
    let before = Arc::clone(world.planner.warnings());
    assert!(before.iter().any(|w| w.problem.contains("belongs")));
    let apart = Service {
        vips: Vec::new(),
        ..service(3)
    };
    world.put(object(apart));
    let after = world.planner.warnings();
    assert!(Arc::ptr_eq(&before, after), "{before:?} {after:?}");
    world.delete(&object(contested));
    let after = world.planner.warnings();
    assert!(!after.iter().any(|w| w.problem.contains("belongs")));
}
