//! The array that attached programs go on with: it is pinned while one of them
//! is attached, whenever an agent ends. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;

use std::collections::BTreeSet;

use datapath_common::{Config, Hook, Reason};
use kernel_support::{Node, on_node, run, veth};
use tulle_agent::kernel::{Datapath, XdpMode};

/// Names of the arrays that are pinned.
fn pinned(node: &Node) -> Vec<String> {
    let mut names = node.names();
    names.retain(|name| name.starts_with("tulle_parts"));
    names
}

fn sync_pod(datapath: &mut Datapath, pod: u32) {
    let report = datapath.sync_pods(&BTreeSet::from([pod]));
    assert!(report.failed.is_empty(), "{report:?}");
}

fn sync_uplink(datapath: &mut Datapath, uplink: u32) {
    let (report, _) = datapath.sync_uplink(uplink, XdpMode::Off);
    assert!(report.failed.is_empty(), "{report:?}");
}

#[test]
fn former_parts_stay_until_the_last_link_has_the_next_program() {
    on_node(|node| {
        let (pod, uplink) = (veth("pod0"), veth("up0"));
        let mut first = node.open();
        sync_pod(&mut first, pod);
        sync_uplink(&mut first, uplink);
        let of_first = pinned(node);
        assert_eq!(of_first.len(), 1);
        drop(first);

        // Agents that end before they attach anything.
        drop(node.open());
        drop(node.open());
        assert_eq!(pinned(node).len(), 3);
        assert!(pinned(node).contains(&of_first[0]));

        let mut next = node.open();
        sync_pod(&mut next, pod);
        assert!(
            pinned(node).contains(&of_first[0]),
            "the uplink has the first one's programs"
        );
        sync_uplink(&mut next, uplink);
        let of_next = pinned(node);
        assert_eq!(of_next.len(), 1);
        assert_ne!(of_next, of_first);

        let config = Config {
            vni: 9,
            ..Config::EMPTY
        };
        let report = next.reconfigure(&config).unwrap();
        assert_eq!(report.replaced, 4, "{report:?}");
        assert_eq!(pinned(node).len(), 1);
        assert_ne!(pinned(node), of_next);
    });
}

/// Packets that left `tulle_pod_from` for each of these reasons.
fn counted(datapath: &Datapath) -> [u64; 2] {
    [Reason::NotOurs, Reason::PartMissing]
        .map(|reason| datapath.maps.count(Hook::PodFrom, reason).unwrap().packets)
}

#[test]
fn parts_work_without_an_agent_and_without_pin_packets_are_the_kernels() {
    on_node(|node| {
        let pod = veth("pod0");
        run("ip", &["link", "set", "pod0p", "up"]);
        run("ip", &["addr", "add", "10.9.0.1/24", "dev", "pod0p"]);
        let neighbour = ["neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:02"];
        run("ip", &[&neighbour[..], &["dev", "pod0p"]].concat());
        let send = || {
            let socket = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
            socket.send_to(b"hello", "10.9.0.2:9").unwrap();
        };
        let mut first = node.open();
        sync_pod(&mut first, pod);
        drop(first);
        send();
        // Opened, but nothing is attached anew: the first one's programs serve.
        let mut second = node.open();
        let [passed, missing] = counted(&second);
        assert_eq!((passed > 0, missing), (true, 0));

        for name in pinned(node) {
            std::fs::remove_file(node.pins.join(name)).unwrap();
        }
        // The kernel empties the array a moment later.
        kernel_support::eventually("the parts are gone", || {
            send();
            counted(&second)[1] > 0
        });
        let [passed, missing] = counted(&second);
        sync_pod(&mut second, pod);
        send();
        assert_eq!(counted(&second), [passed + 1, missing]);
    });
}
