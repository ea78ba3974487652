//! One fixture for each behaviour: manifests, and in their head what the maps
//! hold of them (`# expect:`) and what is warned of (`# warning:`).

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use datapath_common::{Address, Frontend, FrontendFlags, Ip4, Network, Via, ViaKind};
use ipnet::IpNet;
use support::{CAPACITIES, Clock, Sim, batch, facts, run};
use tulle_agent::plan::{Applied, Here, Planner};
use tulle_agent::source::{Change, parse};

macro_rules! cases {
    ($($name:ident)+) => {
        $(#[test] fn $name() { case(stringify!($name)); })+

        #[test]
        fn every_fixture_is_a_case() {
            let mut named = vec![$(stringify!($name).to_owned()),+];
            let mut found: Vec<String> = std::fs::read_dir(fixtures())
                .unwrap()
                .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            named.sort();
            found.sort();
            assert_eq!(named, found);
        }
    };
}

cases! {
    bad_documents
    bad_service_cidrs
    bad_service_cluster_ip
    bad_service_cluster_ip_loopback
    bad_service_cluster_ips_differ
    bad_service_family
    bad_service_name
    bad_service_no_ports
    bad_service_port_name_twice
    bad_service_port_range
    bad_service_port_twice
    bad_service_port_type
    bad_service_port_unnamed
    bad_service_protocol
    bad_service_type
    bad_slice_address
    bad_slice_address_family
    bad_slice_address_multicast
    bad_slice_address_type
    bad_slice_condition
    bad_slice_port
    kp01_foreign_proxy_label
    kp02_headless
    kp02_no_address
    kp03_external_name
    kp04_node_port_serves_cluster_ip
    kp05_dual_stack
    kp05_second_family_without_address
    kp05_without_families
    kp06_families_do_not_mix
    kp07_sloppy_addresses
    kp08_label_links
    kp09_headless_label_on_service
    kp09_headless_slice
    kp10_fqdn
    kp11_slice_first
    kp12_slice_ports
    kp13_port_by_name
    kp14_protocols_are_separate
    kp15_first_address
    kp16_no_duplicates
    kp17_terminating_duplicate
    kp18_condition_defaults
    kp19_ready_and_terminating
    kp21_any_address
    kp23_ports_fail_alone
    kp24_shared_pods
    kp25_collision
    kp29_networks_of_others
    kp29_service_cidrs
    kp45_source_ranges
    kp53_no_endpoints
    kp71_external_local
    kp76_only_ready
    kp77_terminating_fallback
    kp80_no_mixing
    kp81_dead_terminating
    peers_bad_vtep
    peers_by_internal_ip
    peers_direct_return
    peers_flannel_annotations
    peers_same_network
    peers_unknown_route
    peers_without_ipv4
    ways
}

fn fixtures() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "plan"]
        .iter()
        .collect()
}

fn case(name: &str) {
    let file = fixtures().join(format!("{name}.yaml"));
    let text = std::fs::read_to_string(&file).unwrap();
    let head = |tag: &str| -> Vec<String> {
        let mut lines: Vec<String> = text
            .lines()
            .filter_map(|l| l.strip_prefix(tag))
            .map(|l| l.trim().to_owned())
            .collect();
        lines.sort();
        lines
    };
    let (mut changes, warnings) = parse(&file, &text);
    changes.push(Change::Synced);
    let has_nodes = text.contains("kind: Node");
    let mut batch = batch(changes);
    batch.warnings = warnings.into();
    let mut planner = Planner::new("n0", Applied::new(CAPACITIES));
    planner.ingest(batch);
    planner.set_here(Here {
        node: "n0".to_owned(),
        node_port_addresses: vec![[192, 168, 0, 1].into()],
        ..Here::default()
    });
    planner.set_facts(facts(&["10.244.0.5"]));
    let mut sim = Sim::default();
    let outcome = run(&mut planner, &mut sim, &Clock::new());
    assert_eq!(outcome.pending, 0, "{:?}", outcome.errors);

    assert_eq!(rows(&sim), head("# expect:"), "{name}");
    let want = head("# warning:");
    let mut got: Vec<String> = planner
        .warnings()
        .iter()
        .filter(|w| has_nodes || w.object != "Node n0")
        .inspect(|w| assert!(!w.problem.is_empty() && !w.mend.is_empty(), "{w}"))
        .map(|w| {
            format!(
                "{}{}{}",
                w.object,
                if w.object.is_empty() { "" } else { ": " },
                w.field
            )
        })
        .collect();
    got.sort();
    assert_eq!(got.len(), want.len(), "{name}: {got:#?}");
    for (got, want) in got.iter().zip(&want) {
        assert!(
            got.starts_with(want.as_str()),
            "{name}: {got:?} is not {want:?}"
        );
    }
}

