//! Cgroups (version 2) for nodes, so that programs at the sockets of one node's processes
//! see nobody else's.
//!
//! The first one moves this process to a cgroup `tl<pid>` of its own; those of nodes are
//! below it and hold threads, for a test is a node's process and a pod's in turn. Sockets
//! belong to where they were made. The last one that goes moves the process back.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::registry::{self, Resource};
use crate::wait;

/// The cgroup of this process, and how many are below it.
static BASE: Mutex<Option<Base>> = Mutex::new(None);

struct Base {
    path: PathBuf,
    /// Where the process was before.
    former: PathBuf,
    users: usize,
}

/// A cgroup of threads. Removed on drop, when nobody is in it any more.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new one. `name` is its directory's.
    pub fn new(name: &str) -> Result<Self> {
        let mut base = BASE.lock().unwrap_or_else(PoisonError::into_inner);
        if base.is_none() {
            *base = Some(Base::make()?);
        }
        let Some(base) = base.as_mut() else {
            return Err(Error::Invalid("no cgroup of this process".into()));
        };
        let path = base.path.join(name);
        let cgroup = registry::acquire(|| {
            make(&path)?;
            Ok((Resource::Cgroup(path.clone()), Self { path: path.clone() }))
        })?;
        base.users += 1;
        write(&path.join("cgroup.type"), "threaded")?;
        Ok(cgroup)
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut base = BASE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(base) = base.as_ref() {
            base.take_back(&self.path);
        }
        let gone = registry::release(&Resource::Cgroup(self.path.clone()));
        let last = base.as_mut().is_some_and(|base| {
            base.users -= 1;
            base.users == 0
        });
        let left = base.take_if(|_| last).map_or(Ok(()), Base::leave);
        for error in [gone, left].into_iter().filter_map(Result::err) {
            eprintln!("testkit: {error}");
        }
    }
}

impl Base {
    fn make() -> Result<Self> {
        let root = mounted()?;
        sweep(&root)?;
        let own = std::fs::read_to_string("/proc/self/cgroup")
            .trying(|| "read this process' cgroup".to_owned())?;
        let former = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let former = root.join(former.unwrap_or_default());
        let path = root.join(format!("tl{}", std::process::id()));
        registry::acquire(|| {
            make(&path)?;
            Ok((Resource::Cgroup(path.clone()), ()))
        })?;
        write(&path.join("cgroup.procs"), "0")?;
        Ok(Self {
            path,
            former,
            users: 0,
        })
    }

    /// Takes threads out of a cgroup that are at work there still.
    fn take_back(&self, from: &Path) {
        let threads = std::fs::read_to_string(from.join("cgroup.threads")).unwrap_or_default();
        for thread in threads.lines() {
            // One that has ended meanwhile is not there any more.
            let _ = std::fs::write(self.path.join("cgroup.threads"), thread);
        }
    }

    fn leave(self) -> Result<()> {
        write(&self.former.join("cgroup.procs"), "0")?;
        registry::release(&Resource::Cgroup(self.path))
    }
}

/// What moves the calling thread, or a child before it becomes another program.
pub(crate) fn entrance(cgroup: &Path) -> Result<File> {
    let threads = cgroup.join("cgroup.threads");
    let file = OpenOptions::new().write(true).open(&threads);
    file.trying(|| format!("open {}", threads.display()))
}

/// Moves the calling thread.
pub(crate) fn enter(cgroup: &Path) -> Result<()> {
    let entered = entrance(cgroup)?.write_all(b"0");
    entered.trying(|| format!("enter the cgroup {}", cgroup.display()))
}

/// Removes a cgroup once nobody is in it.
pub(crate) fn remove(cgroup: &Path) -> Result<()> {
    let what = format!("somebody in the cgroup {}", cgroup.display());
    wait::until(
        &what,
        Duration::from_secs(5),
        || match std::fs::remove_dir(cgroup) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Some(())),
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => Ok(None),
            other => other
                .map(Some)
                .trying(|| format!("remove the cgroup {}", cgroup.display())),
        },
    )
}

fn make(path: &Path) -> Result<()> {
    std::fs::create_dir(path).trying(|| format!("make the cgroup {}", path.display()))
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).trying(|| format!("write {text:?} to {}", file.display()))
}

/// Where the cgroup file system of version 2 is mounted.
fn mounted() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .trying(|| "read the mounted file systems".to_owned())?;
    let at = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))?
    });
    at.map(PathBuf::from).ok_or_else(|| {
        Error::Invalid("no cgroup file system of version 2 is mounted (mount -t cgroup2)".into())
    })
}

/// Removes what tests that were killed left.
fn sweep(root: &Path) -> Result<()> {
    let entries =
        std::fs::read_dir(root).trying(|| format!("list the cgroups in {}", root.display()))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("tl"));
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else {
            continue;
        };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        let below = std::fs::read_dir(entry.path()).into_iter().flatten();
        for node in below.flatten().filter(|node| node.path().is_dir()) {
            let _ = std::fs::remove_dir(node.path()); // another test may sweep, too
        }
        let _ = std::fs::remove_dir(entry.path());
    }
    Ok(())
}
