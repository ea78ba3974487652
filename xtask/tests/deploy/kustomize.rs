//! Builds a kustomization, as far as ours go: resources, images, patches by merging.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::chart::merged;
use crate::objects::{documents, name};

/// The fields that ours have; another one is an error.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kustomization {
    api_version: String,
    kind: String,
    resources: Vec<String>,
    #[serde(default)]
    images: Vec<Image>,
    #[serde(default)]
    patches: Vec<Patch>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Image {
    name: String,
    new_name: String,
    new_tag: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    path: String,
}

/// What `kubectl kustomize` makes of a directory. Patches here have no lists, for which merging
/// needs to know the keys of their items.
pub fn build(directory: &Path) -> Vec<Value> {
    let read = |path: &Path| {
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let text = read(&directory.join("kustomization.yaml"));
    let kustomization: Kustomization = serde_norway::from_str(&text).unwrap();
    assert_eq!(kustomization.api_version, "kustomize.config.k8s.io/v1beta1");
    assert_eq!(kustomization.kind, "Kustomization");
    let mut objects = Vec::new();
    for resource in &kustomization.resources {
        let path = directory.join(resource);
        // Kustomize takes no file from outside of its directory, and no base from above it.
        if path.is_dir() {
            let base = path.canonicalize().unwrap();
            assert!(
                !directory.canonicalize().unwrap().starts_with(base),
                "{resource} is above"
            );
            objects.extend(build(&path));
        } else {
            assert!(!resource.contains('/'), "{resource} is outside");
            objects.extend(documents(&read(&path)));
        }
    }
    for patch in &kustomization.patches {
        for change in documents(&read(&directory.join(&patch.path))) {
            assert!(!has_list(&change), "{change}");
            let target = objects
                .iter_mut()
                .find(|object| name(object) == name(&change))
                .unwrap_or_else(|| panic!("nothing to patch with {change}"));
            *target = merged(target, &change);
        }
    }
    for image in &kustomization.images {
        for object in &mut objects {
            rename(object, image);
        }
    }
    objects
}

fn has_list(value: &Value) -> bool {
    match value {
        Value::Array(_) => true,
        Value::Object(map) => map.values().any(has_list),
        _ => false,
    }
}

fn rename(value: &mut Value, image: &Image) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| rename(item, image)),
        Value::Object(map) => {
            for (key, value) in map {
                let named = value.as_str().and_then(|text| text.rsplit_once(':'));
                if key == "image" && named.is_some_and(|(name, _)| name == image.name) {
                    *value = format!("{}:{}", image.new_name, image.new_tag).into();
                } else {
                    rename(value, image);
                }
            }
        }
        _ => {}
    }
}
