//! The ways to change a part of an object, and the difference of two.

use serde_json::Value;

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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
