//! Uplink, local pods, next hops and the stream of changes, in real network namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod netns;

use std::future::Future;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netns::{Netns, json, sh, uplink};
use tulle_agent::net::{
    Interest, LocalPods, NetChanged, Netlink, Uplink, Watcher, next_hops, set_pod_mtu,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn own() -> Vec<IpNet> {
    vec![
        "10.244.1.0/24".parse().unwrap(),
        "fd00:10:244:1::/64".parse().unwrap(),
    ]
}

/// Runs a test in a namespace with an uplink; the second argument is for pods.
fn on_node<'a, F: Future<Output = ()>>(test: impl FnOnce(Netlink) -> F + Send + 'a) {
    let (switch, node) = (Netns::new(), Netns::new());
    node.run(|| async {
        uplink(&switch, "wire1", "192.0.2.1");
        test(Netlink::open().unwrap()).await;
    });
}

/// A pod with addresses .`number` behind `veth<number>`.
fn add_pod(pod: &Netns, number: u8) {
    sh(&format!(
        "ip link add veth{number} address 02:00:00:00:01:{number:02x} type veth peer name eth0 address 02:00:00:00:02:{number:02x} netns {}
         ip link set veth{number} up
         ip route add 10.244.1.{number}/32 dev veth{number} scope link
         ip -6 route add fd00:10:244:1::{number:x}/128 dev veth{number}",
        pod.id()
    ));
    pod.enter(|| sh("ip link set eth0 up"));
}

fn index(name: &str) -> u32 {
    let index = &json(&format!("ip -j link show {name}"))[0]["ifindex"];
    u32::try_from(index.as_u64().unwrap()).unwrap()
}

