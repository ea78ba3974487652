//! `create`, `update`, `patch` and `delete`.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::kinds::Kind;
use super::object::{self, Name};
use super::patch::{self, Format};
use super::read::{missing, target_name};
use super::reply::Reply;
use super::request::Target;
use super::shared::Shared;
use super::status::Failure;
use super::store::Store;
use super::validate;

/// The body of a request with its type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'a> {
    pub(super) content_type: &'a str,
    pub(super) body: &'a [u8],
}

impl Sent<'_> {
    fn object(&self) -> Result<Value, Failure> {
        let name = self
            .content_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let bad = |e: &dyn std::fmt::Display| Failure::new(400, format!("the body: {e}"));
        let value: Value = match name {
            "" | "application/json" => serde_json::from_slice(self.body).map_err(|e| bad(&e))?,
            "application/yaml" => serde_norway::from_slice(self.body).map_err(|e| bad(&e))?,
            other => {
                let message =
                    format!("the body of the request was in an unknown format: {other:?}");
                return Err(Failure::new(415, message));
            }
        };
        if value.is_object() {
            return Ok(value);
        }
        Err(bad(&"is no object"))
    }
}

pub(super) fn create(shared: &Shared, target: &Target, sent: Sent) -> Result<Reply, Failure> {
    let mut value = sent.object()?;
    if object::meta(&value, "name").is_none_or(str::is_empty)
        && let Some(prefix) = object::meta(&value, "generateName")
    {
        let name = object::generated(prefix);
        object::metadata(&mut value).insert("name".into(), name.into());
    }
    let name = object::meta(&value, "name").unwrap_or_default().to_owned();
    let name = check(target, &value, &name)?;
    let mut store = shared.store();
    if store.get(target.kind, &name).is_some() {
        let message = format!("{} {:?} already exists", target.kind.plural, name.name);
        return Err(Failure::new(409, message).reason("AlreadyExists"));
    }
    Ok(commit(
        &mut store,
        target,
        &name,
        value,
        StatusCode::CREATED,
    ))
}

pub(super) fn update(shared: &Shared, target: &Target, sent: Sent) -> Result<Reply, Failure> {
    let value = sent.object()?;
    let name = target_name(target)?;
    check(target, &value, &name.name)?;
    let mut store = shared.store();
    let live = store.get(target.kind, &name);
    let live = live.ok_or_else(|| missing(target, &name))?.value.clone();
    fresh(target, &live, &value)?;
    let value = part(target, &live, value);
    Ok(commit(&mut store, target, &name, value, StatusCode::OK))
}

pub(super) fn patch(shared: &Shared, target: &Target, sent: Sent) -> Result<Reply, Failure> {
    let format = Format::of(sent.content_type)?;
    let name = target_name(target)?;
    if format == Format::Apply && target.query.text("fieldManager").is_empty() {
        let message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
        return Err(Failure::new(422, message));
    }
    let mut store = shared.store();
    let live = store.get(target.kind, &name).map(|live| live.value.clone());
    let (live, status) = match live {
        Some(live) => (live, StatusCode::OK),
        None if format == Format::Apply => (json!({}), StatusCode::CREATED),
        None => return Err(missing(target, &name)),
    };
    let mut value = live.clone();
    patch::apply(format, &mut value, sent.body)?;
    check(target, &value, &name.name)?;
    fresh(target, &live, &value)?;
    let value = part(target, &live, value);
    Ok(commit(&mut store, target, &name, value, status))
}

pub(super) fn delete(shared: &Shared, target: &Target, sent: Sent) -> Result<Reply, Failure> {
    let name = target_name(target)?;
    let mut store = shared.store();
    let live = store.get(target.kind, &name);
    let live = live.ok_or_else(|| missing(target, &name))?;
    if !sent.body.is_empty() {
        let options = sent.object()?;
        for (field, path) in [
            ("uid", "/metadata/uid"),
            ("resourceVersion", "/metadata/resourceVersion"),
        ] {
            let wanted = options.pointer("/preconditions").and_then(|p| p.get(field));
            if wanted.is_some_and(|wanted| live.value.pointer(path) != Some(wanted)) {
                let message = format!("Precondition failed: {field} of {:?} is another", name.name);
                return Err(Failure::new(409, message));
            }
        }
    }
    let uid = object::meta(&live.value, "uid")
        .unwrap_or_default()
        .to_owned();
    if target.query.text("dryRun") != "All" {
        store.remove(target.kind, &name);
    }
    Ok(Reply::json(
        StatusCode::OK,
        &success(target.kind, &name.name, &uid),
    ))
}

