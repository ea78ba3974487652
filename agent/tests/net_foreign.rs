//! What the slow path does with what others left in the kernel, and what it leaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod netns;

use std::time::Duration;

use netns::node::{expected_routes, on_node, routes};
use netns::{json, output, sh};
use tulle_agent::net::cleanup;

/// Everything that a network namespace holds, without what counts or ages.
fn snapshot() -> Vec<String> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        all.push(output(&format!("ip {family} rule")));
        all.push(output(&format!("ip -d {family} route show table all")));
    }
    all.push(output("ip -d link"));
    all.push(output("ip -o addr"));
    all.push(output("ip neigh show nud permanent"));
    all.push(output("bridge fdb"));
    all.push(output(
        "sysctl -a --pattern net.ipv[46].(conf.*|ip_forward)",
    ));
    all
}

#[test]
fn flannels_device_is_adopted() {
    on_node(|mut node| async move {
        sh("ip link add flannel.1 mtu 1400 address 02:00:00:00:00:55 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning
            ip link set flannel.1 up
            ip addr add 10.244.1.0/32 dev flannel.1
            ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
            bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent
            ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
            ip neigh add 10.244.9.0 lladdr 02:00:00:00:00:09 dev flannel.1 nud permanent
            bridge fdb add 02:00:00:00:00:09 dev flannel.1 dst 192.0.2.9 self permanent
            ip route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink");
        let index = json("ip -j link show flannel.1")[0]["ifindex"].clone();
        let report = node.pass().await;
        assert_eq!(serde_json::json!(report.device), index, "adopted in place");
        // Its MAC, its MTU, its accept_ra, and its route's protocol and MTU were not ours.
        assert_eq!(report.repaired, 4, "{:#?}", report.sentences);
        // The peer that is gone had a neighbour, an entry and a route; setting the
        // MAC flushed the neighbours.
        assert_eq!(report.removed, 2, "{:#?}", report.sentences);
        node.settled().await;
    });
}

#[test]
fn a_device_in_the_way_is_named() {
    on_node(|mut node| async move {
        sh("ip link add vx0 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472");
        let error = node.slow_path.reconcile(&node.overlay).await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("VXLAN device vx0 already uses VNI 1"),
            "{error}"
        );
        sh("ip link del vx0
            ip link add flannel.1 type bridge");
        let error = node.slow_path.reconcile(&node.overlay).await.unwrap_err();
        assert!(error.to_string().contains("is a bridge device"), "{error}");
        sh("ip link del flannel.1");
        node.pass().await;
        node.settled().await;
    });
}

#[test]
fn without_ipv6_the_rest_is_set_up() {
    on_node(|mut node| async move {
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1
            sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        let report = node.pass().await;
        assert!(report.sentences.iter().any(|s| s.contains("disable_ipv6")));
        assert_eq!(
            routes(),
            expected_routes(&node.overlay)
                .into_iter()
                .filter(|r| !r.contains("fd00"))
                .collect::<Vec<_>>()
        );
        assert!(node.pass().await.is_clean());
        sh("sysctl -qw net.ipv6.conf.flannel/1.disable_ipv6=0
            sysctl -qw net.ipv6.conf.lo.disable_ipv6=0");
        node.pass().await;
        node.settled().await;
    });
}

#[test]
fn an_mtu_that_the_kernel_refuses_does_not_keep_the_rest_undone() {
    on_node(|mut node| async move {
        node.pass().await;
        sh("ip route del 10.244.2.0/24");
        node.overlay.mtu = 1480;
        let report = node.slow_path.reconcile(&node.overlay).await.unwrap();
        assert_eq!(report.failed.len(), 1, "{:#?}", report.failed);
        assert!(report.failed[0].starts_with("cannot set the MTU of flannel.1 to 1480"));
        assert!(output("ip route show 10.244.2.0/24").contains("mtu 1480"));
    });
}

#[test]
fn cleanup_leaves_what_was_before() {
    on_node(|mut node| async move {
        sh("ip link add other0 type veth peer name other1
            ip addr add 172.16.0.1/24 dev other0
            ip link set other0 addrgenmode none
            ip link set other1 addrgenmode none
            ip link set other0 up
            ip link set other1 up
            ip link add vx7 type vxlan id 7 dev eth0 dstport 8472 nolearning
            ip link set vx7 addrgenmode none
            ip link set vx7 up
            bridge fdb append 02:00:00:00:00:70 dev vx7 dst 192.0.2.70
            ip neigh add 172.16.0.9 lladdr 02:00:00:00:00:71 dev other0 nud permanent
            ip route add 172.17.0.0/16 via 172.16.0.2 proto static
            ip route add 10.244.9.0/24 via 172.16.0.2 proto static
            ip route add blackhole 10.99.0.0/16
            sysctl -qw net.ipv4.ip_forward=0
            sysctl -qw net.ipv6.conf.all.forwarding=0
            sysctl -qw net.ipv4.conf.eth0.forwarding=1
            sysctl -qw net.ipv6.conf.eth0.accept_ra=1
            sysctl -qw net.ipv4.conf.all.accept_redirects=0");
        quiet_ipv6().await;
        let before = snapshot();
        node.pass().await;
        assert_ne!(snapshot(), before);
        assert_eq!(output("sysctl -n net.ipv6.conf.eth0.accept_ra").trim(), "2");
        sh("sysctl -qw net.ipv4.ip_forward=0");
        node.pass().await;

        let done = cleanup(&node.netlink, 1, &node.record).await.unwrap();
        assert!(done.iter().any(|s| s == "deleted flannel.1"), "{done:#?}");
        assert!(
            done.iter()
                .any(|s| s == "removed route 10.244.2.0/24 via 10.244.2.0")
        );
        assert_eq!(snapshot(), before);
        assert!(!node.record.exists());
        let again = cleanup(&node.netlink, 1, &node.record).await.unwrap();
        assert_eq!(again, [""; 0]);
    });
}

#[test]
fn foreign_rows_are_untouched_and_a_route_in_the_way_is_told() {
    on_node(|mut node| async move {
        sh("ip route add 10.244.3.0/24 via 192.0.2.254 proto static");
        node.overlay
            .own_pod_cidrs
            .push("10.250.0.0/24".parse().unwrap());
        let report = node.slow_path.reconcile(&node.overlay).await.unwrap();
        assert_eq!(report.failed.len(), 1, "{:#?}", report.failed);
        assert!(report.failed[0].contains("`ip route del 10.244.3.0/24`"));
        let route = output("ip route show 10.244.3.0/24");
        assert!(
            route.contains("via 192.0.2.254 dev eth0 proto static"),
            "{route}"
        );
        sh("ip route del 10.244.3.0/24");
        let report = node.pass().await;
        assert_eq!(report.created, 1);
        node.settled().await;
    });
}

/// Waits until the kernel has finished duplicate address detection.
async fn quiet_ipv6() {
    for _ in 0..500 {
        if output("ip -6 addr show tentative").is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("an IPv6 address stays tentative");
}
