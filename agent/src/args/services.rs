//! Flags of how this node serves clients outside and pods that leave the cluster.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, ValueEnum};
use ipnet::IpNet;

use crate::model::address::not_unicast;
use crate::model::{Forwarding, Scheduler};
use crate::plan::table;

/// Node ports as Kubernetes allots them unless told otherwise.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);

/// Services for clients outside, and masquerade.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Services and masquerade")]
pub struct ServiceArgs {
    /// Serve clients outside and processes of this node too, at the uplink
    #[arg(
        long,
        value_name = "BOOL",
        env = "TULLE_UPLINK_SERVICES",
        default_value_t = true
    )]
    #[arg(action = ArgAction::Set)]
    pub uplink_services: bool,
    /// Services where sockets are connected, instead of packet by packet: for all processes, for
    /// the node's own (with a mesh, firewall or sandbox in pods), for nobody; auto: for all, where
    /// the agent serves the host or --cgroup names a cgroup
    #[arg(
        long,
        value_enum,
        value_name = "WHOSE",
        env = "TULLE_SOCKET_SERVICES",
        default_value = "auto"
    )]
    pub socket_services: SocketServices,
    /// Cgroup (version 2) of the processes whose sockets are served [default: where its file system
    /// is mounted]
    #[arg(long, value_name = "DIR", env = "TULLE_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// Networks that Services have their cluster IPs from, separated by commas, as kube-apiserver's
    /// --service-cluster-ip-range has them (--service-cidr of kubeadm and k3s); those of ServiceCIDR
    /// objects count besides. What goes to a free address in them is dropped
    #[arg(
        long,
        value_name = "CIDRS",
        env = "TULLE_SERVICE_CIDR",
        value_delimiter = ','
    )]
    #[arg(value_parser = service_network)]
    pub service_cidr: Vec<IpNet>,
    /// Addresses of this node that answer on node ports: `primary` (the Node's first of each
    /// family), or networks, separated by commas; a family that has none of them answers on all
    /// addresses of the uplink
    #[arg(long, value_name = "CIDRS", env = "TULLE_NODE_PORT_ADDRESSES")]
    #[arg(default_value_t = NodePortAddresses::Primary)]
    pub node_port_addresses: NodePortAddresses,
    /// Give pods that leave the cluster this node's address
    #[arg(
        long,
        value_name = "BOOL",
        env = "TULLE_MASQUERADE",
        default_value_t = true
    )]
    #[arg(action = ArgAction::Set)]
    pub masquerade: bool,
    /// Networks outside that pods reach with their own addresses, separated by commas
    #[arg(
        long,
        value_name = "CIDRS",
        env = "TULLE_MASQUERADE_EXCLUDE",
        value_delimiter = ','
    )]
    #[arg(value_parser = network)]
    pub masquerade_exclude: Vec<IpNet>,
    /// Hide pods behind this node's address towards cluster IPs too, as kube-proxy's flag does
    #[arg(
        long,
        value_name = "BOOL",
        env = "TULLE_MASQUERADE_ALL",
        default_value_t = false
    )]
    #[arg(action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(value_parser = BoolishValueParser::new())]
    pub masquerade_all: bool,
    /// How new flows are given a backend, where a Service's annotation tulle.io/scheduler does not
    /// say it: random, source-hash (sh), maglev, mh (Maglev by the client's address),
    /// round-robin (rr, wrr), or least-connection (lc, wlc, sed)
    #[arg(long, value_name = "NAME", env = "TULLE_SCHEDULER")]
    #[arg(default_value_t = Scheduler::Random)]
    pub scheduler: Scheduler,
    /// Slots of Maglev tables: a prime up to 65521, the same on every node
    #[arg(long, value_name = "N", env = "TULLE_MAGLEV_SLOTS")]
    #[arg(value_parser = maglev_slots, default_value_t = table::MAGLEV_SLOTS)]
    pub maglev_slots: u16,
    /// How clients outside reach backends on other nodes, where a Service's annotation
    /// tulle.io/forwarding does not say it: snat (source translation), or dsr (direct server return: the
    /// backend sees the client, and its node answers, where its Node has the annotation
    /// tulle.io/direct-return)
    #[arg(long, value_name = "HOW", env = "TULLE_FORWARDING")]
    #[arg(default_value_t = Forwarding::Snat)]
    pub forwarding: Forwarding,
    /// Count flows, packets and bytes of each service port and backend
    #[arg(
        long,
        value_name = "BOOL",
        env = "TULLE_COUNT_SERVICES",
        default_value_t = true
    )]
    #[arg(action = ArgAction::Set)]
    pub count_services: bool,
    /// Ports that masqueraded flows have at this node's address; nothing else should use them
    #[arg(long, value_name = "FIRST-LAST", env = "TULLE_SNAT_PORTS")]
    #[arg(default_value_t = SnatPorts::DEFAULT)]
    pub snat_ports: SnatPorts,
}

/// Values of `--socket-services`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SocketServices {
    // No documentation for clap: the option says it.
    #[allow(missing_docs, reason = "see above")]
    Auto,
    #[allow(missing_docs, reason = "see above")]
    All,
    #[allow(missing_docs, reason = "see above")]
    Host,
    #[allow(missing_docs, reason = "see above")]
    Off,
}

