//! Attaching, replacing, repairing and detaching. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use aya::programs::{SchedClassifier, TcAttachType};
use datapath_common::{Config, Feature, Hook};
use kernel_support::{Node, index, on_node, options, run, small, veth};
use tulle_agent::kernel::{AttachKind, Datapath, Place, Report, XdpMode};

fn pods(list: &[u32]) -> BTreeSet<u32> {
    list.iter().copied().collect()
}

/// attached, replaced, kept, repaired, removed
fn counts(report: &Report) -> [u32; 5] {
    assert!(report.failed.is_empty(), "{report:?}");
    [
        report.attached,
        report.replaced,
        report.kept,
        report.repaired,
        report.removed,
    ]
}

fn tcx(device: &str, side: TcAttachType) -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx(device, side).expect("a device");
    programs
        .iter()
        .map(aya::programs::ProgramInfo::id)
        .collect()
}

#[test]
fn links_outlive_the_agent_and_get_the_next_ones_programs() {
    on_node(|node| {
        let (pod, uplink) = (veth("pod0"), veth("up0"));
        let mut first = node.open();
        assert_eq!(counts(&first.sync_pods(&pods(&[pod]))), [2, 0, 0, 0, 0]);
        assert_eq!(
            counts(&first.sync_uplink(uplink, XdpMode::Off).0),
            [2, 0, 0, 0, 0]
        );
        assert_eq!(counts(&first.sync_pods(&pods(&[pod]))), [0, 0, 2, 0, 0]);
        let links = [
            ("tulle_pod_from", pod),
            ("tulle_pod_to", pod),
            ("tulle_nic_in", uplink),
            ("tulle_nic_out", uplink),
        ];
        let before = links.map(|(program, at)| node.link(program, at).expect("pinned"));
        drop(first);
        assert_eq!(tcx("pod0", TcAttachType::Ingress), [before[0].1]);
        assert_eq!(tcx("pod0", TcAttachType::Egress), [before[1].1]);
        assert_eq!(tcx("up0", TcAttachType::Ingress), [before[2].1]);
        assert_eq!(tcx("up0", TcAttachType::Egress), [before[3].1]);

        let mut second = node.open();
        assert_eq!(
            tcx("pod0", TcAttachType::Ingress),
            [before[0].1],
            "opening attaches nothing"
        );
        assert_eq!(counts(&second.sync_pods(&pods(&[pod]))), [0, 2, 0, 0, 0]);
        assert_eq!(
            counts(&second.sync_uplink(uplink, XdpMode::Off).0),
            [0, 2, 0, 0, 0]
        );
        let after = links.map(|(program, at)| node.link(program, at).expect("pinned"));
        for (old, new) in before.iter().zip(after) {
            assert_eq!(old.0, new.0, "the same link");
            assert_ne!(old.1, new.1, "another program");
        }
        let ids = second.program_ids();
        assert_eq!(
            tcx("pod0", TcAttachType::Ingress),
            [ids[Hook::PodFrom as usize]]
        );
        let mut attached = second.attached().unwrap();
        attached.sort_unstable();
        let mut wanted = vec![
            (Place::new(Hook::PodFrom, pod), ids[0]),
            (Place::new(Hook::PodTo, pod), ids[1]),
            (Place::new(Hook::NicIn, uplink), ids[2]),
            (Place::new(Hook::NicOut, uplink), ids[4]),
        ];
        wanted.sort_unstable();
        assert_eq!(attached, wanted);
    });
}

/// Looks at an interface again and again while `change` runs; each look must
/// find exactly one program.
fn never_bare(look: impl Fn() -> usize + Sync, change: impl FnOnce()) {
    struct Finish<'a>(&'a AtomicBool);
    impl Drop for Finish<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (done, looks) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(look(), 1, "programs at the interface");
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        let finish = Finish(&done);
        change();
        drop(finish);
    });
    assert!(
        looks.into_inner() > 10,
        "looked often enough to mean something"
    );
}

#[test]
fn restarts_never_leave_an_interface_without_program() {
    on_node(|node| {
        let pod = veth("pod0");
        assert_eq!(
            counts(&node.open().sync_pods(&pods(&[pod]))),
            [2, 0, 0, 0, 0]
        );
        let look = || match SchedClassifier::query_tcx("pod0", TcAttachType::Ingress) {
            Ok((_, programs)) => programs.len(),
            // It was there and has been replaced before it could be looked at.
            Err(aya::programs::ProgramError::SyscallError(e)) => {
                assert_eq!(e.call, "bpf_prog_get_fd_by_id", "{e}");
                1
            }
            Err(e) => panic!("{e}"),
        };
        never_bare(look, || {
            for _ in 0..10 {
                let mut next = node.open();
                assert_eq!(counts(&next.sync_pods(&pods(&[pod]))), [0, 2, 0, 0, 0]);
                let report = next
                    .reconfigure(&Config {
                        vni: 9,
                        ..Config::EMPTY
                    })
                    .unwrap();
                assert_eq!(counts(&report), [0, 2, 0, 0, 0]);
            }
        });
    });
}

