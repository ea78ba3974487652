//! Attachments, by the pins of their links.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context as _;
use aya::programs::loaded_programs;
use serde::{Deserialize, Serialize};

use crate::sys::{LinkInfo, pinned_link};

/// Directory of the link pins inside the directory of the map pins.
pub const LINKS_DIR: &str = "links";

/// A pinned link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkRow {
    /// Name of the pin.
    pub pin: String,
    /// Name of the program; absent if it cannot be read.
    pub program: Option<String>,
    /// Index of the interface; absent if it is gone or the link has none.
    pub ifindex: Option<u32>,
    /// Name of the interface in this network namespace.
    pub interface: Option<String>,
    /// How it is attached.
    pub mode: String,
}

/// Attachments remembered under `dir`: pinned links, and the names that the
/// agent leaves for filters, which have no links (TC before Linux 6.6). None
/// if there is no such directory.
///
/// # Errors
///
/// If the directory cannot be read.
pub fn pinned(dir: &Path) -> anyhow::Result<Vec<LinkRow>> {
    let dir = dir.join(LINKS_DIR);
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| dir.display().to_string())?,
    };
    let programs = program_names();
    let mut rows = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| dir.display().to_string())?;
        let pin = entry.file_name().to_string_lossy().into_owned();
        // A pin that went away meanwhile, or is no link, is not an attachment.
        if let Ok(info) = pinned_link(&entry.path()) {
            rows.push(row(pin, info, &programs, interface_name));
        } else if let Some((program, ifindex)) = filter(&pin) {
            rows.push(LinkRow {
                program: Some(program.to_owned()),
                ifindex: Some(ifindex),
                interface: interface_name(ifindex),
                mode: "clsact".into(),
                pin,
            });
        }
    }
    rows.sort_by(|a, b| {
        (&a.interface, &a.program, &a.pin).cmp(&(&b.interface, &b.program, &b.pin))
    });
    Ok(rows)
}

fn row(
    pin: String,
    info: LinkInfo,
    programs: &HashMap<u32, String>,
    interface_name: impl Fn(u32) -> Option<String>,
) -> LinkRow {
    LinkRow {
        pin,
        program: programs.get(&info.program_id).cloned(),
        ifindex: info.ifindex,
        interface: info.ifindex.and_then(interface_name),
        mode: info.mode.into(),
    }
}

/// Program and interface of a name that the agent leaves for a filter.
fn filter(name: &str) -> Option<(&str, u32)> {
    let (program, ifindex) = name.strip_prefix("filter-")?.rsplit_once('-')?;
    Some((program, ifindex.parse().ok()?))
}

fn program_names() -> HashMap<u32, String> {
    // A program may go between the listing and the look at it.
    let programs = loaded_programs().flatten();
    programs
        .filter_map(|p| Some((p.id(), p.name_as_str()?.to_owned())))
        .collect()
}

/// Name of an interface in this network namespace.
pub fn interface_name(ifindex: u32) -> Option<String> {
    nix::net::if_::if_indextoname(ifindex)
        .ok()?
        .into_string()
        .ok()
}

/// An interface by name, or by index where the name is not known.
pub fn interface_text(name: Option<&str>, ifindex: u32) -> String {
    name.map_or_else(|| format!("if{ifindex}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_told_by_their_names() {
        assert_eq!(
            filter("filter-tulle_pod_from-12"),
            Some(("tulle_pod_from", 12))
        );
        assert_eq!(filter("clsact-12"), None);
        assert_eq!(filter("filter-tulle_pod_from-eth0"), None);
    }

    #[test]
    fn no_directory_means_no_attachments() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(pinned(dir.path()).unwrap(), []);
    }

    #[test]
    fn an_interface_that_is_gone_leaves_its_program() {
        let programs = HashMap::from([(5, "tulle_xdp".to_owned())]);
        let info = LinkInfo {
            mode: "xdp",
            program_id: 5,
            ifindex: Some(9),
        };
        let row = row("tulle_xdp-9".into(), info, &programs, |_| None);
        assert_eq!(
            (row.program.as_deref(), row.interface),
            (Some("tulle_xdp"), None)
        );
    }
}
