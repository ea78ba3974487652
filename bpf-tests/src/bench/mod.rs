//! Benchmarks: what a packet costs in each program, how soon a change is in the
//! maps, and what clusters make of it. How it is measured is in
//! `docs/benchmarks.md`.

mod aims;
mod apply;
mod datapath;
mod forward;
mod outside;
mod packets;
pub mod plot;
mod report;
mod sample;
mod scaffold;
mod scenes;
mod services;
mod setup;
mod traffic;
mod wire;
mod worlds;
mod yard;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask bench",
    bin_name = "cargo xtask bench",
    about = "Measure Tulle"
)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Apply(apply::Args),
    Packets(packets::Args),
    Wire(wire::Args),
    Services(services::Args),
}

/// Reads the command line and measures.
pub fn main() -> Result<()> {
    match Cli::parse().what {
        What::Apply(args) => apply::run(&args),
        What::Packets(args) => packets::run(&args),
        What::Wire(args) => wire::run(&args),
        What::Services(args) => services::run(&args),
    }
}
