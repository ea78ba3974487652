//! The command line.

mod cluster;
mod config;
mod http;
mod services;
mod settings;
mod takeover;

pub use cluster::ClusterArgs;
pub use config::{ConfigArgs, ConfigVerb, ShowArgs};
pub use http::{HttpArgs, ListenAt};
pub use services::{NodePortAddresses, ServiceArgs, SnatPorts, SocketServices, port_range};
pub use settings::{Setting, Settings};
pub use takeover::{From as TakenFrom, ProxyMode, TakeoverArgs};

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, Subcommand, ValueEnum};
use datapath_common::TICK_NANOS;

use crate::kernel::{Capacities, XdpMode};

/// Tulle's node agent: services and overlay in the kernel.
///
/// It watches the cluster's objects, keeps the maps of the eBPF programs and the kernel's own
/// routes as they say, and is never on a packet's way: what it has set up works on while it is
/// stopped.
#[derive(Parser, Debug)]
#[command(name = "tulle-agent", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  tulle-agent run                                     in a pod of the cluster
  tulle-agent run --kubeconfig /etc/tulle/kubeconfig
  tulle-agent run --state /etc/tulle/state --node node-1
  tulle-agent run --config /etc/tulle/config.yaml
  TULLE_STATE=/etc/tulle/state TULLE_NODE=node-1 tulle-agent run
  tulle-agent cleanup

Every option is also an environment variable, --max-flows is TULLE_MAX_FLOWS, and a field of the
file of --config: maxFlows. kube-proxy's flags are taken too; those that mean nothing are told once.
Needs root, Linux 5.15 or later with BTF, and a BPF file system. See `tulle-agent run --help`.";

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Serve this node until SIGTERM or SIGINT; the datapath goes on after that
    ///
    /// A start takes over what a former agent left: maps, flows and attached programs. Nothing is
    /// written before all objects have been read, and no packet is lost by a restart. To take the
    /// datapath off the node, run `tulle-agent cleanup`.
    #[command(after_help = RUN_EXAMPLES)]
    Run(Box<RunArgs>),
    /// Remove every trace from this node: programs, maps, routes, devices, files
    ///
    /// Prints what it removes; a second run finds nothing. Services and pods of other nodes cannot
    /// be reached afterwards. Refuses while an agent runs for this node.
    Cleanup(Box<CleanupArgs>),
    /// Take this node over from another service proxy
    #[command(subcommand)]
    Takeover(TakenFrom),
    /// What the options and a configuration file come to, and the file's schema
    #[command(subcommand)]
    Config(Box<ConfigVerb>),
    /// Print the version
    Version,
}

const RUN_EXAMPLES: &str = "\
Examples:
  tulle-agent run --state /etc/tulle/state --node node-1
  tulle-agent run --state ./state --node node-1 --uplink eth1 --xdp off
  tulle-agent run --state ./state --node node-1 --max-flows 1048576    room for half a million flows

What memory costs, for IPv4 and IPv6 together: 100 octets for each row of --max-flows at once
(131,072 rows: about 26 MB), about 100 for each of --max-backends at once; frontends, pods and
nodes only when they are used. `tulle status` shows each map's size and what it occupies.";

/// Arguments of `run`.
#[derive(clap::Args, Clone, Debug)]
pub struct RunArgs {
    /// Name of this node's Node object [default: the host's name in lower case]
    #[arg(long, value_name = "NAME", env = "TULLE_NODE", value_parser = node_name)]
    #[arg(default_value_t = host_name(), hide_default_value = true)]
    pub node: String,
    /// Interface to the other nodes [default: that of the IPv4 default route]
    #[arg(long, value_name = "INTERFACE", env = "TULLE_UPLINK", value_parser = interface_name)]
    pub uplink: Option<String>,
    /// What to log: a level (error, warn, info, debug, trace) or directives such as
    /// `info,tulle_agent::net=debug`
    #[arg(long, value_name = "FILTER", env = "TULLE_LOG", default_value = "info")]
    pub log: String,
    /// Where objects come from.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Where maps and links are, and where the agent listens.
    #[command(flatten)]
    pub places: Places,
    /// The overlay.
    #[command(flatten)]
    pub overlay: OverlayArgs,
    /// Services for clients outside, and masquerade.
    #[command(flatten)]
    pub services: ServiceArgs,
    /// Probes and metrics.
    #[command(flatten)]
    pub http: HttpArgs,
    /// Sizes of the maps.
    #[command(flatten)]
    pub sizes: Sizes,
    /// Limits and intervals.
    #[command(flatten)]
    pub limits: Limits,
    /// A file.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// All of it as text.
    #[arg(skip)]
    pub settings: Settings,
    /// What was said and means nothing to Tulle: sentences.
    #[arg(skip)]
    pub notes: Vec<String>,
}

