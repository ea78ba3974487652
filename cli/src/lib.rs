//! `tulle` looks into the datapath of a node: it reads the pinned maps itself
//! and asks the agent only for names.
//!
//! [`datapath`] reads, the module of a verb turns rows into a report and the
//! report into text or JSON, [`output`] prints.
#![deny(unsafe_code)]
#![allow(
    clippy::format_push_string,
    reason = "reports are small; writing into a String would leave a result to discard"
)]

pub mod affinity;
pub mod args;
pub mod backends;
pub mod context;
pub mod datapath;
pub mod drops;
pub mod event;
pub mod flows;
pub mod flows_summary;
pub mod format;
pub mod frontend_kind;
pub mod links;
pub mod monitor;
pub mod names;
pub mod output;
pub mod overlay;
pub mod services;
pub mod services_text;
pub mod snat;
pub mod status;
pub mod status_text;
mod sys;
pub mod tables;
pub mod top;
pub mod traffic;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::args::{Args, Verb};
use crate::context::Context;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has seen enough, such as `head`, is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tulle: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let context = Context::new(&args.global);
    match args.verb {
        Verb::Status => status::run(&context),
        Verb::Services(args) => services::run(&context, &args),
        Verb::Backends(args) => backends::run(&context, &args),
        Verb::Flows(args) => flows::run(&context, &args),
        Verb::Snat(args) => snat::run(&context, &args),
        Verb::Affinity(args) => affinity::run(&context, &args),
        Verb::Overlay => overlay::run(&context),
        Verb::Drops(args) => drops::run(&context, &args),
        Verb::Monitor(args) => monitor::run(&context, &args),
        Verb::Top(args) => top::run(&context, &args),
        Verb::Completions { shell } => {
            let mut command = Args::command();
            clap_complete::generate(shell, &mut command, "tulle", &mut io::stdout());
            Ok(())
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
