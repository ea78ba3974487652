//! What is true of networks: rows of `tulle_direct_*`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use datapath_common::Network;
use ipnet::IpNet;

use super::facts::NodeFacts;
use crate::model::{Fault, Model, Node, Warning};

/// The flag that names networks as a ServiceCIDR does.
const FLAG: &str = "--service-cidr";

/// Networks that only Services have addresses from (KP-29): those of ServiceCIDRs
/// and of the command line, without those in which somebody else has an
/// address, for whom it would be cut off; and what is wrong with these.
pub(super) fn of_services(model: &Model, facts: &NodeFacts) -> (BTreeSet<IpNet>, Vec<Warning>) {
    let flag = facts.services.iter().map(|net| (None, net));
    let objects = model.service_cidrs();
    let listed = objects.flat_map(|object| object.cidrs.iter().map(move |net| (Some(object), net)));
    let (mut nets, mut warnings) = (BTreeSet::new(), Vec::new());
    for (object, net) in flag.chain(listed) {
        let net = net.trunc();
        let Some(other) = holds(&net, model, facts) else {
            nets.insert(net);
            continue;
        };
        let problem = format!("{net} holds {other}, so free addresses in it are not dropped");
        let mend = "give Services a network of their own, on every node the same";
        warnings.push(match object {
            None => Warning::new("", Fault::new(FLAG, problem, mend)),
            Some(object) => {
                let fault = Fault::new("spec.cidrs", problem, mend);
                Warning::new(format!("ServiceCIDR {}", object.name), fault)
            }
        });
    }
    (nets, warnings)
}

/// Who has an address in `net` that is no Service's.
fn holds(net: &IpNet, model: &Model, facts: &NodeFacts) -> Option<String> {
    let own = facts.node_ip4.map(IpAddr::V4).into_iter();
    let mut own = own.chain(facts.own_addresses.iter().copied());
    if let Some(addr) = own.find(|addr| net.contains(addr)) {
        return Some(format!("{addr}, an address of this node"));
    }
    let of = |node: &Node| {
        let overlaps = |pods: &&IpNet| net.contains(*pods) || pods.contains(net);
        let addresses = node.internal_ips.iter().chain(&node.external_ips);
        let mut addresses = addresses.filter(|addr| net.contains(*addr));
        let pods = node.pod_cidrs.iter().find(overlaps);
        let pods = pods.map(|pods| format!("{pods}, pods of Node {}", node.name));
        let address = || {
            let addr = addresses.next()?;
            Some(format!("{addr}, an address of Node {}", node.name))
        };
        pods.or_else(address)
    };
    model.nodes().find_map(of)
}

/// The rows: the longest network that holds an address says everything of it.
/// `direct` are those that pods reach without masquerade, `others` addresses that
/// another proxy serves (KP-01): these are nobody's business here.
pub(super) fn rows(
    direct: &BTreeSet<IpNet>,
    services: &BTreeSet<IpNet>,
    others: impl Iterator<Item = IpAddr>,
) -> BTreeMap<IpNet, u32> {
    let is_in = |nets: &BTreeSet<IpNet>, net: &IpNet| nets.iter().any(|outer| outer.contains(net));
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    let mut rows: BTreeMap<IpNet, u32> = direct
        .iter()
        .map(|net| {
            let service = bit(is_in(services, net), Network::SERVICES);
            (*net, Network::DIRECT | service)
        })
        .collect();
    for net in services {
        let direct = bit(is_in(direct, net), Network::DIRECT);
        rows.insert(*net, Network::SERVICES | direct);
    }
    for net in others.map(IpNet::from).filter(|net| is_in(services, net)) {
        rows.insert(net, bit(is_in(direct, &net), Network::DIRECT));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(nets: &[&str]) -> BTreeSet<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn the_longest_network_says_what_all_that_hold_it_say() {
        let direct = nets(&["10.0.0.0/8", "10.96.1.0/24", "192.0.2.0/24"]);
        let services = nets(&["10.96.0.0/12", "fd00:96::/112"]);
        let others = ["10.96.0.7", "172.16.0.1", "fd00:96::7"].map(|ip| ip.parse().unwrap());
        let rows = rows(&direct, &services, others.into_iter());
        let said: Vec<String> = rows
            .iter()
            .map(|(net, bits)| format!("{net} {bits}"))
            .collect();
        let (direct, service) = (Network::DIRECT, Network::SERVICES);
        let both = direct | service;
        assert_eq!(
            said,
            [
                format!("10.0.0.0/8 {direct}"),
                format!("10.96.0.0/12 {both}"),
                format!("10.96.0.7/32 {direct}"),
                format!("10.96.1.0/24 {both}"),
                format!("192.0.2.0/24 {direct}"),
                format!("fd00:96::/112 {service}"),
                "fd00:96::7/128 0".to_owned(),
            ]
        );
    }
}
