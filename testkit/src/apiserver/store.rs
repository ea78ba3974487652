//! All objects, their versions, and what happened to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use super::kinds::{KINDS, Kind};
use super::object::{self, Name, Stored};

/// The first version; that of a real cluster is never small, either.
const FIRST: u64 = 1000;

/// Objects with one counter of versions over all kinds, and a bounded history.
#[derive(Debug)]
pub(super) struct Store {
    objects: Vec<BTreeMap<Name, Arc<Stored>>>,
    version: u64,
    history: VecDeque<Event>,
    /// The version up to which history is gone.
    compacted: u64,
    /// Most events that are kept.
    bound: usize,
    news: watch::Sender<u64>,
}

/// A change of an object.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) kind: usize,
    pub(super) version: u64,
    pub(super) name: Name,
    pub(super) before: Option<Arc<Stored>>,
    pub(super) after: Option<Arc<Stored>>,
}

/// The history of a version is gone: it begins after `oldest`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Compacted {
    pub(super) oldest: u64,
}

impl Store {
    pub(super) fn new(bound: usize) -> Self {
        Self {
            objects: KINDS.iter().map(|_| BTreeMap::new()).collect(),
            version: FIRST,
            history: VecDeque::new(),
            compacted: FIRST - 1,
            bound,
            news: watch::Sender::new(FIRST),
        }
    }

    /// The version of the last change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Up to which version history is gone.
    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Tells each new version.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    pub(super) fn get(&self, kind: &Kind, name: &Name) -> Option<&Arc<Stored>> {
        self.objects.get(kind.index())?.get(name)
    }

    /// Makes or replaces an object; one that differs in nothing stays at its version.
    pub(super) fn put(&mut self, kind: &Kind, name: &Name, mut value: Value) -> Arc<Stored> {
        let before = self.get(kind, name).cloned();
        object::complete(kind, name, &mut value, before.as_ref().map(|b| &b.value));
        if let Some(before) = &before
            && object::same(&before.value, &value)
        {
            return Arc::clone(before);
        }
        // What held it back from its removal is gone.
        let marked = object::meta(&value, "deletionTimestamp").is_some();
        if marked && !has_finalizers(&value) {
            return self.commit(kind, name, before, None);
        }
        self.commit(kind, name, before, Some(value))
    }

    /// Removes an object; returns its last state at the version of its removal. One with
    /// finalizers is only marked.
    pub(super) fn remove(&mut self, kind: &Kind, name: &Name) -> Option<Arc<Stored>> {
        let before = self.get(kind, name).cloned()?;
        if has_finalizers(&before.value) {
            if object::meta(&before.value, "deletionTimestamp").is_some() {
                return Some(before);
            }
            let mut marked = before.value.clone();
            let now = object::timestamp(std::time::SystemTime::now());
            object::metadata(&mut marked).insert("deletionTimestamp".into(), now.into());
            return Some(self.commit(kind, name, Some(before), Some(marked)));
        }
        Some(self.commit(kind, name, Some(before), None))
    }

    fn commit(
        &mut self,
        kind: &Kind,
        name: &Name,
        before: Option<Arc<Stored>>,
        value: Option<Value>,
    ) -> Arc<Stored> {
        self.version += 1;
        let version = self.version;
        let after = value.map(|value| Arc::new(Stored::new(value, version)));
        let objects = &mut self.objects[kind.index()];
        let answer = match (&after, &before) {
            (Some(after), _) => {
                objects.insert(name.clone(), Arc::clone(after));
                Arc::clone(after)
            }
            (None, before) => {
                objects.remove(name);
                let last = before.as_ref().map(|b| b.at(version));
                Arc::new(last.unwrap_or_else(|| Stored::new(Value::Null, version)))
            }
        };
        self.history.push_back(Event {
            kind: kind.index(),
            version,
            name: name.clone(),
            before,
            after,
        });
        self.trim();
        self.news.send_replace(version);
        answer
    }

    fn trim(&mut self) {
        while self.history.len() > self.bound {
            if let Some(gone) = self.history.pop_front() {
                self.compacted = gone.version;
            }
        }
    }

