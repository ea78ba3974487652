//! Sockets of datagrams that are connected to a backend which is gone: they are closed from
//! outside, so that their processes notice. And rows of sockets that nobody needs any more are
//! removed. A thread does it, for it goes through the network namespaces of all processes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::sockets::FIRST_PIDS;
use crate::kernel::departed::{Connected, Departed, ReadError, SocketTables};
use crate::kernel::now_ticks;
use crate::kernel::sock_diag::SockDiag;

/// Between two looks at the tables.
const GAP: Duration = Duration::from_millis(100);
/// A socket that was about to be connected when its backend went is, by then.
const AGAIN: Duration = Duration::from_millis(400);
/// Looks without a reason.
const INTERVAL: Duration = Duration::from_secs(10);
/// Between two removals of rows that have expired.
const EXPIRY: Duration = Duration::from_secs(10);
/// Between two removals of connected sockets' rows from crowded tables.
const SWEEP: Duration = Duration::from_mins(1);
/// A row that is this old, in ticks, is of a socket that is connected or never will be.
const SETTLED: u32 = 3;

/// The loop's end of the thread, which ends with it.
#[derive(Debug)]
pub struct Watch {
    changed: SyncSender<()>,
}

impl Watch {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// There can be no thread, or its network namespace cannot be opened.
    pub fn start(tables: SocketTables) -> io::Result<Self> {
        let (changed, news) = sync_channel(1);
        let watcher = Watcher {
            tables,
            home: File::open("/proc/thread-self/ns/net")?,
            done: HashSet::new(),
            warned: HashSet::new(),
            expire: Instant::now() + EXPIRY,
            sweep: Instant::now(),
            missing: HashSet::new(),
        };
        std::thread::Builder::new()
            .name("departed".to_owned())
            .spawn(move || watcher.run(&news))?;
        Ok(Self { changed })
    }

    /// Backends may be gone.
    pub fn look(&self) {
        // Who has not heard the last word yet hears one for both.
        let _ = self.changed.try_send(());
    }
}

