//! Flags of where the cluster's objects come from.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;

use crate::source::cluster::{Address, Options};

/// Where objects come from: a directory, or the API server.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Directory of Kubernetes objects (services, endpoint slices, nodes, pods, service CIDRs) as YAML or
    /// JSON files, in place of an API server
    #[arg(
        long,
        value_name = "DIR",
        env = "TULLE_STATE",
        conflicts_with = "kubeconfig"
    )]
    pub state: Option<PathBuf>,
    /// How to reach the API server [default: the service account of the pod that the agent runs in]
    #[arg(long, value_name = "FILE", env = "TULLE_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Addresses of API servers that are tried besides the one that is configured, separated by commas,
    /// such as 192.0.2.10:6443: without kube-proxy nothing leads to the cluster's own address of them
    /// before a node has its services. Addresses that the cluster tells of are learned and kept
    #[arg(
        long,
        value_name = "ADDRESSES",
        env = "TULLE_API_SERVERS",
        value_delimiter = ','
    )]
    pub api_servers: Vec<Address>,
    /// Directory for what has to outlive a boot: addresses of API servers
    #[arg(long, value_name = "DIR", env = "TULLE_LIB_DIR")]
    #[arg(default_value = "/var/lib/tulle")]
    pub lib_dir: PathBuf,
    /// Seconds that a watch may be silent before it is begun anew; API servers send something each
    /// minute, so that less would begin those anew that are well
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TULLE_API_SILENCE",
        default_value_t = 100
    )]
    #[arg(value_parser = RangedU64ValueParser::<u64>::new().range(60..=3600))]
    pub api_silence: u64,
    /// Serve the host ports of this node's Pods too, from an API server (a directory's Pods always are);
    /// whoever has the CNI plugin `portmap` needs it not
    #[arg(long, env = "TULLE_HOST_PORTS")]
    pub host_ports: bool,
}

impl ClusterArgs {
    /// How the API server is followed, for the node of this name.
    pub fn options(&self, node: &str) -> Options {
        Options {
            node: node.to_owned(),
            kubeconfig: self.kubeconfig.clone(),
            servers: self.api_servers.clone(),
            lib_dir: self.lib_dir.clone(),
            host_ports: self.host_ports,
            silence: Duration::from_secs(self.api_silence),
        }
    }
}
