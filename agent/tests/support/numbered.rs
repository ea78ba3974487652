//! As many Services as a test wants, by number.

use std::net::IpAddr;

use tulle_agent::model::{
    Endpoint, EndpointSlice, Exposure, Family, NamespacedName, Object, Protocol, Service,
    ServicePort, SlicePort,
};
use tulle_agent::plan::FrontKey;

pub fn name(i: u32) -> NamespacedName {
    NamespacedName::new("default", format!("s{i:05}"))
}

pub fn service(i: u32) -> Object {
    let ports = vec![ServicePort {
        name: "http".to_owned(),
        port: 80,
        protocol: Protocol::Tcp,
        node_port: None,
    }];
    let [_, _, c, d] = i.to_be_bytes();
    let cluster_ips = vec![[10, 96, c, d].into()];
    Object::Service(
        Service {
            cluster_ips,
            ports,
            ..Service::new(name(i), Exposure::Served)
        }
        .into(),
    )
}

/// Endpoints of service `i`.
pub fn slice(i: u32, endpoints: impl IntoIterator<Item = IpAddr>) -> Object {
    Object::Slice(
        EndpointSlice {
            name: name(i),
            service: Some(name(i).name),
            family: Some(Family::V4),
            ports: vec![SlicePort {
                name: "http".to_owned(),
                port: 8080,
                protocol: Protocol::Tcp,
            }],
            endpoints: endpoints.into_iter().map(Endpoint::new).collect(),
        }
        .into(),
    )
}

pub fn front(i: u32) -> FrontKey {
    let [_, _, c, d] = i.to_be_bytes();
    FrontKey {
        addr: [10, 96, c, d].into(),
        port: 80,
        proto: 6,
    }
}
