//! Tables at their limit, and how full they are. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;

use datapath_common::{Ip4, PeerKey, Via, maps};
use kernel_support::{front, on_node};
use tulle_agent::plan::{MapOp, MapWriter};

#[test]
fn a_full_table_names_itself_and_its_flag() {
    on_node(|node| {
        let mut datapath = node.open();
        let mut refused = None;
        for n in 0..=255 {
            let (key, row) = front(n);
            if let Err(e) = datapath.maps.write(&MapOp::PutFront4 { key, row }) {
                refused = Some((n, e));
                break;
            }
        }
        let (n, error) = refused.expect("64 entries are fewer than 256");
        assert_eq!((n, error.map), (64, maps::FRONT_V4));
        let said = error.to_string();
        for word in [
            "tulle_front_v4 is full (64 entries)",
            "10.96.0.64:80",
            "--max-frontends",
        ] {
            assert!(said.contains(word), "{said}");
        }
        let (key, row) = front(3);
        datapath
            .maps
            .write(&MapOp::PutFront4 { key, row })
            .expect("a row that is there");
        datapath.maps.write(&MapOp::DeleteFront4 { key }).unwrap();
        datapath
            .maps
            .write(&MapOp::DeleteFront4 { key })
            .expect("deleting twice is no error");

        let mut peers = Vec::new();
        for n in 0..=16 {
            let key = PeerKey {
                prefix_len: 24,
                addr: Ip4::new([10, 1, n, 0]),
            };
            peers.push(datapath.maps.write(&MapOp::PutPeer4 {
                key,
                via: Via::KERNEL,
            }));
        }
        let said = peers.pop().unwrap().unwrap_err().to_string();
        assert!(
            said.contains("tulle_peers_v4 is full (16 entries)"),
            "{said}"
        );
        assert!(
            said.contains("10.1.16.0/24") && said.contains("--max-nodes"),
            "{said}"
        );
        assert!(peers.into_iter().all(|r| r.is_ok()));

        for (start, len, fits) in [(1020, 4, true), (1021, 4, false), (u32::MAX, 2, false)] {
            let write = MapOp::WriteSlots {
                start,
                ids: vec![9; len],
            };
            let result = datapath.maps.write(&write);
            assert_eq!(result.is_ok(), fits, "{start}");
            if let Err(e) = result {
                assert!(e.to_string().contains("--max-segments"), "{e}");
            }
        }
        assert_eq!(datapath.maps.segments.get(1019), Some(0));
        assert_eq!(datapath.maps.segments.get(1023), Some(9));
        assert_eq!(datapath.maps.segments.get(1024), None);

        let usage = datapath.maps.usage().unwrap();
        let of = |name| *usage.iter().find(|u| u.map == name).unwrap();
        assert_eq!(
            (of(maps::FRONT_V4).used, of(maps::FRONT_V4).limit),
            (63, 64)
        );
        assert_eq!(
            (of(maps::PEERS_V4).used, of(maps::SEGMENTS).used),
            (16, 1024)
        );
        // The kernel counts nothing for an empty trie.
        for name in [
            maps::FRONT_V4,
            maps::SEGMENTS,
            maps::FLOW_V6,
            maps::COUNTERS,
            maps::EVENTS,
        ] {
            assert!(of(name).bytes >= 1024, "{:?}", of(name));
        }
    });
}
