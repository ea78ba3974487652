//! What of this node decides which frontends it has (pure).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::args::{NodePortAddresses, ServiceArgs};
use crate::model::{Family, Node};
use crate::net::Uplink;
use crate::plan::Here;

/// From its Node, its uplink and the command line.
pub fn here(node: &Node, uplink: &Uplink, args: &ServiceArgs) -> Here {
    Here {
        node: node.name.clone(),
        zone: node.zone.clone(),
        node_port_addresses: node_port_addresses(node, uplink, &args.node_port_addresses),
        node_ips: node.addresses(),
        masquerade_all: args.masquerade_all,
        scheduler: args.scheduler,
        maglev_slots: args.maglev_slots,
        forwarding: args.forwarding,
    }
}

/// All addresses of the uplink.
pub fn addresses(uplink: &Uplink) -> impl Iterator<Item = IpAddr> {
    let v4 = uplink.addresses4.iter().map(|ip| IpAddr::V4(*ip));
    v4.chain(uplink.addresses6.iter().map(|ip| IpAddr::V6(*ip)))
}

/// The node's addresses that answer on node ports (KP-33). A family of which
/// none is asked for, or none is known, answers on all (KP-34).
fn node_port_addresses(node: &Node, uplink: &Uplink, asked: &NodePortAddresses) -> Vec<IpAddr> {
    let mut served = Vec::new();
    for family in [Family::V4, Family::V6] {
        let all = addresses(uplink).filter(|ip| Family::of(*ip) == family && is_served(*ip));
        match asked {
            NodePortAddresses::Primary => {
                let mut primary = node.addresses().into_iter();
                match primary.find(|ip| Family::of(*ip) == family) {
                    Some(ip) => served.push(ip),
                    None => served.extend(all),
                }
            }
            NodePortAddresses::Within(nets) => {
                let ours = |net: &&IpNet| Family::of(net.addr()) == family;
                let nets: Vec<&IpNet> = nets.iter().filter(ours).collect();
                let within = |ip: &IpAddr| nets.is_empty() || nets.iter().any(|n| n.contains(ip));
                served.extend(all.filter(within));
            }
        }
    }
    served.sort_unstable();
    served.dedup();
    served
}

/// Nobody is reached from elsewhere at the others (KP-35).
const fn is_served(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use datapath_common::Mac;

    use super::*;

    fn uplink() -> Uplink {
        Uplink {
            name: "eth0".into(),
            index: 3,
            mac: Mac::new([2, 0, 0, 0, 0, 9]),
            mtu: 1500,
            addresses4: vec![[192, 0, 2, 1].into(), [198, 51, 100, 1].into()],
            addresses6: vec!["fe80::1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            carrier: true,
            kind: String::new(),
            vlans: false,
        }
    }

    fn served(node: &Node, asked: &str) -> Vec<String> {
        let asked: NodePortAddresses = asked.parse().unwrap();
        let served = node_port_addresses(node, &uplink(), &asked);
        served.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn kp33_primary_is_the_nodes_first_address_of_each_family() {
        let mut node = Node::new("n0");
        node.internal_ips = vec![[198, 51, 100, 1].into(), [192, 0, 2, 1].into()];
        node.external_ips = vec!["2001:db8::9".parse().unwrap()];
        assert_eq!(served(&node, "primary"), ["198.51.100.1", "2001:db8::9"]);
    }

    #[test]
    fn kp34_a_family_without_any_answers_on_all() {
        let mut node = Node::new("n0");
        let all = ["192.0.2.1", "198.51.100.1", "2001:db8::1"];
        assert_eq!(served(&node, "primary"), all);
        node.internal_ips = vec![[192, 0, 2, 1].into()];
        assert_eq!(served(&node, "primary"), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(
            served(&node, "198.51.100.0/24"),
            ["198.51.100.1", "2001:db8::1"]
        );
        assert_eq!(served(&node, "10.0.0.0/8,fe80::/10"), [""; 0]);
        assert_eq!(served(&node, "0.0.0.0/0,::/0"), all);
    }
}