/// The maps in the fixtures' words.
fn rows(sim: &Sim) -> Vec<String> {
    let mut rows = Vec::new();
    let mut marked: BTreeMap<IpAddr, bool> = BTreeMap::new();
    for ((addr, port, proto), row) in &sim.fronts {
        if *proto == 0 {
            marked.insert(*addr, true);
            continue;
        }
        marked.entry(*addr).or_insert(false);
        let protocol = match proto {
            6 => "TCP",
            17 => "UDP",
            132 => "SCTP",
            other => panic!("protocol {other}"),
        };
        let list = |ids: Vec<u32>| {
            let backend = |id: u32| {
                let back = sim.backs[&(addr.is_ipv4(), id)];
                let at = SocketAddr::new(back.key.0, back.key.1);
                match back.via.kind {
                    k if k == ViaKind::Local as u8 => format!("{at} local"),
                    k if k == ViaKind::Vxlan as u8 => format!("{at} vxlan"),
                    k if k == ViaKind::Host as u8 => format!("{at} host"),
                    _ => at.to_string(),
                }
            };
            let backends: Vec<String> = ids.into_iter().map(backend).collect();
            if backends.is_empty() {
                "refused".to_owned()
            } else {
                backends.join(", ")
            }
        };
        let (inside, outside) = (list(sim.inside(row)), list(sim.outside(row)));
        let to = if inside == outside {
            inside
        } else {
            format!("inside {inside}; outside {outside}")
        };
        rows.push(format!("{addr} {port}/{protocol} -> {to}"));
    }
    let service_range = |addr: &IpAddr| {
        let nets = ["10.96.0.0/16", "fd00:96::/64"].map(|net| net.parse::<IpNet>().unwrap());
        nets.iter().any(|net| net.contains(addr))
    };
    for (addr, marked) in marked {
        assert_eq!(
            marked,
            service_range(&addr),
            "{addr}: only ClusterIPs are marked"
        );
    }
    for (service, len, net) in &sim.sources {
        let ranges = FrontendFlags::SOURCE_RANGES;
        let uses = |row: &&Frontend| row.service == *service && row.flags & ranges != 0;
        let users = sim.fronts.values().filter(uses).count();
        rows.push(format!("{users} frontends for {net}/{}", len - 32));
    }
    for ((addr, len), via) in &sim.peers {
        let node: Ip4 = via.node;
        let answers = if via.flags & Via::DIRECT == 0 {
            ""
        } else {
            ", answers"
        };
        rows.push(format!(
            "peer {addr}/{len} via {} {}{answers}",
            node.to_ip(),
            via.dst_mac
        ));
    }
    for (addr, node) in &sim.nodes {
        rows.push(format!("node {addr} {}", node.vtep_mac));
    }
    for ((addr, len), bits) in &sim.networks {
        let whose = match *bits {
            0 => "nobody",
            Network::SERVICES => "services",
            // Pods of this node, or where the kernel delivers.
            Network::DIRECT => continue,
            other => panic!("{addr}/{len}: {other}"),
        };
        rows.push(format!("network {addr}/{len} of {whose}"));
    }
    rows.sort();
    rows
}
