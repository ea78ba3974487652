//! Takes the eBPF object that `cargo xtask build-ebpf` made to `OUT_DIR`, to be embedded.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

const OBJECT: &str = "bpf/tulle.bpf.o";

fn main() {
    if let Err(error) = embed() {
        println!("cargo::error={error}");
    }
}

fn embed() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let triple = env::var("TARGET")?;
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");

    // Cargo tells a build script its target directory in no variable: OUT_DIR lies inside it,
    // unless a build directory is configured apart; then CARGO_TARGET_DIR has to name it. A
    // relative one counts from where cargo was started, which a script cannot know.
    let named = env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute());
    let candidates: Vec<PathBuf> = target_directory(&out, &triple)
        .map(Path::to_path_buf)
        .into_iter()
        .chain(named)
        .map(|target| target.join(OBJECT))
        .collect();
    for candidate in &candidates {
        println!("cargo::rerun-if-changed={}", candidate.display());
    }
    let object = candidates.iter().find(|path| path.is_file()).ok_or_else(|| {
        let places: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
        format!(
            "the eBPF programs are not built: run `cargo xtask build-ebpf` first (looked for {})",
            places.join(" and ")
        )
    })?;
    fs::copy(object, out.join("tulle.bpf.o"))
        .map_err(|error| format!("cannot copy {} to OUT_DIR: {error}", object.display()))?;
    Ok(())
}

/// The target directory around `<target>[/<triple>]/<profile>/build/…/out`.
fn target_directory<'a>(out: &'a Path, triple: &str) -> Option<&'a Path> {
    let build = out.ancestors().find(|dir| dir.ends_with("build"))?;
    let above = build.parent()?.parent()?;
    if above.ends_with(triple) {
        above.parent()
    } else {
        Some(above)
    }
}
