//! The objects as the server has told of them, and what of it the loop has not been told yet (pure).
//!
//! Changes of an object that come before the loop asks again are one (KP-130), those that end where
//! they began are none, and what the model does not read is no change (KP-131).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde_json::value::RawValue;

use super::addresses::Address;
use super::request::HeadMeta;
use crate::model::convert;
use crate::model::shared::shared;
use crate::model::{Fault, Kind, NamespacedName, Object, ObjectKey, Warning};
use crate::source::{Batch, Change, Trigger, decode};

/// Name and namespace of the Service that API servers are the endpoints of.
const API_SERVERS: (&str, &str) = ("default", "kubernetes");
/// Causes of a slice's change that are kept until the loop is told.
const MOST_CAUSES: usize = 16;

/// A list while it arrives: nothing of it counts before it is whole.
#[derive(Debug)]
pub struct Listing {
    kind: Kind,
    items: HashMap<ObjectKey, Item>,
}

/// An object, and what is wrong with it.
#[derive(Debug)]
struct Item {
    /// None if it cannot be used: it stays as it was.
    object: Option<Object>,
    faults: Vec<Fault>,
    /// What made it what it is.
    trigger: Option<Trigger>,
}

/// The objects.
#[derive(Debug)]
pub struct Book {
    objects: BTreeMap<Kind, HashMap<NamespacedName, Object>>,
    faults: BTreeMap<ObjectKey, Vec<Fault>>,
    /// What the loop knows of the objects that are different now.
    untold: BTreeMap<ObjectKey, Option<Object>>,
    /// What made those slices among them what they are, which the loop does not know yet.
    causes: BTreeMap<ObjectKey, Vec<Trigger>>,
    /// When the first of them was noticed.
    noticed: Option<(Instant, SystemTime)>,
    /// Kinds whose first list is awaited (KP-128).
    awaited: BTreeSet<Kind>,
    synced: bool,
    warnings: Arc<[Warning]>,
    has_other_warnings: bool,
    has_other_servers: bool,
}

impl Listing {
    /// An empty one.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            items: HashMap::new(),
        }
    }

    /// Takes an object in.
    pub fn add(&mut self, head: &HeadMeta, json: &RawValue) {
        let (key, item) = item(self.kind, head, json);
        self.items.insert(key, item);
    }

    /// A watch that begins with a list may tell of a removal in the midst of it.
    pub fn remove(&mut self, head: &HeadMeta) {
        self.items.remove(&key(self.kind, head));
    }
}

