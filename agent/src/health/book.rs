//! Which ports should be open and what they say, kept by the loop (pure).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::board::{Board, Probe};
use crate::model::{Exposure, Family, Model, NamespacedName, Service, ready_here};

/// The board, advanced by what changes.
#[derive(Debug, Default)]
pub struct Book {
    node: String,
    board: Board,
    /// Services that cannot be written, and since when; most have no port here.
    failing: BTreeMap<NamespacedName, Instant>,
}

impl Book {
    /// For the node of this name, without any port.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            ..Self::default()
        }
    }

    /// What to publish.
    pub const fn board(&self) -> &Board {
        &self.board
    }

    /// Looks at these Services again. Says whether one of their ports is different.
    pub fn look<'a>(
        &mut self,
        model: &Model,
        services: impl IntoIterator<Item = &'a NamespacedName>,
    ) -> bool {
        let mut changed = false;
        for name in services {
            let service = model.service(name);
            let mut probe = service.and_then(|service| probe(model, service, &self.node));
            if let Some(probe) = &mut probe {
                probe.failing = self.failing.get(name).copied();
            }
            changed |= self.put(name, probe);
        }
        changed
    }

    /// Sets which Services have a part that could not be written. Says whether
    /// the answer of one may become another.
    pub fn set_failing(&mut self, services: BTreeSet<NamespacedName>, now: Instant) -> bool {
        if services.is_empty() && self.failing.is_empty() {
            return false;
        }
        let before = std::mem::take(&mut self.failing);
        self.failing = services
            .into_iter()
            .map(|name| {
                let since = before.get(&name).copied().unwrap_or(now);
                (name, since)
            })
            .collect();
        let mut changed = false;
        for name in before.keys().chain(self.failing.keys()) {
            if let Some(probe) = self.board.probes.get_mut(name) {
                let failing = self.failing.get(name).copied();
                changed |= probe.failing != failing;
                probe.failing = failing;
            }
        }
        changed
    }

    /// Sets whether the programs serve clients outside. Says whether that is news.
    pub fn set_serving(&mut self, serves: bool, now: Instant) -> bool {
        if serves == self.board.failing.is_none() {
            return false;
        }
        self.board.failing = (!serves).then_some(now);
        true
    }

    /// Sets where to listen. Says whether that is news.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> bool {
        let changed = *self.board.addresses != *addresses;
        if changed {
            self.board.addresses = addresses.into();
        }
        changed
    }

    fn put(&mut self, name: &NamespacedName, probe: Option<Probe>) -> bool {
        let probes = &mut self.board.probes;
        match (probes.get_mut(name), probe) {
            (None, None) => false,
            (Some(_), None) => {
                probes.remove(name);
                true
            }
            (Some(have), Some(want)) => std::mem::replace(have, want) != want,
            (None, Some(want)) => {
                probes.insert(Arc::new(name.clone()), want);
                true
            }
        }
    }
}

/// The port of a Service, open whether or not it has endpoints or a VIP (KP-51).
fn probe(model: &Model, service: &Service, node: &str) -> Option<Probe> {
    if service.exposure != Exposure::Served {
        return None;
    }
    let port = service.health_port()?;
    let ready = |family| {
        let mut families = service.cluster_ips.iter().map(|ip| Family::of(*ip));
        let slices = model.slices_of(&service.name);
        families
            .any(|of| of == family)
            .then(|| ready_here(slices, family, node))
    };
    Some(Probe {
        port,
        ready4: ready(Family::V4),
        ready6: ready(Family::V6),
        failing: None,
    })
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
