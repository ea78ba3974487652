//! The slow path in real network namespaces, against what `ip` and `bridge` say.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod netns;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use datapath_common::Mac;
use netns::node::{Node, forwards, on_node, peer};
use netns::{Netns, json, output, sh, uplink};
use tulle_agent::net::SlowPath;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_kernel_holds_what_flannel_would_set_up() {
    on_node(|mut node| async move {
        let report = node.pass().await;
        // Four sysctls (forwarding, the uplink's accept_ra, accept_local of lo), the device, 2 addresses, 2 unreachable routes, and for each
        // peer a forwarding entry, two neighbours and two routes.
        assert_eq!(
            (
                report.created,
                report.repaired,
                report.updated,
                report.removed
            ),
            (4 + 1 + 2 + 2 + 2 * 5, 0, 0, 0),
            "{:#?}",
            report.sentences
        );
        let device = &json("ip -d -j link show flannel.1")[0];
        let data = &device["linkinfo"]["info_data"];
        for (got, wanted) in [
            (&device["mtu"], "1450"),
            (&device["address"], "\"02:00:00:00:00:01\""),
            (&device["linkinfo"]["info_kind"], "\"vxlan\""),
            (&data["id"], "1"),
            (&data["port"], "8472"),
            (&data["local"], "\"192.0.2.1\""),
            (&data["link"], "\"eth0\""),
            (&data["learning"], "false"),
            (&data["udp_csum"], "true"),
            (&data["l2miss"], "null"),
            (&data["group"], "null"),
        ] {
            assert_eq!(got.to_string(), wanted, "{device:#}");
        }
        assert!(
            device["flags"]
                .as_array()
                .unwrap()
                .iter()
                .any(|f| f == "UP")
        );
        let addresses = output("ip -o addr show dev flannel.1 scope global");
        assert!(addresses.contains("inet 10.244.1.0/32 scope global flannel.1"));
        assert!(addresses.contains("inet6 fd00:10:244:1::/128 scope global"));
        assert!(!addresses.contains("tentative"));
        for (key, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv6.conf.flannel/1.accept_ra", "0"),
        ] {
            assert_eq!(output(&format!("sysctl -n {key}")).trim(), value, "{key}");
        }
        node.settled().await;
    });
}

#[test]
fn a_second_agent_finds_nothing_to_do() {
    on_node(|mut node| async move {
        let first = node.pass().await;
        let mut second = SlowPath::new(node.netlink.clone(), &node.record);
        let report = second.reconcile(&node.overlay).await.unwrap();
        assert!(report.is_clean(), "{:#?}", report.sentences);
        // Sysctls are not rows.
        assert_eq!(report.unchanged, first.created - 4);
        assert_eq!(report.device, first.device);
    });
}

#[test]
fn drift_is_repaired_and_counted_as_such() {
    on_node(|mut node| async move {
        node.pass().await;
        let peers = 2;
        sh("ip neigh flush dev flannel.1 nud permanent");
        node.repairs(2 * peers).await;
        sh("ip route del 10.244.2.0/24");
        node.repairs(1).await;
        sh("ip -6 route del fd00:10:244:2::/64");
        node.repairs(1).await;
        sh("ip route del unreachable 10.244.1.0/24 metric 1000000");
        node.repairs(1).await;
        sh("bridge fdb del 02:00:00:00:00:03 dev flannel.1");
        node.repairs(1).await;
        sh("bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.0.2.77");
        node.repairs(1).await;
        sh("ip neigh replace 10.244.3.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent");
        node.repairs(1).await;
        sh("ip route change 10.244.2.0/24 via 10.244.3.0 dev flannel.1 onlink proto 116");
        node.repairs(1).await;
        // With the last IPv4 address the kernel drops that family's rows.
        sh("ip addr del 10.244.1.0/32 dev flannel.1");
        node.repairs(1 + 2 * peers).await;
        sh("ip link set flannel.1 mtu 1400");
        node.repairs(1).await;
        // FL-59: the neighbours of both families go with the address.
        sh("ip link set flannel.1 address 02:00:00:00:00:99");
        node.repairs(1 + 2 * peers).await;
        sh("ip link set flannel.1 type vxlan learning");
        node.repairs(1).await;
        sh("sysctl -qw net.ipv4.ip_forward=0");
        node.repairs(1).await;
        sh("sysctl -qw net.ipv6.conf.flannel/1.accept_ra=1");
        node.repairs(1).await;
    });
}

