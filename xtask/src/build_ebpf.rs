//! `cargo xtask build-ebpf`: builds the programs into the object that the agent embeds.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::{self, Choice, TARGET, Toolchain};
use crate::load_check;
use crate::packages::Scope;
use crate::process;
use crate::setup;
use crate::workspace::Workspace;

/// Build the eBPF programs into target/bpf/tulle.bpf.o and let the kernel verify them
#[derive(clap::Args)]
pub struct Args {
    /// Fail if the kernel cannot be asked to verify the programs (that needs root)
    #[arg(long)]
    check_load: bool,
    /// What compiles the programs
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Whether the kernel has to verify the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadCheck {
    /// It must.
    Required,
    /// It does if this process is root.
    IfRoot,
    /// It does not; only the object is wanted.
    No,
}

/// Builds and verifies.
pub fn run(args: &Args) -> Result<()> {
    let check = if args.check_load {
        LoadCheck::Required
    } else {
        LoadCheck::IfRoot
    };
    build(&Workspace::detect()?, args.toolchain, check).map(drop)
}

/// Builds, installing what is missing. Returns the toolchain that was used.
pub fn build(workspace: &Workspace, choice: Choice, check: LoadCheck) -> Result<Toolchain> {
    if check == LoadCheck::Required && !process::is_root() {
        bail!("only root may load programs: run this as root, or without --check-load");
    }
    let load = check != LoadCheck::No && process::is_root();
    let scope = if load {
        Scope::BuildAndLoad
    } else {
        Scope::Build
    };
    let toolchain = setup::ensure(scope, choice)?.toolchain;
    bpf_toolchain::require(toolchain)?;
    toolchain.check_llvm()?;

    process::run(&mut toolchain.cargo(workspace, "build", &[]))?;
    let built = workspace.target().join(TARGET).join("bpf/tulle-bpf");
    let object = workspace.bpf_object();
    let changed = publish(&built, &object)?;
    let size = fs::metadata(&object).map_or(0, |found| found.len());
    println!(
        "{}: {size} bytes, {}",
        object.display(),
        if changed { "new" } else { "unchanged" }
    );
    if load {
        let programs = load_check::verify(&object)?;
        println!("The kernel verified:\n{}", load_check::table(&programs));
    } else if check == LoadCheck::IfRoot {
        println!("Not verified: only root may load programs.");
    }
    Ok(toolchain)
}

/// Builds the benchmark's scaffold, which no other command needs.
pub fn build_bench(workspace: &Workspace, toolchain: Toolchain) -> Result<()> {
    const BIN: &str = "tulle-bench-bpf";
    process::run(toolchain.cargo(workspace, "build", &[]).args([
        "--bin",
        BIN,
        "--features",
        "bench",
    ]))?;
    let built = workspace.target().join(TARGET).join("bpf").join(BIN);
    publish(&built, &workspace.bench_object()).map(drop)
}

/// Strips DWARF (BTF stays) and puts the object where the agent's build looks for it. An object
/// that is already there with the same content is left alone, so that nothing is rebuilt for it.
fn publish(built: &Path, object: &Path) -> Result<bool> {
    let directory = object.parent().context("the object has no directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    // Two builds at once must not write into each other's file.
    let stripped = object.with_extension(format!("{}.tmp", std::process::id()));
    let result = process::output(
        bpf_toolchain::llvm_strip()?
            .arg("--strip-debug")
            .arg("-o")
            .arg(&stripped)
            .arg(built),
    )
    .and_then(|_| replace_if_changed(&stripped, object));
    if stripped.exists() {
        fs::remove_file(&stripped)
            .with_context(|| format!("cannot remove {}", stripped.display()))?;
    }
    result
}

/// Moves `new` over `old` unless they have the same content. Says whether it moved.
fn replace_if_changed(new: &Path, old: &Path) -> Result<bool> {
    let content = fs::read(new).with_context(|| format!("cannot read {}", new.display()))?;
    if fs::read(old).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    fs::rename(new, old)
        .with_context(|| format!("cannot move {} to {}", new.display(), old.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_object_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (new, old) = (directory.path().join("new"), directory.path().join("old"));
        fs::write(&new, b"one").unwrap();
        assert!(replace_if_changed(&new, &old).unwrap());
        assert!(!new.exists());

        let before = fs::metadata(&old).unwrap().modified().unwrap();
        fs::write(&new, b"one").unwrap();
        assert!(!replace_if_changed(&new, &old).unwrap());
        assert_eq!(fs::metadata(&old).unwrap().modified().unwrap(), before);

        fs::write(&new, b"two").unwrap();
        assert!(replace_if_changed(&new, &old).unwrap());
        assert_eq!(fs::read(&old).unwrap(), b"two");
        assert!(
            replace_if_changed(&new, &old).is_err(),
            "nothing new to move"
        );
    }
}
