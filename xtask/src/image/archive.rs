//! The archive: an OCI image layout in a tar, with the `manifest.json` that `docker load` reads
//! beside it. Source: OCI image format specification 1.1; Docker image specification 1.2.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::layer::{self, Entry};

/// Media types of the parts.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// When everything was made: nothing tells, so that the same content has the same digest.
const NO_TIME: &str = "1970-01-01T00:00:00Z";

/// A processor that images are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// `x86_64`.
    Amd64,
    /// `aarch64`.
    Arm64,
}

impl Platform {
    /// That of this machine: programs are not compiled for another one.
    pub fn of_this_machine() -> Result<Self> {
        match ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("images are made on x86_64 and aarch64, this machine is {other}"),
        }
    }

    /// As OCI and Go name it.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// An image with one layer.
pub struct Image<'a> {
    /// Full name with a tag.
    pub name: &'a str,
    /// Tulle's version.
    pub version: &'a str,
    /// What it runs on.
    pub platform: Platform,
    /// Its files.
    pub entries: &'a [Entry],
}

impl Image<'_> {
    /// The whole archive.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let plain = layer::tar(self.entries)?;
        let packed = layer::gzip(&plain)?;
        let config = to_octets(&self.config(&digest(&plain)))?;
        let manifest = to_octets(&self.manifest(&config, &packed))?;
        let index = to_octets(&self.index(&manifest))?;
        let docker = to_octets(&json!([{
            "Config": blob(&config),
            "RepoTags": [self.name],
            "Layers": [blob(&packed)],
        }]))?;
        let mut files = BTreeMap::from([
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), index),
            ("manifest.json".to_owned(), docker),
        ]);
        for part in [config, manifest, packed] {
            files.insert(blob(&part), part);
        }
        let entries: Vec<Entry> = files
            .into_iter()
            .map(|(path, content)| Entry::file(&path, 0o644, content))
            .collect();
        layer::tar(&entries)
    }

    fn words(&self) -> Value {
        json!({
            "org.opencontainers.image.title": "Tulle",
            "org.opencontainers.image.description":
                "Node agent of Tulle: Kubernetes Services and a VXLAN overlay in eBPF",
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.licenses": "Apache-2.0 AND (Apache-2.0 OR GPL-2.0-only)",
        })
    }

    fn config(&self, diff_id: &str) -> Value {
        json!({
            "created": NO_TIME,
            "architecture": self.platform.architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/bin"],
                "Entrypoint": ["/usr/bin/tulle-agent"],
                "Cmd": ["run"],
                "WorkingDir": "/",
                "Labels": self.words(),
            },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{ "created": NO_TIME, "created_by": "cargo xtask image" }],
        })
    }

    fn manifest(&self, config: &[u8], layer: &[u8]) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, config),
            "layers": [descriptor(LAYER, layer)],
            "annotations": self.words(),
        })
    }

    fn index(&self, manifest: &[u8]) -> Value {
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        let mut of_manifest = descriptor(MANIFEST, manifest);
        of_manifest["platform"] = json!({
            "architecture": self.platform.architecture(),
            "os": "linux",
        });
        // The first is the name that containerd gives the image when it imports the archive.
        of_manifest["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": tag,
        });
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [of_manifest] })
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

/// Members are sorted by name, so the same value has the same octets.
fn to_octets(value: &Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// `sha256:` and 64 hexadecimal digits.
pub fn digest(content: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for octet in Sha256::digest(content) {
        for half in [octet >> 4, octet & 15] {
            text.extend(char::from_digit(half.into(), 16));
        }
    }
    text
}

fn blob(content: &[u8]) -> String {
    format!("blobs/{}", digest(content).replace(':', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_standards() {
        // FIPS 180-4, the message "abc".
        assert_eq!(
            digest(b"abc"),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
