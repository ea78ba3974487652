//! The two ways to a `core` for `bpfel-unknown-none`, and which one is taken.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::process;
use crate::workspace::Workspace;

/// The target of the programs: little-endian BPF.
pub const TARGET: &str = "bpfel-unknown-none";

/// Major version of the LLVM that bpf-linker is built with; it reads bitcode up to this version.
pub const LLVM: u32 = 22;

/// The compiler of the package `rustc-web`.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// What the caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// Debian's packages if they are installed, else a rustup nightly with rust-src
    Auto,
    /// Debian's rustc-web and libstd-rust-web-dev-bpf: fixed versions, core is precompiled
    Debian,
    /// A rustup nightly with rust-src: core is built from source
    Nightly,
}

/// What is built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toolchain {
    /// `/usr/bin/rustc` of the package `rustc-web`.
    Debian,
    /// `rustup run nightly`, with `-Z build-std=core`.
    Nightly,
}

/// What this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Available {
    /// `/usr/bin/rustc` and a precompiled `core` for [`TARGET`].
    pub debian: bool,
    /// A rustup toolchain `nightly` with the component `rust-src`.
    pub nightly: bool,
}

impl Available {
    /// Looks at this machine.
    pub fn detect() -> Result<Self> {
        let core = fs::read_dir(DEBIAN_CORE).is_ok_and(|files| {
            files
                .flatten()
                .any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
        });
        let sysroot = process::probe(nightly("rustc").args(["--print", "sysroot"]))?;
        Ok(Self {
            debian: core && Path::new(DEBIAN_RUSTC).exists(),
            nightly: sysroot.is_some_and(|path| {
                Path::new(path.trim())
                    .join("lib/rustlib/src/rust/library/core")
                    .is_dir()
            }),
        })
    }
}

/// What to build with, also when it has still to be installed. Debian's packages come first: they
/// match bpf-linker's LLVM, and every machine gets the same compiler. `installable` says whether
/// `setup` knows how to install them here.
pub fn choose(choice: Choice, available: Available, installable: bool) -> Toolchain {
    let debian = match choice {
        Choice::Debian => true,
        Choice::Nightly => false,
        Choice::Auto => available.debian || (installable && !available.nightly),
    };
    if debian {
        Toolchain::Debian
    } else {
        Toolchain::Nightly
    }
}

impl Toolchain {
    /// Whether the machine has it.
    pub fn is_in(self, available: Available) -> bool {
        match self {
            Self::Debian => available.debian,
            Self::Nightly => available.nightly,
        }
    }

    /// `cargo <subcommand>` for the eBPF crate: toolchain, target, profile and linker flags, and
    /// `flags` for rustc beside them. Variables that cargo and rustup set for xtask itself would
    /// lead to xtask's compiler, so they are taken away.
    pub fn cargo(self, workspace: &Workspace, subcommand: &str, flags: &[&str]) -> Command {
        let mut command = match self {
            Self::Debian => {
                let mut command = workspace.cargo();
                command
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
            Self::Nightly => {
                let mut command = nightly("cargo");
                workspace.adapt(&mut command);
                command.env_remove("RUSTC");
                command
            }
        };
        forget_callers_compiler(&mut command);
        // BTF is made from full debug information. bpf-linker's way to copy in order would turn every
        // memset into a call of a loop, of which the verifier walks each octet on each path. This
        // variable outranks all others of its kind.
        let mut all = vec![
            "-Cdebuginfo=2",
            "-Ctarget-cpu=v3",
            "-Clink-arg=--btf",
            "-Clink-arg=--disable-expand-memcpy-in-order",
        ];
        all.extend(flags);
        command
            .env("CARGO_ENCODED_RUSTFLAGS", all.join("\x1f"))
            .args([subcommand, "--package", "datapath-ebpf", "--target", TARGET])
            .args(["--profile", "bpf"]);
        if self == Self::Nightly {
            command.args(["-Z", "build-std=core"]);
        }
        command
    }

    /// Fails if bpf-linker could not read this compiler's output.
    pub fn check_llvm(self) -> Result<()> {
        let mut rustc = match self {
            Self::Debian => process::command(DEBIAN_RUSTC),
            Self::Nightly => nightly("rustc"),
        };
        let text = process::output(rustc.arg("-vV"))?;
        let major = llvm_major(&text)
            .with_context(|| format!("`{} -vV` names no LLVM version", process::shown(&rustc)))?;
        ensure!(
            major <= LLVM,
            "this compiler uses LLVM {major}, and bpf-linker is built with LLVM {LLVM}, which \
             cannot read its output: use `--toolchain debian`, or an older nightly",
        );
        Ok(())
    }

    /// The sentence for a machine where it is missing and `setup` cannot install it.
    pub fn how_to_install(self) -> &'static str {
        match self {
            Self::Debian => "the packages rustc-web and libstd-rust-web-dev-bpf",
            Self::Nightly => "rustup toolchain install nightly --component rust-src",
        }
    }
}

