//! The cluster's file, by which another process finds it, and its removal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{Cluster, Node, NodeSpec, Outsider, Pod, PodSpec};
use crate::error::{Context, Error, Result};
use crate::netns::NetNs;
use crate::registry::{self, Resource};
use crate::wait;

const DIRECTORY: &str = "/run/tulle-clusters";

/// Content of `/run/tulle-clusters/<name>.json`.
#[derive(Serialize, Deserialize)]
struct State {
    /// Process that built it.
    pid: u32,
    /// Whether it is meant to outlive that process.
    kept: bool,
    ipv6: bool,
    uplink_mtu: u32,
    nodes: Vec<NodeState>,
    outsiders: Vec<OutsiderState>,
}

#[derive(Serialize, Deserialize)]
struct NodeState {
    node: NodeSpec,
    pods: Vec<PodSpec>,
}

#[derive(Serialize, Deserialize)]
struct OutsiderState {
    index: u8,
    name: String,
}

/// Directory of a cluster's files.
pub(super) fn directory(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn file(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{name}.json"))
}

/// Takes a name that is free, so that two builders cannot share it.
pub(super) fn claim(name: &str) -> Result<()> {
    check_name(name)?;
    std::fs::create_dir_all(DIRECTORY).trying(|| format!("make {DIRECTORY}"))?;
    let path = directory(name);
    registry::acquire(|| match std::fs::create_dir(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Err(Error::Invalid(format!(
            "cluster {name} exists already ({}); remove it first",
            path.display()
        ))),
        other => {
            other.trying(|| format!("make {}", path.display()))?;
            Ok((Resource::Path(path.clone()), ()))
        }
    })?;
    registry::acquire(|| Ok((Resource::Path(file(name)), ())))
}

/// "-node" would make the namespaces of two clusters hard to tell apart.
fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.is_empty() || name.len() > 40 || !name.chars().all(fits) || name.contains("-node") {
        return Err(Error::Invalid(format!(
            "cluster name {name:?}: use 1 to 40 letters, digits and '-', without \"-node\""
        )));
    }
    Ok(())
}

/// Gives a claimed name back.
pub(super) fn abandon(name: &str) {
    for path in [directory(name), file(name)] {
        registry::forget(&Resource::Path(path.clone()));
        report(registry::remove(&Resource::Path(path)));
    }
}

impl Cluster {
    /// A cluster that exists, by its name. Dropping the value leaves it.
    pub fn load(name: &str) -> Result<Self> {
        check_name(name)?;
        let state = read(name)?;
        let namespace = |part: &str| NetNs::adopt(&format!("{name}-{part}"));
        let nodes = state.nodes.into_iter().map(|NodeState { node, pods }| {
            let pods = pods.into_iter().map(|spec| {
                Ok(Pod {
                    ns: namespace(&spec.name)?,
                    spec,
                })
            });
            Ok(Node {
                ns: namespace(&node.name)?,
                cgroup: None,
                directory: directory(name).join(&node.name),
                switch: format!("{name}-switch"),
                pods: pods.collect::<Result<_>>()?,
                spec: node,
            })
        });
        let outsiders = state
            .outsiders
            .into_iter()
            .map(|OutsiderState { index, name }| {
                Ok(Outsider {
                    index,
                    ns: namespace(&name)?,
                    name,
                })
            });
        Ok(Self {
            cgroups: false,
            whole_checksums: false,
            ipv6: state.ipv6,
            uplink_mtu: state.uplink_mtu,
            kept: true,
            switch: namespace("switch")?,
            nodes: nodes.collect::<Result<_>>()?,
            outsiders: outsiders.collect::<Result<_>>()?,
            name: name.to_owned(),
        })
    }

    /// Removes a cluster by its name, complete or not: processes in its
    /// namespaces, BPF file systems, namespaces and files. Returns whether
    /// there was anything.
    pub fn destroy(name: &str) -> Result<bool> {
        check_name(name)?;
        if !file(name).exists() && !directory(name).exists() {
            return Ok(false);
        }
        let state = if file(name).exists() {
            Some(read(name)?)
        } else {
            None
        };
        let mut parts = vec!["switch".to_owned()];
        let mut mounts = Vec::new();
        for NodeState { node, pods } in state.iter().flat_map(|s| &s.nodes) {
            parts.extend(pods.iter().map(|pod| pod.name.clone()));
            parts.push(node.name.clone());
            mounts.push(directory(name).join(&node.name).join("bpf"));
        }
        parts.extend(
            state
                .iter()
                .flat_map(|s| &s.outsiders)
                .map(|o| o.name.clone()),
        );
        // A builder that was killed may have got further than its file says.
        let prefix = format!("{name}-node-");
        let listed = std::fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten();
        for found in listed.filter_map(|entry| entry.file_name().into_string().ok()) {
            if found.starts_with(&prefix)
                && let Some(part) = found.strip_prefix(&format!("{name}-"))
            {
                parts.push(part.to_owned());
            }
        }
        for entry in std::fs::read_dir(directory(name))
            .into_iter()
            .flatten()
            .flatten()
        {
            mounts.push(entry.path().join("bpf"));
        }
        for part in parts {
            if let Ok(ns) = NetNs::adopt(&format!("{name}-{part}")) {
                remove_namespace(&ns)?;
            }
        }
        for mount in mounts {
            registry::forget(&Resource::Mount(mount.clone()));
            registry::remove(&Resource::Mount(mount))?;
        }
        for path in [directory(name), file(name)] {
            registry::forget(&Resource::Path(path.clone()));
            registry::remove(&Resource::Path(path))?;
        }
        Ok(true)
    }

