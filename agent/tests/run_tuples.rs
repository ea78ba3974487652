//! One port of a client, used for several services with one backend, and straight to
//! that backend after them. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use run_support::{World, addresses};
use testkit::echo::{EchoServer, udp_exchange, udp_who};
use testkit::manifests::{Endpoint, Protocol, Service};
use testkit::{NetNs, Pod};
use tulle_cli::datapath::Datapath;
use tulle_cli::tables::FrontendRow;

/// Port of the echo servers.
const ECHO: u16 = 9000;
/// For what an idle cluster answers at once.
const SOON: Duration = Duration::from_secs(5);
/// Exchanges by turns.
const ROUNDS: usize = 5;

/// A cluster with an echo server in every pod.
struct Town {
    world: World,
    _servers: Vec<EchoServer>,
}

impl Town {
    fn start(label: &str) -> Self {
        let world = World::start(label, &[]);
        let start = |(_, pod): (_, &Pod)| EchoServer::start(pod.ns(), pod.name(), ECHO).unwrap();
        let servers = world.cluster.pods().map(start).collect();
        Self {
            world,
            _servers: servers,
        }
    }

    fn pod(&self, (node, pod): (usize, usize)) -> &Pod {
        &self.world.cluster.nodes()[node].pods()[pod]
    }

    fn client(&self) -> &NetNs {
        self.pod((0, 0)).ns()
    }

    /// A service with this pod as its only backend.
    fn service(&self, host: u8, (node, pod): (usize, usize)) -> Service {
        let mut service = Service::dual_stack(&format!("echo-{host}"), host)
            .port(Protocol::Tcp, 7, ECHO)
            .port(Protocol::Udp, 7, ECHO);
        let node = &self.world.cluster.nodes()[node];
        service
            .endpoints
            .push(Endpoint::of(node, &node.pods()[pod]));
        self.world.write(&service);
        service
    }

    /// Whether every packet to a frontend of TCP asks the flow table.
    fn asks(&self, at: SocketAddr) -> bool {
        let pins = self.world.cluster.nodes()[0].bpffs();
        let rows = Datapath::open(&pins).unwrap().frontends().unwrap();
        let row = rows.iter().find(|row| row.addr == at && row.proto == 6);
        row.is_some_and(FrontendRow::asks_flow_table)
    }

    /// Two services with one backend; by family, the addresses of both and of the pod.
    fn pair(&self, host: u8, backend: (usize, usize)) -> Vec<[SocketAddr; 3]> {
        let [one, two] = [host, host + 1].map(|host| addresses(&self.service(host, backend)));
        let pod = self.pod(backend).ips();
        let all = one.into_iter().zip(two);
        all.map(|(one, two)| {
            let ip = pod.iter().find(|ip| ip.is_ipv4() == one.is_ipv4());
            [one, two, SocketAddr::new(*ip.unwrap(), ECHO)]
        })
        .collect()
    }
}

/// A socket that shares its local port with others, connected.
fn connected(ns: &NetNs, kind: SockType, port: u16, to: SocketAddr) -> io::Result<OwnedFd> {
    let open = || -> nix::Result<OwnedFd> {
        let (family, from) = match to {
            SocketAddr::V4(_) => (
                AddressFamily::Inet,
                SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            ),
            SocketAddr::V6(_) => (
                AddressFamily::Inet6,
                SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            ),
        };
        let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        // It holds for `connect` too.
        let limit = TimeVal::new(SOON.as_secs().cast_signed(), 0);
        setsockopt(&fd, sockopt::SendTimeout, &limit)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
        connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(fd)
    };
    ns.run(open).unwrap().map_err(io::Error::from)
}

/// A TCP connection by this port; the server has said its name.
fn talk(ns: &NetNs, port: u16, to: SocketAddr) -> io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::from(connected(ns, SockType::Stream, port, to)?);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut name = Vec::new();
    let mut octet = [0];
    loop {
        stream.read_exact(&mut octet)?;
        if octet == *b"\n" {
            return Ok((stream, String::from_utf8_lossy(&name).into_owned()));
        }
        name.push(octet[0]);
    }
}

fn echoed(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes())?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    assert_eq!(back, text.as_bytes());
    Ok(())
}

/// Ends the connection with a reset: both ends forget it at once.
fn end(stream: TcpStream) {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &at_once).unwrap();
    drop(stream);
}

#[test]
fn one_port_for_two_services_with_one_backend() {
    let town = Town::start("tuples");
    for (backend, host) in [((0, 1), 20), ((1, 0), 22)] {
        let name = town.pod(backend).name().to_owned();
        for (family, [one, two, _]) in town.pair(host, backend).into_iter().enumerate() {
            let port = 45_000 + u16::from(host) * 10 + family as u16;
            let (mut first, who) = talk(town.client(), port, one).unwrap();
            assert_eq!(who, name);
            let (mut second, who) = talk(town.client(), port, two).unwrap();
            assert_eq!(who, name);
            assert_eq!(first.local_addr().unwrap(), second.local_addr().unwrap());
            for round in 0..ROUNDS {
                echoed(&mut first, &format!("{round} to {one}")).unwrap();
                echoed(&mut second, &format!("{round} to {two}")).unwrap();
            }
            // Only where the port was changed do all packets ask for it.
            assert_eq!([one, two].map(|at| town.asks(at)), [false, true]);
            end(second);
            echoed(&mut first, "after the other").unwrap();
            end(first);

            let [asks_one, asks_two] = [one, two].map(|to| {
                let fd = connected(town.client(), SockType::Datagram, port, to).unwrap();
                UdpSocket::from(fd)
            });
            let ip = town.pod((0, 0)).ips()[family];
            let (who, seen) = udp_who(&asks_one, SOON).unwrap();
            assert_eq!((who, seen), (name.clone(), SocketAddr::new(ip, port)));
            let (who, seen) = udp_who(&asks_two, SOON).unwrap();
            assert_eq!((who, seen.ip()), (name.clone(), ip));
            assert_ne!(seen.port(), port, "what tells the two apart");
            for round in 0..ROUNDS {
                for (asks, to) in [(&asks_one, one), (&asks_two, two)] {
                    let text = format!("{round} to {to}");
                    let who = udp_exchange(asks, text.as_bytes(), SOON).unwrap();
                    assert_eq!(who, name);
                }
            }
        }
    }
}

#[test]
fn straight_to_a_pod_by_the_port_of_an_ended_connection() {
    let town = Town::start("straight");
    for (backend, host) in [((0, 1), 30), ((1, 0), 32)] {
        let name = town.pod(backend).name().to_owned();
        for (family, [service, _, pod]) in town.pair(host, backend).into_iter().enumerate() {
            let port = 46_000 + u16::from(host) * 10 + family as u16;
            let (mut first, who) = talk(town.client(), port, service).unwrap();
            assert_eq!(who, name);
            echoed(&mut first, "to the service").unwrap();
            end(first);
            let (mut then, who) = talk(town.client(), port, pod)
                .unwrap_or_else(|e| panic!("by port {port} to {pod}: {e}"));
            assert_eq!(who, name);
            for round in 0..ROUNDS {
                echoed(&mut then, &format!("{round} to {pod}")).unwrap();
            }
            end(then);
        }
    }
}
