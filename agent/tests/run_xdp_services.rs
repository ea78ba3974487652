//! Clients outside and backends on other nodes, by XDP. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::collections::BTreeSet;
use std::time::Duration;

use datapath_common::{Hook, Reason, TICK_NANOS};
use run_services_support::{Client, EVERY_WAY, EXTERNAL, SOON, Source, Town, pods_of};
use run_support::{LIMIT, counted};
use testkit::cluster::UPLINK;
use testkit::manifests::Service;
use testkit::{link, wait};
use tulle_cli::datapath::Datapath;

const OUTSIDE: Client = Client::Outside(0);

/// A service with the pods of the second node only.
fn remote(town: &Town, n: u8) -> Service {
    let service = town.service(n, &[(1, 0), (1, 1)]);
    town.world.write(&service);
    service
}

/// What the first node's programs have sent to other nodes, and back from there.
fn sent(town: &Town, hook: Hook) -> [u64; 2] {
    [Reason::Encapsulated, Reason::ReplyTranslated]
        .map(|reason| counted(town.node(0), hook, reason))
}

/// Packets through the first node's services, each direction, by the counters for services.
fn traffic(town: &Town) -> [u64; 2] {
    let datapath = Datapath::open(&town.node(0).bpffs()).unwrap();
    let frontends = datapath.frontends().unwrap();
    let numbers: BTreeSet<u32> = frontends.iter().map(|row| row.value.service).collect();
    let rows = datapath.service_traffic(&numbers).unwrap();
    rows.values().fold([0; 2], |[there, back], traffic| {
        [there + traffic.packets, back + traffic.reply_packets]
    })
}

/// What XDP and the stack have sent, and the counters for services, between two packets: the last
/// of a connection may come late.
fn at_rest(town: &Town) -> ([u64; 2], [u64; 2], [u64; 2]) {
    let read = || {
        (
            sent(town, Hook::Xdp),
            sent(town, Hook::NicIn),
            traffic(town),
        )
    };
    let mut last = read();
    let poll = || {
        std::thread::sleep(Duration::from_millis(50));
        let now = read();
        let rests = now == last;
        last = now;
        Ok(rests.then_some(now))
    };
    wait::until("no packet to come", LIMIT, poll).unwrap()
}

fn is_served_by_xdp(mode: &str) {
    let town = Town::with_xdp(mode, mode, "on");
    if mode == "native" {
        let uplink = link::ip_json(town.node(0).ns(), &["-d", "link", "show", UPLINK]).unwrap();
        let program = uplink[0]["xdp"]["prog"]["id"].to_string();
        // Without a program of its own a veth does not look at what its peer's driver sends
        // (Linux, drivers/net/veth.c: veth_xdp_flush); any that passes them on will do.
        let switch = town.world.cluster.switch();
        let attach = ["net", "attach", "xdpdrv", "id", &program, "dev", "node-1"];
        link::run_in(switch, "bpftool", &attach).unwrap();
    }
    let service = remote(&town, 1);
    // Once each node and host is known: until then the stack asks who they are.
    for by in EVERY_WAY {
        let to = town.address(&service, EXTERNAL[0], by);
        town.ask(OUTSIDE, to, by.udp, SOON).unwrap();
    }
    for at in EXTERNAL {
        for by in EVERY_WAY {
            let (xdp, stack, counts) = at_rest(&town);
            town.spread(OUTSIDE, &service, at, by, pods_of(1), Source::NodeSide(0))
                .unwrap();
            let (now, left, after) = at_rest(&town);
            for way in [0, 1] {
                let (by_xdp, left) = (now[way] - xdp[way], left[way] - stack[way]);
                // Once a second for each next hop, so that the kernel knows it still.
                assert!(
                    by_xdp + left >= 24 && left <= by_xdp / 4,
                    "{at:?} {by:?}, way {way}: {by_xdp}, {left} left"
                );
                let counted = after[way] - counts[way];
                assert_eq!(
                    counted,
                    by_xdp + left,
                    "{at:?} {by:?}, way {way}: each once"
                );
            }
        }
    }
}

#[test]
fn remote_backends_are_reached_by_xdp_in_the_stack() {
    is_served_by_xdp("generic");
}

#[test]
fn remote_backends_are_reached_by_xdp_in_the_driver() {
    is_served_by_xdp("native");
}

