//! Programs at sockets: attached to a cgroup by links, which outlive the agent as those
//! at interfaces do.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::{Program, ProgramFd};
use aya_obj::generated::bpf_attach_type;
use datapath_common::{Feature, SocketHook};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::loader::Datapath;
use super::loading::{ProgramError, uninterrupted};
use super::pins::{PinError, open_link, remove_link};
use super::place::Entry;
use super::shape::ObjectError;
use super::sys::{self, CgroupLink};

/// A cgroup (version 2) that programs are attached to.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
}

/// A cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// It cannot be opened.
    #[error("cannot open the cgroup {}: {source}", path.display())]
    Open {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("{} is no cgroup of version 2", path.display())]
    Other {
        /// The directory.
        path: PathBuf,
    },
}

impl Cgroup {
    /// The cgroup of this directory.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let fail = |source| CgroupError::Open {
            path: path.to_owned(),
            source,
        };
        let kind = statfs(path).map_err(|e| fail(e.into()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(CgroupError::Other {
                path: path.to_owned(),
            });
        }
        let directory = File::open(path).map_err(fail)?;
        // The kernel numbers cgroups by the inodes of their directories.
        let id = directory.metadata().map_err(fail)?.ino();
        Ok(Self {
            path: path.to_owned(),
            directory,
            id,
        })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether all processes of the machine are below it, whatever namespaces and mounts show
    /// of it: every other cgroup has a type (cgroup-v2.rst of the kernel).
    pub fn is_root(&self) -> bool {
        let kind = self.path.join("cgroup.type");
        matches!(kind.try_exists(), Ok(false))
    }

    /// Whether its path still leads to it.
    pub fn is_there(&self) -> bool {
        Self::open(&self.path).is_ok_and(|found| found.id == self.id)
    }

    /// Whether it exists, though its path may lead elsewhere or nowhere by now.
    pub fn is_alive(&self) -> bool {
        let held = format!("/proc/self/fd/{}/cgroup.procs", self.directory.as_raw_fd());
        std::fs::read_to_string(held).is_ok()
    }
}

/// Where cgroup file systems of version 2 are mounted that `mountinfo` (proc(5)) tells of: those
/// first that have most in them, as far as it says so.
pub fn mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (kind.split(' ').next()? == "cgroup2").then(|| (depth(root), unescaped(at)))
    });
    let mut mounts: Vec<_> = mounts.collect();
    // Those that are alike stay in their order.
    mounts.sort_by_key(|(depth, _)| *depth);
    mounts.into_iter().map(|(_, at)| at).collect()
}

/// How far below the root of the own cgroup namespace it is: what is above it begins with `/..`.
fn depth(root: &str) -> isize {
    let names = root.split('/').filter(|name| !name.is_empty());
    names.map(|name| if name == ".." { -1 } else { 1 }).sum()
}

/// Spaces, tabs, line feeds and backslashes are in octal there.
fn unescaped(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (octal, plain) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        path = path.replace(octal, plain);
    }
    path.into()
}

/// The cookie of the calling thread's network namespace, low word first.
pub fn netns_cookie() -> io::Result<[u32; 2]> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let cookie: u64 = nix::sys::socket::getsockopt(&socket, option::NetnsCookie)?;
    Ok([cookie as u32, (cookie >> 32) as u32])
}

mod option {
    //! A socket option that nix does not have.
    use nix::{getsockopt_impl, sockopt_impl};

    /// `SO_NETNS_COOKIE` (Linux 5.14).
    const SO_NETNS_COOKIE: libc::c_int = 71;

    sockopt_impl!(
        /// The cookie of a socket's network namespace.
        NetnsCookie, GetOnly, libc::SOL_SOCKET, SO_NETNS_COOKIE, u64
    );
}

/// `bpf_attach_type` of the kernel.
fn attach_type(hook: SocketHook) -> u32 {
    (match hook {
        SocketHook::Release => bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE,
        SocketHook::PeerName4 => bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
        SocketHook::PeerName6 => bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
        SocketHook::RecvMsg4 => bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
        SocketHook::RecvMsg6 => bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG,
        SocketHook::Connect4 => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
        SocketHook::Connect6 => bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
        SocketHook::SendMsg4 => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
        SocketHook::SendMsg6 => bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
    }) as u32
}

/// The programs at sockets, as far as they are wanted and the kernel takes them.
#[derive(Debug)]
pub(crate) enum SocketPrograms {
    /// In the order of [`SocketHook::ALL`].
    Loaded(Vec<(ProgramFd, u32)>),
    /// Nobody wants them.
    Unwanted,
    /// The kernel does not take them: its answer.
    Refused(String),
}

