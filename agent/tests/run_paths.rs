//! What traceroute, path MTU discovery, UDP clients and XDP meet on a real
//! cluster. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use datapath_common::{Hook, Reason};
use run_support::{World, addresses, counted};
use testkit::bulk::transfer;
use testkit::capture::Capture;
use testkit::cluster::{Node, Pod, UPLINK};
use testkit::echo::{EchoServer, udp_ask, udp_connect, udp_exchange};
use testkit::http::{Load, LoadOptions};
use testkit::link;
use testkit::manifests::{Endpoint, Protocol, Service};
use testkit::packet::{L4, Net, parse};
use testkit::probe::{IcmpError, Probe};
use testkit::server::ECHO_PORT;

/// Path MTU that a pod starts with, and that of the overlay.
const POD_MTU: u32 = 1500;
const OVERLAY_MTU: u32 = 1450;
/// For one datagram and its answer on an idle cluster, which loses none.
const SOON: Duration = Duration::from_secs(5);

/// A cluster with agents and an echo server in every pod.
struct Paths {
    world: World,
    _echo: Vec<EchoServer>,
}

impl Paths {
    fn start(label: &str, args: &[&str]) -> Self {
        Self::of(World::start(label, args))
    }

    fn of(world: World) -> Self {
        let echo = world
            .cluster
            .pods()
            .map(|(_, pod)| EchoServer::start(pod.ns(), pod.name(), ECHO_PORT).unwrap())
            .collect();
        Self { world, _echo: echo }
    }

    fn node(&self, at: usize) -> &Node {
        &self.world.cluster.nodes()[at]
    }

    fn pod(&self, node: usize, pod: usize) -> &Pod {
        &self.node(node).pods()[pod]
    }

    /// An echo service, UDP and TCP, of these pods.
    fn service(&self, name: &str, host: u8, pods: &[(usize, usize)]) -> Service {
        let mut service = Service::dual_stack(name, host)
            .port(Protocol::Udp, 7, ECHO_PORT)
            .port(Protocol::Tcp, 7, ECHO_PORT);
        for (node, pod) in pods {
            let endpoint = Endpoint::of(self.node(*node), self.pod(*node, *pod));
            service.endpoints.push(endpoint);
        }
        self.world.write(&service);
        service
    }

    /// Packets that a node's program has counted so far.
    fn count(&self, node: usize, hook: Hook, reason: Reason) -> u64 {
        counted(self.node(node), hook, reason)
    }
}

/// A pod's echo server, in both families.
fn echo_of(pod: &Pod) -> Vec<SocketAddr> {
    let at = |ip| SocketAddr::new(ip, ECHO_PORT);
    pod.ips().into_iter().map(at).collect()
}

/// Time exceeded in transit (RFC 792, RFC 4443).
fn time_exceeded(from: IpAddr) -> IcmpError {
    IcmpError {
        from,
        kind: if from.is_ipv4() { 11 } else { 3 },
        code: 0,
        mtu: 0,
    }
}

/// Data of a UDP datagram with the TTL or hop limit that it arrived with.
fn datagram(frame: &[u8]) -> Option<(u8, Vec<u8>)> {
    let frame = parse(frame).ok()?;
    let hops = match &frame.net {
        Net::V4(ip) => ip.ttl,
        Net::V6(ip) => ip.hop_limit,
        Net::Other(..) => return None,
    };
    match frame.upper()? {
        L4::Udp(udp) => Some((hops, udp.payload.clone())),
        _ => None,
    }
}

