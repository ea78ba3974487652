//! What this kernel's verifier says of each program, under each set of
//! features that a node may have. Needs root. Prints a line for each program:
//!
//! `verdict <features> <program> verified <instructions walked> <octets after rewriting>`
//! `verdict <features> <program> refused <last line of the verifier's log>`

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;

use std::borrow::Cow;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::EbpfLoader;
use aya::programs::{Program, ProgramError, ProgramInfo};
use datapath_common::{Config, Feature, Hook, Ip4, Ip6, Mac, Part, SocketHook, XdpPart, maps};
use kernel_support::{on_node, options, small};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tulle_agent::kernel::loader::OBJECT;
use tulle_agent::kernel::loading::uninterrupted;
use tulle_agent::kernel::probe::{Sources, probe, tells_mptcp};
use tulle_agent::kernel::{AttachKind, Datapath};

/// Lines of a refusal that are shown.
const SHOWN_LINES: usize = 30;

/// The sets of features, by name.
const FEATURES: [(&str, u32); 3] = [
    ("none", 0),
    ("pods", Feature::OVERLAY | Feature::DECAP_6_IN_4),
    (
        "all",
        Feature::OVERLAY
            | Feature::DECAP_6_IN_4
            | Feature::UPLINK_SERVICES
            | Feature::MASQUERADE
            | Feature::ICMP_ERRORS
            | Feature::HOLD_FRAGMENTS
            | Feature::SERVICE_NETWORKS
            | Feature::COUNT_SERVICES
            | Feature::XDP_SERVICES
            | Feature::POD_SOCKETS
            | Feature::NODE_SOCKETS,
    ),
];

/// A node as it is: with what is unset, much of the programs could not be reached.
fn config(features: u32) -> Config {
    let net6 = |last| Ip6::new([0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, last]);
    let mut mask6 = [0; 16];
    mask6[..8].fill(0xff);
    Config {
        features,
        node_ip4: Ip4::new([192, 0, 2, 1]),
        node_ip6: Ip6::new([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        pod_net4: Ip4::new([10, 244, 1, 0]),
        pod_mask4: Ip4::new([255, 255, 255, 0]),
        router_ip4: Ip4::new([192, 0, 2, 1]),
        pod_net6: net6(0),
        pod_mask6: Ip6::new(mask6),
        router_ip6: net6(0),
        uplink: 1,
        vtep: 2,
        bridge: 3,
        snat_first: 10_000,
        snat_ports: 20_000,
        vtep_mac: Mac::new([0x0a, 0x58, 192, 0, 2, 1]),
        uplink_mac: Mac::new([2, 0, 0, 0, 0, 1]),
        flows_per_tick: 1000,
        errors_per_tick: 100,
        ..Config::EMPTY
    }
}

/// A number that older kernels do not tell.
fn or_dash(number: Option<impl Display>) -> String {
    number.map_or_else(|| "-".into(), |n| n.to_string())
}

/// The file that `TULLE_BPF_OBJECT` names, otherwise what the agent embeds.
fn object() -> Cow<'static, [u8]> {
    std::env::var("TULLE_BPF_OBJECT").map_or(Cow::Borrowed(OBJECT), |path| {
        Cow::Owned(std::fs::read(path).expect("the object"))
    })
}

/// Loads one program alone, so that a refusal of another does not hide it.
fn load(name: &str, config: &Config) -> Result<ProgramInfo, ProgramError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", config, true);
    for map in maps::ALL {
        if let Some(entries) = small().entries(map.name) {
            loader.map_max_entries(map.name, entries);
        }
    }
    let mut ebpf = loader.load(&object()).expect("the maps are made");
    let program = ebpf.program_mut(name).expect("the program");
    match program {
        Program::Xdp(xdp) => uninterrupted(|| xdp.load())?,
        Program::SchedClassifier(classifier) => uninterrupted(|| classifier.load())?,
        Program::CgroupSock(socket) => uninterrupted(|| socket.load())?,
        Program::CgroupSockAddr(socket) => uninterrupted(|| socket.load())?,
        other => panic!("{name} is {:?}", other.prog_type()),
    }
    program.info()
}

