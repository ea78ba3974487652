//! A directory of Kubernetes manifests, watched. Files are read when they are
//! whole: after a rename or when their writer has closed them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::directory::{Contents, Directory};
use super::document::{self, Parsed};
use super::file::{Fingerprint, is_manifest, is_swapped_link, text};
use super::{Batch, Change};
use crate::model::{Fault, Warning};

/// Why a directory cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be listed.
    #[error("cannot read the state directory {path}: {source}; create it, or name another")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// inotify refuses.
    #[error(
        "cannot watch {path}: {source}; the limit is usually fs.inotify.max_user_instances or fs.inotify.max_user_watches, see sysctl"
    )]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What inotify says.
        source: notify::Error,
    },
    /// The thread did not start.
    #[error("cannot start the thread that reads manifests: {0}")]
    Thread(io::Error),
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From the first event to reading, so that a burst is one batch.
    pub debounce: Duration,
    /// Quiet time after a write whose writer has not closed the file.
    pub settle: Duration,
    /// Between looks at the whole directory, for what inotify does not tell.
    pub rescan: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(2),
            settle: Duration::from_millis(250),
            rescan: Duration::from_secs(3),
        }
    }
}

/// A watched directory; dropping it ends the watch.
#[derive(Debug)]
pub struct Manifests {
    batches: mpsc::Receiver<Batch>,
    signals: std_mpsc::Sender<Signal>,
    path: PathBuf,
}

impl Manifests {
    /// Reads the directory and keeps watching it, in a thread of its own. The
    /// first batch holds all objects and ends with [`Change::Synced`].
    pub fn watch(directory: &Path, timing: Timing) -> Result<Self, SourceError> {
        let (signals, inbox) = std_mpsc::channel();
        let (outbox, batches) = mpsc::channel(64);
        let mut reader = Reader::new(directory, timing, signals.clone())?;
        std::thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || reader.run(&inbox, &outbox))
            .map_err(SourceError::Thread)?;
        Ok(Self {
            batches,
            signals,
            path: directory.to_owned(),
        })
    }

    /// The next batch; `None` when the watch has ended.
    ///
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }
}

impl Manifests {
    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A batch that is there already.
    pub(super) fn try_recv(&mut self) -> Option<Batch> {
        self.batches.try_recv().ok()
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        // The thread has ended already if nobody listens.
        let _ = self.signals.send(Signal::Stop);
    }
}

enum Signal {
    Event {
        result: notify::Result<notify::Event>,
        noticed: Noticed,
    },
    Stop,
}

#[derive(Clone, Copy)]
struct Noticed {
    instant: Instant,
    time: SystemTime,
}

impl Noticed {
    fn now() -> Self {
        Self {
            instant: Instant::now(),
            time: SystemTime::now(),
        }
    }
}

/// A file that has to be read.
struct Pending {
    noticed: Noticed,
    due: Instant,
}

struct Reader {
    path: PathBuf,
    timing: Timing,
    signals: std_mpsc::Sender<Signal>,
    /// The watcher and the directory that it watches.
    watcher: Option<(RecommendedWatcher, (u64, u64))>,
    directory: Directory,
    seen: BTreeMap<PathBuf, Option<Fingerprint>>,
    /// What was read last from each file of YAML that is there.
    parsed: BTreeMap<PathBuf, Parsed>,
    pending: BTreeMap<PathBuf, Pending>,
    next_rescan: Instant,
    own_warning: Option<Warning>,
    warnings: Arc<[Warning]>,
}

impl Reader {
    fn new(
        path: &Path,
        timing: Timing,
        signals: std_mpsc::Sender<Signal>,
    ) -> Result<Self, SourceError> {
        let mut reader = Self {
            path: path.to_owned(),
            timing,
            signals,
            watcher: None,
            directory: Directory::default(),
            seen: BTreeMap::new(),
            parsed: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_rescan: Instant::now(),
            own_warning: None,
            warnings: Arc::default(),
        };
        // Watch before the first list, so that nothing happens in between.
        reader.watch()?;
        fs::read_dir(path).map_err(|source| SourceError::Directory {
            path: path.to_owned(),
            source,
        })?;
        Ok(reader)
    }

