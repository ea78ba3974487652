//! Objects as the store keeps them, and the metadata that the server sets.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hyper::body::Bytes;
use serde_json::{Map, Value};

use super::kinds::Kind;

/// An object at one of its versions.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) value: Value,
    pub(super) version: u64,
    /// Printed once: lists and watches of many clients send the same text.
    text: OnceLock<Bytes>,
    item: OnceLock<Bytes>,
}

impl Stored {
    pub(super) fn new(mut value: Value, version: u64) -> Self {
        metadata(&mut value).insert("resourceVersion".into(), version.to_string().into());
        Self {
            value,
            version,
            text: OnceLock::new(),
            item: OnceLock::new(),
        }
    }

    pub(super) fn text(&self) -> &Bytes {
        self.text
            .get_or_init(|| Bytes::from(self.value.to_string()))
    }

    /// Without its kind, as lists hold it.
    pub(super) fn item(&self) -> &Bytes {
        self.item.get_or_init(|| {
            let mut value = self.value.clone();
            object(&mut value).retain(|name, _| name != "kind" && name != "apiVersion");
            Bytes::from(value.to_string())
        })
    }

    /// The same content at a later version: what a deletion or a bookmark of it tells.
    pub(super) fn at(&self, version: u64) -> Self {
        Self::new(self.value.clone(), version)
    }
}

/// Where an object is, within its kind; ordered as lists are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Name {
    /// Empty for cluster-wide objects.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Name {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

/// `metadata`, made if it is not there.
pub(super) fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    object(field(value, "metadata"))
}

fn field<'a>(value: &'a mut Value, name: &str) -> &'a mut Value {
    object(value).entry(name).or_insert(Value::Null)
}

/// The object that a value is, or an empty one in its place.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("just made an object"),
    }
}

/// A text of `metadata`.
pub(super) fn meta<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get("metadata")?.get(name)?.as_str()
}

/// Puts into `new` what the server alone decides: identity, age, generation.
pub(super) fn complete(kind: &Kind, name: &Name, new: &mut Value, old: Option<&Value>) {
    new["apiVersion"] = kind.api_version().into();
    new["kind"] = kind.kind.into();
    let changed = old.is_some_and(|old| content(old) != content(new));
    let former = |field: &str| old.and_then(|old| old.get("metadata")?.get(field)).cloned();
    let generation = former("generation").and_then(|g| g.as_u64()).unwrap_or(1);
    let meta = metadata(new);
    for absent in [
        "resourceVersion",
        "managedFields",
        "generateName",
        "selfLink",
    ] {
        meta.remove(absent);
    }
    meta.retain(|_, value| !value.is_null());
    meta.insert("name".into(), name.name.clone().into());
    if kind.namespaced {
        meta.insert("namespace".into(), name.namespace.clone().into());
    }
    meta.insert("uid".into(), former("uid").unwrap_or_else(|| uid().into()));
    let created =
        former("creationTimestamp").unwrap_or_else(|| timestamp(SystemTime::now()).into());
    meta.insert("creationTimestamp".into(), created);
    match former("deletionTimestamp") {
        Some(at) => meta.insert("deletionTimestamp".into(), at),
        None => meta.remove("deletionTimestamp"),
    };
    if kind.generation {
        let generation = generation + u64::from(changed);
        meta.insert("generation".into(), generation.into());
    }
}

/// All but metadata and status.
fn content(value: &Value) -> BTreeMap<&str, &Value> {
    fields(Some(value), &["metadata", "status"])
}

/// Whether two objects differ in nothing but their version.
pub(super) fn same(old: &Value, new: &Value) -> bool {
    let parts = |value| {
        let meta = fields(Value::get(value, "metadata"), &["resourceVersion"]);
        (fields(Some(value), &["metadata"]), meta)
    };
    parts(old) == parts(new)
}

fn fields<'a>(value: Option<&'a Value>, without: &[&str]) -> BTreeMap<&'a str, &'a Value> {
    let all = value.and_then(Value::as_object).into_iter().flatten();
    all.map(|(name, value)| (name.as_str(), value))
        .filter(|(name, _)| !without.contains(name))
        .collect()
}

/// A name for an object that has only `generateName`.
pub(super) fn generated(prefix: &str) -> String {
    format!("{prefix}{:05x}", next() & 0xf_ffff)
}

fn uid() -> String {
    let started = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos() as u64;
    let n = next();
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        started >> 32,
        started >> 16 & 0xffff,
        started & 0xfff,
        n >> 48 & 0xfff,
        n & 0xffff_ffff_ffff
    )
}

fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// RFC 3339, whole seconds, UTC.
pub(super) fn timestamp(at: SystemTime) -> String {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let (days, second) = (since / 86_400, since % 86_400);
    // Days since 0000-03-01, so that a leap day ends its year (H. Hinnant, "chrono-compatible
    // low-level date algorithms").
    let day = days + 719_468;
    let era = day / 146_097;
    let of_era = day % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_written_as_the_api_does() {
        let at = |seconds| timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00Z");
    }

    #[test]
    fn the_server_decides_identity_and_generation() {
        let kind = Kind::named("EndpointSlice").unwrap();
        let name = Name::new("default", "a");
        let mut first = json!({"metadata": {"uid": "mine", "resourceVersion": "7"}, "ports": []});
        complete(kind, &name, &mut first, None);
        assert_ne!(first["metadata"]["uid"], "mine");
        assert_eq!(first["metadata"]["generation"], 1);
        assert_eq!(first["metadata"].get("resourceVersion"), None);
        let mut labelled = first.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        complete(kind, &name, &mut labelled, Some(&first));
        assert_eq!(labelled["metadata"]["generation"], 1);
        assert!(!same(&first, &labelled));
        let mut changed = labelled.clone();
        changed["ports"] = json!([{"port": 1}]);
        complete(kind, &name, &mut changed, Some(&labelled));
        assert_eq!(changed["metadata"]["generation"], 2);
        assert_eq!(changed["metadata"]["uid"], first["metadata"]["uid"]);
    }
}
