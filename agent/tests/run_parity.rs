//! What of kube-proxy's behaviours (`docs/kube-proxy-parity.md`) shows in what a
//! node holds: addresses, sockets, modules. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use run_services_support::{
    ALL, ANYWHERE, By, Client, EVERY_POD, EVERY_WAY, Front, SILENCE, SOON, Source, Town, all_well,
};
use run_support::LIMIT;
use testkit::capture::{Capture, Captured, inject};
use testkit::cluster::{Node, UPLINK};
use testkit::echo::EchoServer;
use testkit::http::HttpServer;
use testkit::link::{ip, ip_json};
use testkit::manifests::{Endpoint, Protocol, Service};
use testkit::packet::{Frame, L4, Net, chunk, parse};
use testkit::ping::ping;
use testkit::{Error, NetNs, wait};

const POD: Client = Client::Pod(0, 0);
const NODE: Client = Client::Node(0);
const OUTSIDE: Client = Client::Outside(0);
const ARP: u16 = 0x0806;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Every address of a service, of either family.
fn addresses_of(service: &Service) -> Vec<IpAddr> {
    let exposure = &service.exposure;
    let all = [&service.ips, &exposure.external_ips, &exposure.balancer_ips];
    all.into_iter().flatten().copied().collect()
}

/// What a node takes for its own: addresses of interfaces, and networks of the
/// tables of local addresses.
fn held(node: &Node) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    for device in ip_json(node.ns(), &["address", "show"])
        .unwrap()
        .as_array()
        .unwrap()
    {
        let infos = device["addr_info"].as_array().unwrap();
        held.extend(
            infos
                .iter()
                .map(|info| info["local"].as_str().unwrap().to_owned()),
        );
    }
    for family in ["-4", "-6"] {
        let routes = ip_json(node.ns(), &[family, "route", "show", "table", "local"]).unwrap();
        let routes = routes.as_array().unwrap();
        held.extend(
            routes
                .iter()
                .map(|route| route["dst"].as_str().unwrap().to_owned()),
        );
    }
    held
}

/// The Ethernet address that a host knows of an address on its link.
fn neighbour(ns: &NetNs, of: IpAddr) -> Option<String> {
    let family = if of.is_ipv4() { "-4" } else { "-6" };
    let args = [
        family,
        "neigh",
        "show",
        "to",
        &of.to_string(),
        "dev",
        UPLINK,
    ];
    let rows = ip_json(ns, &args).unwrap();
    Some(rows[0]["lladdr"].as_str()?.to_owned())
}

/// The address that a received frame claims for its sender's link.
fn claimed(frame: &Captured) -> Option<IpAddr> {
    if frame.outgoing {
        return None;
    }
    let frame = parse(&frame.bytes).ok()?;
    if let Net::Other(ARP, packet) = &frame.net {
        let sender: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
        return Some(Ipv4Addr::from(sender).into());
    }
    match frame.upper()? {
        L4::Icmp(icmp)
            if matches!(&frame.net, Net::V6(_)) && icmp.kind == NEIGHBOUR_ADVERTISEMENT =>
        {
            let target: [u8; 16] = icmp.payload.get(..16)?.try_into().ok()?;
            Some(Ipv6Addr::from(target).into())
        }
        _ => None,
    }
}

fn no_echo(from: &NetNs, to: IpAddr) -> Result<(), String> {
    match ping(from, to, 8, SILENCE) {
        Err(Error::Timeout { .. }) => Ok(()),
        other => Err(format!("{} pings {to}: {other:?}", from.name())),
    }
}

#[test]
fn kp_30_kp_44_addresses_of_services_are_nobodys() {
    let town = Town::start("nobodys", 1, &[]);
    let outside = town.outsider(0).ns();
    let link = Capture::start(outside, UPLINK, 100_000).unwrap();
    let before = [0, 1].map(|at| held(town.node(at)));
    let service = town.service(71, &EVERY_POD);
    town.world.write(&service);
    for client in [POD, NODE, OUTSIDE] {
        for at in ANYWHERE {
            for by in EVERY_WAY {
                town.ask(client, town.address(&service, at, by), by.udp, SOON)
                    .unwrap();
            }
        }
    }
    assert_eq!([0, 1].map(|at| held(town.node(at))), before);
    let addresses = addresses_of(&service);
    assert_eq!(addresses.len(), 6);
    let mut results = Vec::new();
    for to in &addresses {
        assert!(
            before.iter().all(|held| !held.contains(&to.to_string())),
            "{to}"
        );
        for client in [POD, NODE, OUTSIDE] {
            results.push(no_echo(town.ns(client), *to));
        }
        // Asked for on the link itself, nobody says that it is there.
        let bits = if to.is_ipv4() { 32 } else { 128 };
        ip(
            outside,
            &["route", "add", &format!("{to}/{bits}"), "dev", UPLINK],
        )
        .unwrap();
        results.push(no_echo(outside, *to));
        assert_eq!(neighbour(outside, *to), None, "{to}");
    }
    all_well(results);
    // A node's own addresses are found by the same means.
    ip(outside, &["neigh", "flush", "dev", UPLINK]).unwrap();
    let own = town.node(0).ips();
    for to in &own {
        ping(outside, *to, 8, SOON).unwrap();
        assert!(neighbour(outside, *to).is_some(), "{to}");
    }
    let claims: BTreeSet<IpAddr> = link.stop().unwrap().iter().filter_map(claimed).collect();
    assert!(own.iter().all(|ip| claims.contains(ip)), "{claims:?}");
    assert!(
        addresses.iter().all(|ip| !claims.contains(ip)),
        "{claims:?}"
    );
}