/// Removes every object of a collection.
pub(super) fn delete_all(shared: &Shared, target: &Target) -> Result<Reply, Failure> {
    let query = &target.query;
    let (labels, fields) = (query.text("labelSelector"), query.text("fieldSelector"));
    let selector = super::selector::Selector::parse(target.kind, labels, fields)?;
    let mut store = shared.store();
    let objects = store.snapshot(target.kind, None).unwrap_or_default();
    for (name, object) in objects {
        let here = target
            .namespace
            .as_ref()
            .is_none_or(|ns| *ns == name.namespace);
        if here && selector.matches(&object.value) {
            store.remove(target.kind, &name);
        }
    }
    Ok(Reply::json(StatusCode::OK, &success(target.kind, "", "")))
}

fn success(kind: &Kind, name: &str, uid: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": name, "group": kind.group, "kind": kind.plural, "uid": uid},
    })
}

/// Checks that an object is what the path says; returns its place.
fn check(target: &Target, value: &Value, name: &str) -> Result<Name, Failure> {
    let kind = target.kind;
    for (field, wanted) in [
        ("kind", kind.kind.to_owned()),
        ("apiVersion", kind.api_version()),
    ] {
        if let Some(found) = value.get(field)
            && found.as_str() != Some(&wanted)
        {
            let message =
                format!("{field} {found} in the body does not match the expected {wanted:?}");
            return Err(Failure::new(400, message));
        }
    }
    let inner = object::meta(value, "name");
    if inner.is_some_and(|inner| inner != name) {
        let message = format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            inner.unwrap_or_default()
        );
        return Err(Failure::new(400, message));
    }
    let namespace = target.namespace.as_deref().unwrap_or_default();
    if kind.namespaced
        && object::meta(value, "namespace").is_some_and(|ns| !ns.is_empty() && ns != namespace)
    {
        let message =
            "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Failure::new(400, message));
    }
    if kind.namespaced == namespace.is_empty() {
        return Err(Failure::new(
            400,
            "an object of a namespace needs a namespace in the path",
        ));
    }
    validate::object(kind, namespace, name, value)?;
    Ok(Name::new(namespace, name))
}

/// Refuses a change of an older version than the live one.
fn fresh(target: &Target, live: &Value, value: &Value) -> Result<(), Failure> {
    let version = |value: &Value| object::meta(value, "resourceVersion").map(str::to_owned);
    match version(value) {
        Some(wanted) if version(live).is_some_and(|live| live != wanted) => {
            let message = format!(
                "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply your changes to the latest version and try again",
                target.kind.plural,
                object::meta(live, "name").unwrap_or_default()
            );
            Err(Failure::new(409, message))
        }
        _ => Ok(()),
    }
}

/// Status is written by its subresource, and all else by the resource itself.
fn part(target: &Target, live: &Value, mut value: Value) -> Value {
    match target.subresource.as_deref() {
        Some("status") => {
            let mut changed = live.clone();
            changed["status"] = value["status"].take();
            changed
        }
        _ if target.kind.status => {
            match live.get("status") {
                Some(status) => value["status"] = status.clone(),
                None => drop(value.as_object_mut().and_then(|v| v.remove("status"))),
            }
            value
        }
        _ => value,
    }
}

fn commit(
    store: &mut Store,
    target: &Target,
    name: &Name,
    mut value: Value,
    status: StatusCode,
) -> Reply {
    if target.query.text("dryRun") == "All" {
        let before = store
            .get(target.kind, name)
            .map(|before| before.value.clone());
        object::complete(target.kind, name, &mut value, before.as_ref());
        return Reply::json(status, &value);
    }
    let stored = store.put(target.kind, name, value);
    Reply::bytes(status, stored.text().clone())
}
