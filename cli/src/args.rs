//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use datapath_common::{FlowState, proto};
use ipnet::IpNet;

use crate::top::page::{Page, Sort};

/// Look into Tulle's datapath on this node.
///
/// Reads the pinned maps directly, so it works with the agent stopped. Only names (of services and
/// nodes) come from the agent; without it numbers and addresses are shown.
#[derive(Parser, Debug)]
#[command(name = "tulle", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Args {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  tulle status                          is everything attached, how full are the maps
  tulle services web                    frontends and backends of what is called web
  tulle drops                           what was lost, why, and what to do about it
  tulle top                             services, losses and maps, live; --once prints instead
  tulle monitor --drops                 watch losses as they happen
  tulle flows --addr 10.244.1.0/24      flows that touch a pod network
  tulle snat                            whose source is translated, and how many ports are used
  tulle -o json services | jq -r '.services[].frontend'

Needs root: sudo tulle …";

/// Options of every verb.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// Directory on a BPF file system with the pinned maps
    #[arg(long, global = true, value_name = "DIR", env = "TULLE_BPFFS")]
    #[arg(default_value = "/sys/fs/bpf/tulle")]
    pub bpffs: PathBuf,
    /// Directory with the agent's socket
    #[arg(long, global = true, value_name = "DIR", env = "TULLE_RUN_DIR")]
    #[arg(default_value = "/run/tulle")]
    pub run_dir: PathBuf,
    /// Tables for people or JSON for programs; `monitor` and `drops --watch` write JSON lines
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    pub output: Format,
    /// No colours; the variable `NO_COLOR` does the same
    #[arg(long, global = true)]
    pub no_color: bool,
}

/// Form of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    // No documentation for clap: the words say it, and lists make every help page longer.
    #[allow(missing_docs, reason = "see above")]
    Table,
    #[allow(missing_docs, reason = "see above")]
    Json,
}

/// The verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Agent, attachments, maps and totals
    ///
    /// Shows whether the agent runs and what it chose and why, where programs are attached, how full
    /// each map is and what it costs in memory, packets by program, and warnings about objects.
    Status,
    /// Services with their frontends and backends
    Services(ServicesArgs),
    /// Backends, and how each is reached
    Backends(BackendsArgs),
    /// Flows through services: list, sum up, flush
    #[command(args_conflicts_with_subcommands = true, after_help = FLOWS_EXAMPLES)]
    Flows(FlowsArgs),
    /// Masqueraded flows, and the ports that they use
    ///
    /// Lists the flows whose source is translated: client, what the backend sees instead, backend.
    /// A translated address has a number of ports for each backend; the summary tells which backends
    /// use the most of theirs.
    #[command(after_help = SNAT_EXAMPLES)]
    Snat(SnatArgs),
    /// Session affinity: which client goes to which backend, and for how long; flush
    #[command(args_conflicts_with_subcommands = true, after_help = AFFINITY_EXAMPLES)]
    Affinity(AffinityArgs),
    /// Pod networks of other nodes, and the way there
    Overlay,
    /// Packets lost, why, and what to do about it
    Drops(DropsArgs),
    /// Losses, new flows and packets as they happen
    ///
    /// Events are recorded only while somebody watches; only one can. Tracing records every packet
    /// and slows the node down while it lasts. Ends with Ctrl-C.
    Monitor(MonitorArgs),
    /// Services, backends, losses and maps, live, with rates
    ///
    /// Draws on the terminal until q is pressed; ? shows the keys. With --once it prints two readings'
    /// rates instead, as text or JSON, and needs no terminal.
    #[command(after_help = TOP_EXAMPLES)]
    Top(TopArgs),
    /// Completions for a shell, to standard output
    ///
    /// For example: `tulle completions bash > /etc/bash_completion.d/tulle`
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

const FLOWS_EXAMPLES: &str = "\
Examples:
  tulle flows --proto tcp --state opening       connections that nobody has answered
  tulle flows --summary                         by service and by client
  tulle flows flush --addr 10.244.1.5 --yes     forget the flows of a pod";

const SNAT_EXAMPLES: &str = "\
Examples:
  tulle snat --addr 203.0.113.7         what became of a client outside
  tulle snat --port 8080 -n 0           all flows to port 8080, and the ports that they use";

const AFFINITY_EXAMPLES: &str = "\
Examples:
  tulle affinity --service default/web          clients that stick to backends of a service
  tulle affinity flush --client 10.244.1.5 --yes    let a pod's next connections choose anew";

