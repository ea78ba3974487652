//! What of kube-proxy's behaviours (`docs/kube-proxy-parity.md`) shows in
//! packets: whose rules they meet, who counts as a pod, what flows of a deleted
//! Service get, and a walk over flows that fails. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use datapath_common::{Flow, FlowKey, FlowState, Hook, Ip4, Reason, maps, proto};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use run_services_support::{
    ALL, By, Client, EVERY_POD, EVERY_WAY, Front, SILENCE, SOON, Source, Town, all_well,
};
use run_support::{LIMIT, counted};
use testkit::agent::Agent;
use testkit::capture::{Capture, Captured};
use testkit::cluster::{Node, UPLINK};
use testkit::echo::{LongConnection, udp_connect, udp_exchange};
use testkit::http::FailureKind;
use testkit::link::{json, run_in, sysctl};
use testkit::manifests::Protocol;
use testkit::packet::{L4, Net, parse};
use testkit::server::{ECHO_PORT, PodServer};
use testkit::{NetNs, wait};
use tulle_agent::kernel::now_ticks;

const POD: Client = Client::Pod(0, 0);
const NODE: Client = Client::Node(0);
const OUTSIDE: Client = Client::Outside(0);

/// Everything that a node forwards meets this, and no more.
fn wall(node: &Node) {
    let rules = "add table inet wall
        add chain inet wall forward { type filter hook forward priority 0; policy drop; }
        add rule inet wall forward counter";
    run_in(node.ns(), "nft", &[rules]).unwrap();
}

/// Packets that met the wall of a node.
fn at_wall(node: &Node) -> u64 {
    let args = ["-j", "list", "chain", "inet", "wall", "forward"];
    let listed = json(node.ns(), "nft", &args).unwrap();
    let items = listed["nftables"].as_array().unwrap();
    let packets = |item: &serde_json::Value| item["rule"]["expr"][0]["counter"]["packets"].as_u64();
    items.iter().find_map(packets).unwrap()
}

#[test]
fn kp_65_a_forward_chain_that_drops_meets_what_the_kernel_forwards_and_no_more() {
    let town = Town::with("forward", 1, &[], wall);
    let outsider = town.outsider(0);
    let mut servers = vec![PodServer::start(outsider.ns(), outsider.name()).unwrap()];
    let service = town.service(74, &EVERY_POD);
    town.world.write(&service);
    let node = town.node(1);
    servers.push(PodServer::start(node.ns(), node.name()).unwrap());
    let mut host = town.service(75, &[(1, 0)]);
    host.endpoints[0].ips = node.ips();
    node.name().clone_into(&mut host.endpoints[0].pod);
    town.world.write(&host);
    let mut results = Vec::new();
    for by in EVERY_WAY {
        let mut check = |client, at, source| {
            results.push(town.spread(client, &service, at, by, &ALL, source));
        };
        check(POD, Front::ClusterIp, Source::Own);
        for at in [Front::NodePort(0), Front::Vip, Front::ExternalIp] {
            check(POD, at, Source::NodeSide(0));
            check(OUTSIDE, at, Source::NodeSide(0));
        }
        check(OUTSIDE, Front::NodePort(1), Source::NodeSide(1));
        check(NODE, Front::ClusterIp, Source::NodeSide(0));
        // By way of the first node to the second one's own network.
        let at = Front::NodePort(0);
        results.push(town.spread(OUTSIDE, &host, at, by, &[node.name()], Source::Node(0)));
        // Without a service.
        let port = if by.udp { ECHO_PORT } else { 8080 };
        for to in [town.pod(0, 1), town.pod(1, 1)] {
            let ip = to.ips()[usize::from(by.v6)];
            let answer = town
                .ask(POD, SocketAddr::new(ip, port), by.udp, SOON)
                .unwrap();
            assert_eq!(answer.pod, to.name());
        }
    }
    all_well(results);
    assert_eq!([0, 1].map(|at| at_wall(town.node(at))), [0, 0]);

    let left_to_the_kernel = |by: By| {
        let port = if by.udp { ECHO_PORT } else { 8080 };
        [
            SocketAddr::new(outsider.ips()[usize::from(by.v6)], port),
            town.address(&host, Front::ClusterIp, by),
            town.address(&service, Front::NodePort(1), by),
        ]
    };
    for by in EVERY_WAY {
        for to in left_to_the_kernel(by) {
            let before = at_wall(town.node(0));
            let error = town.ask(POD, to, by.udp, SILENCE).unwrap_err();
            assert_eq!(error.kind, FailureKind::Timeout, "{to} {by:?}: {error}");
            assert!(at_wall(town.node(0)) > before, "{to} {by:?}");
        }
    }
    run_in(town.node(0).ns(), "nft", &["delete table inet wall"]).unwrap();
    for by in EVERY_WAY {
        for to in left_to_the_kernel(by) {
            let answer = town.ask(POD, to, by.udp, SOON);
            answer.unwrap_or_else(|error| panic!("{to} {by:?}: {error}"));
        }
    }
    assert_eq!(at_wall(town.node(1)), 0);
}

