//! Clients of every kind while endpoints and agents come and go, and pods that
//! leave the cluster. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use run_services_support::{
    By, Client, EVERY_POD, EVERY_WAY, Front, SILENCE, SOON, Town, ask, strict_rp_filter,
};
use run_support::LIMIT;
use testkit::bulk::transfer;
use testkit::capture::Capture;
use testkit::cluster::UPLINK;
use testkit::echo::{LongConnection, udp_connect, udp_exchange};
use testkit::http::{FailureKind, Load, LoadOptions};
use testkit::manifests::{Protocol, Service};
use testkit::packet::{L4, Net, parse};
use testkit::ping::ping;
use testkit::server::{ECHO_PORT, PodServer};
use testkit::{NetNs, wait};

/// Longest from the change of a manifest to the last new flow to a pod that is gone.
const MOVED: Duration = Duration::from_secs(1);
/// Clients with a frontend each, at or by way of the first node.
const PAIRS: [(Client, Front); 5] = [
    (Client::Pod(0, 0), Front::ClusterIp),
    (Client::Pod(0, 0), Front::Vip),
    (Client::Node(0), Front::ClusterIp),
    (Client::Outside(0), Front::NodePort(0)),
    (Client::Outside(0), Front::Vip),
];

/// The service with a port of long connections beside those that it has.
fn with_echo(service: Service) -> Service {
    service.port(Protocol::Tcp, 77, ECHO_PORT).node_port(32_077)
}

fn echo_of(town: &Town, service: &Service, at: Front, v6: bool) -> SocketAddr {
    let port = &service.ports[2];
    let mut to = town.address(service, at, By { udp: false, v6 });
    let node_port = matches!(at, Front::NodePort(_));
    to.set_port(if node_port {
        port.node_port.unwrap()
    } else {
        port.port
    });
    to
}

#[test]
fn a_removed_endpoint_is_left_within_a_second_by_everybody() {
    let town = Town::start("move", 1, &[]);
    let mut service = town.service(51, &EVERY_POD);
    town.world.write(&service);
    for (client, at) in PAIRS {
        for v6 in [false, true] {
            // UDP: a socket that stays is moved, and sees no silence.
            let to = town.address(&service, at, By { udp: true, v6 });
            let mut socket = udp_connect(town.ns(client), to).unwrap();
            let gone = udp_exchange(&socket, b"first", SOON).unwrap();
            // TCP: new connections all the time.
            let to = town.address(&service, at, By { udp: false, v6 });
            let options = LoadOptions::steady(Duration::from_mins(1));
            let load = Load::start(town.ns(client), to, &options).unwrap();
            load.wait_for_more(50, LIMIT).unwrap();

            let endpoint = service.remove_endpoint(&gone).unwrap();
            let began = Instant::now();
            town.world.state.write_service(&service).unwrap();
            let moved = loop {
                // The server that is gone still answers.
                let pod = match udp_exchange(&socket, b"again", MOVED) {
                    // It was connected to the pod, and is closed as soon as that is gone: who
                    // reads is told ECONNABORTED, who sends EDESTADDRREQ.
                    Err(e)
                        if town.serves_sockets()
                            && matches!(e.kind, FailureKind::Reset | FailureKind::Local) =>
                    {
                        let took = began.elapsed();
                        assert!(took < MOVED, "{client:?} {at:?}: closed after {took:?}");
                        let at = town.address(&service, at, By { udp: true, v6 });
                        socket = udp_connect(town.ns(client), at).unwrap();
                        continue;
                    }
                    answer => answer.unwrap(),
                };
                let took = began.elapsed();
                assert!(
                    took < MOVED,
                    "{client:?} {at:?}: still {pod} after {took:?}"
                );
                if pod != gone {
                    break took;
                }
            };
            std::thread::sleep(MOVED.saturating_sub(began.elapsed()));
            load.wait_for_more(50, LIMIT).unwrap();
            let report = load.stop().unwrap();
            assert_eq!(report.failures.len(), 0, "{client:?} {at:?}: {report}");
            let begun = report
                .requests
                .iter()
                .filter(|r| r.outcome.as_ref().is_ok_and(|pod| *pod == gone))
                .map(|request| request.began.saturating_duration_since(began))
                .max();
            let last = begun.unwrap_or_default();
            assert!(last < MOVED, "{client:?} {at:?}: {last:?}");
            let longest = report.percentile(100).unwrap();
            assert!(longest < MOVED, "{client:?} {at:?}: one took {longest:?}");
            println!(
                "{client:?} {at:?} IPv{}: UDP moved after {moved:?}, last TCP connection to it \
                 after {last:?}, longest request {longest:?}",
                if v6 { 6 } else { 4 }
            );
            service.endpoints.push(endpoint);
            town.world.write(&service);
        }
    }
}

