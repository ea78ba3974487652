//! Datagrams to a service whose fragments arrive in any order. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use datapath_common::{Hook, Reason};
use run_services_support::{By, Client, EVERY_POD, Front, SILENCE, SOON, Town, all_well};
use run_support::counted;
use testkit::capture::inject_all;
use testkit::cluster::Node;
use testkit::echo::{EchoServer, udp_connect};
use testkit::packet::{Frame, fragments};
use testkit::{NetNs, link};

/// Three fragments on a link with this MTU.
const MTU: usize = 1400;
const OCTETS: usize = 3500;
/// Every order of three.
const ORDERS: [[usize; 3]; 6] = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
];

/// Somebody who sends fragments by hand from a namespace, and its next hop's MAC address.
struct Sender<'a> {
    ns: &'a NetNs,
    next_hop: [u8; 6],
}

impl<'a> Sender<'a> {
    /// A client outside, whose packets go to the first node.
    fn outside(town: &'a Town) -> Self {
        Self {
            ns: town.ns(Client::Outside(0)),
            next_hop: link::mac(town.node(0).ns(), "eth0").unwrap(),
        }
    }

    /// A datagram of `socket` in fragments.
    fn fragments(&self, socket: &UdpSocket, to: SocketAddr, id: u32) -> (Vec<u8>, Vec<Vec<u8>>) {
        let own = socket.local_addr().unwrap();
        let data: Vec<u8> = (0..OCTETS).map(|n| (n / 7) as u8 ^ id as u8).collect();
        let frame = match (own, to) {
            (SocketAddr::V4(own), SocketAddr::V4(to)) => Frame::v4(*own.ip(), *to.ip()),
            (SocketAddr::V6(own), SocketAddr::V6(to)) => Frame::v6(*own.ip(), *to.ip()),
            _ => panic!("{own} and {to} are of two families"),
        };
        let frame = frame
            .macs(link::mac(self.ns, "eth0").unwrap(), self.next_hop)
            .udp(own.port(), to.port())
            .payload(&data);
        let parts: Vec<Vec<u8>> = fragments(&frame, MTU, id)
            .iter()
            .map(Frame::bytes)
            .collect();
        assert_eq!(parts.len(), 3);
        (data, parts)
    }

    /// Sends a datagram in this order; complains unless the answer has its data.
    fn exchange(&self, to: SocketAddr, order: [usize; 3], id: u32) -> Result<(), String> {
        let socket = udp_connect(self.ns, to).unwrap();
        let (data, parts) = self.fragments(&socket, to, id);
        let frames = order.map(|n| &parts[n]);
        inject_all(self.ns, "eth0", &frames).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = vec![0; 65_536];
        match socket.recv(&mut buffer) {
            Ok(len) if buffer[..len].ends_with(&data) => Ok(()),
            Ok(len) => Err(format!(
                "{to}, order {order:?}: another answer of {len} octets"
            )),
            Err(error) => Err(format!("{to}, order {order:?}: {error}")),
        }
    }
}

#[test]
fn fragments_reach_the_service_in_any_order() {
    let town = Town::start("fragments", 1, &[]);
    let service = town.service(41, &EVERY_POD);
    town.world.write(&service);
    let first = town.node(0);
    let outside = Sender::outside(&town);
    let pod = Sender {
        ns: town.ns(Client::Pod(0, 0)),
        next_hop: link::mac(first.ns(), "pod1").unwrap(),
    };
    let mut results = Vec::new();
    let mut id = 100;
    for v6 in [false, true] {
        let by = By { udp: true, v6 };
        for (sender, client, at) in [
            (&outside, Client::Outside(0), Front::NodePort(0)),
            (&outside, Client::Outside(0), Front::Vip),
            (&pod, Client::Pod(0, 0), Front::ClusterIp),
        ] {
            let to = town.address(&service, at, by);
            // Neighbours are known from here on.
            town.ask(client, to, true, SOON).unwrap();
            for order in ORDERS {
                id += 1;
                results.push(sender.exchange(to, order, id));
            }
        }
    }
    assert_eq!(results.len(), 36);
    all_well(results);
    // Of six orders two have one, and two have two before the first one, which are
    // kept from the kernel where the address is a service's alone.
    assert_eq!(counted(first, Hook::PodFrom, Reason::FragmentHeld), 2 * 6);
    assert_eq!(
        counted(first, Hook::PodFrom, Reason::FragmentWithoutFirst),
        0
    );
}

