//! Captures, echo servers, snapshots, agents' processes. Needs root.
#![expect(clippy::unwrap_used, reason = "tests and their helpers may panic")]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use testkit::agent::{Agent, AgentOptions};
use testkit::capture::{Capture, inject};
use testkit::echo::{EchoServer, LongConnection, udp_ask, udp_connect, udp_exchange};
use testkit::http::FailureKind;
use testkit::packet::{Frame, Outer, parse, verify, vxlan};
use testkit::ping::ping;
use testkit::snapshot::{Section, Snapshot, diff};
use testkit::{ClusterBuilder, NetNs, link};

const LIMIT: Duration = Duration::from_secs(2);

fn pair(label: &str) -> (NetNs, NetNs) {
    let (a, b) = (
        NetNs::new(&format!("{label}-a")).unwrap(),
        NetNs::new(&format!("{label}-b")).unwrap(),
    );
    link::veth(&a, "eth0", &b, "eth0").unwrap();
    for (ns, host) in [(&a, 1), (&b, 2)] {
        link::ip(ns, &["link", "set", "eth0", "up"]).unwrap();
        link::address(ns, "eth0", &format!("10.0.0.{host}/24")).unwrap();
        link::address(ns, "eth0", &format!("fd00::{host}/64")).unwrap();
    }
    link::wait_up(&a, "eth0").unwrap();
    link::wait_up(&b, "eth0").unwrap();
    (a, b)
}

#[test]
fn a_capture_sees_a_ping_and_its_reply() {
    let (a, b) = pair("ping");
    let capture = Capture::start(&b, "eth0", 100).unwrap();
    ping(&a, [10, 0, 0, 2].into(), 100, LIMIT).unwrap();
    ping(&a, "fd00::2".parse().unwrap(), 100, LIMIT).unwrap();
    for (text, outgoing) in [
        ("10.0.0.1 > 10.0.0.2 ttl 64 DF, ICMP 8/0, 100 octets", false),
        ("10.0.0.2 > 10.0.0.1 ttl 64, ICMP 0/0, 100 octets", true),
        (
            "fd00::1 > fd00::2 hop limit 64, ICMP 128/0, 100 octets",
            false,
        ),
        (
            "fd00::2 > fd00::1 hop limit 64, ICMP 129/0, 100 octets",
            true,
        ),
    ] {
        let frame = capture.wait_for(text, LIMIT, |frame| {
            frame.outgoing == outgoing
                && parse(&frame.bytes).is_ok_and(|frame| frame.to_string() == text)
        });
        verify(&frame.unwrap().bytes).unwrap();
    }
    assert!(capture.stop().unwrap().len() >= 4);
}

#[test]
fn a_full_capture_says_so() {
    let (a, b) = pair("full");
    let capture = Capture::start(&b, "eth0", 1).unwrap();
    ping(&a, [10, 0, 0, 2].into(), 0, LIMIT).unwrap();
    // The request's own frames were there before the reply came back.
    let error = capture.stop().unwrap_err().to_string();
    assert!(error.contains("room for 1 frames"), "{error}");
}

