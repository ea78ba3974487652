//! What the node must have, and what it offers. Each refusal is one sentence
//! with its mend.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, FsType, statfs};

use super::attach::{AttachKind, attach_type};
use super::sys;

/// Where the probes look; tests look elsewhere.
#[derive(Clone, Debug)]
pub struct Sources {
    /// This process's status, with its capabilities.
    pub status: PathBuf,
    /// The kernel's release.
    pub release: PathBuf,
    /// The kernel's own BTF.
    pub btf: PathBuf,
    /// Whether the JIT is on.
    pub jit: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            status: "/proc/self/status".into(),
            release: "/proc/sys/kernel/osrelease".into(),
            btf: "/sys/kernel/btf/vmlinux".into(),
            jit: "/proc/sys/net/core/bpf_jit_enable".into(),
        }
    }
}

/// Why Tulle cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not enough rights.
    #[error(
        "tulle-agent lacks {missing}: run it as root, or give the container these capabilities"
    )]
    Capabilities {
        /// Names, with commas.
        missing: String,
    },
    /// Too old.
    #[error("the kernel is Linux {found}, Tulle needs {}.{} or later: boot a newer kernel", OLDEST.0, OLDEST.1)]
    Kernel {
        /// The release.
        found: String,
    },
    /// No BTF.
    #[error("the kernel has no BTF ({} is missing): boot a kernel built with CONFIG_DEBUG_INFO_BTF=y", path.display())]
    NoBtf {
        /// Where it should be.
        path: PathBuf,
    },
    /// The pin directory is elsewhere.
    #[error("{} is not on a BPF file system: mount one (mount -t bpf bpf {}) or give another --bpffs", pin_dir.display(), mount.display())]
    NoBpffs {
        /// The pin directory.
        pin_dir: PathBuf,
        /// Where to mount.
        mount: PathBuf,
    },
    /// A file of the kernel's cannot be read.
    #[error("cannot read {}: {source}; is /proc mounted?", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A choice that the kernel's version or abilities made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FeatureChoice {
    /// What it is about.
    pub name: &'static str,
    /// What was chosen.
    pub chosen: &'static str,
    /// Why, in one sentence.
    pub why: String,
}

/// What the node offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kernel {
    /// Major and minor version.
    pub version: (u32, u32),
    /// How classifiers are attached.
    pub attach: AttachKind,
    /// Whether IPv6 can be taken out of IPv4 in place
    /// ([`datapath_common::Feature::DECAP_6_IN_4`]).
    pub decap_6_in_4: bool,
    /// Whether the programs call functions to spare the verifier
    /// ([`datapath_common::Feature::CALLS`]).
    pub calls: bool,
    /// Whether the programs at sockets are to tell the connections of MPTCP
    /// ([`datapath_common::Feature::TELLS_MPTCP`]).
    pub tells_mptcp: bool,
    /// All choices, for people.
    pub features: Vec<FeatureChoice>,
    /// Sentences for the log, at level warning.
    pub warnings: Vec<String>,
}

/// The oldest kernel. On arm64 programs make tail calls beside calls of functions since 6.0.
pub const OLDEST: (u32, u32) = if cfg!(target_arch = "aarch64") {
    (6, 0)
} else {
    (5, 15)
};
const TCX_SINCE: (u32, u32) = (6, 6);
const DECAP_SINCE: (u32, u32) = (6, 3);
/// Since then the verifier knows which values matter behind the call of a function, and need not
/// tell apart all others.
const INLINE_SINCE: (u32, u32) = (6, 5);

/// Whether the kernel lets programs at sockets tell the connections of MPTCP (Linux 5.19).
pub fn tells_mptcp() -> bool {
    use aya::programs::ProgramType;
    use aya_obj::generated::bpf_func_id::BPF_FUNC_skc_to_mptcp_sock;
    aya::sys::is_helper_supported(ProgramType::CgroupSockAddr, BPF_FUNC_skc_to_mptcp_sock)
        .unwrap_or(false)
}

/// Checks only the rights of this process.
pub fn check_rights(sources: &Sources) -> Result<(), Refusal> {
    check_capabilities(&read(&sources.status)?)
}

/// Checks requirements and looks for features.
pub fn probe(sources: &Sources, pin_dir: &Path) -> Result<Kernel, Refusal> {
    check_rights(sources)?;
    let version = check_release(&read(&sources.release)?)?;
    if !sources.btf.exists() {
        return Err(Refusal::NoBtf {
            path: sources.btf.clone(),
        });
    }
    check_bpffs(pin_dir)?;
    let mut warnings = Vec::new();
    // A kernel with CONFIG_BPF_JIT_ALWAYS_ON may hide the file from a namespace.
    if let Ok(text) = std::fs::read_to_string(&sources.jit)
        && text.trim() == "0"
    {
        warnings.push(
            "the BPF JIT is off, the programs are interpreted and slow: set net.core.bpf_jit_enable=1".into(),
        );
    }
    let (attach, tcx) = choose_attach(version, sys::tcx_links(LOOPBACK, attach_type::TCX_INGRESS));
    let (decap_6_in_4, decap) = choose_decap(version, try_decap());
    let (calls, functions) = choose_calls(version);
    Ok(Kernel {
        version,
        attach,
        decap_6_in_4,
        calls,
        tells_mptcp: tells_mptcp(),
        features: vec![tcx, decap, functions],
        warnings,
    })
}

