//! Programs for the image: linked statically with musl, so that they run on any distribution and
//! need nothing beside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::bpf_toolchain::{self, Choice, DEBIAN_RUSTC, LLVM};
use crate::packages::Scope;
use crate::process;
use crate::setup;
use crate::workspace::Workspace;

/// Cargo's profile for them.
const PROFILE: &str = "image";

/// Where Rust's standard library for musl comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Library {
    /// The toolchain that runs xtask has the target (`rustup target add`).
    Installed,
    /// Compiled with the programs, from the sources of Debian's compiler.
    Debian,
}

/// Compiles the programs and returns their paths, in the order of `names`.
pub fn build(workspace: &Workspace, names: &[&str]) -> Result<Vec<PathBuf>> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let library = if has_library(workspace, &target)? {
        Library::Installed
    } else {
        setup::ensure(Scope::Image, Choice::Debian)?;
        require_sources()?;
        Library::Debian
    };
    let mut cargo = command(workspace, library, &target)?;
    for name in names {
        cargo.args(["--bin", name]);
    }
    process::run(&mut cargo)?;
    let directory = workspace.target().join(&target).join(PROFILE);
    Ok(names.iter().map(|name| directory.join(name)).collect())
}

fn has_library(workspace: &Workspace, target: &str) -> Result<bool> {
    let mut rustc = process::command("rustc");
    rustc
        .current_dir(workspace.root())
        .env_remove("LD_LIBRARY_PATH")
        .args(["--print", "target-libdir", "--target", target]);
    let place = process::probe(&mut rustc)?;
    Ok(place.is_some_and(|path| {
        fs::read_dir(path.trim()).is_ok_and(|files| {
            files
                .flatten()
                .any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
        })
    }))
}

/// Sources of another version than the compiler would not compile, with errors that tell nobody why.
fn require_sources() -> Result<()> {
    let version = process::output(process::command(DEBIAN_RUSTC).arg("-V"))?;
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    let sources = Path::new("/usr/src").join(format!("rustc-{number}/library/std"));
    ensure!(
        sources.is_dir(),
        "{DEBIAN_RUSTC} is {number}, and {} is missing: upgrade rustc-web and rust-web-src together",
        sources.display()
    );
    Ok(())
}

/// `cargo build` for the agent and the CLI.
fn command(workspace: &Workspace, library: Library, target: &str) -> Result<Command> {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    // Messages of a panic name files as they are here, not where this machine has them.
    let root = workspace
        .root()
        .to_str()
        .context("the path of the sources is no UTF-8")?;
    flags.push(format!("--remap-path-prefix={root}=tulle"));
    if let Some(home) = process::cargo_home().as_deref().and_then(Path::to_str) {
        flags.push(format!("--remap-path-prefix={home}=cargo"));
    }
    let mut cargo = workspace.cargo();
    bpf_toolchain::forget_callers_compiler(&mut cargo);
    if library == Library::Debian {
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        flags.extend(link_flags(&musl(target)?));
    }
    cargo
        // ring has parts in C and assembler.
        .env(format!("CC_{}", target.replace('-', "_")), "musl-gcc")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .args(["build", "--package", "tulle-agent", "--package", "tulle"])
        .args(["--profile", PROFILE, "--target", target]);
    if library == Library::Debian {
        cargo.args(["-Z", "build-std=std,panic_abort"]);
    }
    Ok(cargo)
}

/// The directory of Debian's musl.
fn musl(target: &str) -> Result<String> {
    let processor = target.split('-').next().unwrap_or_default();
    let place = format!("/usr/lib/{processor}-linux-musl");
    if !Path::new(&place).join("rcrt1.o").is_file() {
        bail!("{place} has no rcrt1.o: `cargo xtask setup` installs musl-tools");
    }
    Ok(place)
}

/// How to link with a compiler that brings no musl of its own: its first object for static programs
/// at any address, its library, and LLVM's unwinder, which Rust's own builds for musl have, too. The
/// one function in there that only glibc has prints a message before the program aborts: it aborts
/// without.
fn link_flags(musl: &str) -> Vec<String> {
    vec![
        "-Clinker=cc".to_owned(),
        "-Clink-self-contained=no".to_owned(),
        format!("-Lnative={musl}"),
        format!("-Lnative=/usr/lib/llvm-{LLVM}/lib"),
        "-Clink-arg=-nostartfiles".to_owned(),
        format!("-Clink-arg={musl}/rcrt1.o"),
        format!("-Clink-arg={musl}/crti.o"),
        format!("-Clink-arg={musl}/crtn.o"),
        // By name: behind rustc's own libraries `-lc` is the shared one.
        format!("-Clink-arg={musl}/libc.a"),
        "-Clink-arg=-Wl,--defsym=__fprintf_chk=abort".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toolchain_with_the_target_needs_nothing_of_debian() {
        let workspace = Workspace::for_tests("/w", "/t");
        let shown = |library| {
            process::shown(&command(&workspace, library, "x86_64-unknown-linux-musl").unwrap())
        };
        let installed = shown(Library::Installed);
        assert!(
            !installed.contains("build-std") && !installed.contains("rcrt1"),
            "{installed}"
        );
        assert!(
            installed.contains("--remap-path-prefix=/w=tulle"),
            "{installed}"
        );
    }

    #[test]
    fn what_is_linked_comes_from_musl_before_anything_else() {
        let flags = link_flags("/m");
        let musl = flags.iter().position(|f| f == "-Lnative=/m").unwrap();
        let llvm = flags.iter().position(|f| f.contains("llvm")).unwrap();
        assert!(musl < llvm);
        assert!(
            flags.iter().any(|f| f.ends_with("/m/rcrt1.o"))
                && flags.iter().any(|f| f.ends_with("/m/libc.a"))
        );
    }
}
