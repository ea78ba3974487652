//! Services of every kind, and clients of every kind that ask who answers.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod sockets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use testkit::cluster::{Node, Outsider, Pod};
use testkit::echo::{EchoServer, udp_connect, udp_who};
use testkit::http::{RequestError, get};
use testkit::manifests::{Endpoint, Exposure, Protocol, Service};
use testkit::server::ECHO_PORT;
use testkit::{ClusterBuilder, NetNs, link};

use crate::run_support::World;

/// For one request on an idle cluster, which loses none.
pub const SOON: Duration = Duration::from_secs(5);
/// Long enough to tell a drop from an answer.
pub const SILENCE: Duration = Duration::from_millis(400);
/// A refusal comes back at once: TCP would send its SYN again after a second.
pub const AT_ONCE: Duration = Duration::from_millis(900);

/// Two nodes of two pods with agents, and hosts outside that send what they
/// have for services to the first node.
pub struct Town {
    pub world: World,
    _echo: Vec<EchoServer>,
}

/// Who asks: indices of nodes, pods and hosts outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    Pod(usize, usize),
    Node(usize),
    Outside(usize),
}

/// Where a service is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Front {
    ClusterIp,
    /// The node port at the address of a node.
    NodePort(usize),
    Vip,
    ExternalIp,
}

/// Every kind, node ports at both nodes.
pub const FRONTS: [Front; 5] = [
    Front::ClusterIp,
    Front::NodePort(0),
    Front::NodePort(1),
    Front::Vip,
    Front::ExternalIp,
];
/// Kinds with one address for the whole cluster.
pub const ANYWHERE: [Front; 3] = [Front::ClusterIp, Front::Vip, Front::ExternalIp];
/// What clients outside are meant to use, at the first node.
pub const EXTERNAL: [Front; 3] = [Front::NodePort(0), Front::Vip, Front::ExternalIp];

/// What a question is asked with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct By {
    pub udp: bool,
    pub v6: bool,
}

pub const EVERY_WAY: [By; 4] = [
    By {
        udp: false,
        v6: false,
    },
    By {
        udp: true,
        v6: false,
    },
    By {
        udp: false,
        v6: true,
    },
    By {
        udp: true,
        v6: true,
    },
];

/// Which source the server should see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The client's own address and port, or a port for translated sources where another
    /// service's flow has that; of a pod that meets itself, the service's address (its own
    /// where sockets are served).
    Own,
    /// The address that was asked; the client's own where sockets are served.
    Frontend,
    /// An address of a node, or the first address of its pod network.
    NodeSide(usize),
    /// The underlay address of a node.
    Node(usize),
}

/// An answer: the pod, the client that it saw, and the client's own end.
#[derive(Clone, Debug)]
pub struct Answer {
    pub pod: String,
    pub seen: SocketAddr,
    pub local: SocketAddr,
}

impl Town {
    pub fn start(label: &str, outsiders: u8, args: &[&str]) -> Self {
        Self::with(label, outsiders, args, |_| {})
    }

    /// The same after `prepare`, before any agent runs.
    pub fn with(label: &str, outsiders: u8, args: &[&str], prepare: impl Fn(&Node)) -> Self {
        Self::of(ClusterBuilder::unique(label), outsiders, args, prepare)
    }

    /// Services at sockets too, each node in a cgroup of its own.
    pub fn with_sockets(label: &str, args: &[&str]) -> Self {
        Self::of(ClusterBuilder::unique(label).cgroups(), 0, args, |_| {})
    }

    /// XDP at the uplinks in this mode, services by it `on` or `off`, and hosts that send what a
    /// wire has.
    pub fn with_xdp(label: &str, mode: &str, services: &str) -> Self {
        let builder = ClusterBuilder::unique(label).whole_checksums();
        let args = ["--xdp", mode, "--xdp-services", services];
        Self::of(builder, 1, &args, |_| {})
    }