#[test]
fn what_is_held_is_not_given_to_a_datagram_of_later_times() {
    let town = Town::start("held", 1, &[]);
    let service = town.service(42, &EVERY_POD);
    town.world.write(&service);
    let sender = Sender::outside(&town);
    let by = By {
        udp: true,
        v6: false,
    };
    let to = town.address(&service, Front::NodePort(0), by);
    town.ask(Client::Outside(0), to, true, SOON).unwrap();
    let socket = udp_connect(sender.ns, to).unwrap();
    let (_, parts) = sender.fragments(&socket, to, 7);
    inject_all(sender.ns, "eth0", &parts[1..]).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    let mut buffer = [0; 16];
    socket.recv(&mut buffer).unwrap_err();
    // Longer than anything is held.
    std::thread::sleep(Duration::from_secs(4));
    inject_all(sender.ns, "eth0", &parts[..1]).unwrap();
    socket.recv(&mut buffer).unwrap_err();
}

/// Fragments that the kernel of a namespace was given to put together.
fn reassembled(ns: &NetNs) -> u64 {
    let out = link::run_in(ns, "cat", &["/proc/net/snmp"]).unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|name| name == "ReasmReqds");
    values.split(' ').nth(at.unwrap()).unwrap().parse().unwrap()
}

/// Lets packets wait in a queue of one CPU before the node looks at them, as a
/// burst from a network card does.
fn queue_up(node: &Node) {
    let script = "mount -t sysfs none /sys && echo 1 > /sys/class/net/eth0/queues/rx-0/rps_cpus";
    link::run_in(node.ns(), "unshare", &["-m", "sh", "-ec", script]).unwrap();
}

#[test]
fn bursts_in_any_order_come_once() {
    const DATAGRAMS: u32 = 20;
    let town = Town::start("burst", 1, &[]);
    let service = town.service(43, &EVERY_POD);
    town.world.write(&service);
    let first = town.node(0);
    queue_up(first);
    let sender = Sender::outside(&town);
    let by = By {
        udp: true,
        v6: false,
    };
    let front = town.address(&service, Front::NodePort(0), by);
    town.ask(Client::Outside(0), front, true, SOON).unwrap();
    let _own = EchoServer::start(first.ns(), "node", 9999).unwrap();
    let mut id = 1000;
    for order in ORDERS {
        // For a service, and for the node itself.
        for to in [front, SocketAddr::new(front.ip(), 9999)] {
            let before = reassembled(first.ns());
            let socket = udp_connect(sender.ns, to).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            let mut frames = Vec::new();
            for _ in 0..DATAGRAMS {
                id += 1;
                let (_, parts) = sender.fragments(&socket, to, id);
                frames.extend(order.map(|n| parts[n].clone()));
            }
            inject_all(sender.ns, "eth0", &frames).unwrap();
            let mut buffer = vec![0; 65_536];
            for n in 0..DATAGRAMS {
                let answer = socket.recv(&mut buffer);
                answer.unwrap_or_else(|e| panic!("{to}, order {order:?}, answer {n}: {e}"));
            }
            std::thread::sleep(SILENCE);
            let given = reassembled(first.ns()) - before;
            if to.port() == 9999 {
                assert_eq!(given, u64::from(DATAGRAMS) * 3, "order {order:?}");
            } else {
                // Later ones that came first may have been for the node.
                assert!(
                    given <= u64::from(DATAGRAMS) * 2,
                    "order {order:?}: {given}"
                );
            }
        }
    }
}
