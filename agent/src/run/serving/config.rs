//! The programs' read-only data: what it follows from, and other programs when it changes.

use std::time::Instant;

use datapath_common::{Config, Feature};

use super::{Serving, sentences};
use crate::net::device_name;
use crate::run::faults::Part;
use crate::run::here::here;
use crate::run::node::NodeView;
use crate::run::shared::Shared;

impl Serving {
    /// Takes in that Node, uplink, VTEP device or bridge changed: programs with other
    /// read-only data, if need be. Says whether anything is different, or to be.
    pub fn reconfigure(&mut self, shared: &mut Shared) -> bool {
        let view = NodeView::new(&self.node, &shared.uplink, &shared.args.overlay);
        shared.faults.set(Part::Node, view.notes.clone());
        let vtep = vtep(shared);
        let here = here(&self.node, &shared.uplink, &shared.args.services);
        let changed = view != self.view || vtep != self.vtep || here != *self.planner.here();
        self.view = view;
        self.vtep = vtep;
        self.planner.set_here(here);
        let config = self.config(shared);
        if config == *self.datapath.config() {
            return changed;
        }
        // Before the first plan no program may replace one: the maps may be empty.
        if !self.attached {
            return true;
        }
        match self.datapath.reconfigure(&config) {
            Ok(report) => {
                tracing::info!(
                    "programs replaced: node, uplink, VTEP device, bridge or networks of services changed"
                );
                self.tell_shortfall(shared, sentences(&report));
            }
            Err(error) => {
                shared.faults.set(Part::Programs, vec![error.to_string()]);
            }
        }
        true
    }

    /// Says what the programs lack, beside what `failed`.
    pub fn tell_shortfall(&self, shared: &mut Shared, mut failed: Vec<String>) {
        failed.extend(self.datapath.shortfall().map(str::to_owned));
        shared.faults.set(Part::Programs, failed);
    }

    /// Whether the programs have what this node is now.
    pub fn is_configured(&self, shared: &Shared) -> bool {
        self.config(shared) == *self.datapath.config()
    }

    fn config(&self, shared: &Shared) -> Config {
        let (view, networks) = (&self.view, self.service_networks);
        config(view, self.vtep, self.bridge, shared, networks)
    }

    /// Whether the VTEP device is another one than the programs know.
    pub fn has_other_vtep(&self, shared: &Shared) -> bool {
        vtep(shared) != self.vtep
    }

    /// Takes in which bridge pods are behind: the programs are to know it.
    pub(super) fn look_at_bridge(&mut self, shared: &mut Shared) {
        let found = self.found.bridge();
        let index = found.map_or(0, |bridge| bridge.index);
        if index == self.bridge {
            return;
        }
        if let Some(bridge) = found {
            tracing::info!("pods are behind the bridge {}", bridge.name);
        } else {
            tracing::info!("no pods are behind a bridge any more");
        }
        self.bridge = index;
        shared.paces.programs.ask_now(Instant::now());
    }
}

/// `service_networks`: there has been a ServiceCIDR.
pub(super) fn config(
    view: &NodeView,
    vtep: u32,
    bridge: u32,
    shared: &Shared,
    service_networks: bool,
) -> Config {
    let mut config = view.config(&shared.uplink, &shared.args, vtep, &shared.kernel);
    config.bridge = bridge;
    config.stripped_mac = shared.stripped_mac;
    let node = shared.args.services.uplink_services;
    shared.sockets.configure(&mut config, node);
    if service_networks {
        config.features |= Feature::SERVICE_NETWORKS;
    }
    config
}

/// Index of the VTEP device, 0 if there is none.
pub(super) fn vtep(shared: &Shared) -> u32 {
    let name = device_name(shared.args.overlay.vni);
    nix::net::if_::if_nametoindex(name.as_str()).unwrap_or(0)
}
