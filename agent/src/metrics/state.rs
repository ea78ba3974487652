//! How things are now: gauges that the loop sets when something may be different.

use std::collections::BTreeMap;

use datapath_common::{FlowState, Hook, SocketHook, maps};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::proxy::{Label, of};
use crate::kernel::{Pass, programs};
use crate::model::{Family, Kind};
use crate::run::faults::{Faults, Part};

/// States of flows, with their names.
const STATES: [(FlowState, &str); 3] = [
    (FlowState::Opening, "opening"),
    (FlowState::Established, "established"),
    (FlowState::Closing, "closing"),
];

type Pair = [(&'static str, &'static str); 2];

/// The handles.
#[derive(Clone, Debug, Default)]
pub struct StateMetrics {
    ready: Gauge,
    faults: Labelled<Label, Gauge>,
    warnings: Gauge,
    objects: Labelled<Label, Gauge>,
    local_pods: Gauge,
    services: Gauge,
    frontends: Labelled<Label, Gauge>,
    backends: Labelled<Label, Gauge>,
    attachments: Labelled<Label, Gauge>,
    /// Told as rows of its map.
    slots: Gauge,
    flow_rows: Labelled<Pair, Gauge>,
    flows_removed: Counter,
    flow_walks: Counter,
}

/// Sizes of things.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// Objects that are known: Services, `EndpointSlices`, Nodes.
    pub objects: [usize; 3],
    /// Pods that the datapath delivers to.
    pub local_pods: usize,
    /// Services with a frontend.
    pub services: usize,
    /// Frontends of IPv4 and IPv6, with the rows that mark addresses.
    pub frontends: [usize; 2],
    /// Backends of IPv4 and IPv6, with those that drain.
    pub backends: [usize; 2],
    /// Slots that frontends have, or had a moment ago.
    pub slots: u32,
    /// Warnings about objects.
    pub warnings: usize,
}

impl StateMetrics {
    /// Sets whether the datapath serves.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// Sets what does not work.
    pub fn set_faults(&self, faults: &Faults) {
        for part in Part::ALL {
            let gauge = self.faults.get_or_create(&[("part", part.label())]);
            gauge.set(i64::from(faults.has(part)));
        }
    }

    /// Sets sizes.
    pub fn set_sizes(&self, sizes: &Sizes) {
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node];
        for (kind, count) in kinds.into_iter().zip(sizes.objects) {
            let gauge = self.objects.get_or_create(&[("kind", kind.name())]);
            gauge.set(int(count));
        }
        self.local_pods.set(int(sizes.local_pods));
        self.slots.set(i64::from(sizes.slots));
        self.services.set(int(sizes.services));
        self.warnings.set(int(sizes.warnings));
        for (metric, counts) in [
            (&self.frontends, sizes.frontends),
            (&self.backends, sizes.backends),
        ] {
            for (family, count) in [Family::V4, Family::V6].into_iter().zip(counts) {
                metric.get_or_create(&of(family)).set(int(count));
            }
        }
    }

    /// Sets how often each program is attached: names of programs, with repetitions.
    pub fn set_attachments<'a>(&self, attached: impl Iterator<Item = &'a str>) {
        let mut counts = BTreeMap::<&str, usize>::new();
        for program in attached {
            *counts.entry(program).or_default() += 1;
        }
        let hooks = Hook::ALL.into_iter().map(programs::name);
        let sockets = SocketHook::ALL.into_iter().map(SocketHook::program);
        for program in hooks.chain(sockets) {
            let gauge = self.attachments.get_or_create(&[("program", program)]);
            gauge.set(int(counts.get(program).copied().unwrap_or(0)));
        }
    }

    /// Takes in what a walk over the flow tables saw.
    pub fn walked(&self, pass: &Pass) {
        self.flow_walks.inc();
        self.flows_removed.inc_by(pass.removed);
        for (family, version) in [(Family::V4, 4), (Family::V6, 6)] {
            for (state, name) in STATES {
                let rows = pass.rows.get(&(version, state as u8)).copied();
                let labels = [("ip_family", family.name()), ("state", name)];
                let gauge = self.flow_rows.get_or_create(&labels);
                gauge.set(i64::try_from(rows.unwrap_or(0)).unwrap_or(i64::MAX));
            }
        }
    }

    /// Rows of the maps that are too large to be counted for it, where the loop knows them: of flow
    /// tables after the first walk.
    pub fn known_rows(&self) -> Vec<(&'static str, u64)> {
        let count = |gauge: i64| u64::try_from(gauge).unwrap_or(0);
        let mut rows = vec![(maps::SEGMENTS, count(self.slots.get()))];
        for (family, back, flow) in [
            (Family::V4, maps::BACK_V4, maps::FLOW_V4),
            (Family::V6, maps::BACK_V6, maps::FLOW_V6),
        ] {
            let backends = self
                .backends
                .get(&of(family))
                .map_or(0, |gauge| gauge.get());
            rows.push((back, count(backends)));
            if self.flow_walks.get() > 0 {
                let flows = STATES.map(|(_, state)| {
                    let labels = [("ip_family", family.name()), ("state", state)];
                    self.flow_rows.get(&labels).map_or(0, |gauge| gauge.get())
                });
                rows.push((flow, flows.into_iter().map(count).sum()));
            }
        }
        rows
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "tulle_ready",
            "1 once the datapath serves",
            self.ready.clone(),
        );
        registry.register(
            "tulle_faults",
            "1 while a part does not work",
            self.faults.clone(),
        );
        registry.register(
            "tulle_object_warnings",
            "What is wrong with objects",
            self.warnings.clone(),
        );
        registry.register(
            "tulle_objects",
            "Objects that are known",
            self.objects.clone(),
        );
        registry.register(
            "tulle_local_pods",
            "Pods of this node that the datapath delivers to",
            self.local_pods.clone(),
        );
        registry.register(
            "tulle_services",
            "Services with a frontend on this node",
            self.services.clone(),
        );
        registry.register(
            "tulle_frontends",
            "Rows of frontends, with those that mark addresses of services",
            self.frontends.clone(),
        );
        registry.register(
            "tulle_backends",
            "Rows of backends, with those that drain",
            self.backends.clone(),
        );
        registry.register(
            "tulle_attachments",
            "Places that a program is attached to",
            self.attachments.clone(),
        );
        registry.register(
            "tulle_flow_rows",
            "Living rows of the flow tables at the end of the last walk, two for each flow",
            self.flow_rows.clone(),
        );
        registry.register(
            "tulle_flow_rows_removed",
            "Expired rows that walks removed",
            self.flows_removed.clone(),
        );
        registry.register(
            "tulle_flow_walks",
            "Walks over the flow tables",
            self.flow_walks.clone(),
        );
    }
}

fn int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
