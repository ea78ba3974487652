//! What a real server refuses to store, as far as agents write objects: names, and events.

use serde_json::Value;

use super::kinds::Kind;
use super::status::Failure;

/// Longest note of an event, in octets.
const NOTE_MAX: usize = 1024;
/// Longest other text of an event, in octets.
const TEXT_MAX: usize = 128;

/// Checks an object that is to be stored.
pub(super) fn object(
    kind: &Kind,
    namespace: &str,
    name: &str,
    value: &Value,
) -> Result<(), Failure> {
    let mut faults = Vec::new();
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.is_empty() {
        faults.push("metadata.name: Required value: name or generateName is required".to_owned());
    } else if name.len() > 253
        || !name.chars().all(fits)
        || !edge(name.chars().next())
        || !edge(name.chars().last())
    {
        faults.push(format!(
            "metadata.name: Invalid value: {name:?}: not an RFC 1123 subdomain"
        ));
    }
    if kind.kind == "Event" {
        event(namespace, value, &mut faults);
    }
    if faults.is_empty() {
        return Ok(());
    }
    let message = format!("{} {name:?} is invalid: {}", kind.kind, faults.join(", "));
    Err(Failure::new(422, message))
}

/// The rules of events.k8s.io/v1.
fn event(namespace: &str, value: &Value, faults: &mut Vec<String>) {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    if value.get("eventTime").is_none_or(Value::is_null) {
        faults.push("eventTime: Required value".to_owned());
    }
    for field in [
        "reportingController",
        "reportingInstance",
        "action",
        "reason",
    ] {
        match text(field).len() {
            0 => faults.push(format!("{field}: Required value")),
            n if n > TEXT_MAX => {
                faults.push(format!(
                    "{field}: Invalid value: can have at most {TEXT_MAX} characters"
                ));
            }
            _ => {}
        }
    }
    if text("note").len() > NOTE_MAX {
        faults.push(format!(
            "note: Invalid value: can have at most {NOTE_MAX} characters"
        ));
    }
    if !matches!(text("type"), "Normal" | "Warning") {
        faults.push("type: Invalid value: has to be Normal or Warning".to_owned());
    }
    let regarding = value.get("regarding");
    let regarding = regarding.and_then(|r| r.get("namespace")?.as_str());
    match regarding.filter(|ns| !ns.is_empty()) {
        None if !matches!(namespace, "default" | "kube-system") => {
            faults.push(
                "regarding.namespace: Invalid value: an event about a cluster-wide object is in the namespace default or kube-system"
                    .to_owned(),
            );
        }
        Some(about) if about != namespace => {
            faults.push(format!("regarding.namespace: Invalid value: {about:?}: does not match the event's namespace"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_checked_as_the_api_does() {
        let kind = Kind::named("Event").unwrap();
        let good = json!({
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": "tulle.io/agent",
            "reportingInstance": "node-1",
            "action": "Sync",
            "reason": "BadSourceRange",
            "type": "Warning",
            "regarding": {"kind": "Service", "namespace": "shop", "name": "web"},
        });
        assert_eq!(object(kind, "shop", "web.1", &good), Ok(()));
        assert_eq!(object(kind, "other", "web.1", &good).unwrap_err().code, 422);
        for (field, bad) in [
            ("eventTime", Value::Null),
            ("reportingInstance", json!("")),
            ("action", Value::Null),
            ("reason", json!("x".repeat(129))),
            ("note", json!("x".repeat(1025))),
            ("type", json!("Error")),
        ] {
            let mut event = good.clone();
            event[field] = bad;
            let failure = object(kind, "shop", "web.1", &event).unwrap_err();
            assert!(failure.message.contains(field), "{}", failure.message);
        }
        let mut node = good.clone();
        node["regarding"] = json!({"kind": "Node", "name": "node-1"});
        assert!(object(kind, "shop", "n.1", &node).is_err());
        assert!(object(kind, "default", "n.1", &node).is_ok());
    }

    #[test]
    fn names_are_those_of_dns() {
        let kind = Kind::named("Service").unwrap();
        for bad in ["", "A", "-a", "a_b", "a."] {
            assert!(object(kind, "default", bad, &json!({})).is_err(), "{bad}");
        }
    }
}
