//! `get` and `list`.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};

use super::fault::Effect;
use super::kinds::Kind;
use super::object::{Name, Stored};
use super::reply::Reply;
use super::request::Target;
use super::selector::Selector;
use super::shared::Shared;
use super::status::Failure;
use super::store::Store;

const CONTINUE_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.";
const LIST_TOO_OLD: &str = "The resourceVersion for the provided list is too old.";

pub(super) fn get(shared: &Shared, target: &Target) -> Result<Reply, Failure> {
    let name = target_name(target)?;
    let store = shared.store();
    let object = store.get(target.kind, &name);
    let object = object.ok_or_else(|| missing(target, &name))?;
    Ok(Reply::bytes(StatusCode::OK, object.text().clone()))
}

/// The object that a request with a name is about.
pub(super) fn target_name(target: &Target) -> Result<Name, Failure> {
    let name = target.name.as_deref().unwrap_or_default();
    match (&target.namespace, target.kind.namespaced) {
        (Some(namespace), true) => Ok(Name::new(namespace, name)),
        (None, false) => Ok(Name::new("", name)),
        _ => Err(Failure::new(
            404,
            "the server could not find the requested resource",
        )),
    }
}

pub(super) fn missing(target: &Target, name: &Name) -> Failure {
    let resource = match target.kind.group {
        "" => target.kind.plural.to_owned(),
        group => format!("{}.{group}", target.kind.plural),
    };
    Failure::not_found(&resource, &name.name)
}

/// Where a paged list goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Continue {
    version: u64,
    after: Name,
}

impl Continue {
    /// As a token, opaque to clients.
    fn token(&self) -> String {
        let text = format!(
            "{}/{}/{}",
            self.version, self.after.namespace, self.after.name
        );
        let digit = |four: u8| char::from_digit(four.into(), 16).unwrap_or('0');
        let digits = |byte: u8| [digit(byte >> 4), digit(byte & 15)];
        text.bytes().flat_map(digits).collect()
    }

    fn parse(token: &str) -> Option<Self> {
        let octet = |at: usize| u8::from_str_radix(token.get(at..at + 2)?, 16).ok();
        let octets: Option<Vec<u8>> = (0..token.len()).step_by(2).map(octet).collect();
        let text = String::from_utf8(octets?).ok()?;
        let mut parts = text.splitn(3, '/');
        Some(Self {
            version: parts.next()?.parse().ok()?,
            after: Name::new(parts.next()?, parts.next()?),
        })
    }
}

/// What a list's parameters ask for.
struct Page {
    /// The state at this version; the latest if there is none.
    at: Option<u64>,
    after: Option<Name>,
    limit: usize,
}

fn page(target: &Target, store: &Store, expired: bool) -> Result<Page, Failure> {
    let query = &target.query;
    let invalid = |message: &str| {
        Failure::new(
            422,
            format!("ListOptions.meta.k8s.io \"\" is invalid: {message}"),
        )
    };
    let limit = query.number("limit")?.unwrap_or(0) as usize;
    let limit = if limit == 0 { usize::MAX } else { limit };
    let version = query.number("resourceVersion")?;
    let rule = query.text("resourceVersionMatch");
    let token = query.text("continue");
    if !query.text("sendInitialEvents").is_empty() {
        return Err(invalid(
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
        ));
    }
    if !token.is_empty() {
        if version.is_some_and(|v| v != 0) {
            let message = "specifying resource version is not allowed when using continue";
            return Err(Failure::new(400, message));
        }
        if !rule.is_empty() {
            return Err(invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden with continue",
            ));
        }
        let Some(Continue { version, after }) = Continue::parse(token) else {
            return Err(Failure::new(400, "continue key is not valid"));
        };
        if expired || version < store.compacted() {
            return Err(Failure::new(410, CONTINUE_TOO_OLD));
        }
        return Ok(Page {
            at: Some(version),
            after: Some(after),
            limit,
        });
    }
    let exact = match (rule, version) {
        ("", Some(v)) => v != 0 && limit != usize::MAX,
        ("", None) | ("NotOlderThan", Some(_)) => false,
        ("Exact", Some(v)) if v != 0 => true,
        ("Exact", Some(_)) => {
            return Err(invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        ("NotOlderThan" | "Exact", None) => {
            return Err(invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        _ => return Err(invalid("resourceVersionMatch: Unsupported value")),
    };
    let current = store.version();
    match version {
        Some(version) if version > current => Err(Failure::too_large(version, current)),
        Some(version) if exact && (expired || version < store.compacted()) => {
            Err(Failure::new(410, LIST_TOO_OLD))
        }
        version => Ok(Page {
            at: version.filter(|_| exact),
            after: None,
            // What the cache serves is not paged.
            limit: if version == Some(0) {
                usize::MAX
            } else {
                limit
            },
        }),
    }
}

pub(super) fn list(shared: &Shared, target: &Target, effects: &[Effect]) -> Result<Reply, Failure> {
    let query = &target.query;
    let (labels, fields) = (query.text("labelSelector"), query.text("fieldSelector"));
    let selector = Selector::parse(target.kind, labels, fields)?;
    let store = shared.store();
    let Page { at, after, limit } = page(target, &store, effects.contains(&Effect::Expired))?;
    let version = at.unwrap_or(store.version());
    let objects = store.snapshot(target.kind, at);
    let objects = objects.map_err(|_| Failure::new(410, LIST_TOO_OLD))?;
    drop(store);
    let in_reach = |(name, object): &(Name, Arc<Stored>)| {
        target
            .namespace
            .as_ref()
            .is_none_or(|ns| *ns == name.namespace)
            && after.as_ref().is_none_or(|after| name > after)
            && selector.matches(&object.value)
    };
    let mut objects: Vec<_> = objects.into_iter().filter(in_reach).collect();
    let rest = objects.len().saturating_sub(limit);
    objects.truncate(limit);
    let mut meta = json!({"resourceVersion": version.to_string()});
    if rest > 0
        && let Some((last, _)) = objects.last()
    {
        let after = last.clone();
        meta["continue"] = Continue { version, after }.token().into();
        if labels.is_empty() && fields.is_empty() {
            meta["remainingItemCount"] = rest.into();
        }
    }
    Ok(Reply::bytes(
        StatusCode::OK,
        print(target.kind, &meta, &objects),
    ))
}

/// A list's text. As those of real servers, items do not say their kind.
fn print(kind: &Kind, meta: &Value, objects: &[(Name, Arc<Stored>)]) -> Vec<u8> {
    let api = kind.api_version();
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{api}\",\"metadata\":{meta},\"items\":[",
        kind.kind
    );
    let octets: usize = objects
        .iter()
        .map(|(_, object)| object.item().len() + 1)
        .sum();
    let mut text = Vec::with_capacity(head.len() + octets + 2);
    text.extend_from_slice(head.as_bytes());
    for (n, (_, object)) in objects.iter().enumerate() {
        if n > 0 {
            text.push(b',');
        }
        text.extend_from_slice(object.item());
    }
    text.extend_from_slice(b"]}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_to_go_on() {
        let there = Continue {
            version: 1234,
            after: Name::new("kube-system", "a/odd"),
        };
        assert_eq!(Continue::parse(&there.token()), Some(there));
        for bad in ["", "zz", "313", "31"] {
            assert_eq!(Continue::parse(bad), None, "{bad}");
        }
    }
}
