//! `wire`: pod to pod across nodes, Tulle beside the kernel's own VXLAN.

mod hosts;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use testkit::registry;

use super::traffic::{self, Cpus, Ends, Kind, Limit, Load, Measured};
use hosts::{Side, Target};
use report::{Row, WireReport};

/// Request/response rate and throughput pod to pod across nodes, beside the kernel's own VXLAN
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
    /// Measurements of each load on each side
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    rounds: u32,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(20..=10_000))]
    millis: u64,
    /// The agent's program
    #[arg(long, env = "TULLE_AGENT", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/tulle-agent"))]
    agent: PathBuf,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let report = measure(args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.markdown());
    }
    Ok(())
}

fn measure(args: &Args) -> Result<WireReport> {
    ensure!(
        args.agent.exists(),
        "no agent at {}: `cargo xtask bench wire` builds it, or name it by --agent",
        args.agent.display()
    );
    remove_all_on_signals()?;
    eprintln!("two clusters …");
    let sides = [Side::tulle(&args.agent)?, Side::kernel()?];
    let cpus = Cpus::choose()?;
    let mut rows = Vec::new();
    for target in [Target::Pod, Target::ClusterIp] {
        for side in &sides {
            side.prepare(target)?;
        }
        let mut loads: Vec<Row> = loads(cpus)
            .into_iter()
            .map(|load| Row::new(target, load))
            .collect();
        for round in 0..args.rounds {
            eprintln!(
                "{}: round {} of {} …",
                target.name(),
                round + 1,
                args.rounds
            );
            for row in &mut loads {
                for side in &sides {
                    let before = side.sent()?;
                    let limit = Limit::time(Duration::from_millis(args.millis));
                    let result = run_load(side, target, row.load, limit).with_context(|| {
                        format!(
                            "{} to the {} by {}",
                            row.load.name,
                            target.name(),
                            side.name()
                        )
                    })?;
                    let sent = side.sent()? - before;
                    ensure!(
                        sent >= result.packets,
                        "{} packets went through {}, and only {sent} of them through its overlay: \
                         the figures would be of another way",
                        result.packets,
                        side.name()
                    );
                    row.add(side, result.rate);
                }
            }
        }
        rows.extend(loads);
    }
    Ok(WireReport::new(rows))
}

/// Runs a load between the two pods of a side.
fn run_load(side: &Side, target: Target, load: Load, limit: Limit) -> Result<Measured> {
    let ends = Ends {
        client: side.client()?,
        server: side.server()?,
        address: SocketAddr::new(side.address(target)?, load.kind.port()),
    };
    traffic::run(ends, load, limit)
}

/// Every load.
fn loads(cpus: Cpus) -> Vec<Load> {
    let load = |name, unit, kind, cpus| Load {
        name,
        unit,
        kind,
        cpus,
    };
    let (exchanges, one) = ("exchanges/s", cpus.together());
    vec![
        load(
            "TCP request/response, one CPU",
            exchanges,
            Kind::TcpExchange,
            one,
        ),
        load(
            "UDP request/response, one CPU",
            exchanges,
            Kind::UdpExchange,
            one,
        ),
        load(
            "TCP request/response, two CPUs",
            exchanges,
            Kind::TcpExchange,
            cpus,
        ),
        load(
            "UDP request/response, two CPUs",
            exchanges,
            Kind::UdpExchange,
            cpus,
        ),
        load("TCP stream", "Gbit/s", Kind::TcpStream, cpus),
    ]
}

/// Whoever interrupts the run finds nothing of it left.
pub(super) fn remove_all_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("wait for signals")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            for failure in registry::remove_everything() {
                eprintln!("{failure}");
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}
