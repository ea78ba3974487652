//! What this process has made outside itself and not yet removed, so that an
//! interrupted run can remove it from another thread.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};

/// Something that outlives the process unless it is removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Resource {
    /// A named network namespace.
    NetNs(String),
    /// A mount point.
    Mount(PathBuf),
    /// A file, or a directory with all that is in it.
    Path(PathBuf),
    /// A cgroup, which nobody is in by then.
    Cgroup(PathBuf),
    /// A child process that has not been waited for.
    Process(u32),
}

struct Registry {
    resources: Vec<Resource>,
    closed: bool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    resources: Vec::new(),
    closed: false,
});

fn registry() -> MutexGuard<'static, Registry> {
    // A panic elsewhere must not keep us from removing things.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a resource and remembers it, as one step for [`remove_everything`].
/// `make` also says which resource it made; it must not call back here.
pub(crate) fn acquire<T>(make: impl FnOnce() -> Result<(Resource, T)>) -> Result<T> {
    let mut registry = registry();
    if registry.closed {
        return Err(Error::Interrupted);
    }
    let (resource, value) = make()?;
    registry.resources.push(resource);
    Ok(value)
}

/// Removes a resource if it is still remembered.
pub(crate) fn release(resource: &Resource) -> Result<()> {
    let mut registry = registry();
    let Some(at) = registry.resources.iter().position(|r| r == resource) else {
        return Ok(());
    };
    registry.resources.remove(at);
    remove(resource)
}

/// Forgets a resource that stays or is gone already.
pub(crate) fn forget(resource: &Resource) {
    registry().resources.retain(|r| r != resource);
}

/// Removes all that is remembered, the newest first, and refuses to make
/// anything new: for the thread that heard Ctrl-C, just before it exits.
/// Returns what could not be removed.
pub fn remove_everything() -> Vec<Error> {
    let mut registry = registry();
    registry.closed = true;
    let mut failures = Vec::new();
    while let Some(resource) = registry.resources.pop() {
        if let Err(e) = remove(&resource) {
            failures.push(e);
        }
    }
    failures
}

/// Removes a resource; one that is gone already is no error.
pub(crate) fn remove(resource: &Resource) -> Result<()> {
    match resource {
        Resource::NetNs(name) => crate::netns::delete(name),
        Resource::Mount(path) => match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(e) => Err(e).trying(|| format!("unmount {}", path.display())),
        },
        Resource::Path(path) => {
            let gone = if path.is_dir() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
            match gone {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other.trying(|| format!("remove {}", path.display())),
            }
        }
        Resource::Cgroup(path) => crate::cgroup::remove(path),
        Resource::Process(pid) => match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e).trying(|| format!("kill process {pid}")),
        },
    }
}