/// Directories of the agent.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Places")]
pub struct Places {
    /// Directory on a BPF file system for maps and links; one for each node
    #[arg(long, value_name = "DIR", env = "TULLE_BPFFS")]
    #[arg(default_value = "/sys/fs/bpf/tulle")]
    pub bpffs: PathBuf,
    /// Directory for the agent's socket, its lock and what cleanup has to put back
    #[arg(long, value_name = "DIR", env = "TULLE_RUN_DIR")]
    #[arg(default_value = "/run/tulle")]
    pub run_dir: PathBuf,
}

impl Places {
    /// The socket that the agent answers on.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(admin_api::SOCKET_NAME)
    }

    /// The sender of what `tulle_xdp` took out of the overlay.
    pub fn stripped_mac(&self) -> PathBuf {
        self.run_dir.join("stripped-mac")
    }

    /// What the agent changed of the kernel's switches.
    pub fn sysctls(&self) -> PathBuf {
        self.run_dir.join("sysctls.json")
    }
}

/// The overlay's numbers: the same on every node.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Overlay")]
pub struct OverlayArgs {
    /// VXLAN network identifier; the kernel's device is flannel.<VNI>
    #[arg(long, value_name = "VNI", env = "TULLE_VNI", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vni: u32,
    /// UDP port of VXLAN
    #[arg(
        long,
        value_name = "PORT",
        env = "TULLE_VXLAN_PORT",
        default_value_t = 8472
    )]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub vxlan_port: u16,
    /// Largest packet in the overlay, in octets [default: the uplink's MTU − 50, which is also the most]
    #[arg(long, value_name = "OCTETS", env = "TULLE_MTU")]
    #[arg(value_parser = clap::value_parser!(u16).range(576..))]
    pub mtu: Option<u16>,
    /// XDP at the uplink: where the driver has it, there or not at all, in the stack, never
    #[arg(long, value_enum, env = "TULLE_XDP", default_value = "auto")]
    pub xdp: Xdp,
    /// Services with backends on other nodes where XDP is, before the stack has the packet; auto:
    /// unless XDP does not see VLAN tags, or the uplink is a veth
    #[arg(long, value_enum, env = "TULLE_XDP_SERVICES", default_value = "auto")]
    pub xdp_services: XdpServices,
}

/// Values of `--xdp-services`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum XdpServices {
    // No documentation for clap, as below.
    #[allow(missing_docs, reason = "see above")]
    Auto,
    #[allow(missing_docs, reason = "see above")]
    On,
    #[allow(missing_docs, reason = "see above")]
    Off,
}

/// Values of `--xdp`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Xdp {
    // No documentation for clap: the option says it, and a list of four would be longer.
    #[allow(missing_docs, reason = "see above")]
    Auto,
    #[allow(missing_docs, reason = "see above")]
    Native,
    #[allow(missing_docs, reason = "see above")]
    Generic,
    #[allow(missing_docs, reason = "see above")]
    Off,
}

impl From<Xdp> for XdpMode {
    fn from(xdp: Xdp) -> Self {
        match xdp {
            Xdp::Auto => Self::Auto,
            Xdp::Native => Self::Native,
            Xdp::Generic => Self::Generic,
            Xdp::Off => Self::Off,
        }
    }
}

/// Entries that maps begin with and end at; a map that cannot take any more is left at most this large.
const MOST_ENTRIES: u64 = 1 << 26;

