//! Pods behind a bridge, as flannel's CNI plugin leaves them: reached by every kind of
//! client, and served themselves. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::{IpAddr, SocketAddr};

use datapath_common::{Hook, Reason};
use run_services_support::{
    ALL, ANYWHERE, AT_ONCE, Client, EVERY_POD, EVERY_WAY, EXTERNAL, FRONTS, Front, SECOND_NODE,
    SOON, Source, Town, all_well, ask, pods_of, strict_rp_filter, timed,
};
use run_support::{LIMIT, counted};
use testkit::bulk::transfer;
use testkit::cluster::{Node, Pod, UPLINK};
use testkit::echo::{udp_connect, udp_exchange};
use testkit::link;
use testkit::manifests::Protocol;
use testkit::server::{ECHO_PORT, PodServer};
use testkit::wait;

/// flannel's name for it.
const BRIDGE: &str = "cni0";

/// The bridge's addresses, with the lengths of the pod networks.
fn gateways(node: &Node) -> [(IpAddr, u8); 2] {
    let (v4, v6) = (node.pod_cidr4(), node.pod_cidr6().unwrap());
    let first = |network: IpAddr| match network {
        IpAddr::V4(network) => IpAddr::from((network.to_bits() + 1).to_be_bytes()),
        IpAddr::V6(network) => IpAddr::from((network.to_bits() + 1).to_be_bytes()),
    };
    [
        (first(v4.network().into()), v4.prefix_len()),
        (first(v6.network().into()), v6.prefix_len()),
    ]
}

/// A bridge with the first address of each of the node's pod networks.
fn make_bridge(node: &Node) {
    link::bridge(node.ns(), BRIDGE).unwrap();
    for (gateway, length) in gateways(node) {
        link::address(node.ns(), BRIDGE, &format!("{gateway}/{length}")).unwrap();
    }
}

/// Puts a pod behind the bridge: it is on one link with its whole pod network.
fn join(node: &Node, pod: &Pod) {
    let (ip4, ip6, host) = (pod.ip4(), pod.ip6().unwrap(), pod.host_if());
    let [(gateway4, length4), (gateway6, length6)] = gateways(node);
    let outside = [
        format!("route del {ip4}/32 dev {host}"),
        format!("route del {ip6}/128 dev {host}"),
        format!("neigh flush dev {host} nud permanent"),
        format!("link set {host} master {BRIDGE}"),
    ];
    link::batch(node.ns(), &outside).unwrap();
    let inside = [
        format!("addr flush dev {UPLINK} scope global"),
        format!("neigh flush dev {UPLINK} nud permanent"),
        format!("addr add {ip4}/{length4} dev {UPLINK}"),
        format!("addr add {ip6}/{length6} dev {UPLINK} nodad"),
        format!("route replace default via {gateway4} dev {UPLINK}"),
        format!("route replace ::/0 via {gateway6} dev {UPLINK}"),
    ];
    link::batch(pod.ns(), &inside).unwrap();
}

/// A node that was flannel's.
fn bridged(node: &Node) {
    strict_rp_filter(node);
    make_bridge(node);
    for pod in node.pods() {
        join(node, pod);
    }
}

/// A node with a bridge, the other as ever.
fn first_bridged(node: &Node) {
    if node.index() == 1 {
        bridged(node);
    }
}

/// A forward chain as flannel and kube-proxy leave it, which tracks connections.
fn walled(node: &Node) {
    bridged(node);
    let rules = "add table inet wall
        add chain inet wall forward { type filter hook forward priority 0; policy drop; }
        add rule inet wall forward ct state invalid drop
        add rule inet wall forward ct state established,related accept
        add rule inet wall forward ip saddr 10.244.0.0/16 accept
        add rule inet wall forward ip daddr 10.244.0.0/16 accept
        add rule inet wall forward ip6 saddr fd44::/16 accept
        add rule inet wall forward ip6 daddr fd44::/16 accept";
    link::run_in(node.ns(), "nft", &[rules]).unwrap();
}

/// Whether that chain sees what the bridge switches, where the kernel can show it.
fn show_frames(node: &Node, yes: bool) {
    for family in ["iptables", "ip6tables"] {
        let key = format!("net.bridge.bridge-nf-call-{family}");
        if link::read_sysctl(node.ns(), &key).is_ok() {
            link::sysctl(node.ns(), &key, if yes { "1" } else { "0" }).unwrap();
        }
    }
}

