//! Probes and transfers over a router with a narrow second link. Needs root.
#![expect(clippy::unwrap_used, reason = "tests and their helpers may panic")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use testkit::bulk::transfer;
use testkit::echo::{EchoServer, udp_exchange};
use testkit::probe::{IcmpError, Probe};
use testkit::{NetNs, link};

const LIMIT: Duration = Duration::from_secs(5);
const NARROW: u32 = 1400;

/// Client, router, server: networks 1 and 2, the router's address ends in 1.
fn line() -> [NetNs; 3] {
    let [client, router, server] =
        ["client", "router", "server"].map(|label| NetNs::new(label).unwrap());
    link::sysctls(
        &router,
        &[
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
        ],
    )
    .unwrap();
    for (host, net) in [(&client, 1), (&server, 2)] {
        let port = format!("net{net}");
        link::veth(&router, &port, host, "eth0").unwrap();
        for (ns, dev, end) in [(&router, port.as_str(), 1), (host, "eth0", 2)] {
            link::ip(ns, &["link", "set", dev, "up"]).unwrap();
            link::address(ns, dev, &format!("10.0.{net}.{end}/24")).unwrap();
            link::address(ns, dev, &format!("fd00:{net}::{end}/64")).unwrap();
        }
        link::wait_up(&router, &port).unwrap();
        let (v4, v6) = (format!("10.0.{net}.1"), format!("fd00:{net}::1"));
        link::ip(host, &["route", "add", "default", "via", &v4]).unwrap();
        link::ip(host, &["-6", "route", "add", "default", "via", &v6]).unwrap();
    }
    link::set_mtu(&router, "net2", NARROW).unwrap();
    [client, router, server]
}

#[test]
fn a_router_is_heard_and_its_mtu_is_used() {
    let [client, _router, server] = line();
    let _echo = EchoServer::start(&server, "server", 7).unwrap();
    let cases: [(IpAddr, IpAddr, _, _); 2] = [
        ([10, 0, 2, 2].into(), [10, 0, 1, 1].into(), (11, 0), (3, 4)),
        (
            "fd00:2::2".parse().unwrap(),
            "fd00:1::1".parse().unwrap(),
            (3, 0),
            (2, 0),
        ),
    ];
    for (server, router, exceeded, too_big) in cases {
        let to = SocketAddr::new(server, 7);
        let probe = Probe::connect(&client, to).unwrap();
        let error = |(kind, code), mtu| IcmpError {
            from: router,
            kind,
            code,
            mtu,
        };
        probe.icmp_error(Duration::ZERO).unwrap_err();
        probe.set_hop_limit(1).unwrap();
        probe.send(b"one hop").unwrap();
        assert_eq!(probe.icmp_error(LIMIT).unwrap(), error(exceeded, 0));
        probe.set_hop_limit(2).unwrap();
        assert_eq!(
            udp_exchange(probe.socket(), b"two", LIMIT).unwrap(),
            "server"
        );
        assert_eq!(probe.path_mtu().unwrap(), 1500);
        probe.send(&[0; 1450]).unwrap();
        assert_eq!(probe.icmp_error(LIMIT).unwrap(), error(too_big, NARROW));
        assert_eq!(probe.path_mtu().unwrap(), NARROW);
        let refusal = probe.send(&[0; 1400]).unwrap_err();
        assert_eq!(refusal.raw_os_error(), Some(libc::EMSGSIZE));

        let seen = transfer(&client, to, 300_000, LIMIT).unwrap();
        assert_eq!((seen.pod.as_str(), seen.path_mtu), ("server", NARROW));
    }
}

#[test]
fn a_transfer_that_is_cut_off_fails() {
    let [client, _router, server] = line();
    // It answers the name and nothing else.
    let listener = server
        .run(|| std::net::TcpListener::bind("10.0.2.2:7").unwrap())
        .unwrap();
    let thread = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"server\n").unwrap();
        stream.read_exact(&mut [0; 1_000]).unwrap();
        stream.write_all(&[7; 10]).unwrap();
    });
    let error = transfer(&client, ([10, 0, 2, 2], 7).into(), 1_000, LIMIT).unwrap_err();
    thread.join().unwrap();
    assert!(error.to_string().contains("octet 0 came back"), "{error}");
}