#[test]
fn what_somebody_removed_comes_back_and_is_counted() {
    on_node(|node| {
        let pod = veth("pod0");
        let mut datapath = node.open();
        assert_eq!(counts(&datapath.sync_pods(&pods(&[pod]))), [2, 0, 0, 0, 0]);
        std::fs::remove_file(node.pins.join(format!("links/tulle_pod_from-{pod}"))).unwrap();
        kernel_support::eventually("the link without pin is gone", || {
            tcx("pod0", TcAttachType::Ingress).is_empty()
        });
        assert_eq!(counts(&datapath.sync_pods(&pods(&[pod]))), [0, 0, 1, 1, 0]);
        let (link, _) = node.link("tulle_pod_to", pod).unwrap();
        run("bpftool", &["link", "detach", "id", &link.to_string()]);
        assert!(tcx("pod0", TcAttachType::Egress).is_empty());
        assert_eq!(counts(&datapath.sync_pods(&pods(&[pod]))), [0, 0, 1, 1, 0]);
        assert_eq!(tcx("pod0", TcAttachType::Ingress).len(), 1);
        assert_eq!(tcx("pod0", TcAttachType::Egress).len(), 1);
    });
}

#[test]
fn pods_that_go_are_forgotten() {
    on_node(|node| {
        let (first, second) = (veth("pod0"), veth("pod1"));
        let mut datapath = node.open();
        assert_eq!(
            counts(&datapath.sync_pods(&pods(&[first, second]))),
            [4, 0, 0, 0, 0]
        );
        // One pod is no pod any more, the other's device is gone.
        assert_eq!(
            counts(&datapath.sync_pods(&pods(&[second]))),
            [0, 0, 2, 0, 2]
        );
        assert!(tcx("pod0", TcAttachType::Ingress).is_empty());
        run("ip", &["link", "del", "pod1"]);
        let report = datapath.sync_pods(&pods(&[second]));
        assert_eq!(report.failed.len(), 2, "{report:?}");
        assert!(
            report.failed[0]
                .1
                .to_string()
                .contains(&format!("index {second}"))
        );
        let again = datapath.sync_pods(&pods(&[]));
        assert!(again.failed.is_empty());
        assert_eq!(
            kernel_support::names(&node.pins.join("links")),
            Vec::<String>::new()
        );
        // A new device with the index of a former one gets programs of its own.
        assert_eq!(
            counts(&datapath.sync_pods(&pods(&[first]))),
            [2, 0, 0, 0, 0]
        );
        run("ip", &["link", "del", "pod0"]);
        let number = first.to_string();
        run(
            "ip",
            &[
                "link", "add", "pod2", "index", &number, "type", "veth", "peer", "name", "x",
            ],
        );
        assert_eq!(index("pod2"), first);
        assert_eq!(
            counts(&datapath.sync_pods(&pods(&[first]))),
            [0, 0, 0, 2, 0]
        );
        assert_eq!(tcx("pod2", TcAttachType::Ingress).len(), 1);
    });
}

#[test]
fn another_uplink() {
    on_node(|node| {
        let (former, next) = (veth("up0"), veth("up1"));
        let mut datapath = node.open();
        assert_eq!(
            counts(&datapath.sync_uplink(former, XdpMode::Generic).0),
            [3, 0, 0, 0, 0]
        );
        assert_eq!(
            counts(&datapath.sync_uplink(next, XdpMode::Generic).0),
            [3, 0, 0, 0, 3]
        );
        assert!(tcx("up0", TcAttachType::Ingress).is_empty());
        assert!(!run("ip", &["link", "show", "up0"]).contains("xdp"));
    });
}

