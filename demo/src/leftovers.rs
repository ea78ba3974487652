//! What a demo consists of, its removal, and the proof that nothing is left.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{loaded_links, loaded_programs};
use testkit::{Cluster, wait};

use crate::processes::{self, Process};

const NAMESPACES: &str = "/run/netns";
const CLUSTERS: &str = "/run/tulle-clusters";
/// The kernel frees maps and programs some time after their last user is gone.
const LIMIT: Duration = Duration::from_secs(10);
/// Before each look at the maps, for [`Inventory::maps_left`].
const SETTLE: Duration = Duration::from_millis(500);

/// Everything of a demo that exists outside its processes' memory.
#[derive(Default, Debug)]
pub struct Inventory {
    namespaces: BTreeSet<String>,
    inodes: BTreeSet<u64>,
    processes: BTreeSet<Process>,
    paths: Vec<PathBuf>,
    mounts: BTreeSet<PathBuf>,
    pins: usize,
    maps: BTreeSet<u32>,
    programs: BTreeSet<u32>,
    bpf_links: BTreeSet<u32>,
    /// Network interfaces of the machine itself.
    interfaces: BTreeSet<String>,
}

/// Whether anything of this name is there.
pub fn exists(name: &str) -> bool {
    paths(name).iter().any(|path| path.exists()) || !namespaces(name).is_empty()
}

/// Removes the demo and waits until all of it is gone. Returns what was removed.
/// `end` ends the demo's processes as far as the caller knows them.
pub fn remove(name: &str, end: impl FnOnce()) -> Result<Inventory> {
    let taken = Inventory::take(name);
    end();
    Cluster::destroy(name).with_context(|| format!("remove the cluster {name}"))?;
    let inventory = taken.context("look at what the demo consists of")?;
    let mut left = Vec::new();
    let gone = wait::until("everything gone", LIMIT, || {
        left = inventory.left(name);
        if left.is_empty() {
            std::thread::sleep(SETTLE);
            left = inventory.maps_left();
        }
        Ok(left.is_empty().then_some(()))
    });
    if gone.is_err() {
        bail!("left behind: {}", left.join(", "));
    }
    Ok(inventory)
}

impl Inventory {
    fn take(name: &str) -> Result<Self> {
        let mut inventory = Self {
            namespaces: namespaces(name),
            paths: paths(name),
            mounts: mounts(name)?,
            interfaces: interfaces(),
            ..Self::default()
        };
        for namespace in &inventory.namespaces {
            let path = Path::new(NAMESPACES).join(namespace);
            let meta = path
                .metadata()
                .with_context(|| format!("look at {}", path.display()))?;
            inventory.inodes.insert(meta.ino());
        }
        inventory.processes = processes::in_namespaces(&inventory.inodes);
        for mount in inventory.mounts.clone() {
            inventory.add_pins(&mount, false)?;
        }
        Ok(inventory)
    }

    /// The agent pins links in folders named `links`, maps beside them.
    fn add_pins(&mut self, directory: &Path, links: bool) -> Result<()> {
        let what = || format!("look for pins in {}", directory.display());
        for entry in std::fs::read_dir(directory).with_context(what)? {
            let entry = entry.with_context(what)?;
            let path = entry.path();
            // The kernel's own files; pins cannot have a dot in their name.
            if entry.file_name().as_bytes().contains(&b'.') {
                continue;
            }
            if path.is_dir() {
                self.add_pins(&path, entry.file_name() == "links")?;
                continue;
            }
            let what = || format!("look at the pin {}", path.display());
            self.pins += 1;
            if links {
                let link = FdLink::from(PinnedLink::from_pin(&path).with_context(what)?);
                let info = link.info().with_context(what)?;
                self.bpf_links.insert(info.id());
                self.programs.insert(info.program_id());
            } else {
                self.maps
                    .insert(MapInfo::from_pin(&path).with_context(what)?.id());
            }
        }
        Ok(())
    }

