//! Services with a balancer's address, and a node that has an address for node ports.

use datapath_common::Frontend;
use tulle_agent::model::{
    Endpoint, EndpointSlice, Exposure, Family, NamespacedName, Object, Protocol, Service,
    ServicePort, SlicePort,
};
use tulle_agent::plan::Here;

use super::world::World;

pub const VIP: &str = "203.0.113.1";

pub fn name(i: u8) -> NamespacedName {
    NamespacedName::new("default", format!("s{i}"))
}

/// A Service at 10.96.0.`i`:80 and at the balancer's address.
pub fn service(i: u8) -> Service {
    Service {
        cluster_ips: vec![[10, 96, 0, i].into()],
        vips: vec![VIP.parse().unwrap()],
        ports: vec![ServicePort {
            name: String::new(),
            port: 80,
            protocol: Protocol::Tcp,
            node_port: None,
        }],
        ..Service::new(name(i), Exposure::Served)
    }
}

pub fn object(service: Service) -> Object {
    Object::Service(service.into())
}

/// Endpoints of service `i`: address and number of the node.
pub fn slice(i: u8, endpoints: &[(&str, u8)]) -> Object {
    let endpoint = |(addr, node): &(&str, u8)| Endpoint {
        node: Some(format!("n{node}").into()),
        ..Endpoint::new(addr.parse().unwrap())
    };
    let port = SlicePort {
        name: String::new(),
        port: 8080,
        protocol: Protocol::Tcp,
    };
    Object::Slice(
        EndpointSlice {
            name: name(i),
            service: Some(name(i).name),
            family: Some(Family::V4),
            ports: vec![port],
            endpoints: endpoints.iter().map(endpoint).collect(),
        }
        .into(),
    )
}

pub fn here() -> Here {
    Here {
        node: "n0".to_owned(),
        node_port_addresses: vec![[192, 168, 0, 1].into()],
        ..Here::default()
    }
}

pub fn row(world: &World, addr: &str, port: u16) -> Frontend {
    world.sim.fronts[&(addr.parse().unwrap(), port, 6)]
}
