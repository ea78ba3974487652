//! `tulle-agent cleanup`: every trace off the node.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::CleanupArgs;
use crate::kernel::cleanup::Cleaned;
use crate::kernel::probe::{self, Sources};
use crate::kernel::{self, InstanceLock};
use crate::net::{self, Netlink};
use crate::takeover;

/// Files in the run directory that are Tulle's, the lock last: it is held meanwhile.
const RUN_FILES: [&str; 5] = [
    admin_api::SOCKET_NAME,
    "monitor.lock",
    "stripped-mac",
    "sysctls.json",
    "agent.lock",
];

/// Removes everything that an agent left and prints it.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    probe::check_rights(&Sources::default())?;
    let lock = InstanceLock::take(&args.places.run_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;

    let cleaned = kernel::cleanup::cleanup(&args.places.bpffs);
    let mut done = sentences(&cleaned, &args.places.bpffs);
    let mut failed: Vec<String> = cleaned.failed.iter().map(ToString::to_string).collect();
    let slow_path = runtime.block_on(async {
        let netlink = Netlink::open()?;
        net::cleanup(&netlink, args.vni, &args.places.sysctls()).await
    });
    match slow_path {
        Ok(mut slow_path) => done.append(&mut slow_path),
        Err(error) => failed.push(error.to_string()),
    }
    match takeover::forget() {
        Ok(removed) => done.extend(removed),
        Err(error) => failed.push(format!("{error:#}")),
    }
    // What remains to be put back is needed by the next attempt.
    if failed.is_empty() {
        match remove_run_files(&args.places.run_dir) {
            Ok(removed) => done.extend(removed),
            Err(error) => failed.push(error),
        }
    }
    drop(lock);

    let mut out = io::stdout().lock();
    let nothing = done.is_empty() && failed.is_empty();
    let none = nothing.then(|| "nothing to remove: no trace of Tulle on this node".to_owned());
    for line in done.iter().chain(&none) {
        writeln!(out, "{line}").context("cannot write to standard output")?;
    }
    if failed.is_empty() {
        drop(out);
        return if args.stay { stay(&runtime) } else { Ok(()) };
    }
    bail!(
        "not everything could be removed: {}; mend the cause and run cleanup again",
        failed.join("; ")
    )
}

/// Waits to be told to end.
fn stay(runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

/// What was removed from the datapath, for people.
fn sentences(cleaned: &Cleaned, dir: &Path) -> Vec<String> {
    let counted = [
        (cleaned.links, "detached program", "detached programs"),
        (cleaned.filters, "tc filter", "tc filters"),
        (cleaned.qdiscs, "clsact qdisc", "clsact qdiscs"),
        (cleaned.maps, "pinned map", "pinned maps"),
    ];
    let mut done: Vec<String> = counted
        .into_iter()
        .filter(|(n, ..)| *n > 0)
        .map(|(n, one, many)| format!("removed {n} {}", if n == 1 { one } else { many }))
        .collect();
    if cleaned.directory {
        done.push(format!("removed {}", dir.display()));
    }
    if !cleaned.foreign.is_empty() {
        done.push(format!(
            "left in {}, as it is not Tulle's: {}",
            dir.display(),
            cleaned.foreign.join(", ")
        ));
    }
    done
}

/// Removes our files, and the directory if nothing else is in it. The lock alone is no trace
/// worth a word: taking it made it.
fn remove_run_files(dir: &Path) -> Result<Vec<String>, String> {
    let mut done = Vec::new();
    for file in RUN_FILES {
        let path = dir.join(file);
        match std::fs::remove_file(&path) {
            Ok(()) if file == "agent.lock" => {}
            Ok(()) => done.push(format!("removed {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("cannot remove {}: {error}", path.display())),
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::NotFound
                    | io::ErrorKind::ResourceBusy
                    // A container's, whose root is read-only: the directory is mounted there.
                    | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Err(format!("cannot remove {}: {error}", dir.display()))
        }
        _ => Ok(done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_files_go_and_foreign_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        std::fs::create_dir(&run).unwrap();
        for file in ["agent.lock", "sysctls.json", "other"] {
            std::fs::write(run.join(file), "").unwrap();
        }
        let done = remove_run_files(&run).unwrap();
        assert_eq!(done, [format!("removed {}/sysctls.json", run.display())]);
        assert!(run.join("other").exists());
        std::fs::remove_file(run.join("other")).unwrap();
        assert_eq!(remove_run_files(&run).unwrap(), [""; 0]);
        assert!(!run.exists());
        assert_eq!(remove_run_files(&run).unwrap(), [""; 0], "idempotent");
    }

    #[test]
    fn what_was_removed_is_counted() {
        let cleaned = Cleaned {
            links: 1,
            maps: 20,
            foreign: vec!["other".into()],
            ..Cleaned::default()
        };
        assert_eq!(
            sentences(&cleaned, Path::new("/b")),
            [
                "removed 1 detached program",
                "removed 20 pinned maps",
                "left in /b, as it is not Tulle's: other",
            ]
        );
        assert_eq!(sentences(&Cleaned::default(), Path::new("/b")), [""; 0]);
    }
}
