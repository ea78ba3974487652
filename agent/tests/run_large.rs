//! Packets to services that are larger than the overlay, or than a pod's link: the
//! kernel fragments those that may be, as a router does. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::{SocketAddr, UdpSocket};

use datapath_common::{Hook, Reason};
use run_services_support::{
    ANYWHERE, By, Client, EVERY_POD, Front, SECOND_NODE, SOON, Town, all_well, strict_rp_filter,
};
use run_support::{LIMIT, counted};
use testkit::bulk::transfer;
use testkit::capture::inject_all;
use testkit::cluster::{Node, UPLINK};
use testkit::echo::{udp_connect, udp_exchange};
use testkit::manifests::{Protocol, Service};
use testkit::packet::{Frame, fragments};
use testkit::probe::{Discovery, Probe, set_discovery};
use testkit::server::ECHO_PORT;
use testkit::{link, wait};

/// Of the uplinks and of hosts outside.
const LINK_MTU: usize = 1500;
/// Largest payload of UDP over IPv4 that goes into one packet there.
const ONE_PACKET: usize = LINK_MTU - 28;
/// What does not fit the overlay whole: one packet, three fragments of which the
/// last one fits, and three of which none does.
const LARGE: [usize; 3] = [ONE_PACKET, 3000, 3 * (LINK_MTU - 20) - 8];
const UDP4: By = By {
    udp: true,
    v6: false,
};

