//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Show what Tulle does, on a cluster of network namespaces
///
/// Builds nodes and pods as network namespaces, runs an agent on each node, and sends requests
/// through services. Removes everything at the end, also on Ctrl-C and after a failure.
/// Exit status: 0 if everything was as promised, 3 if something was not, 1 after an error.
#[derive(Parser, Debug)]
#[command(name = "tulle-demo", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Which part of the demo this process plays.
    #[command(subcommand)]
    pub role: Option<Role>,
    /// Remove the demo of this name, whether it was kept, was killed or runs
    #[arg(long, conflicts_with_all = ["keep", "nodes", "pods"])]
    pub down: bool,
    /// What to show.
    #[command(flatten)]
    pub options: Options,
}

/// What to show.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Leave the cluster up at the end, and print how to enter it
    #[arg(long)]
    pub keep: bool,
    /// Nodes, 1 to 20: each has an agent and a copy of all maps
    #[arg(long, value_name = "N", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=20))]
    pub nodes: u8,
    /// Pods on each node, 1 to 10: each is a namespace with a server process
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=10))]
    pub pods: u8,
    /// Name of the cluster; begins the names of its namespaces
    #[arg(long, default_value = "demo", value_parser = check_name)]
    pub name: String,
    /// Directory with the programs `tulle-agent` and `tulle` [default: that of this program]
    #[arg(long, value_name = "DIR", hide = true)]
    pub programs: Option<PathBuf>,
}

/// Processes that the demo starts as itself.
#[derive(Subcommand, Debug)]
pub enum Role {
    /// Builds the cluster and prints.
    #[command(hide = true)]
    Show(Options),
    /// Serves in a pod's namespace.
    #[command(hide = true)]
    Pod {
        /// Name of the pod.
        name: String,
    },
}

impl Options {
    /// Arguments that say the same.
    pub fn to_arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments = vec![
            format!("--nodes={}", self.nodes).into(),
            format!("--pods={}", self.pods).into(),
            format!("--name={}", self.name).into(),
        ];
        if self.keep {
            arguments.push("--keep".into());
        }
        if let Some(programs) = &self.programs {
            arguments.push("--programs".into());
            arguments.push(programs.into());
        }
        arguments
    }

    /// What a user types to end this demo.
    pub fn down_command(&self) -> String {
        if self.name == "demo" {
            "cargo xtask demo --down".to_owned()
        } else {
            format!("cargo xtask demo --down --name {}", self.name)
        }
    }
}

fn check_name(name: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty()
        || name.len() > 20
        || !name.chars().all(fits)
        || name.starts_with('-')
        || name.contains("-node")
    {
        return Err(
            "use 1 to 20 of a-z, 0-9 and '-', not beginning with '-' and without \"-node\"".into(),
        );
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn sizes_and_names_have_limits() {
        let args = parse("tulle-demo").unwrap();
        assert_eq!((args.options.nodes, args.options.pods), (3, 2));
        for bad in [
            "--nodes 0",
            "--nodes 21",
            "--nodes three",
            "--pods 0",
            "--pods 11",
            "--name a/b",
            "--name x-node-1",
            "--name=-x",
            "--down --keep",
            "--down --nodes 3",
            "more",
        ] {
            assert!(parse(&format!("tulle-demo {bad}")).is_err(), "{bad}");
        }
        let text = parse("tulle-demo --nodes 99").unwrap_err().to_string();
        assert!(
            text.contains("--nodes") && text.contains("1..=20"),
            "{text}"
        );
    }

    #[test]
    fn the_show_is_told_the_same() {
        let args = parse("tulle-demo --nodes 4 --pods 1 --name a-b --keep --programs /p").unwrap();
        let mut line = vec!["tulle-demo".into(), "show".into()];
        line.extend(args.options.to_arguments());
        let Some(Role::Show(options)) = Args::try_parse_from(line).unwrap().role else {
            panic!("no show")
        };
        assert_eq!(format!("{options:?}"), format!("{:?}", args.options));
    }

    #[test]
    fn the_way_down_names_the_demo() {
        let mut options = parse("tulle-demo").unwrap().options;
        assert_eq!(options.down_command(), "cargo xtask demo --down");
        options.name = "two".into();
        assert_eq!(options.down_command(), "cargo xtask demo --down --name two");
    }
}
