//! Sockets of datagrams that are connected to a backend which is gone: they are closed from
//! outside, so that their processes notice. A thread does it, for it goes through the
//! network namespaces of all processes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::kernel::departed::{Departed, SocketTables};
use crate::kernel::now_ticks;
use crate::kernel::sock_diag::SockDiag;

/// Between two looks at the tables.
const GAP: Duration = Duration::from_millis(100);
/// A socket that was about to be connected when its backend went is, by then.
const AGAIN: Duration = Duration::from_millis(400);
/// Looks without a reason.
const INTERVAL: Duration = Duration::from_secs(10);
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
    /// There can be no thread.
    pub fn start(tables: SocketTables) -> io::Result<Self> {
        let (changed, news) = sync_channel(1);
        std::thread::Builder::new()
            .name("departed".to_owned())
            .spawn(move || {
                Watcher {
                    tables,
                    done: HashSet::new(),
                }
                .run(&news);
            })?;
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
    /// Those that were dealt with, as long as they have a row.
    done: HashSet<Departed>,
}

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
        let closed = close(&due);
        if closed > 0 {
            tracing::info!("closed {closed} sockets of datagrams whose backend is gone");
        }
        let now = now_ticks();
        let settled = |row: &Departed| now.wrapping_sub(row.seen) >= SETTLED;
        self.done.extend(due.into_iter().filter(settled));
    }
}

/// Closes those of these sockets that are connected still. Says how many.
fn close(due: &[Departed]) -> usize {
    let mut left: HashMap<[u32; 2], Vec<SocketAddr>> = HashMap::new();
    for row in due {
        left.entry(row.cookie).or_default().push(row.backend);
    }
    let mut closed = 0;
    for (inode, path) in namespaces() {
        if left.is_empty() {
            break;
        }
        match close_in(&path, inode, &mut left) {
            Ok(number) => closed += number,
            Err(error) => {
                let path = path.display();
                tracing::debug!("sockets in the network namespace {path} are not found: {error}");
            }
        }
    }
    closed
}

/// The same in one network namespace, unless its path stands for another one by now.
fn close_in(
    path: &std::path::Path,
    inode: u64,
    left: &mut HashMap<[u32; 2], Vec<SocketAddr>>,
) -> io::Result<usize> {
    let namespace = File::open(path)?;
    if namespace.metadata()?.ino() != inode {
        return Ok(0);
    }
    setns(&namespace, CloneFlags::CLONE_NEWNET)?;
    let mut diag = SockDiag::open()?;
    let mut closed = 0;
    for v6 in [false, true] {
        if left.is_empty() {
            break;
        }
        for socket in diag.connected(v6)? {
            let Some(backends) = left.get(&socket.cookie()) else {
                continue;
            };
            if backends.contains(&socket.peer()) {
                closed += usize::from(diag.destroy(&socket)?);
            }
            left.remove(&socket.cookie());
        }
    }
    Ok(closed)
}

/// The network namespaces that processes are in, or that are mounted somewhere (a pod's
/// is, by its runtime), by inode.
fn namespaces() -> BTreeMap<u64, PathBuf> {
    let mut found = BTreeMap::new();
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
            // A mount may be below another one; a process is where it is.
            found.insert(inode, path);
        }
    }
    found
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
