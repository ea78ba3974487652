//! Least connections: who has fewer living flows gets the next one, and the counts stay those
//! of the flow table. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData};
use datapath_common::{Direction, Flow, FlowKey, FlowState, Ip4, Ip6, maps};
use run_services_support::{By, Client, EVERY_POD, EVERY_WAY, Front, SOON, Town};
use testkit::echo::LongConnection;
use testkit::manifests::{Protocol, Service};
use testkit::server::ECHO_PORT;

const ECHO: u16 = 9000;
const POD: Client = Client::Pod(0, 0);
/// What it takes to notice that a connection is closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Living flows by backend id.
type Counts = BTreeMap<u32, u64>;

/// A map of the first node's.
fn pinned(town: &Town, name: &str) -> MapData {
    MapData::from_pin(town.node(0).bpffs().join(name)).unwrap()
}

/// What the programs count.
fn counted(town: &Town, name: &str) -> Counts {
    let map: Array<_, u64> = Map::Array(pinned(town, name)).try_into().unwrap();
    let counts = (0..map.len()).map(|id| (id, map.get(&id, 0).unwrap()));
    counts.filter(|(_, count)| *count != 0).collect()
}

/// Forward rows that are counted.
fn rows<A>(town: &Town, name: &str) -> Vec<(FlowKey<A>, Flow<A>)>
where
    FlowKey<A>: aya::Pod + Eq + Hash,
    Flow<A>: aya::Pod,
{
    let map = Map::LruHashMap(pinned(town, name));
    let map: HashMap<_, FlowKey<A>, Flow<A>> = map.try_into().unwrap();
    let rows = map.iter().filter_map(Result::ok);
    rows.filter(|(_, row)| row.counted == 1).collect()
}

/// What a recount finds: flows that nobody has closed.
fn recount<A>(town: &Town, name: &str) -> Counts
where
    FlowKey<A>: aya::Pod + Eq + Hash,
    Flow<A>: aya::Pod,
{
    let mut counts = Counts::new();
    for (key, row) in rows::<A>(town, name) {
        assert_eq!(key.direction, Direction::Forward as u8);
        assert_ne!(row.state, FlowState::Closing as u8);
        *counts.entry(row.backend).or_default() += 1;
    }
    counts
}

/// Both, in both families.
fn both(town: &Town) -> [[Counts; 2]; 2] {
    [
        [
            counted(town, maps::LIVE_V4),
            recount::<Ip4>(town, maps::FLOW_V4),
        ],
        [
            counted(town, maps::LIVE_V6),
            recount::<Ip6>(town, maps::FLOW_V6),
        ],
    ]
}

/// Waits until the counts are those of the rows.
fn agree(town: &Town, what: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        let both = both(town);
        if both.iter().all(|[counted, rows]| counted == rows) {
            return;
        }
        assert!(Instant::now() < until, "{what}: {both:?}");
        sleep(Duration::from_millis(50));
    }
}

/// A service of long connections to the other node's two pods.
fn echo(town: &Town, n: u8) -> Service {
    let pods = town.world.cluster.pods().skip(2);
    let service = town.service(n, &[]).endpoints(pods);
    service.port(Protocol::Tcp, ECHO, ECHO_PORT)
}

fn open(town: &Town, to: SocketAddr, connections: usize) -> Vec<LongConnection> {
    let every = Duration::from_millis(50);
    let open = |_| LongConnection::start(town.ns(POD), to, every).unwrap();
    (0..connections).map(open).collect()
}

/// How many of them each pod has.
fn shares(connections: &[LongConnection]) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for connection in connections {
        *shares.entry(connection.report().pod).or_default() += 1;
    }
    shares
}

