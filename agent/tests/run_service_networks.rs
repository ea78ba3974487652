//! Addresses that no Service has, in networks that services have theirs from.
//! Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use datapath_common::{Hook, Reason};
use run_support::{LIMIT, World, addresses, counted};
use testkit::capture::Capture;
use testkit::cluster::UPLINK;
use testkit::echo::udp_connect;
use testkit::http::get;
use testkit::packet::{Net, parse};
use testkit::{ClusterBuilder, NetNs, link};

/// In [`NETWORKS`], one of each family, and no service's.
const FREE: [&str; 2] = ["10.96.0.200", "fd96::c8"];
const NETWORKS: [&str; 2] = ["10.96.0.0/16", "fd96::/64"];
const CIDR: &str = "\
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, \"fd96::/64\"]}
";
/// For what leaves to be seen, or not to be.
const SOON: Duration = Duration::from_millis(300);

struct Town {
    world: World,
}

impl Town {
    fn start(label: &str, args: &[&str], state: Option<&str>) -> Self {
        let builder = ClusterBuilder::unique(label).nodes(2).pods_per_node(1);
        let mut world = World::idle_of(builder);
        world.cluster.add_outsider("client").unwrap();
        let (outsider, node) = (&world.cluster.outsiders()[0], &world.cluster.nodes()[0]);
        for network in NETWORKS {
            outsider.route(network, node).unwrap();
        }
        // What the node forwards once is sent to it again.
        for (family, scope) in [("ipv4", "all"), ("ipv4", UPLINK), ("ipv6", UPLINK)] {
            let key = format!("net.{family}.conf.{scope}.accept_redirects");
            link::sysctl(outsider.ns(), &key, "0").unwrap();
        }
        if let Some(cidr) = state {
            world.state.put("cidr.yaml", cidr).unwrap();
        }
        world.options = world.options.args(args);
        world.start_agents();
        world.write(&world.web());
        Self { world }
    }

    /// Who asks, and where they are met.
    fn clients(&self) -> [(&'static str, &NetNs, Hook); 3] {
        let node = &self.world.cluster.nodes()[0];
        let outsider = &self.world.cluster.outsiders()[0];
        [
            ("a pod", node.pods()[0].ns(), Hook::PodFrom),
            ("the node", node.ns(), Hook::NicOut),
            ("outside", outsider.ns(), Hook::NicIn),
        ]
    }

    fn dropped(&self, hook: Hook) -> u64 {
        let node = &self.world.cluster.nodes()[0];
        counted(node, hook, Reason::FreeServiceAddress)
    }

    /// Datagrams that leave the node when a client sends three to a free address.
    fn leaving(&self, from: &NetNs, to: IpAddr) -> usize {
        let node = self.world.cluster.nodes()[0].ns();
        let capture = Capture::start(node, UPLINK, 1000).unwrap();
        let socket = udp_connect(from, SocketAddr::new(to, 53)).unwrap();
        for _ in 0..3 {
            // An answer to the last one may be there: that the port is not.
            let _ = socket.send(b"anybody?");
            std::thread::sleep(SOON / 3);
        }
        let dst = |bytes: &[u8]| match parse(bytes).map(|frame| frame.net) {
            Ok(Net::V4(ip)) => Some(IpAddr::V4(ip.dst)),
            Ok(Net::V6(ip)) => Some(IpAddr::V6(ip.dst)),
            _ => None,
        };
        let frames = capture.stop().unwrap().into_iter();
        let left = frames.filter(|frame| frame.outgoing && dst(&frame.bytes) == Some(to));
        left.count()
    }

    fn all_dropped(&self) {
        for to in FREE.map(|ip| ip.parse().unwrap()) {
            for (who, ns, hook) in self.clients() {
                let before = self.dropped(hook);
                assert_eq!(self.leaving(ns, to), 0, "{who} to {to}");
                assert_eq!(self.dropped(hook), before + 3, "{who} to {to}");
            }
        }
        // Addresses in use are served.
        for (who, ns, _) in self.clients() {
            for to in addresses(&self.world.web()) {
                get(ns, to, "/", LIMIT).unwrap_or_else(|error| panic!("{who} {to}: {error}"));
            }
        }
    }
}

#[test]
fn kp_29_free_addresses_never_leave_the_node() {
    let town = Town::start("free", &[], Some(CIDR));
    town.all_dropped();
    let log = || town.world.agents[0].log().unwrap();
    assert!(!log().contains("ServiceCIDR"), "{}", log());
    // Without the object the network is anybody's.
    let before = town.world.syncs();
    town.world.state.remove("cidr.yaml").unwrap();
    town.world.wait_synced(&before);
    let to: IpAddr = FREE[0].parse().unwrap();
    for (who, ns, hook) in town.clients() {
        let before = town.dropped(hook);
        assert!(town.leaving(ns, to) > 0, "{who}");
        assert_eq!(town.dropped(hook), before, "{who}");
    }
    let before = town.world.syncs();
    town.world.state.put("cidr.yaml", CIDR).unwrap();
    town.world.wait_synced(&before);
    town.all_dropped();
}

#[test]
fn kp_29_the_flag_names_networks_too() {
    let args = ["--service-cidr", "10.96.0.0/16,fd96::/64"];
    Town::start("freeflag", &args, None).all_dropped();
}
