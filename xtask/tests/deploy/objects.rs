//! Kubernetes objects as YAML has them, and as Kubernetes' own types take them.

use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the workspace.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All documents of a YAML text.
pub fn documents(text: &str) -> Vec<Value> {
    use serde::Deserialize;
    serde_norway::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap_or_else(|e| panic!("{e} in\n{text}")))
        .filter(|value| !value.is_null())
        .collect()
}

/// Kind and name.
pub fn name(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// In an order of their own.
pub fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    objects.sort_by_key(name);
    objects
}

/// The only object of a kind, as its type.
pub fn the<T: DeserializeOwned + Resource>(objects: &[Value]) -> T {
    let mut of_kind = objects.iter().filter(|object| object["kind"] == T::KIND);
    let object = of_kind.next().unwrap_or_else(|| panic!("no {}", T::KIND));
    assert!(of_kind.next().is_none(), "two of {}", T::KIND);
    serde_json::from_value(object.clone()).unwrap()
}

/// What is wrong with an object: its type does not know a field, or has another type for one. What
/// the type does not know is lost on the way through it and missing in what comes out.
pub fn fault(object: &Value) -> Option<String> {
    fn through<T: DeserializeOwned + Serialize + Resource>(object: &Value) -> Option<String> {
        if object["apiVersion"] != T::API_VERSION {
            return Some(format!("{} is of {}", T::KIND, T::API_VERSION));
        }
        match serde_json::from_value::<T>(object.clone()) {
            Ok(typed) => {
                let back = serde_json::to_value(&typed).unwrap();
                (back != *object).then(|| format!("{object}\nis more or other than\n{back}"))
            }
            Err(error) => Some(error.to_string()),
        }
    }
    match object["kind"].as_str() {
        Some("ServiceAccount") => through::<ServiceAccount>(object),
        Some("ClusterRole") => through::<ClusterRole>(object),
        Some("ClusterRoleBinding") => through::<ClusterRoleBinding>(object),
        Some("ConfigMap") => through::<ConfigMap>(object),
        Some("DaemonSet") => through::<DaemonSet>(object),
        other => Some(format!("nobody expects an object of kind {other:?}")),
    }
}
