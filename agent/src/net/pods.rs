//! Local pods, found in the kernel: every host route into one of our own pod
//! networks through an interface is a pod behind that interface.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use datapath_common::Mac;
use futures::{StreamExt, stream};
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::RouteType;

use super::bridge::{self, Bridge};
use super::link::{self, Link};
use super::netlink::{IN_FLIGHT, Netlink, NetlinkError};
use super::routes::{self, RouteRow, Which};
use super::rows;

/// A pod of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalPod {
    /// The pod's address.
    pub ip: IpAddr,
    /// Index of the host's end.
    pub ifindex: u32,
    /// Address of the host's end.
    pub host_mac: Mac,
    /// Address of the pod's end.
    pub pod_mac: Mac,
    /// MTU of the host's end, in bytes.
    pub mtu: u32,
    /// MTU of the pod's end, in bytes; none if it cannot be asked.
    pub pod_mtu: Option<u32>,
    /// The interface is a veth: only that takes `bpf_redirect_peer`.
    pub veth: bool,
}

impl LocalPod {
    /// MTU that the host's end should have on an overlay of this MTU, in bytes.
    /// Not below the pod's own: a veth drops what its receiving end is too
    /// small for, before any program could answer that it is too big.
    pub fn host_mtu(&self, overlay: u32) -> u32 {
        self.pod_mtu.map_or(overlay, |own| own.max(overlay))
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalPods {
    /// The pods, by address.
    pub pods: Vec<LocalPod>,
    /// Addresses that look like pods and cannot be used, and why.
    pub skipped: Vec<(IpAddr, String)>,
    /// The bridge that other pods are behind.
    pub bridge: Option<Bridge>,
}

impl LocalPods {
    /// Lists the pods whose addresses lie in `own` networks.
    pub async fn discover(netlink: &Netlink, own: &[IpNet]) -> Result<Self, NetlinkError> {
        let mut routes = routes::list(netlink, AddressFamily::Inet, Which::Main).await?;
        routes.append(&mut routes::list(netlink, AddressFamily::Inet6, Which::Main).await?);
        let links = link::all(netlink).await?;
        let addresses = rows::addresses(netlink, 0).await?;
        let bridge = bridge::choose(&links, &addresses, own);
        let local: HashSet<IpAddr> = addresses.iter().map(|row| row.ip).collect();
        let (candidates, mut skipped) = candidates(&routes, &links, &local, own);

        let ends = other_ends(netlink, &candidates).await?;
        let mut neighbours = Macs::new();
        if candidates.iter().any(|c| mac_of(&ends, c).is_none()) {
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                for row in rows::neighbours(netlink, family, 0).await? {
                    if let Some(mac) = row.mac.filter(|_| row.valid) {
                        neighbours.insert((row.index, row.ip), mac);
                    }
                }
            }
        }
        let mut pods = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            match candidate.finish(&ends, &neighbours) {
                Ok(pod) => pods.push(pod),
                Err(reason) => skipped.push((candidate.ip, reason)),
            }
        }
        pods.sort_unstable();
        skipped.sort_unstable();
        Ok(Self {
            pods,
            skipped,
            bridge,
        })
    }
}

/// A host route that leads to a pod.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    ip: IpAddr,
    link: &'a Link,
    host_mac: Mac,
}

/// The pods' ends by the index of the host's.
type Ends = HashMap<u32, Link>;
/// Neighbour entries by interface and address.
type Macs = HashMap<(u32, IpAddr), Mac>;

fn mac_of(ends: &Ends, candidate: &Candidate<'_>) -> Option<Mac> {
    ends.get(&candidate.link.index).and_then(|end| end.mac)
}

impl Candidate<'_> {
    fn finish(&self, ends: &Ends, neighbours: &Macs) -> Result<LocalPod, String> {
        let index = self.link.index;
        let pod_mac = mac_of(ends, self)
            .or_else(|| neighbours.get(&(index, self.ip)).copied())
            .ok_or_else(|| {
                format!(
                    "the MAC address behind {} is not known: its other end cannot be asked, and \
                     there is no neighbour entry yet",
                    self.link.name
                )
            })?;
        Ok(LocalPod {
            ip: self.ip,
            ifindex: index,
            host_mac: self.host_mac,
            pod_mac,
            mtu: self.link.mtu,
            pod_mtu: ends.get(&index).map(|end| end.mtu),
            veth: self.link.kind == "veth",
        })
    }
}