const TOP_EXAMPLES: &str = "\
Examples:
  tulle top --page services --sort flows        which services open the most flows
  tulle top --once > top.txt                    everything at this moment, for a report
  tulle -o json top --once -i 10 | jq .all_services     over ten seconds, for a script";

/// Arguments of `services`.
#[derive(clap::Args, Debug, Default)]
pub struct ServicesArgs {
    /// Only what contains this in its name or one of its addresses
    pub filter: Option<String>,
    /// Only Services of this namespace; needs the agent
    #[arg(long)]
    pub namespace: Option<String>,
    /// Only Services of this very name; needs the agent
    #[arg(long)]
    pub name: Option<String>,
    /// Every backend and source range, and number and slots of the service
    #[arg(short, long)]
    pub wide: bool,
    /// Flows, packets and bytes, of each service port at all its frontends together
    #[arg(short, long)]
    pub stats: bool,
}

/// Arguments of `backends`.
#[derive(clap::Args, Debug, Default)]
pub struct BackendsArgs {
    /// Only what contains this in its address, its service's or its node's name
    pub filter: Option<String>,
    /// Flows, packets and bytes
    #[arg(short, long)]
    pub stats: bool,
}

/// Arguments of `flows`.
#[derive(clap::Args, Debug, Default)]
pub struct FlowsArgs {
    /// What else to do with flows.
    #[command(subcommand)]
    pub action: Option<FlowsAction>,
    /// Which flows.
    #[command(flatten)]
    pub filter: FlowFilter,
    /// Numbers by service and by client instead of the flows
    #[arg(short, long)]
    pub summary: bool,
    /// At most this many, the latest first; 0 for all [default: 100 in tables]
    #[arg(short = 'n', long, value_name = "N")]
    pub limit: Option<usize>,
}

/// What else to do with flows.
#[derive(Subcommand, Debug)]
pub enum FlowsAction {
    /// Forget flows
    ///
    /// The client's next packet chooses a backend anew. A connection goes on if that is the same one,
    /// as it is while the service's backends have not changed; otherwise it breaks, and so does one whose
    /// source is translated. What the backend says meanwhile still arrives.
    Flush {
        /// Which flows.
        #[command(flatten)]
        filter: FlowFilter,
        /// Do it, without this only the number of flows is shown
        #[arg(short, long)]
        yes: bool,
    },
}

/// Which flows; all of them if nothing is given.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct FlowFilter {
    /// Client (also as translated), service or backend has this address, or is in this network
    #[arg(short, long, value_name = "ADDRESS[/LEN]", value_parser = network)]
    pub addr: Option<IpNet>,
    /// Client (also as translated), service or backend has this port
    #[arg(short, long)]
    pub port: Option<u16>,
    /// The protocol
    #[arg(long, value_enum)]
    pub proto: Option<Protocol>,
    /// The flow's state
    #[arg(long, value_enum)]
    pub state: Option<State>,
}

/// Arguments of `snat`.
#[derive(clap::Args, Debug, Default)]
pub struct SnatArgs {
    /// Which flows.
    #[command(flatten)]
    pub filter: FlowFilter,
    /// At most this many, the latest first; 0 for all [default: 100 in tables]
    #[arg(short = 'n', long, value_name = "N")]
    pub limit: Option<usize>,
}

/// Arguments of `affinity`.
#[derive(clap::Args, Debug, Default)]
pub struct AffinityArgs {
    /// What else to do with rows.
    #[command(subcommand)]
    pub action: Option<AffinityAction>,
    /// Which rows.
    #[command(flatten)]
    pub filter: AffinityFilter,
    /// At most this many, the latest first; 0 for all [default: 100 in tables]
    #[arg(short = 'n', long, value_name = "N")]
    pub limit: Option<usize>,
}

/// What else to do with affinity rows.
#[derive(Subcommand, Debug)]
pub enum AffinityAction {
    /// Forget where clients went
    ///
    /// The client's next new flow chooses a backend anew. Flows that are open go on.
    Flush {
        /// Which rows.
        #[command(flatten)]
        filter: AffinityFilter,
        /// Do it, without this only the number of rows is shown
        #[arg(short, long)]
        yes: bool,
    },
}

/// Which affinity rows; all of them if nothing is given.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct AffinityFilter {
    /// The client has this address, or is in this network
    #[arg(short, long, value_name = "ADDRESS[/LEN]", value_parser = network)]
    pub client: Option<IpNet>,
    /// The service has this number, or contains this in its name
    #[arg(short, long, value_name = "NUMBER|NAME")]
    pub service: Option<String>,
}

