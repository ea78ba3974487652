//! What kind of address a frontend is, from the rows alone as far as they say: so that
//! it can be told without an agent.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use datapath_common::FrontendFlags;
use serde::{Deserialize, Serialize};

use crate::tables::FrontendRow;

/// What kind of address a frontend is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A ClusterIP.
    ClusterIp,
    /// An address of the node, at the node port.
    NodePort,
    /// An address of a load balancer whose source ranges are set.
    Vip,
    /// An address of the node, at a Pod's host port. Only the name says so.
    HostPort,
    /// An external IP, or an address of a load balancer without source ranges:
    /// the rows are alike. Also a node port whose service port has lost its
    /// ClusterIP to another Service; and without an agent a host port.
    External,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::Vip => "VIP",
            Self::HostPort => "HostPort",
            Self::External => "external",
        })
    }
}

/// What is known of all frontends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kinds {
    /// Addresses that are a service's alone.
    marked: HashSet<IpAddr>,
    /// Ports at the ClusterIP by service number.
    ports: HashMap<u32, u16>,
}

impl Kinds {
    /// From all rows of `tulle_front_*`.
    pub fn new(frontends: &[FrontendRow]) -> Self {
        let addresses = frontends.iter().filter(|row| row.is_address());
        let marked: HashSet<IpAddr> = addresses.map(|row| row.addr.ip()).collect();
        let ports = frontends
            .iter()
            .filter(|row| !row.is_address() && marked.contains(&row.addr.ip()))
            .map(|row| (row.value.service, row.addr.port()))
            .collect();
        Self { marked, ports }
    }

    /// The kind of a frontend. Only ClusterIPs are marked; all frontends of a
    /// service port have the ClusterIP's port but for those at the node port.
    pub fn of(&self, row: &FrontendRow) -> Kind {
        let port = self.ports.get(&row.value.service);
        if self.marked.contains(&row.addr.ip()) {
            Kind::ClusterIp
        } else if row.has(FrontendFlags::SOURCE_RANGES) {
            Kind::Vip
        } else if port.is_some_and(|port| *port != row.addr.port()) {
            Kind::NodePort
        } else {
            Kind::External
        }
    }
}