/// Takes away the variables by which cargo and rustup name the compiler that xtask runs under, and
/// that would change what another one makes.
pub fn forget_callers_compiler(command: &mut Command) {
    for variable in [
        "RUSTUP_TOOLCHAIN",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_BUILD_RUSTC",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_RUSTFLAGS",
        // Parts of a crate compiled apart make other code, and crash LLVM's code generator.
        "CARGO_INCREMENTAL",
        "LD_LIBRARY_PATH",
    ] {
        command.env_remove(variable);
    }
}

/// `rustup run nightly <program>`, free of the toolchain that xtask runs under.
fn nightly(program: &str) -> Command {
    let mut command = process::command("rustup");
    command
        .args(["run", "nightly", program])
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("LD_LIBRARY_PATH");
    command
}

/// The major version in `rustc -vV`'s line `LLVM version: 22.1.4`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

/// Fails with what to do if the machine still lacks the toolchain after `setup`.
pub fn require(toolchain: Toolchain) -> Result<()> {
    if !toolchain.is_in(Available::detect()?) {
        bail!(
            "no Rust `core` for {TARGET}. To install: {}",
            toolchain.how_to_install()
        );
    }
    Ok(())
}

/// The tool that takes debug information out of an object or a program.
pub fn llvm_strip() -> Result<Command> {
    let strip = ["llvm-strip-22", "llvm-strip"]
        .into_iter()
        .find_map(process::find)
        .context("no llvm-strip found: `cargo xtask setup` installs it")?;
    Ok(process::command(strip))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Available = Available {
        debian: false,
        nightly: false,
    };
    const DEBIAN: Available = Available {
        debian: true,
        nightly: false,
    };
    const NIGHTLY: Available = Available {
        debian: false,
        nightly: true,
    };
    const BOTH: Available = Available {
        debian: true,
        nightly: true,
    };

    #[test]
    fn auto_takes_what_is_there_and_prefers_debian() {
        for (available, installable, expected) in [
            (BOTH, true, Toolchain::Debian),
            (BOTH, false, Toolchain::Debian),
            (DEBIAN, false, Toolchain::Debian),
            (NIGHTLY, true, Toolchain::Nightly),
            (NIGHTLY, false, Toolchain::Nightly),
            (NONE, true, Toolchain::Debian),
            (NONE, false, Toolchain::Nightly),
        ] {
            assert_eq!(
                choose(Choice::Auto, available, installable),
                expected,
                "{available:?}"
            );
        }
    }

    #[test]
    fn a_named_toolchain_is_taken_whatever_is_there() {
        for available in [NONE, DEBIAN, NIGHTLY, BOTH] {
            assert_eq!(choose(Choice::Debian, available, false), Toolchain::Debian);
            assert_eq!(choose(Choice::Nightly, available, true), Toolchain::Nightly);
        }
    }

    #[test]
    fn reads_the_llvm_version() {
        assert_eq!(
            llvm_major("release: 1.97.0-nightly\nLLVM version: 22.1.4\n"),
            Some(22)
        );
        assert_eq!(llvm_major("LLVM version: 7.0"), Some(7));
        assert_eq!(llvm_major("release: 1.97.0"), None);
        assert_eq!(llvm_major("LLVM version: new"), None);
    }

    #[test]
    fn the_debian_build_does_not_inherit_the_callers_compiler() {
        let workspace = Workspace::for_tests("/w", "/t");
        let command = Toolchain::Debian.cargo(&workspace, "build", &["-Dwarnings"]);
        let value = |name: &str| {
            command
                .get_envs()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.map(|value| value.to_string_lossy().into_owned()))
        };
        assert_eq!(value("RUSTC"), Some(Some(DEBIAN_RUSTC.into())));
        assert_eq!(value("RUSTUP_TOOLCHAIN"), Some(None), "taken away");
        assert_eq!(value("RUSTFLAGS"), Some(None), "taken away");
        assert_eq!(value("CARGO_TARGET_DIR"), Some(Some("/t".into())));
        assert_eq!(
            value("CARGO_ENCODED_RUSTFLAGS"),
            Some(Some(
                "-Cdebuginfo=2\x1f-Ctarget-cpu=v3\x1f-Clink-arg=--btf\x1f\
                 -Clink-arg=--disable-expand-memcpy-in-order\x1f-Dwarnings"
                    .into()
            ))
        );
    }
}