/// Waits until so many flows are counted.
fn settled(town: &Town, name: &str, flows: u64) {
    let until = Instant::now() + PATIENCE;
    loop {
        let counts = counted(town, name);
        if counts.values().sum::<u64>() == flows {
            return;
        }
        assert!(Instant::now() < until, "{flows} flows: {counts:?}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn kp_161_who_has_fewer_living_flows_gets_the_next_one() {
    let town = Town::start("fewest", 0, &["--scheduler", "lc"]);
    let mut service = echo(&town, 57);
    town.world.write(&service);
    for (ip, name) in service
        .ips
        .clone()
        .into_iter()
        .zip([maps::LIVE_V4, maps::LIVE_V6])
    {
        let to = SocketAddr::new(ip, ECHO);
        let mut all = open(&town, to, 8);
        let even = shares(&all);
        assert!(
            even.values().all(|share| *share == 4) && even.len() == 2,
            "{even:?}"
        );
        // One pod's connections end, the other's live on: the next ones make up for it.
        let quick = all[0].report().pod;
        let (ended, mut left): (Vec<_>, Vec<_>) = all
            .drain(..)
            .partition(|connection| connection.report().pod == quick);
        for one in ended {
            one.finish();
        }
        settled(&town, name, 4);
        left.extend(open(&town, to, 4));
        assert_eq!(shares(&left), even);
        // Short ones, one after the other: each goes where the fewest are.
        let (ended, left): (Vec<_>, Vec<_>) = left
            .into_iter()
            .partition(|connection| connection.report().pod == quick);
        for one in ended {
            one.finish();
        }
        for turn in 0..6 {
            settled(&town, name, 4);
            let report = open(&town, to, 1).remove(0).finish();
            assert_eq!(report.pod, quick, "short connection {turn}");
        }
        settled(&town, name, 4);
        // With three times the weight it is to have three times as many.
        let heavy = town
            .world
            .cluster
            .pods()
            .find(|(_, pod)| pod.name() == quick);
        let heavy = heavy
            .unwrap()
            .1
            .ips()
            .into_iter()
            .map(|ip| format!("{ip}=3"));
        let weights = heavy.collect::<Vec<String>>().join(",");
        let weights = ("tulle.io/weights".to_owned(), weights);
        service.annotations = [weights].into_iter().collect();
        town.world.write(&service);
        let more = open(&town, to, 12);
        assert_eq!(shares(&more), BTreeMap::from([(quick, 12)]));
        for report in left.into_iter().chain(more).map(LongConnection::finish) {
            assert_eq!(report.broken, None, "{report:?}");
        }
        settled(&town, name, 0);
        service.annotations.clear();
        town.world.write(&service);
    }
    agree(&town, "at the end");
}

/// Short connections and datagrams of several clients at once.
fn churn(town: &Town, service: &Service, times: usize) {
    std::thread::scope(|scope| {
        for client in [Client::Pod(0, 0), Client::Pod(0, 1), Client::Node(0)] {
            scope.spawn(move || {
                for by in EVERY_WAY.into_iter().cycle().take(4 * times) {
                    let to = town.address(service, Front::ClusterIp, by);
                    town.ask(client, to, by.udp, SOON).unwrap();
                }
            });
        }
    });
}

#[test]
fn programs_alone_count_as_a_recount_does() {
    // No walk over the table corrects them meanwhile.
    let args = ["--scheduler", "lc", "--gc-interval", "3600"];
    let town = Town::start("alone", 0, &args);
    let service = town.service(58, &EVERY_POD);
    town.world.write(&service);
    let mut random = town.service(59, &EVERY_POD);
    let choice = ("tulle.io/scheduler".to_owned(), "random".to_owned());
    random.annotations = [choice].into_iter().collect();
    town.world.write(&random);
    churn(&town, &service, 25);
    agree(&town, "after churn");
    let [[v4, _], [v6, _]] = both(&town);
    assert!(
        v4.len() == 4 && v6.len() == 4,
        "datagrams live on: {v4:?} {v6:?}"
    );
    // Flows of another scheduler are not counted.
    churn(&town, &random, 5);
    agree(&town, "after flows of another service");
    let [[same4, _], [same6, _]] = both(&town);
    assert_eq!((same4, same6), (v4, v6));
}

#[test]
fn counts_are_those_of_a_recount_after_rows_went() {
    let args = ["--scheduler", "lc", "--gc-interval", "2"];
    let town = Town::start("recount", 0, &args);
    let service = town.service(60, &EVERY_POD);
    town.world.write(&service);
    churn(&town, &service, 5);
    agree(&town, "before");
    // Rows that nobody closes: evicted, or flushed. Walks over the table notice it.
    let map = Map::LruHashMap(pinned(&town, maps::FLOW_V4));
    let mut flows: HashMap<_, FlowKey<Ip4>, Flow<Ip4>> = map.try_into().unwrap();
    for (key, _) in rows::<Ip4>(&town, maps::FLOW_V4).into_iter().step_by(2) {
        flows.remove(&key).unwrap();
    }
    let [[counted, rows], _] = both(&town);
    assert_ne!(
        counted, rows,
        "the rows are gone, the counts are not corrected"
    );
    agree(&town, "after rows went");
    let by = By {
        udp: true,
        v6: false,
    };
    town.ask(POD, town.address(&service, Front::Vip, by), true, SOON)
        .unwrap();
    agree(&town, "at the end");
}
