//! Objects by word of the test, past all rules of the API.

use serde_json::Value;

use crate::error::{Error, Result};

use super::ApiServer;
use super::kinds::Kind;
use super::object::{self, Name};
use super::store::Store;

/// Namespace of an object that names none, as `kubectl` has it.
const DEFAULT_NAMESPACE: &str = "default";

impl ApiServer {
    /// Makes or replaces an object, status included. Returns its version, which is the former
    /// one if nothing changes.
    pub fn apply(&self, object: Value) -> Result<u64> {
        let (kind, name) = place(&object)?;
        Ok(self.shared.store().put(kind, &name, object).version)
    }

    /// Makes or replaces many objects. A List stands for its items.
    pub fn apply_many(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        let mut placed = Vec::new();
        for object in objects.into_iter().flat_map(items) {
            let (kind, name) = place(&object)?;
            placed.push((kind, name, object));
        }
        let mut store = self.shared.store();
        for (kind, name, object) in placed {
            store.put(kind, &name, object);
        }
        Ok(())
    }

    /// Makes or replaces the objects of a manifest, as [`ApiServer::apply_many`].
    pub fn apply_yaml(&self, text: &str) -> Result<()> {
        self.apply_many(documents(text)?)
    }

    /// Removes an object; whether it was there. Kinds are named `Service` or `services`.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<bool> {
        let kind = named(kind)?;
        let name = at(kind, namespace, name);
        Ok(self.shared.store().remove(kind, &name).is_some())
    }

    /// An object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Result<Option<Value>> {
        let kind = named(kind)?;
        let name = at(kind, namespace, name);
        let store = self.shared.store();
        Ok(store.get(kind, &name).map(|object| object.value.clone()))
    }

    /// All objects of a kind, by namespace and name.
    pub fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let kind = named(kind)?;
        let objects = self.shared.store().snapshot(kind, None);
        let objects = objects.unwrap_or_default().into_iter();
        Ok(objects.map(|(_, object)| object.value.clone()).collect())
    }

    /// Changes an object that is there, as if it were written at once; `change` sees it with its
    /// status. Returns whether it was there.
    pub fn edit(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<bool> {
        let kind = named(kind)?;
        let name = at(kind, namespace, name);
        Ok(edit(&mut self.shared.store(), kind, &name, change))
    }
}

pub(super) fn edit(
    store: &mut Store,
    kind: &Kind,
    name: &Name,
    change: impl FnOnce(&mut Value),
) -> bool {
    let Some(mut value) = store.get(kind, name).map(|object| object.value.clone()) else {
        return false;
    };
    change(&mut value);
    store.put(kind, name, value);
    true
}

pub(super) fn named(kind: &str) -> Result<&'static Kind> {
    let unknown = || Error::Invalid(format!("the server has no kind {kind:?}; see KINDS"));
    Kind::named(kind).ok_or_else(unknown)
}

pub(super) fn at(kind: &Kind, namespace: &str, name: &str) -> Name {
    Name::new(if kind.namespaced { namespace } else { "" }, name)
}

/// The kind and place that an object says.
pub(super) fn place(object: &Value) -> Result<(&'static Kind, Name)> {
    let text = |field: &str| {
        object
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (version, kind) = (text("apiVersion"), text("kind"));
    let found = Kind::named(kind).filter(|k| k.kind == kind && k.api_version() == version);
    let Some(found) = found else {
        let what = format!("the server has no {version} {kind:?}; see KINDS");
        return Err(Error::Invalid(what));
    };
    let Some(name) = object::meta(object, "name").filter(|name| !name.is_empty()) else {
        let what = format!("{kind} without metadata.name: write one");
        return Err(Error::Invalid(what));
    };
    let namespace = object::meta(object, "namespace").filter(|ns| !ns.is_empty());
    Ok((
        found,
        at(found, namespace.unwrap_or(DEFAULT_NAMESPACE), name),
    ))
}

/// What a List holds, or the object itself.
pub(super) fn items(object: Value) -> Vec<Value> {
    let is_list = object.get("kind").and_then(Value::as_str) == Some("List");
    match object {
        Value::Object(mut map) if is_list => match map.remove("items") {
            Some(Value::Array(items)) => items.into_iter().flat_map(items_of).collect(),
            _ => Vec::new(),
        },
        other => vec![other],
    }
}

fn items_of(object: Value) -> Vec<Value> {
    items(object)
}

/// The documents of a YAML text; empty ones are none.
pub(super) fn documents(text: &str) -> Result<Vec<Value>> {
    let mut documents = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        let value = <Value as serde::Deserialize>::deserialize(document);
        let value = value.map_err(|error| Error::Invalid(format!("the manifest: {error}")))?;
        if !value.is_null() {
            documents.push(value);
        }
    }
    Ok(documents)
}