#[test]
fn a_forward_chain_leaves_pods_behind_a_bridge_alone() {
    let town = Town::with("chain", 1, &[], walled);
    let near = town.service(23, &EVERY_POD[..2]);
    let far = town.service(24, &SECOND_NODE);
    town.world.write(&near);
    town.world.write(&far);
    let mut results = Vec::new();
    for frames in [false, true] {
        show_frames(town.node(0), frames);
        show_frames(town.node(1), frames);
        for by in EVERY_WAY {
            for client in [Client::Outside(0), Client::Node(0), Client::Pod(0, 0)] {
                for at in [Front::NodePort(0), Front::Vip] {
                    results.push(town.spread(client, &near, at, by, pods_of(0), Source::Own));
                    let source = Source::NodeSide(0);
                    results.push(town.spread(client, &far, at, by, pods_of(1), source));
                }
            }
            for client in [Client::Pod(0, 0), Client::Pod(1, 0)] {
                for (service, pods) in [(&near, pods_of(0)), (&far, pods_of(1))] {
                    let at = Front::ClusterIp;
                    results.push(town.spread(client, service, at, by, pods, Source::Own));
                }
            }
        }
    }
    all_well(results);
}

#[test]
fn every_client_reaches_pods_behind_a_bridge() {
    let town = Town::with("bridged", 1, &[], bridged);
    let near = town.service(20, &EVERY_POD[..2]);
    let mut local = town.service(21, &EVERY_POD[..2]);
    local.exposure.external_local = true;
    town.world.write(&near);
    town.world.write(&local);
    let mut results = Vec::new();
    for by in EVERY_WAY {
        for client in [Client::Outside(0), Client::Node(0), Client::Pod(0, 0)] {
            for at in FRONTS {
                // Nobody's but by the other node's masquerade.
                let source = match at {
                    Front::NodePort(1) => Source::NodeSide(1),
                    _ => Source::Own,
                };
                results.push(town.spread(client, &near, at, by, pods_of(0), source));
            }
            for at in EXTERNAL {
                results.push(town.spread(client, &local, at, by, pods_of(0), Source::Own));
            }
        }
        // By way of the other node, which translates for its own.
        for at in ANYWHERE {
            let (pod, node) = (Client::Pod(1, 0), Client::Node(1));
            let masqueraded = Source::NodeSide(1);
            let of_pod = if at == Front::ClusterIp {
                Source::Own
            } else {
                masqueraded
            };
            results.push(town.spread(pod, &near, at, by, pods_of(0), of_pod));
            results.push(town.spread(node, &near, at, by, pods_of(0), masqueraded));
        }
        results.push(town.spread(
            Client::Pod(1, 0),
            &near,
            Front::NodePort(0),
            by,
            pods_of(0),
            Source::Node(1),
        ));
    }
    assert_eq!(results.len(), EVERY_WAY.len() * (3 * 8 + 7));
    all_well(results);
    for agent in &town.world.agents {
        assert_eq!(agent.status().unwrap().faults, [""; 0]);
    }
    // Not by the kernel's forwarding.
    let node = town.node(0);
    for hook in [Hook::PodFrom, Hook::NicIn, Hook::NicOut] {
        assert!(counted(node, hook, Reason::DeliveredLocal) > 0, "{hook:?}");
        assert_eq!(
            counted(node, hook, Reason::TranslatedToKernel),
            0,
            "{hook:?}"
        );
    }
}

#[test]
fn pods_behind_a_bridge_are_served() {
    let town = Town::with("behind", 1, &[], first_bridged);
    let server = PodServer::start(town.node(0).ns(), town.node(0).name()).unwrap();
    let all = town.service(30, &EVERY_POD);
    let far = town.service(31, &SECOND_NODE);
    let mut own = town.service(32, &EVERY_POD[..1]);
    own.exposure.external_local = true;
    let mut host = town.service(33, &EVERY_POD[..1]);
    host.endpoints[0].ips = town.node(0).ips();
    town.node(0).name().clone_into(&mut host.endpoints[0].pod);
    for service in [&all, &far, &own, &host] {
        town.world.write(service);
    }
    let client = Client::Pod(0, 0);
    let mut results = Vec::new();
    for by in EVERY_WAY {
        let mut check = |service, at, pods: &[&str], source| {
            results.push(town.spread(client, service, at, by, pods, source));
        };
        check(&all, Front::ClusterIp, &ALL, Source::Own);
        check(&far, Front::ClusterIp, pods_of(1), Source::Own);
        if !by.udp {
            // An unbound UDP socket answers a pod from the bridge's own address.
            check(&host, Front::ClusterIp, &[town.node(0).name()], Source::Own);
            check(
                &host,
                Front::NodePort(0),
                &[town.node(0).name()],
                Source::Own,
            );
        }
        check(&own, Front::ClusterIp, &ALL[..1], Source::Frontend);
        for at in EXTERNAL {
            check(&far, at, pods_of(1), Source::NodeSide(0));
            check(&own, at, &ALL[..1], Source::Frontend);
        }
        check(&far, Front::NodePort(1), pods_of(1), Source::NodeSide(1));
    }
    all_well(results);
    drop(server);
}