/// Sockets of a node that wait for anybody: table and local address.
fn sockets(node: &Node) -> BTreeSet<String> {
    let tables = [
        "tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6",
    ];
    let read = || {
        let mut found = BTreeSet::new();
        for table in tables {
            let Ok(text) = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")) else {
                assert!(table.starts_with("udplite"), "no table {table}");
                continue;
            };
            for line in text.lines().skip(1) {
                let words: Vec<&str> = line.split_whitespace().collect();
                if words[2].ends_with(":0000") {
                    found.insert(format!("{table} {}", words[1]));
                }
            }
        }
        found
    };
    node.ns().run(read).unwrap()
}

#[test]
fn kp_37_node_ports_are_no_sockets_and_hide_a_process_from_others() {
    let town = Town::start("sockets", 1, &[]);
    let node = town.node(0);
    let before = [0, 1].map(|at| sockets(town.node(at)));
    let service = town.service(72, &EVERY_POD);
    town.world.write(&service);
    let hidden = |by: By| {
        let (at, side) = (Front::NodePort(0), Source::NodeSide(0));
        town.spread(OUTSIDE, &service, at, by, &ALL, side)
    };
    all_well(EVERY_WAY.map(hidden));
    assert_eq!([0, 1].map(|at| sockets(town.node(at))), before);
    // A process may have the port, but only its own node could ask it.
    let [http, echo] = [0, 1].map(|n| service.ports[n].node_port.unwrap());
    let servers = (
        HttpServer::start(node.ns(), "node-1", http).unwrap(),
        EchoServer::start(node.ns(), "node-1", echo).unwrap(),
    );
    assert!(
        sockets(node).len() >= before[0].len() + 2,
        "the ports are seen"
    );
    all_well(EVERY_WAY.map(hidden));
    // Without the Service it answers everybody.
    let syncs = town.world.syncs();
    town.world.state.remove_service(&service).unwrap();
    town.world.wait_synced(&syncs);
    for by in EVERY_WAY {
        let to = town.address(&service, Front::NodePort(0), by);
        let answer = town.ask(OUTSIDE, to, by.udp, SOON).unwrap();
        assert_eq!(answer.pod, "node-1", "{by:?}");
    }
    drop(servers);
}

/// Protocols of sockets that the kernel knows, by name.
fn protocols(node: &Node) -> BTreeSet<String> {
    let read = || std::fs::read_to_string("/proc/thread-self/net/protocols").unwrap();
    let text = node.ns().run(read).unwrap();
    let name = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    text.lines().skip(1).map(name).collect()
}

/// Names of the modules that are loaded; none in a kernel without modules.
fn modules() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    let name = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    text.lines().map(name).collect()
}

/// A process's sockets by number.
fn sockets_of(pid: u32) -> BTreeSet<String> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let target = |file: std::fs::DirEntry| std::fs::read_link(file.path()).ok();
    let links = files.flatten().filter_map(target);
    let names = links.map(|link| link.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("socket:")).collect()
}

/// A kernel without SCTP, or without modules, has none to load: there the
/// sockets of the agent and of the node are what can tell.
#[test]
fn kp_192_an_sctp_service_takes_no_socket_and_no_module() {
    let town = Town::start("sctp", 0, &[]);
    let (client, backend) = (town.pod(0, 0), town.pod(0, 1));
    let agent = town.world.agents[0].pid().unwrap();
    let before = (modules(), protocols(town.node(0)), sockets(town.node(0)));
    let own = sockets_of(agent);
    assert!(!own.is_empty(), "the agent's socket is seen");
    let mut service = Service::dual_stack("sctp", 73).port(Protocol::Sctp, 132, 3868);
    service.endpoints = vec![Endpoint::of(town.node(0), backend)];
    town.world.write(&service);
    // It is served all the same.
    let seen = Capture::start(backend.ns(), UPLINK, 1000).unwrap();
    for (from, to) in client.ips().into_iter().zip(&service.ips) {
        let frame = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Frame::v4(from, *to),
            (IpAddr::V6(from), IpAddr::V6(to)) => Frame::v6(from, *to),
            other => panic!("{other:?}"),
        };
        let frame = frame.macs(client.mac(), client.host_mac());
        let init = frame.sctp(5000, 132, chunk::INIT).payload(&[1; 16]);
        inject(client.ns(), UPLINK, &init.bytes()).unwrap();
        let wanted = |frame: &Captured| {
            let Ok(parsed) = parse(&frame.bytes) else {
                return false;
            };
            let v6 = matches!(parsed.net, Net::V6(_));
            let is_init = matches!(parsed.upper(), Some(L4::Sctp(sctp)) if sctp.dport == 3868);
            !frame.outgoing && is_init && v6 == to.is_ipv6()
        };
        seen.wait_for("the INIT", SOON, wanted).unwrap();
    }
    service.endpoints.clear();
    town.world.write(&service);
    let syncs = town.world.syncs();
    town.world.state.remove_service(&service).unwrap();
    town.world.wait_synced(&syncs);
    let after = (modules(), protocols(town.node(0)), sockets(town.node(0)));
    assert_eq!(after, before);
    // The connections on which it was asked how far it is close a moment later.
    wait::until("the agent's former sockets alone", LIMIT, || {
        Ok((sockets_of(agent) == own).then_some(()))
    })
    .unwrap();
}
