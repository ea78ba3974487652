//! Nodes whose FORWARD chain drops what connection tracking calls invalid, as
//! kube-proxy's does: what goes out by the kernel comes back by it. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::{IpAddr, SocketAddr};

use run_services_support::{
    ALL, By, Client, EVERY_POD, EVERY_WAY, Front, SILENCE, SOON, Source, Town, all_well, pods_of,
    strict_rp_filter,
};
use testkit::bulk::transfer;
use testkit::cluster::Node;
use testkit::echo::{udp_connect, udp_exchange};
use testkit::http::FailureKind;
use testkit::link::{json, run_in, sysctl};
use testkit::manifests::{Protocol, Service};
use testkit::ping::ping;
use testkit::probe::Probe;
use testkit::server::{ECHO_PORT, PodServer};
use testkit::{NetNs, wait};

/// Nobody listens there.
const CLOSED: u16 = 9;
/// Octets of a connection that fills windows: one whose answers pass by is found out.
const MUCH: usize = 1 << 20;

/// Drops what connection tracking calls invalid; `loose`: a connection may begin
/// with any segment.
fn guard(node: &Node, loose: bool) {
    let rules = "add table inet guard
        add chain inet guard forward { type filter hook forward priority 0; policy accept; }
        add rule inet guard forward ct state invalid counter drop";
    run_in(node.ns(), "nft", &[rules]).unwrap();
    let value = if loose { "1" } else { "0" };
    sysctl(node.ns(), "net.netfilter.nf_conntrack_tcp_loose", value).unwrap();
    strict_rp_filter(node);
}

/// Packets that it dropped.
fn dropped(node: &Node) -> u64 {
    let args = ["-j", "list", "chain", "inet", "guard", "forward"];
    let listed = json(node.ns(), "nft", &args).unwrap();
    let items = listed["nftables"].as_array().unwrap();
    let exprs = items
        .iter()
        .filter_map(|item| item["rule"]["expr"].as_array());
    let mut packets = exprs
        .flatten()
        .filter_map(|expr| expr["counter"]["packets"].as_u64());
    packets.next().unwrap()
}

/// Two hosts outside, towards the second of which pods keep their addresses; both know
/// the way to pods.
fn start(label: &str, loose: bool, args: &[&str]) -> (Town, Vec<PodServer>) {
    let exclude = "--masquerade-exclude=192.168.77.242/32,fd77::242/128";
    let args = [&[exclude], args].concat();
    let town = Town::with(label, 2, &args, |node| guard(node, loose));
    let outsiders = town.world.cluster.outsiders();
    assert!(exclude.contains(&outsiders[1].ip4().to_string()));
    for outsider in outsiders {
        for node in town.world.cluster.nodes() {
            let networks = [
                node.pod_cidr4().to_string(),
                node.pod_cidr6().unwrap().to_string(),
            ];
            for network in networks {
                outsider.route(&network, node).unwrap();
            }
        }
    }
    let servers = outsiders
        .iter()
        .map(|o| PodServer::start(o.ns(), o.name()).unwrap())
        .collect();
    (town, servers)
}

/// All that one may ask of an address without a service, and large amounts.
fn all_kinds(town: &Town, client: Client, name: &str, ip: IpAddr) -> Result<(), String> {
    let ns = town.ns(client);
    let bad = |what: &str, error: &dyn std::fmt::Display| {
        Err(format!("{client:?} → {name} ({ip}), {what}: {error}"))
    };
    for (udp, port) in [(false, 8080), (true, ECHO_PORT)] {
        match town.ask(client, SocketAddr::new(ip, port), udp, SOON) {
            Ok(answer) if answer.pod == name => {}
            Ok(answer) => return bad("asked", &answer.pod),
            Err(error) => return bad(if udp { "UDP" } else { "TCP" }, &error),
        }
    }
    let echo = SocketAddr::new(ip, ECHO_PORT);
    if let Err(error) = transfer(ns, echo, MUCH, SOON) {
        return bad("much", &error);
    }
    // Nobody on the way fragments IPv6: the sender learns of the pod's MTU by the first.
    let fragments = wait::until("a datagram in fragments", SOON, || {
        let socket = udp_connect(ns, echo)?;
        Ok(udp_exchange(&socket, &[7; 4000], SILENCE).ok())
    });
    if let Err(error) = fragments {
        return bad("large datagram", &error);
    }
    for size in [56, 1400] {
        if let Err(error) = ping(ns, ip, size, SOON) {
            return bad("an echo", &error);
        }
    }
    refused(ns, SocketAddr::new(ip, CLOSED)).or_else(|what| bad("a closed port", &what))
}

