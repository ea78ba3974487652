//! What was found in the kernel last (pure): a look that fails takes nothing away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::node::{NodeView, usable_hop};
use crate::net::{Bridge, LocalPod, LocalPods, NetlinkError, NextHop, NextHopError, Uplink};
use crate::plan::NodeFacts;

/// Local pods and next hops, each as it was when the kernel last said.
#[derive(Debug)]
pub struct Found {
    /// Nothing until the first look succeeds: no pods known is not "no pods".
    pods: Option<LocalPods>,
    /// Index of the uplink that the hops are on.
    uplink: u32,
    hops: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

impl Found {
    /// Before the first look; `hops` are those of a former agent's rows.
    pub const fn new(uplink: u32, hops: BTreeMap<Ipv4Addr, Ipv4Addr>) -> Self {
        Self {
            pods: None,
            uplink,
            hops,
        }
    }

    /// Takes in a look at the pods. Gives the addresses that are newly left to the kernel, and why.
    ///
    /// # Errors
    ///
    /// That of the look; what is known stays.
    pub fn take_pods(
        &mut self,
        look: Result<LocalPods, NetlinkError>,
    ) -> Result<Vec<(IpAddr, String)>, NetlinkError> {
        let look = look?;
        let known = self.pods.as_ref().map_or(&[][..], |pods| &pods.skipped);
        let news = look.skipped.iter().filter(|skip| !known.contains(skip));
        let news = news.cloned().collect();
        self.pods = Some(look);
        Ok(news)
    }

    /// Takes in the routes to all other nodes. Gives what went wrong; a node
    /// whose route could not be asked for keeps its last hop on this uplink.
    pub fn take_hops(
        &mut self,
        uplink: u32,
        looks: Vec<(Ipv4Addr, Result<NextHop, NextHopError>)>,
    ) -> Vec<String> {
        let mut last = std::mem::take(&mut self.hops);
        if self.uplink != uplink {
            last.clear();
            self.uplink = uplink;
        }
        let mut failed = Vec::new();
        for (node, look) in looks {
            let hop = match look {
                Ok(hop) => {
                    let usable = usable_hop(&hop, uplink);
                    if usable.is_none() {
                        tracing::debug!(?hop, "node {node} is left to the kernel's routing");
                    }
                    usable
                }
                Err(error) => {
                    failed.push(error.to_string());
                    last.remove(&node).filter(|_| !error.is_answer())
                }
            };
            self.hops.extend(hop.map(|hop| (node, hop)));
        }
        failed
    }

    /// Whether the pods are known.
    pub const fn is_known(&self) -> bool {
        self.pods.is_some()
    }

    /// The pods; none while they are not known.
    pub fn pods(&self) -> &[LocalPod] {
        self.pods.as_ref().map_or(&[], |found| &found.pods)
    }

    /// The bridge that other pods are behind.
    pub fn bridge(&self) -> Option<&Bridge> {
        self.pods.as_ref()?.bridge.as_ref()
    }

    /// The host's ends of pods' links: those of point-to-point links, and the ports of
    /// the bridge if it is the one that the programs know.
    pub fn host_ends(&self, known: u32) -> BTreeSet<u32> {
        let pods = self.pods().iter().filter(|pod| pod.veth);
        let bridge = self.bridge().filter(|bridge| bridge.index == known);
        let ports = bridge.iter().flat_map(|bridge| &bridge.ports).copied();
        pods.map(|pod| pod.ifindex).chain(ports).collect()
    }

    /// The plan's facts, once the pods are known.
    pub fn facts(&self, view: &NodeView, name: &str, uplink: &Uplink) -> Option<NodeFacts> {
        let pods = self.pods.as_ref()?;
        let mut facts = view.facts(name, uplink, &pods.pods, &self.hops);
        let gateways = pods.bridge.iter().flat_map(|bridge| &bridge.addresses);
        facts.own_addresses.extend(gateways);
        Some(facts)
    }
}

#[cfg(test)]
#[path = "found_tests.rs"]
mod tests;
