//! `apply`: from a change to the maps, and what the agent's memory is.

mod api;
mod memory;
mod objects;
mod real;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::ClusterBuilder;
use tulle_agent::source::Change;

use super::report::Machine;
use super::sample::Spread;
use super::wire::remove_all_on_signals;
use api::Api;
use memory::Table;
use objects::Shape;
use real::Host;
use report::{ApplyReport, Figure, Unit};

/// Where one endpoint changes.
const MANY: Shape = Shape {
    services: 50_000,
    endpoints: 2,
};
const AMONG_MANY: &str = "50,000 services of 2 endpoints";
/// What is applied at once.
const FULL: Shape = Shape {
    services: 10_000,
    endpoints: 10,
};
const AMONG_FULL: &str = "10,000 services of 10 endpoints";
const BY_API: &str = "10,000 services of 10 endpoints on 5,000 nodes, by the API";
/// Services of which the files are changed one by one.
const APART: u32 = 20;
/// Between two changes of files: what the agent does after a change is not the next one's.
const REST: Duration = Duration::from_millis(150);

/// From a change to the last map write, a full sync, and the agent's memory
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
    /// Changes of one endpoint
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    rounds: u32,
    /// Full syncs of objects in memory
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(3..=1000))]
    syncs: u32,
    /// Changes of files, with a real agent
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    files: u32,
    /// Full syncs from files and readings of its memory, each with a real agent of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    agents: u32,
    /// Only figures with this in their names
    #[arg(long)]
    filter: Option<String>,
    /// The agent's program
    #[arg(long, env = "TULLE_AGENT", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/tulle-agent"))]
    agent: PathBuf,
}

/// The parts of a run, by the names that `--filter` looks at.
const PARTS: [(&str, Part); 5] = [
    ("change in memory", change_in_memory),
    ("sync in memory", sync_in_memory),
    ("change by files", change_by_files),
    ("sync by files, resident set", sync_by_files),
    ("sync by the API, resident set", sync_by_api),
];

type Part = fn(&Args) -> Result<Vec<Figure>>;

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        args.agent.exists(),
        "no agent at {}: `cargo xtask bench apply` builds it, or name it by --agent",
        args.agent.display()
    );
    remove_all_on_signals()?;
    let mut figures = Vec::new();
    for (name, part) in PARTS {
        if args.filter.as_ref().is_none_or(|f| name.contains(f)) {
            eprintln!("{name} …");
            figures.extend(part(args).context(name)?);
        }
    }
    ensure!(!figures.is_empty(), "no figure's name contains the filter");
    let machine = Machine::detect()?;
    let report = ApplyReport { machine, figures };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.markdown());
    }
    Ok(())
}

/// Runs with maps of its own, which go when it is done.
fn with_table<T>(f: impl FnOnce(&mut Table) -> Result<T>) -> Result<T> {
    let cluster = ClusterBuilder::unique("benchtable").nodes(1).build()?;
    let node = cluster.nodes().first().context("the cluster has no node")?;
    f(&mut Table::open(&node.bpffs().join("tulle"))?)
}

fn change_in_memory(args: &Args) -> Result<Vec<Figure>> {
    let readings = with_table(|table| {
        table.apply(whole(MANY)?)?;
        let mut readings = Vec::new();
        for round in 0..args.rounds {
            // Far apart, and in no order that a cache would like.
            let number = round.wrapping_mul(7919) % MANY.services;
            let endpoints = MANY.endpoints - 1;
            for endpoints in [endpoints, MANY.endpoints] {
                let text = MANY.service(number, endpoints).to_string();
                let mut changes = objects::parsed("change.yaml", &text)?;
                // The Service is as it was: the slice alone changes.
                changes.retain(|change| !matches!(change, Change::Apply(o) if is_service(o)));
                let (took, written) = table.apply(changes)?;
                ensure!(written > 0, "nothing was written for service {number}");
                table.check(number, endpoints)?;
                readings.push(took);
            }
        }
        Ok(readings)
    })?;
    let what = "one endpoint changes: from the object to the last map write";
    Ok(vec![figure(what, AMONG_MANY, readings, Some(1e6))?])
}

