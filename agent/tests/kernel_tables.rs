//! Tables at their limit, and how full they are. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;

use aya::maps::{HashMap, Map, MapData};
use datapath_common::{
    Frontend, FrontendFlags, FrontendKey, Ip4, PeerKey, SourceKey, SourceNet, Via, maps,
};
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

        let source = |n: u32, bits| SourceKey {
            prefix_len: SourceNet::<Ip4>::SERVICE_BITS + bits,
            net: SourceNet::new(n, Ip4::new([10, 0, 0, 0])),
        };
        for n in 0..16 {
            let key = source(n, 8);
            datapath.maps.write(&MapOp::PutSource4 { key }).unwrap();
        }
        let key = source(16, 8);
        let refused = datapath.maps.write(&MapOp::PutSource4 { key });
        let said = refused.unwrap_err().to_string();
        for word in [
            "tulle_srcs_v4 is full (16 entries)",
            "10.0.0.0/8 of service 16",
            "--max-sources",
        ] {
            assert!(said.contains(word), "{said}");
        }
        let key = source(15, 8);
        datapath.maps.write(&MapOp::DeleteSource4 { key }).unwrap();
        datapath
            .maps
            .write(&MapOp::DeleteSource4 { key })
            .expect("deleting twice is no error");
        let key = PeerKey {
            prefix_len: 12,
            addr: Ip4::new([172, 16, 0, 0]),
        };
        let put = MapOp::PutDirect4 { key, bits: 3 };
        datapath.maps.write(&put).unwrap();
        let rows = datapath.maps.read_back().unwrap();
        assert_eq!(rows.direct_v4, [(key, 3)]);
        let mut services: Vec<u32> = rows.srcs_v4.iter().map(|k| k.net.service).collect();
        services.sort_by_key(|n| u32::from_be(*n));
        let first: Vec<u32> = (0..15).map(u32::to_be).collect();
        assert_eq!(services, first, "in network order");

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
        assert_eq!((of(maps::SRCS_V4).used, of(maps::DIRECT_V4).used), (15, 1));
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

#[test]
fn the_programs_trie_finds_a_source_by_service_and_prefix() {
    on_node(|node| {
        let mut datapath = node.open();
        let key = |service, bits, addr: [u8; 4]| SourceKey {
            prefix_len: SourceNet::<Ip4>::SERVICE_BITS + bits,
            net: SourceNet::new(service, Ip4::new(addr)),
        };
        for put in [
            key(0x0102_0304, 9, [10, 128, 0, 0]),
            key(7, 32, [192, 0, 2, 1]),
        ] {
            datapath
                .maps
                .write(&MapOp::PutSource4 { key: put })
                .unwrap();
        }
        let found = |service, addr| {
            let asked = key(service, 32, addr);
            let asked = aya::maps::lpm_trie::Key::new(asked.prefix_len, asked.net);
            datapath.maps.srcs_v4.get(&asked, 0).is_ok()
        };
        assert!(found(0x0102_0304, [10, 200, 0, 1]));
        assert!(!found(0x0102_0304, [10, 127, 0, 1]));
        assert!(!found(0x0102_0305, [10, 200, 0, 1]), "another service");
        assert!(found(7, [192, 0, 2, 1]) && !found(7, [192, 0, 2, 2]));
    });
}

#[test]
fn what_a_program_notes_in_a_frontends_row_outlives_a_write() {
    on_node(|node| {
        const NOTED: u16 = FrontendFlags::FLOWS_DECIDE;
        let mut datapath = node.open();
        let (key, row) = front(7);
        let mut write = |row| datapath.maps.write(&MapOp::PutFront4 { key, row }).unwrap();
        let pinned = Map::HashMap(node.map(maps::FRONT_V4));
        let mut there: HashMap<MapData, FrontendKey<Ip4>, Frontend> = pinned.try_into().unwrap();
        write(row);
        assert_eq!(there.get(&key, 0).unwrap(), row);
        // A connection got another port between the plan and its write.
        let noted = Frontend {
            flags: NOTED,
            ..row
        };
        there.insert(key, noted, 0).unwrap();
        let asks = FrontendFlags::FLOWS_MAY_BE_LOST;
        let planned = Frontend {
            len: 2,
            flags: asks,
            ..row
        };
        write(planned);
        let both = Frontend {
            flags: asks | NOTED,
            ..planned
        };
        assert_eq!(there.get(&key, 0).unwrap(), both);
        // Another service at this address has none of its connections.
        let other = Frontend {
            service: 8,
            ..planned
        };
        write(other);
        assert_eq!(there.get(&key, 0).unwrap(), other);
    });
}