    fn run(&mut self, inbox: &std_mpsc::Receiver<Signal>, outbox: &mpsc::Sender<Batch>) {
        let noticed = Noticed::now();
        self.rescan(noticed);
        for pending in self.pending.values_mut() {
            pending.due = noticed.instant;
        }
        let mut batch = self.read_due(noticed.instant);
        batch.changes.push(Change::Synced);
        loop {
            let news = !batch.changes.is_empty() || self.warnings != batch.warnings;
            self.warnings = Arc::clone(&batch.warnings);
            if news && outbox.blocking_send(batch).is_err() {
                return;
            }
            if !self.wait(inbox) {
                return;
            }
            let now = Instant::now();
            if now >= self.next_rescan {
                self.rescan(Noticed::now());
            }
            batch = self.read_due(now);
        }
    }

    /// Takes in signals until something is due; false to stop.
    fn wait(&mut self, inbox: &std_mpsc::Receiver<Signal>) -> bool {
        loop {
            let files = self.pending.values().map(|p| p.due);
            let due = files
                .chain([self.next_rescan])
                .min()
                .unwrap_or(self.next_rescan);
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            match inbox.recv_timeout(left) {
                Ok(Signal::Event {
                    result: Ok(event),
                    noticed,
                }) => self.note(&event, noticed),
                Ok(Signal::Event {
                    result: Err(error),
                    noticed,
                }) => {
                    tracing::warn!(%error, "inotify reported an error; the directory is read anew");
                    self.next_rescan = noticed.instant;
                }
                Err(std_mpsc::RecvTimeoutError::Timeout) => return true,
                Ok(Signal::Stop) | Err(std_mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn note(&mut self, event: &notify::Event, noticed: Noticed) {
        if event.need_rescan() {
            self.next_rescan = noticed.instant;
        }
        let delay = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => self.timing.debounce,
            EventKind::Create(_) | EventKind::Modify(_) => self.timing.settle,
            EventKind::Access(_) | EventKind::Any | EventKind::Other => return,
        };
        for path in &event.paths {
            if is_manifest(path) {
                // A link is whole from the start, a new file has yet to be written.
                let link = matches!(event.kind, EventKind::Create(_))
                    && fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink() || m.nlink() > 1);
                let delay = if link { self.timing.debounce } else { delay };
                self.pend(path, noticed, delay);
            } else if *path == self.path || is_swapped_link(path) {
                self.next_rescan = self.next_rescan.min(noticed.instant + self.timing.debounce);
            }
        }
    }

    /// A later close makes an earlier write due at once; a later write puts it off.
    fn pend(&mut self, path: &Path, noticed: Noticed, delay: Duration) {
        let due = noticed.instant + delay;
        self.pending
            .entry(path.to_owned())
            .and_modify(|pending| pending.due = due)
            .or_insert(Pending { noticed, due });
    }

    /// Compares the whole directory with what is known of it.
    fn rescan(&mut self, noticed: Noticed) {
        self.next_rescan = Instant::now() + self.timing.rescan;
        if let Err(error) = self.watch() {
            tracing::debug!(%error, "directory not watched, only looked at now and then");
        }
        let listed = match fs::read_dir(&self.path).and_then(|entries| {
            entries
                .map(|e| e.map(|e| e.path()))
                .collect::<io::Result<Vec<_>>>()
        }) {
            Ok(listed) => listed,
            Err(error) => {
                let problem = format!("cannot be read: {error}; all objects stay as they were");
                let fault = Fault::new("", problem, "put the directory back");
                self.own_warning = Some(Warning::new("", fault).in_file(&self.path));
                return;
            }
        };
        self.own_warning = None;
        let now = SystemTime::now();
        let mut gone: Vec<PathBuf> = self.seen.keys().cloned().collect();
        for path in listed.into_iter().filter(|path| is_manifest(path)) {
            if let Ok(i) = gone.binary_search(&path) {
                gone.remove(i);
            }
            let meta = fs::metadata(&path).ok();
            let print = meta.as_ref().map(Fingerprint::from);
            if self.seen.get(&path).is_some_and(|seen| *seen == print)
                || self.pending.contains_key(&path)
            {
                continue;
            }
            let age = meta
                .and_then(|m| m.modified().ok())
                .and_then(|modified| now.duration_since(modified).ok());
            let fresh = age.is_some_and(|age| age < self.timing.settle);
            self.pend(
                &path,
                noticed,
                if fresh {
                    self.timing.settle
                } else {
                    Duration::ZERO
                },
            );
        }
        for path in gone {
            if !self.pending.contains_key(&path) {
                self.pend(&path, noticed, Duration::ZERO);
            }
        }
    }

    /// Reads every file that is due and makes one batch of it.
    fn read_due(&mut self, now: Instant) -> Batch {
        let due: Vec<(PathBuf, Noticed)> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.due <= now)
            .map(|(path, pending)| (path.clone(), pending.noticed))
            .collect();
        let noticed = due.iter().map(|(_, n)| *n).min_by_key(|n| n.instant);
        let mut changes = Vec::new();
        for (path, _) in &due {
            self.pending.remove(path);
            let (print, contents) = self.read(path);
            if matches!(contents, Contents::Gone) {
                self.seen.remove(path);
                self.parsed.remove(path);
            } else {
                self.seen.insert(path.clone(), print);
            }
            changes.extend(self.directory.update(path, contents));
        }
        let mut warnings = self.directory.warnings();
        warnings.extend(self.own_warning.clone());
        warnings.sort_unstable();
        for warning in warnings
            .iter()
            .filter(|w| self.warnings.binary_search(w).is_err())
        {
            tracing::warn!("{warning}");
        }
        let noticed = noticed.unwrap_or_else(Noticed::now);
        Batch {
            changes,
            triggers: self.directory.take_triggers(),
            warnings: warnings.into(),
            noticed: noticed.instant,
            noticed_at: noticed.time,
        }
    }

    fn read(&mut self, path: &Path) -> (Option<Fingerprint>, Contents) {
        let mut print = None;
        let contents = match text(path, &mut print) {
            Ok(Some(text)) if path.extension() == Some(OsStr::new("json")) => {
                Contents::Items(document::json(&text))
            }
            Ok(Some(text)) => {
                let parsed = self.parsed.entry(path.to_owned()).or_default();
                Contents::Items(document::yaml(&text, parsed))
            }
            Ok(None) => Contents::Gone,
            Err(error) => Contents::Unreadable(Fault::new(
                "",
                format!("cannot be read: {error}"),
                "mend it; until then its objects stay as they were",
            )),
        };
        (print, contents)
    }

    /// Watches the directory that the path names now.
    fn watch(&mut self) -> Result<(), SourceError> {
        let meta = fs::metadata(&self.path).map_err(|source| SourceError::Directory {
            path: self.path.clone(),
            source,
        })?;
        let identity = (meta.dev(), meta.ino());
        if self
            .watcher
            .as_ref()
            .is_some_and(|(_, watched)| *watched == identity)
        {
            return Ok(());
        }
        let signals = self.signals.clone();
        let watch = |path: &Path| {
            let mut watcher = notify::recommended_watcher(move |result| {
                // Nobody listens only when the watch is ending.
                let _ = signals.send(Signal::Event {
                    result,
                    noticed: Noticed::now(),
                });
            })?;
            watcher.watch(path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        };
        let watcher = watch(&self.path).map_err(|source| SourceError::Watch {
            path: self.path.clone(),
            source,
        })?;
        self.watcher = Some((watcher, identity));
        Ok(())
    }
}
