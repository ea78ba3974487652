//! Manifests are YAML of the right shape, replaced at once. Needs root, for
//! the cluster that they describe.
#![expect(clippy::unwrap_used, reason = "tests and their helpers may panic")]

use std::time::Duration;

use serde::Deserialize as _;
use serde_json::{Value, json};
use testkit::ClusterBuilder;
use testkit::manifests::{Endpoint, Exposure, Protocol, Service, StateDir, many_services};

fn documents(text: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(text)
        .map(|d| Value::deserialize(d).unwrap())
        .collect()
}

#[test]
fn a_service_says_where_else_it_is_reached_and_by_whom() {
    let ips = |texts: [&str; 2]| texts.map(|ip| ip.parse().unwrap()).to_vec();
    let mut service = Service::dual_stack("wide", 12)
        .port(Protocol::Tcp, 80, 8080)
        .node_port(30_080)
        .port(Protocol::Udp, 7, 7007);
    let [plain, ..] = &documents(&service.to_string())[..] else {
        panic!("{service}")
    };
    assert_eq!(plain["spec"]["type"], "NodePort");
    assert_eq!(plain["spec"]["ports"][0]["nodePort"], 30_080);
    assert_eq!(plain["spec"]["ports"][1]["nodePort"], Value::Null);
    assert_eq!(plain["spec"]["externalTrafficPolicy"], Value::Null);
    assert_eq!(plain["status"], Value::Null);

    service.exposure = Exposure {
        external_ips: ips(["198.51.100.1", "2001:db8:198::1"]),
        balancer_ips: ips(["203.0.113.1", "2001:db8:203::1"]),
        source_ranges: vec!["192.0.2.0/24".to_owned(), "2001:db8::/32".to_owned()],
        external_local: true,
        internal_local: true,
        affinity: Some(Duration::from_secs(5)),
    };
    let [wide, ..] = &documents(&service.to_string())[..] else {
        panic!("{service}")
    };
    let spec = &wide["spec"];
    assert_eq!(spec["type"], "LoadBalancer");
    assert_eq!(
        spec["externalIPs"],
        json!(["198.51.100.1", "2001:db8:198::1"])
    );
    assert_eq!(
        spec["loadBalancerSourceRanges"],
        json!(["192.0.2.0/24", "2001:db8::/32"])
    );
    assert_eq!(spec["externalTrafficPolicy"], "Local");
    assert_eq!(spec["internalTrafficPolicy"], "Local");
    assert_eq!(spec["sessionAffinity"], "ClientIP");
    assert_eq!(
        spec["sessionAffinityConfig"],
        json!({"clientIP": {"timeoutSeconds": 5}})
    );
    assert_eq!(
        wide["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "203.0.113.1"}, {"ip": "2001:db8:203::1"}])
    );
}

#[test]
fn a_state_directory_describes_the_cluster() {
    let cluster = ClusterBuilder::unique("state")
        .nodes(2)
        .pods_per_node(1)
        .build()
        .unwrap();
    let state = StateDir::create(cluster.directory().join("state")).unwrap();
    state.write_nodes(&cluster).unwrap();
    let nodes = documents(&std::fs::read_to_string(state.path().join("nodes.yaml")).unwrap());
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[1]["metadata"]["name"], "node-2");
    assert_eq!(
        nodes[1]["spec"]["podCIDRs"],
        json!(["10.244.2.0/24", "fd44:0:0:2::/64"])
    );
    assert_eq!(
        nodes[1]["status"]["addresses"],
        json!([
            {"type": "InternalIP", "address": "192.168.77.12"},
            {"type": "InternalIP", "address": "fd77::12"},
            {"type": "Hostname", "address": "node-2"},
        ])
    );

    let mut web = Service::dual_stack("web", 10)
        .port(Protocol::Tcp, 80, 8080)
        .endpoints(cluster.pods());
    state.write_service(&web).unwrap();
    let read = || documents(&std::fs::read_to_string(state.path().join("web.yaml")).unwrap());
    let [service, v4, v6] = &read()[..] else {
        panic!("a service and two slices: {web}")
    };
    assert_eq!(service["kind"], "Service");
    assert_eq!(
        service["spec"]["clusterIPs"],
        json!(["10.96.0.10", "fd96::10"])
    );
    assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(service["spec"]["ports"][0]["targetPort"], 8080);
    assert_eq!(
        v4["metadata"]["labels"]["kubernetes.io/service-name"],
        "web"
    );
    assert_eq!(
        (&v4["addressType"], &v6["addressType"]),
        (&json!("IPv4"), &json!("IPv6"))
    );
    assert_eq!(v4["endpoints"][1]["addresses"], json!(["10.244.2.11"]));
    assert_eq!(v6["endpoints"][1]["addresses"], json!(["fd44:0:0:2::11"]));
    assert_eq!(v6["endpoints"][1]["nodeName"], "node-2");
    assert_eq!(v6["endpoints"][0]["conditions"]["ready"], true);

    assert_eq!(web.remove_endpoint("node-1-pod-1").unwrap().node, "node-1");
    web.remove_endpoint("node-2-pod-1").unwrap();
    let error = web.remove_endpoint("node-2-pod-1").unwrap_err().to_string();
    assert!(
        error.contains("web has no endpoint for pod node-2-pod-1"),
        "{error}"
    );
    state.write_service(&web).unwrap();
    assert_eq!(read()[1]["endpoints"], json!([]));

    let names: Vec<_> = std::fs::read_dir(state.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "no temporary files stay: {names:?}");
    state.remove_service(&web).unwrap();
    assert!(state.remove_service(&web).is_err());
}

#[test]
fn many_services_are_all_different_and_in_few_files() {
    let directory = tempfile::tempdir().unwrap();
    let state = StateDir::create(directory.path()).unwrap();
    let endpoint = |n: u8| Endpoint {
        ips: vec![[10, 244, 1, n].into()],
        node: "node-1".to_owned(),
        pod: format!("pod-{n}"),
        ready: true,
        serving: true,
        terminating: false,
    };
    let services = many_services("many", 1200, &[endpoint(1), endpoint(2), endpoint(3)]).unwrap();
    let files = state.write_services("many", &services).unwrap();
    assert_eq!(files, ["many-1.yaml", "many-2.yaml", "many-3.yaml"]);
    let mut addresses = std::collections::HashSet::new();
    for file in files {
        for document in documents(&std::fs::read_to_string(state.path().join(file)).unwrap()) {
            if document["kind"] == "Service" {
                addresses.insert(document["spec"]["clusterIP"].to_string());
            } else if document["addressType"] == "IPv4" {
                assert_eq!(document["endpoints"].as_array().unwrap().len(), 2);
            }
        }
    }
    assert_eq!(addresses.len(), 1200);
    assert!(many_services("too-many", 100_000, &[]).is_err());
}