    fn of(builder: ClusterBuilder, outsiders: u8, args: &[&str], prepare: impl Fn(&Node)) -> Self {
        let mut world = World::idle_of(builder);
        for n in 0..outsiders {
            world.cluster.add_outsider(&format!("client-{n}")).unwrap();
        }
        let first = &world.cluster.nodes()[0];
        for outsider in world.cluster.outsiders() {
            for network in SERVICE_NETWORKS {
                outsider.route(network, first).unwrap();
            }
        }
        world.cluster.nodes().iter().for_each(prepare);
        let start =
            |(_, pod): (_, &Pod)| EchoServer::start(pod.ns(), pod.name(), ECHO_PORT).unwrap();
        let echo = world.cluster.pods().map(start).collect();
        world.options = world.options.args(args);
        world.start_agents();
        Self { world, _echo: echo }
    }

    pub fn node(&self, at: usize) -> &Node {
        &self.world.cluster.nodes()[at]
    }

    pub fn pod(&self, node: usize, pod: usize) -> &Pod {
        &self.node(node).pods()[pod]
    }

    pub fn outsider(&self, at: usize) -> &Outsider {
        &self.world.cluster.outsiders()[at]
    }

    pub fn ns(&self, client: Client) -> &NetNs {
        match client {
            Client::Pod(node, pod) => self.pod(node, pod).ns(),
            Client::Node(node) => self.node(node).ns(),
            Client::Outside(n) => self.outsider(n).ns(),
        }
    }

    /// A service with every kind of frontend: TCP port 80, UDP port 7.
    pub fn service(&self, n: u8, pods: &[(usize, usize)]) -> Service {
        let mut service = Service::dual_stack(&format!("service-{n}"), n)
            .port(Protocol::Tcp, 80, 8080)
            .node_port(30_000 + u16::from(n))
            .port(Protocol::Udp, 7, ECHO_PORT)
            .node_port(31_000 + u16::from(n));
        service.exposure = Exposure {
            external_ips: vec![
                Ipv4Addr::new(198, 51, 100, n).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0x198, 0, 0, 0, 0, n.into()).into(),
            ],
            balancer_ips: vec![
                Ipv4Addr::new(203, 0, 113, n).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, n.into()).into(),
            ],
            ..Exposure::default()
        };
        for (node, pod) in pods {
            let endpoint = Endpoint::of(self.node(*node), self.pod(*node, *pod));
            service.endpoints.push(endpoint);
        }
        service
    }

    /// Where a client finds it.
    pub fn address(&self, of: &Service, at: Front, by: By) -> SocketAddr {
        let family = usize::from(by.v6);
        let port = &of.ports[usize::from(by.udp)];
        let (ip, number) = match at {
            Front::ClusterIp => (of.ips[family], port.port),
            Front::NodePort(node) => (self.node(node).ips()[family], port.node_port.unwrap()),
            Front::Vip => (of.exposure.balancer_ips[family], port.port),
            Front::ExternalIp => (of.exposure.external_ips[family], port.port),
        };
        SocketAddr::new(ip, number)
    }

    /// One question on a new connection or socket.
    pub fn ask(
        &self,
        client: Client,
        to: SocketAddr,
        udp: bool,
        limit: Duration,
    ) -> Result<Answer, RequestError> {
        ask(self.ns(client), to, udp, limit)
    }

    /// Asks until all of `pods` have answered, and often enough that others
    /// would have. Says what is not as it should be.
    pub fn spread(
        &self,
        client: Client,
        service: &Service,
        at: Front,
        by: By,
        pods: &[&str],
        source: Source,
    ) -> Result<(), String> {
        let to = self.address(service, at, by);
        let bad = |what: String| Err(format!("{client:?} → {at:?} {by:?} ({to}): {what}"));
        let mut counts = BTreeMap::<String, usize>::new();
        for n in 0..200 {
            if n >= 24 && counts.len() >= pods.len() {
                break;
            }
            let answer = match self.ask(client, to, by.udp, SOON) {
                Ok(answer) => answer,
                Err(error) => return bad(format!("{error}, after {counts:?}")),
            };
            if !pods.contains(&answer.pod.as_str()) {
                return bad(format!("{} answers, not {pods:?}", answer.pod));
            }
            if !self.is_source(client, &answer, to, source) {
                return bad(format!("{answer:?}, not {source:?}"));
            }
            *counts.entry(answer.pod).or_default() += 1;
        }
        if counts.len() == pods.len() {
            return Ok(());
        }
        bad(format!("only {counts:?} of {pods:?}"))
    }

    fn is_source(&self, client: Client, answer: &Answer, to: SocketAddr, source: Source) -> bool {
        let seen = answer.seen.ip();
        let family = usize::from(seen.is_ipv6());
        match source {
            Source::Own => match client {
                Client::Pod(node, pod) if answer.pod == self.pod(node, pod).name() => {
                    seen == self.met_by_itself(answer, to)
                }
                _ => seen == answer.local.ip() && is_own_port(answer),
            },
            Source::Frontend => seen == self.met_by_itself(answer, to),
            Source::NodeSide(node) => self.node_side(node).contains(&seen),
            Source::Node(node) => self.node(node).ips()[family] == seen,
        }
    }

    /// Whether services are served at sockets, too.
    pub fn serves_sockets(&self) -> bool {
        self.node(0).cgroup().is_some()
    }

    fn met_by_itself(&self, answer: &Answer, to: SocketAddr) -> IpAddr {
        if self.serves_sockets() {
            answer.local.ip()
        } else {
            to.ip()
        }
    }

    fn node_side(&self, node: usize) -> BTreeSet<IpAddr> {
        let node = self.node(node);
        let mut addresses: BTreeSet<IpAddr> = node.ips().into_iter().collect();
        addresses.insert(node.pod_cidr4().network().into());
        addresses.extend(node.pod_cidr6().map(|net| IpAddr::from(net.network())));
        addresses
    }
}

