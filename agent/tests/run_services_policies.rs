//! Who is refused, dropped, remembered or not allowed, at frontends of every
//! kind. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use run_services_support::{
    ALL, ANYWHERE, AT_ONCE, By, Client, EVERY_POD, EVERY_WAY, EXTERNAL, Front, SECOND_NODE,
    SILENCE, SOON, Source, Town, all_well, pods_of, strict_rp_filter, timed,
};
use run_support::LIMIT;
use testkit::cluster::UPLINK;
use testkit::echo::LongConnection;
use testkit::http::FailureKind;
use testkit::manifests::Service;

const EVERYBODY: [Client; 3] = [Client::Pod(0, 0), Client::Node(0), Client::Outside(0)];
const TCP4: By = EVERY_WAY[0];

/// No answer of any kind.
fn silent(town: &Town, client: Client, service: &Service, at: Front, by: By) -> Result<(), String> {
    let to = town.address(service, at, by);
    match town.ask(client, to, by.udp, SILENCE) {
        Err(error) if error.kind == FailureKind::Timeout => Ok(()),
        other => Err(format!("{client:?} → {at:?} {by:?} ({to}): {other:?}")),
    }
}

/// Refused before anything would be sent again.
fn refused(
    town: &Town,
    client: Client,
    service: &Service,
    at: Front,
    by: By,
) -> Result<(), String> {
    let to = town.address(service, at, by);
    let (answer, took) = timed(|| town.ask(client, to, by.udp, SOON));
    match answer {
        Err(error) if error.kind == FailureKind::Refused && took < AT_ONCE => Ok(()),
        other => Err(format!(
            "{client:?} → {at:?} {by:?} ({to}): {other:?} after {took:?}"
        )),
    }
}

#[test]
fn kp_53_without_endpoints_everybody_is_refused_at_once() {
    let town = Town::with("none", 1, &[], strict_rp_filter);
    let none = town.service(41, &[]);
    town.world.write(&none);
    let mut results = Vec::new();
    for client in EVERYBODY {
        for by in EVERY_WAY {
            for at in ANYWHERE {
                results.push(refused(&town, client, &none, at, by));
            }
            results.push(refused(&town, client, &none, Front::NodePort(1), by));
            if client != Client::Node(0) {
                results.push(refused(&town, client, &none, Front::NodePort(0), by));
            }
        }
    }
    all_well(results);
    // What was refused left nothing behind: with endpoints everybody is served (KP-59).
    let some = town.service(41, &EVERY_POD);
    town.world.write(&some);
    let serve = |client| town.spread(client, &some, Front::Vip, TCP4, &ALL, Source::NodeSide(0));
    all_well(EVERYBODY.map(serve));
}

#[test]
fn kp_55_local_policies_drop_where_no_endpoint_is_local() {
    let town = Town::with("local", 1, &[], strict_rp_filter);
    let mut external = town.service(42, &SECOND_NODE);
    external.exposure.external_local = true;
    town.world.write(&external);
    let mut internal = town.service(43, &SECOND_NODE);
    internal.exposure.internal_local = true;
    town.world.write(&internal);
    let far = pods_of(1);
    let mut results = Vec::new();
    for by in EVERY_WAY {
        // Clients outside have nothing at the first node; pods and the node have (KP-71, KP-72).
        for at in EXTERNAL {
            results.push(silent(&town, Client::Outside(0), &external, at, by));
            let pod = Client::Pod(0, 0);
            results.push(town.spread(pod, &external, at, by, far, Source::Own));
        }
        for at in ANYWHERE {
            let side = Source::NodeSide(0);
            results.push(town.spread(Client::Node(0), &external, at, by, far, side));
        }
        // The second node has some, and so has everybody by its node port.
        let (outside, at) = (Client::Outside(0), Front::NodePort(1));
        results.push(town.spread(outside, &external, at, by, far, Source::Own));
        // KP-74: the first node's port is not served for a pod of the second one.
        let (pod, at) = (Client::Pod(1, 0), Front::NodePort(0));
        results.push(silent(&town, pod, &external, at, by));

        // KP-54: nobody has anything at the cluster address; elsewhere all have (KP-75).
        for client in EVERYBODY {
            results.push(silent(&town, client, &internal, Front::ClusterIp, by));
            for at in [Front::Vip, Front::ExternalIp] {
                let side = Source::NodeSide(0);
                results.push(town.spread(client, &internal, at, by, far, side));
            }
        }
        let pod = Client::Pod(1, 0);
        let at = Front::ClusterIp;
        results.push(town.spread(pod, &internal, at, by, far, Source::Own));
    }
    all_well(results);
}

fn host_networks(ips: impl IntoIterator<Item = IpAddr>) -> Vec<String> {
    let whole = |ip: IpAddr| format!("{ip}/{}", if ip.is_ipv6() { 128 } else { 32 });
    ips.into_iter().map(whole).collect()
}