    /// Names of the clusters on this machine.
    pub fn list() -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(DIRECTORY)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_suffix(".json")?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// Removes clusters whose builder no longer runs and did not keep them.
    /// Returns their names.
    pub fn sweep() -> Result<Vec<String>> {
        let mut removed = Vec::new();
        for name in Self::list() {
            let state = read(&name)?;
            if !state.kept && !Path::new(&format!("/proc/{}", state.pid)).exists() {
                Self::destroy(&name)?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// Writes the cluster's file.
    pub(super) fn save(&self) -> Result<()> {
        let nodes = self.nodes.iter().map(|node| NodeState {
            node: node.spec.clone(),
            pods: node.pods.iter().map(|pod| pod.spec.clone()).collect(),
        });
        let outsiders = self.outsiders.iter().map(|o| OutsiderState {
            index: o.index,
            name: o.name.clone(),
        });
        let state = State {
            pid: std::process::id(),
            kept: self.kept,
            ipv6: self.ipv6,
            uplink_mtu: self.uplink_mtu,
            nodes: nodes.collect(),
            outsiders: outsiders.collect(),
        };
        let path = file(&self.name);
        let what = || format!("write {}", path.display());
        let text = serde_json::to_vec_pretty(&state)
            .map_err(std::io::Error::from)
            .trying(what)?;
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text).trying(what)?;
        std::fs::rename(&temporary, &path).trying(what)
    }

    /// Takes the cluster's files and mounts from the list of what is removed
    /// when the process is interrupted.
    pub(super) fn forget_paths(&self) {
        for node in &self.nodes {
            registry::forget(&Resource::Mount(node.bpffs()));
        }
        for path in [directory(&self.name), file(&self.name)] {
            registry::forget(&Resource::Path(path));
        }
    }

    fn remove(&mut self) {
        for outsider in self.outsiders.drain(..) {
            report(remove_namespace(&outsider.ns));
        }
        for node in self.nodes.drain(..) {
            report(remove_node(node));
        }
        report(remove_namespace(&self.switch));
        abandon(&self.name);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.kept {
            self.remove();
        }
    }
}

/// Removes a node with its pods and what is mounted for it.
pub(super) fn remove_node(mut node: Node) -> Result<()> {
    for pod in node.pods.drain(..) {
        remove_namespace(&pod.ns)?;
    }
    remove_namespace(&node.ns)?;
    let mount = Resource::Mount(node.bpffs());
    registry::forget(&mount);
    registry::remove(&mount)?;
    registry::remove(&Resource::Path(node.directory.clone()))
}

/// Ends the processes in a namespace and removes it.
pub(super) fn remove_namespace(ns: &NetNs) -> Result<()> {
    if !ns.path().exists() {
        return Ok(());
    }
    for pid in ns.processes()? {
        match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => return Err(e).trying(|| format!("kill process {pid} in {}", ns.name())),
        }
    }
    // A process that is ending still holds its sockets and BPF links.
    let what = format!("no end of the processes in namespace {}", ns.name());
    wait::until(&what, Duration::from_secs(5), || {
        Ok(ns.processes()?.is_empty().then_some(()))
    })?;
    registry::forget(&Resource::NetNs(ns.name().to_owned()));
    registry::remove(&Resource::NetNs(ns.name().to_owned()))
}

fn read(name: &str) -> Result<State> {
    let path = file(name);
    let text =
        std::fs::read(&path).trying(|| format!("read the cluster's file {}", path.display()))?;
    serde_json::from_slice(&text).map_err(|source| Error::Json {
        command: path.display().to_string(),
        source,
    })
}

fn report(result: Result<()>) {
    if let Err(e) = result {
        eprintln!("testkit: {e}");
    }
}