struct Watcher {
    tables: SocketTables,
    /// The network namespace that the thread is in between two passes.
    home: File,
    /// Those that were dealt with, as long as they have a row.
    done: HashSet<Departed>,
    /// What was warned of already: what failed, and the kernel's number for it.
    warned: HashSet<(&'static str, Option<i32>)>,
    /// When to remove rows that have expired.
    expire: Instant,
    /// When rows of connected sockets may be removed again.
    sweep: Instant,
    /// Rows of sockets that were not found the last time.
    missing: HashSet<Connected>,
}

/// What a pass met.
#[derive(Default)]
struct Pass {
    /// Sockets that are closed now.
    closed: usize,
    /// Those that were connected to their backend still.
    met: HashSet<([u32; 2], SocketAddr)>,
    /// What did not work. The rest was done all the same.
    failures: Vec<Failure>,
}

/// A step of a pass did not work.
struct Failure {
    what: &'static str,
    namespace: PathBuf,
    source: io::Error,
}

impl Failure {
    /// Whether the namespace's process has ended, or its mount is gone.
    fn is_gone(&self) -> bool {
        self.what == OPEN && matches!(self.source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
    }
}

/// What fails where a namespace is gone.
const OPEN: &str = "open it";

impl Watcher {
    fn run(mut self, news: &Receiver<()>) {
        let mut again: Option<Instant> = None;
        loop {
            let wait = again.map_or(INTERVAL, |at| at.saturating_duration_since(Instant::now()));
            match news.recv_timeout(wait) {
                Ok(()) => again = Some(Instant::now() + AGAIN),
                Err(RecvTimeoutError::Timeout) => again = None,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let began = Instant::now();
            self.pass();
            if let Err(error) = self.tidy(began) {
                tracing::warn!("rows of sockets that are gone stay: {error}");
            }
            // The thread has at most a quarter of its time for this.
            std::thread::sleep(GAP.max(began.elapsed() * 3));
        }
    }

    fn pass(&mut self) {
        let departed = match self.tables.departed() {
            Ok(departed) => departed,
            Err(error) => {
                tracing::warn!("sockets whose backend is gone are not looked for: {error}");
                return;
            }
        };
        let rows: HashSet<Departed> = departed.iter().copied().collect();
        self.done.retain(|row| rows.contains(row));
        let due: Vec<Departed> = departed
            .into_iter()
            .filter(|row| !self.done.contains(row))
            .collect();
        if due.is_empty() {
            return;
        }
        let pass = close(&due);
        self.go_home();
        if pass.closed > 0 {
            let closed = pass.closed;
            tracing::info!("closed {closed} sockets of datagrams whose backend is gone");
        }
        for failure in &pass.failures {
            self.tell(failure);
        }
        if !pass.failures.is_empty() {
            return; // one of them may be where nobody looked
        }
        let now = now_ticks();
        let settled = |row: &Departed| {
            now.wrapping_sub(row.seen) >= SETTLED && !pass.met.contains(&(row.cookie, row.backend))
        };
        self.done.extend(due.into_iter().filter(settled));
    }

    /// Removes rows that have expired, and, from crowded tables, those of sockets that are not
    /// there any more: the programs do not see the end of the kernel's own, and of none while
    /// they are detached.
    fn tidy(&mut self, now: Instant) -> Result<(), ReadError> {
        if now >= self.expire {
            self.expire = now + EXPIRY;
            let removed = self.tables.expire(now_ticks())?;
            tracing::debug!("removed {removed} rows of sockets that were silent for long");
        }
        if now < self.sweep {
            return Ok(());
        }
        let mut rows = self.tables.crowded()?;
        if rows.is_empty() {
            return Ok(());
        }
        self.sweep = now + SWEEP;
        let ticks = now_ticks();
        rows.retain(|row| ticks.wrapping_sub(row.seen) >= SETTLED);
        let before = std::mem::take(&mut self.missing);
        // Sockets may be where nobody looked: processes that this one cannot see, or a namespace
        // whose process ended meanwhile.
        if !sees_all_processes() {
            return Ok(());
        }
        let (living, failures) = living();
        self.go_home();
        for failure in &failures {
            self.tell(failure);
        }
        if !failures.is_empty() {
            return Ok(());
        }
        let missing = rows.into_iter().filter(|row| !living.contains(&row.cookie));
        // Twice in a row.
        let (gone, missing) = missing.partition(|row| before.contains(row));
        self.missing = missing;
        if !self.missing.is_empty() {
            self.sweep = now + EXPIRY;
        }
        let removed = self.tables.forget(&gone)?;
        if removed > 0 {
            tracing::info!("removed {removed} rows of sockets that are gone from crowded tables");
        }
        Ok(())
    }

    /// A pod's network namespace would stay as long as the thread is in it.
    fn go_home(&self) {
        if let Err(error) = setns(&self.home, CloneFlags::CLONE_NEWNET) {
            tracing::warn!("cannot go back to the node's network namespace: {error}");
        }
    }

    /// A warning for each kind of failure, once; processes that end are none.
    fn tell(&mut self, failure: &Failure) {
        let Failure {
            what,
            namespace,
            source,
        } = failure;
        let path = namespace.display();
        let is_news =
            !failure.is_gone() && self.warned.insert((failure.what, source.raw_os_error()));
        if is_news {
            tracing::warn!(
                "sockets whose backend is gone may stay connected to it: \
                 in the network namespace {path}: cannot {what}: {source}"
            );
        } else {
            tracing::debug!("in the network namespace {path}: cannot {what}: {source}");
        }
    }
}

/// Closes those of these sockets that are connected still. The thread is in another network
/// namespace then.
fn close(due: &[Departed]) -> Pass {
    let mut left: HashMap<[u32; 2], Vec<SocketAddr>> = HashMap::new();
    for row in due {
        left.entry(row.cookie).or_default().push(row.backend);
    }
    let mut pass = Pass::default();
    for (inode, path) in namespaces() {
        if left.is_empty() {
            break;
        }
        if let Err((what, source)) = close_in(&path, inode, &mut left, &mut pass) {
            pass.failures.push(Failure {
                what,
                namespace: path,
                source,
            });
        }
    }
    pass
}

/// The same in one network namespace, unless its path stands for another one by now.
fn close_in(
    path: &Path,
    inode: u64,
    left: &mut HashMap<[u32; 2], Vec<SocketAddr>>,
    pass: &mut Pass,
) -> Result<(), (&'static str, io::Error)> {
    let Some(mut diag) = enter(path, inode)? else {
        return Ok(());
    };
    for v6 in [false, true] {
        if left.is_empty() {
            break;
        }
        let sockets = diag.connected(v6).map_err(|e| ("list its sockets", e))?;
        for socket in sockets {
            let Some(backends) = left.remove(&socket.cookie()) else {
                continue;
            };
            if !backends.contains(&socket.peer()) {
                continue;
            }
            pass.met.insert((socket.cookie(), socket.peer()));
            match diag.destroy(&socket) {
                Ok(was_there) => pass.closed += usize::from(was_there),
                Err(source) => pass.failures.push(Failure {
                    what: "close a socket",
                    namespace: path.to_owned(),
                    source,
                }),
            }
        }
    }
    Ok(())
}

/// Enters a network namespace and asks for its sockets, unless its path stands for another one
/// by now.
fn enter(path: &Path, inode: u64) -> Result<Option<SockDiag>, (&'static str, io::Error)> {
    let namespace = File::open(path).map_err(|e| (OPEN, e))?;
    if namespace.metadata().map_err(|e| (OPEN, e))?.ino() != inode {
        return Ok(None);
    }
    setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|e| ("enter it", e.into()))?;
    let diag = SockDiag::open().map_err(|e| ("ask for its sockets", e))?;
    Ok(Some(diag))
}

/// How often namespaces are listed again of which a process ended meanwhile.
const LISTINGS: u32 = 5;

/// The cookies of all sockets that there are, and what did not work. The thread is in another
/// network namespace then.
fn living() -> (HashSet<[u32; 2]>, Vec<Failure>) {
    let mut living = HashSet::new();
    let mut failures = Vec::new();
    let mut seen = HashSet::new();
    for _ in 0..LISTINGS {
        failures.clear();
        for (inode, path) in namespaces() {
            if seen.contains(&inode) {
                continue;
            }
            let mut look = || -> Result<(), (&'static str, io::Error)> {
                let Some(mut diag) = enter(&path, inode)? else {
                    return Err((OPEN, io::Error::from_raw_os_error(libc::ENOENT)));
                };
                for v6 in [false, true] {
                    living.extend(diag.cookies(v6).map_err(|e| ("list its sockets", e))?);
                }
                Ok(())
            };
            match look() {
                Ok(()) => {
                    seen.insert(inode);
                }
                Err((what, source)) => failures.push(Failure {
                    what,
                    namespace: path,
                    source,
                }),
            }
        }
        // Others may be in the namespace of a process that has ended.
        if !failures.iter().any(Failure::is_gone) {
            break;
        }
    }
    (living, failures)
}

/// The network namespaces that processes are in, or that are mounted somewhere (a pod's
/// is, by its runtime), by inode.
fn namespaces() -> BTreeMap<u64, PathBuf> {
    let mut found = of_processes();
    // Those of process 1 too: an agent in a container has mounts of its own.
    for (process, root) in [("self", ""), ("1", "/proc/1/root")] {
        let mounts = std::fs::read_to_string(format!("/proc/{process}/mountinfo"));
        for line in mounts.unwrap_or_default().lines() {
            let mut fields = line.split(' ').skip(3);
            if let (Some(inode), Some(at)) = (fields.next().and_then(inode_of), fields.next()) {
                found
                    .entry(inode)
                    .or_insert_with(|| PathBuf::from(format!("{root}{at}")));
            }
        }
    }
    found
}

/// Those of processes, by the first that is listed: as a rule the oldest, which lives on. (A mount
/// may be below another one; a process is where it is.)
fn of_processes() -> BTreeMap<u64, PathBuf> {
    let mut found = BTreeMap::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let is_number = |name: &str| name.bytes().all(|c| c.is_ascii_digit());
        if !process.file_name().to_str().is_some_and(is_number) {
            continue;
        }
        let path = process.path().join("ns/net");
        let Ok(target) = std::fs::read_link(&path) else {
            continue; // it has ended
        };
        if let Some(inode) = target.to_str().and_then(inode_of) {
            found.entry(inode).or_insert(path);
        }
    }
    found
}

/// Whether this process sees where all others are: it is in the machine's first PID namespace and
/// may read their links.
fn sees_all_processes() -> bool {
    let pids = std::fs::metadata("/proc/self/ns/pid");
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    let is_hidden = |process: std::fs::DirEntry| {
        let link = std::fs::read_link(process.path().join("ns/net"));
        let refused = |error: io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        // Process 1 is where the node is, which is looked at by others.
        process.file_name() != "1" && link.is_err_and(refused)
    };
    pids.is_ok_and(|pids| pids.ino() == FIRST_PIDS) && !processes.flatten().any(is_hidden)
}

/// The inode in `net:[4026531840]`.
fn inode_of(text: &str) -> Option<u64> {
    text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_from_other_mounts() {
        assert_eq!(inode_of("net:[4026531840]"), Some(4_026_531_840));
        for other in ["/", "mnt:[4026531841]", "net:[]", "net:[1"] {
            assert_eq!(inode_of(other), None, "{other}");
        }
    }

    #[test]
    fn this_process_has_a_namespace() {
        let own = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert!(namespaces().contains_key(&own));
    }
}
