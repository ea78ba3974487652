//! What is asked, how it gets there, and what is sent.

use serde::Serialize;

use crate::bench::traffic::{Cpus, Kind, Load};

/// What the client asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Front {
    /// The service's address, from a pod of the same node.
    ClusterIp,
    /// A port of the node, from a host outside.
    NodePort,
}

/// How a flow gets to the server's pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Sent to the pod's own address, on the node that has an agent.
    TulleDirect,
    /// Translated once, at the client's socket.
    TulleSockets,
    /// Translated packet by packet by Tulle's programs.
    TullePackets,
    /// Sent to the pod's own address, on a node without rules and agent.
    KernelDirect,
    /// By kube-proxy's rules in nftables.
    Nftables,
    /// By kube-proxy's rules in iptables.
    Iptables,
    /// By kube-proxy's virtual servers, where the kernel has IPVS.
    Ipvs,
}

/// What is read from a measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Exchanges or connections in a second.
    Rate,
    /// Microseconds to the first packet's answer, the median of a measurement's flows.
    FirstMedian,
    /// The same, the 99th percentile.
    FirstLate,
}

/// What runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A TCP connection, an octet there and back, the end of the connection.
    Connect,
    /// An octet there and back on one TCP connection.
    Exchange,
    /// A datagram there and back from a new socket.
    Datagram,
}

impl Front {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ClusterIp, Self::NodePort];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
        }
    }

    /// For names of files.
    pub fn file(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::NodePort => "node-port",
        }
    }

    /// The ways there, in the order in which they are measured: those that are
    /// compared follow each other.
    pub fn ways(self) -> &'static [Way] {
        match self {
            Self::ClusterIp => &[
                Way::TulleSockets,
                Way::TulleDirect,
                Way::TullePackets,
                Way::Nftables,
                Way::Iptables,
                Way::Ipvs,
                Way::KernelDirect,
            ],
            // A host outside has no sockets of the node.
            Self::NodePort => &[
                Way::TulleDirect,
                Way::TullePackets,
                Way::Nftables,
                Way::Iptables,
                Way::Ipvs,
                Way::KernelDirect,
            ],
        }
    }

    /// Most flows that one measurement may open. Closed ones stay in the tables for
    /// a while, and those that are masqueraded keep a port of the node as long.
    pub fn flows(self) -> u64 {
        match self {
            Self::ClusterIp => 600,
            Self::NodePort => 250,
        }
    }
}

impl Way {
    /// All, in the order of columns.
    pub const ALL: [Self; 7] = [
        Self::TulleDirect,
        Self::TulleSockets,
        Self::TullePackets,
        Self::KernelDirect,
        Self::Nftables,
        Self::Iptables,
        Self::Ipvs,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::TulleDirect => "direct, Tulle's node",
            Self::TulleSockets => "Tulle, sockets",
            Self::TullePackets => "Tulle, packets",
            Self::KernelDirect => "direct, bare node",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "IPVS",
        }
    }

    /// Whether nothing is translated.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::TulleDirect | Self::KernelDirect)
    }
}

impl Work {
    /// All.
    pub const ALL: [Self; 3] = [Self::Connect, Self::Exchange, Self::Datagram];

    /// As a load, client and server on one CPU.
    pub fn load(self, cpus: Cpus) -> Load {
        let (name, unit, kind) = match self {
            Self::Connect => ("connect, request, close", "connections/s", Kind::TcpConnect),
            Self::Exchange => ("request/response", "exchanges/s", Kind::TcpExchange),
            Self::Datagram => ("first datagram", "µs", Kind::UdpOpen),
        };
        Load {
            name,
            unit,
            kind,
            cpus: cpus.together(),
        }
    }

    /// What is read from it.
    pub fn figures(self) -> &'static [Figure] {
        match self {
            Self::Connect => &[Figure::Rate, Figure::FirstMedian, Figure::FirstLate],
            Self::Exchange => &[Figure::Rate],
            Self::Datagram => &[Figure::FirstMedian, Figure::FirstLate],
        }
    }

    /// Name of a figure of it, for people.
    pub fn title(self, figure: Figure) -> &'static str {
        match (self, figure) {
            (Self::Connect, Figure::Rate) => "TCP connect, request, close",
            (Self::Exchange, _) => "TCP request/response",
            (Self::Datagram, Figure::Rate) => "UDP socket, request",
            (Self::Connect, Figure::FirstMedian) => "TCP, SYN answered, median",
            (Self::Connect, Figure::FirstLate) => "TCP, SYN answered, 99th percentile",
            (Self::Datagram, Figure::FirstMedian) => "UDP, first datagram answered, median",
            (Self::Datagram, Figure::FirstLate) => "UDP, first datagram answered, 99th percentile",
        }
    }

    /// Unit of a figure of it.
    pub fn unit(self, figure: Figure) -> &'static str {
        match (self, figure) {
            (_, Figure::FirstMedian | Figure::FirstLate) => "µs",
            (Self::Connect, Figure::Rate) => "connections/s",
            (Self::Exchange | Self::Datagram, Figure::Rate) => "exchanges/s",
        }
    }

    /// For names of files.
    pub fn file(self, figure: Figure) -> &'static str {
        match (self, figure) {
            (Self::Connect, Figure::Rate) => "connect",
            (Self::Connect, _) => "first-tcp",
            (Self::Exchange, _) => "exchange",
            (Self::Datagram, _) => "first-udp",
        }
    }
}

impl Figure {
    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        self == Self::Rate
    }

    /// Microseconds of one exchange, connection or first packet.
    pub fn micros(self, value: f64) -> f64 {
        match self {
            Self::Rate => 1e6 / value,
            Self::FirstMedian | Self::FirstLate => value,
        }
    }

    /// Reads it from a measurement; `None` if nothing was opened.
    pub fn read(self, rate: f64, first: &[f64]) -> Option<f64> {
        let mut sorted = first.to_vec();
        sorted.sort_by(f64::total_cmp);
        // The least that so many of a hundred do not exceed.
        let below = |percent: usize| {
            let at = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
            sorted.get(at).copied()
        };
        match self {
            Self::Rate => Some(rate),
            Self::FirstMedian => below(50),
            Self::FirstLate => below(99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_readings() {
        let first: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(Figure::FirstMedian.read(0.0, &first), Some(50.0));
        assert_eq!(Figure::FirstLate.read(0.0, &first), Some(99.0));
        assert_eq!(Figure::FirstLate.read(0.0, &[7.0]), Some(7.0));
        assert_eq!(Figure::FirstMedian.read(1.0, &[]), None);
        assert_eq!(Figure::FirstLate.read(1.0, &[]), None);
        assert_eq!(Figure::Rate.read(1.0, &[]), Some(1.0));
    }

    #[test]
    fn every_column_is_a_way_to_some_front() {
        for way in Way::ALL {
            assert!(Front::ALL.iter().any(|front| front.ways().contains(&way)));
        }
    }
}
