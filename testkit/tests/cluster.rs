//! A cluster carries traffic and leaves nothing. Needs root.
#![expect(clippy::unwrap_used, reason = "tests and their helpers may panic")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use testkit::http::{FailureKind, HttpServer, Load, LoadOptions, get};
use testkit::ping::ping;
use testkit::{Cluster, ClusterBuilder, NetNs, link};

const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn nodes_reach_their_pods_and_each_other() {
    let cluster = ClusterBuilder::unique("reach").build().unwrap();
    let [first, second] = cluster.nodes() else {
        panic!("two nodes asked for")
    };
    for (node, pod) in cluster.pods() {
        for ip in pod.ips() {
            ping(node.ns(), ip, 56, LIMIT).unwrap();
        }
        ping(pod.ns(), node.ip4().into(), 56, LIMIT).unwrap();
        ping(pod.ns(), node.ip6().unwrap().into(), 56, LIMIT).unwrap();
        assert_eq!(link::mtu(pod.ns(), "eth0").unwrap(), 1450);
        assert_eq!(link::mac(pod.ns(), "eth0").unwrap(), pod.mac());
        assert_eq!(link::mac(node.ns(), pod.host_if()).unwrap(), pod.host_mac());
    }
    ping(first.ns(), second.ip4().into(), 56, LIMIT).unwrap();
    ping(first.ns(), second.ip6().unwrap().into(), 56, LIMIT).unwrap();
    ping(first.ns(), [192, 168, 77, 1].into(), 56, LIMIT).unwrap();
    // No overlay yet: the other node's pods are out of reach.
    let far = second.pods()[0].ip4().into();
    assert!(ping(first.ns(), far, 56, Duration::from_millis(200)).is_err());
}

#[test]
fn addresses_read_the_same_in_both_families() {
    let cluster = ClusterBuilder::unique("text")
        .nodes(1)
        .pods_per_node(1)
        .build()
        .unwrap();
    let node = &cluster.nodes()[0];
    assert_eq!(node.name(), "node-1");
    assert_eq!(node.ip4().to_string(), "192.168.77.11");
    assert_eq!(node.ip6().unwrap().to_string(), "fd77::11");
    assert_eq!(node.pod_cidr4().to_string(), "10.244.1.0/24");
    assert_eq!(node.pod_cidr6().unwrap().to_string(), "fd44:0:0:1::/64");
    assert_eq!(node.pods()[0].ip4().to_string(), "10.244.1.11");
    assert_eq!(node.pods()[0].ip6().unwrap().to_string(), "fd44:0:0:1::11");
}

#[test]
fn http_answers_with_the_pods_name() {
    let cluster = ClusterBuilder::unique("http").nodes(1).build().unwrap();
    let node = &cluster.nodes()[0];
    let pod = &node.pods()[0];
    let server = HttpServer::start(pod.ns(), pod.name(), 8080).unwrap();
    for ip in pod.ips() {
        let response = get(node.ns(), SocketAddr::new(ip, 8080), "/", LIMIT).unwrap();
        assert_eq!(
            (response.status, response.pod.as_str()),
            (200, "node-1-pod-1")
        );
        let own = if ip.is_ipv4() {
            "node-1-pod-1 192.168.77.11:"
        } else {
            "node-1-pod-1 [fd77::11]:"
        };
        let body = String::from_utf8(response.body).unwrap();
        assert!(body.starts_with(own), "{body}");
    }
    let address = SocketAddr::new(pod.ip4().into(), 8080);
    let big = get(node.ns(), address, "/bytes/300000", LIMIT).unwrap();
    assert_eq!(big.body.len(), 300_000);
    assert_eq!(
        get(node.ns(), address, "/nowhere", LIMIT).unwrap().status,
        404
    );

    let report = Load::run(node.ns(), address, &LoadOptions::requests(200)).unwrap();
    assert_eq!(report.by_pod.get("node-1-pod-1"), Some(&200), "{report}");
    assert_eq!(
        (report.requests.len(), report.failures.len()),
        (200, 0),
        "{report}"
    );
    assert_eq!(server.requests(), 204);

    drop(server);
    let refused = get(node.ns(), address, "/", LIMIT).unwrap_err();
    assert_eq!(refused.kind, FailureKind::Refused, "{refused}");
    let report = Load::run(node.ns(), address, &LoadOptions::requests(5)).unwrap();
    assert_eq!(
        (report.by_pod.len(), report.failures.len()),
        (0, 5),
        "{report}"
    );
}