/// What is at services' addresses; the first address of each network is none.
pub const SERVICE_NETWORKS: [&str; 6] = [
    "10.96.0.0/16",
    "203.0.113.0/24",
    "198.51.100.0/24",
    "fd96::/64",
    "2001:db8:203::/64",
    "2001:db8:198::/64",
];

/// Asks whoever is at an address, service or not.
pub fn ask(ns: &NetNs, to: SocketAddr, udp: bool, limit: Duration) -> Result<Answer, RequestError> {
    let bad = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let ((pod, seen), local) = if udp {
        let socket = udp_connect(ns, to).map_err(std::io::Error::other)?;
        (udp_who(&socket, limit)?, socket.local_addr()?)
    } else {
        let response = get(ns, to, "/", limit)?;
        (response.seen().ok_or_else(bad)?, response.local)
    };
    Ok(Answer { pod, seen, local })
}

/// How a question ended, and after how long.
pub fn timed<T>(
    question: impl FnOnce() -> Result<T, RequestError>,
) -> (Result<T, RequestError>, Duration) {
    let began = Instant::now();
    let answer = question();
    (answer, began.elapsed())
}

/// Names of the pods of a node.
pub fn pods_of(node: usize) -> &'static [&'static str] {
    &ALL[node * 2..][..2]
}

pub const ALL: [&str; 4] = [
    "node-1-pod-1",
    "node-1-pod-2",
    "node-2-pod-1",
    "node-2-pod-2",
];
/// The same as indices.
pub const EVERY_POD: [(usize, usize); 4] = [(0, 0), (0, 1), (1, 0), (1, 1)];
pub const SECOND_NODE: [(usize, usize); 2] = [(1, 0), (1, 1)];

/// Whether a client that keeps its address is seen with a port that it may have.
fn is_own_port(answer: &Answer) -> bool {
    let [seen, local] = [answer.seen, answer.local].map(|end| end.port());
    seen == local || TRANSLATED.contains(&seen)
}

/// Ports for translated sources, as the agent has them unless it is told otherwise.
const TRANSLATED: std::ops::Range<u16> = 10_000..30_000;

/// Every complaint, or none.
pub fn all_well(results: impl IntoIterator<Item = Result<(), String>>) {
    let bad: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(bad.is_empty(), "{} wrong:\n{}", bad.len(), bad.join("\n"));
}

/// Reverse path filter as strict as can be (RFC 3704, 2.2).
pub fn strict_rp_filter(node: &Node) {
    for scope in ["all", "default", "eth0"] {
        let key = format!("net.ipv4.conf.{scope}.rp_filter");
        link::sysctl(node.ns(), &key, "1").unwrap();
    }
}
