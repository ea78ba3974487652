//! Loading: taking over, resizing, rebuilding, refusing. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;

use std::collections::BTreeSet;

use aya::maps::{Array, Map, MapData};
use datapath_common::{
    Config, Flow, FlowKey, FlowState, FrontendKey, Ip4, Ip6, PeerKey, Via, maps,
};
use kernel_support::{Node, broken_object, front, names, on_node, options, small, veth};
use tulle_agent::kernel::{AttachKind, Capacities, Datapath, LoadError, MapFate, Options, XdpMode};
use tulle_agent::plan::{MapOp, MapWriter};

fn flow_key(n: u16) -> FlowKey<Ip4> {
    FlowKey {
        src: Ip4::new([10, 0, 0, 1]),
        dst: Ip4::new([10, 96, 0, 1]),
        sport: n,
        dport: 80,
        proto: 6,
        direction: 0,
        reserved: 0,
    }
}

fn flow() -> Flow<Ip4> {
    Flow {
        addr: Ip4::new([10, 0, 1, 1]),
        port: 8080,
        state: FlowState::Established as u8,
        hairpin: 0,
        backend: 7,
        generation: 3,
        service: 1,
        opened: 1,
        seen: 2,
        ..Flow::default()
    }
}

/// Rows in every kind of map.
fn fill(datapath: &mut Datapath) {
    for n in 1..=20 {
        let (key, row) = front(n);
        datapath.maps.write(&MapOp::PutFront4 { key, row }).unwrap();
    }
    let via = Via {
        ifindex: 9,
        ..Via::KERNEL
    };
    let writes = [
        MapOp::WriteSlots {
            start: 3,
            ids: vec![1, 2, 3, 0, 5],
        },
        MapOp::PutPod6 {
            addr: Ip6::new([7; 16]),
            via,
        },
        MapOp::PutPeer4 {
            key: PeerKey {
                prefix_len: 24,
                addr: Ip4::new([10, 1, 2, 0]),
            },
            via,
        },
        MapOp::PutPeer6 {
            key: PeerKey {
                prefix_len: 64,
                addr: Ip6::new([1; 16]),
            },
            via,
        },
    ];
    for write in &writes {
        datapath.maps.write(write).unwrap();
    }
    for n in 0..50 {
        datapath
            .maps
            .flow_v4
            .insert(flow_key(n), flow(), 0)
            .unwrap();
    }
}

fn flows(datapath: &Datapath) -> usize {
    datapath
        .maps
        .flow_v4
        .iter()
        .map(Result::unwrap)
        .filter(|(_, f)| *f == flow())
        .count()
}

fn rows(datapath: &Datapath) -> (BTreeSet<FrontendKey<Ip4>>, Vec<u32>, usize, usize) {
    let mut rows = datapath.maps.read_back().unwrap();
    // What is read ends with the last slot that is used.
    rows.segments.resize(10, 0);
    let fronts = rows.front_v4.iter().map(|(k, _)| *k).collect();
    (
        fronts,
        rows.segments,
        rows.pods_v6.len(),
        rows.peers_v4.len() + rows.peers_v6.len(),
    )
}

#[test]
fn an_agent_takes_over_what_the_former_left() {
    on_node(|node| {
        let mut first = node.open();
        assert!(first.opened().maps.values().all(|f| *f == MapFate::Created));
        assert!(first.opened().warnings.is_empty());
        fill(&mut first);
        let (ids, before) = (node.map_ids(), rows(&first));
        assert_eq!(before.0.len(), 20);
        assert_eq!(before.1, [0, 0, 0, 1, 2, 3, 0, 5, 0, 0]);
        assert_eq!((before.2, before.3), (1, 2));
        drop(first);
        let second = node.open();
        assert!(
            second
                .opened()
                .maps
                .values()
                .all(|f| *f == MapFate::Adopted)
        );
        assert_eq!(node.map_ids(), ids);
        assert_eq!(rows(&second), before);
        assert_eq!(flows(&second), 50);
    });
}