#[test]
fn kp_46_source_ranges_say_who_may_use_the_balancers_addresses() {
    let town = Town::start("ranges", 2, &[]);
    let (allowed, other) = (Client::Outside(0), Client::Outside(1));
    let mut service = town.service(44, &EVERY_POD);
    service.exposure.source_ranges = host_networks(town.outsider(0).ips());
    service
        .exposure
        .source_ranges
        .extend(host_networks(town.pod(0, 0).ips()));
    town.world.write(&service);
    let mut results = Vec::new();
    let side = Source::NodeSide(0);
    for by in EVERY_WAY {
        for client in [allowed, Client::Pod(0, 0)] {
            results.push(town.spread(client, &service, Front::Vip, by, &ALL, side));
        }
        for client in [other, Client::Pod(0, 1), Client::Node(0)] {
            results.push(silent(&town, client, &service, Front::Vip, by));
            results.push(town.spread(client, &service, Front::ExternalIp, by, &ALL, side));
        }
        results.push(town.spread(other, &service, Front::NodePort(0), by, &ALL, side));
    }
    all_well(results);

    // KP-50: a session outlives a narrower range. KP-48: one family's ranges leave the other open.
    let v6 = EVERY_WAY[2];
    let tcp_echo = |service: &Service, by: By| {
        let mut to = town.address(service, Front::Vip, by);
        to.set_port(77);
        to
    };
    let mut service = service.port(
        testkit::manifests::Protocol::Tcp,
        77,
        testkit::server::ECHO_PORT,
    );
    town.world.write(&service);
    let every = Duration::from_millis(10);
    let ns = town.ns(allowed);
    let session = LongConnection::start(ns, tcp_echo(&service, TCP4), every).unwrap();
    service.exposure.source_ranges = host_networks([town.outsider(1).ip4().into()]);
    town.world.write(&service);
    let before = session.report().echoes;
    all_well([
        silent(&town, allowed, &service, Front::Vip, TCP4),
        town.spread(other, &service, Front::Vip, TCP4, &ALL, side),
        town.spread(allowed, &service, Front::Vip, v6, &ALL, side),
    ]);
    let report = session.finish();
    assert_eq!(report.broken, None, "{report:?}");
    assert!(report.echoes > before, "{report:?}");

    // KP-49: who may not is dropped, also where nobody would answer.
    service.endpoints.clear();
    town.world.write(&service);
    all_well([
        silent(&town, allowed, &service, Front::Vip, TCP4),
        refused(&town, other, &service, Front::Vip, TCP4),
    ]);
}

#[test]
fn kp_47_balancer_addresses_are_allowed_where_the_node_is() {
    let town = Town::start("allowance", 2, &[]);
    let mut service = town.service(47, &EVERY_POD);
    // A second address of each family, which the first client has as its own.
    let own: [IpAddr; 2] = [
        "203.0.113.200".parse().unwrap(),
        "2001:db8:203::200".parse().unwrap(),
    ];
    service.exposure.balancer_ips.extend(own);
    let (client, node) = (town.outsider(0), town.node(0));
    for (family, (own, net)) in own.iter().zip(host_networks(own)).enumerate() {
        testkit::link::address(client.ns(), UPLINK, &net).unwrap();
        let vip = host_networks([service.exposure.balancer_ips[family]]).remove(0);
        let (here, there) = (node.ips()[family], client.ips()[family]);
        let [own, here, there] = [*own, here, there].map(|ip| ip.to_string());
        let out = ["route", "add", &vip, "via", &here, "src", &own];
        testkit::link::ip(client.ns(), &out).unwrap();
        testkit::link::ip(node.ns(), &["route", "add", &net, "via", &there]).unwrap();
    }
    let (from_vip, by) = (Client::Outside(0), EVERY_WAY);
    let served = |service: &Service, at| {
        by.map(|by| town.spread(from_vip, service, at, by, &ALL, Source::NodeSide(0)))
    };
    let dropped = |service: &Service| by.map(|by| silent(&town, from_vip, service, Front::Vip, by));
    let mut allow = |ips: [[IpAddr; 2]; 2]| {
        service.exposure.source_ranges = host_networks(ips.into_iter().flatten());
        town.world.write(&service);
        service.clone()
    };
    let [own_node, other_node]: [[IpAddr; 2]; 2] =
        [0, 1].map(|n| town.node(n).ips().try_into().unwrap());
    let somebody = town.outsider(1).ips();

    // Without ranges for the node nobody is allowed by an address of the balancer,
    // nor with those of another node.
    let nobody = allow([somebody, somebody]);
    all_well(dropped(&nobody));
    all_well(served(&nobody, Front::ExternalIp));
    all_well(dropped(&allow([somebody, other_node])));
    all_well(served(&allow([somebody, own_node]), Front::Vip));
    all_well(dropped(&allow([somebody, somebody])));
}

/// Seconds of affinity, of which the datapath counts ticks of 1.07 s.
const REMEMBERED: Duration = Duration::from_secs(6);

