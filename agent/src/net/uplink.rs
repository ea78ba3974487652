//! The uplink: the interface that carries the underlay.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::Mac;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteType;

use super::link::{self, Link};
use super::netlink::{Netlink, NetlinkError};
use super::routes::{self, RouteRow, Which};
use super::rows::{self, AddressRow};

/// Facts about the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Name.
    pub name: String,
    /// Interface index.
    pub index: u32,
    /// Ethernet address.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// IPv4 addresses, the best first ([`Uplink::ip4`]).
    pub addresses4: Vec<Ipv4Addr>,
    /// IPv6 addresses, the best first; may be empty.
    pub addresses6: Vec<Ipv6Addr>,
    /// Carrier present.
    pub carrier: bool,
    /// Kind of the interface as `ip -d link` prints it (`veth` …); empty for hardware.
    pub kind: String,
    /// VLAN devices lie upon it.
    pub vlans: bool,
}

/// Why there is no usable uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No interface has the name.
    #[error("uplink {name} does not exist; name one of the interfaces with --uplink: {there}")]
    Unknown {
        /// The name.
        name: String,
        /// The interfaces that exist.
        there: String,
    },
    /// No name was given and no default route leads to one.
    #[error(
        "no uplink: there is no IPv4 default route to take it from; name the interface that \
         carries the underlay with --uplink: {there}"
    )]
    NoDefaultRoute {
        /// The interfaces that exist.
        there: String,
    },
    /// It is administratively down.
    #[error(
        "uplink {name} is down; set it up (ip link set {name} up) or name another with --uplink: {there}"
    )]
    Down {
        /// The name.
        name: String,
        /// The interfaces that exist.
        there: String,
    },
    /// It has no IPv4 address.
    #[error(
        "uplink {name} has no IPv4 address, and the overlay runs over IPv4; give it one or name \
         another interface with --uplink: {there}"
    )]
    NoIpv4 {
        /// The name.
        name: String,
        /// The interfaces that exist.
        there: String,
    },
    /// It does not carry Ethernet frames.
    #[error("uplink {name} is not an Ethernet interface; name another with --uplink: {there}")]
    NotEthernet {
        /// The name.
        name: String,
        /// The interfaces that exist.
        there: String,
    },
}

impl Uplink {
    /// The address to be announced; `addresses4` is never empty.
    pub fn ip4(&self) -> Ipv4Addr {
        self.addresses4
            .first()
            .copied()
            .unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// The interface called `name`, or that of the IPv4 default route with the
    /// lowest metric.
    pub async fn find(netlink: &Netlink, name: Option<&str>) -> Result<Self, UplinkError> {
        let links = link::all(netlink).await?;
        let link = if let Some(name) = name {
            by_name(&links, name)?
        } else {
            let routes = routes::list(netlink, AddressFamily::Inet, Which::Main).await?;
            by_default_route(&links, &routes)?
        };
        let addresses = rows::addresses(netlink, link.index).await?;
        describe(link, &addresses, &links)
    }
}

fn by_name<'a>(links: &'a [Link], name: &str) -> Result<&'a Link, UplinkError> {
    links
        .iter()
        .find(|link| link.name == name)
        .ok_or_else(|| UplinkError::Unknown {
            name: name.into(),
            there: names(links),
        })
}

fn by_default_route<'a>(links: &'a [Link], routes: &[RouteRow]) -> Result<&'a Link, UplinkError> {
    routes
        .iter()
        .filter(|row| row.destination.prefix_len() == 0 && row.kind == RouteType::Unicast)
        .min_by_key(|row| row.metric)
        .and_then(|row| links.iter().find(|link| Some(link.index) == row.index))
        .ok_or_else(|| UplinkError::NoDefaultRoute {
            there: names(links),
        })
}