/// Routes to single hosts of our own networks, with the interface each goes
/// through. `local` are the node's own addresses, which have such routes too.
fn candidates<'a>(
    routes: &[RouteRow],
    links: &'a [Link],
    local: &HashSet<IpAddr>,
    own: &[IpNet],
) -> (Vec<Candidate<'a>>, Vec<(IpAddr, String)>) {
    let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.index, link)).collect();
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for row in routes {
        let ip = row.destination.addr();
        if row.destination != rows::host_net(ip)
            || row.kind != RouteType::Unicast
            || row.gateway.is_some()
            || local.contains(&ip)
            || !own.iter().any(|net| net.contains(&ip))
            || !seen.insert(ip)
        {
            continue;
        }
        let Some(&link) = row.index.and_then(|index| by_index.get(&index)) else {
            continue;
        };
        let skip = match (link.kind.as_str(), link.mac) {
            ("vxlan" | "bridge", _) => Some(format!(
                "its route goes through {}, a {} device, which is no pod's own interface",
                link.name, link.kind
            )),
            (_, None) => Some(format!("{} is not an Ethernet interface", link.name)),
            _ if !link.up => Some(format!("{} is down", link.name)),
            _ => None,
        };
        match (skip, link.mac) {
            (None, Some(host_mac)) => found.push(Candidate { ip, link, host_mac }),
            (reason, _) => skipped.push((ip, reason.unwrap_or_default())),
        }
    }
    (found, skipped)
}

