//! Direct server return through the overlay: clients outside, backends on another node that
//! answers them itself. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::SocketAddr;
use std::time::Duration;

use datapath_common::{Hook, Reason};
use run_services_support::{
    By, Client, EVERY_POD, EVERY_WAY, EXTERNAL, Front, SECOND_NODE, SERVICE_NETWORKS, SOON, Source,
    Town, all_well, ask, pods_of,
};
use run_support::{LIMIT, counted};
use testkit::bulk::transfer;
use testkit::cluster::UPLINK;
use testkit::echo::{LongConnection, LongReport, udp_exchange};
use testkit::manifests::{Protocol, Service};
use testkit::probe::Probe;
use testkit::server::ECHO_PORT;
use testkit::{link, wait};

const OUTSIDE: Client = Client::Outside(0);
const BOTH: &str = "IPv4,IPv6";
const FORWARDING: &str = "tulle.io/forwarding";
/// Port of the service for long connections.
const ECHO: u16 = 9000;

/// Two nodes that answer for each other, and services that ask for it.
fn returning(label: &str, args: &[&str]) -> Town {
    let town = Town::start(label, 1, &[&["--forwarding", "dsr"], args].concat());
    announce(&town, [BOTH; 2]);
    town
}

/// Which families the nodes say that they take.
fn announce(town: &Town, families: [&str; 2]) {
    let before = town.world.syncs();
    let state = &town.world.state;
    state
        .write_returning_nodes(&town.world.cluster, &families)
        .unwrap();
    town.world.wait_synced(&before);
}

/// What of clients' packets and their answers both nodes have counted: sent on by the first, come
/// out of the overlay at the second, answered there, and answered by the first.
fn seen(town: &Town) -> [u64; 4] {
    let [first, second] = [town.node(0), town.node(1)];
    let sent = |hook| counted(first, hook, Reason::Encapsulated);
    let answered = |hook| counted(first, hook, Reason::ReplyTranslated);
    [
        sent(Hook::NicIn) + sent(Hook::Xdp),
        counted(second, Hook::NicIn, Reason::Decapsulated),
        counted(second, Hook::PodFrom, Reason::ReplyTranslated),
        answered(Hook::NicIn) + answered(Hook::Xdp),
    ]
}

/// Asks by every external frontend, in every way.
fn every_frontend(town: &Town, service: &Service, source: Source) {
    all_well(EXTERNAL.into_iter().flat_map(|at| {
        EVERY_WAY.map(|by| town.spread(OUTSIDE, service, at, by, pods_of(1), source))
    }));
}

/// The same by connections alone: a datagram may be of a flow that was opened a minute ago.
fn new_connections(town: &Town, service: &Service, source: Source) {
    all_well(EXTERNAL.into_iter().flat_map(|at| {
        let connections = EVERY_WAY.into_iter().filter(|by| !by.udp);
        connections.map(move |by| town.spread(OUTSIDE, service, at, by, pods_of(1), source))
    }));
}

/// A service of long connections to these pods.
fn echo(town: &Town, n: u8, pods: &[(usize, usize)]) -> Service {
    let service = town.service(n, pods);
    service.port(Protocol::Tcp, ECHO, ECHO_PORT)
}

/// Opens connections from outside to its load balancer addresses.
fn talk(town: &Town, echo: &Service, connections: usize) -> Vec<LongConnection> {
    let (ns, every) = (town.ns(OUTSIDE), Duration::from_millis(20));
    let ips = echo.exposure.balancer_ips.iter();
    let to = ips.map(|ip| SocketAddr::new(*ip, ECHO)).cycle();
    let open = |at| LongConnection::start(ns, at, every).unwrap();
    to.take(connections).map(open).collect()
}

/// Waits until each connection has come this much further.
fn go_on(connections: &[LongConnection], echoes: u64) {
    for connection in connections {
        let before = connection.report().echoes;
        wait::until("more echoes", LIMIT, || {
            let report = connection.report();
            Ok((report.echoes >= before + echoes || report.broken.is_some()).then_some(()))
        })
        .unwrap();
    }
}

/// All of them, none broken.
fn whole(connections: Vec<LongConnection>) -> Vec<LongReport> {
    let finished = connections.into_iter().map(LongConnection::finish);
    let reports: Vec<LongReport> = finished.collect();
    for report in &reports {
        assert_eq!(report.broken, None, "{report:?}");
    }
    reports
}

