//! Tulle's developer commands, run as `cargo xtask <command>`: a module for each.
#![forbid(unsafe_code)]

mod bench;
mod bpf_toolchain;
mod build_ebpf;
mod demo;
mod docs;
mod image;
mod kernels;
mod lint;
mod load_check;
mod os;
mod packages;
mod process;
mod setup;
mod summary;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set up, build, test and demonstrate Tulle.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    BuildEbpf(build_ebpf::Args),
    Bench(bench::Args),
    Demo(demo::Args),
    Docs(docs::Args),
    Image(image::Args),
    Lint(lint::Args),
    Test(test::Args),
    Kernels(kernels::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Docs(args) => docs::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Kernels(args) => kernels::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