fn entries() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=MOST_ENTRIES)
}

/// Sizes of the maps. A restart with others keeps all rows.
#[derive(clap::Args, Clone, Debug)]
#[command(
    next_help_heading = "Sizes, for each address family; a restart with others keeps all rows"
)]
pub struct Sizes {
    /// Service addresses and ports; an address takes one more
    #[arg(long, value_name = "N", env = "TULLE_MAX_FRONTENDS", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.frontends)]
    pub max_frontends: u32,
    /// Backends: endpoint addresses and ports
    #[arg(long, value_name = "N", env = "TULLE_MAX_BACKENDS", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.backends)]
    pub max_backends: u32,
    /// Slots of all services, one for each of a frontend's backends and of its table, both families together
    #[arg(long, value_name = "N", env = "TULLE_MAX_SEGMENTS", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.slots)]
    pub max_segments: u32,
    /// Rows for flows, two for each flow
    #[arg(long, value_name = "N", env = "TULLE_MAX_FLOWS", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.flows)]
    pub max_flows: u32,
    /// Fragmented datagrams under way
    #[arg(long, value_name = "N", env = "TULLE_MAX_FRAGMENTS", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.fragments)]
    pub max_fragments: u32,
    /// Pods of this node
    #[arg(long, value_name = "N", env = "TULLE_MAX_PODS", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.pods)]
    pub max_pods: u32,
    /// Other nodes
    #[arg(long, value_name = "N", env = "TULLE_MAX_NODES", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.nodes)]
    pub max_nodes: u32,
    /// Clients that session affinity remembers; the one that opened no flow for longest is forgotten first
    #[arg(long, value_name = "N", env = "TULLE_MAX_AFFINITIES", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.affinities)]
    pub max_affinities: u32,
    /// Backends that sockets were given in the place of services; the one that was used longest ago is forgotten first, and shows its own address then
    #[arg(long, value_name = "N", env = "TULLE_MAX_SOCKETS", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.sockets)]
    pub max_sockets: u32,
    /// Networks in loadBalancerSourceRanges, those of all service ports together
    #[arg(long, value_name = "N", env = "TULLE_MAX_SOURCES", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.sources)]
    pub max_sources: u32,
    /// Networks that pods reach without masquerade (those of --masquerade-exclude, and pod networks that only the kernel knows the way to), and networks of services
    #[arg(long, value_name = "N", env = "TULLE_MAX_DIRECT", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.direct)]
    pub max_direct: u32,
    /// Service ports, and backends, whose traffic is counted: those with lower numbers
    #[arg(long, value_name = "N", env = "TULLE_MAX_STATS", value_parser = entries())]
    #[arg(default_value_t = Capacities::DEFAULT.stats)]
    pub max_stats: u32,
    /// Ring for the events of `tulle monitor`, in octets: a power of two from 4096 on
    #[arg(long, value_name = "OCTETS", env = "TULLE_EVENT_BYTES", value_parser = ring_bytes)]
    #[arg(default_value_t = Capacities::DEFAULT.event_bytes)]
    pub event_bytes: u32,
}

impl From<&Sizes> for Capacities {
    fn from(sizes: &Sizes) -> Self {
        Self {
            frontends: sizes.max_frontends,
            slots: sizes.max_segments,
            backends: sizes.max_backends,
            flows: sizes.max_flows,
            fragments: sizes.max_fragments,
            pods: sizes.max_pods,
            nodes: sizes.max_nodes,
            affinities: sizes.max_affinities,
            sockets: sizes.max_sockets,
            sources: sizes.max_sources,
            direct: sizes.max_direct,
            stats: sizes.max_stats,
            event_bytes: sizes.event_bytes,
        }
    }
}

impl From<&Sizes> for crate::plan::Capacities {
    fn from(sizes: &Sizes) -> Self {
        Self {
            frontends: sizes.max_frontends,
            backends: sizes.max_backends,
            segments: sizes.max_segments,
            sources: sizes.max_sources,
        }
    }
}