#[test]
fn xdp_modes() {
    on_node(|node| {
        let uplink = veth("up0");
        let shown = || run("ip", &["-d", "link", "show", "up0"]);
        let mut datapath = node.open();
        let mut sync = |mode| {
            let (report, choice) = datapath.sync_uplink(uplink, mode);
            assert!(report.failed.is_empty(), "{report:?}");
            choice
        };
        let auto = sync(XdpMode::Auto);
        assert_eq!(auto.mode, XdpMode::Off);
        assert!(auto.why.contains("veth"), "{}", auto.why);
        assert!(!shown().contains("prog/xdp"));
        assert_eq!(sync(XdpMode::Generic).mode, XdpMode::Generic);
        assert!(shown().contains("xdpgeneric"), "{}", shown());
        let generic = node.link("tulle_xdp", uplink).unwrap();
        assert_eq!(sync(XdpMode::Generic).mode, XdpMode::Generic);
        assert_eq!(node.link("tulle_xdp", uplink), Some(generic));
        assert_eq!(sync(XdpMode::Native).mode, XdpMode::Native);
        assert!(
            !shown().contains("xdpgeneric") && shown().contains("prog/xdp"),
            "{}",
            shown()
        );
        assert_eq!(sync(XdpMode::Off).why, "switched off");
        assert!(!shown().contains("prog/xdp"));
        // The loopback has no driver: automatic means off, native is refused.
        let (report, choice) = datapath.sync_uplink(index("lo"), XdpMode::Auto);
        assert!(report.failed.is_empty(), "{report:?}");
        assert_eq!(choice.mode, XdpMode::Off);
        assert!(choice.why.contains("driver refuses"), "{}", choice.why);
        let (report, choice) = datapath.sync_uplink(index("lo"), XdpMode::Native);
        assert_eq!(choice.mode, XdpMode::Off);
        let said = report.failed[0].1.to_string();
        assert!(
            said.contains("native") && said.contains("--xdp auto"),
            "{said}"
        );
    });
}

/// The program at the VTEP device, where IPv6 comes out of the overlay.
fn at_the_vtep_device(node: &Node, kind: AttachKind) {
    let vxlan = || {
        let args = "link add vt0 type vxlan id 1 dstport 8472";
        run("ip", &args.split(' ').collect::<Vec<_>>());
        index("vt0")
    };
    let uplink = veth("up0");
    let needed = Feature::OVERLAY | Feature::UPLINK_SERVICES;
    let config = |vtep, features| Config {
        features,
        vtep,
        ..Config::EMPTY
    };
    let first = vxlan();
    let has = |datapath: &Datapath, vtep| {
        let attached = datapath.attached().unwrap();
        let program = (
            Place::new(Hook::NicIn, vtep),
            datapath.program_ids()[Hook::NicIn as usize],
        );
        attached.contains(&program)
    };
    let open = || {
        let config = config(first, needed);
        Datapath::open(&node.pins, &config, &small(), &options(kind)).unwrap()
    };
    let sync = |datapath: &mut Datapath| counts(&datapath.sync_uplink(uplink, XdpMode::Off).0);
    let mut datapath = open();
    assert_eq!(sync(&mut datapath), [3, 0, 0, 0, 0]);
    assert_eq!(sync(&mut datapath), [0, 0, 3, 0, 0]);
    assert!(has(&datapath, first));
    drop(datapath);
    let mut datapath = open();
    assert_eq!(sync(&mut datapath), [0, 3, 0, 0, 0]);

    run("ip", &["link", "del", "vt0"]);
    // Another device in between: an index is not given twice at once.
    veth("other");
    let second = vxlan();
    assert_ne!(first, second);
    let report = datapath.reconfigure(&config(second, needed)).unwrap();
    assert_eq!(counts(&report), [0, 2, 0, 0, 0]);
    assert_eq!(sync(&mut datapath), [1, 0, 2, 0, 1]);
    assert!(has(&datapath, second));

    let unwanted = [
        (needed | Feature::DECAP_6_IN_4, 1),
        (Feature::OVERLAY, 0),
        (Feature::UPLINK_SERVICES, 0),
    ];
    for (features, removed) in unwanted {
        datapath.reconfigure(&config(second, features)).unwrap();
        assert_eq!(sync(&mut datapath), [0, 0, 2, 0, removed]);
        assert!(!has(&datapath, second));
    }
}

#[test]
fn the_vtep_device_where_the_kernel_takes_ipv6_out() {
    for kind in [AttachKind::Tcx, AttachKind::Clsact] {
        on_node(move |node| at_the_vtep_device(node, kind));
    }
}

#[test]
fn an_uplink_that_is_not_there() {
    on_node(|node| {
        let mut datapath = node.open();
        for attach in [AttachKind::Tcx, AttachKind::Clsact] {
            let (report, choice) = node.open_as(attach).sync_uplink(4711, XdpMode::Auto);
            assert_eq!(choice.mode, XdpMode::Off);
            assert!(
                report.failed[0]
                    .1
                    .to_string()
                    .contains("no interface with index 4711")
            );
        }
        assert_eq!(counts(&datapath.sync_pods(&pods(&[]))), [0; 5]);
    });
}

