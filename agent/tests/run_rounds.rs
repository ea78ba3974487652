//! Rows that somebody else changes in the maps of a real agent (KP-134, KP-139), and an agent that
//! changes them itself all the time. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers")]

mod exposition;
mod run_services_support;
mod run_support;

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError};
use datapath_common::{
    Backend, BackendState, Frontend, FrontendKey, Ip4, Network, Node as NodeRow, Via, maps,
};
use exposition::Exposition;
use run_services_support::{By, Client, EVERY_POD, Front, SECOND_NODE, SOON, Town, ask};
use run_support::ask::get_path;
use run_support::{LIMIT, World, addresses};
use testkit::cluster::Node;
use testkit::http::{Load, LoadOptions};
use testkit::manifests::{Protocol, Service};
use testkit::server::ECHO_PORT;
use testkit::{ClusterBuilder, wait};

const TCP: By = By {
    udp: false,
    v6: false,
};

/// Longer than TCP delays an acknowledgement.
const QUIET: Duration = Duration::from_millis(300);

fn open<M: TryFrom<Map, Error = MapError>>(
    bpffs: &Path,
    name: &str,
    kind: fn(MapData) -> Map,
) -> M {
    let pin = bpffs.join(name);
    M::try_from(kind(MapData::from_pin(pin).unwrap())).unwrap()
}

fn hash<K: Pod, V: Pod>(bpffs: &Path, name: &str) -> HashMap<MapData, K, V> {
    open(bpffs, name, Map::HashMap)
}

fn trie<V: Pod>(bpffs: &Path, name: &str) -> LpmTrie<MapData, Ip4, V> {
    open(bpffs, name, Map::LpmTrie)
}

fn array<V: Pod>(bpffs: &Path, name: &str) -> Array<MapData, V> {
    open(bpffs, name, Map::Array)
}

fn front_key(at: SocketAddr, scope: u8) -> FrontendKey<Ip4> {
    let IpAddr::V4(addr) = at.ip() else {
        panic!("{at} is not IPv4");
    };
    FrontendKey {
        addr: addr.into(),
        port: at.port(),
        proto: 6,
        scope,
    }
}

/// Waits until it holds: a period and what a busy machine adds.
fn back(what: &str, holds: impl Fn() -> bool) {
    let holds = || Ok(holds().then_some(()));
    wait::until(what, LIMIT, holds).unwrap();
}

fn scrape(node: &Node) -> Exposition {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_249));
    let answer = get_path(node.ns(), at, "/metrics").unwrap();
    Exposition::parse(&answer.body, false)
}

/// A connection on which somebody says something now and then.
struct Idle(BufReader<TcpStream>);

