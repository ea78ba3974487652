//! How new flows are given a backend: by client, by weight, by Maglev tables. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use datapath_common::FrontendFlags;
use run_services_support::{
    ALL, By, Client, EVERY_POD, EVERY_WAY, Front, SERVICE_NETWORKS, SOON, Town, pods_of,
};
use run_support::LIMIT;
use testkit::echo::{LongConnection, udp_who};
use testkit::manifests::{Protocol, Service};
use testkit::server::ECHO_PORT;
use testkit::{NetNs, wait};
use tulle_cli::datapath::Datapath;
use tulle_cli::tables::FrontendRow;

/// Port of the service for long connections.
const ECHO: u16 = 9000;
const SCHEDULER: &str = "tulle.io/scheduler";
const WEIGHTS: &str = "tulle.io/weights";
const V4: By = By {
    udp: true,
    v6: false,
};

/// Writes the service anew with these annotations and no others.
fn annotate(town: &Town, service: &mut Service, annotations: &[(&str, &str)]) {
    let annotations = annotations.iter();
    let annotations = annotations.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    service.annotations = annotations.collect();
    town.world.write(service);
}

/// A service of long connections: what every pod echoes.
fn echo(town: &Town, n: u8) -> Service {
    let service = town.service(n, &[]).endpoints(town.world.cluster.pods());
    service.port(Protocol::Tcp, ECHO, ECHO_PORT)
}

/// Opens connections of the first pod to it, in both families.
fn talk(town: &Town, echo: &Service, connections: usize) -> Vec<LongConnection> {
    let (ns, every) = (town.ns(Client::Pod(0, 0)), Duration::from_millis(20));
    let to = echo.ips.iter().map(|ip| SocketAddr::new(*ip, ECHO)).cycle();
    let open = |at| LongConnection::start(ns, at, every).unwrap();
    to.take(connections).map(open).collect()
}

/// How often each pod answers.
fn answers(
    town: &Town,
    client: Client,
    to: SocketAddr,
    udp: bool,
    times: u32,
) -> BTreeMap<String, u32> {
    let mut answers = BTreeMap::new();
    for _ in 0..times {
        let answer = town.ask(client, to, udp, SOON).unwrap();
        *answers.entry(answer.pod).or_default() += 1;
    }
    answers
}

#[test]
fn kp_161_by_source_a_client_keeps_its_backend() {
    let town = Town::start("source", 2, &["--scheduler", "source-hash"]);
    let service = town.service(51, &EVERY_POD);
    town.world.write(&service);
    let clients = EVERY_POD.map(|(node, pod)| Client::Pod(node, pod));
    let clients = clients.into_iter().chain([0, 1].map(Client::Outside));
    let mut chosen = BTreeSet::new();
    for client in clients {
        for by in EVERY_WAY {
            let to = town.address(&service, Front::Vip, by);
            let pods = answers(&town, client, to, by.udp, 12);
            assert_eq!(pods.len(), 1, "{client:?} by {by:?}: {pods:?}");
            chosen.extend(pods.into_keys());
        }
    }
    assert!(chosen.len() > 1, "all clients have {chosen:?}");
}

#[test]
fn weights_share_new_flows_and_drain() {
    let town = Town::start("weights", 0, &[]);
    let mut service = town.service(52, &EVERY_POD);
    let (client, at) = (Client::Pod(0, 0), Front::ClusterIp);
    let first = town.pod(0, 0).ips().into_iter().map(|ip| format!("{ip}=9"));
    let heavy = first.collect::<Vec<String>>().join(",");
    annotate(&town, &mut service, &[(WEIGHTS, &heavy)]);
    for by in EVERY_WAY {
        let to = town.address(&service, at, by);
        let shares = answers(&town, client, to, by.udp, 120);
        // 90 of 120 are meant; 60 are six deviations away.
        assert!(shares[ALL[0]] > 60, "{by:?}: {shares:?}");
        assert!(shares.len() > 2, "{by:?}: {shares:?}");
    }
    // Connections outlive the weight 0 of their backend; nothing new comes.
    let mut echo = echo(&town, 53);
    town.world.write(&echo);
    let connections = talk(&town, &echo, 12);
    let cidrs = town.node(0).pod_cidr4().to_string();
    let cidrs = format!("{cidrs}=0,{}=0", town.node(0).pod_cidr6().unwrap());
    annotate(&town, &mut echo, &[(WEIGHTS, &cidrs)]);
    annotate(&town, &mut service, &[(WEIGHTS, &cidrs)]);
    for by in EVERY_WAY {
        let to = town.address(&service, at, by);
        let shares = answers(&town, client, to, by.udp, 24);
        let pods: Vec<&str> = shares.keys().map(String::as_str).collect();
        assert_eq!(pods, pods_of(1), "{by:?}");
    }
    let reports: Vec<_> = connections
        .into_iter()
        .map(LongConnection::finish)
        .collect();
    let drained = reports
        .iter()
        .filter(|r| pods_of(0).contains(&r.pod.as_str()));
    assert!(drained.count() > 0, "{reports:?}");
    for report in reports {
        assert_eq!(report.broken, None, "{report:?}");
    }
}

/// Who answers a client at `port` of its own.
fn asked_from(ns: &NetNs, port: u16, to: SocketAddr) -> String {
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = ns.run(|| UdpSocket::bind((any, port))).unwrap().unwrap();
    ns.run(|| socket.connect(to)).unwrap().unwrap();
    udp_who(&socket, SOON).unwrap().0
}