/// The host there says that nobody listens: an ICMP error about the datagram.
fn refused(ns: &NetNs, to: SocketAddr) -> Result<(), String> {
    let socket = udp_connect(ns, to).map_err(|error| error.to_string())?;
    match udp_exchange(&socket, b"anybody?", SOON) {
        Err(error) if error.kind == FailureKind::Refused => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

fn half_seen_nowhere(label: &str, loose: bool) {
    let (town, _servers) = start(label, loose, &[]);
    let mut results = Vec::new();
    for outside in 0..2 {
        let (client, outsider) = (Client::Outside(outside), town.outsider(outside));
        for (node, pod) in EVERY_POD {
            let inside = town.pod(node, pod);
            for family in 0..2 {
                let (to, back) = (outsider.ips()[family], inside.ips()[family]);
                results.push(all_kinds(
                    &town,
                    Client::Pod(node, pod),
                    outsider.name(),
                    to,
                ));
                results.push(all_kinds(&town, client, inside.name(), back));
            }
        }
    }
    all_well(results);
    let invalid = [0, 1].map(|at| dropped(town.node(at)));
    assert_eq!(invalid, [0, 0], "invalid at each node");
}

#[test]
fn pods_and_the_world_where_what_is_invalid_is_dropped() {
    half_seen_nowhere("strict", false);
}

#[test]
fn pods_and_the_world_where_connections_begin_anywhere() {
    half_seen_nowhere("loose", true);
}

/// `externalTrafficPolicy: Local` and `Cluster` for clients outside, and services for pods
/// whose endpoints only the kernel reaches.
#[test]
fn services_where_what_is_invalid_is_dropped() {
    let (town, mut servers) = start("guarded", false, &[]);
    let node = town.node(1);
    servers.push(PodServer::start(node.ns(), node.name()).unwrap());
    let echo = |service: Service, n: u16| {
        service
            .port(Protocol::Tcp, 77, ECHO_PORT)
            .node_port(32_000 + n)
    };
    let cluster = echo(town.service(81, &EVERY_POD), 81);
    let mut local = echo(town.service(82, &EVERY_POD[..2]), 82);
    local.exposure.external_local = true;
    let beyond = |n: u8, name: &str, ips: Vec<IpAddr>| {
        let mut service = echo(town.service(n, &EVERY_POD[..1]), n.into());
        service.endpoints[0].ips = ips;
        name.clone_into(&mut service.endpoints[0].pod);
        service
    };
    let outsiders = [0, 1].map(|at| town.outsider(at));
    let host = beyond(83, node.name(), node.ips());
    let far = outsiders.map(|o| beyond(84 + o.ip4().octets()[3] % 2, o.name(), o.ips().to_vec()));
    for service in [&cluster, &local, &host, &far[0], &far[1]] {
        town.world.write(service);
    }
    let mut results = Vec::new();
    for by in EVERY_WAY {
        let (outside, pod) = (Client::Outside(0), Client::Pod(0, 0));
        for at in [Front::NodePort(0), Front::Vip, Front::ExternalIp] {
            results.push(town.spread(outside, &local, at, by, pods_of(0), Source::Own));
            results.push(town.spread(outside, &cluster, at, by, &ALL, Source::NodeSide(0)));
        }
        for at in [Front::ClusterIp, Front::NodePort(0), Front::Vip] {
            let mut check = |service, name, source| {
                results.push(town.spread(pod, service, at, by, &[name], source));
            };
            check(&host, node.name(), Source::Node(0));
            check(&far[0], outsiders[0].name(), Source::Node(0));
            // Masqueraded pods have the node's address, whoever is asked.
            let source = if at == Front::ClusterIp {
                Source::Own
            } else {
                Source::Node(0)
            };
            check(&far[1], outsiders[1].name(), source);
        }
    }
    all_well(results);
    for v6 in [false, true] {
        let at = |service, front: Front| {
            let mut to = town.address(service, front, By { udp: false, v6 });
            to.set_port(77);
            to
        };
        let pod = town.ns(Client::Pod(0, 0));
        for service in [&host, &far[0], &far[1], &cluster] {
            transfer(pod, at(service, Front::ClusterIp), MUCH, SOON).unwrap();
        }
        let outside = town.ns(Client::Outside(0));
        for service in [&local, &cluster] {
            transfer(outside, at(service, Front::Vip), MUCH, SOON).unwrap();
        }
    }
    let invalid = [0, 1].map(|at| dropped(town.node(at)));
    assert_eq!(invalid, [0, 0], "invalid at each node");
}

#[test]
fn the_kernel_tells_clients_outside_what_fits_a_pods_link() {
    let (town, _servers) = start("fits", false, &[]);
    let mtu = town.world.cluster.pod_mtu();
    let ns = town.ns(Client::Outside(0));
    let (node, pod) = (town.node(0), town.pod(0, 0));
    for (family, headers) in [(0, 28), (1, 48)] {
        let to = SocketAddr::new(pod.ips()[family], ECHO_PORT);
        let probe = Probe::connect(ns, to).unwrap();
        let large = vec![7; town.world.cluster.uplink_mtu() as usize - headers];
        probe.send(&large).unwrap();
        let error = probe.icmp_error(SOON).unwrap();
        assert_eq!((error.from, error.mtu), (node.ips()[family], mtu), "{to}");
        let fits = &large[..mtu as usize - headers];
        let answer = udp_exchange(probe.socket(), fits, SOON).unwrap();
        assert_eq!(answer, pod.name(), "{to}");
    }
    assert_eq!(dropped(node), 0);
}
