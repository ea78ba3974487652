//! Numbers of service ports come back when nothing of the former port is left. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use run_support::{LIMIT, World, addresses};
use testkit::ClusterBuilder;
use testkit::agent::Agent;
use testkit::http::get;
use testkit::manifests::{Protocol, Service};
use tulle_cli::datapath::Datapath;

/// Walks over the flow tables, and what is told of them.
const ARGS: [&str; 6] = [
    "--gc-interval",
    "1",
    "--max-stats",
    "4",
    "--log",
    "info,tulle_agent::run::flows=debug",
];

struct Town {
    world: World,
}

impl Town {
    fn start() -> Self {
        let builder = ClusterBuilder::unique("numbers").nodes(1).pods_per_node(2);
        let mut world = World::idle_of(builder);
        world.options = world.options.args(&ARGS);
        world.start_agents();
        Self { world }
    }

    fn datapath(&self) -> Datapath {
        Datapath::open(&self.world.cluster.nodes()[0].bpffs()).unwrap()
    }

    /// A service that remembers its clients, TCP in both families.
    fn service(&self, host: u8) -> Service {
        let mut service = Service::dual_stack(&format!("service-{host}"), host)
            .port(Protocol::Tcp, 80, 8080)
            .endpoints(self.world.cluster.pods());
        service.exposure.affinity = Some(Duration::from_hours(1));
        service
    }

    fn put(&self, host: u8) -> [u32; 2] {
        let service = self.service(host);
        self.world.write(&service);
        let rows = self.datapath().frontends().unwrap();
        let number = |ip: &IpAddr| {
            let row = rows
                .iter()
                .find(|row| row.addr.ip() == *ip && row.proto == 6);
            row.unwrap().value.service
        };
        [number(&service.ips[0]), number(&service.ips[1])]
    }

    fn remove(&self, host: u8) {
        let before = self.world.syncs();
        self.world
            .state
            .remove_service(&self.service(host))
            .unwrap();
        self.world.wait_synced(&before);
    }

    /// A connection in each family from the first pod.
    fn ask(&self, host: u8) {
        let client = self.world.cluster.nodes()[0].pods()[0].ns();
        for to in addresses(&self.service(host)) {
            get(client, to, "/", LIMIT).unwrap();
        }
    }

    fn packets(&self, number: u32) -> u64 {
        let traffic = self.datapath().service_traffic(&[number].into()).unwrap();
        traffic[&number].packets
    }

    /// Numbers under which clients are remembered.
    fn remembered(&self) -> BTreeSet<u32> {
        let rows = self.datapath().affinities().unwrap();
        rows.iter().map(|row| row.service).collect()
    }

    /// Until the agent has said so often that numbers are free.
    fn wait_freed(&mut self, times: usize) {
        let said = |agent: &Agent| {
            let log = agent.log().unwrap();
            log.matches("service numbers may be given out again")
                .count()
        };
        self.world.agents[0]
            .wait_until("numbers are free", LIMIT, |agent| Ok(said(agent) == times))
            .unwrap();
    }

    fn warned(&self) -> usize {
        let log = self.world.agents[0].log().unwrap();
        log.matches("raise --max-stats").count()
    }
}

#[test]
fn a_number_comes_back_without_clients_and_counts_of_its_former_port() {
    let mut town = Town::start();
    assert_eq!(town.put(1), [1, 2]);
    assert_eq!(town.warned(), 0);
    assert_eq!(town.put(2), [3, 4]);
    assert_eq!(town.put(3), [5, 6]);
    assert_eq!(town.warned(), 1, "rows 0 to 3 for numbers up to 6");
    town.ask(1);
    town.ask(2);
    assert!(town.packets(3) > 0);
    assert_eq!(town.remembered(), [1, 2, 3, 4].into());

    // Closed connections have rows for two minutes yet, and 5 and 6 never had any.
    town.remove(2);
    town.remove(3);
    town.wait_freed(1);
    assert_eq!(town.put(4), [5, 6]);
    assert_eq!(town.warned(), 2, "and nothing between");
    assert!(town.packets(3) > 0);
    assert_eq!(town.remembered(), [1, 2, 3, 4].into());

    let datapath = town.datapath();
    let flows = datapath.flows().unwrap();
    let old = flows.iter().filter(|row| [3, 4].contains(&row.service));
    let removed = datapath.remove_flows(old.map(|row| row.key)).unwrap();
    assert_eq!(removed, 4, "two rows in each family");
    town.wait_freed(2);
    assert_eq!(town.remembered(), [1, 2].into());
    assert_eq!(town.packets(3), 0);
    assert!(town.packets(1) > 0);
    assert_eq!(town.put(5), [3, 4]);

    // A start finds those whose port went while no agent ran.
    town.world.agents[0].terminate(LIMIT).unwrap();
    town.world.state.remove_service(&town.service(5)).unwrap();
    town.world.agents[0].spawn().unwrap();
    town.world.agents[0].wait_ready(LIMIT).unwrap();
    town.wait_freed(3);
    assert_eq!(town.put(6), [3, 4]);
}
