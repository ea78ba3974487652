//! `cargo xtask docs`: the pages that come from the tables of `datapath-common`.

use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use datapath_common::maps::{self, MapInfo, Writer};
use datapath_common::{Group, Reason};

use crate::workspace::Workspace;

/// Write the pages of docs/generated from the tables in the source
#[derive(clap::Args)]
pub struct Args {
    /// Only compare: fail if a page is not what the source gives
    #[arg(long)]
    check: bool,
}

/// Writes or compares the pages.
pub fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::detect()?;
    if args.check {
        return check(&workspace);
    }
    for page in write(&workspace)? {
        println!("wrote {}", page.display());
    }
    Ok(())
}

/// Fails if a page is missing or not what the source gives.
pub fn check(workspace: &Workspace) -> Result<()> {
    let stale = stale(&directory(workspace), &pages())?;
    if !stale.is_empty() {
        bail!(
            "{}: not what the source gives; `cargo xtask docs` writes anew",
            stale.join(", ")
        );
    }
    Ok(())
}

/// Writes the pages that differ. Returns their paths.
pub fn write(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let directory = directory(workspace);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let pages = pages();
    let mut written = Vec::new();
    for name in stale(&directory, &pages)? {
        let path = directory.join(name);
        let text = pages.iter().find(|page| page.name == name);
        fs::write(&path, text.map_or("", |page| page.text.as_str()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}

fn directory(workspace: &Workspace) -> PathBuf {
    workspace.root().join("docs/generated")
}

/// A page and its name.
struct Page {
    name: &'static str,
    text: String,
}

fn pages() -> [Page; 2] {
    [
        Page {
            name: "maps.md",
            text: maps_page(maps::ALL),
        },
        Page {
            name: "drop-reasons.md",
            text: reasons_page(),
        },
    ]
}

/// Names of the pages that are not in `directory` as they should be.
fn stale(directory: &Path, pages: &[Page]) -> Result<Vec<&'static str>> {
    let mut stale = Vec::new();
    for page in pages {
        let path = directory.join(page.name);
        match fs::read_to_string(&path) {
            Ok(text) if text == page.text => {}
            Ok(_) => stale.push(page.name),
            Err(error) if error.kind() == ErrorKind::NotFound => stale.push(page.name),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        }
    }
    Ok(stale)
}

fn heading(title: &str, source: &str) -> String {
    format!("# {title}\n\nWritten by `cargo xtask docs` from `{source}`. Change it there.\n")
}

fn maps_page(all: &[MapInfo]) -> String {
    let mut page = heading("Maps", "datapath-common/src/maps.rs");
    page += "\nName of map and pin, entries unless the agent is told otherwise, and the one writer. \
             `bpftool map show` tells the sizes of keys and values.\n\n";
    page += "| map | entries | writer | holds |\n| --- | ---: | --- | --- |\n";
    for map in all {
        let writer = match map.writer {
            Writer::Agent => "agent",
            Writer::Programs => "programs",
            Writer::Cli => "CLI",
        };
        row(
            &mut page,
            &[
                &format!("`{}`", map.name),
                &map.default_entries.to_string(),
                writer,
                map.what,
            ],
        );
    }
    page
}

fn reasons_page() -> String {
    let mut page = heading("Reasons", "datapath-common/src/reason.rs");
    page += "\nEvery packet leaves a program under one of these; `tulle drops` counts them, with \
             `--all` also what was not lost. Numbers are never used again, labels never change.\n";
    let groups = [
        (Group::Dropped, "Dropped", "The packet is gone."),
        (
            Group::Refused,
            "Refused",
            "The sender got an ICMP error, the packet is gone.",
        ),
        (
            Group::Forwarded,
            "Forwarded",
            "The datapath sent it on its way.",
        ),
        (
            Group::Passed,
            "Passed",
            "Left to the node's own stack, which delivers it.",
        ),
    ];
    for (group, title, what) in groups {
        let _ = write!(page, "\n## {title}\n\n{what}\n\n");
        page += if group.is_loss() {
            "| number | label | the packet | next step |\n| ---: | --- | --- | --- |\n"
        } else {
            "| number | label | the packet |\n| ---: | --- | --- |\n"
        };
        for reason in Reason::ALL.iter().filter(|reason| reason.group() == group) {
            let number = (*reason as u8).to_string();
            let label = format!("`{}`", reason.label());
            let cells = [&number, &label, reason.what(), reason.next_step()];
            row(&mut page, &cells[..if group.is_loss() { 4 } else { 3 }]);
        }
    }
    page
}

/// A row of a table.
fn row(page: &mut String, cells: &[&str]) {
    for cell in cells {
        *page += "| ";
        *page += &cell.replace('|', "\\|");
        *page += if cell.is_empty() { "" } else { " " };
    }
    *page += "|\n";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_every_map_has_one_row() {
        let [maps, reasons] = pages();
        for map in maps::ALL {
            let begin = format!("| `{}` |", map.name);
            assert_eq!(maps.text.matches(&begin).count(), 1, "{}", map.name);
        }
        for reason in Reason::ALL {
            let begin = format!("| {} | `{}` |", *reason as u8, reason.label());
            assert_eq!(reasons.text.matches(&begin).count(), 1, "{reason:?}");
        }
    }

    #[test]
    fn what_was_changed_or_is_missing_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = pages();
        let pages = [one, two];
        assert_eq!(
            stale(directory.path(), &pages).unwrap(),
            ["maps.md", "drop-reasons.md"]
        );
        for page in &pages {
            fs::write(directory.path().join(page.name), &page.text).unwrap();
        }
        assert!(stale(directory.path(), &pages).unwrap().is_empty());
        fs::write(directory.path().join("maps.md"), "by hand").unwrap();
        assert_eq!(stale(directory.path(), &pages).unwrap(), ["maps.md"]);
    }

    #[test]
    fn a_bar_in_a_sentence_does_not_end_its_cell() {
        let mut page = String::new();
        row(&mut page, &["a|b", "", "c"]);
        assert_eq!(page, "| a\\|b | | c |\n");
    }
}