#[test]
fn a_device_that_went_down_is_made_whole() {
    on_node(|mut node| async move {
        node.pass().await;
        // FL-58: routes, neighbours and the IPv6 address are gone, the rest stays.
        sh("ip link set flannel.1 down");
        node.repairs(1 + 4 + 4 + 1).await;
        sh("ip link set flannel.1 down
            ip link set flannel.1 up");
        node.repairs(4 + 4 + 1).await;
    });
}

#[test]
fn a_deleted_device_is_made_again_with_everything_on_it() {
    on_node(|mut node| async move {
        node.pass().await;
        sh("ip link del flannel.1");
        // FL-57: the unreachable routes lie on no device.
        node.repairs(1 + 2 + 2 * 5).await;
    });
}

#[test]
fn peers_come_change_and_go() {
    on_node(|mut node| async move {
        node.pass().await;
        node.overlay.peers.push(peer(4));
        let report = node.pass().await;
        assert_eq!((report.created, report.repaired, report.removed), (5, 0, 0));
        node.settled().await;

        node.overlay.peers[0].vtep_mac = Mac::new([2, 0, 0, 0, 9, 2]);
        let report = node.pass().await;
        assert_eq!(
            (
                report.created,
                report.updated,
                report.repaired,
                report.removed
            ),
            (1, 2, 0, 1),
            "{:#?}",
            report.sentences
        );
        node.settled().await;

        node.overlay.peers[0].node = Ipv4Addr::new(192, 0, 2, 42);
        let report = node.pass().await;
        assert_eq!((report.updated, report.repaired, report.removed), (1, 0, 0));
        node.settled().await;

        node.overlay.peers.truncate(1);
        let report = node.pass().await;
        assert_eq!((report.created, report.removed), (0, 10));
        node.settled().await;

        node.overlay.peers.clear();
        node.pass().await;
        node.settled().await;
        assert_eq!(forwards(), [""; 0]);
    });
}

#[test]
fn a_changed_overlay_is_no_drift() {
    on_node(|mut node| async move {
        node.pass().await;
        node.overlay.mtu = 1400;
        let report = node.pass().await;
        // The device and the IPv4 routes; the kernel lowers the IPv6 routes itself.
        assert_eq!((report.updated, report.repaired), (1 + 2, 0));
        node.settled().await;
        node.overlay.port = 4789;
        let report = node.pass().await;
        assert_eq!(report.repaired, 0, "{:#?}", report.sentences);
        assert_eq!(report.updated, 1 + 2 + 10);
        node.settled().await;
    });
}

#[test]
fn two_nodes_reach_each_other_through_it() {
    let (switch, a, b) = (Netns::new(), Netns::new(), Netns::new());
    switch.enter(|| {
        sh("ip link add br0 type bridge
                        ip link set br0 up");
    });
    for (node, number) in [(&a, 1u8), (&b, 2)] {
        node.run(|| async {
            uplink(
                &switch,
                &format!("wire{number}"),
                &format!("192.0.2.{number}"),
            );
            Node::new(number, &[3 - number]).await.pass().await;
        });
        switch.enter(|| sh(&format!("ip link set wire{number} master br0")));
    }
    for to in ["10.244.2.0", "fd00:10:244:2::"] {
        let to: IpAddr = to.parse().unwrap();
        let listener = b.enter(|| TcpListener::bind((to, 7000)).unwrap());
        // More than a window of full segments.
        let data = vec![7u8; 1 << 20];
        let (mut sending, from) = a.enter(|| {
            let stream = TcpStream::connect_timeout(&(to, 7000).into(), PATIENCE).unwrap();
            let from = stream.local_addr().unwrap().ip();
            (stream, from)
        });
        // FL-68: a node speaks to pods with its own first address.
        let own: IpAddr = if to.is_ipv4() {
            "10.244.1.0".parse().unwrap()
        } else {
            "fd00:10:244:1::".parse().unwrap()
        };
        assert_eq!(from, own);
        let (mut receiving, _) = listener.accept().unwrap();
        receiving.set_read_timeout(Some(PATIENCE)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sending.write_all(&data).unwrap();
                sending.shutdown(Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            receiving.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), data.len());
        });
    }
    // No pod has this address: the other node answers so, at once.
    for (to, kind) in [
        ("10.244.2.9", ErrorKind::HostUnreachable),
        ("fd00:10:244:2::9", ErrorKind::NetworkUnreachable),
    ] {
        let to: IpAddr = to.parse().unwrap();
        let error = a
            .enter(|| TcpStream::connect_timeout(&(to, 7000).into(), PATIENCE))
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{to}: {error}");
    }
}
