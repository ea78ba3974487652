//! Where the agent runs: what decides whether sockets are served unasked, and at which cgroup.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::args::SocketServices;
use crate::kernel::Cgroup;
use crate::kernel::cgroup::mounts;
use crate::kernel::own_connections;

/// The inode of the machine's first PID namespace (`PROC_PID_INIT_INO` of the kernel).
pub(in crate::run) const FIRST_PIDS: u64 = 0xefff_fffc;

/// What the choice depends on beside the flags.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Whether process 1, as the agent sees it, is the machine's.
    pub sees_init: bool,
    /// Whether the agent is in the network namespace of process 1; none if that cannot be told.
    pub with_init: Option<bool>,
    /// Where cgroups of version 2 are mounted, the likeliest first, and which of these are
    /// above all processes of the machine.
    pub mounts: Vec<(PathBuf, bool)>,
    /// Whether the kernel's own connections keep the address that they asked for.
    pub keeps_own: bool,
}

impl Surroundings {
    /// Those of this process.
    pub fn look() -> Self {
        let namespace = |process: &str, kind: &str| {
            let inode = std::fs::metadata(format!("/proc/{process}/ns/{kind}"));
            inode.ok().map(|found| found.ino())
        };
        let with_init =
            namespace("self", "net").and_then(|own| Some(own == namespace("1", "net")?));
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let is_root = |path: &PathBuf| Cgroup::open(path).is_ok_and(|cgroup| cgroup.is_root());
        let mounts = mounts(&mountinfo).into_iter().map(|path| {
            let is_root = is_root(&path);
            (path, is_root)
        });
        Self {
            sees_init: namespace("self", "pid") == Some(FIRST_PIDS),
            with_init,
            mounts: mounts.collect(),
            keeps_own: own_connections::keep_addresses(),
        }
    }

    /// The mode and the cgroup, or why there are none.
    pub(super) fn decide(
        &self,
        asked: SocketServices,
        named: Option<&Path>,
    ) -> Result<(SocketServices, Cgroup, &'static str), String> {
        let (mode, path, why) = self.place(asked, named)?;
        let cgroup = Cgroup::open(path).map_err(|e| e.to_string())?;
        Ok((mode, cgroup, why))
    }

    /// The mode and the cgroup's directory, or why there are none.
    pub(super) fn place<'a>(
        &'a self,
        asked: SocketServices,
        named: Option<&'a Path>,
    ) -> Result<(SocketServices, &'a Path, &'static str), String> {
        match asked {
            SocketServices::Off => Err("switched off".into()),
            SocketServices::All | SocketServices::Host => {
                let at = named.map_or_else(|| self.best().map(|(path, _)| path), Ok)?;
                Ok((asked, at, "asked for"))
            }
            SocketServices::Auto => {
                if let Some(at) = named {
                    return Ok((SocketServices::All, at, "a cgroup was named"));
                }
                let at = self.host()?;
                let why = "all that runs below the cgroup is this node's";
                Ok((SocketServices::All, at, why))
            }
        }
    }

    /// The mount that most is below.
    fn best(&self) -> Result<(&Path, bool), String> {
        let root = self.mounts.iter().find(|(_, is_root)| *is_root);
        let best = root.or_else(|| self.mounts.first());
        best.map(|(path, is_root)| (path.as_path(), *is_root))
            .ok_or_else(|| {
                "no cgroup file system of version 2 is mounted (mount -t cgroup2 none \
                 /sys/fs/cgroup/unified)"
                    .to_owned()
            })
    }

    /// The cgroup of the machine, if it is this node's alone.
    fn host(&self) -> Result<&Path, String> {
        if !self.sees_init {
            return Err(
                "the agent is in a PID namespace of its own, and cannot tell whether it serves the \
                 host; run it in the host's (hostPID), or name the node's cgroup with --cgroup"
                    .into(),
            );
        }
        if self.with_init != Some(true) {
            return Err(
                "the agent is not in the network namespace of process 1, so processes of others \
                 may be below the same cgroup; name this node's with --cgroup"
                    .into(),
            );
        }
        let (path, is_root) = self.best()?;
        if !is_root {
            return Err(format!(
                "{} is only a part of the host's cgroups; mount all of them in the agent's \
                 container, or name the node's cgroup with --cgroup",
                path.display()
            ));
        }
        if !self.keeps_own {
            return Err(
                "this kernel may let its own connections (NFS, SMB, Ceph) to a service stay with a \
                 backend that is gone: boot Linux 6.6, 6.1.106, 5.15.165 or later, or ask for it \
                 with --socket-services all"
                    .into(),
            );
        }
        Ok(path)
    }
}
