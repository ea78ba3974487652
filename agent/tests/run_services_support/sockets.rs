//! Sockets that are given backends: what processes do with them, and what the agent has of
//! them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError, MapType};
use datapath_common::{
    Connection, Flow, FlowKey, Ip4, Ip6, SocketHook, SocketId, SocketKey, SocketPeer, maps,
};
use testkit::NetNs;
use testkit::echo::WHO_AM_I;
use testkit::manifests::Service;

use super::{By, Client, SOON, Town, ask};

pub const POD: Client = Client::Pod(0, 0);
pub const NODE: Client = Client::Node(0);

fn opened(pin: &Path) -> Map {
    let map = MapData::from_pin(pin).unwrap();
    match map.info().unwrap().map_type().unwrap() {
        MapType::LruHash => Map::LruHashMap(map),
        _ => Map::HashMap(map),
    }
}

fn rows<K: aya::Pod + 'static, V: aya::Pod + 'static>(pin: &Path) -> usize {
    let map: HashMap<_, K, V> = opened(pin).try_into().unwrap();
    let keys: Result<Vec<K>, MapError> = map.keys().collect();
    keys.unwrap().len()
}

/// Rows of the first node's flow tables: two for each flow whose packets were translated.
pub fn flow_rows(town: &Town) -> usize {
    let pin = |map| town.node(0).bpffs().join(map);
    rows::<FlowKey<Ip4>, Flow<Ip4>>(&pin(maps::FLOW_V4))
        + rows::<FlowKey<Ip6>, Flow<Ip6>>(&pin(maps::FLOW_V6))
}

/// Rows of what the first node's sockets were given: of connected ones, and of others.
pub fn socket_rows(town: &Town) -> [usize; 2] {
    let pin = |map| town.node(0).bpffs().join(map);
    [
        rows::<SocketId, Connection<Ip4>>(&pin(maps::CONNS_V4))
            + rows::<SocketId, Connection<Ip6>>(&pin(maps::CONNS_V6)),
        rows::<SocketKey<Ip4>, SocketPeer<Ip4>>(&pin(maps::SOCKS_V4))
            + rows::<SocketKey<Ip6>, SocketPeer<Ip6>>(&pin(maps::SOCKS_V6)),
    ]
}

/// Writes a row of the first node's `map`, as its programs would.
pub fn put_row<K: aya::Pod, V: aya::Pod>(town: &Town, map: &str, key: K, value: V) {
    let map = opened(&town.node(0).bpffs().join(map));
    let mut map: HashMap<_, K, V> = map.try_into().unwrap();
    map.insert(key, value, 0).unwrap();
}

/// An IPv4 address as an IPv6 socket writes it.
pub fn mapped(at: SocketAddr) -> SocketAddr {
    match at.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), at.port()),
        IpAddr::V6(_) => at,
    }
}

/// An unconnected socket of the family.
pub fn unconnected(ns: &NetNs, to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = ns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// Asks by an unconnected socket who answers: the pod, and the address that the answer has.
pub fn who(socket: &UdpSocket, to: SocketAddr) -> (String, SocketAddr) {
    socket.send_to(WHO_AM_I, to).unwrap();
    let mut buffer = [0; 512];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
    (text.split(' ').next().unwrap().to_owned(), from)
}

/// Asks in every way that a process of the namespace has; all are told that it was `to`.
pub fn ask_all(ns: &NetNs, to: SocketAddr, udp: bool) -> BTreeSet<String> {
    let mut pods = BTreeSet::new();
    for to in [to, mapped(to)] {
        if udp {
            let socket = unconnected(ns, to);
            let (pod, from) = who(&socket, to);
            assert_eq!(from, to, "of an answer");
            pods.insert(pod);
            let socket = unconnected(ns, to);
            socket.connect(to).unwrap();
            assert_eq!(socket.peer_addr().unwrap(), to, "connected");
            socket.send(WHO_AM_I).unwrap();
            let mut buffer = [0; 512];
            let (_, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(from, to, "of an answer, connected");
        } else {
            let stream = ns
                .run(|| TcpStream::connect_timeout(&to, SOON))
                .unwrap()
                .unwrap_or_else(|e| panic!("{to}: {e}"));
            assert_eq!(stream.peer_addr().unwrap(), to, "connected");
        }
        pods.insert(ask(ns, to, udp, SOON).unwrap().pod);
    }
    pods
}

/// The programs at sockets that are attached at a node.
pub fn programs(town: &Town, node: usize) -> Vec<String> {
    let links = town.node(node).bpffs().join("links");
    let names = std::fs::read_dir(links).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_one = |name: &String| SocketHook::ALL.iter().any(|hook| hook.program() == name);
    names.filter(is_one).collect()
}

/// The service's own address.
pub fn own_address(service: &Service, by: By) -> SocketAddr {
    let port = service.ports[usize::from(by.udp)].port;
    SocketAddr::new(service.ips[usize::from(by.v6)], port)
}
