//! Random objects out of small pools, so that they meet.

#![allow(dead_code, reason = "each test uses a part of it")]

pub mod history;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use tulle_agent::model::{
    Choice, Endpoint, EndpointSlice, Exposure, Family, Hints, NamespacedName, Node, Object, Policy,
    Protocol, Scheduler, Service, ServiceCidr, ServicePort, SlicePort,
};

fn name(prefix: &str, i: u8) -> NamespacedName {
    NamespacedName::new("default", format!("{prefix}{i}"))
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Sctp)
    ]
}

/// Ports by name: number, protocol, node port. Few numbers, so that they collide.
fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = (1..4_u16, protocol(), prop::option::weighted(0.3, 1..4_u16));
    prop::collection::btree_map(0..2_u8, port, 0..3).prop_map(|ports| {
        let mut used = BTreeSet::new();
        let ports = ports.into_iter();
        let ports = ports.filter(|(_, (port, protocol, _))| used.insert((*port, *protocol)));
        let port = |(n, (port, protocol, node_port))| ServicePort {
            name: format!("p{n}"),
            port,
            protocol,
            node_port,
        };
        ports.map(port).collect()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Cluster), Just(Policy::Local)]
}

/// Addresses of load balancers and the node, and cluster IPs of others.
fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    let pool: Vec<IpAddr> = ["10.96.0.1", "192.168.0.1", "203.0.113.1", "203.0.113.2"]
        .into_iter()
        .chain(["fd00:96::1", "2001:db8::1"])
        .map(|addr| addr.parse().unwrap())
        .collect();
    let some = prop::sample::subsequence(pool, 0..3);
    prop_oneof![2 => Just(Vec::new()), 1 => some]
}

fn source_ranges() -> impl Strategy<Value = Vec<IpNet>> {
    let pool = ["10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/24", "fd00::/8"];
    let pool: Vec<IpNet> = pool.iter().map(|net| net.parse().unwrap()).collect();
    let some = prop::sample::subsequence(pool, 0..4);
    prop_oneof![1 => Just(Vec::new()), 1 => some]
}

/// Half of them as usual.
fn choice() -> impl Strategy<Value = Choice> {
    let scheduler = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Scheduler::SourceHash)),
        1 => Just(Some(Scheduler::Maglev)),
        1 => Just(Some(Scheduler::MaglevSource)),
    ];
    let weights = prop_oneof![
        3 => Just(""),
        1 => Just("10.244.0.0/16=2,10.244.1.0/24=3,10.244.1.2=0"),
        1 => Just("10.244.0.0/16=0,fd00::/8=5"),
    ];
    (scheduler, weights).prop_map(|(scheduler, weights)| Choice {
        scheduler,
        weights: weights.parse().unwrap(),
    })
}

fn service() -> impl Strategy<Value = Object> {
    let exposure = prop_oneof![
        6 => Just(Exposure::Served), 1 => Just(Exposure::Headless), 1 => Just(Exposure::OtherProxy),
    ];
    let policies = (policy(), policy());
    let affinity = prop::option::weighted(0.2, 1..3_u32);
    let outside = (
        addresses(),
        addresses(),
        policies,
        affinity,
        source_ranges(),
        choice(),
    );
    (
        0..4_u8,
        exposure,
        0..3_u8,
        any::<bool>(),
        any::<bool>(),
        ports(),
        outside,
    )
        .prop_map(|(i, exposure, addr, v4, v6, ports, outside)| {
            let (external_ips, vips, policies, affinity_secs, source_ranges, choice) = outside;
            let (internal_policy, external_policy) = policies;
            let mut cluster_ips: Vec<IpAddr> = Vec::new();
            cluster_ips.extend(v4.then(|| IpAddr::from([10, 96, 0, addr])));
            cluster_ips.extend(v6.then(|| format!("fd00:96::{addr}").parse::<IpAddr>().unwrap()));
            Object::Service(
                Service {
                    cluster_ips,
                    ports,
                    external_ips,
                    vips,
                    internal_policy,
                    external_policy,
                    affinity_secs,
                    source_ranges,
                    choice,
                    ..Service::new(name("s", i), exposure)
                }
                .into(),
            )
        })
}

