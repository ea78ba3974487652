//! `services`: connections, requests and first packets through services, by
//! Tulle's packets and sockets and by the rules that kube-proxy lays out, beside
//! the pod's own address, with few services and with many.

mod aims;
mod catalog;
mod iptables;
mod ipvs;
mod nftables;
mod plots;
mod report;
mod sites;
mod ways;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use self::report::{Case, Readings, ServicesReport};
use self::sites::{Site, Sites};
use self::ways::{Front, Way, Work};
use super::report::{Machine, counted};
use super::traffic::{self, Cpus, Limit, Measured};
use super::wire::remove_all_on_signals;

/// Connections, requests and first packets through services, beside nftables and iptables
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
    /// Numbers of services, ascending
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 1_000, 10_000, 50_000])]
    services: Vec<usize>,
    /// Measurements of each load, each way and each number of services
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    rounds: u32,
    /// Milliseconds of each measurement, at most: through node ports few flows are opened
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(5..=10_000))]
    millis: u64,
    /// Only these ways, for a profile of one: others are not measured
    #[arg(long, value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Only these loads
    #[arg(long, value_enum, value_delimiter = ',')]
    loads: Vec<Work>,
    /// Write plots (SVG) into this directory, and lines that show them after the tables
    #[arg(long)]
    plots: Option<PathBuf>,
    /// The agent's program
    #[arg(long, env = "TULLE_AGENT", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/tulle-agent"))]
    agent: PathBuf,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let report = measure(args)?;
    let plots = args.plots.as_deref();
    let plots = plots
        .map(|directory| plots::write(&report, directory))
        .transpose()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}{}", report.markdown(), plots.unwrap_or_default());
    }
    Ok(())
}

fn measure(args: &Args) -> Result<ServicesReport> {
    ensure!(
        args.agent.exists(),
        "no agent at {}: `cargo xtask bench services` builds it, or name it by --agent",
        args.agent.display()
    );
    ensure!(
        args.services
            .iter()
            .all(|n| (1..=catalog::MOST).contains(n))
            && args.services.is_sorted_by(|a, b| a < b),
        "--services: ascending numbers from 1 to {}, please",
        catalog::MOST
    );
    let machine = Machine::detect()?;
    remove_all_on_signals()?;
    eprintln!("four nodes …");
    let mut sites = Sites::build(&args.agent)?;
    let cpus = Cpus::choose()?;
    let mut all = Vec::new();
    for services in args.services.iter().copied() {
        sites.grow(services)?;
        let start = Instant::now();
        for front in Front::ALL {
            for work in Work::ALL
                .into_iter()
                .filter(|work| wanted(&args.loads, work))
            {
                let case = Case {
                    front,
                    work,
                    services,
                };
                all.push(readings(&sites, case, cpus, args)?);
            }
        }
        eprintln!("  measured after {:.0} s", start.elapsed().as_secs_f64());
    }
    Ok(ServicesReport::new(machine, sites.iptables_program(), &all))
}

/// Whether it is to be measured: without a choice everything is.
fn wanted<T: PartialEq>(chosen: &[T], one: &T) -> bool {
    chosen.is_empty() || chosen.contains(one)
}

/// All rounds of one case: each way in turn.
fn readings(sites: &Sites, case: Case, cpus: Cpus, args: &Args) -> Result<Readings> {
    let limit = Limit {
        time: Duration::from_millis(args.millis),
        count: case.front.flows(),
    };
    // One connection is one flow, whatever goes over it.
    let limit = if case.work == Work::Exchange {
        Limit::time(limit.time)
    } else {
        limit
    };
    let mut readings = Readings::new(case);
    let ways = case.front.ways().iter().copied();
    let ways: Vec<Way> = ways.filter(|way| wanted(&args.ways, way)).collect();
    for round in 0..args.rounds {
        for way in ways.iter().copied() {
            let Some(site) = sites.of(way) else {
                continue;
            };
            let measured = once(site, case, way, cpus, limit).with_context(|| {
                format!(
                    "{} to the {} by {}, {}",
                    case.work.title(ways::Figure::Rate),
                    case.front.name(),
                    way.name(),
                    counted(case.services as u32)
                )
            })?;
            if round + 1 == args.rounds {
                tracked(site, case, way, &measured, cpus)?;
            }
            readings.add(way, measured.rate, measured.first);
        }
    }
    Ok(readings)
}

/// One measurement, after which the packets' way is looked at.
fn once(site: &Site, case: Case, way: Way, cpus: Cpus, limit: Limit) -> Result<Measured> {
    let load = case.work.load(cpus);
    let ends = site.ends(case.front, way, load.kind)?;
    let before = site.replies_translated()?;
    let measured = traffic::run(ends, load, limit)?;
    let after = site.replies_translated()?;
    if let (Some(before), Some(after)) = (before, after) {
        let translated = after - before;
        if way == Way::TullePackets {
            ensure!(
                translated >= measured.packets,
                "{} packets were sent, and the programs translated only {translated} answers: the \
                 figures would be of another way",
                measured.packets
            );
        } else {
            ensure!(
                translated == 0,
                "the programs translated {translated} answers that were to go untranslated: the \
                 figures would be of another way"
            );
        }
    }
    Ok(measured)
}

/// Whether the kernel's connection tracking has the flows of a measurement that
/// went through rules: translated, to the server. It forgets them only later.
fn tracked(site: &Site, case: Case, way: Way, measured: &Measured, cpus: Cpus) -> Result<()> {
    let kind = case.work.load(cpus).kind;
    let flows = if case.work == Work::Exchange {
        1
    } else {
        measured.packets
    };
    if let Some(tracked) = site.tracked(case.front, kind)? {
        // A port that a client used twice is one row.
        ensure!(
            tracked * 20 >= flows * 19,
            "{flows} flows went to the {} by {}, and connection tracking knows only {tracked} of \
             them: the figures would be of another way",
            case.front.name(),
            way.name()
        );
    }
    Ok(())
}
