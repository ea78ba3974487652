//! Processes of a node as clients: with whichever of its addresses they send, and
//! what they ask at an address of the node's own. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use run_services_support::{
    ANYWHERE, AT_ONCE, Client, EVERY_POD, EVERY_WAY, Front, SERVICE_NETWORKS, SOON, Source, Town,
    all_well, ask, pods_of, strict_rp_filter, timed,
};
use run_support::LIMIT;
use testkit::bulk::transfer;
use testkit::cluster::{Node, UPLINK};
use testkit::echo::{udp_connect, udp_exchange};
use testkit::link;
use testkit::manifests::Protocol;
use testkit::server::{ECHO_PORT, PodServer};
use testkit::wait;

const SECOND: [&str; 2] = ["10.99.0.1", "fd99::1"];

/// Gives the node another address, on another device, and lets its processes use it
/// as their source towards services.
fn second_address(node: &Node) {
    strict_rp_filter(node);
    let ip = |line: &str| {
        let args: Vec<&str> = line.split(' ').collect();
        link::ip(node.ns(), &args).unwrap();
    };
    ip("link add second type bridge");
    ip("link set second up");
    ip(&format!("addr add {}/32 dev second", SECOND[0]));
    ip(&format!("addr add {}/128 dev second nodad", SECOND[1]));
    for network in SERVICE_NETWORKS {
        let v6 = network.contains(':');
        let (gateway, source) = if v6 {
            ("fd77::1", SECOND[1])
        } else {
            ("192.168.77.1", SECOND[0])
        };
        ip(&format!(
            "route add {network} via {gateway} dev {UPLINK} src {source}"
        ));
    }
}

/// The address that the node's processes have towards another.
fn towards(node: &Node, to: IpAddr) -> IpAddr {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let look = || {
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect((to, ECHO_PORT)).unwrap();
        socket.local_addr().unwrap().ip()
    };
    node.ns().run(look).unwrap()
}

#[test]
fn kp_106_a_node_is_served_whichever_address_it_sends_from() {
    let town = Town::with("second", 0, &[], second_address);
    let server = PodServer::start(town.node(1).ns(), town.node(1).name()).unwrap();
    let near = town.service(61, &EVERY_POD[..2]);
    let far = town.service(62, &EVERY_POD[2..]);
    let mut host = town.service(63, &EVERY_POD[2..3]);
    host.endpoints[0].ips = town.node(1).ips();
    town.node(1).name().clone_into(&mut host.endpoints[0].pod);
    for service in [&near, &far, &host] {
        town.world.write(service);
    }
    let client = Client::Node(0);
    let mut results = Vec::new();
    for at in ANYWHERE {
        for by in EVERY_WAY {
            let own = SECOND[usize::from(by.v6)].parse::<IpAddr>().unwrap();
            let to = town.address(&near, at, by);
            let answer = town.ask(client, to, by.udp, SOON).unwrap();
            let due = if town.serves_sockets() {
                // At its socket it is given the address that goes with the pod.
                let pod = pods_of(0).iter().position(|pod| *pod == answer.pod);
                towards(
                    town.node(0),
                    town.pod(0, pod.unwrap()).ips()[usize::from(by.v6)],
                )
            } else {
                own
            };
            assert_eq!(answer.seen.ip(), due, "{at:?} {by:?}");
            let mut check = |service, pods: &[&str], source| {
                results.push(town.spread(client, service, at, by, pods, source));
            };
            check(&near, pods_of(0), Source::Own);
            check(&far, pods_of(1), Source::NodeSide(0));
            check(&host, &[town.node(1).name()], Source::Node(0));
        }
    }
    all_well(results);
    drop(server);
}

#[test]
fn a_node_port_at_the_nodes_own_address_takes_what_any_other_does() {
    let town = Town::with("self", 0, &[], strict_rp_filter);
    let node = town.node(0);
    let echo = |n, pods: &[(usize, usize)]| {
        let mut service = town.service(n, pods);
        service = service.port(Protocol::Tcp, 77, ECHO_PORT);
        service = service.node_port(32_000 + u16::from(n));
        town.world.write(&service);
        service
    };
    for service in [echo(64, &EVERY_POD[..1]), echo(65, &EVERY_POD[2..3])] {
        for ip in node.ips() {
            // More than a window of a connection, both ways.
            let to = SocketAddr::new(ip, service.ports[2].node_port.unwrap());
            let seen = transfer(node.ns(), to, 4 << 20, LIMIT).unwrap();
            assert_eq!(seen.pod, service.endpoints[0].pod);
            // The loopback device takes a datagram that no other does: its sender is told.
            let to = SocketAddr::new(ip, service.ports[1].node_port.unwrap());
            let data = [5; 4000];
            let what = format!("a large datagram to {to} is answered");
            wait::until(&what, LIMIT, || {
                // Linux keeps an IPv4 socket's route as it was when it was connected.
                let socket = udp_connect(node.ns(), to)?;
                Ok(udp_exchange(&socket, &data, AT_ONCE).ok())
            })
            .unwrap();
        }
    }
}

#[test]
fn what_nobody_serves_at_the_nodes_own_address_is_refused_at_once() {
    let town = Town::start("none", 0, &[]);
    let node = town.node(0);
    let mut gone = town.service(66, &[]);
    town.world.write(&gone);
    for by in EVERY_WAY {
        let to = town.address(&gone, Front::NodePort(0), by);
        let (answer, took) = timed(|| town.ask(Client::Node(0), to, by.udp, SOON));
        answer.unwrap_err();
        assert!(took < AT_ONCE, "{to} took {took:?}");
    }
    // An endpoint without a server says so itself.
    gone = town.service(67, &EVERY_POD);
    for port in &mut gone.ports {
        port.target = 9;
    }
    town.world.write(&gone);
    for by in EVERY_WAY {
        let to = town.address(&gone, Front::NodePort(0), by);
        for _ in 0..8 {
            let (answer, took) = timed(|| town.ask(Client::Node(0), to, by.udp, SOON));
            answer.unwrap_err();
            assert!(took < AT_ONCE, "{to} took {took:?}");
        }
    }
    // What is no service goes on as ever.
    let server = PodServer::start(node.ns(), node.name()).unwrap();
    for ip in node
        .ips()
        .into_iter()
        .chain(["127.0.0.1", "::1"].map(|ip| ip.parse().unwrap()))
    {
        let answer = ask(node.ns(), SocketAddr::new(ip, 8080), false, SOON).unwrap();
        assert_eq!(
            (answer.pod.as_str(), answer.seen),
            (node.name(), answer.local)
        );
    }
    drop(server);
}
