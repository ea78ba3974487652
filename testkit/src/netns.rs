//! Named network namespaces, as `ip netns` keeps them under `/run/netns`.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};

use crate::cgroup;
use crate::error::{Context, Error, Result};
use crate::link;
use crate::registry::{self, Resource};

const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name. Deleted on drop if this value made it.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    owned: bool,
    /// Where its processes are, and with them their sockets.
    cgroup: Option<PathBuf>,
}

impl NetNs {
    /// A new namespace named `tl<pid>-<n>-<label>`, with `lo` up.
    pub fn new(label: &str) -> Result<Self> {
        Self::named(&unique(label))
    }

    /// A new namespace of exactly this name, with `lo` up, without IPv6
    /// duplicate address detection, and with the IPv4 settings that would
    /// otherwise come from the machine (forwarding, reverse path filter) off.
    pub fn named(name: &str) -> Result<Self> {
        check_name(name)?;
        if path_of(name).exists() {
            return Err(Error::Invalid(format!(
                "network namespace {name} exists already; remove it with `ip netns del {name}`"
            )));
        }
        let ns = registry::acquire(|| {
            link::run(Command::new("ip").args(["netns", "add", name]))?;
            let ns = Self {
                name: name.to_owned(),
                owned: true,
                cgroup: None,
            };
            Ok((Resource::NetNs(name.to_owned()), ns))
        })?;
        link::sysctls(
            &ns,
            &[
                ("net.ipv4.ip_forward", "0"),
                ("net.ipv4.conf.all.rp_filter", "0"),
                ("net.ipv4.conf.default.rp_filter", "0"),
                ("net.ipv6.conf.all.accept_dad", "0"),
                ("net.ipv6.conf.default.accept_dad", "0"),
                ("net.ipv6.conf.default.accept_ra", "0"),
                ("net.ipv6.conf.default.router_solicitations", "0"),
            ],
        )?;
        link::ip(&ns, &["link", "set", "lo", "up"])?;
        Ok(ns)
    }

    /// A namespace that exists already; dropping the value leaves it.
    pub fn adopt(name: &str) -> Result<Self> {
        check_name(name)?;
        if !path_of(name).exists() {
            return Err(Error::Invalid(format!(
                "network namespace {name} does not exist; `ip netns list` shows those that do"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            owned: false,
            cgroup: None,
        })
    }

    /// What runs in the namespace from now on is in this cgroup, too.
    pub(crate) fn set_cgroup(&mut self, cgroup: Option<&Path>) {
        self.cgroup = cgroup.map(Path::to_owned);
    }

    /// The name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        path_of(&self.name)
    }

    /// Lets the namespace outlive this value and this process.
    pub fn keep(&mut self) {
        self.owned = false;
        registry::forget(&Resource::NetNs(self.name.clone()));
    }

    /// Inode of the namespace: equal for all references to the same one.
    pub fn inode(&self) -> Result<u64> {
        let path = self.path();
        let meta = std::fs::metadata(&path).trying(|| format!("look at {}", path.display()))?;
        Ok(meta.ino())
    }

    /// Runs `work` in a new thread inside the namespace and returns its value.
    /// Sockets opened there stay in the namespace. A panic goes on here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)
                    .trying(|| format!("enter network namespace {}", self.name))?;
                self.cgroup.as_deref().map_or(Ok(()), cgroup::enter)?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread into the namespace, for threads that live long.
    pub fn enter(&self) -> Result<()> {
        setns(self.open()?, CloneFlags::CLONE_NEWNET)
            .trying(|| format!("enter network namespace {}", self.name))?;
        self.cgroup.as_deref().map_or(Ok(()), cgroup::enter)
    }

    /// A command that will run inside the namespace. Mounts stay the
    /// machine's: `/sys/class/net` shows its interfaces, `/proc/sys/net` those
    /// of the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let file = self.open()?;
        let entrance = self.cgroup.as_deref().map(cgroup::entrance).transpose()?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only the system calls `setns` and `write` are made,
        // on file descriptors that the closure owns; nothing is allocated
        // (the error is an errno) and no lock is taken.
        unsafe {
            command.pre_exec(move || {
                if let Some(entrance) = &entrance {
                    nix::unistd::write(entrance, b"0")?;
                }
                Ok(setns(&file, CloneFlags::CLONE_NEWNET)?)
            });
        }
        Ok(command)
    }

    /// Ids of the processes whose main thread is in the namespace, without
    /// this process.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let link = format!("net:[{}]", self.inode()?);
        let entries = std::fs::read_dir("/proc").trying(|| "list /proc".to_owned())?;
        let own = std::process::id();
        Ok(entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|&pid| pid != own)
            .filter(|pid| {
                std::fs::read_link(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|target| target == Path::new(&link))
            })
            .collect())
    }

    fn open(&self) -> Result<File> {
        let path = self.path();
        File::open(&path).trying(|| format!("open network namespace {}", path.display()))
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        if self.owned
            && let Err(e) = registry::release(&Resource::NetNs(self.name.clone()))
        {
            eprintln!("testkit: {e}");
        }
    }
}

/// A name that no other process uses: `tl<pid>-<n>-<label>`.
pub fn unique(label: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("tl{}-{n}-{label}", std::process::id())
}

/// Removes the namespaces `tl<pid>-…` of processes that no longer run, such as
/// tests that were killed, but not those of a cluster, which
/// [`Cluster::sweep`](crate::Cluster::sweep) knows. Returns their names.
pub fn sweep() -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else {
        return Ok(Vec::new()); // no namespace was ever named
    };
    let clusters: Vec<String> = crate::Cluster::list()
        .iter()
        .map(|c| format!("{c}-"))
        .collect();
    let stale: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            owner_of(name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
                && !clusters.iter().any(|cluster| name.starts_with(cluster))
        })
        .collect();
    for name in &stale {
        delete(name)?;
    }
    Ok(stale)
}

/// The process id in a name that [`unique`] made.
fn owner_of(name: &str) -> Option<u32> {
    name.strip_prefix("tl")?.split_once('-')?.0.parse().ok()
}

/// Removes the name; the namespace goes when nothing else holds it.
pub(crate) fn delete(name: &str) -> Result<()> {
    let path = path_of(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(e) => return Err(e).trying(|| format!("unmount {}", path.display())),
    }
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.trying(|| format!("remove {}", path.display())),
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(fits) {
        return Err(Error::Invalid(format!(
            "network namespace name {name:?}: use 1 to 100 letters, digits, '-', '_' and '.', not beginning with '.'"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unique_name_tells_its_owner() {
        let (first, second) = (unique("x"), unique("x"));
        assert_ne!(first, second);
        assert_eq!(owner_of(&first), Some(std::process::id()));
        for foreign in ["demo-switch", "tl-1-x", "tlx-1", "tl12"] {
            assert_eq!(owner_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn names_stay_inside_the_directory() {
        for bad in ["", "a/b", "..", ".hidden", "a b"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("tl1-2-node.x_y").is_ok());
    }
}