fn is_answered_by_the_backends_node(town: &Town) {
    let service = town.service(90, &SECOND_NODE);
    town.world.write(&service);
    let before = seen(town);
    every_frontend(town, &service, Source::Own);
    let now = seen(town);
    let [sent, taken, answered, by_first] = [0, 1, 2, 3].map(|at| now[at] - before[at]);
    // 12 questions by each of 12 ways, of which a half are of one datagram.
    assert!(sent >= 288 && taken >= 288, "{sent}, {taken}");
    assert!(answered >= 288, "{answered}");
    assert_eq!(by_first, 0, "answers do not come back by the first node");
    // Where a backend is on the node that was asked, it sees the client too.
    let near = town.service(91, &EVERY_POD[..2]);
    town.world.write(&near);
    all_well(EXTERNAL.into_iter().flat_map(|at| {
        EVERY_WAY.map(|by| town.spread(OUTSIDE, &near, at, by, pods_of(0), Source::Own))
    }));
}

#[test]
fn the_backends_node_answers_and_its_pod_sees_the_client() {
    is_answered_by_the_backends_node(&returning("direct", &[]));
}

#[test]
fn by_xdp_too() {
    let town = Town::with_xdp("directxdp", "generic", "on");
    announce(&town, [BOTH; 2]);
    let annotated = |n: u8| {
        let mut service = town.service(n, &SECOND_NODE);
        let annotation = (FORWARDING.to_owned(), "dsr".to_owned());
        service.annotations = [annotation].into();
        town.world.write(&service);
        service
    };
    let service = annotated(92);
    // Until the first node knows the second's address on the link its stack asks for it.
    let to = town.address(&service, Front::Vip, EVERY_WAY[0]);
    town.ask(OUTSIDE, to, false, SOON).unwrap();
    let of = |hook| counted(town.node(0), hook, Reason::Encapsulated);
    let before = [Hook::Xdp, Hook::NicIn].map(of);
    every_frontend(&town, &service, Source::Own);
    let [by_xdp, left] =
        [(Hook::Xdp, before[0]), (Hook::NicIn, before[1])].map(|(hook, before)| of(hook) - before);
    assert!(by_xdp >= 288 && left <= by_xdp / 4, "{by_xdp}, {left} left");
}

#[test]
fn a_pod_of_the_asked_node_and_processes_see_no_difference() {
    let town = returning("inside", &[]);
    let service = town.service(93, &SECOND_NODE);
    town.world.write(&service);
    for (client, source) in [
        (Client::Pod(0, 0), Source::NodeSide(0)),
        (Client::Node(0), Source::NodeSide(0)),
    ] {
        all_well(EXTERNAL.into_iter().flat_map(|at| {
            EVERY_WAY.map(|by| town.spread(client, &service, at, by, pods_of(1), source))
        }));
    }
    // A pod of the backends' node that asks the other node meets its own neighbours by it.
    all_well(EVERY_WAY.map(|by| {
        let at = Front::NodePort(0);
        town.spread(
            Client::Pod(1, 0),
            &service,
            at,
            by,
            pods_of(1),
            Source::NodeSide(1),
        )
    }));
}

#[test]
fn a_pod_of_another_node_with_its_own_address_is_hidden() {
    let town = returning("excluded", &["--masquerade-exclude", "192.168.0.0/16"]);
    for (n, pods, here) in [(99, &SECOND_NODE[..], 1), (100, &EVERY_POD[..2], 0)] {
        let service = town.service(n, pods);
        town.world.write(&service);
        let of_v4 = EVERY_WAY.into_iter().filter(|by| !by.v6);
        all_well(of_v4.map(|by| {
            let (client, at) = (Client::Pod(1, 0), Front::NodePort(0));
            let source = Source::NodeSide(0);
            town.spread(client, &service, at, by, pods_of(here), source)
        }));
    }
}

#[test]
fn a_node_that_says_nothing_is_sent_translated_packets() {
    let town = returning("silent", &[]);
    announce(&town, [BOTH, "IPv4"]);
    let service = town.service(94, &SECOND_NODE);
    town.world.write(&service);
    for by in EVERY_WAY {
        let source = if by.v6 {
            Source::NodeSide(0)
        } else {
            Source::Own
        };
        let at = Front::Vip;
        all_well([town.spread(OUTSIDE, &service, at, by, pods_of(1), source)]);
    }
}

