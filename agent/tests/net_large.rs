//! The slow path of a large cluster. In a file of its own: while the kernel's one table of
//! neighbours grows, other namespaces' lists of them may lack some.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]
#![allow(dead_code, reason = "helpers for other tests")]

mod netns;

use std::net::Ipv4Addr;

use datapath_common::Mac;
use netns::node::on_node;
use tulle_agent::net::Peer;

#[test]
fn five_thousand_peers_take_seconds() {
    on_node(|mut node| async move {
        node.overlay.peers = (0..5000u16)
            .map(|n| {
                let [high, low] = n.to_be_bytes();
                Peer {
                    node: Ipv4Addr::new(192, 0, 32 + high, low),
                    vtep_mac: Mac::new([2, 1, 0, 0, high, low]),
                    pod_cidrs: vec![
                        format!("10.{}.{low}.0/24", 64 + high).parse().unwrap(),
                        format!("fd00:10:{n:x}::/64").parse().unwrap(),
                    ],
                }
            })
            .collect();
        let started = std::time::Instant::now();
        let report = node.pass().await;
        let made = started.elapsed();
        assert_eq!(report.created, 4 + 1 + 2 + 2 + 5 * 5000);
        let started = std::time::Instant::now();
        let report = node.pass().await;
        let looked = started.elapsed();
        assert!(report.is_clean());
        println!("5000 peers: written in {made:?}, compared in {looked:?}");
        // Generous: the machine may be busy. Measured on two busy cores, unoptimised: 3.6 s and 0.4 s.
        assert!(
            made.as_secs() < 60 && looked.as_secs() < 20,
            "{made:?} {looked:?}"
        );
    });
}