/// Every network namespace's loopback has this index.
const LOOPBACK: u32 = 1;

fn read(path: &Path) -> Result<String, Refusal> {
    std::fs::read_to_string(path).map_err(|source| Refusal::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn check_capabilities(status: &str) -> Result<(), Refusal> {
    const NET_ADMIN: u32 = 12;
    const SYS_ADMIN: u32 = 21;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective >> bit & 1 == 1;
    let mut missing = Vec::new();
    if !has(NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    // CAP_SYS_ADMIN contains the other two.
    if !has(SYS_ADMIN) {
        missing.extend(
            [(BPF, "CAP_BPF"), (PERFMON, "CAP_PERFMON")]
                .iter()
                .filter(|c| !has(c.0))
                .map(|c| c.1),
        );
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Refusal::Capabilities {
        missing: missing.join(", "),
    })
}

fn check_release(release: &str) -> Result<(u32, u32), Refusal> {
    let release = release.trim();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    if version < OLDEST {
        return Err(Refusal::Kernel {
            found: release.into(),
        });
    }
    Ok(version)
}

/// The directory, or the nearest one above it that exists, is on a bpffs.
fn check_bpffs(pin_dir: &Path) -> Result<(), Refusal> {
    let nearest = pin_dir
        .ancestors()
        .find(|dir| dir.exists())
        .unwrap_or(Path::new("/"));
    let kind: Option<FsType> = statfs(nearest).ok().map(|fs| fs.filesystem_type());
    if kind == Some(BPF_FS_MAGIC) {
        return Ok(());
    }
    let usual = Path::new("/sys/fs/bpf");
    let mount = if pin_dir.starts_with(usual) {
        usual
    } else {
        pin_dir
    };
    Err(Refusal::NoBpffs {
        pin_dir: pin_dir.to_owned(),
        mount: mount.to_owned(),
    })
}

fn choose_attach(version: (u32, u32), tried: io::Result<Vec<u32>>) -> (AttachKind, FeatureChoice) {
    let (kind, chosen, why) = match tried {
        Ok(_) => (
            AttachKind::Tcx,
            "tcx",
            "the kernel answers for TCX links".into(),
        ),
        Err(_) if version < TCX_SINCE => (
            AttachKind::Clsact,
            "clsact",
            format!("TCX needs Linux {}.{}", TCX_SINCE.0, TCX_SINCE.1),
        ),
        Err(e) => (
            AttachKind::Clsact,
            "clsact",
            format!("the kernel refuses TCX links: {e}"),
        ),
    };
    (
        kind,
        FeatureChoice {
            name: "classifiers",
            chosen,
            why,
        },
    )
}

fn choose_decap(version: (u32, u32), tried: io::Result<bool>) -> (bool, FeatureChoice) {
    let (on, why) = match tried {
        Ok(true) => (true, "a trial packet was taken out".into()),
        Ok(false) if version < DECAP_SINCE => (
            false,
            format!("it needs Linux {}.{}", DECAP_SINCE.0, DECAP_SINCE.1),
        ),
        Ok(false) => (false, "the kernel refused it for a trial packet".into()),
        Err(e) => (
            version >= DECAP_SINCE,
            format!("by the kernel's version, as it could not be tried: {e}"),
        ),
    };
    let chosen = if on {
        "in tulle_nic_in"
    } else {
        "by the kernel"
    };
    (
        on,
        FeatureChoice {
            name: "IPv6 out of the IPv4 overlay",
            chosen,
            why,
        },
    )
}

fn choose_calls(version: (u32, u32)) -> (bool, FeatureChoice) {
    let calls = version < INLINE_SINCE;
    let (major, minor) = INLINE_SINCE;
    let (chosen, why) = if calls {
        ("called", "before")
    } else {
        ("inline", "since")
    };
    let why = format!("{why} Linux {major}.{minor}: how much the verifier can follow");
    let name = "parsing and translating";
    (calls, FeatureChoice { name, chosen, why })
}

/// Takes an IPv4 header off an IPv6 packet, with a program of five instructions.
fn try_decap() -> io::Result<bool> {
    const DECAP_L3_IPV6: u32 = 1 << 8;
    const ROOM_MAC: u32 = 1;
    const ADJUST_ROOM: u32 = 50;
    const fn instruction(code: u8, register: u8, immediate: u32) -> [u8; 8] {
        let i = immediate.to_le_bytes();
        [code, register, 0, 0, i[0], i[1], i[2], i[3]]
    }
    let (set, call, exit) = (0xb7, 0x85, 0x95);
    let program = sys::load_classifier(&[
        instruction(set, 2, (-20i32).cast_unsigned()),
        instruction(set, 3, ROOM_MAC),
        instruction(set, 4, DECAP_L3_IPV6),
        instruction(call, 0, ADJUST_ROOM),
        instruction(exit, 0, 0),
    ])?;
    let mut packet = vec![0u8; 14 + 20 + 40];
    packet[12..14].copy_from_slice(&[0x08, 0x00]);
    packet[14] = 0x45;
    packet[16..18].copy_from_slice(&60u16.to_be_bytes());
    packet[23] = 41;
    packet[34] = 0x60;
    Ok(sys::test_run(program.as_fd(), &packet)? == 0)
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
