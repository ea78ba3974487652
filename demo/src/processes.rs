//! Processes as `/proc` shows them, told apart by id and start time, so that
//! an id that is used again is no false alarm.

use std::collections::BTreeSet;
use std::path::Path;

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, in clock ticks since the machine's start.
    started: u64,
}

/// Processes whose main thread is in one of the network namespaces, given by inode.
pub fn in_namespaces(inodes: &BTreeSet<u64>) -> BTreeSet<Process> {
    let inside = |pid: &u32| {
        std::fs::read_link(format!("/proc/{pid}/ns/net"))
            .ok()
            .and_then(|link| inode_of(&link))
            .is_some_and(|inode| inodes.contains(&inode))
    };
    pids().filter(inside).filter_map(find).collect()
}

/// Whether a process of the group still runs. Those that have ended do not
/// count, whether or not anybody has waited for them.
pub fn group_runs(group: u32) -> bool {
    pids()
        .filter_map(read)
        .any(|stat| stat.group == group && !stat.ended)
}

/// Whether it still runs; one that has ended and was not yet waited for does not.
pub fn runs(process: Process) -> bool {
    find(process.pid) == Some(process)
}

fn find(pid: u32) -> Option<Process> {
    let stat = read(pid)?;
    (!stat.ended).then_some(Process {
        pid,
        started: stat.started,
    })
}

/// Ids of all processes.
fn pids() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// A part of `proc_pid_stat(5)`.
#[derive(PartialEq, Eq, Debug)]
struct Stat {
    ended: bool,
    group: u32,
    started: u64,
}

fn read(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Fields 3, 5 and 22. The name before them may hold anything.
fn parse_stat(stat: &str) -> Option<Stat> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(Stat {
        ended: matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// The inode in `net:[4026531840]`.
fn inode_of(link: &Path) -> Option<u64> {
    link.to_str()?
        .strip_prefix("net:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_is_read_over() {
        let stat = "7 (a) Z (b)) S 1 6 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1";
        let expected = Stat {
            ended: false,
            group: 6,
            started: 4711,
        };
        assert_eq!(parse_stat(stat), Some(expected));
        assert_eq!(parse_stat("7 (x"), None);
    }

    #[test]
    fn this_process_runs_in_its_namespace() {
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let inode = inode_of(&own).unwrap();
        let found = in_namespaces(&BTreeSet::from([inode]));
        let me = found.iter().find(|p| p.pid == std::process::id()).unwrap();
        assert!(runs(*me));
        assert!(!runs(Process {
            started: me.started + 1,
            ..*me
        }));
        assert!(in_namespaces(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_group_runs_until_its_processes_have_ended() {
        use std::os::unix::process::CommandExt;
        let mut sleep = std::process::Command::new("sleep");
        let mut child = sleep.arg("60").process_group(0).spawn().unwrap();
        assert!(group_runs(child.id()));
        child.kill().unwrap();
        // Not waited for, so it stays as a zombie.
        let gone = testkit::wait::until("end", std::time::Duration::from_secs(5), || {
            Ok((!group_runs(child.id())).then_some(()))
        });
        gone.unwrap();
        child.wait().unwrap();
    }
}
