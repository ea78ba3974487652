//! Frames on the uplink's link with a source that only the node has: nothing is served or
//! translated for them, and what the node turns back to itself goes on. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use datapath_common::{Hook, Reason};
use run_services_support::{
    ANYWHERE, By, Client, EVERY_POD, EVERY_WAY, Front, SILENCE, SOON, Source, Town, all_well,
    pods_of,
};
use run_support::{LIMIT, counted};
use testkit::capture::{Capture, inject};
use testkit::cluster::UPLINK;
use testkit::echo::{udp_connect, udp_exchange};
use testkit::packet::{Frame, L4, parse};
use testkit::server::{ECHO_PORT, PodServer};
use testkit::wait;
use tulle_agent::plan::derived_vtep_mac;

/// Whom a frame says that it is from. None is of the cluster's link: the switch would learn
/// it at the wrong port.
fn senders(town: &Town) -> [[u8; 6]; 2] {
    let IpAddr::V4(node) = town.node(0).ips()[0] else {
        panic!("the first address is IPv4");
    };
    // Every frame to the node's pods names its VTEP, so nobody is known by that.
    [[2, 9, 9, 9, 9, 9], derived_vtep_mac(node).octets()]
}

/// A datagram as a host on the link sends it to the first node.
fn datagram(
    town: &Town,
    sender: [u8; 6],
    from: SocketAddr,
    to: SocketAddr,
    data: &[u8],
) -> Vec<u8> {
    let frame = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Frame::v4(from, to),
        (IpAddr::V6(from), IpAddr::V6(to)) => Frame::v6(from, to),
        _ => panic!("{from} and {to} are of two families"),
    };
    let udp = frame.udp(from.port(), to.port()).payload(data);
    let mut bytes = udp.bytes();
    bytes[..6].copy_from_slice(&town.node(0).uplink_mac());
    bytes[6..12].copy_from_slice(&sender);
    bytes
}

fn send(town: &Town, frame: &[u8]) {
    inject(town.outsider(0).ns(), UPLINK, frame).unwrap();
}

fn martians(town: &Town) -> u64 {
    counted(town.node(0), Hook::NicIn, Reason::MartianSource)
}

/// Sends it and waits until it is refused.
fn is_refused(town: &Town, frame: &[u8], what: &str) {
    let before = martians(town);
    send(town, frame);
    wait::until(what, LIMIT, || Ok((martians(town) > before).then_some(()))).unwrap();
}

fn holds(frame: &[u8], data: &[u8]) -> bool {
    parse(frame)
        .is_ok_and(|frame| matches!(frame.upper(), Some(L4::Udp(udp)) if udp.payload == data))
}

#[test]
fn nobody_on_the_link_is_served_as_the_node_or_one_of_its_pods() {
    let town = Town::start("martian", 1, &[]);
    let service = town.service(91, &EVERY_POD[..1]);
    town.world.write(&service);
    let (node, pod) = (town.node(0), town.pod(0, 0));
    let seen = Capture::start(pod.ns(), UPLINK, 1000).unwrap();
    for v6 in [false, true] {
        let family = usize::from(v6);
        let loopback: IpAddr = if v6 { "::1" } else { "127.0.0.1" }.parse().unwrap();
        let sources = [node.ips()[family], town.pod(0, 1).ips()[family], loopback];
        for source in sources {
            for at in [Front::NodePort(0), Front::Vip, Front::ClusterIp] {
                let to = town.address(&service, at, By { udp: true, v6 });
                for sender in senders(&town) {
                    let data = format!("from {source} at {sender:x?} to {to}");
                    let from = SocketAddr::new(source, 4000);
                    let frame = datagram(&town, sender, from, to, data.as_bytes());
                    is_refused(&town, &frame, &data);
                }
            }
        }
        // A client outside is served, and shows that the others had their time.
        let outside = SocketAddr::new(town.outsider(0).ips()[family], 4000);
        let to = town.address(&service, Front::Vip, By { udp: true, v6 });
        let [sender, _] = senders(&town);
        let asked = b"of a client outside";
        send(&town, &datagram(&town, sender, outside, to, asked));
        let came = |bytes: &[u8]| holds(bytes, b"of a client outside");
        seen.wait_for("the client's", LIMIT, |frame| came(&frame.bytes))
            .unwrap();
    }
    for frame in seen.stop().unwrap() {
        let text = String::from_utf8_lossy(&frame.bytes).into_owned();
        assert!(!text.contains("from "), "{text}");
    }
}

/// Waits a moment for a datagram.
fn heard(socket: &UdpSocket) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let mut buffer = [0; 256];
    let len = socket.recv(&mut buffer).ok()?;
    Some(buffer[..len].to_vec())
}

#[test]
fn nobody_on_the_link_answers_as_one_of_the_nodes_pods() {
    let town = Town::start("answer", 1, &[]);
    let service = town.service(92, &EVERY_POD[1..2]);
    town.world.write(&service);
    let backend = town.pod(0, 1);
    for v6 in [false, true] {
        let to = town.address(&service, Front::ClusterIp, By { udp: true, v6 });
        let socket = udp_connect(town.ns(Client::Pod(0, 0)), to).unwrap();
        assert_eq!(udp_exchange(&socket, b"?", SOON).unwrap(), backend.name());
        let from = SocketAddr::new(backend.ips()[usize::from(v6)], ECHO_PORT);
        let client = socket.local_addr().unwrap();
        for sender in senders(&town) {
            let frame = datagram(&town, sender, from, client, b"forged");
            is_refused(&town, &frame, "a forged answer");
            assert_eq!(heard(&socket), None, "{to} from {sender:x?}");
        }
    }
}

#[test]
fn what_the_node_turns_back_to_itself_is_no_martian() {
    let town = Town::start("back", 1, &[]);
    let node = town.node(0);
    let server = PodServer::start(node.ns(), node.name()).unwrap();
    let near = town.service(93, &EVERY_POD[..2]);
    let mut host = town.service(94, &EVERY_POD[..1]);
    host.endpoints[0].ips = node.ips();
    node.name().clone_into(&mut host.endpoints[0].pod);
    for service in [&near, &host] {
        town.world.write(service);
    }
    // Each answer comes by the program as from the link.
    let came = || counted(node, Hook::NicIn, Reason::NotOurs);
    let before = came();
    let mut results = Vec::new();
    let client = Client::Node(0);
    for by in EVERY_WAY {
        for at in ANYWHERE {
            results.push(town.spread(client, &near, at, by, pods_of(0), Source::NodeSide(0)));
            let name = [node.name()];
            results.push(town.spread(client, &host, at, by, &name, Source::Frontend));
        }
    }
    let questions = 24 * results.len() as u64;
    all_well(results);
    assert!(
        came() - before >= questions,
        "{} of {questions}",
        came() - before
    );
    assert_eq!(martians(&town), 0);
    drop(server);
}