impl Idle {
    fn open(town: &Town, to: SocketAddr) -> Self {
        let stream = town
            .ns(Client::Pod(0, 0))
            .run(|| TcpStream::connect_timeout(&to, SOON));
        let stream = stream.unwrap().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut idle = Self(BufReader::new(stream));
        idle.line();
        idle.exchange();
        idle
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn exchange(&mut self) {
        self.0.get_mut().write_all(b"still there?\n").unwrap();
        assert_eq!(self.line(), "still there?\n");
    }
}

/// What is done to a node's maps, each time once, and how to see that it is undone.
struct Vandal {
    bpffs: PathBuf,
    /// The service's first frontend.
    front: FrontendKey<Ip4>,
    /// A frontend that nobody has.
    nobody: FrontendKey<Ip4>,
}

/// The map that it is told of, and how many rows it is.
type Act = (&'static str, fn(&Vandal), u64);

impl Vandal {
    fn row(&self) -> Option<Frontend> {
        let fronts = hash::<_, Frontend>(&self.bpffs, maps::FRONT_V4);
        fronts.get(&self.front, 0).ok()
    }

    fn frontend_is_deleted(&self) {
        let mut fronts = hash::<_, Frontend>(&self.bpffs, maps::FRONT_V4);
        let before = self.row().unwrap();
        fronts.remove(&self.front).unwrap();
        back("back", || {
            self.row().is_some_and(|row| row.service == before.service)
        });
    }

    fn frontend_is_changed(&self) {
        let mut fronts = hash(&self.bpffs, maps::FRONT_V4);
        let before = self.row().unwrap();
        let bad = Frontend {
            len: 0,
            affinity_secs: 77,
            ..before
        };
        fronts.insert(self.front, bad, 0).unwrap();
        let is = |row: Frontend| (row.len, row.affinity_secs) == (before.len, 0);
        back("as before", || self.row().is_some_and(is));
    }

    fn frontends_are_added(&self) {
        let mut fronts = hash(&self.bpffs, maps::FRONT_V4);
        let row = self.row().unwrap();
        let other = FrontendKey {
            scope: 9,
            ..self.front
        };
        for key in [self.nobody, other] {
            fronts.insert(key, row, 0).unwrap();
        }
        let there = |key| {
            hash::<_, Frontend>(&self.bpffs, maps::FRONT_V4)
                .get(key, 0)
                .is_ok()
        };
        back("gone", || !there(&self.nobody) && !there(&other));
        assert!(self.row().is_some(), "the service's own row is another");
    }

    fn slot_is_changed(&self) {
        let mut slots = array::<u32>(&self.bpffs, maps::SEGMENTS);
        let before = self.row().unwrap();
        let ids = |row: &Frontend| -> Vec<u32> {
            let slots = array::<u32>(&self.bpffs, maps::SEGMENTS);
            let all = row.start..row.start + row.len;
            all.map(|slot| slots.get(&slot, 0).unwrap()).collect()
        };
        let expected = ids(&before);
        slots.set(before.start + 1, 0, 0).unwrap();
        let is = |row: Frontend| row.start != before.start && ids(&row) == expected;
        back("elsewhere", || self.row().is_some_and(is));
    }

    fn backend_is_changed(&self) {
        let mut backends = array::<Backend<Ip4>>(&self.bpffs, maps::BACK_V4);
        let slots = array::<u32>(&self.bpffs, maps::SEGMENTS);
        let id = slots.get(&self.row().unwrap().start, 0).unwrap();
        let before = backends.get(&id, 0).unwrap();
        let bad = Backend {
            state: BackendState::Free as u8,
            port: 1,
            via: Via::KERNEL,
            ..before
        };
        backends.set(id, bad, 0).unwrap();
        back("as before", || backends.get(&id, 0).unwrap() == before);
    }

    fn node_and_peer_are_deleted(&self) {
        let mut nodes = hash::<Ip4, NodeRow>(&self.bpffs, maps::NODES_V4);
        let (addr, row) = nodes.iter().next().unwrap().unwrap();
        nodes.remove(&addr).unwrap();
        let mut peers = trie::<Via>(&self.bpffs, maps::PEERS_V4);
        let (net, via) = peers.iter().next().unwrap().unwrap();
        peers.remove(&net).unwrap();
        back("back", || {
            let node = nodes.get(&addr, 0).is_ok_and(|now| now == row);
            node && peers.get(&net, 0).is_ok_and(|now| now == via)
        });
    }

    fn pods_and_networks_are_others(&self) {
        let mut pods = hash::<Ip4, Via>(&self.bpffs, maps::PODS_V4);
        let (addr, via) = pods.iter().next().unwrap().unwrap();
        let bad = Via {
            ifindex: 9_999,
            ..via
        };
        pods.insert(addr, bad, 0).unwrap();
        let mut direct = trie::<u32>(&self.bpffs, maps::DIRECT_V4);
        let net = Key::new(24, Ip4::new([192, 0, 2, 0]));
        direct.insert(&net, Network::DIRECT, 0).unwrap();
        back("as before", || {
            let pod = pods.get(&addr, 0).is_ok_and(|now| now == via);
            pod && direct.get(&net, 0).is_err()
        });
    }
}

#[test]
fn kp134_kp139_what_somebody_changes_in_the_maps_is_put_right() {
    let mut town = Town::start("rows", 0, &["--sync-period", "1s"]);
    let bad = town
        .service(61, &EVERY_POD)
        .port(Protocol::Tcp, 77, ECHO_PORT);
    let good = town.service(62, &EVERY_POD);
    town.world.write(&bad);
    town.world.write(&good);
    let client = Client::Pod(0, 0);
    let at = town.address(&bad, Front::ClusterIp, TCP);
    let long = SocketAddr::new(at.ip(), 77);
    let mut idle: Vec<Idle> = (0..8).map(|_| Idle::open(&town, long)).collect();
    let options = LoadOptions {
        pause: Duration::from_millis(5),
        timeout: Duration::from_secs(20),
        ..LoadOptions::steady(Duration::from_mins(10))
    };
    let to = town.address(&good, Front::ClusterIp, TCP);
    let load = Load::start(town.ns(client), to, &options).unwrap();

    let agent = &town.world.agents[0];
    let lines = || {
        let log = agent.log().unwrap();
        log.matches("rows of maps were not as they had been written")
            .count()
    };
    let vandal = Vandal {
        bpffs: town.node(0).bpffs(),
        front: front_key(long, 0),
        nobody: front_key("192.0.2.9:80".parse().unwrap(), 0),
    };
    let acts: [Act; 7] = [
        (maps::FRONT_V4, Vandal::frontend_is_deleted, 1),
        (maps::FRONT_V4, Vandal::frontend_is_changed, 1),
        (maps::FRONT_V4, Vandal::frontends_are_added, 2),
        (maps::SEGMENTS, Vandal::slot_is_changed, 1),
        (maps::BACK_V4, Vandal::backend_is_changed, 1),
        (maps::PEERS_V4, Vandal::node_and_peer_are_deleted, 2),
        (maps::PODS_V4, Vandal::pods_and_networks_are_others, 2),
    ];
    let (mut repairs, mut said) = (agent.status().unwrap().drift_repairs, lines());
    for (map, act, rows) in acts {
        let drift = || scrape(town.node(0)).sum("tulle_map_rows_drifted_total", &[("map", map)]);
        let before = drift();
        // What the clients acknowledge late would be refused while the frontend is not there.
        std::thread::sleep(QUIET);
        let began = Instant::now();
        act(&vandal);
        println!("{map}: put right after {:?}", began.elapsed());
        // Rows of one act may be met by two rounds.
        let counted = || agent.status().unwrap().drift_repairs - repairs;
        back("counted", || counted() >= rows);
        assert_eq!(counted(), rows, "{map}");
        back("said", || lines() > said);
        assert!(drift() > before, "{map}");
        (repairs, said) = (repairs + rows, lines());
        for idle in &mut idle {
            idle.exchange();
        }
        ask(town.ns(client), at, false, SOON).unwrap();
    }
    let report = load.stop().unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert!(report.requests.len() > 100);
    let status = agent.status().unwrap();
    assert_eq!(status.faults, [""; 0]);
    let clean = |agent: &testkit::agent::Agent| {
        let round = agent.status().unwrap().last_round;
        Ok(round.is_some_and(|round| (round.found, round.pending) == (0, 0)))
    };
    town.world.agents[0]
        .wait_until("in order", LIMIT, clean)
        .unwrap();
}

#[test]
fn kp139_rows_come_back_where_others_filled_the_map() {
    let args = ["--sync-period", "1s", "--max-frontends", "64"];
    let town = Town::start("rowsfull", 0, &args);
    let service = town.service(63, &SECOND_NODE);
    town.world.write(&service);
    let node = town.node(0);
    let at = town.address(&service, Front::ClusterIp, TCP);
    let mut fronts = hash(&node.bpffs(), maps::FRONT_V4);
    fronts.remove(&front_key(at, 0)).unwrap();
    let stranger = |n: u8| front_key(SocketAddr::from(([192, 0, 2, n], 80)), 0);
    let row = Frontend::default();
    let put = |n: &u8| fronts.insert(stranger(*n), row, 0).is_err();
    let full = (1..=255).find(put);
    assert!(full.is_some(), "the map takes no more");
    back("served", || {
        ask(town.ns(Client::Pod(0, 0)), at, false, SOON).is_ok()
    });
    let fronts = hash::<FrontendKey<Ip4>, Frontend>(&node.bpffs(), maps::FRONT_V4);
    let strangers = || {
        fronts.keys().filter(|key| {
            key.as_ref()
                .is_ok_and(|key| key.addr.octets()[..3] == [192, 0, 2])
        })
    };
    back("rid of strangers", || strangers().count() == 0);
}

#[test]
fn kp134_an_agent_s_own_writes_are_no_drift() {
    let builder = ClusterBuilder::unique("rowsown").nodes(2).pods_per_node(1);
    let mut world = World::idle_of(builder);
    world.options = world
        .options
        .args(&["--sync-period", "50ms", "--gc-interval", "1"]);
    world.start_agents();
    world.write(&world.web());
    let pod = &world.cluster.nodes()[0].pods()[0];
    let options = LoadOptions {
        pause: Duration::from_millis(5),
        ..LoadOptions::steady(Duration::from_mins(10))
    };
    let load = Load::start(pod.ns(), &*addresses(&world.web()), &options).unwrap();
    let service = |n: u8, port: u16, pods: usize| {
        Service::dual_stack(&format!("churn-{n}"), 100 + n)
            .port(Protocol::Tcp, port, 8080)
            .endpoints(world.cluster.pods().take(pods))
    };
    let began = Instant::now();
    let mut turn = 0_u16;
    while began.elapsed() < Duration::from_secs(15) {
        for n in 0..20 {
            let changed = service(n, 80 + (turn + u16::from(n)) % 3, usize::from(turn % 3));
            if (turn + u16::from(n)).is_multiple_of(5) {
                drop(world.state.remove_service(&changed));
            } else {
                world.state.write_service(&changed).unwrap();
            }
        }
        turn += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = load.stop().unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    for (agent, node) in world.agents.iter().zip(world.cluster.nodes()) {
        let status = agent.status().unwrap();
        assert!(status.syncs > 100, "{} changes", status.syncs);
        let round = status.last_round.unwrap();
        assert_eq!((round.found, round.pending), (0, 0));
        let seen = scrape(node);
        assert_eq!(seen.sum("tulle_map_rows_drifted_total", &[]), 0.0);
        let last = seen.sum("tulle_map_rows_compared_last_timestamp_seconds", &[]);
        let started = status.started_at_secs as f64;
        assert!(last > started + 10.0, "rounds go on while services change");
        let log = agent.log().unwrap();
        assert!(!log.contains("rows of maps were not as"), "{log}");
    }
}