#[test]
fn another_size_keeps_the_rows() {
    on_node(|node| {
        let mut first = node.open();
        fill(&mut first);
        let before = rows(&first);
        drop(first);
        for capacities in [
            Capacities {
                frontends: 640,
                slots: 4096,
                flows: 4096,
                nodes: 99,
                pods: 50,
                ..small()
            },
            Capacities {
                frontends: 20,
                slots: 8,
                flows: 512,
                nodes: 1,
                pods: 1,
                ..small()
            },
        ] {
            let ids = node.map_ids();
            let options = options(AttachKind::Tcx);
            let next = Datapath::open(&node.pins, &Config::EMPTY, &capacities, &options).unwrap();
            let fate = &next.opened().maps[maps::FRONT_V4];
            assert!(
                matches!(fate, MapFate::Resized { to, rows: 20, .. } if *to == capacities.frontends),
                "{fate:?}"
            );
            assert_eq!(next.opened().maps[maps::BACK_V4], MapFate::Adopted);
            assert!(
                next.opened()
                    .warnings
                    .iter()
                    .any(|w| w.contains("tulle_flow_v4 was resized"))
            );
            let after = rows(&next);
            assert_eq!(
                (&after.0, after.2, after.3),
                (&before.0, before.2, before.3)
            );
            assert_eq!(after.1[..8], before.1[..8]);
            assert_eq!(flows(&next), 50);
            assert_ne!(node.map_ids(), ids);
            assert!(names(&node.pins).iter().all(|n| !n.ends_with("-next")));
        }
    });
}

#[test]
fn flows_opened_while_a_table_is_replaced_follow() {
    on_node(|node| {
        let pod = veth("pod0");
        let mut first = node.open();
        fill(&mut first);
        assert!(first.sync_pods(&BTreeSet::from([pod])).failed.is_empty());
        let larger = Capacities {
            flows: 8192,
            ..small()
        };
        let options = options(AttachKind::Tcx);
        let mut next = Datapath::open(&node.pins, &Config::EMPTY, &larger, &options).unwrap();
        assert_eq!(flows(&next), 50);
        // The old programs still run and write the old table, as this handle does.
        first
            .maps
            .flow_v4
            .insert(flow_key(1000), flow(), 0)
            .unwrap();
        assert_eq!(flows(&next), 50);
        let report = next.sync_pods(&BTreeSet::from([pod]));
        assert!(report.failed.is_empty(), "{report:?}");
        assert_eq!(report.replaced, 2);
        assert_eq!(flows(&next), 51);
    });
}

#[test]
fn a_table_that_would_lose_rows_is_refused_and_stays() {
    on_node(|node| {
        let mut first = node.open();
        fill(&mut first);
        let (ids, before) = (node.map_ids(), rows(&first));
        drop(first);
        let cases = [
            (
                Capacities {
                    frontends: 19,
                    ..small()
                },
                "tulle_front_v4",
                "--max-frontends",
                "20",
            ),
            (
                Capacities {
                    slots: 7,
                    ..small()
                },
                "tulle_segments",
                "--max-segments",
                "8",
            ),
        ];
        for (capacities, map, flag, least) in cases {
            let options = options(AttachKind::Tcx);
            let refusal = Datapath::open(&node.pins, &Config::EMPTY, &capacities, &options)
                .err()
                .unwrap();
            assert!(matches!(refusal, LoadError::DoesNotFit { .. }), "{refusal}");
            let said = refusal.to_string();
            for word in [map, flag, &format!("at least {least}")] {
                assert!(said.contains(word), "{said}");
            }
        }
        assert_eq!(node.map_ids(), ids);
        assert_eq!(rows(&node.open()), before);
    });
}

fn set_abi(node: &Node, version: u32) {
    let map = Map::from_map_data(node.map("abi")).unwrap();
    let mut abi: Array<MapData, u32> = Array::try_from(map).unwrap();
    abi.set(0, version, 0).unwrap();
}

fn abi(node: &Node) -> u32 {
    let map = Map::from_map_data(node.map("abi")).unwrap();
    Array::<MapData, u32>::try_from(map)
        .unwrap()
        .get(&0, 0)
        .unwrap()
}

fn is_rebuilt(node: &Node, because: &str) {
    let ids = node.map_ids();
    let next = node.open();
    assert!(
        next.opened().maps.values().all(|f| *f == MapFate::Rebuilt),
        "{:?}",
        next.opened()
    );
    let [warning] = next.opened().warnings.as_slice() else {
        panic!("{:?}", next.opened())
    };
    assert!(
        warning.contains(because) && warning.contains("flows are dropped"),
        "{warning}"
    );
    assert_eq!(flows(&next), 0);
    assert!(rows(&next).0.is_empty());
    assert_eq!(abi(node), maps::ABI_VERSION);
    assert!(node.map_ids().iter().all(|id| !ids.contains(id)));
    assert!(node.names().iter().all(|n| !n.ends_with("-next")));
}

