//! As many Services as a test wants, by number.

use tulle_agent::model::{Exposure, NamespacedName, Object, Protocol, Service, ServicePort};
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

pub fn front(i: u32) -> FrontKey {
    let [_, _, c, d] = i.to_be_bytes();
    FrontKey {
        addr: [10, 96, c, d].into(),
        port: 80,
        proto: 6,
    }
}