#[test]
fn connections_stay_as_they_were_opened() {
    let mut town = returning("switched", &[]);
    announce(&town, [BOTH, ""]);
    let mut service = echo(&town, 95, &SECOND_NODE);
    town.world.write(&service);
    let hidden = talk(&town, &service, 4);
    // The node begins to answer: who was hidden stays so.
    announce(&town, [BOTH; 2]);
    let shown = talk(&town, &service, 4);
    go_on(&hidden, 20);
    new_connections(&town, &service, Source::Own);
    // The service asks for it no more, and then again.
    for how in ["snat", "dsr"] {
        let annotation = (FORWARDING.to_owned(), how.to_owned());
        service.annotations = [annotation].into();
        town.world.write(&service);
        go_on(&hidden, 20);
        go_on(&shown, 20);
        let source = if how == "dsr" {
            Source::Own
        } else {
            Source::NodeSide(0)
        };
        new_connections(&town, &service, source);
    }
    // Agents are killed and come again.
    for agent in &mut town.world.agents {
        agent.restart(LIMIT).unwrap();
    }
    go_on(&hidden, 20);
    go_on(&shown, 20);
    // Backends come, and go again.
    let endpoints = service.endpoints.clone();
    for near in [true, false] {
        service.endpoints.clone_from(&endpoints);
        if near {
            let more = EVERY_POD[..2].iter();
            service.endpoints.extend(more.map(|(node, pod)| {
                testkit::manifests::Endpoint::of(town.node(*node), town.pod(*node, *pod))
            }));
        }
        town.world.write(&service);
        go_on(&hidden, 20);
        go_on(&shown, 20);
    }
    whole(hidden);
    whole(shown);
}

#[test]
fn with_maglev_connections_move_between_nodes() {
    let town = returning("moving", &["--scheduler", "maglev"]);
    let service = echo(&town, 96, &EVERY_POD);
    town.world.write(&service);
    let connections = talk(&town, &service, 24);
    let (client, before) = (town.outsider(0), seen(&town));
    for node in [1, 0, 1, 0, 1, 0] {
        for network in SERVICE_NETWORKS {
            client.route(network, town.node(node)).unwrap();
        }
        go_on(&connections, 10);
    }
    let pods: std::collections::BTreeSet<String> = whole(connections)
        .into_iter()
        .map(|report| report.pod)
        .collect();
    assert_eq!(pods.len(), 4, "{pods:?}");
    let now = seen(&town);
    // Each node has sent clients of the other's pods there.
    assert!(now[0] - before[0] > 100, "{now:?} {before:?}");
    let second = counted(town.node(1), Hook::NicIn, Reason::Encapsulated);
    assert!(second > 100, "{second}");
    assert_eq!(now[3], before[3], "no answer goes back by another node");
}

#[test]
fn what_does_not_fit_the_overlay_is_told() {
    let town = returning("narrow", &[]);
    let service = town
        .service(97, &SECOND_NODE[..1])
        .port(Protocol::Tcp, 77, ECHO_PORT);
    town.world.write(&service);
    let ns = town.ns(OUTSIDE);
    let pod = town.pod(1, 0);
    link::set_mtu(pod.ns(), UPLINK, 1500).unwrap();
    wait::until("larger MTU at the pod's link", LIMIT, || {
        let mtu = link::mtu(town.node(1).ns(), pod.host_if())?;
        Ok((mtu == 1500).then_some(()))
    })
    .unwrap();
    for v6 in [false, true] {
        let to = town.address(&service, Front::Vip, By { udp: true, v6 });
        let probe = Probe::connect(ns, to).unwrap();
        let headers = if v6 { 48 } else { 28 };
        probe.send(&vec![7; 1500 - headers]).unwrap();
        let error = probe.icmp_error(SOON).unwrap();
        assert_eq!(error.mtu, 1450, "{to}");
        udp_exchange(probe.socket(), &vec![7; 1450 - headers], SOON).unwrap();
        // A connection to a pod that asks for segments of the client's link finds out by itself.
        let to = SocketAddr::new(service.exposure.external_ips[usize::from(v6)], 77);
        let before = counted(town.node(0), Hook::NicIn, Reason::TooBig);
        let report = transfer(ns, to, 1 << 20, LIMIT).unwrap();
        assert_eq!(report.pod, service.endpoints[0].pod);
        let told = counted(town.node(0), Hook::NicIn, Reason::TooBig) - before;
        assert!(told > 0, "{to}");
    }
}

#[test]
fn a_port_that_nobody_listens_on_is_told_as_the_frontends() {
    let town = returning("closed", &[]);
    let service = town
        .service(98, &SECOND_NODE[..1])
        .port(Protocol::Udp, 78, 4);
    town.world.write(&service);
    for ip in &service.exposure.balancer_ips {
        let to = SocketAddr::new(*ip, 78);
        let refused = ask(town.ns(OUTSIDE), to, true, SOON).unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
    }
}