/// The pod that a client has, by frontends of the first node; all agree.
fn only_pod(town: &Town, client: Client, service: &Service, by: By, times: usize) -> String {
    let mut pods = BTreeSet::new();
    for n in 0..times {
        let at = [
            Front::Vip,
            Front::NodePort(0),
            Front::ClusterIp,
            Front::ExternalIp,
        ][n % 4];
        let to = town.address(service, at, by);
        pods.insert(town.ask(client, to, by.udp, SOON).unwrap().pod);
    }
    assert_eq!(pods.len(), 1, "{client:?} {by:?}: {pods:?}");
    pods.pop_first().unwrap()
}

#[test]
fn kp_94_a_client_is_remembered_while_it_comes_again() {
    let mut town = Town::start("affinity", 4, &[]);
    let mut service = town.service(45, &EVERY_POD);
    service.exposure.affinity = Some(REMEMBERED);
    town.world.write(&service);
    let clients: Vec<(Client, By)> = (0..4)
        .flat_map(|n| EVERY_WAY.map(|by| (Client::Outside(n), by)))
        .collect();
    let ask = |town: &Town, service: &Service, times| -> Vec<String> {
        let ask = |(client, by): &(Client, By)| only_pod(town, *client, service, *by, times);
        clients.iter().map(ask).collect()
    };
    let first = ask(&town, &service, 12);
    let distinct: BTreeSet<&String> = first.iter().collect();
    assert!(distinct.len() > 1, "all on {distinct:?}");
    // Each new flow begins the time anew (KP-95), and a restart forgets nothing (KP-97).
    let began = Instant::now();
    while began.elapsed() < 2 * REMEMBERED {
        assert_eq!(ask(&town, &service, 1), first, "{:?}", began.elapsed());
        std::thread::sleep(Duration::from_millis(500));
    }
    town.world.agents[0].kill().unwrap();
    assert_eq!(ask(&town, &service, 1), first, "without an agent");
    town.world.agents[0].spawn().unwrap();
    testkit::wait::until("agent ready again", 4 * LIMIT, || {
        assert_eq!(ask(&town, &service, 1), first, "while the agent starts");
        let ready = town.world.agents[0].status().is_ok_and(|s| s.ready);
        Ok(ready.then_some(()))
    })
    .unwrap();

    // KP-96: whose pod goes has another, at once and from then on.
    let gone = first[0].clone();
    let endpoint = service.remove_endpoint(&gone).unwrap();
    town.world.write(&service);
    let second = ask(&town, &service, 8);
    for (was, is) in first.iter().zip(&second) {
        assert_ne!(*is, gone);
        assert!(is == was || *was == gone, "{was} to {is}");
    }
    service.endpoints.push(endpoint);
    town.world.write(&service);
    assert_eq!(ask(&town, &service, 1), second);

    // Sixteen clients that stay away: one at least chooses another pod.
    std::thread::sleep(REMEMBERED + Duration::from_millis(1500));
    assert_ne!(ask(&town, &service, 1), second);
    // KP-99: without affinity nobody is remembered.
    service.exposure.affinity = None;
    town.world.write(&service);
    let (client, side) = (Client::Outside(0), Source::NodeSide(0));
    all_well(EVERY_WAY.map(|by| town.spread(client, &service, Front::Vip, by, &ALL, side)));
}

#[test]
fn kp_33_node_ports_answer_at_the_addresses_that_are_asked_for() {
    // All addresses of IPv4, which has a second one; the first of IPv6, which is all there is.
    let second = "192.168.77.201";
    let args = ["--node-port-addresses", "192.168.77.192/26"];
    let town = Town::with("addresses", 1, &args, |node| {
        if node.index() == 1 {
            testkit::link::address(node.ns(), UPLINK, &format!("{second}/24")).unwrap();
        }
    });
    let service = town.service(46, &EVERY_POD);
    town.world.write(&service);
    let outside = Client::Outside(0);
    for by in EVERY_WAY.into_iter().filter(|by| !by.v6) {
        let mut to = town.address(&service, Front::NodePort(0), by);
        // Nothing is served at the first address: the node has no socket there (KP-40).
        let error = town.ask(outside, to, by.udp, SOON).unwrap_err();
        assert_eq!(error.kind, FailureKind::Refused, "{by:?}: {error}");
        to.set_ip(second.parse().unwrap());
        let mut pods = BTreeSet::new();
        for _ in 0..100 {
            pods.insert(town.ask(outside, to, by.udp, SOON).unwrap().pod);
        }
        assert_eq!(pods.len(), ALL.len(), "{by:?}: {pods:?}");
    }
    let side = Source::NodeSide(0);
    let v6 = EVERY_WAY.into_iter().filter(|by| by.v6);
    all_well(v6.map(|by| town.spread(outside, &service, Front::NodePort(0), by, &ALL, side)));
}
