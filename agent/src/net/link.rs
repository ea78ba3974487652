//! Links as the kernel lists them, reduced to what Tulle looks at.

use std::net::Ipv4Addr;

use datapath_common::Mac;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};

use super::netlink::{Netlink, NetlinkError};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Kind as `ip -d link` prints it (`veth`, `vxlan` …); empty for hardware.
    pub kind: String,
    /// Ethernet address; none on interfaces of other layers.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Carrier present.
    pub carrier: bool,
    /// Index of the peer (veth) or lower interface.
    pub peer: Option<u32>,
    /// Id, in our namespace, of the namespace of `peer`; none if it is ours.
    pub peer_namespace: Option<i32>,
    /// Index of the bridge (or the like) that it is a port of.
    pub controller: Option<u32>,
    /// Attributes of a VXLAN device.
    pub vxlan: Option<Vxlan>,
}

/// What matters of a VXLAN device for adopting it (FL-48).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Vxlan {
    /// Network identifier.
    pub vni: u32,
    /// UDP port, host order.
    pub port: u16,
    /// Source address of outer headers.
    pub local: Option<Ipv4Addr>,
    /// Index of the lower interface.
    pub uplink: Option<u32>,
    /// Learns senders from packets.
    pub learning: bool,
    /// Has properties that flannel's device never has: a group, `l2miss`,
    /// `l3miss`, `proxy`, group policy, `external`.
    pub foreign_option: Option<&'static str>,
}

impl Link {
    /// From a message; none if it has no name.
    pub(crate) fn parse(message: &LinkMessage) -> Option<Self> {
        let header = &message.header;
        let mut link = Link {
            index: header.index,
            up: header.flags.contains(LinkFlags::Up),
            carrier: header.flags.contains(LinkFlags::LowerUp),
            ..Link::default()
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(address)
                    if header.link_layer_type == LinkLayerType::Ether =>
                {
                    link.mac = mac_of(address);
                }
                LinkAttribute::Link(index) => link.peer = Some(*index),
                LinkAttribute::Controller(index) => link.controller = Some(*index),
                LinkAttribute::LinkNetNsId(id) => link.peer_namespace = Some(*id),
                LinkAttribute::LinkInfo(infos) => link.read_infos(infos),
                _ => {}
            }
        }
        (!link.name.is_empty()).then_some(link)
    }

    fn read_infos(&mut self, infos: &[LinkInfo]) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = kind.to_string(),
                LinkInfo::Data(InfoData::Vxlan(data)) => self.vxlan = Some(Vxlan::parse(data)),
                _ => {}
            }
        }
    }
}

impl Vxlan {
    fn parse(data: &[InfoVxlan]) -> Self {
        let mut vxlan = Self::default();
        for info in data {
            match info {
                InfoVxlan::Id(vni) => vxlan.vni = *vni,
                InfoVxlan::Port(port) => vxlan.port = *port,
                InfoVxlan::Local(local) if !local.is_unspecified() => vxlan.local = Some(*local),
                InfoVxlan::Link(index) if *index != 0 => vxlan.uplink = Some(*index),
                InfoVxlan::Learning(on) => vxlan.learning = *on,
                InfoVxlan::Group(group) if !group.is_unspecified() => {
                    vxlan.foreign_option = Some("a default destination");
                }
                InfoVxlan::Group6(_) => vxlan.foreign_option = Some("a default destination"),
                InfoVxlan::Local6(_) => vxlan.foreign_option = Some("an IPv6 local address"),
                InfoVxlan::L2Miss(true) => vxlan.foreign_option = Some("l2miss"),
                InfoVxlan::L3Miss(true) => vxlan.foreign_option = Some("l3miss"),
                InfoVxlan::Proxy(true) => vxlan.foreign_option = Some("proxy"),
                InfoVxlan::Gbp => vxlan.foreign_option = Some("gbp"),
                InfoVxlan::Gpe => vxlan.foreign_option = Some("gpe"),
                InfoVxlan::CollectMetadata(true) => vxlan.foreign_option = Some("external"),
                _ => {}
            }
        }
        vxlan
    }
}

/// Six octets, or none.
pub(crate) fn mac_of(octets: &[u8]) -> Option<Mac> {
    <[u8; 6]>::try_from(octets).ok().map(Mac::new)
}

/// A request for one link by index.
pub(crate) fn get_by_index(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    message
}

/// A request for one link by name.
fn get_by_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
    ];
    message
}

/// All links of the namespace.
pub(crate) async fn all(netlink: &Netlink) -> Result<Vec<Link>, NetlinkError> {
    let rows = netlink
        .dump(
            "list the network interfaces",
            RouteNetlinkMessage::GetLink(get_by_index(0)),
        )
        .await?;
    Ok(rows
        .iter()
        .filter_map(|row| match row {
            RouteNetlinkMessage::NewLink(message) => Link::parse(message),
            _ => None,
        })
        .collect())
}

/// The link called `name`, if there is one.
pub(crate) async fn by_name(netlink: &Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    one(
        netlink,
        &format!("look up interface {name}"),
        get_by_name(name),
    )
    .await
}

/// The link that `request` names, if it is there.
pub(crate) async fn one(
    netlink: &Netlink,
    what: &str,
    request: LinkMessage,
) -> Result<Option<Link>, NetlinkError> {
    match netlink
        .get(what, RouteNetlinkMessage::GetLink(request))
        .await
    {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Link::parse(&message)),
        Ok(_) => Ok(None),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets one attribute of an existing link.
pub(crate) fn set(index: u32, attribute: LinkAttribute) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![attribute];
    RouteNetlinkMessage::SetLink(message)
}

/// Sets a link up.
pub(crate) fn set_up(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(message)
}

/// Removes a link.
pub(crate) fn delete(index: u32) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    RouteNetlinkMessage::DelLink(message)
}

/// The attribute that names kind and data of a VXLAN device.
pub(crate) fn vxlan_info(data: Vec<InfoVxlan>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(data)),
    ])
}