    /// Bounds the history anew.
    pub(super) fn set_bound(&mut self, bound: usize) {
        self.bound = bound;
        self.trim();
    }

    /// Forgets all history: who asks for an earlier version than the present one is too late.
    pub(super) fn compact(&mut self) {
        self.history.clear();
        self.compacted = self.version;
    }

    /// Lets versions go by in which nothing happened to any kind that the server has.
    pub(super) fn skip(&mut self, versions: u64) {
        self.version += versions;
        self.news.send_replace(self.version);
    }

    /// The objects of a kind as they were at a version, now if none is said, in their order.
    pub(super) fn snapshot(
        &self,
        kind: &Kind,
        at: Option<u64>,
    ) -> Result<Vec<(Name, Arc<Stored>)>, Compacted> {
        let now = &self.objects[kind.index()];
        let entries = |map: &BTreeMap<Name, Arc<Stored>>| {
            map.iter()
                .map(|(n, o)| (n.clone(), Arc::clone(o)))
                .collect()
        };
        let Some(at) = at.filter(|at| *at != self.version) else {
            return Ok(entries(now));
        };
        let mut then = now.clone();
        for event in self.after(at)?.rev().filter(|e| e.kind == kind.index()) {
            match &event.before {
                Some(before) => then.insert(event.name.clone(), Arc::clone(before)),
                None => then.remove(&event.name),
            };
        }
        Ok(entries(&then))
    }

    /// What happened to a kind after a version.
    pub(super) fn since(&self, kind: &Kind, version: u64) -> Result<Vec<Event>, Compacted> {
        let of_kind = |event: &&Event| event.kind == kind.index();
        Ok(self.after(version)?.filter(of_kind).cloned().collect())
    }

    fn after(
        &self,
        version: u64,
    ) -> Result<impl DoubleEndedIterator<Item = &Event> + use<'_>, Compacted> {
        if version < self.compacted {
            let oldest = self.compacted;
            return Err(Compacted { oldest });
        }
        let first = self.history.partition_point(|e| e.version <= version);
        Ok(self.history.range(first..))
    }
}

fn has_finalizers(value: &Value) -> bool {
    let finalizers = value.pointer("/metadata/finalizers");
    finalizers
        .and_then(Value::as_array)
        .is_some_and(|finalizers| !finalizers.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn put(store: &mut Store, name: &str, value: u64) -> u64 {
        let kind = Kind::named("Service").unwrap();
        let value = json!({"spec": {"n": value}});
        store.put(kind, &Name::new("default", name), value).version
    }

    #[test]
    fn a_snapshot_is_the_state_at_its_version() {
        let kind = Kind::named("Service").unwrap();
        let mut store = Store::new(100);
        put(&mut store, "a", 1);
        let at = put(&mut store, "b", 1);
        put(&mut store, "a", 2);
        put(&mut store, "c", 1);
        store.remove(kind, &Name::new("default", "b")).unwrap();
        let then = store.snapshot(kind, Some(at)).unwrap();
        let then: Vec<_> = then
            .iter()
            .map(|(n, o)| (n.name.as_str(), o.value["spec"]["n"].as_u64().unwrap()))
            .collect();
        assert_eq!(then, [("a", 1), ("b", 1)]);
        assert_eq!(store.snapshot(kind, None).unwrap().len(), 2);
    }

    #[test]
    fn history_is_bounded_and_what_is_equal_is_no_change() {
        let kind = Kind::named("Service").unwrap();
        let mut store = Store::new(2);
        let first = put(&mut store, "a", 1);
        assert_eq!(put(&mut store, "a", 1), first);
        for n in 2..5 {
            put(&mut store, "a", n);
        }
        let oldest = store.compacted();
        assert_eq!(store.since(kind, first).unwrap_err(), Compacted { oldest });
        assert_eq!(store.since(kind, oldest).unwrap().len(), 2);
        store.compact();
        assert!(store.since(kind, oldest).is_err());
        assert!(store.since(kind, store.version()).unwrap().is_empty());
    }
}
