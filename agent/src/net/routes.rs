//! Routes as they are, and the messages that write and remove them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Netlink, NetlinkError};
use super::overlay::{ROUTE_PROTOCOL, UNREACHABLE_METRIC};
use super::rows::family;

/// The kernel's main table.
pub(crate) const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteRow {
    pub(crate) destination: IpNet,
    pub(crate) kind: RouteType,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) index: Option<u32>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) protocol: u8,
    pub(crate) scope: RouteScope,
    pub(crate) tos: u8,
    pub(crate) metric: u32,
    pub(crate) mtu: Option<u32>,
    pub(crate) onlink: bool,
    pub(crate) table: u32,
}

impl RouteRow {
    /// None for cached routes and families other than IPv4 and IPv6.
    pub(crate) fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let any: IpAddr = match header.address_family {
            AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let mut row = Self {
            destination: IpNet::new(any, header.destination_prefix_length).ok()?,
            kind: header.kind,
            gateway: None,
            index: None,
            source: None,
            protocol: header.protocol.into(),
            scope: header.scope,
            tos: header.tos,
            metric: 0,
            mtu: None,
            onlink: header.flags.contains(RouteFlags::Onlink),
            table: header.table.into(),
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    let ip = ip_of(address)?;
                    row.destination = IpNet::new(ip, header.destination_prefix_length).ok()?;
                }
                RouteAttribute::Gateway(address) => row.gateway = ip_of(address),
                RouteAttribute::Via(RouteVia::Inet(ip)) => row.gateway = Some((*ip).into()),
                RouteAttribute::Via(RouteVia::Inet6(ip)) => row.gateway = Some((*ip).into()),
                RouteAttribute::Oif(index) => row.index = Some(*index),
                RouteAttribute::PrefSource(address) => row.source = ip_of(address),
                RouteAttribute::Priority(metric) => row.metric = *metric,
                RouteAttribute::Table(table) => row.table = *table,
                RouteAttribute::Metrics(metrics) => {
                    row.mtu = metrics.iter().find_map(|m| match m {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                // The first next hop stands for the route.
                RouteAttribute::MultiPath(hops) => {
                    if let Some(hop) = hops.first() {
                        row.index = Some(hop.interface_index);
                        row.gateway = hop.attributes.iter().find_map(|a| match a {
                            RouteAttribute::Gateway(address) => ip_of(address),
                            RouteAttribute::Via(RouteVia::Inet6(ip)) => Some((*ip).into()),
                            _ => None,
                        });
                    }
                }
                _ => {}
            }
        }
        Some(row)
    }

    /// The message that removes exactly this route.
    pub(crate) fn removal(&self) -> RouteNetlinkMessage {
        let mut message = message(self.destination);
        message.header.kind = self.kind;
        message.header.protocol = self.protocol.into();
        message.header.scope = self.scope;
        message.header.tos = self.tos;
        message.header.table = RouteHeader::RT_TABLE_UNSPEC;
        message.attributes.push(RouteAttribute::Table(self.table));
        message
            .attributes
            .push(RouteAttribute::Priority(self.metric));
        if let Some(gateway) = self
            .gateway
            .filter(|g| g.is_ipv4() == self.destination.addr().is_ipv4())
        {
            message
                .attributes
                .push(RouteAttribute::Gateway(gateway.into()));
        }
        // An IPv6 reject route says "dev lo" when listed and matches without.
        if let Some(index) = self.index.filter(|_| self.kind == RouteType::Unicast) {
            message.attributes.push(RouteAttribute::Oif(index));
        }
        RouteNetlinkMessage::DelRoute(message)
    }
}

impl std::fmt::Display for RouteRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.kind != RouteType::Unicast {
            write!(f, "{} ", format!("{:?}", self.kind).to_lowercase())?;
        }
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if self.table != MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// A message for a destination in the main table, nothing else said.
fn message(destination: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.attributes = vec![RouteAttribute::Destination(destination.addr().into())];
    message
}

/// Our route to a peer's pods.
pub(crate) fn peer(destination: IpNet, gateway: IpAddr, index: u32, mtu: u32) -> RouteMessage {
    let mut message = message(destination);
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.flags = RouteFlags::Onlink;
    message.attributes.extend([
        RouteAttribute::Gateway(gateway.into()),
        RouteAttribute::Oif(index),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]),
    ]);
    message
}

/// Our answer for addresses of our own pod network that no pod has.
pub(crate) fn unreachable(destination: IpNet) -> RouteMessage {
    let mut message = message(destination);
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unreachable;
    message
        .attributes
        .push(RouteAttribute::Priority(UNREACHABLE_METRIC));
    message
}

/// Which routes to list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    /// Those of the main table.
    Main,
    /// Ours, in any table.
    Ours,
}

/// Routes of one family; the kernel filters.
pub(crate) async fn list(
    netlink: &Netlink,
    family: AddressFamily,
    which: Which,
) -> Result<Vec<RouteRow>, NetlinkError> {
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    match which {
        Which::Main => {
            request.header.table = RouteHeader::RT_TABLE_MAIN;
            request.attributes = vec![RouteAttribute::Table(MAIN)];
        }
        Which::Ours => request.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL),
    }
    let rows = match netlink
        .dump("list routes", RouteNetlinkMessage::GetRoute(request))
        .await
    {
        Ok(rows) => rows,
        // A table that never held a route does not exist.
        Err(error) if error.is_absent() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(rows
        .iter()
        .filter_map(|row| match row {
            // Without IPv6 the kernel answers for IPv4 instead.
            RouteNetlinkMessage::NewRoute(m) if m.header.address_family == family => {
                RouteRow::parse(m)
            }
            _ => None,
        })
        .filter(|row| match which {
            Which::Main => row.table == MAIN,
            Which::Ours => row.protocol == ROUTE_PROTOCOL,
        })
        .collect())
}
