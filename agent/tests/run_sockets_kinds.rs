//! Sockets that do more than one thing, and many that do little: what they are told, and whom
//! they meet. Needs root and cgroups of version 2.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use datapath_common::{
    Address, Connection, Direction, IdleTicks, Ip4, SocketId, SocketKey, SocketPeer, maps, proto,
};
use nix::libc;
use nix::sys::socket::{SockaddrIn, connect};
use run_services_support::sockets::{
    NODE, POD, flow_rows, mapped, own_address, put_row, socket_rows, unconnected, who,
};
use run_services_support::{By, Client, EVERY_POD, SECOND_NODE, SOON, Town};
use run_support::LIMIT;
use testkit::echo::WHO_AM_I;
use tulle_agent::kernel::now_ticks;

const UDP4: By = By {
    udp: true,
    v6: false,
};

/// Rows for each family that the agent is told to have.
const ROWS: usize = 1024;

#[test]
fn many_that_send_unconnected_push_out_no_connected_one() {
    let town = Town::with_sockets("flood", &["--max-sockets", &ROWS.to_string()]);
    let mut service = town.service(85, &SECOND_NODE);
    let other = town.service(86, &EVERY_POD);
    town.world.write(&service);
    town.world.write(&other);
    let to = own_address(&service, UDP4);
    let connected: Vec<UdpSocket> = [POD, NODE, Client::Pod(0, 1)]
        .into_iter()
        .flat_map(|client| [(client, to), (client, mapped(to))])
        .map(|(client, to)| {
            let socket = unconnected(town.ns(client), to);
            socket.connect(to).unwrap();
            socket
        })
        .collect();
    let tcp = own_address(
        &service,
        By {
            udp: false,
            v6: false,
        },
    );
    let stream = town
        .ns(POD)
        .run(|| TcpStream::connect_timeout(&tcp, SOON))
        .unwrap()
        .unwrap();
    // Those that are closed leave nothing, of whatever family they are.
    let rows = socket_rows(&town);
    let at = own_address(&other, UDP4);
    for to in [at, mapped(at)] {
        for _ in 0..50 {
            let socket = unconnected(town.ns(POD), to);
            socket.send_to(b"a question", to).unwrap();
        }
    }
    assert_eq!(socket_rows(&town), rows);
    // Those that stay open have more rows than there is room for.
    let open: Vec<UdpSocket> = (0..ROWS * 2 / 3)
        .map(|_| {
            let socket = unconnected(town.ns(POD), at);
            socket.send_to(b"a question", at).unwrap();
            socket
        })
        .collect();
    assert!(socket_rows(&town)[1] <= ROWS);
    assert!(socket_rows(&town)[1] > ROWS / 2, "no flood");
    for socket in &connected {
        let asked = socket.peer_addr().unwrap();
        assert_eq!(asked.ip().to_canonical(), to.ip());
        socket.send(WHO_AM_I).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 512]).unwrap();
        assert_eq!(from, asked);
    }
    assert_eq!(stream.peer_addr().unwrap(), tcp);
    service.endpoints.clear();
    town.world.write(&service);
    let began = Instant::now();
    for socket in &connected {
        loop {
            assert!(began.elapsed() < LIMIT, "{socket:?} stays open");
            match socket.recv(&mut [0; 512]) {
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => break,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                other => panic!("{other:?}"),
            }
        }
    }
    drop(open);
}

#[test]
fn with_as_many_connected_ones_as_there_is_room_for_packets_serve_the_next() {
    let town = Town::with_sockets("full", &["--max-sockets", "64"]);
    let service = town.service(87, &SECOND_NODE);
    town.world.write(&service);
    let to = own_address(&service, UDP4);
    let before = flow_rows(&town);
    let mut sockets = Vec::new();
    for n in 0..200 {
        let socket = unconnected(town.ns(POD), to);
        socket.connect(to).unwrap();
        // The first ones are never moved aside.
        assert_eq!(socket.peer_addr().unwrap(), to, "number {n}");
        socket.send(WHO_AM_I).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 512]).unwrap();
        assert_eq!(from, to);
        sockets.push(socket);
    }
    assert_eq!(socket_rows(&town)[0], 64);
    assert_eq!(flow_rows(&town), before + 2 * (200 - 64));
    for socket in &sockets {
        assert_eq!(socket.peer_addr().unwrap(), to);
    }
    sockets.clear();
    assert_eq!(socket_rows(&town)[0], 0);
}