#[test]
fn pods_behind_a_bridge_leave_the_cluster_and_hear_of_errors() {
    let town = Town::with("errors", 1, &[], first_bridged);
    let outsider = town.outsider(0);
    let server = PodServer::start(outsider.ns(), "outside").unwrap();
    for (udp, port) in [(false, 8080), (true, ECHO_PORT)] {
        for ip in outsider.ips() {
            let at = SocketAddr::new(ip, port);
            let answer = ask(town.pod(0, 0).ns(), at, udp, SOON).unwrap();
            assert!(town.node(0).ips().contains(&answer.seen.ip()), "{answer:?}");
        }
    }
    // And the other way, with addresses as they are.
    let node = town.node(0);
    outsider.route(&node.pod_cidr4().to_string(), node).unwrap();
    outsider
        .route(&node.pod_cidr6().unwrap().to_string(), node)
        .unwrap();
    let pod = town.pod(0, 0);
    for (own, ip) in outsider.ips().into_iter().zip(pod.ips()) {
        for (udp, port) in [(false, 8080), (true, ECHO_PORT)] {
            let answer = ask(outsider.ns(), SocketAddr::new(ip, port), udp, SOON).unwrap();
            assert_eq!((answer.pod.as_str(), answer.seen.ip()), (pod.name(), own));
        }
        let to = SocketAddr::new(ip, ECHO_PORT);
        let seen = transfer(outsider.ns(), to, 1 << 20, SOON).unwrap();
        assert_eq!(seen.pod, pod.name());
    }
    drop(server);
    // Nobody listens at its endpoint, which says so.
    let mut closed = town.service(40, &EVERY_POD[..1]);
    for port in &mut closed.ports {
        port.target = 9;
    }
    town.world.write(&closed);
    for (client, at) in [
        (Client::Outside(0), Front::NodePort(0)),
        (Client::Outside(0), Front::Vip),
        (Client::Node(0), Front::ClusterIp),
        (Client::Node(0), Front::NodePort(0)),
        (Client::Pod(0, 1), Front::ClusterIp),
        (Client::Pod(1, 0), Front::ClusterIp),
        (Client::Node(1), Front::ClusterIp),
    ] {
        for by in EVERY_WAY {
            let to = town.address(&closed, at, by);
            let (answer, took) = timed(|| town.ask(client, to, by.udp, SOON));
            answer.unwrap_err();
            assert!(took < AT_ONCE, "{client:?} → {to} took {took:?}");
        }
    }
}

#[test]
fn large_packets_from_outside_get_behind_the_bridge() {
    let town = Town::with("large", 1, &[], first_bridged);
    let mut echo = town.service(50, &EVERY_POD[..1]);
    echo = echo.port(Protocol::Tcp, 77, ECHO_PORT).node_port(32_050);
    town.world.write(&echo);
    for client in [Client::Outside(0), Client::Node(0), Client::Pod(0, 1)] {
        let ns = town.ns(client);
        for ip in town.node(0).ips() {
            let seen = transfer(ns, SocketAddr::new(ip, 32_050), 4 << 20, LIMIT).unwrap();
            assert_eq!(seen.pod, "node-1-pod-1", "{client:?}");
        }
    }
    // The first fragments are as large as the uplink takes, which the bridge does not.
    for ip in town.node(0).ips() {
        let to = SocketAddr::new(ip, 31_050);
        let socket = udp_connect(town.ns(Client::Outside(0)), to).unwrap();
        let what = format!("a large datagram to {to} is answered");
        let answer = wait::until(&what, LIMIT, || {
            // Routers cut IPv4's once more; IPv6's sender is told to, and has lost one by then.
            Ok(udp_exchange(&socket, &[7; 4000], AT_ONCE).ok())
        });
        assert_eq!(answer.unwrap(), "node-1-pod-1");
    }
}

#[test]
fn a_bridge_that_comes_late_is_found_and_one_that_goes_is_forgotten() {
    let town = Town::start("late", 1, &[]);
    let service = town.service(60, &EVERY_POD[..1]);
    town.world.write(&service);
    let node = town.node(0);
    let (outside, pod) = (Client::Outside(0), Client::Pod(0, 0));
    let well = |what: &str| {
        wait::until(what, LIMIT, || {
            let asked = [(outside, Front::NodePort(0)), (pod, Front::ClusterIp)];
            let all = asked.into_iter().all(|(client, at)| {
                EVERY_WAY.into_iter().all(|by| {
                    let to = town.address(&service, at, by);
                    town.ask(client, to, by.udp, AT_ONCE).is_ok()
                })
            });
            Ok(all.then_some(()))
        })
        .unwrap();
    };
    let attached = || {
        let links = town.world.agents[0].status().unwrap().links;
        let port = node.pods()[0].host_if();
        links.iter().filter(|link| link.interface == port).count()
    };
    well("a pod on a link of its own is served");
    make_bridge(node);
    join(node, &node.pods()[0]);
    well("a pod behind a bridge is served");
    assert_eq!(attached(), 2);
    link::ip(node.ns(), &["link", "del", BRIDGE]).unwrap();
    wait::until("the former port is let go", LIMIT, || {
        Ok((attached() == 0).then_some(()))
    })
    .unwrap();
}
