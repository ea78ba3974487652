//! Next hops towards peers' underlay addresses, as the kernel would route.

use std::net::{IpAddr, Ipv4Addr};

use futures::{StreamExt, stream};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
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
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.destination_prefix_length = 32;
    request.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(node))];
    let what = format!("find a route to node {node}");
    let answer = netlink
        .get(&what, RouteNetlinkMessage::GetRoute(request))
        .await?;
    match answer {
        RouteNetlinkMessage::NewRoute(message) => read(node, &message),
        _ => Err(NetlinkError::Closed { what }.into()),
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