#[test]
fn only_a_map_that_was_there_is_missed() {
    on_node(|node| {
        fill(&mut node.open());
        let held = node.pins.join(maps::HELD_V4);
        let missed = || {
            std::fs::remove_file(&held).unwrap();
            let next = node.open();
            assert_eq!(next.opened().maps[maps::HELD_V4], MapFate::Created);
            assert_eq!(next.opened().maps[maps::FLOW_V4], MapFate::Adopted);
            assert_eq!(flows(&next), 50);
            next.opened().warnings.clone()
        };
        let warning = "tulle_held_v4 was not pinned any more and is made anew";
        assert_eq!(missed(), [warning]);
        // As a former version leaves it: without names, and without the map.
        let old = Array::<MapData, u32>::create(1, 0).unwrap();
        std::fs::remove_file(node.pins.join("abi")).unwrap();
        old.pin(node.pins.join("abi")).unwrap();
        set_abi(node, maps::ABI_VERSION);
        assert!(missed().is_empty());
        assert_eq!(missed(), [warning], "this version knows it");
    });
}

#[test]
fn maps_of_another_layout_are_made_anew() {
    on_node(|node| {
        fill(&mut node.open());
        assert_eq!(abi(node), maps::ABI_VERSION);
        set_abi(node, maps::ABI_VERSION + 41);
        is_rebuilt(node, &format!("layout version {}", maps::ABI_VERSION + 41));
        fill(&mut node.open());
        std::fs::remove_file(node.pins.join("abi")).unwrap();
        is_rebuilt(node, "no layout version");
        fill(&mut node.open());
        // The right version, but one map has values of another size.
        let map = Array::<MapData, [u8; 12]>::create(64, 0).unwrap();
        std::fs::remove_file(node.pins.join(maps::BACK_V4)).unwrap();
        map.pin(node.pins.join(maps::BACK_V4)).unwrap();
        is_rebuilt(node, "tulle_back_v4 has another layout");
    });
}

#[test]
fn what_is_no_map_is_refused() {
    on_node(|node| {
        let mut first = node.open();
        fill(&mut first);
        let pod = veth("pod0");
        assert!(first.sync_pods(&BTreeSet::from([pod])).failed.is_empty());
        let front = node.pins.join(maps::FRONT_V4);
        let aside = node.pins.join("aside");
        std::fs::rename(&front, &aside).unwrap();
        let refused = |what: &str| {
            let refusal = Datapath::open(
                &node.pins,
                &Config::EMPTY,
                &small(),
                &options(AttachKind::Tcx),
            )
            .err();
            let said = refusal.expect("refused").to_string();
            assert!(said.contains(what) && said.contains("rm "), "{said}");
            assert!(said.contains("/tulle_front_v4"), "{said}");
        };
        std::fs::create_dir(&front).unwrap();
        refused("a directory");
        std::fs::remove_dir(&front).unwrap();
        let link = node.pins.join(format!("links/tulle_pod_to-{pod}"));
        std::fs::rename(&link, &front).unwrap();
        refused("a link");
        std::fs::rename(&front, &link).unwrap();
        std::fs::rename(&aside, &front).unwrap();
        assert_eq!(flows(&node.open()), 50);
    });
}

#[test]
fn a_lost_pin_and_a_broken_object() {
    on_node(|node| {
        fill(&mut node.open());
        let ids = node.map_ids();
        let broken = Options {
            object: broken_object(),
            ..Options::default()
        };
        let said = Datapath::open(&node.pins, &Config::EMPTY, &small(), &broken)
            .err()
            .unwrap();
        assert!(matches!(said, LoadError::Object(_)), "{said}");
        assert_eq!(node.map_ids(), ids);
        std::fs::remove_file(node.pins.join(maps::PODS_V6)).unwrap();
        let next = node.open();
        assert_eq!(next.opened().maps[maps::PODS_V6], MapFate::Created);
        assert_eq!(next.opened().maps[maps::PODS_V4], MapFate::Adopted);
        assert!(!next.opened().all_adopted());
        assert!(
            next.opened()
                .warnings
                .iter()
                .any(|w| w.contains("tulle_pods_v6 was not pinned"))
        );
    });
}

#[test]
fn new_read_only_data_uses_the_maps_in_use() {
    on_node(|node| {
        let uplink = veth("up0");
        let mut datapath = node.open();
        fill(&mut datapath);
        let (report, _) = datapath.sync_uplink(uplink, XdpMode::Off);
        assert!(report.failed.is_empty());
        let (link, program) = node.link("tulle_nic_in", uplink).unwrap();
        let ids = node.map_ids();
        // Somebody removes a pin meanwhile.
        std::fs::remove_file(node.pins.join(maps::FRONT_V4)).unwrap();
        let config = Config {
            uplink,
            vni: 77,
            ..Config::EMPTY
        };
        let report = datapath.reconfigure(&config).unwrap();
        assert_eq!((report.replaced, report.failed.len()), (2, 0));
        assert_eq!(datapath.config().vni, 77);
        let (link_now, program_now) = node.link("tulle_nic_in", uplink).unwrap();
        assert_eq!(link_now, link);
        assert_ne!(program_now, program);
        assert_eq!(node.map_ids(), ids);
    });
}