/// A reverse path filter as strict as can be, and connection tracking: it puts
/// fragments together before they are routed, and what it finds invalid is dropped
/// (KP-125).
fn track(node: &Node) {
    strict_rp_filter(node);
    let rules = "add table ip watch; \
                 add chain ip watch forward { type filter hook forward priority 0; }; \
                 add rule ip watch forward ct state invalid drop";
    let done = link::run_in(node.ns(), "nft", &[rules]).unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// A socket whose packets have no "don't fragment".
fn divisible(town: &Town, client: Client, to: SocketAddr) -> UdpSocket {
    let socket = udp_connect(town.ns(client), to).unwrap();
    set_discovery(&socket, Discovery::Never).unwrap();
    socket
}

/// Every size at this place.
fn large(town: &Town, service: &Service, client: Client, at: Front) -> Vec<Result<(), String>> {
    let to = town.address(service, at, UDP4);
    let socket = divisible(town, client, to);
    let one = |octets: &usize| {
        let data: Vec<u8> = (0..*octets).map(|n| (n / 5) as u8 | 1).collect();
        match udp_exchange(&socket, &data, SOON) {
            Ok(pod) if service.endpoints.iter().any(|e| e.pod == pod) => Ok(()),
            other => Err(format!(
                "{client:?} → {at:?} ({to}), {octets} octets: {other:?}"
            )),
        }
    };
    LARGE.iter().map(one).collect()
}

fn every_client(town: &Town) {
    let far = town.service(81, &SECOND_NODE[..1]);
    let near = town.service(82, &EVERY_POD[..1]);
    let mut results = Vec::new();
    for service in [&far, &near] {
        town.world.write(service);
        for at in [Front::NodePort(0), Front::Vip] {
            results.extend(large(town, service, Client::Outside(0), at));
        }
        for at in ANYWHERE.into_iter().chain([Front::NodePort(0)]) {
            results.extend(large(town, service, Client::Node(0), at));
        }
    }
    assert_eq!(results.len(), 2 * 6 * LARGE.len());
    all_well(results);
}

#[test]
fn what_may_be_fragmented_reaches_every_pod() {
    let town = Town::start("large", 1, &[]);
    every_client(&town);
    let first = town.node(0);
    // One packet and two times three fragments at each of two places.
    let by_kernel = counted(first, Hook::NicIn, Reason::TranslatedToKernel);
    assert_eq!(by_kernel, 2 * (1 + 3 + 3));
    assert_eq!(counted(first, Hook::NicIn, Reason::TooBig), 0);
}

#[test]
fn nor_do_filters_and_connection_tracking_stand_in_its_way() {
    let town = Town::with("tracked", 1, &[], track);
    every_client(&town);
}

#[test]
fn fragments_that_the_kernel_divides_come_in_any_order() {
    let town = Town::with("divided", 1, &[], track);
    let service = town.service(83, &SECOND_NODE);
    town.world.write(&service);
    let to = town.address(&service, Front::NodePort(0), UDP4);
    let client = town.ns(Client::Outside(0));
    town.ask(Client::Outside(0), to, true, SOON).unwrap();
    let next_hop = link::mac(town.node(0).ns(), UPLINK).unwrap();
    let mut buffer = vec![0; 65_536];
    for (id, order) in (900..).zip([[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]]) {
        let socket = udp_connect(client, to).unwrap();
        let (SocketAddr::V4(own), SocketAddr::V4(to)) = (socket.local_addr().unwrap(), to) else {
            panic!("{to} is not IPv4");
        };
        let data = vec![id as u8; 3000];
        let frame = Frame::v4(*own.ip(), *to.ip())
            .macs(link::mac(client, UPLINK).unwrap(), next_hop)
            .udp(own.port(), to.port())
            .payload(&data);
        let parts: Vec<Vec<u8>> = fragments(&frame, LINK_MTU, id)
            .iter()
            .map(Frame::bytes)
            .collect();
        inject_all(client, UPLINK, &order.map(|n| &parts[n])).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let len = socket
            .recv(&mut buffer)
            .unwrap_or_else(|e| panic!("order {order:?}: {e}"));
        assert!(buffer[..len].ends_with(&data), "order {order:?}");
    }
}

#[test]
fn a_client_that_forbids_fragments_is_told() {
    let town = Town::start("forbids", 1, &[]);
    let far = town.service(84, &SECOND_NODE);
    let near = town.service(85, &EVERY_POD[..2]);
    let mut clients = Vec::new();
    for service in [&far, &near] {
        town.world.write(service);
        clients.extend(ANYWHERE.map(|at| (Client::Node(0), service, at)));
    }
    clients.extend([
        (Client::Outside(0), &far, Front::NodePort(0)),
        (Client::Outside(0), &far, Front::Vip),
    ]);
    for (client, service, at) in clients {
        for v6 in [false, true] {
            let to = town.address(service, at, By { udp: true, v6 });
            let probe = Probe::connect(town.ns(client), to).unwrap();
            let headers = if v6 { 48 } else { 28 };
            probe.send(&vec![7; LINK_MTU - headers]).unwrap();
            let error = probe.icmp_error(SOON).unwrap();
            assert_eq!(error.mtu, 1450, "{client:?} → {to}");
            // The kernel keeps it for this destination.
            wait::until(&format!("{to} is known"), LIMIT, || {
                Ok((probe.path_mtu()? == 1450).then_some(()))
            })
            .unwrap();
            udp_exchange(probe.socket(), &vec![7; 1450 - headers], SOON)
                .unwrap_or_else(|e| panic!("{client:?} → {to}: {e}"));
        }
    }
}

#[test]
fn a_connection_without_path_mtu_discovery_is_divided_too() {
    let town = Town::with("segments", 1, &[], track);
    let (first, second) = (town.node(0), town.node(1));
    // With an MTU that the overlay does not have a pod asks for segments that do not fit,
    // until it has learned better itself.
    for pod in second.pods() {
        link::set_mtu(pod.ns(), UPLINK, LINK_MTU as u32).unwrap();
        wait::until("larger MTU at the pod's link", LIMIT, || {
            let mtu = link::mtu(second.ns(), pod.host_if())?;
            Ok((mtu == LINK_MTU as u32).then_some(()))
        })
        .unwrap();
    }
    for (n, client, hook) in [
        (0, Client::Outside(0), Hook::NicIn),
        (1, Client::Node(0), Hook::NicOut),
    ] {
        let service = town
            .service(86 + n, &SECOND_NODE[usize::from(n)..][..1])
            .port(Protocol::Tcp, 77, ECHO_PORT);
        town.world.write(&service);
        let ns = town.ns(client);
        link::sysctl(ns, "net.ipv4.ip_no_pmtu_disc", "1").unwrap();
        let to = SocketAddr::new(service.exposure.balancer_ips[0], 77);
        let seen = transfer(ns, to, 1 << 20, LIMIT).unwrap();
        assert_eq!(seen.pod, service.endpoints[0].pod);
        let divided = counted(first, hook, Reason::TranslatedToKernel);
        assert!(divided > 0, "{client:?}");
    }
}

#[test]
fn a_tunnel_to_a_service_gets_through() {
    let town = Town::with("tunnel", 1, &[], track);
    let service = town.service(89, &SECOND_NODE);
    town.world.write(&service);
    let to = town.address(&service, Front::Vip, UDP4);
    let first = town.node(0);
    for (client, hook) in [
        (Client::Outside(0), Hook::NicIn),
        (Client::Node(0), Hook::NicOut),
    ] {
        let ns = town.ns(client);
        let count = |reason| counted(first, hook, reason);
        let answers = || counted(first, Hook::NicIn, Reason::ReplyTranslated);
        let before = (
            count(Reason::SlowPath),
            count(Reason::Encapsulated),
            answers(),
        );
        // Linux marks what its tunnels send with a checksum still to be made: programs
        // cannot put that into another tunnel.
        let (addr, port) = (to.ip(), to.port());
        let ip = |line: &str| {
            let args: Vec<&str> = line.split(' ').collect();
            link::ip(ns, &args).unwrap();
        };
        ip(&format!(
            "link add inner type vxlan id 7 remote {addr} dstport {port} dev {UPLINK} noudpcsum"
        ));
        // It sends nothing of its own.
        link::sysctl(ns, "net.ipv6.conf.inner.disable_ipv6", "1").unwrap();
        ip("addr add 10.9.9.1/24 dev inner");
        ip("link set inner up");
        ip("neigh add 10.9.9.2 lladdr 02:00:00:00:09:02 dev inner");
        let within = SocketAddr::from(([10, 9, 9, 2], 5));
        udp_connect(ns, within).unwrap().send(&[7; 100]).unwrap();
        wait::until(&format!("{client:?} is answered"), LIMIT, || {
            Ok((answers() > before.2).then_some(()))
        })
        .unwrap();
        assert_eq!(count(Reason::SlowPath), before.0 + 1, "{client:?}");
        assert_eq!(count(Reason::Encapsulated), before.1, "{client:?}");
    }
}
