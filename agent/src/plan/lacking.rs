//! Service ports that have no endpoint on this node which their policy would let it use.

use std::collections::{BTreeSet, HashMap};

use super::desired::Wanted;
use super::kind::Kind;
use crate::model::{Family, NamespacedName};

/// Counts by internal and external policy, for IPv4 and IPv6 each.
type Counts = [[usize; 2]; 2];

/// How many there are, kept up to date one Service at a time.
#[derive(Debug, Default)]
pub struct Lacking {
    total: Counts,
    /// Services that have any.
    of: HashMap<NamespacedName, Counts>,
}

impl Lacking {
    /// Sets what a Service has now.
    pub fn set(&mut self, service: &NamespacedName, wanted: &[Wanted]) {
        let ports: BTreeSet<(usize, usize, &str, _)> = wanted
            .iter()
            .filter(|wanted| wanted.lacks_local)
            .map(|wanted| {
                let policy = usize::from(wanted.kind != Kind::ClusterIp);
                let family = usize::from(wanted.port.family == Family::V6);
                (policy, family, &*wanted.port.port, wanted.port.protocol)
            })
            .collect();
        let mut now = Counts::default();
        for (policy, family, ..) in &ports {
            now[*policy][*family] += 1;
        }
        let before = if ports.is_empty() {
            self.of.remove(service)
        } else {
            self.of.insert(service.clone(), now)
        };
        let before = before.unwrap_or_default();
        for policy in 0..2 {
            for family in 0..2 {
                let total = &mut self.total[policy][family];
                *total = *total + now[policy][family] - before[policy][family];
            }
        }
    }

    /// Those of all Services.
    pub const fn counts(&self) -> Counts {
        self.total
    }
}
