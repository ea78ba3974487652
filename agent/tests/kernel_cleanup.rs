//! Cleanup leaves nothing; and what the probe says of this very kernel. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;

use std::collections::BTreeSet;
use std::path::Path;

use aya::maps::MapInfo;
use kernel_support::{Node, eventually, names, on_node, run, veth};
use tulle_agent::kernel::cleanup::cleanup;
use tulle_agent::kernel::probe::{Refusal, Sources, probe};
use tulle_agent::kernel::{AttachKind, XdpMode};

fn attach_everything(node: &Node, attach: AttachKind, pod: u32, uplink: u32) -> [u32; 5] {
    let mut datapath = node.open_as(attach);
    assert!(datapath.sync_pods(&BTreeSet::from([pod])).failed.is_empty());
    assert!(
        datapath
            .sync_uplink(uplink, XdpMode::Generic)
            .0
            .failed
            .is_empty()
    );
    datapath.program_ids()
}

fn exists(kind: &str, id: u32) -> bool {
    let id = id.to_string();
    let out = std::process::Command::new("bpftool")
        .args(["-j", kind, "show", "id", &id])
        .output();
    out.expect("bpftool runs").status.success()
}

fn state_of_the_devices() -> String {
    let mut state = String::new();
    for device in ["pod0", "up0"] {
        state += &run("tc", &["qdisc", "show", "dev", device]);
        state += &run("tc", &["filter", "show", "dev", device, "ingress"]);
        state += &run("tc", &["filter", "show", "dev", device, "egress"]);
    }
    state + &run("ip", &["link", "show"])
}

fn leaves_nothing(attach: AttachKind) {
    on_node(move |node| {
        let (pod, uplink) = (veth("pod0"), veth("up0"));
        let before = state_of_the_devices();
        let programs = attach_everything(node, attach, pod, uplink);
        let maps = node.map_ids();
        let abi = MapInfo::from_pin(node.pins.join("abi")).unwrap().id();
        let links: Vec<u32> = [
            ("tulle_pod_from", pod),
            ("tulle_nic_in", uplink),
            ("tulle_nic_out", uplink),
            ("tulle_xdp", uplink),
        ]
        .iter()
        .filter_map(|(program, at)| Some(node.link(program, *at)?.0))
        .collect();
        assert!(programs.iter().all(|id| exists("prog", *id)));
        assert!(links.iter().all(|id| exists("link", *id)) && !links.is_empty());
        assert_ne!(state_of_the_devices(), before);

        let done = cleanup(&node.pins);
        assert!(
            done.failed.is_empty() && done.foreign.is_empty(),
            "{done:?}"
        );
        assert!(done.directory && !done.was_clean());
        let expected = match attach {
            AttachKind::Tcx => (5, 0, 0),
            AttachKind::Clsact => (1, 4, 2),
        };
        assert_eq!(
            (done.links, done.filters, done.qdiscs),
            expected,
            "{done:?}"
        );
        assert_eq!(done.maps as usize, datapath_common::maps::ALL.len());
        assert!(!node.pins.exists());
        assert_eq!(state_of_the_devices(), before);
        eventually("all programs are gone", || {
            programs.iter().all(|id| !exists("prog", *id))
        });
        eventually("all maps are gone", || {
            maps.iter().all(|id| !exists("map", *id))
        });
        eventually("the version's map is gone", || !exists("map", abi));
        eventually("all links are gone", || {
            links.iter().all(|id| !exists("link", *id))
        });

        let again = cleanup(&node.pins);
        assert!(again.was_clean(), "{again:?}");
    });
}

#[test]
fn nothing_is_left_of_links() {
    leaves_nothing(AttachKind::Tcx);
}

#[test]
fn nothing_is_left_of_filters() {
    leaves_nothing(AttachKind::Clsact);
}

#[test]
fn what_others_use_stays() {
    on_node(|node| {
        let (pod, uplink) = (veth("pod0"), veth("up0"));
        // One qdisc was there before us; into the other somebody put a filter.
        run("tc", &["qdisc", "add", "dev", "pod0", "clsact"]);
        let programs = attach_everything(node, AttachKind::Clsact, pod, uplink);
        let pin = node.pins.with_file_name("foreign");
        let pin = pin.to_str().unwrap();
        run(
            "bpftool",
            &["prog", "pin", "id", &programs[1].to_string(), pin],
        );
        let filter = [
            "filter",
            "add",
            "dev",
            "up0",
            "egress",
            "bpf",
            "da",
            "object-pinned",
            pin,
        ];
        run("tc", &filter);
        std::fs::create_dir(node.pins.join("somebodys")).unwrap();

        let done = cleanup(&node.pins);
        assert!(done.failed.is_empty(), "{done:?}");
        assert_eq!((done.filters, done.qdiscs, done.directory), (4, 0, false));
        assert_eq!(done.foreign, ["somebodys"]);
        assert_eq!(node.names(), ["links", "somebodys"]);
        assert_eq!(names(&node.pins.join("links")), Vec::<String>::new());
        assert!(run("tc", &["qdisc", "show", "dev", "pod0"]).contains("clsact"));
        assert!(run("tc", &["filter", "show", "dev", "up0", "egress"]).contains("foreign"));
        assert!(!run("tc", &["filter", "show", "dev", "up0", "ingress"]).contains("tulle"));

        std::fs::remove_dir(node.pins.join("somebodys")).unwrap();
        assert!(cleanup(&node.pins).directory);
        assert!(!node.pins.exists());
    });
}

#[test]
fn a_directory_that_never_was() {
    on_node(|node| {
        let done = cleanup(&node.pins);
        assert!(done.was_clean(), "{done:?}");
    });
}

#[test]
fn devices_that_are_gone_do_not_stop_it() {
    on_node(|node| {
        for attach in [AttachKind::Tcx, AttachKind::Clsact] {
            let (pod, uplink) = (veth("pod0"), veth("up0"));
            attach_everything(node, attach, pod, uplink);
            run("ip", &["link", "del", "pod0"]);
            run("ip", &["link", "del", "up0"]);
            let done = cleanup(&node.pins);
            assert!(done.failed.is_empty() && done.directory, "{done:?}");
        }
    });
}

#[test]
fn the_probe_finds_this_kernel() {
    on_node(|node| {
        let kernel = probe(&Sources::default(), &node.pins).unwrap();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert!(release.starts_with(&format!("{}.{}", kernel.version.0, kernel.version.1)));
        assert_eq!(kernel.attach == AttachKind::Tcx, kernel.version >= (6, 6));
        assert_eq!(
            kernel.decap_6_in_4,
            kernel.version >= (6, 3),
            "{:?}",
            kernel.features
        );
        assert_eq!(kernel.calls, kernel.version < (6, 5));
        assert_eq!(kernel.features.len(), 3);
        assert!(
            kernel
                .features
                .iter()
                .all(|f| !f.why.is_empty() && !f.why.contains("not be tried"))
        );

        let elsewhere = probe(&Sources::default(), Path::new("/proc/tulle")).unwrap_err();
        assert!(matches!(elsewhere, Refusal::NoBpffs { .. }), "{elsewhere}");
    });
}
