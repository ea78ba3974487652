//! A configuration file: which documents it holds, and what they say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Command;

use super::said::{Place, Reading};
use super::tree::{self, Node};
use super::{kube_proxy, own};

/// Larger files are refused: they are a mistake.
const MOST_BYTES: u64 = 1 << 20;

/// The file's text.
pub fn text(path: &Path) -> Result<String, String> {
    let said = |problem: &str| {
        format!(
            "{}: {problem}; name a file that the agent can read with --config",
            path.display()
        )
    };
    let meta = std::fs::metadata(path).map_err(|error| said(&error.to_string()))?;
    if !meta.is_file() {
        return Err(said("it is no file"));
    }
    if meta.len() > MOST_BYTES {
        return Err(said(&format!("it is larger than {MOST_BYTES} octets")));
    }
    std::fs::read_to_string(path).map_err(|error| said(&error.to_string()))
}

/// What the text of the file at `path` says of the options of `whole`.
pub fn read(path: &Path, text: &str, whole: &Command) -> Reading {
    let path = Arc::new(path.to_owned());
    let mut reading = Reading::default();
    let documents = match tree::documents(text) {
        Ok(documents) => documents,
        Err(error) => {
            reading.errors.push(format!("{}: {error}", path.display()));
            return reading;
        }
    };
    if documents.is_empty() {
        let error = format!("{} is empty: {}", path.display(), wanted());
        reading.errors.push(error);
    }
    let (mut owns, mut proxies) = (Vec::new(), Vec::new());
    for document in &documents {
        match kind(document) {
            Kind::Own => owns.push(document),
            Kind::KubeProxy => proxies.push(document),
            Kind::Other(problem) => {
                let place = format!("{}:{}", path.display(), document.line);
                reading.errors.push(format!("{place}: {problem}"));
            }
        }
    }
    for kind in [&owns, &proxies] {
        if let [_, second, ..] = kind.as_slice() {
            let place = format!("{}:{}", path.display(), second.line);
            let error = format!("{place}: there are two documents of this kind; keep one");
            reading.errors.push(error);
        }
    }
    let place = |line: u64, field: &str| Place::File {
        path: Arc::<PathBuf>::clone(&path),
        line,
        field: field.to_owned(),
    };
    // What is said first counts.
    for document in owns.into_iter().take(1) {
        reading.append(own::read(document, whole, place));
    }
    for document in proxies.into_iter().take(1) {
        reading.append(kube_proxy::read(document, whole, place));
    }
    reading
}

enum Kind {
    Own,
    KubeProxy,
    Other(String),
}

fn kind(document: &Node) -> Kind {
    let head = |key: &str| {
        let node = document.value.get(key)?;
        node.value.text().map(str::trim)
    };
    let (version, kind) = (head("apiVersion"), head("kind"));
    let group = version.map(|version| version.split('/').next().unwrap_or_default());
    match (group, version, kind) {
        (_, Some(own::API_VERSION), Some(own::KIND)) => Kind::Own,
        (Some(kube_proxy::GROUP), _, Some(kube_proxy::KIND)) => Kind::KubeProxy,
        (_, None, _) => Kind::Other(format!("apiVersion is missing: {}", wanted())),
        (_, _, None) => Kind::Other(format!("kind is missing: {}", wanted())),
        (_, Some(version), Some(kind)) => Kind::Other(format!(
            "{kind} of {version} is no configuration of the agent: {}",
            wanted()
        )),
    }
}

fn wanted() -> String {
    format!(
        "write `apiVersion: {}` and `kind: {}`, or give a {} of {}/v1alpha1",
        own::API_VERSION,
        own::KIND,
        kube_proxy::KIND,
        kube_proxy::GROUP
    )
}