#[test]
fn rows_of_sockets_that_are_gone_are_removed() {
    let town = Town::with_sockets("tidy", &["--max-sockets", "64"]);
    let service = town.service(91, &SECOND_NODE);
    town.world.write(&service);
    let to = own_address(&service, UDP4);
    let connected: Vec<UdpSocket> = (0..4)
        .map(|n| {
            let socket = unconnected(town.ns([POD, NODE][n % 2]), to);
            socket.connect(to).unwrap();
            socket
        })
        .collect();
    let loose = unconnected(town.ns(POD), to);
    assert_eq!(who(&loose, to).1, to);
    let before = socket_rows(&town);
    assert_eq!(before, [4, 3]);
    // As sockets leave them whose end no program sees.
    let long_ago = now_ticks().wrapping_sub(IdleTicks::DEFAULT.udp_established + 2);
    for n in 0..40 {
        let cookie = [n, u32::MAX];
        let row = Connection::<Ip4> {
            proto: proto::TCP,
            seen: long_ago,
            ..Connection::default()
        };
        put_row(&town, maps::CONNS_V4, SocketId { cookie }, row);
        let key = SocketKey::<Ip4> {
            cookie,
            addr: Ip4::UNSPECIFIED,
            port: 0,
            proto: proto::UDP,
            direction: Direction::Forward as u8,
        };
        let row = SocketPeer::<Ip4> {
            seen: long_ago,
            ..SocketPeer::default()
        };
        if n < 8 {
            put_row(&town, maps::SOCKS_V4, key, row);
        }
    }
    assert_eq!(socket_rows(&town), [44, 11]);
    testkit::wait::until("rows removed", Duration::from_secs(40), || {
        Ok((socket_rows(&town) == before).then_some(()))
    })
    .unwrap();
    for socket in &connected {
        assert_eq!(socket.peer_addr().unwrap(), to);
    }
    assert_eq!(who(&loose, to).1, to);
}

#[test]
fn a_socket_that_sent_and_connects_stays_with_its_backend() {
    let town = Town::with_sockets("stays", &[]);
    let service = town.service(88, &EVERY_POD);
    town.world.write(&service);
    for v6 in [false, true] {
        let to = own_address(&service, By { udp: true, v6 });
        for to in [to, mapped(to)] {
            for _ in 0..10 {
                let socket = unconnected(town.ns(POD), to);
                let (pod, from) = who(&socket, to);
                assert_eq!(from, to);
                // One answer is there before it is connected, and keeps its name.
                socket.send_to(WHO_AM_I, to).unwrap();
                std::thread::sleep(Duration::from_millis(20));
                socket.connect(to).unwrap();
                assert_eq!(socket.peer_addr().unwrap(), to);
                socket.send(WHO_AM_I).unwrap();
                for _ in 0..2 {
                    let mut buffer = [0; 512];
                    let (len, from) = socket.recv_from(&mut buffer).unwrap();
                    let text = String::from_utf8_lossy(&buffer[..len]);
                    assert_eq!(text.split(' ').next(), Some(pod.as_str()));
                    assert_eq!(from, to);
                }
            }
        }
    }
    assert_eq!(flow_rows(&town), 0);
}

#[test]
fn who_connects_to_a_pod_after_a_service_is_told_the_pod() {
    let town = Town::with_sockets("after", &[]);
    let service = town.service(89, &[(1, 0)]);
    town.world.write(&service);
    let to = own_address(&service, UDP4);
    let pod = SocketAddr::new(town.pod(1, 0).ip4().into(), testkit::server::ECHO_PORT);
    let socket = unconnected(town.ns(POD), to);
    for at in [to, pod, to] {
        socket.connect(at).unwrap();
        // Its own address is chosen by then, so the second time its packets meet the service.
        assert_eq!(socket.peer_addr().unwrap(), at);
        socket.send(WHO_AM_I).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 512]).unwrap();
        assert_eq!(from, at);
    }
}

#[test]
fn mptcp_is_told_the_service() {
    let town = Town::with_sockets("mptcp", &[]);
    let service = town.service(90, &SECOND_NODE);
    town.world.write(&service);
    let SocketAddr::V4(to) = own_address(
        &service,
        By {
            udp: false,
            v6: false,
        },
    ) else {
        panic!("no IPv4");
    };
    let stream = town.ns(POD).run(|| {
        // SAFETY: a system call with numbers, whose result is a new descriptor or an error.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: it is open, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        connect(socket.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
        TcpStream::from(socket)
    });
    let stream = stream.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), SocketAddr::V4(to));
    assert_eq!(socket_rows(&town)[0], 0, "left to packets");
}
