//! The checkout that xtask works on, as cargo sees it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// Root, target directory and members of the workspace.
#[derive(Debug, Deserialize)]
pub struct Workspace {
    #[serde(rename = "workspace_root")]
    root: PathBuf,
    #[serde(rename = "target_directory")]
    target: PathBuf,
    packages: Vec<Package>,
}

/// A member.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// The name that `cargo -p` takes.
    pub name: String,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Package {
    /// Names of its targets of this kind: `lib`, `bin`, `test`.
    pub fn names(&self, kind: &str) -> impl Iterator<Item = &str> {
        let of_kind = move |target: &&Target| target.kind.iter().any(|k| k == kind);
        self.targets
            .iter()
            .filter(of_kind)
            .map(|target| target.name.as_str())
    }
}

impl Workspace {
    /// Asks cargo. The target directory follows `CARGO_TARGET_DIR` and cargo's configuration.
    pub fn detect() -> Result<Self> {
        // At run time `cargo run` says where the sources are now; a binary that was started in
        // another way knows where they were.
        let xtask = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let text = process::output(
            process::command(cargo())
                .args([
                    "metadata",
                    "--no-deps",
                    "--format-version",
                    "1",
                    "--manifest-path",
                ])
                .arg(xtask.join("Cargo.toml")),
        )?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).context("`cargo metadata` printed something else than expected")
    }

    /// Cargo's target directory, absolute.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// The directory of the workspace.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All members.
    pub fn packages(&self) -> &[Package] {
        &self.packages
    }

    /// The object that the agent embeds.
    pub fn bpf_object(&self) -> PathBuf {
        self.target.join("bpf/tulle.bpf.o")
    }

    /// The object of the benchmark's scaffold.
    pub fn bench_object(&self) -> PathBuf {
        self.target.join("bpf/tulle-bench.bpf.o")
    }

    /// The cargo that runs xtask, in this workspace.
    pub fn cargo(&self) -> Command {
        let mut command = process::command(cargo());
        self.adapt(&mut command);
        command
    }

    /// Makes `command` work in this workspace: at its root, into its target directory, and without
    /// the library path that `cargo run` sets for the program it runs.
    pub fn adapt(&self, command: &mut Command) {
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target)
            .env_remove("LD_LIBRARY_PATH");
    }

    /// A workspace without members.
    #[cfg(test)]
    pub fn for_tests(root: &str, target: &str) -> Self {
        Self {
            root: root.into(),
            target: target.into(),
            packages: Vec::new(),
        }
    }
}

fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargo_metadata() {
        let workspace = Workspace::parse(
            r#"{"packages":[{"name":"a","version":"1.0.0","targets":[
                {"kind":["lib"],"name":"a"},{"kind":["test"],"name":"t"}]}],
               "workspace_root":"/src","target_directory":"/build","version":1}"#,
        )
        .unwrap();
        assert_eq!(workspace.root, Path::new("/src"));
        assert_eq!(workspace.bpf_object(), Path::new("/build/bpf/tulle.bpf.o"));
        let package = &workspace.packages()[0];
        assert_eq!(package.names("test").collect::<Vec<_>>(), ["t"]);
        assert_eq!(package.names("bin").count(), 0);
        assert!(Workspace::parse("{}").is_err());
    }

    #[test]
    fn this_checkout_has_the_members_that_xtask_names() {
        let workspace = Workspace::detect().unwrap();
        let names: Vec<&str> = workspace
            .packages()
            .iter()
            .map(|p| p.name.as_str())
            .collect();
        for name in [
            "datapath-ebpf",
            "tulle-agent",
            "bpf-tests",
            "testkit",
            "xtask",
        ] {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert!(workspace.root.join("datapath-ebpf").is_dir());
    }
}
