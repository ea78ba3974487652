//! Files by which clients find the server.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::{Context, Result};

/// A kubeconfig and the files that it names. They stay when the value is dropped.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    /// The kubeconfig.
    pub path: PathBuf,
    /// Certificates of the authorities that clients believe (PEM); not there without TLS.
    pub authority: PathBuf,
    /// The bearer token.
    pub token: PathBuf,
}

impl Kubeconfig {
    /// Writes `kubeconfig`, `ca.crt` and `token` into a directory, which is made if need be.
    pub fn write(
        directory: &Path,
        url: &str,
        authority: Option<&str>,
        token: &str,
    ) -> Result<Self> {
        let making = || format!("make {}", directory.display());
        std::fs::create_dir_all(directory).trying(making)?;
        let config = Self {
            path: directory.join("kubeconfig"),
            authority: directory.join("ca.crt"),
            token: directory.join("token"),
        };
        config.write_token(token)?;
        let mut cluster = json!({"server": url});
        if let Some(pem) = authority {
            config.write_authority(pem)?;
            cluster["certificate-authority"] = config.authority.to_string_lossy().into();
        }
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"tokenFile": config.token.to_string_lossy()}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        });
        replace(&config.path, &text.to_string())?; // JSON is YAML
        Ok(config)
    }

    /// Puts another token in the place of the former, as the kubelet does.
    pub fn write_token(&self, token: &str) -> Result<()> {
        replace(&self.token, token)
    }

    /// Puts other authorities in the place of the former.
    pub fn write_authority(&self, pem: &str) -> Result<()> {
        replace(&self.authority, pem)
    }
}

/// Readers see the old content or the new.
fn replace(path: &Path, text: &str) -> Result<()> {
    let what = || format!("write {}", path.display());
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text).trying(what)?;
    std::fs::rename(&temporary, path).trying(what)
}
