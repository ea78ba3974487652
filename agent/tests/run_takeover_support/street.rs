//! Two nodes as flannel and kube-proxy have them, a host outside, and servers of every kind.

use std::net::{IpAddr, SocketAddr};

use testkit::cluster::{Node, Pod, UPLINK};
use testkit::echo::EchoServer;
use testkit::http::HttpServer;
use testkit::manifests::{Endpoint, Protocol, Service};
use testkit::server::ECHO_PORT;
use testkit::{ClusterBuilder, NetNs, link};

use super::{Proxy, flannel, flannel_masquerade};
use crate::run_support::World;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    Pod(usize, usize),
    Node(usize),
    Outside,
}

/// What is asked; true: by IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// The service of all pods.
    ClusterIp(bool),
    /// The one whose only pod is the first node's first.
    Single(bool),
    /// The node port of the service of all pods, at the first node.
    NodePort(bool),
    /// An address that a balancer has.
    Vip(bool),
    /// The service of a process of the first node.
    Host(bool),
}

/// How its nodes are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Pods have routes of their own.
    Routed,
    /// The same, and services are served at sockets too.
    Sockets,
    /// Pods are behind the bridge `cni0`.
    Bridged,
}

/// The cluster.
pub struct Street {
    pub world: World,
    kind: Kind,
    services: Vec<Service>,
    _echo: Vec<EchoServer>,
    _http: HttpServer,
}

fn v6(door: Door) -> bool {
    match door {
        Door::ClusterIp(v6)
        | Door::Single(v6)
        | Door::NodePort(v6)
        | Door::Vip(v6)
        | Door::Host(v6) => v6,
    }
}

impl Street {
    /// Without kube-proxy's rules.
    pub fn new(label: &str, kind: Kind) -> Self {
        let builder = ClusterBuilder::unique(label);
        let mut world = World::idle_of(if kind == Kind::Sockets {
            builder.cgroups()
        } else {
            builder
        });
        world.cluster.add_outsider("client").unwrap();
        let nodes = world.cluster.nodes();
        for node in nodes {
            flannel(node, nodes);
            flannel_masquerade(node);
            if kind == Kind::Bridged {
                behind_bridge(node);
            }
        }
        for network in [
            "10.96.0.0/16",
            "203.0.113.0/24",
            "fd96::/64",
            "2001:db8:203::/64",
        ] {
            world.cluster.outsiders()[0]
                .route(network, &nodes[0])
                .unwrap();
        }
        let start = |ns: &NetNs, name: &str| EchoServer::start(ns, name, ECHO_PORT).unwrap();
        let mut echo: Vec<EchoServer> = world
            .cluster
            .pods()
            .map(|(_, pod)| start(pod.ns(), pod.name()))
            .collect();
        echo.push(start(nodes[0].ns(), "node-1"));
        let http = HttpServer::start(nodes[0].ns(), "node-1", 8080).unwrap();
        let ports = |name: &str, n: u8| {
            Service::dual_stack(name, n)
                .port(Protocol::Tcp, 80, 8080)
                .node_port(30_000 + u16::from(n))
                .port(Protocol::Udp, 7, ECHO_PORT)
                .node_port(30_100 + u16::from(n))
                .port(Protocol::Tcp, 7, ECHO_PORT)
                .node_port(30_200 + u16::from(n))
        };
        // Answers between pods behind one bridge do not come by the kernel's translation here.
        let near = usize::from(kind == Kind::Bridged);
        let far = world
            .cluster
            .pods()
            .filter(|(node, _)| usize::from(node.index()) > near);
        let mut all = ports("all", 10).endpoints(far);
        all.exposure.balancer_ips = vec![
            "203.0.113.10".parse().unwrap(),
            "2001:db8:203::10".parse().unwrap(),
        ];
        let mut single = ports("single", 11);
        single
            .endpoints
            .push(Endpoint::of(&nodes[0], &nodes[0].pods()[0]));
        let mut host = ports("host", 12);
        host.endpoints.push(Endpoint {
            ips: nodes[0].ips(),
            node: nodes[0].name().to_owned(),
            pod: "node-1".to_owned(),
            ready: true,
            serving: true,
            terminating: false,
        });
        let services = vec![all, single, host];
        for service in &services {
            world.state.write_service(service).unwrap();
        }
        Self {
            world,
            kind,
            services,
            _echo: echo,
            _http: http,
        }
    }

    /// Has kube-proxy's rules on both nodes.
    pub fn serve_by(&self, proxy: Proxy) {
        for node in self.nodes() {
            proxy.write(node, &self.services);
        }
    }

    pub fn services(&self) -> &[Service] {
        &self.services
    }

    pub fn nodes(&self) -> &[Node] {
        self.world.cluster.nodes()
    }

    pub fn ns(&self, client: Client) -> &NetNs {
        match client {
            Client::Pod(node, pod) => self.nodes()[node].pods()[pod].ns(),
            Client::Node(node) => self.nodes()[node].ns(),
            Client::Outside => self.world.cluster.outsiders()[0].ns(),
        }
    }

