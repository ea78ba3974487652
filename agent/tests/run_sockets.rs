//! Services at sockets: who is translated where it connects, what it is told of its peer,
//! and what is left to packets. Needs root and cgroups of version 2.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::collections::BTreeSet;
use std::io::{ErrorKind, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use datapath_common::SocketHook;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use run_services_support::sockets::{
    NODE, POD, ask_all, flow_rows, mapped, programs, socket_rows, unconnected, who,
};
use run_services_support::{
    ANYWHERE, By, Client, EVERY_POD, EVERY_WAY, Front, SECOND_NODE, SOON, Town, pods_of,
};
use run_support::LIMIT;
use testkit::echo::WHO_AM_I;
use testkit::manifests::Service;
use testkit::server::ECHO_PORT;

/// Every kind of frontend, at the first node.
const FRONTS: [Front; 4] = [
    Front::ClusterIp,
    Front::Vip,
    Front::ExternalIp,
    Front::NodePort(0),
];

#[test]
fn sockets_meet_backends_and_are_told_services() {
    let town = Town::with_sockets("sockets", &[]);
    let service = town.service(70, &SECOND_NODE);
    town.world.write(&service);
    assert_eq!(programs(&town, 0).len(), SocketHook::ALL.len());
    let before = flow_rows(&town);
    for by in EVERY_WAY {
        for (client, fronts) in [(POD, &FRONTS[..1]), (NODE, &FRONTS[..])] {
            for front in fronts {
                let to = town.address(&service, *front, by);
                let wanted: BTreeSet<String> = pods_of(1).iter().map(|p| (*p).into()).collect();
                let mut pods = BTreeSet::new();
                // By chance: twice as often as it takes for one to be missed once in a
                // thousand million runs.
                for round in 0..30 {
                    if round > 2 && pods.is_superset(&wanted) {
                        break;
                    }
                    pods.extend(ask_all(town.ns(client), to, by.udp));
                }
                assert_eq!(pods, wanted, "{client:?} {front:?} {by:?}");
                assert_eq!(flow_rows(&town), before, "{client:?} {front:?} {by:?}");
            }
        }
    }
    // A pod's packets to the others get the node's address, so these meet services.
    for by in EVERY_WAY {
        for front in &FRONTS[1..] {
            let to = town.address(&service, *front, by);
            ask_all(town.ns(POD), to, by.udp);
        }
    }
    assert!(flow_rows(&town) > before);
}

#[test]
fn what_a_socket_is_bound_to_stays() {
    let town = Town::with_sockets("bound", &[]);
    let service = town.service(71, &SECOND_NODE);
    town.world.write(&service);
    let before = flow_rows(&town);
    let by = By {
        udp: true,
        v6: false,
    };
    let to = town.address(&service, Front::ClusterIp, by);
    let own = SocketAddr::new(town.pod(0, 0).ip4().into(), 0);
    let bind = || UdpSocket::bind(own).unwrap();
    let socket = town.ns(POD).run(bind).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(who(&socket, to).1, to);
    assert_eq!(flow_rows(&town), before + 2, "its packets are translated");
    // So are the datagrams of a socket that names their source from the first one on.
    let loose = unconnected(town.ns(POD), to);
    let ask = |source: Option<Ipv4Addr>| {
        let info = nix::libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: nix::libc::in_addr {
                s_addr: u32::from_ne_bytes(source.unwrap_or(Ipv4Addr::UNSPECIFIED).octets()),
            },
            ipi_addr: nix::libc::in_addr { s_addr: 0 },
        };
        let SocketAddr::V4(to4) = to else {
            panic!("{to}");
        };
        let named = [ControlMessage::Ipv4PacketInfo(&info)];
        let named = if source.is_some() { &named[..] } else { &[] };
        let (data, to4) = ([IoSlice::new(WHO_AM_I)], SockaddrIn::from(to4));
        sendmsg(
            loose.as_raw_fd(),
            &data,
            named,
            MsgFlags::empty(),
            Some(&to4),
        )
        .unwrap();
        let mut buffer = [0; 512];
        let (len, from) = loose.recv_from(&mut buffer).unwrap();
        assert_eq!(from, to);
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let first = ask(Some(town.pod(0, 0).ip4()));
    assert_eq!(flow_rows(&town), before + 4);
    for source in [None, Some(town.pod(0, 0).ip4()), None] {
        assert_eq!(ask(source), first);
    }
    assert_eq!(flow_rows(&town), before + 4);
    // Of itself, without leaving the pod.
    let mine = town.service(72, &[(0, 0)]);
    town.world.write(&mine);
    for by in EVERY_WAY {
        let to = town.address(&mine, Front::ClusterIp, by);
        let pods = ask_all(town.ns(POD), to, by.udp);
        assert_eq!(pods, BTreeSet::from([pods_of(0)[0].to_owned()]));
    }
    assert_eq!(flow_rows(&town), before + 4);
    // What is closed is forgotten.
    for by in EVERY_WAY {
        let to = town.address(&mine, Front::ClusterIp, by);
        let before = socket_rows(&town);
        let open: Vec<(Option<TcpStream>, Option<UdpSocket>)> = [to, mapped(to)]
            .into_iter()
            .map(|to| {
                if by.udp {
                    let socket = unconnected(town.ns(POD), to);
                    socket.connect(to).unwrap();
                    return (None, Some(socket));
                }
                let connect = || TcpStream::connect_timeout(&to, SOON);
                (Some(town.ns(POD).run(connect).unwrap().unwrap()), None)
            })
            .collect();
        let mut during = before;
        during[0] += 2;
        assert_eq!(socket_rows(&town), during, "{by:?}");
        drop(open);
        assert_eq!(socket_rows(&town), before, "{by:?}");
    }
    // Nobody is there: refused at once, as by packets.
    let nobody = town.service(73, &[]);
    town.world.write(&nobody);
    for client in [POD, NODE] {
        let to = town.address(&nobody, Front::ClusterIp, EVERY_WAY[0]);
        let connect = || TcpStream::connect_timeout(&to, SOON);
        let error = town.ns(client).run(connect).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}

#[test]
fn kp_62_a_socket_stays_with_a_backend_and_services_with_one_backend_are_told_apart() {
    let town = Town::with_sockets("datagrams", &[]);
    let service = town.service(74, &EVERY_POD);
    let others = [75, 76].map(|n| town.service(n, &[(1, 0)]));
    town.world.write(&service);
    for other in &others {
        town.world.write(other);
    }
    for v6 in [false, true] {
        let by = By { udp: true, v6 };
        let to = town.address(&service, Front::ClusterIp, by);
        let mut pods = BTreeSet::new();
        for _ in 0..40 {
            let socket = unconnected(town.ns(POD), to);
            let (pod, _) = who(&socket, to);
            for _ in 0..4 {
                assert_eq!(who(&socket, to), (pod.clone(), to));
            }
            pods.insert(pod);
        }
        assert_eq!(pods.len(), EVERY_POD.len());
        // One socket asks two services with one backend: each answer has its name, also
        // when both ask before either is answered.
        let [a, b] = others.each_ref();
        let [a, b] = [a, b].map(|s| town.address(s, Front::ClusterIp, by));
        let socket = unconnected(town.ns(POD), a);
        for to in [a, b, a, b, b, a] {
            assert_eq!(who(&socket, to).1, to);
        }
        let mut wanted = BTreeSet::new();
        for (n, to) in [a, b, b, a].into_iter().enumerate() {
            socket.send_to(format!("{n}").as_bytes(), to).unwrap();
            wanted.insert((format!("{n}"), to));
        }
        let mut buffer = [0; 512];
        let answers = (0..wanted.len()).map(|_| {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            let text = String::from_utf8_lossy(&buffer[..len]);
            (text.split(' ').nth(1).unwrap().to_owned(), from)
        });
        assert_eq!(answers.collect::<BTreeSet<_>>(), wanted);
    }
}

#[test]
fn a_connected_socket_may_name_its_service_again() {
    let town = Town::with_sockets("by-name", &[]);
    let service = town.service(83, &EVERY_POD);
    town.world.write(&service);
    for client in [POD, NODE] {
        for v6 in [false, true] {
            let to = town.address(&service, Front::ClusterIp, By { udp: true, v6 });
            for to in [to, mapped(to)] {
                let socket = unconnected(town.ns(client), to);
                socket.connect(to).unwrap();
                socket.send(WHO_AM_I).unwrap();
                let mut buffer = [0; 512];
                let len = socket.recv(&mut buffer).unwrap();
                let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
                let pod = text.split(' ').next().unwrap().to_owned();
                for _ in 0..8 {
                    assert_eq!(who(&socket, to), (pod.clone(), to), "{client:?}");
                }
            }
        }
    }
    assert_eq!(flow_rows(&town), 0);
}

#[test]
fn kp_94_a_network_namespace_is_remembered() {
    let town = Town::with_sockets("remembered", &[]);
    let mut service = town.service(77, &EVERY_POD);
    service.exposure.affinity = Some(Duration::from_secs(30));
    town.world.write(&service);
    let mut distinct = BTreeSet::new();
    for by in EVERY_WAY {
        for client in [POD, Client::Pod(0, 1), NODE] {
            let to = town.address(&service, Front::ClusterIp, by);
            let pods: BTreeSet<String> = (0..8)
                .flat_map(|_| ask_all(town.ns(client), to, by.udp))
                .collect();
            assert_eq!(pods.len(), 1, "{client:?} {by:?}: {pods:?}");
            distinct.extend(pods);
        }
    }
    assert!(distinct.len() > 1, "all on {distinct:?}");
    assert_eq!(flow_rows(&town), 0);
}

#[test]
fn pods_are_left_alone_if_only_the_node_is_served() {
    let town = Town::with_sockets("host", &["--socket-services", "host"]);
    let service = town.service(78, &SECOND_NODE);
    town.world.write(&service);
    for by in EVERY_WAY {
        let to = town.address(&service, Front::ClusterIp, by);
        ask_all(town.ns(NODE), to, by.udp);
    }
    assert_eq!(flow_rows(&town), 0);
    for by in EVERY_WAY {
        let before = flow_rows(&town);
        let to = town.address(&service, Front::ClusterIp, by);
        ask_all(town.ns(POD), to, by.udp);
        assert!(flow_rows(&town) > before, "{by:?}");
    }
}

#[test]
fn nothing_is_attached_if_it_is_off_and_packets_serve_all() {
    let town = Town::with_sockets("off", &["--socket-services", "off"]);
    let service = town.service(79, &EVERY_POD);
    town.world.write(&service);
    assert_eq!(programs(&town, 0), [""; 0]);
    for client in [POD, NODE] {
        for by in EVERY_WAY {
            for front in ANYWHERE {
                let before = flow_rows(&town);
                let to = town.address(&service, front, by);
                ask_all(town.ns(client), to, by.udp);
                assert!(flow_rows(&town) > before, "{client:?} {front:?} {by:?}");
            }
        }
    }
}

/// Until a connected socket is told that it is closed; none if it is not.
fn closed_after(socket: &UdpSocket, limit: Duration) -> Option<Duration> {
    let began = Instant::now();
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    while began.elapsed() < limit {
        match socket.recv(&mut [0; 512]) {
            Err(e) if e.kind() == ErrorKind::ConnectionAborted => return Some(began.elapsed()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            other => panic!("{other:?}"),
        }
    }
    None
}

/// For the manifest to be read, the tables to be written and many sockets to be read in turn,
/// on a machine that is busy. The agent itself has one second from the last table on.
const CLOSED: Duration = Duration::from_secs(3);

#[test]
fn kp_117_connected_sockets_notice_that_their_backend_is_gone() {
    let town = Town::with_sockets("gone", &[]);
    let mut service = town.service(81, &[(1, 0)]);
    let stays = town.service(82, &[(1, 0)]);
    town.world.write(&stays);
    for round in 0..3 {
        service.endpoints = town.service(81, &[(1, 0)]).endpoints;
        town.world.write(&service);
        let connect = |client: Client, to: SocketAddr| {
            let socket = unconnected(town.ns(client), to);
            socket.connect(to).unwrap();
            socket.send(WHO_AM_I).unwrap();
            socket.recv(&mut [0; 512]).unwrap();
            socket
        };
        let ways = [false, true].map(|v6| By { udp: true, v6 });
        let all = |of: &Service| -> Vec<UdpSocket> {
            let clients = [POD, Client::Pod(0, 1), NODE].into_iter();
            let ends = clients.flat_map(|client| {
                let at = ways.map(|by| town.address(of, Front::ClusterIp, by));
                [at[0], at[1], mapped(at[0])].map(|to| (client, to))
            });
            ends.map(|(client, to)| connect(client, to)).collect()
        };
        let (sockets, others) = (all(&service), all(&stays));
        let straight = ways.map(|by| {
            let ip = town.pod(1, 0).ips()[usize::from(by.v6)];
            connect(POD, SocketAddr::new(ip, ECHO_PORT))
        });
        let to = town.address(&service, Front::ClusterIp, ways[0]);
        let loose = unconnected(town.ns(POD), to);
        assert_eq!(who(&loose, to).0, pods_of(1)[0]);

        // Another takes its place, or nobody, or the service goes.
        let began = Instant::now();
        match round {
            0 => {
                service.endpoints = town.service(81, &[(1, 1)]).endpoints;
                town.world.state.write_service(&service).unwrap();
            }
            1 => {
                service.endpoints.clear();
                town.world.state.write_service(&service).unwrap();
            }
            _ => {
                town.world.state.remove_service(&service).unwrap();
            }
        }
        for socket in &sockets {
            let closed = closed_after(socket, LIMIT);
            assert!(closed.is_some(), "{socket:?} in round {round}");
        }
        let took = began.elapsed();
        println!(
            "round {round}: {} sockets closed after {took:?}",
            sockets.len()
        );
        assert!(took < CLOSED, "{took:?} in round {round}");
        if round == 0 {
            assert_eq!(who(&loose, to), (pods_of(1)[1].to_owned(), to));
        }
        for socket in others.iter().chain(&straight) {
            assert_eq!(closed_after(socket, Duration::from_millis(60)), None);
            socket.send(WHO_AM_I).unwrap();
            socket.set_read_timeout(Some(SOON)).unwrap();
            socket.recv(&mut [0; 512]).unwrap();
        }
    }
    // Who closed them is in no pod any more.
    let process = format!("/proc/{}", town.world.agents[0].pid().unwrap());
    let namespace = |of: &Path| std::fs::read_link(of.join("ns/net")).unwrap();
    let threads = std::fs::read_dir(format!("{process}/task")).unwrap();
    let mut threads = threads.map(|thread| thread.unwrap().path());
    let thread = threads
        .find(|thread| std::fs::read_to_string(thread.join("comm")).unwrap() == "departed\n")
        .unwrap();
    testkit::wait::until("the thread at home", LIMIT, || {
        Ok((namespace(&thread) == namespace(Path::new(&process))).then_some(()))
    })
    .unwrap();
}