/// Protocols of flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP and ICMPv6: echoes that are masqueraded.
    Icmp,
}

impl Protocol {
    /// Whether it has this IP protocol number.
    pub const fn is(self, number: u8) -> bool {
        match self {
            Self::Tcp => number == proto::TCP,
            Self::Udp => number == proto::UDP,
            Self::Sctp => number == proto::SCTP,
            Self::Icmp => number == proto::ICMP || number == proto::ICMPV6,
        }
    }
}

/// States of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum State {
    /// One way only so far.
    Opening,
    /// Both ends have spoken.
    Established,
    /// Being closed.
    Closing,
}

impl From<State> for FlowState {
    fn from(state: State) -> Self {
        match state {
            State::Opening => Self::Opening,
            State::Established => Self::Established,
            State::Closing => Self::Closing,
        }
    }
}

/// Arguments of `drops`.
#[derive(clap::Args, Debug, Default)]
pub struct DropsArgs {
    /// Also packets that were forwarded or left to the kernel
    #[arg(short, long)]
    pub all: bool,
    /// Again and again, with packets for each second; ends with Ctrl-C
    #[arg(short, long)]
    pub watch: bool,
    /// Seconds between two looks of --watch
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
}

/// Arguments of `monitor`; losses and new flows if none of the three is given.
#[derive(clap::Args, Debug, Default)]
pub struct MonitorArgs {
    /// Packets that are dropped or refused
    #[arg(short, long)]
    pub drops: bool,
    /// Flows that open
    #[arg(short, long)]
    pub flows: bool,
    /// Every packet
    #[arg(short, long)]
    pub trace: bool,
    /// End after so many events
    #[arg(short = 'n', long, value_name = "N")]
    pub count: Option<u64>,
}

/// Arguments of `top`.
#[derive(clap::Args, Clone, Debug)]
pub struct TopArgs {
    /// Seconds between two readings, from 0.1 to 60
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,
    /// The page to begin with; with --once the only one that is printed
    #[arg(short, long, value_enum)]
    pub page: Option<Page>,
    /// What the rows of --page are sorted by: names upwards, numbers downwards
    #[arg(short, long, value_enum, requires = "page")]
    pub sort: Option<Sort>,
    /// Print two readings' rates and end
    #[arg(long)]
    pub once: bool,
    /// With --once: at most so many rows of each table; 0 for all [default: 100 in tables]
    #[arg(short = 'n', long, value_name = "N", requires = "once")]
    pub limit: Option<usize>,
}

fn interval(text: &str) -> Result<Duration, String> {
    let secs: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds; write 1, 0.5 or 10".to_owned())?;
    if (0.1..=60.0).contains(&secs) {
        Ok(Duration::from_secs_f64(secs))
    } else {
        Err("from 0.1 to 60 seconds".into())
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Ok(net.trunc());
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().map(IpNet::from).map_err(|_| {
        "neither an address nor a network; write 10.244.1.5, 10.244.1.0/24 or fd00::/64".into()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn flush_takes_the_filters_of_the_list() {
        let args = Args::try_parse_from(["tulle", "flows", "flush", "--addr", "fd00::1", "--yes"])
            .unwrap();
        let Verb::Flows(FlowsArgs {
            action: Some(FlowsAction::Flush { filter, yes }),
            ..
        }) = args.verb
        else {
            panic!("not a flush");
        };
        assert!(yes);
        assert_eq!(filter.addr.unwrap().to_string(), "fd00::1/128");
    }

    #[test]
    fn affinity_is_flushed_by_client_and_service() {
        let line = "tulle affinity flush --client 10.0.0.0/8 --service #7";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let Verb::Affinity(AffinityArgs {
            action: Some(AffinityAction::Flush { filter, yes }),
            ..
        }) = args.verb
        else {
            panic!("not a flush");
        };
        assert!(!yes);
        assert_eq!(filter.client.unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(filter.service.as_deref(), Some("#7"));
    }

    #[test]
    fn networks_are_cut_to_their_length() {
        assert_eq!(
            network("10.244.1.5/24").unwrap().to_string(),
            "10.244.1.0/24"
        );
        assert_eq!(network("[fd00::1]").unwrap().to_string(), "fd00::1/128");
        assert!(network("web").unwrap_err().contains("10.244.1.0/24"));
    }
}