    /// Every kind of client at what it may ask.
    pub fn ways(&self) -> Vec<(Client, Door)> {
        let inside = [
            Client::Pod(0, 0),
            Client::Pod(0, 1),
            Client::Pod(1, 0),
            Client::Node(0),
        ];
        let mut ways = Vec::new();
        for v6 in [false, true] {
            for client in inside {
                ways.push((client, Door::ClusterIp(v6)));
                ways.push((client, Door::Single(v6)));
                ways.push((client, Door::Vip(v6)));
                ways.push((client, Door::Host(v6)));
            }
            for door in [
                Door::NodePort(v6),
                Door::Vip(v6),
                Door::ClusterIp(v6),
                Door::Host(v6),
            ] {
                ways.push((Client::Outside, door));
            }
        }
        if self.kind == Kind::Bridged {
            let on_one_bridge = |client, door| {
                matches!(
                    (client, door),
                    (Client::Pod(0, _), Door::Single(_)) | (Client::Pod(1, _), Door::ClusterIp(_))
                )
            };
            ways.retain(|(client, door)| !on_one_bridge(*client, *door));
        }
        ways
    }

    fn at(&self, door: Door, port: usize) -> SocketAddr {
        let service = match door {
            Door::ClusterIp(_) | Door::NodePort(_) | Door::Vip(_) => &self.services[0],
            Door::Single(_) => &self.services[1],
            Door::Host(_) => &self.services[2],
        };
        let of = |ips: &[IpAddr]| *ips.iter().find(|ip| ip.is_ipv6() == v6(door)).unwrap();
        let port = &service.ports[port];
        match door {
            Door::NodePort(_) => {
                SocketAddr::new(of(&self.nodes()[0].ips()), port.node_port.unwrap())
            }
            Door::Vip(_) => SocketAddr::new(of(&service.exposure.balancer_ips), port.port),
            _ => SocketAddr::new(of(&service.ips), port.port),
        }
    }

    pub fn http(&self, door: Door) -> SocketAddr {
        self.at(door, 0)
    }

    pub fn udp(&self, door: Door) -> SocketAddr {
        self.at(door, 1)
    }

    pub fn tcp(&self, door: Door) -> SocketAddr {
        self.at(door, 2)
    }

    /// Has the kernel of each node forget what it tracks, as it does in time.
    pub fn forget_tracked(&self) {
        for node in self.nodes() {
            node.ns()
                .run(|| {
                    use tulle_agent::takeover::{conntrack, nfnl::Nfnl};
                    let mut netlink = Nfnl::open().unwrap();
                    for entry in conntrack::translated(&mut netlink).unwrap() {
                        conntrack::forget(&mut netlink, &entry).unwrap();
                    }
                })
                .unwrap();
        }
    }
}

/// The bridge that flannel's CNI plugin makes.
const BRIDGE: &str = "cni0";

/// Puts a node's pods behind a bridge that has the first addresses of its pod networks.
fn behind_bridge(node: &Node) {
    let (net4, net6) = (node.pod_cidr4(), node.pod_cidr6().unwrap());
    let gateway4 = std::net::Ipv4Addr::from_bits(net4.network().to_bits() + 1);
    let gateway6 = std::net::Ipv6Addr::from_bits(net6.network().to_bits() + 1);
    link::bridge(node.ns(), BRIDGE).unwrap();
    link::address(
        node.ns(),
        BRIDGE,
        &format!("{gateway4}/{}", net4.prefix_len()),
    )
    .unwrap();
    link::address(
        node.ns(),
        BRIDGE,
        &format!("{gateway6}/{}", net6.prefix_len()),
    )
    .unwrap();
    for pod in node.pods() {
        join(node, pod, gateway4.into(), gateway6.into());
    }
    for family in ["iptables", "ip6tables"] {
        let key = format!("net.bridge.bridge-nf-call-{family}");
        if link::read_sysctl(node.ns(), &key).is_ok() {
            link::sysctl(node.ns(), &key, "1").unwrap();
        }
    }
}

fn join(node: &Node, pod: &Pod, gateway4: IpAddr, gateway6: IpAddr) {
    let (ip4, ip6, host) = (pod.ip4(), pod.ip6().unwrap(), pod.host_if());
    let lengths = (
        node.pod_cidr4().prefix_len(),
        node.pod_cidr6().unwrap().prefix_len(),
    );
    let outside = [
        format!("route del {ip4}/32 dev {host}"),
        format!("route del {ip6}/128 dev {host}"),
        format!("neigh flush dev {host} nud permanent"),
        format!("link set {host} master {BRIDGE}"),
        // As the plugin's `hairpinMode`.
        format!("link set {host} type bridge_slave hairpin on"),
    ];
    link::batch(node.ns(), &outside).unwrap();
    let inside = [
        format!("addr flush dev {UPLINK} scope global"),
        format!("neigh flush dev {UPLINK} nud permanent"),
        format!("addr add {ip4}/{} dev {UPLINK}", lengths.0),
        format!("addr add {ip6}/{} dev {UPLINK} nodad", lengths.1),
        format!("route replace default via {gateway4} dev {UPLINK}"),
        format!("route replace ::/0 via {gateway6} dev {UPLINK}"),
    ];
    link::batch(pod.ns(), &inside).unwrap();
}