#[test]
fn the_uplink_is_found_by_name_and_by_route() {
    on_node(|netlink| async move {
        let by_route = Uplink::find(&netlink, None).await.unwrap();
        assert_eq!(by_route.name, "eth0");
        assert_eq!(by_route.index, index("eth0"));
        assert_eq!(by_route.mtu, 1500);
        assert_eq!(by_route.ip4(), Ipv4Addr::new(192, 0, 2, 1));
        assert!(by_route.carrier);
        assert_eq!(by_route.kind, "veth");
        assert_eq!(
            json("ip -j link show eth0")[0]["address"],
            by_route.mac.to_string()
        );
        // Its link-local address may become usable at any moment.
        let stable = |found: Uplink| Uplink {
            addresses6: Vec::new(),
            ..found
        };
        let by_name = Uplink::find(&netlink, Some("eth0")).await.unwrap();
        assert_eq!(stable(by_name), stable(by_route));

        // The lower metric wins, whatever the order.
        sh("ip link add eth5 type veth peer name peer5
            ip link set eth5 up
            ip link set peer5 up
            ip addr add 198.51.100.5/24 dev eth5
            ip route del default
            ip route add default via 198.51.100.1 metric 50
            ip route add default via 192.0.2.254 metric 100");
        let uplink = Uplink::find(&netlink, None).await.unwrap();
        assert_eq!(uplink.name, "eth5");
    });
}

#[test]
fn an_uplink_that_cannot_be_used_is_refused_clearly() {
    on_node(|netlink| async move {
        sh("ip link add eth1 type veth peer name peer1");
        let refusal = async |name: Option<&str>| {
            let error = Uplink::find(&netlink, name).await.unwrap_err().to_string();
            assert!(
                error.contains("--uplink") && error.contains("eth0"),
                "{error}"
            );
            error
        };
        assert!(
            refusal(Some("eth9"))
                .await
                .contains("uplink eth9 does not exist")
        );
        assert!(refusal(Some("eth1")).await.contains("uplink eth1 is down"));
        sh("ip link set eth1 up");
        assert!(
            refusal(Some("eth1"))
                .await
                .contains("eth1 has no IPv4 address")
        );
        sh("ip route del default");
        assert!(refusal(None).await.contains("no IPv4 default route"));
    });
}

#[test]
fn pods_are_found_with_the_mac_of_their_own_end() {
    let (pod5, pod6) = (Netns::new(), Netns::new());
    let (pod5, pod6) = (&pod5, &pod6);
    on_node(|netlink| async move {
        assert_eq!(
            LocalPods::discover(&netlink, &own()).await.unwrap(),
            LocalPods::default()
        );
        add_pod(pod5, 5);
        add_pod(pod6, 6);
        pod5.enter(|| sh("ip link set eth0 mtu 1400"));
        // The plugins' ptp gives the host's end an address and the route scope host.
        sh("ip addr add fd00:10:244:1::1/128 dev veth5
            ip addr add 10.244.1.1/32 dev veth5
            ip route change 10.244.1.6/32 dev veth6 scope host
            ip route add 10.244.2.7/32 dev veth5
            ip route add 10.244.1.7/32 via 192.0.2.9
            ip route add unreachable 10.244.1.8/32
            ip route add 10.244.1.0/24 dev veth5");
        let found = LocalPods::discover(&netlink, &own()).await.unwrap();
        assert_eq!(found.skipped, []);
        let mut wanted = Vec::new();
        for number in [5u8, 6] {
            for ip in [
                format!("10.244.1.{number}"),
                format!("fd00:10:244:1::{number:x}"),
            ] {
                let name = format!("veth{number}");
                wanted.push(format!(
                    "{ip} {} 02:00:00:00:01:{number:02x} 02:00:00:00:02:{number:02x} 1500 Some({}) true",
                    index(&name),
                    if number == 5 { 1400 } else { 1500 }
                ));
            }
        }
        let mut got: Vec<String> = found
            .pods
            .iter()
            .map(|p| {
                format!(
                    "{} {} {} {} {} {:?} {}",
                    p.ip, p.ifindex, p.host_mac, p.pod_mac, p.mtu, p.pod_mtu, p.veth
                )
            })
            .collect();
        got.sort();
        wanted.sort();
        assert_eq!(got, wanted);

        sh("ip link set veth6 down");
        let found = LocalPods::discover(&netlink, &own()).await.unwrap();
        assert_eq!(found.pods.len(), 2, "{found:#?}");
    });
}

#[test]
fn what_is_no_veth_uses_the_neighbour_entry_or_is_skipped() {
    on_node(|netlink| async move {
        sh(
            "ip link add link eth0 name mac7 address 02:00:00:00:07:07 type macvlan mode bridge
            ip link set mac7 up
            ip route add 10.244.1.7/32 dev mac7
            ip link add br0 type bridge
            ip link set br0 up
            ip route add 10.244.1.8/32 dev br0",
        );
        let found = LocalPods::discover(&netlink, &own()).await.unwrap();
        assert_eq!(found.pods, []);
        assert_eq!(found.skipped.len(), 2, "{found:#?}");
        assert!(found.skipped[0].1.contains("behind mac7 is not known"));
        assert!(found.skipped[1].1.contains("a bridge device"));
        sh("ip neigh add 10.244.1.7 lladdr 02:00:00:00:00:77 dev mac7 nud reachable");
        let found = LocalPods::discover(&netlink, &own()).await.unwrap();
        let pod = found.pods.first().unwrap();
        assert_eq!(pod.ip, IpAddr::from([10, 244, 1, 7]));
        assert_eq!(pod.pod_mac.to_string(), "02:00:00:00:00:77");
        assert!(!pod.veth);
    });
}

#[test]
fn a_pods_mtu_is_written_only_when_it_differs() {
    let pod = Netns::new();
    on_node(|netlink| async move {
        add_pod(&pod, 5);
        let veth = index("veth5");
        assert!(set_pod_mtu(&netlink, veth, 1450).await.unwrap());
        assert_eq!(json("ip -j link show veth5")[0]["mtu"], 1450);
        assert!(!set_pod_mtu(&netlink, veth, 1450).await.unwrap());
        assert!(set_pod_mtu(&netlink, veth, 1500).await.unwrap());
        let error = set_pod_mtu(&netlink, 9999, 1450).await.unwrap_err();
        assert!(error.to_string().contains("interface 9999"), "{error}");
    });
}

#[test]
fn next_hops_are_the_kernels() {
    on_node(|netlink| async move {
        sh("ip route add 198.51.100.0/24 via 192.0.2.7
            ip route add unreachable 203.0.113.0/24
            ip route add 198.18.0.0/15 via inet6 fe80::7 dev eth0");
        let nodes = [
            [192, 0, 2, 9],
            [198, 51, 100, 9],
            [8, 8, 8, 8],
            [198, 18, 0, 1],
            [203, 0, 113, 1],
            [192, 0, 2, 1],
        ]
        .map(Ipv4Addr::from);
        let found = next_hops(&netlink, &nodes).await;
        assert_eq!(found.iter().map(|(n, _)| *n).collect::<Vec<_>>(), nodes);
        let via: Vec<String> = found
            .iter()
            .map(|(_, hop)| match hop {
                Ok(hop) => {
                    assert_eq!(hop.ifindex, index("eth0"));
                    assert_eq!(hop.source, Some(Ipv4Addr::new(192, 0, 2, 1)));
                    hop.via.to_string()
                }
                Err(error) => error.to_string(),
            })
            .collect();
        assert_eq!(
            via[..4],
            ["192.0.2.9", "192.0.2.7", "192.0.2.254", "fe80::7"]
        );
        assert!(via[4].contains("203.0.113.1: "), "{}", via[4]);
        assert!(via[5].contains("routes it as local"), "{}", via[5]);

        let many: Vec<Ipv4Addr> = (0..5000u32)
            .map(|n| Ipv4Addr::from(0x0a40_0000 + n))
            .collect();
        let started = Instant::now();
        let found = next_hops(&netlink, &many).await;
        assert!(found.iter().all(|(_, hop)| hop.is_ok()));
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    });
}

const NOTHING: NetChanged = NetChanged {
    pods: false,
    overlay: false,
    uplink: false,
};
const PODS: NetChanged = NetChanged {
    pods: true,
    ..NOTHING
};
const OVERLAY: NetChanged = NetChanged {
    overlay: true,
    ..NOTHING
};
const UPLINK: NetChanged = NetChanged {
    uplink: true,
    ..NOTHING
};

/// A watcher that has taken what was under way.
async fn watcher() -> Watcher {
    let interest = Interest {
        uplink: "eth0".into(),
        device: "flannel.1".into(),
        own_pod_cidrs: own(),
    };
    let mut watcher = Watcher::open(interest).await.unwrap();
    drain(&mut watcher).await;
    watcher
}

/// Waits until everything in `wanted` was notified; what else came is returned too.
async fn heard(watcher: &mut Watcher, wanted: NetChanged) -> NetChanged {
    let mut all = NetChanged::default();
    let listen = async {
        loop {
            all |= watcher.next().await.unwrap();
            let mut both = all;
            both |= wanted;
            if both == all {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, listen)
        .await
        .unwrap_or_else(|_| panic!("waited for {wanted:?}"));
    all
}

/// Takes what is under way, such as the kernel's duplicate address detection.
async fn drain(watcher: &mut Watcher) {
    while tokio::time::timeout(Duration::from_millis(2500), watcher.next())
        .await
        .is_ok()
    {}
}

#[test]
fn changes_are_notified_at_once_and_sorted() {
    let pod = Netns::new();
    let pod = &pod;
    on_node(|_| async move {
        let mut watcher = watcher().await;

        add_pod(pod, 5);
        heard(&mut watcher, PODS).await;
        drain(&mut watcher).await;
        sh("ip route del 10.244.1.5/32");
        let started = Instant::now();
        assert_eq!(heard(&mut watcher, PODS).await, PODS);
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "{:?}",
            started.elapsed()
        );

        sh(
            "ip link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning
            ip link set flannel.1 up",
        );
        heard(&mut watcher, OVERLAY).await;
        drain(&mut watcher).await;
        for line in [
            "ip neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
            "ip neigh flush dev flannel.1 nud permanent",
            "bridge fdb add 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2",
            "bridge fdb del 02:00:00:00:00:02 dev flannel.1",
            "ip addr add 10.244.1.0/32 dev flannel.1",
            "ip link set flannel.1 mtu 1400",
        ] {
            sh(line);
            assert_eq!(heard(&mut watcher, OVERLAY).await, OVERLAY, "{line}");
        }
        sh("ip link del flannel.1");
        heard(&mut watcher, OVERLAY).await;
        drain(&mut watcher).await;
        sh("ip addr add 192.0.2.99/32 dev eth0");
        assert_eq!(heard(&mut watcher, UPLINK).await, UPLINK);
        sh("ip route add 198.51.100.0/24 via 192.0.2.7");
        heard(&mut watcher, UPLINK).await;
        sh("ip link set eth0 mtu 1400");
        heard(&mut watcher, UPLINK).await;
    });
}

/// Adds or deletes the routes of 200 pods at once.
fn burst(verb: &str) {
    let lines = (0..200).map(|n| format!("route {verb} 10.244.1.{n}/32 dev eth0\n"));
    let mut batch = tempfile::NamedTempFile::new().unwrap();
    batch
        .write_all(lines.collect::<String>().as_bytes())
        .unwrap();
    sh(&format!("ip -batch {}", batch.path().display()));
}

#[test]
fn a_burst_is_one_change_and_a_lost_notification_means_everything() {
    on_node(|_| async move {
        let mut watcher = watcher().await;
        burst("add");
        assert_eq!(watcher.next().await.unwrap(), PODS);
        let quiet = tokio::time::timeout(Duration::from_millis(200), watcher.next()).await;
        assert!(quiet.is_err(), "one burst, one change: {quiet:?}");

        // Nothing here concerns overlay or uplink, so ALL can only come from the loss.
        watcher.set_receive_buffer(4096).unwrap();
        burst("del");
        assert_eq!(heard(&mut watcher, NetChanged::ALL).await, NetChanged::ALL);
        // And it goes on.
        sh("ip route add 10.244.1.3/32 dev eth0");
        heard(&mut watcher, PODS).await;
    });
}

#[test]
fn a_wait_that_is_dropped_loses_nothing() {
    on_node(|_| async move {
        let mut watcher = watcher().await;
        sh("ip route add 10.244.1.3/32 dev eth0");
        // Shorter than notifications are gathered: it is heard, and not handed out yet.
        let cut = tokio::time::timeout(Duration::from_millis(1), watcher.next()).await;
        match cut {
            Ok(changed) => assert_eq!(changed.unwrap(), PODS),
            Err(_) => assert_eq!(heard(&mut watcher, PODS).await, PODS),
        }
    });
}
