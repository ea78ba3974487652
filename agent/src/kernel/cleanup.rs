//! Removing every trace: attachments first, so that no packet meets a program
//! whose maps are going, then maps, then the directory.

use std::cmp::Reverse;
use std::path::Path;

use super::attach::{AttachError, drop_filter};
use super::clsact::{self, Side};
use super::parts::is_pin;
use super::pins::{PinError, Pins, list, remove, remove_link};
use super::place::Entry;
use super::rtnl::Rtnl;

/// What the kernel itself shows in the root of every bpffs (Linux 5.10).
const KERNELS_OWN: [&str; 2] = ["maps.debug", "progs.debug"];

/// What cleanup removed. All zero if there was nothing.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// TCX, XDP and cgroup links.
    pub links: u32,
    /// tc filters.
    pub filters: u32,
    /// clsact qdiscs that the agent had added and nobody else uses.
    pub qdiscs: u32,
    /// Maps, without the one of the layout version and the programs' parts.
    pub maps: u32,
    /// Whether the directory itself is gone.
    pub directory: bool,
    /// Names in the directory that are not ours and were left.
    pub foreign: Vec<String>,
    /// What did not work. The rest was done all the same.
    pub failed: Vec<AttachError>,
}

impl Cleaned {
    /// Whether there was nothing to do.
    pub fn was_clean(&self) -> bool {
        self.links + self.filters + self.qdiscs + self.maps == 0
            && !self.directory
            && self.failed.is_empty()
    }
}

/// Detaches and unpins everything in `pin_dir`. Needs no map and no program, so
/// it also works after another version or half a start. Idempotent. Must run
/// in the network namespace of the node for filters and qdiscs to be found, and
/// with the [`InstanceLock`](super::InstanceLock) held: a running agent would
/// attach again.
pub fn cleanup(pin_dir: &Path) -> Cleaned {
    let mut done = Cleaned::default();
    if let Err(e) = try_cleanup(&Pins::at(pin_dir), &mut done) {
        done.failed.push(e.into());
    }
    done
}

fn try_cleanup(pins: &Pins, done: &mut Cleaned) -> Result<(), PinError> {
    let links = pins.links();
    let mut qdiscs = Vec::new();
    for (entry, file) in in_turn(list(&links)?) {
        let path = links.join(&file);
        match entry {
            Some(Entry::Link(_) | Entry::Socket(_)) => done.links += u32::from(remove_link(&path)?),
            Some(Entry::Filter(place)) => match drop_filter(place) {
                Ok(was_there) => {
                    done.filters += u32::from(was_there);
                    remove(&path)?;
                }
                Err(e) => done.failed.push(e),
            },
            Some(Entry::Qdisc(ifindex)) => qdiscs.push((ifindex, path)),
            None => done.foreign.push(format!("links/{file}")),
        }
    }
    // After the filters: a qdisc goes only when it is empty.
    for (ifindex, path) in qdiscs {
        match drop_qdisc(ifindex) {
            Ok(was_there) => {
                done.qdiscs += u32::from(was_there);
                remove(&path)?;
            }
            Err(source) => done.failed.push(AttachError::Kernel {
                what: "remove the clsact qdisc of",
                program: "the datapath",
                ifindex,
                source,
            }),
        }
    }
    let ours = |file: &str| file.starts_with("tulle_") || file == "abi" || file == "abi-next";
    for file in list(pins.dir())? {
        if file == "links" || KERNELS_OWN.contains(&file.as_str()) {
            continue;
        }
        if !ours(&file) {
            done.foreign.push(file);
        } else if remove(&pins.dir().join(&file))? {
            let map = file.starts_with("tulle_") && !file.ends_with("-next") && !is_pin(&file);
            done.maps += u32::from(map);
        }
    }
    if done.foreign.is_empty() && done.failed.is_empty() {
        remove(&links)?;
        done.directory = remove_unless_mounted(pins.dir())?;
    }
    Ok(())
}

/// What is in the directory of links: at sockets those first that send elsewhere, so that
/// no answer comes without its name.
fn in_turn(files: Vec<String>) -> Vec<(Option<Entry>, String)> {
    let parsed = files.into_iter().map(|file| (Entry::parse(&file), file));
    let mut found: Vec<_> = parsed.collect();
    found.sort_by_key(|(entry, _)| {
        Reverse(match entry {
            Some(Entry::Socket(hook)) => Some(*hook),
            _ => None,
        })
    });
    found
}

/// Removes the directory; one that is the root of a bpffs stays, as it is not ours.
fn remove_unless_mounted(dir: &Path) -> Result<bool, PinError> {
    match remove(dir) {
        Err(PinError::Kernel { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            Ok(false)
        }
        other => other,
    }
}

/// Removes a qdisc that we added, unless others put filters there meanwhile.
fn drop_qdisc(ifindex: u32) -> std::io::Result<bool> {
    let mut rtnl = Rtnl::open()?;
    if !clsact::has_qdisc(&mut rtnl, ifindex)? {
        return Ok(false);
    }
    for side in [Side::Ingress, Side::Egress] {
        if !clsact::filters(&mut rtnl, ifindex, side)?.is_empty() {
            return Ok(false);
        }
    }
    clsact::remove_qdisc(&mut rtnl, ifindex)
}

#[cfg(test)]
mod tests {
    use datapath_common::SocketHook;

    use super::*;

    #[test]
    fn programs_at_sockets_go_in_the_reverse_of_their_order() {
        let mut files = vec!["other".to_owned(), "clsact-3".to_owned()];
        files.extend(SocketHook::ALL.map(|hook| hook.program().to_owned()));
        let found: Vec<String> = in_turn(files).into_iter().map(|(_, file)| file).collect();
        let mut wanted = SocketHook::ALL.map(SocketHook::program);
        wanted.reverse();
        assert_eq!(found[..wanted.len()], wanted);
        assert_eq!(found[wanted.len()..], ["other", "clsact-3"]);
        let mut hooks = SocketHook::ALL.into_iter();
        let names = hooks.by_ref().take_while(|hook| !hook.sends_elsewhere());
        assert_eq!(names.count(), 5);
        assert!(hooks.all(SocketHook::sends_elsewhere));
    }
}
