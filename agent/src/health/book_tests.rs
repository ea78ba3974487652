use super::*;
use crate::model::{Dirty, Endpoint, EndpointSlice, Object, Policy, Protocol, SlicePort};
use crate::source::Change;

struct World {
    model: Model,
    book: Book,
}

fn web() -> NamespacedName {
    NamespacedName::new("shop", "web")
}

/// A Service of both families whose port is open.
fn service(port: u16) -> Service {
    let mut service = Service::new(web(), Exposure::Served);
    service.cluster_ips = vec![[10, 96, 0, 10].into(), "fd96::10".parse().unwrap()];
    service.external_policy = Policy::Local;
    service.load_balancer = true;
    service.health_check_node_port = Some(port);
    service
}

/// A slice of two ports; `octet words…` for each endpoint, all on n0 unless they are `far`.
fn slice(family: Family, endpoints: &[&str]) -> EndpointSlice {
    let endpoint = |text: &&str| {
        let (octet, words) = text.split_once(' ').unwrap_or((text, ""));
        let addr = match family {
            Family::V4 => format!("10.0.0.{octet}"),
            Family::V6 => format!("fd00::{octet}"),
        };
        let mut endpoint = Endpoint::new(addr.parse().unwrap());
        endpoint.node = Some(if words == "far" { "n1" } else { "n0" }.into());
        endpoint.ready = !["not-ready", "terminating"].contains(&words);
        endpoint.terminating = ["terminating", "published"].contains(&words);
        endpoint
    };
    let port = |name: &str, port| SlicePort {
        name: name.into(),
        port,
        protocol: Protocol::Tcp,
    };
    EndpointSlice {
        name: NamespacedName::new("shop", family.name()),
        service: Some("web".into()),
        family: Some(family),
        ports: vec![port("a", 8080), port("b", 8081)],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

impl World {
    fn new() -> Self {
        Self {
            model: Model::default(),
            book: Book::new("n0"),
        }
    }

    fn change(&mut self, change: Change) -> bool {
        let mut dirty = Dirty::default();
        self.model.apply(change, &mut dirty);
        self.book.look(&self.model, &dirty.services)
    }

    fn put(&mut self, service: Service) -> bool {
        self.change(Change::Apply(Object::Service(service.into())))
    }

    fn endpoints(&mut self, family: Family, endpoints: &[&str]) -> bool {
        self.change(Change::Apply(Object::Slice(
            slice(family, endpoints).into(),
        )))
    }

    /// Port and ready endpoints of both families.
    fn told(&self) -> Option<(u16, Option<usize>, Option<usize>)> {
        let probe = self.book.board().probes.get(&web())?;
        Some((probe.port, probe.ready4, probe.ready6))
    }
}

#[test]
fn kp51_open_by_type_policy_and_port_alone() {
    let mut world = World::new();
    assert!(world.put(service(30_999)), "without endpoint and VIP");
    assert_eq!(world.told(), Some((30_999, Some(0), Some(0))));
    assert!(!world.put(service(30_999)), "nothing is different");
    assert!(world.put(service(30_998)));
    assert_eq!(world.told(), Some((30_998, Some(0), Some(0))));
    let closing: [fn(&mut Service); 4] = [
        |s| s.external_policy = Policy::Cluster,
        |s| s.load_balancer = false,
        |s| s.health_check_node_port = None,
        |s| s.exposure = Exposure::OtherProxy,
    ];
    for close in closing {
        let mut other = service(30_999);
        close(&mut other);
        assert!(world.put(other.clone()));
        assert_eq!(world.told(), None);
        assert!(!world.put(other), "it was closed already");
        assert!(world.put(service(30_999)));
    }
    let key = Object::Service(service(1).into()).key();
    assert!(world.change(Change::Delete(key)));
    assert_eq!(world.told(), None);
}

#[test]
fn kp155_distinct_ready_addresses_here_in_each_family() {
    let mut world = World::new();
    world.put(service(30_999));
    for (endpoints, ready) in [
        (&["1"][..], 1),
        (&["1", "2", "3"], 3),
        (&["1", "2 far"], 1),
        (&["1 not-ready"], 0),
        // They serve, and yet load balancers go elsewhere (KP-82).
        (&["1 terminating", "2 terminating"], 0),
        (&["1 terminating", "2"], 1),
        // publishNotReadyAddresses: ready whatever else (KP-19).
        (&["1 published"], 1),
    ] {
        let [before4, before6] = world.told().map(|(_, v4, v6)| [v4, v6]).unwrap();
        let changed = world.endpoints(Family::V4, endpoints);
        assert_eq!(world.told(), Some((30_999, Some(ready), before6)));
        assert_eq!(changed, before4 != Some(ready), "{endpoints:?}");
        world.endpoints(Family::V6, endpoints);
        assert_eq!(world.told(), Some((30_999, Some(ready), Some(ready))));
    }
    let mut v6 = service(30_999);
    v6.cluster_ips.remove(0);
    assert!(world.put(v6));
    assert_eq!(world.told(), Some((30_999, None, Some(1))), "KP-05");
}

#[test]
fn a_service_fails_from_the_first_time_on_and_alone() {
    let mut world = World::new();
    world.put(service(30_999));
    let (now, later) = (Instant::now(), Instant::now() + super::super::PATIENCE);
    let failing = |world: &World| world.book.board().probes[&web()].failing;
    let other = NamespacedName::new("shop", "other");
    assert!(!world.book.set_failing([other.clone()].into(), now));
    assert_eq!(failing(&world), None);
    assert!(world.book.set_failing([other.clone(), web()].into(), now));
    assert!(!world.book.set_failing([other, web()].into(), later));
    assert_eq!(failing(&world), Some(now), "since the first time");
    world.put(service(30_998));
    assert_eq!(failing(&world), Some(now), "whatever else changes");
    assert!(world.book.set_failing(BTreeSet::new(), later));
    assert_eq!(failing(&world), None);
}

#[test]
fn what_concerns_all_is_told_once() {
    let (mut book, now) = (Book::new("n0"), Instant::now());
    let later = now + super::super::PATIENCE;
    assert!(!book.set_serving(true, now));
    assert!(book.set_serving(false, now));
    assert!(!book.set_serving(false, later));
    assert_eq!(book.board().failing, Some(now));
    assert!(book.set_serving(true, later));
    assert_eq!(book.board().failing, None);
    let any: [IpAddr; 1] = ["::".parse().unwrap()];
    assert!(book.set_addresses(&any) && !book.set_addresses(&any));
}
