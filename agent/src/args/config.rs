//! Flags of configuration files.

use std::path::PathBuf;

use clap::Subcommand;

use super::RunArgs;

/// A file with options.
#[derive(clap::Args, Clone, Debug)]
pub struct ConfigArgs {
    /// File with options as fields (`tulle-agent config schema`), or kube-proxy's own configuration;
    /// the command line and the environment count before it. The agent starts anew when it changes
    #[arg(
        id = "config",
        long = "config",
        value_name = "FILE",
        env = "TULLE_CONFIG"
    )]
    pub file: Option<PathBuf>,
}

/// What `config` can do.
#[derive(Subcommand, Debug)]
pub enum ConfigVerb {
    /// Check options and file, and print what they come to as such a file
    ///
    /// Takes what `run` takes, and touches nothing. What differs from the defaults is printed, so that
    /// kube-proxy's configuration becomes Tulle's. Exit code 2 if something is wrong.
    #[command(after_help = EXAMPLES)]
    Show(Box<ShowArgs>),
    /// Print the JSON Schema of the file
    Schema,
}

const EXAMPLES: &str = "\
Examples:
  tulle-agent config show --config kube-proxy.conf > config.yaml
  tulle-agent config show --config /etc/tulle/config.yaml --all
  tulle-agent config show --proxy-mode ipvs --nodeport-addresses 192.0.2.0/24";

/// Arguments of `config show`.
#[derive(clap::Args, Clone, Debug)]
pub struct ShowArgs {
    /// What `run` would be given.
    #[command(flatten)]
    pub run: RunArgs,
    /// Print defaults too
    #[arg(long)]
    pub all: bool,
}
