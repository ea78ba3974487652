//! The objects of the cluster and who depends on whom.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::pod::{self, Pod};
use super::{
    EndpointSlice, Exposure, Kind, NamespacedName, Node, Object, ObjectKey, Service, ServiceCidr,
};
use crate::source::Change;

/// What has to be compiled anew.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Dirty {
    /// Services whose frontends or endpoints may have changed, and Pods whose
    /// host ports may have, as [`Pod::owner`].
    pub services: BTreeSet<NamespacedName>,
    /// A Node changed.
    pub nodes: bool,
    /// A ServiceCIDR changed, or a ClusterIP that another proxy serves.
    pub networks: bool,
}

/// The cluster as this node knows it.
#[derive(Debug, Default)]
pub struct Model {
    services: HashMap<NamespacedName, Arc<Service>>,
    slices: HashMap<NamespacedName, Arc<EndpointSlice>>,
    /// Service → its slices by name, also while the Service itself is unknown (KP-11).
    slices_of: HashMap<NamespacedName, Vec<NamespacedName>>,
    nodes: BTreeMap<String, Arc<Node>>,
    /// Pods with host ports by [`Pod::owner`]; no other Pod decides anything.
    pods: HashMap<NamespacedName, Arc<Pod>>,
    service_cidrs: BTreeMap<String, Arc<ServiceCidr>>,
    /// ClusterIPs of Services that another proxy serves (KP-01).
    elsewhere: BTreeMap<NamespacedName, Vec<IpAddr>>,
    synced: bool,
}

impl Model {
    /// Takes one change in and adds what depends on it to `dirty`.
    pub fn apply(&mut self, change: Change, dirty: &mut Dirty) {
        match change {
            Change::Apply(Object::Service(service)) => self.put_service(service, dirty),
            Change::Apply(Object::Slice(slice)) => self.put_slice(slice, dirty),
            Change::Apply(Object::Node(node)) => {
                dirty.nodes = true;
                self.nodes.insert(node.name.clone(), node);
            }
            Change::Apply(Object::Pod(pod)) => self.put_pod(pod, dirty),
            Change::Apply(Object::ServiceCidr(object)) => {
                dirty.networks = true;
                self.service_cidrs.insert(object.name.clone(), object);
            }
            Change::Delete(key) => self.delete(&key, dirty),
            Change::Synced => self.synced = true,
        }
    }

    /// Whether the first full list has been read: nothing is pruned before (KP-128).
    pub const fn is_synced(&self) -> bool {
        self.synced
    }

    /// A Service.
    pub fn service(&self, name: &NamespacedName) -> Option<&Service> {
        self.services.get(name).map(AsRef::as_ref)
    }

    /// All Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(AsRef::as_ref)
    }

    /// The Pod with host ports of which `owner` is the [`Pod::owner`].
    pub fn pod(&self, owner: &NamespacedName) -> Option<&Pod> {
        self.pods.get(owner).map(AsRef::as_ref)
    }

    /// All that may have frontends, in no order: Services by name, and Pods
    /// with host ports by [`Pod::owner`].
    pub fn owners(&self) -> impl Iterator<Item = &NamespacedName> {
        self.services.keys().chain(self.pods.keys())
    }

    /// The slices of a Service, by name.
    pub fn slices_of(&self, service: &NamespacedName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|name| self.slices.get(name))
            .map(AsRef::as_ref)
    }

    /// A Node.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).map(AsRef::as_ref)
    }

    /// All Nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(AsRef::as_ref)
    }

    /// All ServiceCIDRs, by name.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &ServiceCidr> {
        self.service_cidrs.values().map(AsRef::as_ref)
    }

    /// ClusterIPs of Services that another proxy serves.
    pub fn cluster_ips_elsewhere(&self) -> impl Iterator<Item = IpAddr> {
        self.elsewhere.values().flatten().copied()
    }

    /// Numbers of Services, `EndpointSlices` and Nodes.
    pub fn sizes(&self) -> [usize; 3] {
        [self.services.len(), self.slices.len(), self.nodes.len()]
    }

    fn put_service(&mut self, service: Arc<Service>, dirty: &mut Dirty) {
        let name = service.name.clone();
        let other = service.exposure == Exposure::OtherProxy && !service.cluster_ips.is_empty();
        let now = other.then(|| service.cluster_ips.clone());
        dirty.networks |= self.elsewhere.get(&name) != now.as_ref();
        match now {
            Some(now) => self.elsewhere.insert(name.clone(), now),
            None => self.elsewhere.remove(&name),
        };
        dirty.services.insert(name.clone());
        self.services.insert(name, service);
    }

    fn put_pod(&mut self, pod: Arc<Pod>, dirty: &mut Dirty) {
        let owner = pod.owner();
        let has = !pod.host_ports.is_empty();
        let had = if has {
            self.pods.insert(owner.clone(), pod).is_some()
        } else {
            self.pods.remove(&owner).is_some()
        };
        if has || had {
            dirty.services.insert(owner);
        }
    }

    fn put_slice(&mut self, slice: Arc<EndpointSlice>, dirty: &mut Dirty) {
        let name = slice.name.clone();
        self.forget_slice(&name, dirty);
        if let Some(service) = service_of(&slice) {
            let names = self.slices_of.entry(service.clone()).or_default();
            if let Err(at) = names.binary_search(&name) {
                names.reserve_exact(1);
                names.insert(at, name.clone());
            }
            dirty.services.insert(service);
        }
        self.slices.insert(name, slice);
    }

    /// Unlinks a slice, also from the Service that it no longer names.
    fn forget_slice(&mut self, name: &NamespacedName, dirty: &mut Dirty) {
        let Some(service) = self.slices.remove(name).as_deref().and_then(service_of) else {
            return;
        };
        if let Some(names) = self.slices_of.get_mut(&service) {
            if let Ok(at) = names.binary_search(name) {
                names.remove(at);
            }
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        dirty.services.insert(service);
    }

    fn delete(&mut self, key: &ObjectKey, dirty: &mut Dirty) {
        match key.kind {
            Kind::Service => {
                if self.services.remove(&key.name).is_some() {
                    dirty.services.insert(key.name.clone());
                }
                dirty.networks |= self.elsewhere.remove(&key.name).is_some();
            }
            Kind::EndpointSlice => self.forget_slice(&key.name, dirty),
            Kind::Node => dirty.nodes |= self.nodes.remove(&*key.name.name).is_some(),
            Kind::ServiceCidr => {
                dirty.networks |= self.service_cidrs.remove(&*key.name.name).is_some();
            }
            Kind::Pod => {
                let owner = pod::owner(&key.name);
                if self.pods.remove(&owner).is_some() {
                    dirty.services.insert(owner);
                }
            }
        }
    }
}

/// The Service that a slice feeds, by label and in its own namespace (KP-08).
fn service_of(slice: &EndpointSlice) -> Option<NamespacedName> {
    let service = slice.service.clone()?;
    Some(NamespacedName::new(
        Arc::clone(&slice.name.namespace),
        service,
    ))
}