/// Limits and intervals.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// New flows that each CPU opens in a second; what is beyond is dropped. 0 for no limit
    #[arg(
        long,
        value_name = "N",
        env = "TULLE_FLOWS_PER_SECOND",
        default_value_t = 50_000
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1_000_000_000))]
    pub flows_per_second: u32,
    /// ICMP errors that each CPU answers with in a second. 0 for no limit
    #[arg(
        long,
        value_name = "N",
        env = "TULLE_ERRORS_PER_SECOND",
        default_value_t = 1000
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1_000_000_000))]
    pub errors_per_second: u32,
    /// Seconds between walks over the flow tables that remove expired flows
    #[arg(
        long,
        value_name = "SECONDS",
        env = "TULLE_GC_INTERVAL",
        default_value_t = 10
    )]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub gc_interval: u32,
    /// From the end of one sync to the beginning of the next: the first change after a pause counts at
    /// once, those that come meanwhile are taken together
    #[arg(long, value_name = "DURATION", env = "TULLE_MIN_SYNC_PERIOD")]
    #[arg(default_value = "5ms", value_parser = duration)]
    pub min_sync_period: Duration,
    /// From the beginning of one round, which compares all rows of the maps with what they should hold
    /// and puts right what differs, to that of the next. 0 for never
    #[arg(long, value_name = "DURATION", env = "TULLE_SYNC_PERIOD")]
    #[arg(default_value = "30s", value_parser = duration)]
    pub sync_period: Duration,
}

/// A limit of so many in a second as one in a tick; 0 stays 0, and nothing else becomes 0.
pub fn per_tick(per_second: u32) -> u32 {
    let scaled = u64::from(per_second) * TICK_NANOS / 1_000_000_000;
    let least = u64::from(per_second != 0);
    u32::try_from(scaled.max(least)).unwrap_or(u32::MAX)
}

/// Arguments of `cleanup`.
#[derive(clap::Args, Clone, Debug)]
pub struct CleanupArgs {
    /// Where objects come from.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Where maps and links are, and where the agent listens.
    #[command(flatten)]
    pub places: Places,
    /// VXLAN network identifier that `run` had
    #[arg(long, value_name = "VNI", env = "TULLE_VNI", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    pub vni: u32,
    /// Do not end when nothing is left, but only by SIGTERM or SIGINT: a DaemonSet starts pods
    /// again that end
    #[arg(long, env = "TULLE_STAY")]
    pub stay: bool,
    /// Taken so that `cleanup` can be called as `run` was; what is attached is found by itself
    #[arg(long, value_name = "INTERFACE", env = "TULLE_UPLINK", hide = true)]
    pub uplink: Option<String>,
    /// Taken so that `cleanup` can be called as `run` was
    #[arg(long, value_name = "NAME", env = "TULLE_NODE", hide = true)]
    pub node: Option<String>,
    /// A file.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// RFC 1123, as Kubernetes wants it.
fn node_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(inner)
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("a Node's name has lower-case letters, digits, '-' and '.', as `kubectl get nodes` shows it".into())
    }
}

/// What kubelet calls a node that nobody names (KP-144 and the field's `hostnameOverride`).
fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().trim().to_lowercase()
}

/// What the kernel takes as an interface's name.
fn interface_name(text: &str) -> Result<String, String> {
    if text.parse::<IpAddr>().is_ok() {
        return Err("this is an address; give the interface's name, as `ip link` shows it".into());
    }
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
        return Err("an interface's name has 1 to 15 characters and no '/', ':' or space".into());
    }
    Ok(text.to_owned())
}

/// A duration as Kubernetes writes it.
fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Result<kube::core::Duration, _> = text.trim().parse();
    match parsed {
        Ok(parsed) if !parsed.is_negative() => Ok(parsed.into()),
        _ => Err("a duration such as 5ms, 1.5s or 1m30s".into()),
    }
}

fn ring_bytes(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes >= 4096 && bytes.is_power_of_two() && bytes <= 1 << 30 => Ok(bytes),
        _ => Err("a ring is a power of two from 4096 to 1073741824 octets".into()),
    }
}

/// A path for the log that does not depend on where the agent was started.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
