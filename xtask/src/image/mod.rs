//! `cargo xtask image`: static programs, and a container image of them, without a container
//! daemon.

mod archive;
mod check;
mod layer;
mod programs;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::bpf_toolchain::Choice;
use crate::build_ebpf::{self, LoadCheck};
use crate::workspace::Workspace;

use archive::{Image, Platform};
use layer::Entry;

/// The most that the archive may weigh: what a node has to fetch.
const MOST_OCTETS: usize = 15_000_000;

/// The programs of the image and the argument that makes each print its version.
const PROGRAMS: [(&str, &str); 2] = [("tulle-agent", "version"), ("tulle", "--version")];

/// Build the container image into target/dist, and the static programs that are in it
///
/// The archive is an OCI layout that also has what `docker load` reads: `ctr images import`,
/// `podman load` and k3s's directory of images take it, too. The same sources give the same archive.
#[derive(clap::Args)]
pub struct Args {
    /// The image's name, with a tag [default: localhost/tulle:<version>]
    #[arg(long, value_name = "NAME:TAG", value_parser = full_name)]
    name: Option<String>,
    /// What compiles the eBPF programs
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    toolchain: Choice,
}

/// Builds everything and says where it is.
pub fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::detect()?;
    build_ebpf::build(&workspace, args.toolchain, LoadCheck::No)?;
    let made = build(&workspace, args.name.as_deref())?;
    println!("{made}");
    Ok(())
}

/// What was made.
pub struct Made {
    path: PathBuf,
    name: String,
    digest: String,
    octets: usize,
}

impl std::fmt::Display for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} with manifest {}, {:.1} MB",
            self.path.display(),
            self.name,
            self.digest,
            self.octets as f64 / 1e6
        )
    }
}

/// Builds programs and archive, and checks both. The eBPF object must be there.
pub fn build(workspace: &Workspace, name: Option<&str>) -> Result<Made> {
    let version = env!("CARGO_PKG_VERSION");
    let name = name.map_or_else(|| format!("localhost/tulle:{version}"), str::to_owned);
    let platform = Platform::of_this_machine()?;
    let directory = workspace.target().join("dist");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;

    let mut entries = layer::directories();
    for (path, text) in [
        ("usr/share/doc/tulle/LICENSE-APACHE", "LICENSE-APACHE"),
        ("usr/share/doc/tulle/LICENSE-GPL-2.0", "LICENSE-GPL-2.0"),
    ] {
        let from = workspace.root().join(text);
        let content = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
        entries.push(Entry::file(path, 0o644, content));
    }
    let built = programs::build(workspace, &PROGRAMS.map(|(name, _)| name))?;
    for ((program, version_argument), path) in PROGRAMS.iter().zip(&built) {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        check::program(program, &content, platform)
            .with_context(|| format!("{} is not fit for the image", path.display()))?;
        check::runs(path, version_argument, version)?;
        // Plain nodes take them from here.
        let copy = directory.join(program);
        fs::copy(path, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
        entries.push(Entry::file(&format!("usr/bin/{program}"), 0o755, content));
    }

    let image = Image {
        name: &name,
        version,
        platform,
        entries: &entries,
    };
    let archive = image.archive()?;
    let digest = check::archive(&archive, &image)?;
    ensure!(
        archive.len() <= MOST_OCTETS,
        "the image has {} octets, more than the {MOST_OCTETS} that a node should have to fetch: \
         look for what grew by `cargo bloat --profile image`",
        archive.len()
    );
    let path = directory.join(format!("tulle-{version}-{}.tar", platform.architecture()));
    fs::write(&path, &archive).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Made {
        path,
        name,
        digest,
        octets: archive.len(),
    })
}

/// A name that means the same to every runtime: with its registry, or `localhost`, and a tag.
fn full_name(text: &str) -> Result<String, String> {
    let (registry, rest) = text.split_once('/').unwrap_or(("", text));
    let (path, tag) = rest.rsplit_once(':').unwrap_or((rest, ""));
    let word = |text: &str, more: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c))
    };
    let host = registry == "localhost" || registry.contains(['.', ':']);
    let tagged = !tag.is_empty()
        && tag.len() <= 128
        && tag
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if host && word(registry, ".-:") && word(path, "/._-") && tagged {
        Ok(text.to_owned())
    } else {
        Err("an image's name is REGISTRY/PATH:TAG, such as localhost/tulle:1.0".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_every_runtime_reads_alike_are_taken() {
        for good in [
            "localhost/tulle:0.1.0",
            "registry.example:5000/net/tulle:v1_a-B",
        ] {
            assert_eq!(full_name(good).as_deref(), Ok(good));
        }
        for bad in [
            "tulle",
            "tulle:1",
            "net/tulle:1",
            "localhost/tulle",
            "localhost/Tulle:1",
            "localhost/:1",
            "localhost/tulle:a/b",
            "registry.example/tulle@sha256:00",
        ] {
            assert!(full_name(bad).is_err(), "{bad}");
        }
    }
}