impl Book {
    /// Before the first list of these kinds.
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self {
            objects: BTreeMap::new(),
            faults: BTreeMap::new(),
            untold: BTreeMap::new(),
            causes: BTreeMap::new(),
            noticed: None,
            awaited: kinds.into_iter().collect(),
            synced: false,
            warnings: Arc::default(),
            has_other_warnings: false,
            has_other_servers: false,
        }
    }

    /// An object is new or different.
    pub fn apply(&mut self, kind: Kind, head: &HeadMeta, json: &RawValue) {
        let (key, item) = item(kind, head, json);
        self.put(key, item);
    }

    /// An object is gone.
    pub fn delete(&mut self, kind: Kind, head: &HeadMeta) {
        self.remove(key(kind, head));
    }

    /// A list is whole: what it does not hold is gone (KP-141).
    pub fn replace(&mut self, listing: Listing) {
        let Listing { kind, items } = listing;
        let named = |name: &NamespacedName| ObjectKey {
            kind,
            name: name.clone(),
        };
        let known = self.objects.get(&kind).into_iter().flat_map(HashMap::keys);
        let faulty = self.faults.keys().filter(|key| key.kind == kind).cloned();
        let all: HashSet<ObjectKey> = known.map(named).chain(faulty).collect();
        for key in all.into_iter().filter(|key| !items.contains_key(key)) {
            self.remove(key);
        }
        for (key, item) in items {
            self.put(key, item);
        }
        if self.awaited.remove(&kind) {
            self.note();
        }
    }

    /// Whether the first list of a kind is awaited.
    pub fn is_awaited(&self, kind: Kind) -> bool {
        self.awaited.contains(&kind)
    }

    /// There are no objects of a kind, and there is no list of them.
    pub fn without(&mut self, kind: Kind) {
        self.replace(Listing::new(kind));
    }

    /// Whether there is something to tell: never before every first list is whole.
    pub fn has_news(&self) -> bool {
        self.awaited.is_empty() && (self.noticed.is_some() || self.has_other_warnings)
    }

    /// What the loop does not know yet.
    pub fn take(&mut self) -> Option<Batch> {
        if !self.has_news() {
            return None;
        }
        let untold = std::mem::take(&mut self.untold);
        let (noticed, noticed_at) = self.noticed.take().unwrap_or_else(now);
        let mut causes = std::mem::take(&mut self.causes);
        let mut triggers = Vec::new();
        let mut changes = Vec::with_capacity(untold.len() + 1);
        for (key, told) in untold {
            match self.object(&key) {
                Some(object) if told.as_ref() != Some(object) => {
                    triggers.extend(causes.remove(&key).unwrap_or_default());
                    changes.push(Change::Apply(object.clone()));
                }
                None if told.is_some() => changes.push(Change::Delete(key)),
                Some(_) | None => {}
            }
        }
        if !std::mem::replace(&mut self.synced, true) {
            changes.push(Change::Synced);
        }
        if changes.is_empty() && !self.has_other_warnings {
            return None;
        }
        if std::mem::take(&mut self.has_other_warnings) {
            let warning = |(key, faults): (&ObjectKey, &Vec<Fault>)| {
                let key = key.clone();
                let faults = faults.clone().into_iter();
                faults
                    .map(move |fault| Warning::new(&key, fault))
                    .collect::<Vec<_>>()
            };
            self.warnings = self.faults.iter().flat_map(warning).collect();
        }
        Some(Batch {
            changes,
            triggers,
            warnings: Arc::clone(&self.warnings),
            noticed,
            noticed_at,
        })
    }

    /// Where API servers are, if that has changed.
    pub fn servers(&mut self) -> Option<Vec<Address>> {
        if !std::mem::take(&mut self.has_other_servers) {
            return None;
        }
        let slices = self.objects.get(&Kind::EndpointSlice)?.values();
        let slices = slices.filter(|object| is_of_api_servers(object));
        let mut servers = BTreeSet::new();
        for object in slices {
            let Object::Slice(slice) = object else {
                continue;
            };
            let port = slice.ports.iter().find(|port| port.name == "https");
            let port = port.or(slice.ports.first()).map(|port| port.port);
            servers.extend(slice.endpoints.iter().filter_map(|e| Some((e.addr, port?))));
        }
        let address = |(addr, port)| std::net::SocketAddr::new(addr, port).into();
        Some(servers.into_iter().map(address).collect())
    }

    /// Names of all objects of a kind, in no order.
    pub fn names(&self, kind: Kind) -> impl Iterator<Item = &NamespacedName> {
        self.objects.get(&kind).into_iter().flat_map(HashMap::keys)
    }

    fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(&key.kind)?.get(&key.name)
    }

    fn put(&mut self, key: ObjectKey, item: Item) {
        self.blame(&key, item.faults);
        let Some(object) = item.object else {
            return;
        };
        let of_kind = self.objects.entry(key.kind).or_default();
        let before = of_kind.get(&key.name);
        if before == Some(&object) {
            return;
        }
        self.has_other_servers |= is_of_api_servers(&object);
        let before = of_kind.insert(key.name.clone(), object);
        if let Some(trigger) = item.trigger {
            let causes = self.causes.entry(key.clone()).or_default();
            // More only come together while the loop cannot take any.
            if causes.len() < MOST_CAUSES {
                causes.push(trigger);
            }
        }
        self.untold.entry(key).or_insert(before);
        self.note();
    }

    fn remove(&mut self, key: ObjectKey) {
        self.blame(&key, Vec::new());
        let of_kind = self.objects.get_mut(&key.kind);
        let Some(before) = of_kind.and_then(|of_kind| of_kind.remove(&key.name)) else {
            return;
        };
        self.has_other_servers |= is_of_api_servers(&before);
        self.untold.entry(key).or_insert(Some(before));
        self.note();
    }

    fn blame(&mut self, key: &ObjectKey, faults: Vec<Fault>) {
        let before = self.faults.get(key).map_or(&[][..], Vec::as_slice);
        if before == faults {
            return;
        }
        self.has_other_warnings = true;
        if faults.is_empty() {
            self.faults.remove(key);
        } else {
            self.faults.insert(key.clone(), faults);
        }
    }

    fn note(&mut self) {
        self.noticed.get_or_insert_with(now);
    }
}

fn now() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

fn key(kind: Kind, head: &HeadMeta) -> ObjectKey {
    let namespace = if kind.is_cluster_wide() {
        ""
    } else {
        head.namespace.as_deref().unwrap_or("default")
    };
    let name = head.name.as_deref().unwrap_or_default();
    ObjectKey {
        kind,
        name: NamespacedName::new(shared(namespace), name),
    }
}

fn item(kind: Kind, head: &HeadMeta, json: &RawValue) -> (ObjectKey, Item) {
    match decode::object(kind, json) {
        Ok(converted) => {
            let annotations = head.annotations.as_ref();
            let cause = annotations.and_then(|a| convert::cause(a.last_change.as_deref()?));
            let item = Item {
                faults: converted.notes,
                trigger: Trigger::of(&converted.object, cause),
                object: Some(converted.object),
            };
            let key = item.object.as_ref().map(Object::key);
            (key.unwrap_or_else(|| self::key(kind, head)), item)
        }
        Err(fault) => {
            let item = Item {
                object: None,
                faults: vec![fault],
                trigger: None,
            };
            (key(kind, head), item)
        }
    }
}

fn is_of_api_servers(object: &Object) -> bool {
    let Object::Slice(slice) = object else {
        return false;
    };
    let (namespace, service) = API_SERVERS;
    // The slice that the servers write themselves: anybody's may have the label.
    *slice.name.namespace == *namespace
        && *slice.name.name == *service
        && slice.service.as_deref() == Some(service)
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
