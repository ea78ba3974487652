//! The ways to change a part of an object, and the difference of two.

use serde_json::{Map, Value};

use super::status::Failure;

/// How a patch is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// RFC 6902.
    Json,
    /// RFC 7386. Strategic merge patches are read so, too: their maps mean the same, their lists
    /// replace the former ones.
    Merge,
    /// Server-side apply: what is said is merged, by the same rule; owners of fields are not kept.
    Apply,
}

impl Format {
    pub(super) fn of(content_type: &str) -> Result<Self, Failure> {
        let name = content_type.split(';').next().unwrap_or_default().trim();
        match name {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => {
                Ok(Self::Merge)
            }
            "application/apply-patch+yaml" | "application/apply-patch+json" => Ok(Self::Apply),
            other => {
                let message = format!(
                    "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml; not {other:?}"
                );
                Err(Failure::new(415, message))
            }
        }
    }
}

/// Changes `value` as a patch says.
pub(super) fn apply(format: Format, value: &mut Value, body: &[u8]) -> Result<(), Failure> {
    let bad = |error: &dyn std::fmt::Display| Failure::new(400, format!("patch: {error}"));
    match format {
        Format::Json => {
            let patch: json_patch::Patch = serde_json::from_slice(body).map_err(|e| bad(&e))?;
            json_patch::patch(value, &patch)
                .map_err(|e| Failure::new(422, format!("the patch does not fit: {e}")))
        }
        Format::Merge => {
            let patch: Value = serde_json::from_slice(body).map_err(|e| bad(&e))?;
            if !patch.is_object() {
                return Err(bad(&"not an object"));
            }
            json_patch::merge(value, &patch);
            Ok(())
        }
        Format::Apply => {
            let patch: Value = serde_norway::from_slice(body).map_err(|e| bad(&e))?;
            if !patch.is_object() {
                return Err(bad(&"not an object"));
            }
            json_patch::merge(value, &patch);
            Ok(())
        }
    }
}

/// The merge patch that makes `new` of `old`, or nothing if they are equal.
pub(super) fn difference(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return Some(new.clone());
    };
    let mut patch = Map::new();
    for (name, value) in after {
        match before.get(name) {
            None => drop(patch.insert(name.clone(), value.clone())),
            Some(old) => {
                if let Some(part) = difference(old, value) {
                    patch.insert(name.clone(), part);
                }
            }
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_leads_from_one_to_the_other() {
        let old = json!({"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": "x"});
        let new = json!({"a": 1, "b": {"d": [2]}, "f": {"g": true}});
        let patch = difference(&old, &new).unwrap();
        assert_eq!(
            patch,
            json!({"b": {"c": null, "d": [2]}, "e": null, "f": {"g": true}})
        );
        // What somebody else has written stays.
        let mut live = old.clone();
        live["b"]["other"] = json!("kept");
        json_patch::merge(&mut live, &patch);
        assert_eq!(
            live,
            json!({"a": 1, "b": {"d": [2], "other": "kept"}, "f": {"g": true}})
        );
        assert_eq!(difference(&new, &new), None);
    }

    #[test]
    fn every_format_patches() {
        let mut value = json!({"metadata": {"annotations": {"a": "1"}}});
        let json = br#"[{"op": "add", "path": "/metadata/annotations/b", "value": "2"}]"#;
        apply(Format::Json, &mut value, json).unwrap();
        apply(
            Format::Merge,
            &mut value,
            br#"{"metadata": {"annotations": {"a": null}}}"#,
        )
        .unwrap();
        apply(
            Format::Apply,
            &mut value,
            b"metadata: {annotations: {c: \"3\"}}",
        )
        .unwrap();
        assert_eq!(
            value,
            json!({"metadata": {"annotations": {"b": "2", "c": "3"}}})
        );
        let bad = apply(
            Format::Json,
            &mut value,
            br#"[{"op": "remove", "path": "/x"}]"#,
        );
        assert_eq!(bad.unwrap_err().code, 422);
        assert_eq!(
            apply(Format::Merge, &mut value, b"[]").unwrap_err().code,
            400
        );
        assert_eq!(Format::of("text/plain").unwrap_err().code, 415);
    }
}
