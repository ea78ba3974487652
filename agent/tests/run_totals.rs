//! What Prometheus is told of services' traffic when agents and services come and go. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers")]

mod exposition;
mod run_support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use exposition::Exposition;
use run_support::ask::{Answer, get_path};
use run_support::{LIMIT, START, World, addresses};
use testkit::ClusterBuilder;
use testkit::agent::Agent;
use testkit::http::get;
use testkit::manifests::{Protocol, Service};
use tulle_cli::datapath::Datapath;

const FLOWS: &str = "tulle_service_flows_opened_total";
const PORT_FLOWS: &str = "tulle_service_port_flows_opened_total";

/// One node of two pods, whose flow tables are walked each second.
fn idle(label: &str) -> World {
    let mut world = World::idle_of(ClusterBuilder::unique(label).nodes(1));
    let args = ["--gc-interval", "1", "--service-metrics", "true"];
    world.options = world.options.args(&args);
    world
}

fn ask_own(world: &World, port: u16, path: &str) -> std::io::Result<Answer> {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    get_path(world.cluster.nodes()[0].ns(), at, path)
}

fn scrape(world: &World) -> Exposition {
    Exposition::parse(&ask_own(world, 10_249, "/metrics").unwrap().body, false)
}

/// Scrapes until it holds; what `always` says holds each time.
fn wait_for(
    world: &World,
    what: &str,
    holds: impl Fn(&Exposition) -> bool,
    always: impl Fn(&Exposition),
) -> Exposition {
    testkit::wait::until(what, LIMIT, || {
        let seen = scrape(world);
        always(&seen);
        if holds(&seen) {
            return Ok(Some(seen));
        }
        std::thread::sleep(Duration::from_millis(200));
        Ok(None)
    })
    .unwrap()
}

/// All flows that were ever opened, and those that are told of a service; none where it is not told.
fn flows(seen: &Exposition, service: &str) -> (Option<f64>, Option<f64>) {
    let all = seen.of(FLOWS, &[]).next();
    let labels = [("service", service)];
    let ports: Vec<f64> = seen.of(PORT_FLOWS, &labels).collect();
    (all, (!ports.is_empty()).then(|| ports.iter().sum()))
}

/// A flow of each family from the first pod.
fn ask(world: &World, service: &Service) {
    let (_, pod) = world.cluster.pods().next().unwrap();
    for at in addresses(service) {
        assert_eq!(get(pod.ns(), at, "/", LIMIT).unwrap().status, 200);
    }
}

fn restart(world: &mut World) {
    world.agents[0].terminate(LIMIT).unwrap();
    world.agents[0].spawn().unwrap();
    world.agents[0].wait_ready(START).unwrap();
}

#[test]
fn totals_stay_over_restarts_and_no_service_inherits_anothers() {
    let mut world = idle("totals");
    world.start_agents();
    let web = world.web();
    world.write(&web);
    ask(&world, &web);
    let first = wait_for(
        &world,
        "two flows",
        |seen| flows(seen, "web") == (Some(2.0), Some(2.0)),
        |_| {},
    );
    let bytes = first.sum("tulle_service_bytes_total", &[]);

    // Nothing is told before all of it can be: what is told goes on where it was.
    restart(&mut world);
    let never_less = |seen: &Exposition| {
        assert!(flows(seen, "web").0.is_none_or(|all| all >= 2.0));
    };
    let told = |seen: &Exposition| flows(seen, "web").0.is_some();
    let seen = wait_for(&world, "the sum", told, never_less);
    assert_eq!(flows(&seen, "web"), (Some(2.0), Some(2.0)));
    assert!(seen.sum("tulle_service_bytes_total", &[]) >= bytes);

    // The agent ends when a service is gone, before its numbers are cleared: its flows are there yet.
    let before = world.syncs();
    world.state.remove_service(&web).unwrap();
    world.wait_synced(&before);
    restart(&mut world);
    let other = Service::dual_stack("other", 11)
        .port(Protocol::Tcp, 80, 8080)
        .endpoints(world.cluster.pods());
    world.write(&other);
    ask(&world, &other);
    let seen = wait_for(
        &world,
        "two flows of the other",
        |seen| flows(seen, "other") == (Some(4.0), Some(2.0)),
        never_less,
    );
    assert_eq!(flows(&seen, "web").1, None);

    // The numbers come free, and what was counted under them remains in the sum.
    let datapath = Datapath::open(&world.cluster.nodes()[0].bpffs()).unwrap();
    let rows = datapath.flows().unwrap();
    datapath
        .remove_flows(rows.iter().map(|row| row.key))
        .unwrap();
    testkit::wait::until("the numbers to be cleared", LIMIT, || {
        let gone = datapath.service_traffic(&[0, 1, 2].into()).unwrap();
        let flows = [0, 1, 2].map(|number| gone[&number].flows);
        Ok((flows == [2, 0, 0]).then_some(()))
    })
    .unwrap();
    for _ in 0..2 {
        let four = |seen: &Exposition| assert!(flows(seen, "x").0.is_none_or(|all| all == 4.0));
        let seen = wait_for(&world, "the sum", told, four);
        assert_eq!(flows(&seen, "other"), (Some(4.0), Some(2.0)));
        restart(&mut world);
    }
}

/// What a probe is told, a scrape is told.
#[test]
fn ready_is_what_readyz_says() {
    let mut world = idle("totready");
    let nodes = std::fs::read_to_string(world.state.path().join("nodes.yaml")).unwrap();
    world.state.remove("nodes.yaml").unwrap();
    let mut agent = Agent::start(&world.cluster.nodes()[0], &world.options).unwrap();
    agent
        .wait_until("answering", START, |_| {
            Ok(ask_own(&world, 10_249, "/metrics").is_ok())
        })
        .unwrap();
    let both = |world: &World| {
        let ready = scrape(world).sum("tulle_ready", &[]);
        (ready, ask_own(world, 10_256, "/readyz").unwrap().status)
    };
    assert_eq!(both(&world), (0.0, 503));
    let seen = scrape(&world);
    assert!(seen.of(FLOWS, &[]).next().is_none(), "nothing is known yet");
    world.state.put("nodes.yaml", &nodes).unwrap();
    agent.wait_ready(START).unwrap();
    assert_eq!(both(&world), (1.0, 200));
    world.agents.push(agent);
}
