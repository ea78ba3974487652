//! The arrays that attached programs go on with: they are pinned while one of them
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
use tulle_agent::kernel::{AttachKind, Datapath, XdpMode};

/// Arrays of one loading: for classifiers and for XDP.
const ARRAYS: usize = 2;

/// Whether all of these are pinned.
fn has_all(node: &Node, arrays: &[String]) -> bool {
    let there = pinned(node);
    arrays.iter().all(|array| there.contains(array))
}

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
    let (report, _) = datapath.sync_uplink(uplink, XdpMode::Generic);
    assert!(report.failed.is_empty(), "{report:?}");
}

/// Opens the datapath, and attaches it to a pod and the uplink.
fn attached_as(node: &Node, attach: AttachKind, pod: u32, uplink: u32) -> Datapath {
    let mut datapath = node.open_as(attach);
    sync_pod(&mut datapath, pod);
    sync_uplink(&mut datapath, uplink);
    datapath
}

#[test]
fn former_parts_stay_until_the_last_link_has_the_next_program() {
    former_parts_stay_until_the_last_has_the_next_program(AttachKind::Tcx);
}

#[test]
fn former_parts_stay_until_the_last_filter_has_the_next_program() {
    former_parts_stay_until_the_last_has_the_next_program(AttachKind::Clsact);
}

fn former_parts_stay_until_the_last_has_the_next_program(attach: AttachKind) {
    on_node(move |node| {
        let (pod, uplink) = (veth("pod0"), veth("up0"));
        drop(attached_as(node, attach, pod, uplink));
        let of_first = pinned(node);
        assert_eq!(of_first.len(), ARRAYS);

        // Agents that end before they attach anything.
        drop(node.open_as(attach));
        drop(node.open_as(attach));
        assert_eq!(pinned(node).len(), 3 * ARRAYS);
        assert!(has_all(node, &of_first));

        let mut next = node.open_as(attach);
        sync_pod(&mut next, pod);
        assert!(
            has_all(node, &of_first),
            "the uplink has the first one's programs"
        );
        sync_uplink(&mut next, uplink);
        let of_next = pinned(node);
        assert_eq!(of_next.len(), ARRAYS);
        assert_ne!(of_next, of_first);

        let config = Config {
            vni: 9,
            ..Config::EMPTY
        };
        let report = next.reconfigure(&config).unwrap();
        assert_eq!(report.replaced, 5, "{report:?}");
        assert_eq!(pinned(node).len(), ARRAYS);
        assert_ne!(pinned(node), of_next);
    });
}

#[test]
fn former_parts_stay_while_the_kernel_does_not_say_which_links_there_are() {
    const QUERY: u32 = 16; // BPF_PROG_QUERY
    former_parts_stay_where(AttachKind::Tcx, libc::SYS_bpf, QUERY);
}

#[test]
fn former_parts_stay_while_links_cannot_be_updated() {
    const UPDATE: u32 = 29; // BPF_LINK_UPDATE
    former_parts_stay_where(AttachKind::Tcx, libc::SYS_bpf, UPDATE);
}

#[test]
fn former_parts_stay_while_the_kernel_does_not_say_which_filters_there_are() {
    let netlink = libc::AF_NETLINK.cast_unsigned();
    former_parts_stay_where(AttachKind::Clsact, libc::SYS_socket, netlink);
}

/// A replacement that fails everywhere, as the kernel refuses a system call.
fn former_parts_stay_where(attach: AttachKind, call: libc::c_long, first: u32) {
    on_node(move |node| {
        let (pod, uplink) = (veth("pod0"), veth("up0"));
        drop(attached_as(node, attach, pod, uplink));
        let of_first = pinned(node);
        let mut next = node.open_as(attach);
        let pods = BTreeSet::from([pod]);
        let refused = || {
            refuse(call, first);
            let of_pods = next.sync_pods(&pods).failed;
            let (of_uplink, _) = next.sync_uplink(uplink, XdpMode::Off);
            (of_pods.len(), of_uplink.failed.len())
        };
        // On a thread of its own: what is refused once is refused to its end.
        let (of_pods, of_uplink) = std::thread::scope(|scope| scope.spawn(refused).join().unwrap());
        assert!(of_pods >= 2 && of_uplink >= 2, "{of_pods} {of_uplink}");
        assert_eq!(pinned(node).len(), 2 * ARRAYS);
        assert!(has_all(node, &of_first));

        sync_pod(&mut next, pod);
        sync_uplink(&mut next, uplink);
        assert_eq!(pinned(node).len(), ARRAYS);
        assert!(of_first.iter().all(|array| !pinned(node).contains(array)));
    });
}

/// From now on the kernel refuses this thread a system call with this first argument.
fn refuse(call: libc::c_long, first: u32) {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    // Offsets of `nr` and of the lower half of `args[0]` in `seccomp_data`.
    const NUMBER: u32 = 0;
    const FIRST: u32 = if cfg!(target_endian = "little") {
        16
    } else {
        20
    };
    let instruction = |code: u32, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf,
        k,
    };
    let mut program = [
        instruction(BPF_LD | BPF_W | BPF_ABS, 0, NUMBER),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 3, u32::try_from(call).unwrap()),
        instruction(BPF_LD | BPF_W | BPF_ABS, 0, FIRST),
        instruction(BPF_JMP | BPF_JEQ | BPF_K, 1, first),
        instruction(
            BPF_RET | BPF_K,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned(),
        ),
        instruction(BPF_RET | BPF_K, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the program and its instructions live until the call returns.
    let answer = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        )
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
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