impl SocketPrograms {
    /// Loads them if the features want them. Without them packets are translated, so a
    /// refusal is no error.
    pub(crate) fn load(ebpf: &mut Ebpf, features: u32) -> Result<Self, ProgramError> {
        if features & (Feature::POD_SOCKETS | Feature::NODE_SOCKETS) == 0 {
            return Ok(Self::Unwanted);
        }
        let mut loaded = Vec::with_capacity(SocketHook::ALL.len());
        for hook in SocketHook::ALL {
            let name = hook.program();
            let result = match ebpf.program_mut(name) {
                Some(Program::CgroupSockAddr(program)) => uninterrupted(|| program.load())
                    .and_then(|()| Ok((program.fd()?.try_clone()?, program.info()?.id()))),
                Some(Program::CgroupSock(program)) => uninterrupted(|| program.load())
                    .and_then(|()| Ok((program.fd()?.try_clone()?, program.info()?.id()))),
                _ => {
                    let what = "program";
                    return Err(ObjectError::Lacks { what, name }.into());
                }
            };
            match result {
                Ok(one) => loaded.push(one),
                Err(error) => {
                    let error = ProgramError::refused(name, error).to_string();
                    return Ok(Self::Refused(error));
                }
            }
        }
        Ok(Self::Loaded(loaded))
    }

    fn of(&self, hook: SocketHook) -> Option<&(ProgramFd, u32)> {
        let Self::Loaded(programs) = self else {
            return None;
        };
        programs.get(hook as usize)
    }
}

/// What a sync did.
#[derive(Debug, Default)]
pub struct SocketReport {
    /// Newly attached.
    pub attached: u32,
    /// Attached before, with the new program now.
    pub replaced: u32,
    /// Attached again: it had been attached by this process and somebody removed it.
    pub repaired: u32,
    /// Detached.
    pub removed: u32,
    /// What did not work. Then nothing sends sockets elsewhere; those that name what sockets
    /// were given before are attached as far as they can be.
    pub failed: Vec<SocketAttachError>,
}

/// A program could not be attached to the cgroup.
#[derive(Debug, thiserror::Error)]
pub enum SocketAttachError {
    /// The kernel refused.
    #[error("cannot {what} {program} at the cgroup {}: {source}", cgroup.display())]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The program.
        program: &'static str,
        /// The cgroup.
        cgroup: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
}

impl Datapath {
    /// Attaches the programs at sockets to the cgroup, or detaches them if there is none
    /// or they are not loaded. Those that send sockets elsewhere are attached all or not
    /// at all, and only with all that name what sockets were given: an answer without its
    /// name is lost.
    pub fn sync_sockets(&mut self, cgroup: Option<&Cgroup>) -> SocketReport {
        let mut report = SocketReport::default();
        let cgroup = cgroup.filter(|_| self.has_socket_programs());
        let Some(cgroup) = cgroup else {
            self.detach_sockets(|_| true, &mut report);
            if report.failed.is_empty() {
                self.at_cgroup = None;
            }
            return report;
        };
        let known = self.at_cgroup == Some(cgroup.id);
        // Those that send sockets elsewhere come last.
        for hook in SocketHook::ALL {
            if hook.sends_elsewhere() && !report.failed.is_empty() {
                break;
            }
            let done = self.ensure_socket(hook, cgroup, known, &mut report);
            report.failed.extend(done.err());
        }
        if report.failed.is_empty() {
            self.at_cgroup = Some(cgroup.id);
        } else {
            self.detach_sockets(SocketHook::sends_elsewhere, &mut report);
            // What is attached after that is no repair of somebody else's doing.
            self.at_cgroup = None;
        }
        report
    }

    /// Detaches some, those first that send sockets elsewhere.
    fn detach_sockets(&self, which: fn(SocketHook) -> bool, report: &mut SocketReport) {
        for hook in SocketHook::ALL
            .into_iter()
            .rev()
            .filter(|hook| which(*hook))
        {
            match remove_link(&self.entry(Entry::Socket(hook))) {
                Ok(gone) => report.removed += u32::from(gone),
                Err(error) => report.failed.push(error.into()),
            }
        }
    }