#[test]
fn each_hop_of_a_traceroute_answers() {
    let paths = Paths::start("trace", &[]);
    let service = paths.service("echo", 20, &[(1, 0)]);
    let (client, near, far) = (paths.pod(0, 0), paths.pod(0, 1), paths.pod(1, 0));
    let (here, there) = (paths.node(0), paths.node(1));
    let seen = [near, far].map(|pod| Capture::start(pod.ns(), UPLINK, 1_000).unwrap());
    let arrives = |at: usize, probe: &Probe, sent: u8, hops: u8| {
        let data = format!("{} with {sent}", probe.to()).into_bytes();
        probe.set_hop_limit(sent).unwrap();
        udp_exchange(probe.socket(), &data, SOON).unwrap();
        let wanted = |frame: &[u8]| datagram(frame).filter(|(_, d)| *d == data);
        let frame = seen[at]
            .wait_for("the probe", SOON, |frame| {
                !frame.outgoing && wanted(&frame.bytes).is_some()
            })
            .unwrap();
        let (arrived, _) = wanted(&frame.bytes).unwrap();
        assert_eq!(arrived, hops, "{} sent with {sent}", probe.to());
    };
    let expires = |probe: &Probe, sent: u8, at: IpAddr| {
        probe.set_hop_limit(sent).unwrap();
        probe.send(b"to expire").unwrap();
        let error = probe.icmp_error(SOON).unwrap();
        assert_eq!(error, time_exceeded(at), "{} sent with {sent}", probe.to());
    };
    let routers = [here.ip4().into(), here.ip6().unwrap().into()];
    // The other node's kernel answers from the overlay device, whose address is the pod network's.
    let next: [IpAddr; 2] = [
        there.pod_cidr4().network().into(),
        there.pod_cidr6().unwrap().network().into(),
    ];
    for family in 0..2 {
        let before = paths.count(0, Hook::PodFrom, Reason::TtlExceeded);

        let probe = Probe::connect(client.ns(), echo_of(far)[family]).unwrap();
        expires(&probe, 1, routers[family]);
        expires(&probe, 2, next[family]);
        arrives(1, &probe, 3, 1);
        arrives(1, &probe, 64, 62);

        let probe = Probe::connect(client.ns(), echo_of(near)[family]).unwrap();
        expires(&probe, 1, routers[family]);
        arrives(0, &probe, 2, 1);

        let probe = Probe::connect(client.ns(), addresses(&service)[family]).unwrap();
        expires(&probe, 1, routers[family]);
        arrives(1, &probe, 3, 1);

        // By the program, not by the kernel behind it.
        let after = paths.count(0, Hook::PodFrom, Reason::TtlExceeded);
        assert_eq!(after - before, 3);
    }
}

#[test]
fn a_pod_with_a_larger_mtu_learns_the_overlays() {
    let mut world = World::idle("pmtu");
    for (_, pod) in world.cluster.pods() {
        link::set_mtu(pod.ns(), UPLINK, POD_MTU).unwrap();
    }
    world.start_agents();
    // A host's end that is smaller would drop what no program has seen yet.
    for (node, pod) in world.cluster.pods() {
        testkit::wait::until("larger MTU at the pod's link", SOON, || {
            let mtu = link::mtu(node.ns(), pod.host_if())?;
            Ok((mtu == POD_MTU).then_some(()))
        })
        .unwrap();
    }
    let paths = Paths::of(world);
    let service = paths.service("echo", 20, &[(1, 0)]);
    let far = paths.pod(1, 0);
    let routers = [
        paths.node(0).ip4().into(),
        paths.node(0).ip6().unwrap().into(),
    ];
    let udp = paths.pod(0, 0).ns();
    for (family, headers) in [(0, 28), (1, 48)] {
        let error = IcmpError {
            from: routers[family],
            kind: if family == 0 { 3 } else { 2 },
            code: if family == 0 { 4 } else { 0 },
            mtu: OVERLAY_MTU,
        };
        for to in [echo_of(far)[family], addresses(&service)[family]] {
            let probe = Probe::connect(udp, to).unwrap();
            assert_eq!(probe.path_mtu().unwrap(), POD_MTU, "{to}");
            let large = vec![7; POD_MTU as usize - headers];
            assert_eq!(probe.send(&large).unwrap(), large.len());
            assert_eq!(probe.icmp_error(SOON).unwrap(), error, "{to}");
            assert_eq!(probe.path_mtu().unwrap(), OVERLAY_MTU, "{to}");
            // One octet more than fits, and what fits.
            let fits = OVERLAY_MTU as usize - headers;
            let refusal = probe.send(&large[..=fits]).unwrap_err();
            assert_eq!(refusal.raw_os_error(), Some(libc::EMSGSIZE), "{to}");
            // The answer is longer: the server's host learns the MTU by the first one, which is lost.
            let probe = Probe::connect(udp, to).unwrap();
            let pod = testkit::wait::until("answer", SOON, || {
                let patience = Duration::from_millis(300);
                Ok(udp_exchange(probe.socket(), &large[..fits], patience).ok())
            });
            assert_eq!(pod.unwrap(), far.name());
        }
    }
    let refused = [0, 1].map(|node| paths.count(node, Hook::PodFrom, Reason::TooBig));
    assert_eq!(refused, [4, 2], "one for each path, one for each family");

    // Two pods that know nothing of each other yet: TCP begins with the pods' MTU.
    let tcp = paths.pod(0, 1).ns();
    let direct = paths.pod(1, 1);
    for (to, pod) in [(addresses(&service), far), (echo_of(direct), direct)] {
        for to in to {
            let seen = transfer(tcp, to, 2 << 20, SOON).unwrap();
            assert_eq!(seen.pod, pod.name(), "{to}");
            assert_eq!(seen.path_mtu, OVERLAY_MTU, "{to}");
        }
    }
}

