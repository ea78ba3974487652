//! A configuration file: which documents it holds, and what they say.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Command;

use super::kube_proxy::Mode;
use super::said::{Place, Reading};
use super::tree::{self, Node};
use super::{kube_proxy, own};

/// Fields of a document that say which it is, and no option.
pub const HEAD: [&str; 2] = ["apiVersion", "kind"];

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

/// A file's documents.
#[derive(Debug, Default)]
pub struct File {
    path: Arc<PathBuf>,
    own: Option<Node>,
    kube_proxy: Option<Node>,
    errors: Vec<String>,
}

/// Reads a file. What is wrong in it comes with what it says ([`File::read`]).
pub fn open(path: &Path) -> Result<File, String> {
    let text = text(path)?;
    let mut file = File {
        path: Arc::new(path.to_owned()),
        ..File::default()
    };
    let documents = match tree::documents(&text) {
        Ok(documents) => documents,
        Err(error) => {
            file.errors.push(format!("{}: {error}", path.display()));
            return Ok(file);
        }
    };
    if documents.is_empty() {
        let error = format!("{} is empty: {}", path.display(), wanted());
        file.errors.push(error);
    }
    for document in documents {
        let place = format!("{}:{}", path.display(), document.line);
        let of_kind = match kind(&document) {
            Kind::Own => &mut file.own,
            Kind::KubeProxy => &mut file.kube_proxy,
            Kind::Other(problem) => {
                file.errors.push(format!("{place}: {problem}"));
                continue;
            }
        };
        if of_kind.is_some() {
            let error = format!("{place}: there are two documents of this kind; keep one");
            file.errors.push(error);
        }
        *of_kind = Some(document);
    }
    Ok(file)
}

impl File {
    /// The mode of kube-proxy that it says.
    pub fn mode(&self) -> Option<Mode> {
        self.kube_proxy.as_ref().and_then(kube_proxy::mode_of)
    }

    /// What it says of the options of `whole`, where kube-proxy's mode is this one.
    pub fn read(&self, whole: &Command, mode: Mode) -> Reading {
        let place = |line: u64, field: &str| Place::File {
            path: Arc::clone(&self.path),
            line,
            field: field.to_owned(),
        };
        let mut reading = Reading {
            errors: self.errors.clone(),
            ..Reading::default()
        };
        // What is said first counts.
        if let Some(document) = &self.own {
            reading.append(own::read(document, whole, place));
        }
        if let Some(document) = &self.kube_proxy {
            reading.append(kube_proxy::read(document, whole, mode, place));
        }
        reading
    }
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
    match (version, kind) {
        (Some(own::API_VERSION), Some(own::KIND)) => Kind::Own,
        (Some(kube_proxy::API_VERSION), Some(kube_proxy::KIND)) => Kind::KubeProxy,
        (None, _) => Kind::Other(format!("apiVersion is missing: {}", wanted())),
        (_, None) => Kind::Other(format!("kind is missing: {}", wanted())),
        (Some(version), Some(kind)) => Kind::Other(format!(
            "{kind} of {version} is no configuration of the agent: {}",
            wanted()
        )),
    }
}

fn wanted() -> String {
    format!(
        "write `apiVersion: {}` and `kind: {}`, or give a {} of {}",
        own::API_VERSION,
        own::KIND,
        kube_proxy::KIND,
        kube_proxy::API_VERSION
    )
}
