//! The text of a manifest file → objects. Each document and each object stands
//! alone: a fault in one leaves the others as they are.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;

use super::decode;
use crate::model::convert::{self, Converted};
use crate::model::{Fault, Kind, NamespacedName, Object, ObjectKey};

/// What a part of a file turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Item {
    /// An object, and when what made a slice what it is happened.
    Good {
        object: Object,
        notes: Vec<Fault>,
        trigger: Option<SystemTime>,
    },
    /// An object that is known by name and cannot be used.
    Bad { key: ObjectKey, fault: Fault },
    /// Something of which not even the name can be read.
    Unreadable { fault: Fault },
}

/// Lists may hold lists, but nobody needs many levels of them.
const LIST_DEPTH: usize = 4;

/// The documents of a file as they were read last: an edit of one of them
/// costs that one, however many stand beside it.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// By length and hash of the document's text. The hash is keyed, so two
    /// texts of one length meet once in 2^64, and nobody can choose them.
    items: HashMap<(usize, u64), Box<[Item]>>,
    key: RandomState,
}

/// Parses a YAML file of any number of documents; `parsed` is what it held
/// before, and then what it holds.
pub(super) fn yaml(text: &str, parsed: &mut Parsed) -> Vec<Item> {
    let mut all = Vec::new();
    let mut known = std::mem::take(&mut parsed.items);
    for (line, document) in split(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        let digest = (document.len(), parsed.key.hash_one(document));
        let former = known.remove(&digest);
        if let Some(items) = former.or_else(|| parsed.items.get(&digest).cloned()) {
            all.extend_from_slice(&items);
            parsed.items.insert(digest, items);
            continue;
        }
        match Value::deserialize(serde_norway::Deserializer::from_str(document)) {
            Ok(value) => {
                let mut items = Vec::new();
                object(&value, &mut items, LIST_DEPTH);
                all.extend_from_slice(&items);
                parsed.items.insert(digest, items.into());
            }
            // Not kept: the line may be another next time.
            Err(error) => all.push(Item::Unreadable {
                fault: Fault::new(
                    format!("document at line {line}"),
                    format!("is not YAML: {error}"),
                    "mend it; until then the file's objects stay as they were",
                ),
            }),
        }
    }
    all
}

/// Parses a JSON file of one object or List.
pub(super) fn json(text: &str) -> Vec<Item> {
    let mut items = Vec::new();
    match serde_json::from_str(text) {
        Ok(value) => object(&value, &mut items, LIST_DEPTH),
        Err(_) if text.trim().is_empty() => {}
        Err(error) => items.push(Item::Unreadable {
            fault: Fault::new(
                "",
                format!("is not JSON: {error}"),
                "mend it; until then the file's objects stay as they were",
            ),
        }),
    }
    items
}

/// Documents with the number of their first line. `---` and `...` at the
/// beginning of a line are markers wherever they stand (YAML 1.2, 9.1.2), so
/// a document that cannot be parsed does not hide the next one.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = ["---", "..."].iter().any(|m| {
            line.strip_prefix(m)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        if marker {
            documents.push((start_line, &text[start..offset]));
            // What follows a marker on its line belongs to the document.
            (start, start_line) = (offset + 3, index + 1);
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| {
        document
            .lines()
            .map(str::trim_start)
            .any(|l| !l.is_empty() && !l.starts_with(['#', '%']))
    });
    documents
}

fn object(value: &Value, items: &mut Vec<Item>, depth: usize) {
    if value.is_null() {
        return;
    }
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let (Some(version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        let field = if text("apiVersion").is_none() {
            "apiVersion"
        } else {
            "kind"
        };
        items.push(Item::Unreadable {
            fault: Fault::new(
                field,
                "is missing",
                "write apiVersion and kind; until then the file's objects stay as they were",
            ),
        });
        return;
    };
    let (kind, wanted) = match kind {
        "List" if version == "v1" => return list(value, items, depth),
        "Service" => (Kind::Service, "v1"),
        "Node" => (Kind::Node, "v1"),
        "Pod" => (Kind::Pod, "v1"),
        "ServiceCIDR" => (Kind::ServiceCidr, "networking.k8s.io/v1"),
        "EndpointSlice" => (Kind::EndpointSlice, "discovery.k8s.io/v1"),
        other => {
            tracing::debug!(kind = other, version, "object of another kind ignored");
            return;
        }
    };
    // Other groups have kinds of the same name; only versions of ours are mistakes.
    let group = |v: &str| v.rsplit_once('/').map(|(group, _)| group.to_owned());
    if group(version) != group(wanted) {
        tracing::debug!(
            kind = kind.name(),
            version,
            "object of another group ignored"
        );
        return;
    }
    let key = match key(kind, value) {
        Ok(key) => key,
        Err(fault) => return items.push(Item::Unreadable { fault }),
    };
    if version != wanted {
        let problem = format!("{version:?} is not supported");
        let fault = Fault::new("apiVersion", problem, format!("write {wanted}"));
        return items.push(Item::Bad { key, fault });
    }
    items.push(match decode::object(kind, value) {
        Ok(Converted { object, notes }) => Item::Good {
            trigger: cause(value),
            object,
            notes,
        },
        Err(fault) => Item::Bad { key, fault },
    });
}

fn list(value: &Value, items: &mut Vec<Item>, depth: usize) {
    let fault = |problem: &str, mend: &str| Item::Unreadable {
        fault: Fault::new("items", problem, mend),
    };
    if depth == 0 {
        return items.push(fault(
            "holds too many levels of Lists",
            "put the objects in one List",
        ));
    }
    match value.get("items") {
        None | Some(Value::Null) => {}
        Some(Value::Array(values)) => {
            for value in values {
                object(value, items, depth - 1);
            }
        }
        Some(_) => items.push(fault("is not a list", "write a list of objects")),
    }
}

fn key(kind: Kind, value: &Value) -> Result<ObjectKey, Fault> {
    let meta = |name: &str| {
        value
            .get("metadata")
            .and_then(|m| m.get(name))
            .and_then(Value::as_str)
    };
    let Some(name) = meta("name").filter(|name| !name.is_empty()) else {
        return Err(Fault::new(
            "metadata.name",
            format!("of a {} is missing", kind.name()),
            "give the object a name; until then the file's objects stay as they were",
        ));
    };
    let namespace = if kind.is_cluster_wide() {
        ""
    } else {
        meta("namespace").unwrap_or("default")
    };
    Ok(ObjectKey {
        kind,
        name: NamespacedName::new(namespace, name),
    })
}

/// When what made an object what it is happened, if it says so.
fn cause(object: &Value) -> Option<SystemTime> {
    let annotations = object.get("metadata")?.get("annotations")?;
    convert::cause(annotations.get(convert::CAUSE)?.as_str()?)
}
