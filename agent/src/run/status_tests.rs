use std::path::Path;
use std::time::{Instant, SystemTime};

use super::*;
use crate::model::Fault;
use crate::plan::{Applied, Capacities, MapOp, MapWriter, NodeFacts, WriteError};
use crate::source::{Batch, Change, parse};

/// Takes every write.
struct Willing;

impl MapWriter for Willing {
    fn write(&mut self, _: &MapOp) -> Result<(), WriteError> {
        Ok(())
    }
}

const OBJECTS: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-2}
spec: {podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports:
    - {name: http, port: 80, protocol: TCP}
    - {name: dns, port: 53, protocol: UDP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports:
  - {name: http, port: 8080, protocol: TCP}
  - {name: dns, port: 5353, protocol: UDP}
endpoints:
  - addresses: [10.244.2.5]
";

fn planner() -> Planner {
    let (mut changes, warnings) = parse(Path::new("all.yaml"), OBJECTS);
    assert_eq!(warnings, []);
    changes.push(Change::Synced);
    let mut planner = Planner::new("node-1", Applied::new(Capacities::default()));
    planner.ingest(Batch {
        changes,
        triggers: Vec::new(),
        warnings: [].into(),
        noticed: Instant::now(),
        noticed_at: SystemTime::now(),
    });
    planner.set_facts(NodeFacts {
        name: "node-1".into(),
        overlay: true,
        ..NodeFacts::default()
    });
    assert_eq!(planner.run(&mut Willing, Instant::now).failed, 0);
    planner
}

#[test]
fn names_are_those_of_the_written_rows() {
    let names = names(&planner());
    let mut services: Vec<String> = names.services.iter().map(Service::full_name).collect();
    services.sort();
    assert_eq!(services, ["shop/web:dns", "shop/web:http"]);
    for service in &names.services {
        assert_ne!(service.number, 0);
        assert_eq!(service.family, 4);
        let dns = service.port_name == "dns";
        let at = service.frontends[0];
        assert_eq!(
            at.address.to_string(),
            if dns {
                "10.96.0.10:53"
            } else {
                "10.96.0.10:80"
            }
        );
        assert_eq!(at.protocol, if dns { Protocol::Udp } else { Protocol::Tcp });
    }
    let mut of_backends: Vec<&str> = names
        .backends
        .iter()
        .flat_map(|backend| backend.services.iter().map(String::as_str))
        .collect();
    of_backends.sort_unstable();
    assert_eq!(of_backends, ["shop/web:dns", "shop/web:http"]);
    let [peer] = names.peers.as_slice() else {
        panic!("{:?}", names.peers)
    };
    assert_eq!(
        (peer.node.as_str(), peer.address.to_string().as_str()),
        ("node-2", "192.0.2.2")
    );
    assert_eq!(peer.pod_cidrs, ["10.244.2.0/24"]);
    assert_eq!(peer.vtep_mac.as_deref(), Some("0a:58:c0:00:02:02"));
    assert_eq!(objects(planner().model(), 3).local_pods, 3);
    assert_eq!(objects(planner().model(), 3).nodes, 2);
}

#[test]
fn warnings_keep_their_mend() {
    let fault = Fault::new("spec.ports[0].port", "is 0", "use 1 to 65535");
    let told = warning(&model::Warning::new("Service shop/web", fault).in_file("/s/web.yaml"));
    assert_eq!(told.file, "/s/web.yaml");
    assert_eq!(told.message, "is 0; use 1 to 65535");
    assert_eq!(
        (told.object.as_str(), told.field.as_str()),
        ("Service shop/web", "spec.ports[0].port")
    );
}

/// Thousands of them, after each event.
#[test]
fn warnings_that_are_the_same_are_not_put_into_words_again() {
    let of = |problem: &str| -> Arc<[model::Warning]> {
        let fault = Fault::new("spec", problem, "mend it");
        [model::Warning::new("Service shop/web", fault)].into()
    };
    let (mut warnings, bad) = (Warnings::default(), of("is bad"));
    let first = warnings.told(&bad);
    assert_eq!(first[0].message, "is bad; mend it");
    assert!(Arc::ptr_eq(&first, &warnings.told(&bad)));
    let worse = warnings.told(&of("is worse"));
    assert_eq!(worse[0].message, "is worse; mend it");
}

#[test]
fn attachments_name_their_interface_or_its_number() {
    let name = |index| (index == 5).then(|| "pod1".to_owned());
    let pod = attachment(Place::new(Hook::PodFrom, 5), AttachKind::Clsact, None, name);
    assert_eq!(
        (
            pod.program.as_str(),
            pod.interface.as_str(),
            pod.mode.as_str()
        ),
        ("tulle_pod_from", "pod1", "clsact")
    );
    let choice = XdpChoice {
        mode: XdpMode::Generic,
        why: "asked for".into(),
    };
    let xdp = attachment(
        Place::new(Hook::Xdp, 6),
        AttachKind::Tcx,
        Some(&choice),
        name,
    );
    assert_eq!(
        (xdp.interface.as_str(), xdp.mode.as_str()),
        ("#6", "xdp-generic")
    );
}