#[test]
fn a_udp_socket_stays_on_its_backend_and_leaves_it_when_it_is_removed() {
    let paths = Paths::start("udp", &[]);
    let mut service = paths.service("echo", 20, &[(0, 0), (0, 1), (1, 0), (1, 1)]);
    let client = paths.pod(0, 0).ns();
    for address in addresses(&service) {
        // A connected socket takes answers from the service's address only.
        let mut pods = BTreeMap::<String, usize>::new();
        for n in 0..60_u8 {
            let pod = udp_ask(client, address, &[n], SOON).unwrap();
            *pods.entry(pod).or_default() += 1;
        }
        assert_eq!(pods.len(), 4, "{address}: {pods:?}");

        // Enough that each backend has some.
        let sockets: Vec<_> = (0..80)
            .map(|_| udp_connect(client, address).unwrap())
            .collect();
        let mut on: Vec<String> = sockets
            .iter()
            .map(|socket| udp_exchange(socket, b"first", SOON).unwrap())
            .collect();
        for round in 0..5 {
            for (socket, pod) in sockets.iter().zip(&on) {
                let data = format!("round {round}");
                let now = udp_exchange(socket, data.as_bytes(), SOON).unwrap();
                assert_eq!(now, *pod, "{address}");
            }
        }

        for gone in ["node-1-pod-2", "node-2-pod-1"] {
            let at = on.iter().position(|pod| pod == gone).unwrap();
            let endpoint = service.remove_endpoint(gone).unwrap();
            let began = Instant::now();
            paths.world.state.write_service(&service).unwrap();
            // Its server still runs and would answer.
            let now = loop {
                let pod = udp_exchange(&sockets[at], b"still there?", SOON).unwrap();
                let took = began.elapsed();
                if pod != gone {
                    println!("{address} left {gone} after {took:?}");
                    break pod;
                }
                assert!(took < Duration::from_secs(2), "{gone} after {took:?}");
            };
            for (socket, was) in sockets.iter().zip(&mut on) {
                for _ in 0..3 {
                    let pod = udp_exchange(socket, b"again", SOON).unwrap();
                    assert_ne!(pod, gone, "{address}");
                    // Who was elsewhere stays there.
                    assert!(pod == *was || was == gone, "{address}: {was} to {pod}");
                    *was = pod;
                }
            }
            assert_eq!(udp_exchange(&sockets[at], b"?", SOON).unwrap(), now);
            service.endpoints.push(endpoint);
            paths.world.write(&service);
        }
    }
}

#[test]
fn kp_117_a_udp_socket_leaves_what_only_another_service_has() {
    let paths = Paths::start("udp-two", &[]);
    let pods = [(0, 1), (1, 0)];
    let mut service = paths.service("echo", 20, &pods);
    let other = paths.service("other", 21, &pods);
    let client = paths.pod(0, 0).ns();
    let gone = "node-2-pod-1";
    let open = |service: &Service| {
        let all = addresses(service).into_iter();
        all.flat_map(|address| (0..20).map(move |_| udp_connect(client, address).unwrap()))
            .map(|socket| (udp_exchange(&socket, b"first", SOON).unwrap(), socket))
            .collect::<Vec<_>>()
    };
    let (own, others) = (open(&service), open(&other));
    for sockets in [&own, &others] {
        assert!(sockets.iter().any(|(pod, _)| pod == gone));
        assert!(sockets.iter().any(|(pod, _)| pod != gone));
    }
    service.remove_endpoint(gone).unwrap();
    paths.world.write(&service);
    for (was, socket) in &own {
        let pod = udp_exchange(socket, b"again", SOON).unwrap();
        assert_ne!(pod, gone, "was at {was}");
    }
    for (was, socket) in &others {
        assert_eq!(udp_exchange(socket, b"again", SOON).unwrap(), *was);
    }
}