#[test]
fn connections_outlive_changes_of_endpoints_and_agents() {
    let mut town = Town::start("outlive", 1, &[]);
    let mut service = with_echo(town.service(52, &EVERY_POD));
    town.world.write(&service);
    let mut local = with_echo(town.service(53, &EVERY_POD));
    local.ports[2].node_port = Some(32_078);
    local.exposure.external_local = true;
    town.world.write(&local);
    let mut sessions = Vec::new();
    let every = Duration::from_millis(10);
    for (client, at) in PAIRS {
        for v6 in [false, true] {
            for of in [&service, &local] {
                let to = echo_of(&town, of, at, v6);
                let session = LongConnection::start(town.ns(client), to, every).unwrap();
                sessions.push((format!("{client:?} → {at:?} ({to})"), session));
            }
        }
    }
    let go_on = |what: &str| {
        for (name, session) in &sessions {
            let before = session.report().echoes;
            wait::until(&format!("echo of {name}, {what}"), LIMIT, || {
                let report = session.report();
                assert_eq!(report.broken, None, "{name}, {what}");
                Ok((report.echoes > before + 20).then_some(()))
            })
            .unwrap();
        }
    };
    go_on("at first");
    // One endpoint after the other goes, and comes again.
    for n in 0..service.endpoints.len() {
        let gone = service.endpoints.remove(n);
        town.world.write(&service);
        go_on("an endpoint is gone");
        service.endpoints.insert(n, gone);
    }
    town.world.write(&service);
    for node in 0..town.world.agents.len() {
        town.world.agents[node].kill().unwrap();
        go_on("an agent is killed");
        // What is new is served too, without any agent.
        for by in EVERY_WAY {
            let to = town.address(&service, Front::NodePort(node), by);
            town.ask(Client::Outside(0), to, by.udp, SOON).unwrap();
        }
        town.world.agents[node].spawn().unwrap();
        town.world.agents[node].wait_ready(4 * LIMIT).unwrap();
        go_on("it has started again");
        town.world.agents[node].restart(4 * LIMIT).unwrap();
        go_on("it was restarted in order");
    }
    for (name, session) in sessions {
        let report = session.finish();
        assert_eq!(report.broken, None, "{name}: {report:?}");
        assert_eq!(report.gaps, [], "{name}: {report:?}");
    }
}

/// Echo requests among captured frames: who sent them.
fn echo_sources(capture: Capture) -> Vec<IpAddr> {
    let frames = capture.stop().unwrap();
    let request = |bytes: &[u8]| {
        let frame = parse(bytes).ok()?;
        let source: IpAddr = match &frame.net {
            Net::V4(ip) => ip.src.into(),
            Net::V6(ip) => ip.src.into(),
            Net::Other(..) => return None,
        };
        match frame.upper()? {
            L4::Icmp(icmp) if matches!(icmp.kind, 8 | 128) => Some(source),
            _ => None,
        }
    };
    let incoming = frames.iter().filter(|frame| !frame.outgoing);
    incoming.filter_map(|frame| request(&frame.bytes)).collect()
}

/// Who answers a large datagram. Nobody on the way fragments IPv6: who sends too much for
/// a pod's link learns its MTU by what is lost.
fn in_fragments(ns: &NetNs, to: SocketAddr, fill: u8) -> String {
    wait::until("a datagram in fragments", SOON, || {
        let socket = udp_connect(ns, to)?;
        Ok(udp_exchange(&socket, &[fill; 4000], SILENCE).ok())
    })
    .unwrap()
}