#[test]
fn what_xdp_cannot_send_the_stack_does_and_counts_once() {
    let town = Town::with_xdp("left", "generic", "on");
    let service = remote(&town, 1);
    let to = town.address(&service, EXTERNAL[1], EVERY_WAY[0]);
    let ask = || town.ask(OUTSIDE, to, false, SOON).unwrap();
    ask();
    // Nobody knows the other node: the stack asks who it is.
    let (node, other) = (town.node(0), town.node(1).ips()[0].to_string());
    link::ip(node.ns(), &["neigh", "flush", "dev", UPLINK]).unwrap();
    // XDP remembers for a tick what the kernel told it.
    std::thread::sleep(Duration::from_nanos(TICK_NANOS));
    let (stack, counts) = (sent(&town, Hook::NicIn), traffic(&town));
    let xdp = sent(&town, Hook::Xdp);
    ask();
    let left = sent(&town, Hook::NicIn)[0] - stack[0];
    assert!(left >= 1, "{other} was known");
    let by_xdp = sent(&town, Hook::Xdp)[0] - xdp[0];
    assert_eq!(traffic(&town)[0] - counts[0], left + by_xdp, "each once");
    // A sender whose checksums a device is to complete.
    let client = town.ns(OUTSIDE);
    link::run_in(client, "ethtool", &["-K", UPLINK, "tx", "on"]).unwrap();
    let (xdp, stack) = (sent(&town, Hook::Xdp), sent(&town, Hook::NicIn));
    for _ in 0..8 {
        ask();
    }
    assert!(
        sent(&town, Hook::NicIn)[0] - stack[0] >= 8 * 4,
        "its data goes by the stack"
    );
    // Whole checksums that look unfinished by chance are left to the stack, too.
    assert!(sent(&town, Hook::Xdp)[0] - xdp[0] <= 8 * 4);
}

#[test]
fn switched_off_it_leaves_all_to_the_stack() {
    let town = Town::with_xdp("stack", "generic", "off");
    let service = remote(&town, 1);
    let status = town.world.agents[0].status().unwrap();
    let mut features = status.features.iter();
    let how = features.find(|f| f.name == "services for clients outside");
    let how = how.unwrap();
    assert_eq!(
        (how.chosen.as_str(), how.why.as_str()),
        ("by classifiers", "switched off")
    );
    for at in EXTERNAL {
        for by in EVERY_WAY {
            town.spread(OUTSIDE, &service, at, by, pods_of(1), Source::NodeSide(0))
                .unwrap();
        }
    }
    assert_eq!(sent(&town, Hook::Xdp), [0, 0]);
}

#[test]
fn a_service_without_endpoints_is_refused_and_comes_back() {
    let town = Town::with_xdp("refused", "generic", "on");
    let mut service = remote(&town, 1);
    let to = town.address(&service, EXTERNAL[1], EVERY_WAY[0]);
    town.ask(OUTSIDE, to, false, SOON).unwrap();
    let endpoints = std::mem::take(&mut service.endpoints);
    town.world.write(&service);
    let refused = town.ask(OUTSIDE, to, false, SOON).unwrap_err();
    assert!(refused.to_string().contains("refused"), "{refused}");
    service.endpoints = endpoints;
    town.world.write(&service);
    wait::until("an answer", LIMIT, || {
        Ok(town.ask(OUTSIDE, to, false, Duration::from_secs(1)).ok())
    })
    .unwrap();
}

#[test]
fn a_node_whose_link_address_changed_unheard_is_found_again() {
    let town = Town::with_xdp("stale", "generic", "on");
    let service = remote(&town, 1);
    let to = town.address(&service, EXTERNAL[1], EVERY_WAY[0]);
    town.ask(OUTSIDE, to, false, SOON).unwrap();
    // Nobody asks for the first node, which would tell it who they are.
    let first = town.node(0).ips()[0].to_string();
    for ns in [
        town.ns(OUTSIDE),
        town.node(1).ns(),
        town.world.cluster.switch(),
    ] {
        link::ip(ns, &["neigh", "flush", "to", &first]).unwrap();
    }
    for ns in [town.ns(OUTSIDE), town.node(1).ns()] {
        let known = [
            "lladdr",
            "02:77:00:00:00:01",
            "dev",
            UPLINK,
            "nud",
            "permanent",
        ];
        link::ip(ns, &[&["neigh", "replace", &first], &known[..]].concat()).unwrap();
    }
    // What the kernel knows of the second is old: the address is the client's by now.
    let other = town.node(1).ips()[0].to_string();
    let old = ["lladdr", "02:0e:00:00:00:01", "dev", UPLINK, "nud", "stale"];
    let replace = [&["neigh", "replace", &other], &old[..]].concat();
    link::ip(town.node(0).ns(), &replace).unwrap();
    // The kernel waits 5 s for a sign of life, asks three times, and then everybody.
    wait::until("an answer", LIMIT, || {
        Ok(town.ask(OUTSIDE, to, false, Duration::from_secs(1)).ok())
    })
    .unwrap();
}