/// One port of one family.
pub fn plain_service() -> Object {
    let port = ServicePort {
        name: String::new(),
        port: 1,
        protocol: Protocol::Tcp,
        node_port: None,
    };
    Object::Service(
        Service {
            cluster_ips: vec![IpAddr::from([10, 96, 0, 1])],
            ports: vec![port],
            ..Service::new(name("s", 0), Exposure::Served)
        }
        .into(),
    )
}

fn slice() -> impl Strategy<Value = Object> {
    let endpoint = (
        0..3_u8,
        1..5_u8,
        prop::bool::weighted(0.8),
        any::<bool>(),
        any::<bool>(),
    );
    let ports = prop::collection::vec((0..2_u8, 80..82_u16, protocol()), 0..3);
    let endpoints = prop::collection::vec(endpoint, 0..6);
    let service = prop::option::weighted(0.9, 0..4_u8);
    (0..5_u8, service, any::<bool>(), ports, endpoints).prop_map(
        |(i, service, v4, ports, endpoints)| {
            let addr = |node: u8, host: u8| {
                if v4 {
                    IpAddr::from([10, 244, node, host])
                } else {
                    format!("fd00:244:{node}::{host}").parse().unwrap()
                }
            };
            let slice = EndpointSlice {
                name: name("e", i),
                service: service.map(|s| format!("s{s}").into()),
                family: Some(if v4 { Family::V4 } else { Family::V6 }),
                ports: ports
                    .into_iter()
                    .map(|(n, port, protocol)| SlicePort {
                        name: format!("p{n}"),
                        port,
                        protocol,
                    })
                    .collect(),
                endpoints: endpoints
                    .into_iter()
                    .map(|(node, host, ready, serving, terminating)| Endpoint {
                        ready,
                        serving,
                        terminating,
                        node: (host != 4).then(|| format!("n{node}").into()),
                        hints: (host == 2).then(|| {
                            let zones = vec!["a".to_owned()];
                            Hints {
                                zones,
                                ..Hints::default()
                            }
                            .into()
                        }),
                        ..Endpoint::new(addr(node, host))
                    })
                    .collect(),
            };
            Object::Slice(slice.into())
        },
    )
}

fn node() -> impl Strategy<Value = Object> {
    (0..4_u8, 0..3_u8, 1..5_u8, any::<bool>()).prop_map(|(i, net, addr, has_addr)| {
        let cidrs = [format!("10.244.{net}.0/24"), format!("fd00:244:{net}::/64")];
        let node = Node {
            pod_cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
            internal_ips: has_addr
                .then(|| [192, 168, 0, addr].into())
                .into_iter()
                .collect(),
            ..Node::new(format!("n{i}"))
        };
        Object::Node(node.into())
    })
}

/// Any object.
pub fn object() -> impl Strategy<Value = Object> {
    prop_oneof![6 => service(), 10 => slice(), 2 => node(), 1 => service_cidr()]
}

/// Networks of services, one of which holds pods.
fn service_cidr() -> impl Strategy<Value = Object> {
    let pool = ["10.96.0.0/31", "10.96.0.0/24", "10.244.0.0/16"].map(|net| net.parse().unwrap());
    let v4 = prop::sample::select(pool.to_vec());
    (0..2_u8, v4, any::<bool>()).prop_map(|(i, v4, v6)| {
        let mut cidrs: Vec<IpNet> = vec![v4];
        cidrs.extend(v6.then(|| "fd00:96::/127".parse::<IpNet>().unwrap()));
        let name = format!("c{i}");
        Object::ServiceCidr(ServiceCidr { name, cidrs }.into())
    })
}