fn sync_in_memory(args: &Args) -> Result<Vec<Figure>> {
    let readings = with_table(|table| {
        let mut readings = Vec::new();
        let changes = whole(FULL)?;
        for _ in 0..args.syncs {
            let (took, _) = table.apply(changes.clone())?;
            for number in 0..FULL.services {
                table.check(number, FULL.endpoints)?;
            }
            readings.push(took);
            table.clear(&changes)?;
        }
        Ok(readings)
    })?;
    let what = "full sync: from objects in memory to the last map write";
    Ok(vec![figure(what, AMONG_FULL, readings, Some(300e6))?])
}

fn change_by_files(args: &Args) -> Result<Vec<Figure>> {
    let mut host = Host::start(&args.agent)?;
    let step = MANY.services / APART;
    let apart: Vec<u32> = (0..APART).map(|n| n * step).collect();
    host.sync(MANY, &MANY.files(&apart))?;
    let mut readings = Vec::new();
    for round in 0..args.files {
        std::thread::sleep(REST);
        let number = (round / 2 % APART) * step;
        let endpoints = MANY.endpoints - (round + 1) % 2;
        readings.push(host.change(MANY, number, endpoints)?);
    }
    let what = "the same with a real agent: from the rename of a file to the row";
    Ok(vec![figure(what, AMONG_MANY, readings, None)?])
}

fn sync_by_files(args: &Args) -> Result<Vec<Figure>> {
    let files = FULL.files(&[]);
    let (mut times, mut anonymous, mut resident, mut maps) = (vec![], vec![], vec![], vec![]);
    for agent in 0..args.agents {
        eprintln!("agent {} of {} …", agent + 1, args.agents);
        let mut host = Host::start(&args.agent)?;
        times.push(host.sync(FULL, &files)?);
        let memory = host.memory()?;
        anonymous.push(memory.anonymous);
        resident.push(memory.resident);
        maps.push(memory.maps);
    }
    let what = "the same with a real agent: from files of YAML to the last row";
    Ok(vec![
        figure(what, AMONG_FULL, times, None)?,
        octets(
            "resident set of the idle agent (VmRSS)",
            AMONG_FULL,
            resident,
            Some(40e6),
        )?,
        octets(
            "of it heap and stacks (RssAnon)",
            AMONG_FULL,
            anonymous,
            None,
        )?,
        octets(
            "maps in the kernel, most of them full-sized when empty",
            AMONG_FULL,
            maps,
            None,
        )?,
    ])
}

fn sync_by_api(args: &Args) -> Result<Vec<Figure>> {
    let api = Api::start(&args.agent, FULL)?;
    let (mut times, mut anonymous, mut resident, mut most) = (vec![], vec![], vec![], vec![]);
    for agent in 0..args.agents {
        eprintln!("agent {} of {} …", agent + 1, args.agents);
        let (took, memory) = real::by_api(&api, FULL)?;
        times.push(took);
        anonymous.push(memory.anonymous);
        resident.push(memory.resident);
        most.push(memory.most);
    }
    let what = "from the start of an agent until it serves what an API server has";
    Ok(vec![
        figure(what, BY_API, times, None)?,
        octets(
            "resident set of the idle agent (VmRSS)",
            BY_API,
            resident,
            Some(60e6),
        )?,
        octets("of it heap and stacks (RssAnon)", BY_API, anonymous, None)?,
        octets(
            "the most that was resident since its start (VmHWM)",
            BY_API,
            most,
            None,
        )?,
    ])
}

fn octets(
    what: &'static str,
    among: &'static str,
    readings: Vec<f64>,
    aim: Option<f64>,
) -> Result<Figure> {
    Ok(Figure {
        unit: Unit::Octets,
        ..figure(what, among, readings, aim)?
    })
}

fn is_service(object: &tulle_agent::model::Object) -> bool {
    matches!(object, tulle_agent::model::Object::Service(_))
}

/// All objects of a cluster, complete.
fn whole(shape: Shape) -> Result<Vec<Change>> {
    let mut changes = objects::parsed("nodes.yaml", &objects::nodes())?;
    changes.extend(shape.changes()?);
    changes.push(Change::Synced);
    Ok(changes)
}

/// A figure in nanoseconds.
fn figure(
    what: &'static str,
    among: &'static str,
    readings: Vec<f64>,
    aim: Option<f64>,
) -> Result<Figure> {
    Ok(Figure {
        what,
        among,
        unit: Unit::Nanoseconds,
        readings: readings.len(),
        value: Spread::of(readings).with_context(|| format!("no readings of: {what}"))?,
        aim,
    })
}
