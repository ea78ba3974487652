//! `cargo xtask demo`: sets up, builds, and hands over to the demo's own program.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::Choice;
use crate::build_ebpf::{self, LoadCheck};
use crate::packages::Scope;
use crate::process;
use crate::setup;
use crate::workspace::Workspace;

/// The demo's crate, and those whose programs it runs.
const PACKAGES: [&str; 3] = ["tulle-agent", "tulle", "demo"];
const PROGRAM: &str = "tulle-demo";

/// Show what Tulle does, on a cluster of network namespaces
///
/// Installs what is missing, builds the programs, and runs nodes and pods as network namespaces,
/// with an agent on each node. Removes everything at the end, also on Ctrl-C and after a failure.
/// Exit status: 0 if everything was as promised, 3 if something was not, 1 after an error.
#[derive(clap::Args)]
pub struct Args {
    /// Leave the cluster up at the end, and print how to enter it
    #[arg(long)]
    keep: bool,
    /// Remove the demo, whether it was kept, was killed or runs
    #[arg(long, conflicts_with_all = ["keep", "nodes", "pods"])]
    down: bool,
    /// Nodes, 1 to 20 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: Option<u8>,
    /// Pods on each node, 1 to 10 [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=10))]
    pods: Option<u8>,
    /// Name of the cluster; begins the names of its namespaces [default: demo]
    #[arg(long)]
    name: Option<String>,
    /// What compiles the eBPF programs
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Builds what is needed, then becomes the demo. Returns only if that fails.
pub fn run(args: &Args) -> Result<()> {
    if !process::is_root() {
        bail!("the demo makes network namespaces and loads BPF programs: run this as root");
    }
    let workspace = Workspace::detect()?;
    let program = workspace.target().join("release").join(PROGRAM);
    // What is up must come down even if the sources do not build at the moment.
    if !args.down || !program.exists() {
        setup::ensure(Scope::Everything, args.toolchain)?;
        build_ebpf::build(&workspace, args.toolchain, LoadCheck::Required)?;
        let mut build = workspace.cargo();
        build.args(["build", "--release"]);
        build.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
        process::run(&mut build)?;
        println!();
    }
    let mut command = process::command(&program);
    workspace.adapt(command.args(args.to_arguments()));
    Err(command.exec()).with_context(|| format!("cannot start {}", program.display()))
}

impl Args {
    /// Arguments of the demo's program that say the same.
    fn to_arguments(&self) -> Vec<String> {
        let flags = [(self.keep, "--keep"), (self.down, "--down")];
        let flags = flags
            .iter()
            .filter(|(given, _)| *given)
            .map(|(_, flag)| (*flag).to_owned());
        let values = [
            self.nodes.map(|n| format!("--nodes={n}")),
            self.pods.map(|n| format!("--pods={n}")),
            self.name.as_ref().map(|name| format!("--name={name}")),
        ];
        flags.chain(values.into_iter().flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn arguments(line: &str) -> Result<Vec<String>, clap::Error> {
        Ok(Cli::try_parse_from(line.split_whitespace())?
            .args
            .to_arguments())
    }

    #[test]
    fn the_demo_gets_what_was_asked_for() {
        assert!(arguments("demo").unwrap().is_empty());
        assert_eq!(
            arguments("demo --pods 3 --nodes 2 --keep --name=x").unwrap(),
            ["--keep", "--nodes=2", "--pods=3", "--name=x"]
        );
        assert_eq!(arguments("demo --down").unwrap(), ["--down"]);
    }

    #[test]
    fn sizes_are_refused_before_anything_is_built() {
        for bad in [
            "--nodes 0",
            "--nodes 21",
            "--pods 0",
            "--pods 11",
            "--down --keep",
        ] {
            assert!(arguments(&format!("demo {bad}")).is_err(), "{bad}");
        }
    }
}