/// Value of `--node-port-addresses` (KP-33).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// The Node's first address of each family.
    Primary,
    /// The node's addresses in these networks.
    Within(Vec<IpNet>),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "primary" {
            return Ok(Self::Primary);
        }
        let nets: Result<Vec<IpNet>, String> = text.split(',').map(network).collect();
        nets.map(Self::Within).map_err(|error| {
            if text.split(',').any(|part| part.trim() == "primary") {
                "`primary` cannot be combined with networks".to_owned()
            } else {
                format!("neither `primary` nor networks: {error}")
            }
        })
    }
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Within(nets) => {
                let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
                f.write_str(&nets.join(","))
            }
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let net = text.parse::<IpNet>().map(|net| net.trunc());
    net.map_err(|_| format!("{text:?} is no network such as 192.0.2.0/24 or 2001:db8::/32"))
}

/// A network that can hold addresses of Services.
fn service_network(text: &str) -> Result<IpNet, String> {
    let net = network(text)?;
    if net.prefix_len() == 0 || not_unicast(net.addr()).is_some() {
        return Err(format!("{net} cannot hold addresses of Services"));
    }
    Ok(net)
}

fn maglev_slots(text: &str) -> Result<u16, String> {
    let slots = text
        .trim()
        .parse()
        .ok()
        .filter(|slots| table::is_size(*slots));
    slots.ok_or_else(|| {
        format!(
            "{text:?} is no prime from 3 to {}; such as 16381",
            table::MAX_SLOTS
        )
    })
}

/// Value of `--snat-ports`: both ends are included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnatPorts {
    first: u16,
    last: u16,
}

impl SnatPorts {
    /// Beside the kernel's ephemeral ports (32768 and up) and node ports.
    pub const DEFAULT: Self = Self {
        first: 10_000,
        last: 29_999,
    };

    /// The first port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// How many there are.
    pub const fn count(self) -> u16 {
        self.last - self.first + 1
    }

    /// What somebody else may use of these ports: sentences for the operator.
    /// `ephemeral` are the ports that the kernel gives to sockets.
    pub fn overlaps(self, ephemeral: Option<(u16, u16)>) -> Vec<String> {
        let others = [
            (Some(NODE_PORTS), "node ports"),
            (ephemeral, "net.ipv4.ip_local_port_range"),
        ];
        let overlap = |(first, last): (u16, u16)| first <= self.last && self.first <= last;
        let said = |((first, last), what): ((u16, u16), &str)| {
            format!(
                "--snat-ports {self} overlap {what} {first}-{last}: a flow may take a port that is \
                 used already; give them ports of their own"
            )
        };
        let others = others
            .into_iter()
            .filter_map(|(range, what)| Some((range?, what)));
        others
            .filter(|(range, _)| overlap(*range))
            .map(said)
            .collect()
    }
}

impl FromStr for SnatPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends = text.split_once('-').and_then(|(first, last)| {
            Some((first.trim().parse().ok()?, last.trim().parse().ok()?))
        });
        match ends {
            Some((first, last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => Err("two ports from 1 to 65535, the lower one first, such as 10000-29999".into()),
        }
    }
}

impl fmt::Display for SnatPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// What `net.ipv4.ip_local_port_range` says.
pub fn port_range(text: &str) -> Option<(u16, u16)> {
    let mut ends = text.split_whitespace().map(str::parse);
    Some((ends.next()?.ok()?, ends.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snat_ports_are_two_ordered_ports() {
        let ports: SnatPorts = "1-65535".parse().unwrap();
        assert_eq!((ports.first(), ports.count()), (1, 65_535));
        assert_eq!("7-7".parse::<SnatPorts>().unwrap().count(), 1);
        for bad in ["", "5", "0-9", "9-8", "1-65536", "a-b", "1-2-3"] {
            assert!(bad.parse::<SnatPorts>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_that_others_use_are_told() {
        let of = |text: &str| text.parse::<SnatPorts>().unwrap();
        let ephemeral = port_range("32768\t60999\n");
        assert_eq!(ephemeral, Some((32_768, 60_999)));
        assert_eq!(SnatPorts::DEFAULT.overlaps(ephemeral), [""; 0]);
        assert_eq!(of("20000-32767").overlaps(ephemeral).len(), 1);
        assert_eq!(of("32768-32768").overlaps(None), [""; 0]);
        let both = of("32767-40000").overlaps(ephemeral);
        assert!(both[0].contains("node ports 30000-32767"), "{both:?}");
        assert!(
            both[1].contains("ip_local_port_range 32768-60999"),
            "{both:?}"
        );
        assert_eq!(port_range("32768"), None);
    }

    #[test]
    fn kp33_primary_stands_alone() {
        let of = str::parse::<NodePortAddresses>;
        assert_eq!(of("primary"), Ok(NodePortAddresses::Primary));
        let nets = of("192.0.2.7/24, 2001:db8::/32").unwrap();
        assert_eq!(nets.to_string(), "192.0.2.0/24,2001:db8::/32");
        assert!(of("primary,192.0.2.0/24").unwrap_err().contains("combined"));
        assert!(of("192.0.2.1").unwrap_err().contains("no network"));
    }
}