/// The end of what the verifier said.
fn log_of(error: &ProgramError) -> String {
    let text = match error {
        ProgramError::LoadError { verifier_log, .. } => verifier_log.to_string(),
        other => other.to_string(),
    };
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

#[test]
fn every_program_is_verified() {
    let mut refused = Vec::new();
    let kernel = probe(&Sources::default(), Path::new("/sys/fs/bpf")).unwrap();
    // Where the agent has them called, nothing else need be verified.
    let ways: &[_] = if kernel.calls {
        &[("", Feature::CALLS)]
    } else {
        &[("", 0), ("+calls", Feature::CALLS)]
    };
    // Whether it is used or not: what the kernel can do.
    let mptcp = if tells_mptcp() {
        Feature::TELLS_MPTCP
    } else {
        0
    };
    let sets = FEATURES.iter().flat_map(|(name, bits)| {
        let with = |(how, more): &(&str, u32)| (format!("{name}{how}"), bits | more | mptcp);
        ways.iter().map(with).collect::<Vec<_>>()
    });
    for (features, bits) in sets {
        let hooks = Hook::ALL.map(|hook| format!("tulle_{}", hook.name()));
        let parts = Part::ALL.iter().map(|part| part.program().to_owned());
        let at_driver = XdpPart::ALL.iter().map(|part| part.program().to_owned());
        let parts = parts.chain(at_driver);
        let sockets = SocketHook::ALL.map(|hook| hook.program().to_owned());
        for name in hooks.into_iter().chain(parts).chain(sockets) {
            let subject = format!("{features} {name}");
            match load(&name, &config(bits)) {
                Ok(info) => println!(
                    "verdict {subject} verified {} {}",
                    or_dash(info.verified_instruction_count()),
                    or_dash(info.size_translated()),
                ),
                Err(error) => {
                    let log = log_of(&error);
                    println!("verdict {subject} refused {}", cause(&log));
                    println!("{log}");
                    refused.push(subject);
                }
            }
        }
    }
    assert!(
        refused.is_empty(),
        "refused, with the end of the log above: {}",
        refused.join(", ")
    );
}

/// The last line that is not about how long the verifier took.
fn cause(log: &str) -> &str {
    log.lines()
        .rev()
        .find(|line| {
            !["verification time", "stack depth", "processed"]
                .iter()
                .any(|figure| line.starts_with(figure))
        })
        .unwrap_or_default()
}

#[test]
fn the_agent_loads_and_adopts_with_what_the_probe_found() {
    on_node(|node| {
        let kernel = probe(&Sources::default(), &node.pins).unwrap();
        let found = [
            (kernel.decap_6_in_4, Feature::DECAP_6_IN_4),
            (kernel.calls, Feature::CALLS),
        ];
        let found = found.into_iter().filter(|(on, _)| *on);
        let config = config(found.fold(Feature::OVERLAY, |bits, (_, bit)| bits | bit));
        let open = || Datapath::open(&node.pins, &config, &small(), &options(kernel.attach));
        let first = open().unwrap_or_else(|e| panic!("{e}"));
        assert!(!first.opened().all_adopted());
        let old = first.program_ids();
        drop(first);
        let second = open().unwrap_or_else(|e| panic!("{e}"));
        assert!(second.opened().all_adopted(), "{:?}", second.opened());
        assert_ne!(second.program_ids(), old);
        if kernel.version < (6, 6) {
            assert_eq!(kernel.attach, AttachKind::Clsact);
        }
    });
}

/// Nothing: the signal has only to arrive.
extern "C" fn heard(_: nix::libc::c_int) {}

#[test]
fn signals_do_not_stop_a_load() {
    on_node(|node| {
        let action = SigAction::new(
            SigHandler::Handler(heard),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        // SAFETY: the handler does nothing, so it is safe at any instruction.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let loader = pthread_self();
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let signals = std::thread::spawn(move || {
            // More often than any of the programs is verified.
            while !seen.load(Ordering::Relaxed) {
                pthread_kill(loader, Signal::SIGUSR1).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let features = Feature::OVERLAY | Feature::DECAP_6_IN_4;
        let options = options(AttachKind::Clsact);
        let opened = Datapath::open(&node.pins, &config(features), &small(), &options);
        done.store(true, Ordering::Relaxed);
        signals.join().unwrap();
        opened.unwrap_or_else(|e| panic!("{e}"));
    });
}
