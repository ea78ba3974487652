//! Next hops towards peers' underlay addresses, as the kernel would route.

use std::net::{IpAddr, Ipv4Addr};

use futures::{StreamExt, stream};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{IN_FLIGHT, Netlink, NetlinkError};
use super::routes::RouteRow;

/// Where a packet to an underlay address goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The gateway, or the address itself if it is on the link. An IPv4
    /// address may have an IPv6 gateway (RFC 9229).
    pub via: IpAddr,
    /// Index of the output interface.
    pub ifindex: u32,
    /// Source address the kernel would take.
    pub source: Option<Ipv4Addr>,
}

/// Why there is no next hop.
#[derive(Debug, thiserror::Error)]
pub enum NextHopError {
    /// The kernel refused: mostly, the network is unreachable.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The address is the node's own, or a broadcast.
    #[error("{node} is no other node: the kernel routes it as {kind}")]
    NotRemote {
        /// The address.
        node: Ipv4Addr,
        /// The type of its route.
        kind: String,
    },
}

impl NextHopError {
    /// Whether the kernel has a route and it leads to no other node. Otherwise
    /// the question failed, or there is no route at the moment.
    pub fn is_answer(&self) -> bool {
        match self {
            Self::NotRemote { .. } => true,
            // Routes of the types unreachable, prohibit and blackhole.
            Self::Netlink(error) => matches!(
                error.errno(),
                Some(libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
            ),
        }
    }
}

/// The next hop for each of `nodes`, in their order.
pub async fn next_hops(
    netlink: &Netlink,
    nodes: &[Ipv4Addr],
) -> Vec<(Ipv4Addr, Result<NextHop, NextHopError>)> {
    stream::iter(nodes.iter().copied())
        .map(|node| async move { (node, next_hop(netlink, node).await) })
        .buffered(IN_FLIGHT)
        .collect()
        .await
}

async fn next_hop(netlink: &Netlink, node: Ipv4Addr) -> Result<NextHop, NextHopError> {
    let what = format!("find a route to node {node}");
    let message = route(netlink, what, node.into()).await?;
    read(node, &message)
}

/// The devices by which packets to `addresses` leave; none for one that has no route.
pub async fn ways_out(netlink: &Netlink, addresses: &[IpAddr]) -> Vec<(IpAddr, Option<u32>)> {
    let way = |address: IpAddr| async move {
        let what = format!("find a route to {address}");
        let message = route(netlink, what, address).await.ok()?;
        RouteRow::parse(&message).and_then(|row| row.index)
    };
    stream::iter(addresses.iter().copied())
        .map(|address| async move { (address, way(address).await) })
        .buffered(IN_FLIGHT)
        .collect()
        .await
}

async fn route(
    netlink: &Netlink,
    what: String,
    address: IpAddr,
) -> Result<RouteMessage, NetlinkError> {
    let mut request = RouteMessage::default();
    (
        request.header.address_family,
        request.header.destination_prefix_length,
    ) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    request.attributes = vec![RouteAttribute::Destination(address.into())];
    let answer = netlink
        .get(&what, RouteNetlinkMessage::GetRoute(request))
        .await?;
    match answer {
        RouteNetlinkMessage::NewRoute(message) => Ok(message),
        _ => Err(NetlinkError::Closed { what }),
    }
}

fn read(node: Ipv4Addr, message: &RouteMessage) -> Result<NextHop, NextHopError> {
    let row = RouteRow::parse(message);
    match row {
        Some(RouteRow {
            kind: RouteType::Unicast,
            index: Some(ifindex),
            gateway,
            source,
            ..
        }) => Ok(NextHop {
            via: gateway.unwrap_or(IpAddr::V4(node)),
            ifindex,
            source: match source {
                Some(IpAddr::V4(ip)) => Some(ip),
                _ => None,
            },
        }),
        _ => Err(NextHopError::NotRemote {
            node,
            kind: format!("{:?}", message.header.kind).to_lowercase(),
        }),
    }
}
