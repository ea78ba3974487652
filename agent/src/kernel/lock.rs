//! One agent for each node: an exclusive lock with the holder's number inside.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held as long as the agent runs; the kernel lets go when it dies.
#[derive(Debug)]
pub struct InstanceLock {
    _file: Flock<File>,
}

/// Another instance runs, or the lock cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it.
    #[error("another tulle-agent runs for this node (process {pid}, lock {}); stop it first, or give this one its own --run-dir and --bpffs", path.display())]
    Held {
        /// What the file says; "unknown" if nothing.
        pid: String,
        /// The lock.
        path: PathBuf,
    },
    /// The file cannot be made or locked.
    #[error("cannot lock {}: {source}; is the directory writable?", path.display())]
    File {
        /// The lock.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl InstanceLock {
    /// Takes `<run_dir>/agent.lock`, making the directory if need be.
    pub fn take(run_dir: &Path) -> Result<Self, LockError> {
        let path = run_dir.join("agent.lock");
        let fail = |source| LockError::File {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(run_dir).map_err(fail)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(fail)?;
                let pid = match pid.trim() {
                    "" => "unknown".into(),
                    pid => pid.into(),
                };
                return Err(LockError::Held { pid, path });
            }
            Err((_, errno)) => return Err(fail(errno.into())),
        };
        file.set_len(0).map_err(fail)?;
        file.rewind().map_err(fail)?;
        writeln!(file, "{}", std::process::id()).map_err(fail)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_by_number_and_the_third_may_after_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let first = InstanceLock::take(&run).unwrap();
        let refusal = InstanceLock::take(&run).unwrap_err();
        assert!(
            matches!(&refusal, LockError::Held { pid, .. } if *pid == std::process::id().to_string())
        );
        assert!(
            refusal
                .to_string()
                .contains(&format!("process {}", std::process::id()))
        );
        drop(first);
        InstanceLock::take(&run).unwrap();
    }
}