#[test]
fn pods_and_nodes_come_and_go() {
    let mut cluster = ClusterBuilder::unique("change")
        .nodes(1)
        .pods_per_node(1)
        .build()
        .unwrap();
    let second = cluster.add_pod("node-1").unwrap();
    let (name, ip, ns) = (
        second.name().to_owned(),
        second.ip4(),
        second.ns().name().to_owned(),
    );
    assert_eq!(name, "node-1-pod-2");
    ping(cluster.nodes()[0].ns(), ip.into(), 56, LIMIT).unwrap();
    cluster.remove_pod(&name).unwrap();
    assert!(NetNs::adopt(&ns).is_err());
    assert!(link::ifindex(cluster.nodes()[0].ns(), "pod2").is_err());
    assert_eq!(cluster.add_node().unwrap().name(), "node-2");
    cluster.remove_node("node-1").unwrap();
    let error = cluster.add_pod("node-1").unwrap_err().to_string();
    assert!(error.contains("no node node-1"), "{error}");
    let outsider = cluster.add_outsider("stranger").unwrap();
    let (from, to) = (
        NetNs::adopt(outsider.ns().name()).unwrap(),
        cluster.nodes()[0].ip4(),
    );
    ping(&from, to.into(), 56, LIMIT).unwrap();
}

#[test]
fn dropping_leaves_nothing() {
    let name = testkit::netns::unique("gone");
    let cluster = ClusterBuilder::new(&name)
        .nodes(1)
        .pods_per_node(1)
        .build()
        .unwrap();
    let pod = cluster.nodes()[0].pods()[0].ns();
    let mut sleeper = pod.command("sleep").unwrap().arg("1000").spawn().unwrap();
    assert!(pod.processes().unwrap().contains(&sleeper.id()));
    assert_eq!(traces(&name).len(), 6, "{:?}", traces(&name));
    drop(cluster);
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(
        !sleeper.wait().unwrap().success(),
        "the process in the pod was killed"
    );
}

#[test]
fn a_kept_cluster_is_found_and_destroyed_by_name() {
    let name = testkit::netns::unique("kept");
    let mut cluster = ClusterBuilder::new(&name)
        .nodes(1)
        .pods_per_node(1)
        .build()
        .unwrap();
    let error = ClusterBuilder::new(&name).build().unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    cluster.keep().unwrap();
    drop(cluster);

    let mut found = Cluster::load(&name).unwrap();
    assert!(Cluster::list().contains(&name));
    found.add_pod("node-1").unwrap();
    let node = &found.nodes()[0];
    ping(node.ns(), node.pods()[1].ip4().into(), 56, LIMIT).unwrap();
    drop(found);

    assert!(Cluster::destroy(&name).unwrap());
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(!Cluster::destroy(&name).unwrap());
}

#[test]
fn a_build_that_fails_leaves_nothing() {
    let name = testkit::netns::unique("half");
    // A namespace in the way of the second node.
    let in_the_way = NetNs::named(&format!("{name}-node-2")).unwrap();
    let error = ClusterBuilder::new(&name)
        .pods_per_node(1)
        .build()
        .unwrap_err()
        .to_string();
    assert!(error.contains("exists already"), "{error}");
    drop(in_the_way);
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn impossible_clusters_are_refused() {
    let error = ClusterBuilder::new("a/b").build().unwrap_err().to_string();
    assert!(error.contains("letters, digits"), "{error}");
    let small = ClusterBuilder::unique("mtu")
        .uplink_mtu(1300)
        .build()
        .unwrap_err()
        .to_string();
    assert!(small.contains("1330"), "{small}");
    let mut cluster = ClusterBuilder::unique("few").nodes(0).build().unwrap();
    let error = cluster.remove_pod("node-1-pod-1").unwrap_err().to_string();
    assert!(error.contains("no pod"), "{error}");
}

#[test]
fn errors_name_the_command() {
    let ns = NetNs::new("errors").unwrap();
    let error = link::batch(&ns, &["link show lo", "link set nowhere up"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("ip link set nowhere up"), "{error}");
    assert!(error.contains(ns.name()), "{error}");
    let error = link::sysctl(&ns, "net.ipv4.nonsense", "1")
        .unwrap_err()
        .to_string();
    assert!(error.contains("net.ipv4.nonsense=1"), "{error}");
}

/// Namespaces, mounts and files of a cluster that are there.
fn traces(cluster: &str) -> Vec<String> {
    let names = |directory: &str| -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Vec::new();
        };
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with(cluster))
            .map(|name| format!("{directory}/{name}"))
            .collect()
    };
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mounted = mounts
        .lines()
        .filter(|line| line.starts_with("bpf ") && line.contains(&format!("/{cluster}/")))
        .map(str::to_owned);
    assert!(Path::new("/run").is_dir());
    names("/run/netns")
        .into_iter()
        .chain(names("/run/tulle-clusters"))
        .chain(mounted)
        .collect()
}