fn describe(link: &Link, addresses: &[AddressRow], links: &[Link]) -> Result<Uplink, UplinkError> {
    let name = || link.name.clone();
    let there = || names(links);
    if !link.up {
        return Err(UplinkError::Down {
            name: name(),
            there: there(),
        });
    }
    let mac = link.mac.ok_or_else(|| UplinkError::NotEthernet {
        name: name(),
        there: there(),
    })?;
    let ranked = ranked(addresses);
    let addresses4: Vec<Ipv4Addr> = ranked
        .iter()
        .filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        })
        .collect();
    if addresses4.is_empty() {
        return Err(UplinkError::NoIpv4 {
            name: name(),
            there: there(),
        });
    }
    Ok(Uplink {
        name: name(),
        index: link.index,
        mac,
        mtu: link.mtu,
        addresses4,
        addresses6: ranked
            .iter()
            .filter_map(|ip| match ip {
                IpAddr::V6(ip) => Some(*ip),
                IpAddr::V4(_) => None,
            })
            .collect(),
        carrier: link.carrier,
        kind: link.kind.clone(),
        vlans: links
            .iter()
            .any(|other| other.kind == "vlan" && other.peer == Some(link.index)),
    })
}

/// FL-08: global before link-local, permanent before dynamic, lasting before
/// temporary; deprecated ones are left out. Otherwise the kernel's order.
fn ranked(addresses: &[AddressRow]) -> Vec<IpAddr> {
    let mut usable: Vec<&AddressRow> = addresses
        .iter()
        .filter(|row| !row.deprecated && !row.ip.is_loopback())
        .collect();
    usable.sort_by_key(|row| {
        let link_local = match row.ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        (link_local, Reverse(row.permanent), row.temporary)
    });
    usable.into_iter().map(|row| row.ip).collect()
}

/// The interfaces that a person may name.
fn names(links: &[Link]) -> String {
    let names: Vec<&str> = links
        .iter()
        .filter(|link| link.name != "lo")
        .map(|link| link.name.as_str())
        .collect();
    if names.is_empty() {
        "there is none but lo".into()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Vec<Link> {
        ["lo", "eth0", "eth1"]
            .into_iter()
            .zip(1..)
            .map(|(name, index)| Link {
                index,
                name: name.into(),
                mac: Some(Mac::new([2, 0, 0, 0, 0, index as u8])),
                mtu: 1500,
                up: true,
                ..Link::default()
            })
            .collect()
    }

    fn address(ip: &str) -> AddressRow {
        AddressRow {
            index: 2,
            ip: ip.parse().unwrap(),
            prefix: 24,
            link_scope: false,
            permanent: true,
            deprecated: false,
            temporary: false,
        }
    }

    #[test]
    fn addresses_are_ranked() {
        let rows = [
            address("169.254.7.7"),
            AddressRow {
                permanent: false,
                ..address("192.0.2.5")
            },
            AddressRow {
                temporary: true,
                ..address("2001:db8::7")
            },
            AddressRow {
                deprecated: true,
                ..address("192.0.2.6")
            },
            address("192.0.2.7"),
            address("fe80::1"),
            address("2001:db8::1"),
        ];
        let uplink = describe(&links()[1], &rows, &links()).unwrap();
        assert_eq!(uplink.ip4().to_string(), "192.0.2.7");
        let shown = |ips: Vec<String>| ips.join(" ");
        assert_eq!(
            shown(uplink.addresses4.iter().map(ToString::to_string).collect()),
            "192.0.2.7 192.0.2.5 169.254.7.7"
        );
        assert_eq!(
            shown(uplink.addresses6.iter().map(ToString::to_string).collect()),
            "2001:db8::1 2001:db8::7 fe80::1"
        );
    }

    #[test]
    fn refusals_name_the_flag_and_what_there_is() {
        let mut links = links();
        let cases = [
            by_name(&links, "eth9").unwrap_err(),
            by_default_route(&links, &[]).unwrap_err(),
            describe(&links[1], &[], &links).unwrap_err(),
        ];
        for error in cases {
            let text = error.to_string();
            assert!(text.contains("--uplink: eth0, eth1"), "{text}");
        }
        links[1].up = false;
        let text = describe(&links[1], &[], &links).unwrap_err().to_string();
        assert!(text.contains("uplink eth0 is down"), "{text}");
        links[2].mac = None;
        let text = describe(&links[2], &[], &links).unwrap_err().to_string();
        assert!(text.contains("eth1 is not an Ethernet"), "{text}");
    }
}
