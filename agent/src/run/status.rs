//! Answers for the socket, assembled from what the loop knows (pure).

use std::sync::Arc;

use admin_api::{
    BackendServices, Feature, FrontendAddress, LinkAttachment, ObjectCounts, Overlay, Peer,
    Protocol, Service, Warning,
};
use datapath_common::{Hook, SocketHook};

use super::node::NodeView;
use super::sockets::SocketChoice;
use crate::args::OverlayArgs;
use crate::http::Health;
use crate::kernel::probe::Kernel;
use crate::kernel::{AttachKind, Cgroup, Place, XdpChoice, XdpMode, programs};
use crate::model::{self, Family, Model};
use crate::net::device_name;
use crate::plan::Planner;

/// Everything that the socket answers with.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Snapshot {
    /// What probes are told.
    pub health: Health,
    /// How the agent does.
    pub status: admin_api::Status,
    /// Whether names of things are known, which are made when somebody asks for them.
    pub has_names: bool,
}

/// Names behind numbers and addresses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// Service ports.
    pub services: Vec<Service>,
    /// Other nodes.
    pub peers: Vec<Peer>,
    /// Services by backend.
    pub backends: Vec<BackendServices>,
}

/// Warnings in the socket's words, put so only once: the loop tells of them after each event.
#[derive(Debug, Default)]
pub struct Warnings {
    of: Arc<[model::Warning]>,
    told: Arc<[Warning]>,
}

impl Warnings {
    /// The same slice for the same slice.
    pub fn told(&mut self, warnings: &Arc<[model::Warning]>) -> Arc<[Warning]> {
        if !Arc::ptr_eq(&self.of, warnings) {
            self.told = warnings.iter().map(warning).collect();
            self.of = Arc::clone(warnings);
        }
        Arc::clone(&self.told)
    }
}

/// A warning in the socket's words.
pub fn warning(warning: &model::Warning) -> Warning {
    let file = warning.file.as_ref().map(|file| file.display().to_string());
    Warning {
        file: file.unwrap_or_default(),
        object: warning.object.clone(),
        field: warning.field.clone(),
        message: format!("{}; {}", warning.problem, warning.mend),
    }
}

/// What was chosen, and why.
/// `node`: processes of the node have services.
pub fn features(
    kernel: &Kernel,
    sockets: &SocketChoice,
    node: bool,
    xdp: Option<&XdpChoice>,
) -> Vec<Feature> {
    let mut features: Vec<Feature> = kernel
        .features
        .iter()
        .map(|choice| Feature {
            name: choice.name.to_owned(),
            chosen: choice.chosen.to_owned(),
            why: choice.why.clone(),
        })
        .collect();
    let (chosen, why) = sockets.served(node);
    features.push(Feature {
        name: "services at sockets".to_owned(),
        chosen: chosen.to_owned(),
        why,
    });
    features.extend(xdp.map(|choice| Feature {
        name: "XDP at the uplink".to_owned(),
        chosen: xdp_mode(choice.mode).to_owned(),
        why: choice.why.clone(),
    }));
    features
}

/// A mode in a word.
pub const fn xdp_mode(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Off => "off",
    }
}

/// This node's part of the overlay.
pub fn overlay(view: &NodeView, args: &OverlayArgs) -> Overlay {
    Overlay {
        device: device_name(args.vni),
        mtu: u32::from(view.mtu),
        vni: args.vni,
        port: args.vxlan_port,
        address: Some(view.ip4),
        vtep_mac: Some(view.vtep_mac.to_string()),
    }
}

/// How many objects there are.
pub fn objects(model: &Model, local_pods: usize) -> ObjectCounts {
    let [services, slices, nodes] = model.sizes();
    ObjectCounts {
        services: services as u64,
        endpoint_slices: slices as u64,
        nodes: nodes as u64,
        local_pods: local_pods as u64,
    }
}

/// Where a program is attached, in words; `interface` names an index.
pub fn attachment(
    place: Place,
    attach: AttachKind,
    xdp: Option<&XdpChoice>,
    interface: impl Fn(u32) -> Option<String>,
) -> LinkAttachment {
    let mode = match (place.hook(), attach) {
        (Hook::Xdp, _) => match xdp.map(|choice| choice.mode) {
            Some(XdpMode::Generic) => "xdp-generic",
            _ => "xdp-native",
        },
        (_, AttachKind::Tcx) => "tcx",
        (_, AttachKind::Clsact) => "clsact",
    };
    LinkAttachment {
        program: programs::name(place.hook()).to_owned(),
        interface: interface(place.ifindex).unwrap_or_else(|| format!("#{}", place.ifindex)),
        mode: mode.to_owned(),
    }
}

/// A program at sockets that is attached, in words.
pub fn at_cgroup(hook: SocketHook, cgroup: Option<&Cgroup>) -> LinkAttachment {
    LinkAttachment {
        program: hook.program().to_owned(),
        interface: cgroup.map_or_else(String::new, |cgroup| cgroup.path().display().to_string()),
        mode: "cgroup".to_owned(),
    }
}

/// Names of all service ports, backends and nodes.
pub fn names(planner: &Planner) -> Names {
    let mut services = std::collections::BTreeMap::<u32, Service>::new();
    let mut backends = std::collections::BTreeMap::<(u8, u32), Vec<String>>::new();
    for (front, row) in planner.applied().frontends() {
        if front.is_address() {
            continue;
        }
        let Some(port) = planner.service_name(row.service) else {
            continue;
        };
        let family = family(port.family);
        let service = services.entry(row.service).or_insert_with(|| Service {
            number: row.service,
            namespace: port.service.namespace.to_string(),
            name: port.service.name.to_string(),
            port_name: port.port.clone(),
            family,
            frontends: Vec::new(),
        });
        service.frontends.push(FrontendAddress {
            address: (front.addr, front.port).into(),
            protocol: protocol(port.protocol),
        });
        for id in planner.applied().ids(row) {
            backends
                .entry((family, *id))
                .or_default()
                .push(service.full_name());
        }
    }
    for services in backends.values_mut() {
        services.sort_unstable();
        services.dedup();
    }
    Names {
        services: services.into_values().collect(),
        peers: planner
            .peers()
            .into_iter()
            .map(|peer| Peer {
                node: peer.name,
                address: peer.underlay.into(),
                pod_cidrs: peer.pod_cidrs.iter().map(ToString::to_string).collect(),
                vtep_mac: Some(peer.vtep_mac.to_string()),
            })
            .collect(),
        backends: backends
            .into_iter()
            .map(|((family, id), services)| BackendServices {
                family,
                id,
                services,
            })
            .collect(),
    }
}

const fn family(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

const fn protocol(protocol: model::Protocol) -> Protocol {
    match protocol {
        model::Protocol::Tcp => Protocol::Tcp,
        model::Protocol::Udp => Protocol::Udp,
        model::Protocol::Sctp => Protocol::Sctp,
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