#[test]
fn injected_frames_arrive_as_built() {
    let (a, b) = pair("inject");
    let capture = Capture::start(&b, "eth0", 100).unwrap();
    let inner = Frame::v4([1, 2, 3, 4].into(), [5, 6, 7, 8].into())
        .udp(1, 2)
        .payload(b"inner");
    let outer = Outer::new([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let frame = vxlan(outer, &inner.bytes());
    inject(&a, "eth0", &frame).unwrap();
    capture
        .wait_for("no frame", LIMIT, |seen| {
            seen.bytes == frame && !seen.outgoing
        })
        .unwrap();
    let error = inject(&a, "nowhere", &frame).unwrap_err().to_string();
    assert!(error.contains("nowhere"), "{error}");
}

#[test]
fn echo_over_udp_and_a_long_connection() {
    let (a, b) = pair("echo");
    let server = EchoServer::start(&b, "pod-b", 7007).unwrap();
    for ip in ["10.0.0.2", "fd00::2"] {
        let address = SocketAddr::new(ip.parse().unwrap(), 7007);
        assert_eq!(
            udp_ask(&a, address, b"hello there", LIMIT).unwrap(),
            "pod-b"
        );
        let socket = udp_connect(&a, address).unwrap();
        for n in 0..10_u8 {
            assert_eq!(udp_exchange(&socket, &[n], LIMIT).unwrap(), "pod-b");
        }
        let closed = SocketAddr::new(ip.parse().unwrap(), 9);
        assert_eq!(
            udp_ask(&a, closed, b"x", LIMIT).unwrap_err().kind,
            FailureKind::Refused
        );
    }
    let address = "10.0.0.2:7007".parse().unwrap();
    let connection = LongConnection::start(&a, address, Duration::from_millis(2)).unwrap();
    let wanted = testkit::wait::until("no 20 echoes", LIMIT, || {
        Ok((connection.report().echoes >= 20).then_some(()))
    });
    wanted.unwrap();
    // A link that is down for a while shows as a gap, not as a broken connection.
    link::ip(&b, &["link", "set", "eth0", "down"]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    link::ip(&b, &["link", "set", "eth0", "up"]).unwrap();
    testkit::wait::until("no gap", Duration::from_secs(8), || {
        Ok((!connection.report().gaps.is_empty()).then_some(()))
    })
    .unwrap();
    let report = connection.finish();
    assert_eq!((report.pod.as_str(), report.broken), ("pod-b", None));
    assert!(
        report.longest >= Duration::from_millis(200),
        "{:?}",
        report.longest
    );

    let connection = LongConnection::start(&a, address, Duration::from_millis(2)).unwrap();
    drop(server);
    testkit::wait::until("no broken connection", LIMIT, || {
        Ok(connection.report().broken)
    })
    .unwrap();
}

#[test]
fn snapshots_show_what_was_left() {
    let cluster = ClusterBuilder::unique("snapshot")
        .nodes(1)
        .pods_per_node(1)
        .build()
        .unwrap();
    let node = &cluster.nodes()[0];
    let (ns, bpffs) = (node.ns(), node.bpffs());
    let before = Snapshot::of(ns, Some(&bpffs)).unwrap();
    ping(ns, node.pods()[0].ip4().into(), 56, LIMIT).unwrap();
    assert_eq!(diff(&before, &Snapshot::of(ns, Some(&bpffs)).unwrap()), "");

    let rules = "table ip leftover { chain c { type filter hook input priority 0; }; }";
    link::run_in(ns, "nft", &[rules]).unwrap();
    link::batch(
        ns,
        &[
            "link add flannel.1 type vxlan id 1 dev eth0 local 192.168.77.11 dstport 8472 nolearning",
            "link set flannel.1 up",
            "addr add 10.244.1.0/32 dev flannel.1",
            "neigh add 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent",
            "route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
            "rule add from 10.9.9.9 lookup 77",
            "route add 10.7.0.0/16 dev eth0 table 77",
        ],
    )
    .unwrap();
    link::run_in(
        ns,
        "bridge",
        &[
            "fdb",
            "append",
            "02:00:00:00:00:02",
            "dev",
            "flannel.1",
            "dst",
            "192.168.77.12",
        ],
    )
    .unwrap();
    link::run_in(ns, "tc", &["qdisc", "add", "dev", "pod1", "clsact"]).unwrap();
    let filter = "filter add dev pod1 ingress protocol all prio 1 u32 match u32 0 0 flowid 1:1";
    link::run_in(ns, "tc", &filter.split(' ').collect::<Vec<_>>()).unwrap();
    // Linux 6.1 has no such hook.
    let tcx = has_tcx().then(|| ns.run(|| attach_tcx("pod1")).unwrap());
    link::sysctl(ns, "net.ipv4.ip_forward", "1").unwrap();
    std::fs::create_dir(bpffs.join("tulle")).unwrap();
    let after = Snapshot::of(ns, Some(&bpffs)).unwrap();
    let text = diff(&before, &after);
    for (section, part) in [
        (Section::Links, "flannel.1"),
        (Section::Addresses, "10.244.1.0"),
        (Section::Routes, "10.244.2.0/24"),
        (Section::Routes, "10.7.0.0/16"),
        (Section::Rules, "10.9.9.9"),
        (Section::Neighbours, "02:00:00:00:00:02"),
        (Section::Fdb, "192.168.77.12"),
        (Section::Qdiscs, "clsact"),
        (Section::Filters, "u32"),
        (Section::Nftables, "leftover"),
        (Section::Sysctls, "ipv4 all forwarding=1"),
        (Section::Pins, "tulle"),
    ] {
        let shown = text
            .lines()
            .any(|line| line.starts_with("  + ") && line.contains(part));
        assert!(
            shown && text.contains(&format!("{section:?}\n")),
            "{section:?} {part}:\n{text}"
        );
    }
    if tcx.is_some() {
        assert!(
            text.contains("Tcx\n  + pod1 ingress testkit_next id "),
            "{text}"
        );
        drop(tcx);
        let text = diff(&after, &Snapshot::of(ns, Some(&bpffs)).unwrap());
        assert!(text.starts_with("Tcx\n  - pod1 ingress"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }
    assert!(
        !diff(
            &before.without(Section::Pins),
            &after.without(Section::Pins)
        )
        .contains("Pins")
    );
}

#[test]
fn an_agent_that_ends_or_is_not_ready_shows_its_log() {
    let cluster = ClusterBuilder::unique("agent")
        .nodes(1)
        .pods_per_node(0)
        .build()
        .unwrap();
    let node = &cluster.nodes()[0];
    let program = node.directory().join("program");
    let write = |text: &str| {
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    };
    let options = AgentOptions::new(&program, "/state").args(&["--vni", "7"]);

    write("#!/bin/sh\necho \"arguments: $*\"; exit 3\n");
    let mut agent = Agent::start(node, &options).unwrap();
    let error = agent.wait_ready(LIMIT).unwrap_err().to_string();
    assert!(
        error.contains("run --node node-1 --uplink eth0 --bpffs"),
        "{error}"
    );
    assert!(
        error.contains("exit status: 3") && error.contains("--state /state --vni 7"),
        "{error}"
    );

    write("#!/bin/sh\necho never ready\nexec sleep 1000\n");
    agent.spawn().unwrap();
    let began = Instant::now();
    agent
        .wait_until("heard", LIMIT, |agent| {
            Ok(agent.log()?.contains("never ready"))
        })
        .unwrap();
    assert!(began.elapsed() < LIMIT);
    assert!(
        node.ns()
            .processes()
            .unwrap()
            .contains(&agent.pid().unwrap())
    );
    let error = agent.spawn().unwrap_err().to_string();
    assert!(error.contains("runs already"), "{error}");
    let error = agent
        .wait_ready(Duration::from_millis(100))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("agent of node-1 is not ready within 100ms"),
        "{error}"
    );
    assert!(error.contains("never ready"), "{error}");
    let status = agent.terminate(LIMIT).unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(libc::SIGTERM)
    );
    agent.spawn().unwrap();
    let pid = agent.pid().unwrap();
    drop(agent);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

/// TCX came with Linux 6.6.
fn has_tcx() -> bool {
    let name = nix::sys::utsname::uname().unwrap();
    let release = name.release().to_str().unwrap().to_owned();
    let mut numbers = release.split('.').map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

/// Attaches a program of two instructions, "next", to a TCX hook of the calling
/// thread's namespace; it goes with the link that is returned.
fn attach_tcx(dev: &str) -> OwnedFd {
    const PROG_LOAD: i64 = 5;
    const LINK_CREATE: i64 = 28;
    const SCHED_CLS: u32 = 3;
    const TCX_INGRESS: u32 = 46;
    // r0 = -1; exit
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let license = c"GPL";
    let words = |value: u64| [value as u32, (value >> 32) as u32];
    let mut load = [0_u32; 32];
    load[..2].copy_from_slice(&[SCHED_CLS, 2]);
    load[2..4].copy_from_slice(&words(instructions.as_ptr() as u64));
    load[4..6].copy_from_slice(&words(license.as_ptr() as u64));
    for (word, part) in load[12..].iter_mut().zip(b"testkit_next".chunks(4)) {
        *word = u32::from_ne_bytes(part.try_into().unwrap());
    }
    let program = bpf(PROG_LOAD, &load);
    let index = nix::net::if_::if_nametoindex(dev).unwrap();
    let mut link = [0_u32; 32];
    link[..3].copy_from_slice(&[program.as_raw_fd().cast_unsigned(), index, TCX_INGRESS]);
    bpf(LINK_CREATE, &link)
}

fn bpf(command: i64, attributes: &[u32; 32]) -> OwnedFd {
    let (pointer, size) = (attributes.as_ptr(), size_of_val(attributes));
    // SAFETY: the pointer and its size are of one live array of plain words;
    // what its words point to lives in the caller until this returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size) };
    assert!(
        fd >= 0,
        "bpf command {command}: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: the kernel has just returned this descriptor, and only here.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}