#[test]
fn with_maglev_every_node_chooses_the_same() {
    let town = Town::start(
        "maglev",
        1,
        &["--scheduler", "maglev", "--maglev-slots", "251"],
    );
    let service = town.service(54, &EVERY_POD);
    town.world.write(&service);
    let client = town.outsider(0);
    let mut pods = BTreeSet::new();
    for v6 in [false, true] {
        let to = town.address(&service, Front::Vip, By { v6, ..V4 });
        let ask = |node: usize| {
            for network in SERVICE_NETWORKS {
                client.route(network, town.node(node)).unwrap();
            }
            let ports = 20_000..20_040;
            ports
                .map(|port| asked_from(client.ns(), port, to))
                .collect::<Vec<String>>()
        };
        let (by_first, by_second) = (ask(0), ask(1));
        assert_eq!(by_first, by_second);
        pods.extend(by_first);
    }
    assert_eq!(pods.into_iter().collect::<Vec<_>>(), ALL);
}

const ROUNDS: u32 = 5;

/// Like [`answers`], but no two datagrams are of one flow by chance.
fn new_flows(
    town: &Town,
    client: Client,
    to: SocketAddr,
    by: By,
    times: u32,
) -> BTreeMap<String, u32> {
    if !by.udp {
        return answers(town, client, to, false, times);
    }
    let mut answers = BTreeMap::new();
    for port in (20_000..).take(times as usize) {
        *answers
            .entry(asked_from(town.ns(client), port, to))
            .or_default() += 1;
    }
    answers
}

#[test]
fn kp_161_in_turn_every_pod_is_asked_as_often_as_it_weighs() {
    let town = Town::start("turns", 0, &["--scheduler", "rr"]);
    let mut service = town.service(56, &EVERY_POD);
    town.world.write(&service);
    let pods = ALL.len() as u32;
    for by in EVERY_WAY {
        let to = town.address(&service, Front::ClusterIp, by);
        // Two clients at once, who share the turns.
        let ask = |client: Client| new_flows(&town, client, to, by, ROUNDS * pods / 2);
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(|| ask(Client::Pod(0, 0)));
            (ask(Client::Pod(0, 1)), one.join().unwrap())
        });
        for pod in ALL {
            let had = one.get(pod).unwrap_or(&0) + other.get(pod).unwrap_or(&0);
            assert_eq!(had, ROUNDS, "{by:?}, {pod}: {one:?} {other:?}");
        }
    }
    let first = town.pod(0, 0).ips().into_iter().map(|ip| format!("{ip}=3"));
    let heavy = first.collect::<Vec<String>>().join(",");
    annotate(&town, &mut service, &[(WEIGHTS, &heavy)]);
    for by in EVERY_WAY {
        let to = town.address(&service, Front::Vip, by);
        let client = Client::Pod(0, 1);
        let shares = new_flows(&town, client, to, by, 4 * (pods + 2));
        for pod in ALL {
            let due = if pod == ALL[0] { 12 } else { 4 };
            assert_eq!(shares[pod], due, "{by:?}: {shares:?}");
        }
    }
}

/// Waits until the first node serves the service by just these of the schedulers' flags,
/// and with a table behind its segment or without.
fn chosen(town: &Town, service: &Service, flags: u16, table: bool) {
    let all = FrontendFlags::BY_HISTORY | FrontendFlags::SOURCE_HASH;
    let node = town.node(0);
    for ip in &service.ips {
        let at = SocketAddr::new(*ip, ECHO);
        let is_so = |row: &FrontendRow| {
            row.addr == at && row.value.flags & all == flags && (row.value.table != 0) == table
        };
        let what = format!("frontend {at} with flags {flags:#x}, table {table}");
        wait::until(&what, LIMIT, || {
            let datapath = Datapath::open(&node.bpffs()).unwrap();
            let rows = datapath.frontends().unwrap();
            Ok(rows.iter().any(is_so).then_some(()))
        })
        .unwrap();
    }
}

#[test]
fn connections_outlive_every_change_of_the_scheduler() {
    let town = Town::start("schedulers", 0, &[]);
    let mut service = echo(&town, 55);
    town.world.write(&service);
    let weights = (
        WEIGHTS,
        "10.244.0.0/16=2,10.244.1.0/24=5,fd44::/48=3,fd44:0:0:1::/64=5",
    );
    let mut connections = Vec::new();
    for (annotations, flags, table) in [
        (&[(SCHEDULER, "maglev")][..], 0, true),
        (&[(SCHEDULER, "sh")], FrontendFlags::SOURCE_HASH, false),
        (&[(SCHEDULER, "rr")], FrontendFlags::ROUND_ROBIN, false),
        (&[(SCHEDULER, "lc")], FrontendFlags::LEAST_FLOWS, false),
        (
            &[(SCHEDULER, "lc"), weights],
            FrontendFlags::LEAST_FLOWS,
            true,
        ),
        (&[weights], 0, true),
        (&[(SCHEDULER, "mh")], FrontendFlags::SOURCE_HASH, true),
        (&[], 0, false),
    ] {
        connections.extend(talk(&town, &service, 6));
        annotate(&town, &mut service, annotations);
        chosen(&town, &service, flags, table);
        // Two more echoes: the second counter was sent after the change.
        for connection in &connections {
            let before = connection.report().echoes;
            wait::until("echo by the new scheduler", LIMIT, || {
                let report = connection.report();
                let done = report.broken.is_some() || report.echoes > before + 1;
                Ok(done.then_some(()))
            })
            .unwrap();
        }
    }
    for connection in connections {
        let report = connection.finish();
        assert_eq!(report.broken, None, "{report:?}");
    }
}