#[test]
fn large_datagrams_pass_a_service_in_fragments() {
    let paths = Paths::start("frag", &[]);
    let far = paths.service("far", 20, &[(1, 0)]);
    let near = paths.service("near", 21, &[(0, 1)]);
    let client = paths.pod(0, 0);
    let sent = Capture::start(client.ns(), UPLINK, 10_000).unwrap();
    for (service, pod) in [(far, paths.pod(1, 0)), (near, paths.pod(0, 1))] {
        for address in addresses(&service) {
            let socket = udp_connect(client.ns(), address).unwrap();
            for size in [2_000, 8_000] {
                for round in 0..5_u8 {
                    let data: Vec<u8> = (0..size).map(|n: usize| (n % 251) as u8 ^ round).collect();
                    let answer = udp_exchange(&socket, &data, SOON).unwrap();
                    assert_eq!(answer, pod.name(), "{size} octets to {address}");
                }
            }
        }
    }
    // They were fragments indeed: two and six, and twenty exchanges of each size.
    let fragments = sent.stop().unwrap().into_iter().filter(|frame| {
        let parsed = parse(&frame.bytes);
        frame.outgoing && parsed.is_ok_and(|frame| is_fragment(&frame.net))
    });
    assert_eq!(fragments.count(), 20 * (2 + 6));
}

fn is_fragment(net: &Net) -> bool {
    use testkit::packet::Extension;
    match net {
        Net::V4(ip) => ip.mf || ip.offset > 0,
        Net::V6(ip) => ip
            .extensions
            .iter()
            .any(|e| matches!(e, Extension::Fragment { .. })),
        Net::Other(..) => false,
    }
}

#[test]
fn xdp_in_the_driver_takes_packets_out_of_the_overlay() {
    xdp_decapsulates("native");
}

#[test]
fn xdp_in_the_stack_takes_packets_out_of_the_overlay() {
    xdp_decapsulates("generic");
}

fn xdp_decapsulates(mode: &str) {
    let paths = Paths::start(mode, &["--xdp", mode]);
    let world = &paths.world;
    let mut web = world.web();
    web.endpoints.retain(|endpoint| endpoint.node == "node-2");
    world.write(&web);
    let echo = paths.service("echo", 20, &[(1, 0)]);
    for agent in &world.agents {
        let status = agent.status().unwrap();
        assert_eq!(status.faults, [""; 0]);
        let xdp = status
            .features
            .iter()
            .find(|f| f.name == "XDP at the uplink");
        assert_eq!(xdp.unwrap().chosen, mode);
    }
    for node in world.cluster.nodes() {
        let uplink = link::ip_json(node.ns(), &["-d", "link", "show", UPLINK]).unwrap();
        let wanted = if mode == "native" { 1 } else { 2 }; // XDP_ATTACHED_DRV, _SKB
        assert_eq!(uplink[0]["xdp"]["mode"], wanted, "{uplink}");
    }
    let client = paths.pod(0, 0).ns();
    for address in addresses(&web) {
        let before = [0, 1].map(|node| paths.count(node, Hook::Xdp, Reason::Decapsulated));
        let report = Load::run(client, address, &LoadOptions::requests(100)).unwrap();
        assert_eq!(report.failures.len(), 0, "{address}: {report}");
        assert_eq!(report.by_pod.len(), 2, "{address}: {report}");
        for (node, before) in before.into_iter().enumerate() {
            let after = paths.count(node, Hook::Xdp, Reason::Decapsulated);
            // SYN, request and FIN at the least, each way.
            assert!(after - before >= 300, "{address}: {}", after - before);
        }
    }
    for to in addresses(&echo) {
        let seen = transfer(client, to, 2 << 20, SOON).unwrap();
        assert_eq!(seen.pod, "node-2-pod-1");
    }
    for node in [0, 1] {
        let left = paths.count(node, Hook::NicIn, Reason::Decapsulated);
        assert_eq!(left, 0, "XDP left some to tulle_nic_in");
    }
}