#[test]
fn pods_that_leave_the_cluster_have_the_nodes_address_unless_it_is_excluded() {
    // Two hosts outside; the second one is to see pods' own addresses, and knows the way back.
    let exclude = "192.168.77.242/32,fd77::242/128";
    let args = ["--masquerade-exclude", exclude];
    let town = Town::with("leave", 2, &args, strict_rp_filter);
    let outsiders = town.world.cluster.outsiders();
    assert!(exclude.contains(&outsiders[1].ip4().to_string()));
    for node in town.world.cluster.nodes() {
        for network in [
            node.pod_cidr4().to_string(),
            node.pod_cidr6().unwrap().to_string(),
        ] {
            outsiders[1].route(&network, node).unwrap();
        }
    }
    let servers: Vec<PodServer> = outsiders
        .iter()
        .map(|o| PodServer::start(o.ns(), o.name()).unwrap())
        .collect();
    for (n, outsider) in outsiders.iter().enumerate() {
        for (at, (node, pod)) in town.world.cluster.pods().enumerate() {
            for family in 0..2 {
                let wanted = if n == 0 { node.ips() } else { pod.ips() }[family];
                for (udp, port) in [(false, 8080), (true, ECHO_PORT)] {
                    let to = SocketAddr::new(outsider.ips()[family], port);
                    // Several at once: each has its own port.
                    for _ in 0..10 {
                        let answer = ask(pod.ns(), to, udp, SOON).unwrap();
                        assert_eq!(answer.pod, outsider.name());
                        assert_eq!(answer.seen.ip(), wanted, "{} → {to}", pod.name());
                    }
                }
                let capture = Capture::start(outsider.ns(), UPLINK, 1000).unwrap();
                for size in [0, 56, 1400] {
                    ping(pod.ns(), outsider.ips()[family], size, SOON).unwrap();
                }
                assert_eq!(echo_sources(capture), [wanted; 3], "{}", pod.name());
                // Enough that segments and windows matter; and a datagram in fragments.
                let to = SocketAddr::new(outsider.ips()[family], ECHO_PORT);
                let seen = transfer(pod.ns(), to, 1 << 20, SOON).unwrap();
                assert_eq!(seen.pod, outsider.name());
                assert_eq!(in_fragments(pod.ns(), to, at as u8), outsider.name());
            }
        }
    }
    drop(servers);
    // Pods among each other keep their addresses.
    let (from, to) = (town.pod(0, 0), town.pod(1, 0));
    for (family, ip) in to.ips().into_iter().enumerate() {
        let answer = ask(from.ns(), SocketAddr::new(ip, 8080), false, SOON).unwrap();
        assert_eq!(answer.seen.ip(), from.ips()[family]);
    }
}

#[test]
fn a_client_outside_reaches_a_pod_by_its_own_address() {
    // No network is excluded from masquerade: only what pods answer is.
    let town = Town::with("straight", 1, &[], strict_rp_filter);
    let outsider = &town.world.cluster.outsiders()[0];
    for node in town.world.cluster.nodes() {
        for network in [
            node.pod_cidr4().to_string(),
            node.pod_cidr6().unwrap().to_string(),
        ] {
            outsider.route(&network, node).unwrap();
        }
    }
    let server = PodServer::start(outsider.ns(), outsider.name()).unwrap();
    for (node, pod) in town.world.cluster.pods() {
        for family in 0..2 {
            let own = outsider.ips()[family];
            let at = |port| SocketAddr::new(pod.ips()[family], port);
            for (udp, port) in [(false, 8080), (true, ECHO_PORT)] {
                for _ in 0..10 {
                    let answer = ask(outsider.ns(), at(port), udp, SOON).unwrap();
                    assert_eq!(answer.pod, pod.name());
                    assert_eq!(answer.seen.ip(), own, "{own} → {}, udp {udp}", pod.name());
                }
            }
            let seen = transfer(outsider.ns(), at(ECHO_PORT), 1 << 20, SOON).unwrap();
            assert_eq!(seen.pod, pod.name());
            assert_eq!(in_fragments(outsider.ns(), at(ECHO_PORT), 7), pod.name());
            // What the pod opens itself has the node's address all the same.
            let to = SocketAddr::new(own, 8080);
            let answer = ask(pod.ns(), to, false, SOON).unwrap();
            assert_eq!(
                answer.seen.ip(),
                node.ips()[family],
                "{} → {to}",
                pod.name()
            );
        }
    }
    drop(server);
}
