//! Flags of `takeover`.

use std::fmt;
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use super::{ConfigArgs, Places};

/// From whom a node is taken over.
#[derive(Subcommand, Debug)]
pub enum From {
    /// Remove what kube-proxy left on a node that Tulle serves; open connections go on
    ///
    /// Prints what it removes, in order; a second run finds nothing. Refuses while a kube-proxy
    /// runs on the node, or while the agent is not ready. Rules of others, and the kubelet's, stay.
    #[command(name = "kube-proxy", after_help = EXAMPLES)]
    KubeProxy(TakeoverArgs),
}

const EXAMPLES: &str = "\
Examples:
  tulle-agent takeover kube-proxy --dry-run
  tulle-agent takeover kube-proxy
  tulle-agent takeover kube-proxy --mode nftables

What is in nftables (mode nftables; mode iptables on most nodes of today) is removed by netlink, in
one transaction. Older tables of iptables need its programs: those on PATH, else the node's own.";

/// Arguments of `takeover kube-proxy`.
#[derive(clap::Args, Debug)]
pub struct TakeoverArgs {
    /// Where maps and links are, and where the agent listens.
    #[command(flatten)]
    pub places: Places,
    /// A file.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Say what would be removed, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// What to remove: of the mode that kube-proxy ran in, or of all of them
    #[arg(long, value_enum, default_value = "auto", env = "TULLE_TAKEOVER_MODE")]
    pub mode: ProxyMode,
    /// Go on although a kube-proxy runs or may run, or Tulle does not serve this node
    #[arg(long)]
    pub force: bool,
    /// Root file system of the node, for the programs of iptables [default: that of process 1]
    #[arg(long, value_name = "DIR", env = "TULLE_HOST_ROOT")]
    #[arg(default_value = "/proc/1/root", hide_default_value = true)]
    pub host_root: Option<PathBuf>,
}

/// Values of `--mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ProxyMode {
    // No documentation for clap: the option says it.
    #[allow(missing_docs, reason = "see above")]
    Auto,
    #[allow(missing_docs, reason = "see above")]
    Iptables,
    #[allow(missing_docs, reason = "see above")]
    Nftables,
    #[allow(missing_docs, reason = "see above")]
    Ipvs,
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        })
    }
}
