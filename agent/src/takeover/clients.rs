//! Whose packets Tulle's programs meet: where the programs are, and where the way back leads.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use datapath_common::{Address, Config, Feature};
use ipnet::IpNet;

use super::conntrack::Entry;
use super::left::own_addresses;
use crate::net::{Netlink, ways_out};

/// Who a flow's client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A process of this node.
    Own,
    /// One whose packets Tulle's programs meet, and answer.
    Met,
    /// Another, as behind a second interface or a bridge of somebody else's.
    Passed,
}

/// All clients of a node.
#[derive(Debug, Default)]
pub struct Clients {
    own: BTreeSet<IpAddr>,
    /// Networks of this node's pods.
    pods: Vec<IpNet>,
    /// Indexes of the devices at which programs answer others.
    devices: BTreeSet<u32>,
    /// What was asked already: the device of the way to a client; none if there is no way.
    ways: HashMap<IpAddr, Option<u32>>,
}

impl Clients {
    /// As programs with this read-only data see them.
    pub fn of_agent(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            own: own_addresses()?,
            ..Self::met_by(config)
        })
    }

    fn met_by(config: &Config) -> Self {
        let four = IpNet::with_netmask(config.pod_net4.to_ip(), config.pod_mask4.to_ip());
        let six = IpNet::with_netmask(config.pod_net6.to_ip(), config.pod_mask6.to_ip());
        let outside = config.features & Feature::UPLINK_SERVICES != 0;
        let devices = [config.uplink, config.vtep].into_iter();
        Self {
            pods: [four, six].into_iter().flatten().collect(),
            devices: devices.filter(|index| outside && *index != 0).collect(),
            ..Self::default()
        }
    }

    /// Those that programs at these devices meet.
    pub fn behind(own: BTreeSet<IpAddr>, devices: BTreeSet<u32>) -> Self {
        Self {
            own,
            devices,
            ..Self::default()
        }
    }

    /// Asks the kernel for the ways to the clients of flows that are not known yet.
    pub async fn ask(&mut self, links: &Netlink, entries: &[Entry]) {
        let clients: BTreeSet<IpAddr> = entries
            .iter()
            .map(|entry| entry.original.src.ip())
            .collect();
        let unknown = clients.into_iter().filter(|ip| {
            !self.own.contains(ip) && !self.is_pod(*ip) && !self.ways.contains_key(ip)
        });
        let unknown: Vec<IpAddr> = unknown.collect();
        self.ways.extend(ways_out(links, &unknown).await);
    }

    /// Who an address is.
    pub fn of(&self, ip: IpAddr) -> Client {
        let way = self.ways.get(&ip).copied().flatten();
        if self.own.contains(&ip) {
            Client::Own
        } else if self.is_pod(ip) || way.is_some_and(|index| self.devices.contains(&index)) {
            Client::Met
        } else {
            Client::Passed
        }
    }

    fn is_pod(&self, ip: IpAddr) -> bool {
        self.pods.iter().any(|network| network.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath_common::Ip4;

    #[test]
    fn clients_are_met_by_where_the_way_back_leads() {
        let config = Config {
            pod_net4: Ip4::new([10, 244, 1, 0]),
            pod_mask4: Ip4::new([255, 255, 255, 0]),
            uplink: 2,
            vtep: 5,
            features: Feature::UPLINK_SERVICES,
            ..bytemuck::Zeroable::zeroed()
        };
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        let ways = HashMap::from([
            (at("198.51.100.1"), Some(2)),
            (at("10.244.2.7"), Some(5)),
            (at("172.17.0.2"), Some(7)),
            (at("203.0.113.9"), None),
        ]);
        let clients = |features| Clients {
            own: BTreeSet::from([at("192.0.2.1")]),
            ways: ways.clone(),
            ..Clients::met_by(&Config { features, ..config })
        };
        let of = |features, text| clients(features).of(at(text));
        for (text, with, without) in [
            ("192.0.2.1", Client::Own, Client::Own),
            ("10.244.1.9", Client::Met, Client::Met),
            ("198.51.100.1", Client::Met, Client::Passed),
            ("10.244.2.7", Client::Met, Client::Passed),
            ("172.17.0.2", Client::Passed, Client::Passed),
            ("203.0.113.9", Client::Passed, Client::Passed),
        ] {
            assert_eq!(of(Feature::UPLINK_SERVICES, text), with, "{text}");
            assert_eq!(of(0, text), without, "{text}");
        }
    }
}
