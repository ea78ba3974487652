//! A directory of manifests whose objects the server has, as long as it is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{Context, Result};
use crate::wait;

use super::ApiServer;
use super::kinds::Kind;
use super::object::Name;
use super::objects::{documents, items, place};
use super::patch::difference;
use super::shared::{Shared, lock};

/// Between two looks at the directory.
const INTERVAL: Duration = Duration::from_millis(5);

/// An object by its kind's place in the list of kinds, and its name.
type Key = (usize, Name);

/// A directory that is followed until this value is dropped; the objects stay then.
#[derive(Debug)]
pub struct Follower {
    stop: Arc<AtomicBool>,
    /// Looks that have been begun.
    looks: Arc<AtomicU64>,
    faults: Arc<Mutex<BTreeMap<PathBuf, String>>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Has the objects of a directory's manifests (`*.yaml`, `*.yml`, `*.json`), now and as they
    /// change within milliseconds: by the rules of `kubectl apply`, so that what others have
    /// written to an object stays. Of an object that is in several files the first counts;
    /// of kinds that the server does not have there are none.
    pub fn follow_directory(&self, path: &Path) -> Result<Follower> {
        let mut directory = Directory {
            path: path.to_owned(),
            shared: Arc::clone(&self.shared),
            files: BTreeMap::new(),
            applied: BTreeMap::new(),
        };
        let (stop, faults) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let what = || format!("follow {}", path.display());
        directory.look(&faults).trying(what)?;
        let looks = Arc::new(AtomicU64::new(0));
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&faults));
        let begun = Arc::clone(&looks);
        let thread = std::thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || {
                while !stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(INTERVAL);
                    begun.fetch_add(1, Ordering::Relaxed);
                    // A directory that is gone for now changes nothing; tests end so.
                    let _ = directory.look(&noted);
                }
            })
            .trying(what)?;
        Ok(Follower {
            stop,
            looks,
            faults,
            thread: Some(thread),
        })
    }
}

impl Follower {
    /// Waits until the server has what the directory says now.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let began = self.looks.load(Ordering::Relaxed);
        // One that ran already may have missed it; the second to begin after now follows one that
        // is complete and began after now.
        wait::until("no look at the directory of manifests", limit, || {
            let looks = self.looks.load(Ordering::Relaxed);
            Ok((looks >= began + 2).then_some(()))
        })
    }

    /// Files that cannot be read, with the reason. Their objects stay as they were.
    pub fn faults(&self) -> BTreeMap<PathBuf, String> {
        lock(&self.faults).clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been printed
        }
    }
}

/// Tells apart what a path named before and names now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    objects: BTreeMap<Key, Arc<Value>>,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    shared: Arc<Shared>,
    files: BTreeMap<PathBuf, File>,
    /// What was said of each object last.
    applied: BTreeMap<Key, Arc<Value>>,
}

impl Directory {
    /// Takes in what has changed since the last look.
    fn look(&mut self, faults: &Mutex<BTreeMap<PathBuf, String>>) -> io::Result<()> {
        let mut there = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if !is_manifest(&path) {
                continue;
            }
            // Gone since it was listed, or none that can be read: as if it were not there.
            if let Ok(meta) = fs::metadata(&path)
                && meta.is_file()
            {
                let stamp = Stamp {
                    inode: meta.ino(),
                    size: meta.size(),
                    changed: (meta.ctime(), meta.ctime_nsec()),
                };
                there.insert(path, stamp);
            }
        }
        let mut touched = BTreeSet::new();
        let gone: Vec<PathBuf> = self
            .files
            .keys()
            .filter(|p| !there.contains_key(*p))
            .cloned()
            .collect();
        for path in gone {
            let file = self.files.remove(&path);
            touched.extend(file.into_iter().flat_map(|file| file.objects.into_keys()));
            lock(faults).remove(&path);
        }
        for (path, stamp) in there {
            if self.files.get(&path).is_none_or(|file| file.stamp != stamp) {
                let fault = self.read(&path, stamp, &mut touched).err();
                let mut faults = lock(faults);
                match fault {
                    Some(fault) => faults.insert(path, fault),
                    None => faults.remove(&path),
                };
            }
        }
        self.apply(touched);
        Ok(())
    }

    /// Reads a file; the objects that it had or has are `touched`.
    fn read(
        &mut self,
        path: &Path,
        stamp: Stamp,
        touched: &mut BTreeSet<Key>,
    ) -> std::result::Result<(), String> {
        let old = self
            .files
            .remove(path)
            .map(|file| file.objects)
            .unwrap_or_default();
        let read = fs::read_to_string(path).map_err(|e| e.to_string());
        let parsed = read.and_then(|text| documents(&text).map_err(|e| e.to_string()));
        let (objects, fault) = match parsed {
            Ok(documents) => (merge(documents, &old), None),
            Err(fault) => (old.clone(), Some(fault)),
        };
        let differs = |key: &&Key| old.get(*key) != objects.get(*key);
        touched.extend(old.keys().chain(objects.keys()).filter(differs).cloned());
        self.files.insert(path.to_owned(), File { stamp, objects });
        fault.map_or(Ok(()), Err)
    }

    /// Brings the server's objects to what the files say of them.
    fn apply(&mut self, touched: BTreeSet<Key>) {
        let mut store = self.shared.store();
        for key in touched {
            let said = self.files.values().find_map(|file| file.objects.get(&key));
            let (kind, name) = (&super::KINDS[key.0], &key.1);
            let Some(said) = said.cloned() else {
                store.remove(kind, name);
                self.applied.remove(&key);
                continue;
            };
            let nothing = json!({});
            let before = self.applied.get(&key).map_or(&nothing, |before| &**before);
            if let Some(patch) = difference(before, &said) {
                let live = store.get(kind, name).map(|live| live.value.clone());
                // What somebody has removed is made anew, whole.
                let value = live.map_or_else(
                    || (*said).clone(),
                    |mut live| {
                        json_patch::merge(&mut live, &patch);
                        live
                    },
                );
                store.put(kind, name, value);
            }
            self.applied.insert(key, said);
        }
    }
}

/// Objects of a file by their place; the first of two counts. Equal ones stay the same value.
fn merge(documents: Vec<Value>, old: &BTreeMap<Key, Arc<Value>>) -> BTreeMap<Key, Arc<Value>> {
    let mut objects = BTreeMap::new();
    for object in documents.into_iter().flat_map(items) {
        let Ok((kind, name)) = place(&object) else {
            continue; // of a kind that the server does not have
        };
        let key = (Kind::index(kind), name);
        let former = old.get(&key).filter(|former| ***former == object).cloned();
        objects
            .entry(key)
            .or_insert_with(|| former.unwrap_or_else(|| Arc::new(object)));
    }
    objects
}

/// Neither hidden nor an editor's own file.
fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let hidden = name.is_none_or(|name| name.starts_with(['.', '#']));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}
