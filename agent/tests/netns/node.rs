//! A node of the overlay in a namespace, and what `ip` and `bridge` should say there.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use datapath_common::Mac;
use tempfile::TempDir;
use tulle_agent::net::{Netlink, OVERHEAD, Overlay, Peer, Report, SlowPath, Uplink, device_name};

use super::{Netns, json, lines, uplink};

/// A node with an uplink, inside whose namespace the test runs.
pub struct Node {
    pub netlink: Netlink,
    pub slow_path: SlowPath,
    pub overlay: Overlay,
    pub record: PathBuf,
    _dir: TempDir,
}

/// Node `number` as its peers see it.
pub fn peer(number: u8) -> Peer {
    Peer {
        node: Ipv4Addr::new(192, 0, 2, number),
        vtep_mac: Mac::new([2, 0, 0, 0, 0, number]),
        pod_cidrs: vec![
            format!("10.244.{number}.0/24").parse().unwrap(),
            format!("fd00:10:244:{number:x}::/64").parse().unwrap(),
        ],
    }
}

impl Node {
    /// Node `number`; its uplink must be there.
    pub async fn new(number: u8, peers: &[u8]) -> Self {
        let netlink = Netlink::open().unwrap();
        let uplink = Uplink::find(&netlink, None).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("sysctls.json");
        Self {
            slow_path: SlowPath::new(netlink.clone(), &record),
            overlay: Overlay {
                device: device_name(1),
                vni: 1,
                port: 8472,
                local: uplink.ip4(),
                uplink: uplink.index,
                mtu: uplink.mtu - OVERHEAD,
                mac: peer(number).vtep_mac,
                address4: Some(Ipv4Addr::new(10, 244, number, 0)),
                address6: format!("fd00:10:244:{number:x}::").parse().ok(),
                peers: peers.iter().copied().map(peer).collect(),
                own_pod_cidrs: peer(number).pod_cidrs,
                answers_by_loopback: true,
            },
            netlink,
            record,
            _dir: dir,
        }
    }

    /// A pass in which nothing may fail.
    pub async fn pass(&mut self) -> Report {
        let report = self.slow_path.reconcile(&self.overlay).await.unwrap();
        assert!(report.failed.is_empty(), "{:#?}", report.failed);
        report
    }

    /// A pass that repairs `repaired` rows and does nothing else, and one that finds all right.
    pub async fn repairs(&mut self, repaired: usize) {
        let report = self.pass().await;
        assert_eq!(
            (
                report.created,
                report.repaired,
                report.updated,
                report.removed
            ),
            (0, repaired, 0, 0),
            "{:#?}",
            report.sentences
        );
        self.settled().await;
    }

    pub async fn settled(&mut self) {
        let report = self.pass().await;
        assert!(report.is_clean(), "{:#?}", report.sentences);
        assert_eq!(routes(), expected_routes(&self.overlay));
        assert_eq!(neighbours(), expected_neighbours(&self.overlay));
        assert_eq!(forwards(), expected_forwards(&self.overlay));
    }
}

/// Runs a test on node 1 with peers 2 and 3.
pub fn on_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F + Send) {
    let (switch, node) = (Netns::new(), Netns::new());
    node.run(|| async {
        uplink(&switch, "wire1", "192.0.2.1");
        test(Node::new(1, &[2, 3]).await).await;
    });
}

/// Our routes.
pub fn routes() -> Vec<String> {
    let fields = [
        "type", "dst", "gateway", "dev", "flags", "metrics", "metric",
    ];
    let mut all = lines(&json("ip -d -j -4 route show proto 116"), &fields);
    all.extend(lines(&json("ip -d -j -6 route show proto 116"), &fields));
    all
}

/// What [`routes`] should be.
pub fn expected_routes(overlay: &Overlay) -> Vec<String> {
    let mtu = format!("[{{\"mtu\":{}}}]", overlay.mtu);
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for cidr in overlay.peers.iter().flat_map(|p| &p.pod_cidrs) {
        let (all, metric) = if cidr.addr().is_ipv4() {
            (&mut v4, "null")
        } else {
            (&mut v6, "1024")
        };
        all.push(format!(
            "unicast {cidr} {} {} [\"onlink\"] {mtu} {metric}",
            cidr.network(),
            overlay.device
        ));
    }
    for cidr in &overlay.own_pod_cidrs {
        if cidr.addr().is_ipv4() {
            v4.push(format!("unreachable {cidr} null null [] null 1000000"));
        } else {
            v6.push(format!("unreachable {cidr} null lo [] null 1000000"));
        }
    }
    v4.sort();
    v6.sort();
    v4.extend(v6);
    v4
}

pub fn neighbours() -> Vec<String> {
    let rows = json("ip -j neigh show dev flannel.1 nud permanent");
    lines(&rows, &["dst", "lladdr", "state"])
}

pub fn expected_neighbours(overlay: &Overlay) -> Vec<String> {
    let mut all: Vec<String> = overlay
        .peers
        .iter()
        .flat_map(|p| {
            p.pod_cidrs
                .iter()
                .map(|c| format!("{} {} [\"PERMANENT\"]", c.network(), p.vtep_mac))
        })
        .collect();
    all.sort();
    all
}

pub fn forwards() -> Vec<String> {
    let rows = json("bridge -j fdb show dev flannel.1");
    lines(&rows, &["mac", "dst", "flags", "state"])
}

pub fn expected_forwards(overlay: &Overlay) -> Vec<String> {
    let entry = |p: &Peer| format!("{} {} [\"self\"] permanent", p.vtep_mac, p.node);
    let mut all: Vec<String> = overlay.peers.iter().map(entry).collect();
    all.sort();
    all
}
