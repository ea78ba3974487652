//! Connections that kube-proxy's rules opened stay open while Tulle takes a node over: through
//! the start of the agent, the removal of the rules, and a restart. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;
mod run_takeover_support;

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use run_support::{LIMIT, START};
use run_takeover_support::street::{Client, Door, Kind, Street};
use run_takeover_support::{Proxy, said, saved, takeover};
use testkit::agent::Agent;
use testkit::echo::{LongConnection, udp_who};
use testkit::http::{Load, LoadOptions};

/// Between two counters of a connection.
const BEAT: Duration = Duration::from_millis(20);

/// A connection with what it is, for people.
struct Open {
    what: String,
    line: LongConnection,
}

/// A connected socket of datagrams, and who answered first.
struct Datagrams {
    what: String,
    socket: UdpSocket,
    pod: String,
}

/// Sockets of datagrams that ask again and again, and what was wrong with the answers.
struct Chatter {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(Vec<String>, u32, u32)>>,
}

impl Chatter {
    fn start(all: Vec<Datagrams>) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let chat = |one: Datagrams| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let (mut wrong, mut asked, mut lost) = (Vec::new(), 0, 0);
                while !stop.load(Ordering::Relaxed) {
                    asked += 1;
                    match udp_who(&one.socket, Duration::from_secs(1)) {
                        Ok((pod, _)) if pod == one.pod => {}
                        Ok((pod, _)) => wrong.push(format!("{}: {pod}, not {}", one.what, one.pod)),
                        Err(_) => lost += 1,
                    }
                    std::thread::sleep(Duration::from_millis(250));
                }
                (wrong, asked, lost)
            })
        };
        let threads = all.into_iter().map(chat).collect();
        Self { stop, threads }
    }

    /// Every answer came from the same pod, and few were lost.
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut wrong, mut asked, mut lost) = (Vec::new(), 0, 0);
        for thread in self.threads {
            let (more, times, none) = thread.join().unwrap();
            wrong.extend(more);
            asked += times;
            lost += none;
        }
        println!("{asked} datagrams, {lost} without an answer");
        wrong.dedup();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(lost * 20 < asked, "{lost} of {asked} datagrams were lost");
    }
}

fn open(street: &Street, times: usize) -> Vec<Open> {
    let mut all = Vec::new();
    for (client, door) in street.ways() {
        for _ in 0..times {
            let what = format!("{client:?} at {door:?}");
            let line = LongConnection::start(street.ns(client), street.tcp(door), BEAT);
            let line = line.unwrap_or_else(|error| panic!("{what}: {error}"));
            all.push(Open { what, line });
        }
    }
    all
}

fn open_datagrams(street: &Street) -> Vec<Datagrams> {
    let ways = street.ways().into_iter();
    // A process that answers by a socket of all addresses does so from another one than it was asked at.
    ways.filter(|(_, door)| !matches!(door, Door::Host(_)))
        .map(|(client, door)| {
            let what = format!("datagrams, {client:?} at {door:?}");
            let socket = testkit::echo::udp_connect(street.ns(client), street.udp(door)).unwrap();
            let (pod, _) = udp_who(&socket, LIMIT).unwrap_or_else(|e| panic!("{what}: {e}"));
            Datagrams { what, socket, pod }
        })
        .collect()
}

/// Every connection goes on: it has an echo from now.
fn all_go_on(step: &str, open: &[Open]) {
    println!("{step}");
    let before: Vec<u64> = open.iter().map(|open| open.line.report().echoes).collect();
    let mut failed = Vec::new();
    for (open, before) in open.iter().zip(before) {
        let waited = testkit::wait::until("an echo", Duration::from_secs(8), || {
            let report = open.line.report();
            Ok((report.echoes > before + 3 || report.broken.is_some()).then_some(()))
        });
        let report = open.line.report();
        if let Some(why) = &report.broken {
            failed.push(format!("{} ({}): {why}", open.what, report.pod));
        } else if let Err(error) = waited {
            failed.push(format!("{} ({}): {error}", open.what, report.pod));
        }
    }
    assert!(
        failed.is_empty(),
        "{step}: {} of {} broken:\n{}",
        failed.len(),
        open.len(),
        failed.join("\n")
    );
}

fn connections_stay(label: &str, proxy: Proxy, kind: Kind) {
    let street = Street::new(label, kind);

    street.serve_by(proxy);
    let lines = open(&street, 3);
    let datagrams = Chatter::start(open_datagrams(&street));
    all_go_on("before", &lines);
    // New connections all the while, one after the other.
    let options = LoadOptions {
        pause: Duration::from_millis(200),
        // What is opened while flows change hands is opened a second or three later.
        timeout: Duration::from_secs(10),
        ..LoadOptions::steady(Duration::from_mins(5))
    };
    let load = |client, door| {
        let load = Load::start(street.ns(client), street.http(door), &options).unwrap();
        (format!("{client:?} at {door:?}"), load)
    };
    let loads: Vec<(String, Load)> = street
        .ways()
        .into_iter()
        .filter(|(_, door)| !matches!(door, Door::Host(_)))
        // While the kernel's rules serve processes of the node, it gives them ports that Tulle
        // gives others (docs/takeover.md).
        .filter(|(client, _)| !matches!(client, Client::Node(_)))
        .map(|(client, door)| load(client, door))
        .collect();

    let mut agents = Vec::new();
    for node in street.nodes() {
        let mut agent = Agent::start(node, &street.world.options).unwrap();
        agent.wait_ready(START).unwrap();
        let log = agent.log().unwrap();
        assert!(log.contains("took over "), "{log}");
        assert!(!log.contains("through a former proxy may break"), "{log}");
        all_go_on(&format!("agent of {}", node.name()), &lines);
        agents.push(agent);
    }
    for node in street.nodes() {
        let done = said(&takeover(node, &[]));
        assert!(done.contains("removed "), "{done}");
        let own = done.contains("of this node's own processes go on through the kernel");
        assert_eq!(own, node.index() == 1, "{done}");
        all_go_on(&format!("takeover of {}", node.name()), &lines);
    }
    for agent in &mut agents {
        agent.restart(START).unwrap();
    }
    all_go_on("restart", &lines);
    for (what, load) in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failures.len(), 0, "{what}: {report}");
    }
    datagrams.finish();
    let more = open(&street, 1);
    all_go_on("new ones", &more);
    let mut gaps = 0;
    for open in lines {
        let report = open.line.finish();
        assert_eq!(report.broken, None, "{}", open.what);
        gaps += report.gaps.len();
        println!(
            "{}: {} echoes, longest {:?}",
            open.what, report.echoes, report.longest
        );
    }
    println!("{gaps} gaps");
    // Once no connection of a process of the node is left, the last trace goes.
    for open in more {
        open.line.finish();
    }
    street.forget_tracked();
    for node in street.nodes() {
        said(&takeover(node, &[]));
        assert!(!saved(node).contains("tulle-keeps-nat"), "{}", saved(node));
    }
}

#[test]
fn connections_through_rules_of_mode_iptables_stay() {
    connections_stay("tci", Proxy::Iptables, Kind::Sockets);
}

#[test]
fn connections_through_older_tables_stay() {
    connections_stay("tcl", Proxy::Legacy, Kind::Routed);
}

#[test]
fn connections_through_rules_of_mode_nftables_stay() {
    connections_stay("tcn", Proxy::Nftables, Kind::Routed);
}

#[test]
fn connections_of_pods_behind_a_bridge_stay() {
    connections_stay("tcb", Proxy::Iptables, Kind::Bridged);
}
