//! Has the kernel verify the object: loads it by bpftool, an independent loader, and asks the
//! kernel what it holds.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use aya::programs::ProgramInfo;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::process;

/// Lines of a refusal that are shown: the verifier says why at the end of a log of any length.
const SHOWN_LINES: usize = 40;

const BPFFS: &str = "/sys/fs/bpf";

/// A program as the kernel verified it.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified {
    /// The program's name.
    pub name: String,
    /// Size after the verifier's rewriting, in octets.
    pub xlated: Option<u32>,
    /// Instructions that the verifier walked, over all paths (Linux 5.16 and later).
    pub walked: Option<u32>,
}

/// Loads every program of the object and lets them go again. Needs root and bpftool.
///
/// All this happens on a BPF file system of its own, in a mount namespace of its own, so whatever
/// way it ends nothing stays pinned.
pub fn verify(object: &Path) -> Result<Vec<Verified>> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // Only this thread, and the children that it starts, move to the new namespace.
            unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("cannot make the mounts private")?;
            mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)
                .with_context(|| format!("cannot mount a BPF file system at {BPFFS}"))?;
            load(object)
        });
        worker
            .join()
            .map_err(|_| anyhow!("the load check panicked"))?
    })
}

fn load(object: &Path) -> Result<Vec<Verified>> {
    let pins = Path::new(BPFFS).join("tulle-load-check");
    let loaded = process::command("bpftool")
        .args(["prog", "loadall"])
        .args([object, &pins])
        .output()
        .context("cannot start bpftool: `cargo xtask setup` installs it")?;
    if !loaded.status.success() {
        let log = object.with_extension("log");
        fs::write(&log, &loaded.stderr)
            .with_context(|| format!("cannot write {}", log.display()))?;
        bail!(
            "the kernel does not take {}. The end of what bpftool and the verifier say (all of it \
             is in {}):\n{}",
            object.display(),
            log.display(),
            last_lines(&String::from_utf8_lossy(&loaded.stderr), SHOWN_LINES)
        );
    }
    let mut programs = Vec::new();
    for entry in fs::read_dir(&pins).with_context(|| format!("cannot list {}", pins.display()))? {
        let path = entry?.path();
        let info = ProgramInfo::from_pin(&path)
            .with_context(|| format!("cannot ask the kernel about {}", path.display()))?;
        programs.push(Verified {
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            xlated: info.size_translated(),
            walked: info.verified_instruction_count(),
        });
    }
    if programs.is_empty() {
        bail!("{} holds no program", object.display());
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The programs as a table for people.
pub fn table(programs: &[Verified]) -> String {
    let width = programs
        .iter()
        .map(|p| p.name.len())
        .max()
        .unwrap_or(0)
        .max("program".len());
    let mut text = format!(
        "  {:width$}  {:>14}  {:>21}\n",
        "program", "xlated octets", "instructions verified"
    );
    let shown = |number: Option<u32>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    for Verified {
        name,
        xlated,
        walked,
    } in programs
    {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {name:width$}  {:>14}  {:>21}",
            shown(*xlated),
            shown(*walked)
        );
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_shown_by_its_end() {
        assert_eq!(last_lines("a\nb\nc\n\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn the_table_shows_what_is_known() {
        let text = table(&[
            Verified {
                name: "tulle_pod_from".into(),
                xlated: Some(4096),
                walked: Some(12_345),
            },
            Verified {
                name: "tulle_xdp".into(),
                xlated: Some(16),
                walked: None,
            },
        ]);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[1], ["tulle_pod_from", "4096", "12345"]);
        assert_eq!(rows[2], ["tulle_xdp", "16", "-"]);
    }
}