/// Packets for a pod's echo server that a capture at the pod has seen.
fn arrived(at: &Capture) -> usize {
    let for_echo = |frame: &&Captured| {
        let port = parse(&frame.bytes)
            .ok()
            .and_then(|frame| match frame.upper()? {
                L4::Tcp(tcp) => Some(tcp.dport),
                L4::Udp(udp) => Some(udp.dport),
                _ => None,
            });
        !frame.outgoing && port == Some(ECHO_PORT)
    };
    at.frames().iter().filter(for_echo).count()
}

#[test]
fn kp_123_flows_of_a_deleted_service_reach_its_endpoints_no_more() {
    let town = Town::start("deleted", 1, &[]);
    // What the node forwards to its router meanwhile is sent to it again.
    for (family, scope) in [("ipv4", "all"), ("ipv4", UPLINK), ("ipv6", UPLINK)] {
        let key = format!("net.{family}.conf.{scope}.accept_redirects");
        sysctl(town.ns(OUTSIDE), &key, "0").unwrap();
    }
    let service = town.service(76, &[(1, 0)]);
    let service = service.port(Protocol::Tcp, 77, ECHO_PORT).node_port(32_077);
    town.world.write(&service);
    let pairs = [
        (POD, Front::ClusterIp),
        (NODE, Front::ClusterIp),
        (OUTSIDE, Front::NodePort(0)),
        (OUTSIDE, Front::Vip),
    ];
    let (mut datagrams, mut connections) = (Vec::new(), Vec::new());
    for (client, at) in pairs {
        for v6 in [false, true] {
            let name = format!("{client:?} → {at:?}, IPv6: {v6}");
            let to = town.address(&service, at, By { udp: true, v6 });
            let socket = udp_connect(town.ns(client), to).unwrap();
            udp_exchange(&socket, b"first", SOON).unwrap();
            datagrams.push((name.clone(), socket));
            let port = match at {
                Front::NodePort(_) => 32_077,
                _ => 77,
            };
            let to = SocketAddr::new(to.ip(), port);
            let every = Duration::from_millis(20);
            let connection = LongConnection::start(town.ns(client), to, every).unwrap();
            connections.push((name, connection));
        }
    }
    let endpoint = town.pod(1, 0);
    let before = Capture::start(endpoint.ns(), UPLINK, 100_000).unwrap();
    for (name, socket) in &datagrams {
        udp_exchange(socket, b"second", SOON).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    // The capture sees such packets.
    wait::until("the datagrams at the endpoint", SOON, || {
        Ok((arrived(&before) >= datagrams.len()).then_some(()))
    })
    .unwrap();
    drop(before);

    let syncs = town.world.syncs();
    town.world.state.remove_service(&service).unwrap();
    town.world.wait_synced(&syncs);
    let after = Capture::start(endpoint.ns(), UPLINK, 100_000).unwrap();
    for (name, socket) in &datagrams {
        let answer = udp_exchange(socket, b"third", SILENCE);
        assert!(answer.is_err(), "{name}: {answer:?}");
    }
    let counts = || connections.iter().map(|(_, c)| c.report().echoes);
    let echoes: Vec<u64> = counts().collect();
    std::thread::sleep(SILENCE);
    assert!(counts().eq(echoes), "no connection goes on");
    assert_eq!(arrived(&after), 0, "nothing comes to the endpoint");
    // The node itself answers at its own address, where no service is any more.
    for (name, connection) in connections
        .iter()
        .filter(|(name, _)| name.contains("NodePort"))
    {
        wait::until(&format!("end of {name}"), LIMIT, || {
            Ok(connection.report().broken)
        })
        .unwrap();
    }

    // Once it is there again, the same sockets are served.
    town.world.write(&service);
    for (name, socket) in &datagrams {
        wait::until(&format!("answer: {name}"), LIMIT, || {
            Ok(udp_exchange(socket, b"fourth", SILENCE).ok())
        })
        .unwrap();
    }
}

#[test]
fn kp_120_a_flow_that_was_not_translated_is_as_soon_as_there_is_a_service() {
    let town = Town::start("before", 0, &[]);
    let service = town.service(70, &EVERY_POD);
    let masqueraded = || counted(town.node(0), Hook::NicOut, Reason::Masqueraded);
    let sockets = [false, true].map(|v6| {
        let to = town.address(&service, Front::ClusterIp, By { udp: true, v6 });
        let socket = udp_connect(town.ns(POD), to).unwrap();
        let before = masqueraded();
        let answer = udp_exchange(&socket, b"too early", SILENCE);
        assert!(answer.is_err(), "{to}: {answer:?}");
        // So it has rows, as what leaves the cluster has.
        assert!(masqueraded() > before, "{to}");
        socket
    });
    town.world.write(&service);
    for socket in sockets {
        wait::until("an answer", LIMIT, || {
            Ok(udp_exchange(&socket, b"and now?", SILENCE).ok())
        })
        .unwrap();
    }
}

/// Sends a datagram from an address that is added for it.
fn send_as(ns: &NetNs, from: &str, to: SocketAddr, data: &[u8]) {
    let from: IpAddr = from.parse().unwrap();
    let bits = if from.is_ipv4() { 32 } else { 128 };
    testkit::link::address(ns, UPLINK, &format!("{from}/{bits}")).unwrap();
    let send = || UdpSocket::bind((from, 0))?.send_to(data, to);
    assert_eq!(ns.run(send).unwrap().unwrap(), data.len());
}

#[test]
fn kp_107_a_pod_is_who_sends_by_a_pods_link_whatever_its_address() {
    let town = Town::start("detector", 1, &[]);
    let mut service = town.service(77, &[(1, 0)]);
    service.exposure.external_local = true;
    town.world.write(&service);
    let node = town.node(0);
    let endpoint = Capture::start(town.pod(1, 0).ns(), UPLINK, 1000).unwrap();
    let source_of = |frame: &Captured, data: &[u8]| {
        let frame = parse(&frame.bytes).ok()?;
        let source: IpAddr = match &frame.net {
            Net::V4(ip) => ip.src.into(),
            Net::V6(ip) => ip.src.into(),
            Net::Other(..) => return None,
        };
        matches!(frame.upper()?, L4::Udp(udp) if udp.payload == data).then_some(source)
    };
    let dropped = || counted(node, Hook::NicIn, Reason::MartianSource);
    // Of no network of the cluster; and of the first node's pods, but of none of them.
    let families = [("198.18.0.9", "10.244.1.99"), ("fd18::9", "fd44:0:0:1::99")];
    for (family, (foreign, inner)) in families.into_iter().enumerate() {
        let to = town.address(
            &service,
            Front::Vip,
            By {
                udp: true,
                v6: family == 1,
            },
        );
        // Somebody outside who looks like a pod is none, and has nothing that pods have.
        let before = dropped();
        let data = format!("from outside as {inner}");
        send_as(town.ns(OUTSIDE), inner, to, data.as_bytes());
        wait::until("the drop", LIMIT, || Ok((dropped() > before).then_some(()))).unwrap();
        let came = |frame: &Captured| source_of(frame, data.as_bytes()).is_some();
        assert!(!endpoint.frames().iter().any(came), "{data}");
        // A pod that looks like a client outside: it has the cluster's, with its own address.
        let data = format!("from a pod as {foreign}");
        send_as(town.ns(POD), foreign, to, data.as_bytes());
        let source = |frame: &Captured| source_of(frame, data.as_bytes());
        let frame = endpoint
            .wait_for("the pod's", SOON, |frame| source(frame).is_some())
            .unwrap();
        assert_eq!(source(&frame), Some(foreign.parse().unwrap()));
    }
}

/// Makes a table refuse what is written from user space; programs go on.
fn freeze(pin: &Path) {
    let args = ["map", "freeze", "pinned"];
    let status = Command::new("bpftool")
        .args(args)
        .arg(pin)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn kp_124_a_walk_over_flows_that_fails_is_told_tried_again_and_stops_nothing() {
    let mut town = Town::start("walk", 0, &["--gc-interval", "1"]);
    let service = town.service(78, &EVERY_POD);
    town.world.write(&service);
    let pod = town.pod(0, 0);
    let to = town.address(
        &service,
        Front::ClusterIp,
        By {
            udp: true,
            v6: false,
        },
    );
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (pod.ips()[0], to.ip()) else {
        panic!("{to}");
    };
    let own = SocketAddr::new(src.into(), 40_000);
    let socket = pod.ns().run(|| UdpSocket::bind(own)).unwrap().unwrap();
    socket.connect(to).unwrap();
    // A flow of that socket that has expired, in a table from which no agent removes any.
    let key = FlowKey {
        src: Ip4::new(src.octets()),
        dst: Ip4::new(dst.octets()),
        sport: own.port(),
        dport: to.port(),
        proto: proto::UDP,
        direction: 0,
        reserved: 0,
    };
    let row = Flow {
        state: FlowState::Opening as u8,
        seen: now_ticks().wrapping_sub(1000),
        ..Flow::<Ip4>::default()
    };
    let agent = Pid::from_raw(town.world.agents[0].pid().unwrap().cast_signed());
    let pin = town.node(0).bpffs().join(maps::FLOW_V4);
    kill(agent, Signal::SIGSTOP).unwrap();
    let map = Map::LruHashMap(MapData::from_pin(&pin).unwrap());
    let mut flows: HashMap<_, FlowKey<Ip4>, Flow<Ip4>> = map.try_into().unwrap();
    flows.insert(key, row, 0).unwrap();
    freeze(&pin);
    assert!(flows.insert(key, row, 0).is_err(), "it is frozen");
    kill(agent, Signal::SIGCONT).unwrap();
    let is_fault = |fault: &String| fault.contains("remove expired flows");
    let faults = |agent: &Agent| agent.status().unwrap().faults;
    let told = |agent: &Agent| faults(agent).iter().any(is_fault);
    town.world.agents[0]
        .wait_until("telling", LIMIT, |agent| Ok(told(agent)))
        .unwrap();
    // Everything else goes on: plans are carried out, flows opened.
    let other = town.service(79, &EVERY_POD);
    town.world.write(&other);
    for by in EVERY_WAY {
        let to = town.address(&other, Front::ClusterIp, by);
        town.ask(POD, to, by.udp, SOON).unwrap();
    }
    assert!(told(&town.world.agents[0]));
    // The flow opens anew, and with it there is nothing to remove: the next walk ends.
    udp_exchange(&socket, b"anew", SOON).unwrap();
    assert_ne!(flows.get(&key, 0).unwrap().seen, row.seen);
    town.world.agents[0]
        .wait_until("well again", LIMIT, |agent| Ok(faults(agent).is_empty()))
        .unwrap();
}
