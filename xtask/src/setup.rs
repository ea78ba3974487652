//! `cargo xtask setup`: installs what Tulle's development needs, or says what to install.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::bpf_toolchain::{Available, Choice, LLVM, Toolchain, choose};
use crate::os::Os;
use crate::packages::{self, BPF_LINKER, Machine, Missing, PACKAGES, Scope};
use crate::process;

const BPFFS: &str = "/sys/fs/bpf";

/// Install what is missing to build, test and demonstrate Tulle
///
/// On Debian 12 as root, each package is named before it is installed. Elsewhere, and without
/// root, this prints what to install and fails if anything is missing.
#[derive(clap::Args)]
pub struct Args {
    /// What compiles the eBPF programs
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Sets everything up.
pub fn run(args: &Args) -> Result<()> {
    if ensure(Scope::Everything, args.toolchain)?.installed {
        println!("Set up.");
    } else {
        println!("Nothing to do: everything is installed.");
    }
    Ok(())
}

/// What [`ensure`] found.
pub struct Ready {
    /// What compiles the programs.
    pub toolchain: Toolchain,
    /// Whether something had to be installed.
    pub installed: bool,
}

/// Makes sure that the machine has what `scope` needs; quick and silent if it has.
pub fn ensure(scope: Scope, choice: Choice) -> Result<Ready> {
    let os = Os::detect();
    let available = Available::detect()?;
    let toolchain = choose(choice, available, os.is_debian_12());
    let machine = inspect(toolchain.is_in(available))?;
    let missing = Missing::find(&machine, scope, toolchain);
    if missing.is_empty() {
        return Ok(Ready {
            toolchain,
            installed: false,
        });
    }
    if !os.is_debian_12() {
        bail!(
            "Tulle needs what follows, and `setup` installs packages on Debian 12 only (this is {}). \
             Please install it and try again:\n{}",
            os.name(),
            missing.advice(&os)
        );
    }
    if !process::is_root() {
        bail!(
            "Tulle needs what follows. Run `cargo xtask setup` as root, or install it:\n{}",
            missing.advice(&os)
        );
    }
    if missing.nightly {
        bail!(
            "`setup` installs no rustup toolchains. Please run:\n  {}",
            toolchain.how_to_install()
        );
    }
    install(&missing)?;
    Ok(Ready {
        toolchain,
        installed: true,
    })
}

/// Looks at what is there. Takes well under a second.
fn inspect(toolchain: bool) -> Result<Machine> {
    let names = PACKAGES.iter().map(|package| package.name);
    // dpkg-query fails when it does not know one of the names, yet prints the others.
    let installed = match process::command("dpkg-query")
        .args(["-W", "-f=${db:Status-Status} ${Package}\n"])
        .args(names)
        .output()
    {
        Ok(out) => packages::parse_dpkg(&String::from_utf8_lossy(&out.stdout)),
        Err(_no_dpkg) => BTreeSet::new(),
    };
    let programs = PACKAGES
        .iter()
        .flat_map(|package| package.programs)
        .copied()
        .filter(|program| process::find(program).is_some())
        .collect();
    let linker = process::probe(process::command("bpf-linker").arg("--version"))?;
    Ok(Machine {
        installed,
        programs,
        bpf_linker: linker.is_some_and(|version| packages::linker_suits(&version)),
        toolchain,
        bpffs: statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC),
    })
}

fn install(missing: &Missing) -> Result<()> {
    if !missing.packages.is_empty() {
        println!(
            "Installing packages of Debian:\n{}",
            missing.package_lines().trim_end()
        );
        apt(&missing
            .packages
            .iter()
            .map(|package| package.name)
            .collect::<Vec<_>>())?;
    }
    if missing.bpf_linker {
        println!(
            "Building bpf-linker {BPF_LINKER}, which links the eBPF programs (about a minute)."
        );
        install_bpf_linker()?;
    }
    if missing.bpffs {
        println!("Mounting the BPF file system at {BPFFS}, where maps and programs are pinned.");
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount the BPF file system at {BPFFS}"))?;
    }
    Ok(())
}

fn apt(names: &[&str]) -> Result<()> {
    let apt_get = || {
        let mut command = process::command("apt-get");
        // A machine that has just started may be updating itself: wait for its lock.
        command.env("DEBIAN_FRONTEND", "noninteractive").args([
            "-q",
            "-o",
            "DPkg::Lock::Timeout=300",
            "-o",
            "Dpkg::Use-Pty=0",
        ]);
        command
    };
    if let Err(error) = process::run(apt_get().arg("update")) {
        // One unreachable source of many need not matter; the installation tells.
        eprintln!("warning: {error:#}; going on with the package lists that are there");
    }
    process::run(
        apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(names),
    )
}

fn install_bpf_linker() -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{LLVM}");
    if !Path::new(&prefix).is_dir() {
        bail!("{prefix} is missing although llvm-{LLVM}-dev is installed: reinstall that package");
    }
    let mut command = process::command("cargo");
    for variable in [
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
        "RUSTC",
        "LD_LIBRARY_PATH",
    ] {
        command.env_remove(variable);
    }
    // --force: cargo would take one that is there and does not run for installed.
    process::run(
        command
            .env("LLVM_PREFIX", prefix)
            .args([
                "install",
                &format!("bpf-linker@{BPF_LINKER}"),
                "--locked",
                "--force",
            ])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{LLVM}"),
            ]),
    )?;
    let version = process::output(process::command("bpf-linker").arg("--version"))?;
    if !packages::linker_suits(&version) {
        bail!(
            "bpf-linker {BPF_LINKER} is installed, but the first one found is {}: remove that one",
            version.trim()
        );
    }
    Ok(())
}
