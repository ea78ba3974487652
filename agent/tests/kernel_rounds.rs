//! Rounds over rows that the kernel holds: how long a step holds up whoever waits for it, with
//! 50,000 services of ten endpoints (KP-134). Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;
mod support;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use datapath_common::Config;
use kernel_support::{on_node, options};
use support::numbered::{service, slice};
use support::{apply, batch, facts};
use tulle_agent::kernel::{AttachKind, Capacities, Datapath, Reading};
use tulle_agent::model::Object;
use tulle_agent::plan::{self, Applied, Difference, Planner, Round, Table};
use tulle_agent::source::Change;

const SERVICES: u32 = 50_000;
const ENDPOINTS: u32 = 10;
/// As the agent's own.
const STEP_ROWS: u32 = 1024;

fn endpoints(i: u32) -> Object {
    let address = |n: u32| {
        let [_, b, c, d] = (i * ENDPOINTS + n).to_be_bytes();
        IpAddr::from([10, 128 | b, c, d])
    };
    slice(i, (0..ENDPOINTS).map(address))
}

/// Steps of a round, each with its time, and all that they found.
fn round(datapath: &Datapath, planner: &mut Planner) -> (Vec<Duration>, Vec<Difference>) {
    let (mut round, mut reading) = (Round::new(), Reading::default());
    let mut steps = Vec::new();
    loop {
        let began = Instant::now();
        let mut reader = datapath.maps.reader(&mut reading);
        let over = round.step(planner, &mut reader, STEP_ROWS, began);
        steps.push(began.elapsed());
        if over.unwrap() {
            return (steps, round.take_found());
        }
    }
}

#[test]
fn kp134_a_step_among_50_000_services_is_short() {
    on_node(|node| {
        let capacities = Capacities {
            frontends: 4 * SERVICES,
            slots: 2 * SERVICES * ENDPOINTS,
            backends: 2 * SERVICES * ENDPOINTS,
            ..kernel_support::small()
        };
        let opened = Datapath::open(
            &node.pins,
            &Config::EMPTY,
            &capacities,
            &options(AttachKind::Tcx),
        );
        let mut datapath = opened.unwrap();
        let sizes = plan::Capacities {
            frontends: capacities.frontends,
            backends: capacities.backends,
            segments: capacities.slots,
            sources: capacities.sources,
        };
        let mut planner = Planner::new("n0", Applied::new(sizes));
        let mut changes = apply((0..SERVICES).flat_map(|i| [service(i), endpoints(i)]));
        changes.push(Change::Synced);
        planner.ingest(batch(changes));
        planner.set_facts(facts(&["10.244.0.1"]));
        let outcome = planner.run(&mut datapath.maps, Instant::now);
        assert_eq!(outcome.pending, 0, "{:?}", outcome.errors);

        let (mut steps, found) = round(&datapath, &mut planner);
        assert_eq!(found, []);
        let (whole, count): (Duration, _) = (steps.iter().sum(), steps.len());
        steps.sort();
        let longest = steps[count - 1];
        println!(
            "{count} steps of {STEP_ROWS} rows: {:?} each, {longest:?} the longest, {whole:?} in all",
            steps[count / 2]
        );
        assert!(count > 500, "{count} steps");
        // The machine may be busy, and this may not be optimized.
        assert!(steps[count / 2] < Duration::from_millis(10), "{steps:?}");

        // All frontends at once.
        let keys: Vec<_> = datapath.maps.front_v4.keys().map(Result::unwrap).collect();
        assert_eq!(keys.len() as u32, 2 * SERVICES);
        for key in &keys {
            datapath.maps.front_v4.remove(key).unwrap();
        }
        let began = Instant::now();
        let (mut round, mut reading) = (Round::new(), Reading::default());
        let (mut found, mut longest) = (0, Duration::ZERO);
        loop {
            let step = Instant::now();
            let mut reader = datapath.maps.reader(&mut reading);
            let over = round
                .step(&mut planner, &mut reader, STEP_ROWS, step)
                .unwrap();
            let news = round.take_found();
            assert!(news.iter().all(|news| news.table == Table::FrontV4));
            if !news.is_empty() {
                planner.run(&mut datapath.maps, Instant::now);
            }
            found += news.len();
            longest = longest.max(step.elapsed());
            if over {
                break;
            }
        }
        println!(
            "{found} frontends that were missing: {:?}, {longest:?} the longest step",
            began.elapsed()
        );
        assert_eq!(found, keys.len());
        // What had no room beside the slots that were left a moment ago has it now.
        let deadline = Instant::now() + Duration::from_mins(1);
        while let Some(due) = planner.next_run().filter(|_| Instant::now() < deadline) {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            planner.run(&mut datapath.maps, Instant::now);
        }
        assert_eq!(datapath.maps.front_v4.keys().count(), keys.len());
        let (_, found) = self::round(&datapath, &mut planner);
        assert_eq!(found, []);
    });
}