/// Asks the kernel for the other end of each interface, in its namespace.
async fn other_ends(netlink: &Netlink, candidates: &[Candidate<'_>]) -> Result<Ends, NetlinkError> {
    let mut asked = HashSet::new();
    let ask = candidates.iter().map(|c| c.link);
    let ask: Vec<&Link> = ask.filter(|link| asked.insert(link.index)).collect();
    let mut ends = Ends::new();
    let mut answers = stream::iter(ask)
        .map(|link| async move { (link.index, other_end(netlink, link).await) })
        .buffer_unordered(IN_FLIGHT);
    while let Some((index, answer)) = answers.next().await {
        ends.extend(answer?.map(|end| (index, end)));
    }
    Ok(ends)
}

/// The other end of a veth, in its namespace; none if it cannot be asked.
async fn other_end(netlink: &Netlink, link: &Link) -> Result<Option<Link>, NetlinkError> {
    let Some(peer) = link.peer.filter(|_| link.kind == "veth") else {
        return Ok(None);
    };
    let mut request = link::get_by_index(peer);
    match link.peer_namespace {
        Some(namespace) if namespace >= 0 => {
            request.attributes.push(LinkAttribute::IfNetnsId(namespace));
        }
        Some(_) => return Ok(None),
        None => {}
    }
    let what = format!("look up the other end of {}", link.name);
    match link::one(netlink, &what, request).await {
        Err(NetlinkError::Refused { .. }) => Ok(None),
        answer => answer,
    }
}

/// Gives the host's end of a pod's interface this MTU in bytes, unless it has
/// it; whether it was changed.
pub async fn set_pod_mtu(netlink: &Netlink, ifindex: u32, mtu: u32) -> Result<bool, NetlinkError> {
    let what = format!("set the MTU of interface {ifindex} to {mtu}");
    let link = link::one(netlink, &what, link::get_by_index(ifindex)).await?;
    if link.is_some_and(|link| link.mtu == mtu) {
        return Ok(false);
    }
    netlink
        .execute(&what, link::set(ifindex, LinkAttribute::Mtu(mtu)), 0)
        .await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::route::RouteScope;

    fn route(destination: &str, index: u32) -> RouteRow {
        RouteRow {
            destination: destination.parse().unwrap(),
            kind: RouteType::Unicast,
            gateway: None,
            index: Some(index),
            source: None,
            protocol: 3,
            scope: RouteScope::Link,
            tos: 0,
            metric: 0,
            mtu: None,
            onlink: false,
            table: routes::MAIN,
        }
    }

    fn link(index: u32, kind: &str) -> Link {
        Link {
            index,
            name: format!("if{index}"),
            kind: kind.into(),
            mac: Some(Mac::new([2, 0, 0, 0, 0, index as u8])),
            mtu: 1500,
            up: true,
            ..Link::default()
        }
    }

    #[test]
    fn the_hosts_end_is_never_smaller_than_the_pods() {
        let at = |pod_mtu| {
            LocalPod {
                ip: [10, 244, 1, 5].into(),
                ifindex: 5,
                host_mac: Mac::new([2; 6]),
                pod_mac: Mac::new([4; 6]),
                mtu: 1500,
                pod_mtu,
                veth: true,
            }
            .host_mtu(1450)
        };
        assert_eq!(
            [None, Some(1400), Some(1450), Some(1500)].map(at),
            [1450, 1450, 1450, 1500]
        );
    }

    fn found(routes: &[RouteRow], links: &[Link]) -> (Vec<String>, Vec<String>) {
        let own: Vec<IpNet> = vec![
            "10.244.1.0/24".parse().unwrap(),
            "fd00:1::/64".parse().unwrap(),
        ];
        let local = HashSet::from(["fd00:1::1".parse().unwrap()]);
        let (candidates, skipped) = candidates(routes, links, &local, &own);
        (
            candidates.iter().map(|c| c.ip.to_string()).collect(),
            skipped.into_iter().map(|(_, why)| why).collect(),
        )
    }

    #[test]
    fn only_host_routes_into_our_networks_are_pods() {
        let mut through_gateway = route("10.244.1.9/32", 5);
        through_gateway.gateway = Some("10.0.0.1".parse().unwrap());
        let mut unreachable = route("10.244.1.8/32", 5);
        unreachable.kind = RouteType::Unreachable;
        let routes = [
            route("10.244.1.5/32", 5),
            route("fd00:1::5/128", 5),
            route("fd00:1::1/128", 5),
            route("10.244.2.5/32", 5),
            route("10.244.1.0/24", 5),
            route("10.244.1.7/32", 99),
            through_gateway,
            unreachable,
        ];
        let (pods, skipped) = found(&routes, &[link(5, "veth")]);
        assert_eq!(pods, ["10.244.1.5", "fd00:1::5"]);
        assert_eq!(skipped, [""; 0]);
    }

    #[test]
    fn an_interface_that_is_no_pods_is_skipped_with_a_reason() {
        let mut down = link(6, "veth");
        down.up = false;
        let mut tun = link(7, "tun");
        tun.mac = None;
        let routes = [
            route("10.244.1.5/32", 5),
            route("10.244.1.6/32", 6),
            route("10.244.1.7/32", 7),
        ];
        let (pods, skipped) = found(&routes, &[link(5, "bridge"), down, tun]);
        assert_eq!(pods, [""; 0]);
        assert_eq!(skipped.len(), 3);
        assert!(skipped[0].contains("a bridge device"));
        assert!(skipped[1].contains("is down"));
        assert!(skipped[2].contains("not an Ethernet"));
    }

    #[test]
    fn the_neighbour_entry_stands_in_for_the_other_end() {
        let link = link(5, "veth");
        let candidate = Candidate {
            ip: "10.244.1.5".parse().unwrap(),
            link: &link,
            host_mac: Mac::new([2; 6]),
        };
        let mut ends = Ends::new();
        let error = candidate.finish(&ends, &Macs::new()).unwrap_err();
        assert!(error.contains("behind if5 is not known"));
        let heard = Mac::new([4; 6]);
        let neighbours = Macs::from([((5, candidate.ip), heard)]);
        let pod = candidate.finish(&ends, &neighbours).unwrap();
        assert_eq!((pod.pod_mac, pod.pod_mtu), (heard, None));
        let asked = Mac::new([6; 6]);
        let end = Link {
            mac: Some(asked),
            mtu: 1400,
            ..Link::default()
        };
        ends.insert(5, end);
        let pod = candidate.finish(&ends, &neighbours).unwrap();
        assert_eq!((pod.pod_mac, pod.pod_mtu), (asked, Some(1400)));
    }
}
