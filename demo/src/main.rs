//! `tulle-demo`: a cluster of network namespaces that shows what Tulle does.
//!
//! Three roles of one program. The *supervisor* is what the user starts: it owns
//! the name, hears signals, removes everything and looks whether anything is
//! left. The *show* builds the cluster and prints; it is a process of its own,
//! so that nothing it does (not even being killed) keeps the supervisor from
//! cleaning up. A *pod* is a server in a pod's namespace.
#![forbid(unsafe_code)]

mod args;
mod frontends;
mod leftovers;
mod name_lock;
mod processes;
mod report;
mod show;
mod supervisor;
mod text;
mod world;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::args::{Args, Role};

fn main() -> ExitCode {
    let args = Args::parse();
    let result: Result<ExitCode> = match &args.role {
        None if args.down => supervisor::down(&args.options),
        None => supervisor::run(&args.options),
        Some(Role::Show(options)) => show::run(options),
        Some(Role::Pod { name }) => world::serve_pod(name),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
