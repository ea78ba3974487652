//! Rows of the kernel's tables as they are: read from messages, and the
//! messages that write and remove them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::Mac;
use ipnet::IpNet;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::link::mac_of;
use super::netlink::{Netlink, NetlinkError};

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressRow {
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) link_scope: bool,
    pub(crate) permanent: bool,
    pub(crate) deprecated: bool,
    pub(crate) temporary: bool,
}

/// A neighbour (ARP or ND).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NeighbourRow {
    pub(crate) index: u32,
    pub(crate) ip: IpAddr,
    pub(crate) mac: Option<Mac>,
    pub(crate) permanent: bool,
    /// The kernel may use `mac`.
    pub(crate) valid: bool,
}

/// A forwarding entry of a VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ForwardRow {
    pub(crate) mac: Mac,
    pub(crate) node: Option<IpAddr>,
    pub(crate) permanent: bool,
    /// Has a port, VNI or interface of its own.
    pub(crate) special: bool,
}

/// The family of an address.
pub(crate) fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

/// All addresses, or those of one interface (`index` not 0).
pub(crate) async fn addresses(
    netlink: &Netlink,
    index: u32,
) -> Result<Vec<AddressRow>, NetlinkError> {
    let mut request = AddressMessage::default();
    request.header.index = index;
    let rows = netlink
        .dump("list addresses", RouteNetlinkMessage::GetAddress(request))
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| match row {
            RouteNetlinkMessage::NewAddress(message) => parse_address(message),
            _ => None,
        })
        .filter(|row| index == 0 || row.index == index)
        .collect())
}

pub(crate) fn parse_address(message: &AddressMessage) -> Option<AddressRow> {
    // The kernel's IFA_F_TEMPORARY is IFA_F_SECONDARY: v6 only.
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = local.or(address)?;
    Some(AddressRow {
        index: message.header.index,
        ip,
        prefix: message.header.prefix_len,
        link_scope: message.header.scope == AddressScope::Link,
        permanent: flags.contains(AddressFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
        temporary: ip.is_ipv6() && flags.contains(AddressFlags::Secondary),
    })
}

/// Message for an address of a single host on an interface.
pub(crate) fn address_message(index: u32, ip: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if ip.is_ipv6() {
        // Nobody answers duplicate address detection on the overlay.
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message
}

/// Neighbours of one family, of one interface if `index` is not 0.
pub(crate) async fn neighbours(
    netlink: &Netlink,
    family: AddressFamily,
    index: u32,
) -> Result<Vec<NeighbourRow>, NetlinkError> {
    let rows = netlink
        .dump("list neighbours", neighbour_request(family, index))
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| match row {
            RouteNetlinkMessage::NewNeighbour(message) => parse_neighbour(message),
            _ => None,
        })
        .filter(|row| index == 0 || row.index == index)
        .collect())
}

fn neighbour_request(family: AddressFamily, index: u32) -> RouteNetlinkMessage {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    if index != 0 {
        request.attributes = vec![NeighbourAttribute::IfIndex(index)];
    }
    RouteNetlinkMessage::GetNeighbour(request)
}

/// None for anything but an IPv4 or IPv6 neighbour.
pub(crate) fn parse_neighbour(message: &NeighbourMessage) -> Option<NeighbourRow> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => ip = Some((*a).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => ip = Some((*a).into()),
            NeighbourAttribute::LinkLayerAddress(octets) => mac = mac_of(octets),
            _ => {}
        }
    }
    let state = message.header.state;
    Some(NeighbourRow {
        index: message.header.ifindex,
        ip: ip?,
        mac,
        permanent: state == NeighbourState::Permanent,
        valid: matches!(
            state,
            NeighbourState::Permanent
                | NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
        ),
    })
}

/// Message for a neighbour; without a MAC for removal.
pub(crate) fn neighbour_message(index: u32, ip: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![NeighbourAttribute::Destination(ip.into())];
    if let Some(mac) = mac {
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec()));
    }
    message
}

/// Forwarding entries of a VXLAN device.
pub(crate) async fn forwards(
    netlink: &Netlink,
    index: u32,
) -> Result<Vec<ForwardRow>, NetlinkError> {
    let rows = netlink
        .dump(
            "list forwarding entries",
            neighbour_request(AddressFamily::Bridge, index),
        )
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| match row {
            RouteNetlinkMessage::NewNeighbour(message) => parse_forward(message, index),
            _ => None,
        })
        .collect())
}

fn parse_forward(message: &NeighbourMessage, index: u32) -> Option<ForwardRow> {
    let header = &message.header;
    if header.ifindex != index
        || header.family != AddressFamily::Bridge
        || !header.flags.contains(NeighbourFlags::Own)
    {
        return None;
    }
    let (mut mac, mut node, mut special) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(octets) => mac = mac_of(octets),
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => node = Some((*a).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                node = Some((*a).into());
            }
            // An AF_BRIDGE message does not say which family its address has.
            NeighbourAttribute::Destination(NeighbourAddress::Other(octets)) => {
                node = <[u8; 4]>::try_from(octets.as_slice())
                    .map(|o| IpAddr::V4(Ipv4Addr::from(o)))
                    .or_else(|_| {
                        <[u8; 16]>::try_from(octets.as_slice())
                            .map(|o| IpAddr::V6(Ipv6Addr::from(o)))
                    })
                    .ok();
            }
            NeighbourAttribute::Port(_)
            | NeighbourAttribute::Vni(_)
            | NeighbourAttribute::IfIndex(_) => special = true,
            _ => {}
        }
    }
    Some(ForwardRow {
        mac: mac?,
        node,
        // iproute2 adds NUD_NOARP.
        permanent: u16::from(header.state) & u16::from(NeighbourState::Permanent) != 0,
        special,
    })
}

/// Message for a forwarding entry; without a node for removal of all that the
/// MAC has.
pub(crate) fn forward_message(index: u32, mac: Mac, node: Option<Ipv4Addr>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Own;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.octets().to_vec())];
    if let Some(node) = node {
        message
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Other(
                node.octets().to_vec(),
            )));
    }
    message
}

/// A network of one host.
pub(crate) fn host_net(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}