fn filters(device: &str, side: &str) -> String {
    run("tc", &["filter", "show", "dev", device, side])
}

fn programs(device: &str, side: &str) -> usize {
    filters(device, side).matches("direct-action").count()
}

fn clsact(node: &Node) -> Datapath {
    node.open_as(AttachKind::Clsact)
}

#[test]
fn filters_where_there_is_no_tcx() {
    on_node(|node| {
        let pod = veth("pod0");
        let mut first = clsact(node);
        assert_eq!(counts(&first.sync_pods(&pods(&[pod]))), [2, 0, 0, 0, 0]);
        assert_eq!(counts(&first.sync_pods(&pods(&[pod]))), [0, 0, 2, 0, 0]);
        assert!(filters("pod0", "ingress").contains("tulle_pod_from"));
        assert!(filters("pod0", "egress").contains("tulle_pod_to"));
        let ids = first.program_ids();
        drop(first);
        assert_eq!(
            (programs("pod0", "ingress"), programs("pod0", "egress")),
            (1, 1)
        );

        never_bare(
            || programs("pod0", "ingress"),
            || {
                for _ in 0..10 {
                    let mut next = clsact(node);
                    assert_eq!(counts(&next.sync_pods(&pods(&[pod]))), [0, 2, 0, 0, 0]);
                }
            },
        );
        let mut next = clsact(node);
        assert_eq!(counts(&next.sync_pods(&pods(&[pod]))), [0, 2, 0, 0, 0]);
        let now = next.program_ids();
        assert_ne!(now, ids);
        let attached = next.attached().unwrap();
        assert!(
            attached.contains(&(Place::new(Hook::PodFrom, pod), now[0])),
            "{attached:?}"
        );
        assert!(filters("pod0", "ingress").contains(&format!("id {}", now[0])));

        run("tc", &["filter", "del", "dev", "pod0", "ingress"]);
        assert_eq!(counts(&next.sync_pods(&pods(&[pod]))), [0, 0, 1, 1, 0]);
        assert_eq!(counts(&next.sync_pods(&pods(&[]))), [0, 0, 0, 0, 2]);
        assert_eq!(
            (programs("pod0", "ingress"), programs("pod0", "egress")),
            (0, 0)
        );
    });
}

#[test]
fn a_place_that_another_filter_has_is_left_alone() {
    on_node(|node| {
        let pod = veth("pod0");
        let mut datapath = clsact(node);
        let foreign = node.pins.with_file_name("foreign");
        let (foreign, id) = (
            foreign.to_str().unwrap(),
            datapath.program_ids()[1].to_string(),
        );
        run("bpftool", &["prog", "pin", "id", &id, foreign]);
        run("tc", &["qdisc", "add", "dev", "pod0", "clsact"]);
        let place = [
            "filter", "add", "dev", "pod0", "ingress", "pref", "50", "handle", "1",
        ];
        run(
            "tc",
            &[&place[..], &["bpf", "da", "object-pinned", foreign]].concat(),
        );
        let report = datapath.sync_pods(&pods(&[pod]));
        assert_eq!((report.attached, report.failed.len()), (1, 1), "{report:?}");
        let said = report.failed[0].1.to_string();
        assert!(
            said.contains("priority 50") && said.contains("tc filter del"),
            "{said}"
        );
        assert!(filters("pod0", "ingress").contains("foreign"));
    });
}

#[test]
fn from_filters_to_links_and_back() {
    on_node(|node| {
        let pod = veth("pod0");
        assert_eq!(
            counts(&clsact(node).sync_pods(&pods(&[pod]))),
            [2, 0, 0, 0, 0]
        );
        let report = node.open().sync_pods(&pods(&[pod]));
        assert!(report.failed.is_empty(), "{report:?}");
        assert_eq!(tcx("pod0", TcAttachType::Ingress).len(), 1);
        assert_eq!(
            (programs("pod0", "ingress"), programs("pod0", "egress")),
            (0, 0)
        );
        let report = clsact(node).sync_pods(&pods(&[pod]));
        assert!(report.failed.is_empty(), "{report:?}");
        assert!(tcx("pod0", TcAttachType::Ingress).is_empty());
        assert_eq!(
            (programs("pod0", "ingress"), programs("pod0", "egress")),
            (1, 1)
        );
    });
}
