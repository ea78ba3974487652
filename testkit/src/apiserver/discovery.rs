//! What the server says of itself: versions, groups, resources.

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::kinds::{KINDS, Kind};
use super::reply::Reply;

/// The answer for a path that is no resource; none if there is nothing.
pub(super) fn answer(method: &Method, path: &str) -> Option<Reply> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let steps: Vec<&str> = path.trim_matches('/').split('/').collect();
    let body = match steps.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => {
            return Some(Reply::text(
                StatusCode::OK,
                "text/plain; charset=utf-8",
                "ok",
            ));
        }
        ["version"] => json!({
            "major": "1",
            "minor": "34",
            "gitVersion": "v1.34.0+testkit",
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "",
            "compiler": "rustc",
            "platform": "linux/amd64",
        }),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"]}),
        ["apis"] => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups()}),
        ["api", version] => resources("", version)?,
        ["apis", group] => {
            let found = groups().into_iter().find(|g| g["name"] == *group)?;
            let mut found = found;
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            found
        }
        ["apis", group, version] => resources(group, version)?,
        _ => return None,
    };
    Some(Reply::json(StatusCode::OK, &body))
}

/// Whether everybody may ask, known or not.
pub(super) fn is_public(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz", "/version"]
        .iter()
        .any(|public| path.starts_with(public))
}

fn groups() -> Vec<Value> {
    let mut groups: Vec<&Kind> = KINDS.iter().filter(|k| !k.group.is_empty()).collect();
    groups.sort_by_key(|k| k.group);
    groups.dedup_by_key(|k| k.group);
    let group = |kind: &&Kind| {
        let version = json!({"groupVersion": kind.api_version(), "version": kind.version});
        json!({"name": kind.group, "versions": [version], "preferredVersion": version})
    };
    groups.iter().map(group).collect()
}

fn resources(group: &str, version: &str) -> Option<Value> {
    let here = |kind: &&Kind| (kind.group, kind.version) == (group, version);
    let first = KINDS.iter().find(here)?;
    let mut resources = Vec::new();
    for kind in KINDS.iter().filter(here) {
        let entry = |name: String, verbs: &[&str]| {
            json!({
                "name": name,
                "singularName": kind.kind.to_ascii_lowercase(),
                "namespaced": kind.namespaced,
                "kind": kind.kind,
                "verbs": verbs,
            })
        };
        let verbs = [
            "create",
            "delete",
            "deletecollection",
            "get",
            "list",
            "patch",
            "update",
            "watch",
        ];
        resources.push(entry(kind.plural.to_owned(), &verbs));
        if kind.status {
            let name = format!("{}/status", kind.plural);
            resources.push(entry(name, &["get", "patch", "update"]));
        }
    }
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": first.api_version(),
        "resources": resources,
    }))
}