    /// Gives the programs' links the programs that were loaded last.
    pub(super) fn replace_sockets(&self) -> Vec<SocketAttachError> {
        let replace = |hook: SocketHook| {
            let (Some((program, id)), Some((link, info))) =
                (self.programs.sockets.of(hook), self.living_socket(hook)?)
            else {
                return Ok(());
            };
            if info.program == *id {
                return Ok(());
            }
            sys::link_update(link.as_fd(), program.as_fd()).map_err(|source| {
                SocketAttachError::Pin(PinError::Kernel {
                    what: "replace the program of",
                    path: self.entry(Entry::Socket(hook)),
                    source,
                })
            })
        };
        let results = SocketHook::ALL.into_iter().map(replace);
        results.filter_map(Result::err).collect()
    }

    /// Whether the programs at sockets are loaded.
    pub fn has_socket_programs(&self) -> bool {
        matches!(self.programs.sockets, SocketPrograms::Loaded(_))
    }

    /// What the kernel has against the programs at sockets.
    pub fn socket_refusal(&self) -> Option<&str> {
        match &self.programs.sockets {
            SocketPrograms::Refused(why) => Some(why),
            SocketPrograms::Loaded(_) | SocketPrograms::Unwanted => None,
        }
    }

    /// Those of the programs at sockets that are attached.
    pub fn attached_sockets(&self) -> Vec<SocketHook> {
        let living = |hook: &SocketHook| matches!(self.living_socket(*hook), Ok(Some(_)));
        SocketHook::ALL.into_iter().filter(living).collect()
    }

    fn living_socket(&self, hook: SocketHook) -> Result<Option<(OwnedFd, CgroupLink)>, PinError> {
        let path = self.entry(Entry::Socket(hook));
        let fail = |source| PinError::Kernel {
            what: "open",
            path: path.clone(),
            source,
        };
        let Some(link) = open_link(&path)? else {
            return Ok(None);
        };
        let info = sys::cgroup_link_info(link.as_fd()).map_err(fail)?;
        // A link whose cgroup is gone says 0.
        let living = |info: &CgroupLink| info.cgroup != 0 && info.attach_type == attach_type(hook);
        Ok(info.filter(living).map(|info| (link, info)))
    }

    fn ensure_socket(
        &self,
        hook: SocketHook,
        cgroup: &Cgroup,
        known: bool,
        report: &mut SocketReport,
    ) -> Result<(), SocketAttachError> {
        let Some((program, id)) = self.programs.sockets.of(hook) else {
            return Ok(());
        };
        let fail = |what| {
            move |source| SocketAttachError::Kernel {
                what,
                program: hook.program(),
                cgroup: cgroup.path.clone(),
                source,
            }
        };
        let living = self.living_socket(hook)?;
        if let Some((link, info)) = &living
            && info.cgroup == cgroup.id
        {
            if info.program != *id {
                sys::link_update(link.as_fd(), program.as_fd()).map_err(fail("replace"))?;
                report.replaced += 1;
            }
            return Ok(());
        }
        let path = self.entry(Entry::Socket(hook));
        remove_link(&path)?;
        let target = cgroup.directory.as_fd();
        let link = sys::cgroup_link_create(program.as_fd(), target, attach_type(hook))
            .map_err(fail("attach"))?;
        sys::pin(link.as_fd(), &path).map_err(|source| PinError::Kernel {
            what: "make",
            path,
            source,
        })?;
        if known {
            report.repaired += 1;
        } else {
            report.attached += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_found_wherever_it_is_mounted() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      36 31 0:33 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounts(hybrid), [PathBuf::from("/sys/fs/cgroup/unified")]);
        let several = "50 1 0:30 /user.slice /mnt/part rw - cgroup2 cgroup2 rw\n\
                       51 1 0:30 / /mnt/a\\040b\\134 rw - cgroup2 cgroup2 rw\n\
                       52 1 0:30 / /later rw - cgroup2 cgroup2 rw\n";
        let paths = ["/mnt/a b\\", "/later", "/mnt/part"].map(PathBuf::from);
        assert_eq!(mounts(several), paths);
        assert!(mounts("36 31 0:33 / /x rw - cgroup cgroup rw\n").is_empty());
        // In a container with a cgroup namespace and the host's mount.
        let container = "60 1 0:30 / /sys/fs/cgroup ro - cgroup2 cgroup rw\n\
                         61 1 0:30 /../../.. /host/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mounts(container)[0], PathBuf::from("/host/cgroup"));
    }

    #[test]
    fn other_directories_are_no_cgroups() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cgroup::open(dir.path()).unwrap_err();
        assert!(error.to_string().ends_with("is no cgroup of version 2"));
        let error = Cgroup::open(&dir.path().join("none")).unwrap_err();
        assert!(error.to_string().starts_with("cannot open"), "{error}");
    }
}
