//! The bridge that pods of this node are behind, as flannel's CNI plugin leaves it:
//! it has an address in one of our own pod networks, and the pods' veths are its ports.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::link::{self, Link};
use super::netlink::{Netlink, NetlinkError};
use super::rows::{self, AddressRow};

/// A bridge with pods of this node behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Its own addresses in the pod networks: the pods' gateways.
    pub addresses: BTreeSet<IpAddr>,
    /// Interface indices of the veths that are its ports: the host's ends of pods' links.
    pub ports: BTreeSet<u32>,
}

impl Bridge {
    /// Looks for the bridge with an address in `own` networks.
    ///
    /// # Errors
    ///
    /// If links or addresses cannot be listed.
    pub async fn find(netlink: &Netlink, own: &[IpNet]) -> Result<Option<Self>, NetlinkError> {
        let links = link::all(netlink).await?;
        let addresses = rows::addresses(netlink, 0).await?;
        Ok(choose(&links, &addresses, own))
    }
}

/// The bridge that has the most of the networks; of several the first one made.
pub(super) fn choose(links: &[Link], addresses: &[AddressRow], own: &[IpNet]) -> Option<Bridge> {
    let bridges = links.iter().filter(|link| link.kind == "bridge" && link.up);
    let with_addresses = bridges.map(|bridge| {
        let here = addresses.iter().filter(|row| row.index == bridge.index);
        let here = here.map(|row| row.ip);
        let of_pods = here.filter(|ip| own.iter().any(|net| net.contains(ip)));
        (bridge, of_pods.collect::<BTreeSet<IpAddr>>())
    });
    let networks = |addresses: &BTreeSet<IpAddr>| {
        let has = |net: &&IpNet| addresses.iter().any(|ip| net.contains(ip));
        own.iter().filter(has).count()
    };
    let (bridge, addresses) = with_addresses
        .filter(|(_, addresses)| !addresses.is_empty())
        .max_by_key(|(bridge, addresses)| (networks(addresses), std::cmp::Reverse(bridge.index)))?;
    let ports = links
        .iter()
        .filter(|link| link.controller == Some(bridge.index) && link.kind == "veth")
        .map(|link| link.index);
    Some(Bridge {
        index: bridge.index,
        name: bridge.name.clone(),
        addresses,
        ports: ports.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: &str, controller: Option<u32>) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            kind: kind.into(),
            up: true,
            controller,
            ..Link::default()
        }
    }

    fn address(index: u32, ip: &str) -> AddressRow {
        AddressRow {
            index,
            ip: ip.parse().unwrap(),
            prefix: 24,
            link_scope: false,
            permanent: true,
            deprecated: false,
            temporary: false,
        }
    }

    fn own() -> Vec<IpNet> {
        ["10.244.1.0/24", "fd00:1::/64"]
            .map(|net| net.parse().unwrap())
            .into()
    }

    #[test]
    fn it_is_the_bridge_with_an_address_of_the_pods() {
        let links = [
            link(3, "bridge", None),
            link(4, "bridge", None),
            link(5, "veth", Some(4)),
            link(6, "veth", Some(3)),
            link(7, "", Some(4)),
            link(8, "veth", None),
            link(9, "vxlan", None),
        ];
        let addresses = [
            address(3, "172.17.0.1"),
            address(4, "10.244.1.1"),
            address(4, "fe80::1"),
            address(4, "fd00:1::1"),
            address(9, "10.244.1.0"),
        ];
        let bridge = choose(&links, &addresses, &own()).unwrap();
        assert_eq!((bridge.index, bridge.name.as_str()), (4, "if4"));
        assert_eq!(bridge.ports, BTreeSet::from([5]));
        let gateways = ["10.244.1.1", "fd00:1::1"].map(|ip| ip.parse().unwrap());
        assert_eq!(bridge.addresses, BTreeSet::from(gateways));
        assert_eq!(choose(&links, &addresses[..1], &own()), None);
        assert_eq!(choose(&links, &addresses, &[]), None);
    }

    #[test]
    fn of_several_it_is_the_one_with_more_networks_or_the_first() {
        let mut links = [link(3, "bridge", None), link(4, "bridge", None)];
        let mut addresses = vec![address(3, "10.244.1.1"), address(4, "10.244.1.2")];
        assert_eq!(choose(&links, &addresses, &own()).unwrap().index, 3);
        addresses.push(address(4, "fd00:1::1"));
        assert_eq!(choose(&links, &addresses, &own()).unwrap().index, 4);
        links[1].up = false;
        assert_eq!(choose(&links, &addresses, &own()).unwrap().index, 3);
    }
}