    /// What is still there, but for maps.
    fn left(&self, name: &str) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |kind: &str, what: String| left.push(format!("{kind} {what}"));
        for namespace in namespaces(name) {
            note("network namespace", namespace);
        }
        for process in processes::in_namespaces(&self.inodes) {
            note("process in a removed namespace", process.pid.to_string());
        }
        for process in self.processes.iter().filter(|p| processes::runs(**p)) {
            note("process", process.pid.to_string());
        }
        for path in self.paths.iter().filter(|path| path.exists()) {
            note("file", path.display().to_string());
        }
        match mounts(name) {
            Ok(mounts) => mounts
                .iter()
                .for_each(|mount| note("mount", mount.display().to_string())),
            Err(e) => note("unknown mounts:", format!("{e:#}")),
        }
        for interface in interfaces().difference(&self.interfaces) {
            if is_ours(interface) {
                note("interface", interface.clone());
            }
        }
        let programs = loaded_programs().flatten().map(|program| program.id());
        let links = loaded_links().flatten().map(|link| link.id());
        for (kind, ids, loaded) in [
            (
                "BPF program",
                &self.programs,
                programs.collect::<BTreeSet<u32>>(),
            ),
            ("BPF link", &self.bpf_links, links.collect()),
        ] {
            for id in ids.intersection(&loaded) {
                note(kind, id.to_string());
            }
        }
        left
    }

    /// Maps that are still there. To be asked last, and seldom: listing opens
    /// each map, and when an array of programs is closed by its last user, the
    /// kernel has a worker empty it. If it is opened and closed again before
    /// the worker has run, Linux 6.18 loses count of its users and keeps it.
    fn maps_left(&self) -> Vec<String> {
        let maps: BTreeSet<u32> = loaded_maps().flatten().map(|map| map.id()).collect();
        let left = self.maps.intersection(&maps);
        left.map(|id| format!("BPF map {id}")).collect()
    }
}

/// In numbers, for the line that says that all of it is gone.
impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bpf = self.bpf_links.len() + self.programs.len() + self.maps.len();
        let parts = [
            (self.namespaces.len(), "namespace"),
            (self.processes.len(), "process"),
            (self.mounts.len(), "mount"),
            (self.pins, "pin"),
            (bpf, "BPF object"),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| crate::text::count(*n, what))
            .collect();
        match parts.split_last() {
            Some((last, [])) => f.write_str(last),
            Some((last, rest)) => write!(f, "{} and {last}", rest.join(", ")),
            None => Ok(()),
        }
    }
}

fn paths(name: &str) -> Vec<PathBuf> {
    let root = Path::new(CLUSTERS);
    vec![root.join(name), root.join(format!("{name}.json"))]
}

fn namespaces(name: &str) -> BTreeSet<String> {
    let (switch, node) = (format!("{name}-switch"), format!("{name}-node-"));
    std::fs::read_dir(NAMESPACES)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|found| *found == switch || found.starts_with(&node))
        .collect()
}

fn mounts(name: &str) -> Result<BTreeSet<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let directory = Path::new(CLUSTERS).join(name);
    Ok(mounts_below(&table, &directory))
}

fn mounts_below(table: &str, directory: &Path) -> BTreeSet<PathBuf> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|mount| mount.starts_with(directory))
        .collect()
}

fn interfaces() -> BTreeSet<String> {
    std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// Names that interfaces have inside a cluster's namespaces. Others on the
/// machine may come and go meanwhile.
fn is_ours(interface: &str) -> bool {
    ["pod", "node-", "flannel.", "br0"]
        .iter()
        .any(|prefix| interface.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_this_demo_count() {
        let table = "bpf /run/tulle-clusters/demo/node-1/bpf bpf rw 0 0\n\
                     bpf /run/tulle-clusters/demo2/node-1/bpf bpf rw 0 0\n\
                     proc /proc proc rw 0 0\n";
        let found = mounts_below(table, Path::new("/run/tulle-clusters/demo"));
        let expected = PathBuf::from("/run/tulle-clusters/demo/node-1/bpf");
        assert_eq!(found, BTreeSet::from([expected]));
    }

    #[test]
    fn what_is_left_is_named() {
        let name = format!("none-{}", std::process::id());
        let mut inventory = Inventory::default();
        assert!(inventory.left(&name).is_empty());
        let file = std::env::temp_dir().join(&name);
        std::fs::write(&file, "").unwrap();
        inventory.paths.push(file.clone());
        let left = inventory.left(&name);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(left, [format!("file {}", file.display())]);
    }

    #[test]
    fn what_was_removed_is_counted() {
        let inventory = Inventory {
            namespaces: BTreeSet::from(["a".into(), "b".into()]),
            pins: 1,
            ..Inventory::default()
        };
        assert_eq!(inventory.to_string(), "2 namespaces and 1 pin");
    }
}
