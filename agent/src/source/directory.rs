//! The objects of all files together: who wins, what stays, what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::document::Item;
use super::{Change, Trigger};
use crate::model::{Fault, Object, ObjectKey, Warning};

/// What a look at a file found.
#[derive(Debug)]
pub(super) enum Contents {
    /// There is no such file any more.
    Gone,
    /// It cannot be read; its objects stay as they were.
    Unreadable(Fault),
    /// Its objects.
    Items(Vec<Item>),
}

/// The state of the directory.
#[derive(Debug, Default)]
pub(super) struct Directory {
    files: BTreeMap<Arc<Path>, BTreeMap<ObjectKey, Object>>,
    /// Files with faults only.
    faults: BTreeMap<PathBuf, Vec<Warning>>,
    /// Which files hold an object, by name; the first wins.
    holders: BTreeMap<ObjectKey, Vec<Arc<Path>>>,
    /// Objects that more than one file holds.
    contested: BTreeSet<ObjectKey>,
    /// What caused changes of endpoints, since it was asked last.
    triggers: Vec<Trigger>,
}

impl Directory {
    /// Takes in what `path` holds now and tells what that changes.
    pub(super) fn update(&mut self, path: &Path, contents: Contents) -> Vec<Change> {
        let empty = BTreeMap::new();
        let old = self.files.get(path).unwrap_or(&empty);
        let mut triggers = BTreeMap::new();
        let (new, faults) = match contents {
            Contents::Gone => (BTreeMap::new(), Vec::new()),
            Contents::Unreadable(fault) => {
                (old.clone(), vec![Warning::new("", fault).in_file(path)])
            }
            Contents::Items(items) => merge(path, items, old, &mut triggers),
        };
        let touched: BTreeSet<ObjectKey> = old.keys().chain(new.keys()).cloned().collect();
        let before: Vec<Option<Object>> = touched.iter().map(|k| self.winner(k).cloned()).collect();
        let held = self.files.get_key_value(path);
        let shared = held.map_or_else(|| path.into(), |(path, _)| Arc::clone(path));
        for key in &touched {
            self.hold(key, &shared, new.contains_key(key));
        }
        if new.is_empty() {
            self.files.remove(path);
        } else {
            self.files.insert(shared, new);
        }
        if faults.is_empty() {
            self.faults.remove(path);
        } else {
            self.faults.insert(path.to_owned(), faults);
        }
        let (mut changes, mut causes) = (Vec::new(), Vec::new());
        for (key, before) in touched.into_iter().zip(before) {
            match self.winner(&key) {
                None => changes.extend(before.map(|_| Change::Delete(key))),
                Some(now) if before.as_ref() != Some(now) => {
                    causes.extend(Trigger::of(now, triggers.get(&key).copied()));
                    changes.push(Change::Apply(now.clone()));
                }
                Some(_) => {}
            }
        }
        self.triggers.append(&mut causes);
        changes
    }

    /// What caused changes of endpoints that were told since this was asked last.
    pub(super) fn take_triggers(&mut self) -> Vec<Trigger> {
        std::mem::take(&mut self.triggers)
    }

    /// Everything that is wrong now.
    pub(super) fn warnings(&self) -> Vec<Warning> {
        let mut warnings: Vec<Warning> = self.faults.values().flatten().cloned().collect();
        for key in &self.contested {
            let mut holders = self.holders.get(key).into_iter().flatten();
            let Some(first) = holders.next() else {
                continue;
            };
            warnings.extend(holders.map(|other| {
                let problem = format!("is also in {}, which counts", first.display());
                let fault = Fault::new("", problem, "keep the object in one file");
                Warning::new(key, fault).in_file(&**other)
            }));
        }
        warnings
    }

    fn winner(&self, key: &ObjectKey) -> Option<&Object> {
        let first = self.holders.get(key)?.first()?;
        self.files.get(first)?.get(key)
    }

    fn hold(&mut self, key: &ObjectKey, path: &Arc<Path>, holds: bool) {
        let holders = self.holders.entry(key.clone()).or_default();
        match (holders.binary_search(path), holds) {
            (Err(at), true) => {
                holders.reserve_exact(1);
                holders.insert(at, Arc::clone(path));
            }
            (Ok(at), false) => drop(holders.remove(at)),
            (Ok(_), true) | (Err(_), false) => {}
        }
        if holders.len() > 1 {
            self.contested.insert(key.clone());
        } else {
            self.contested.remove(key);
        }
        if holders.is_empty() {
            self.holders.remove(key);
        }
    }
}

/// The objects of one file: good ones as they are, bad ones as they were, and
/// all that were there if something in the file could not even be named.
fn merge(
    path: &Path,
    items: Vec<Item>,
    old: &BTreeMap<ObjectKey, Object>,
    triggers: &mut BTreeMap<ObjectKey, SystemTime>,
) -> (BTreeMap<ObjectKey, Object>, Vec<Warning>) {
    let mut new: BTreeMap<ObjectKey, Object> = BTreeMap::new();
    let mut faults = Vec::new();
    let mut bad = Vec::new();
    let mut unreadable = false;
    for item in items {
        match item {
            Item::Good {
                object,
                notes,
                trigger,
            } => {
                let key = object.key();
                if new.contains_key(&key) {
                    let mend = "keep one of the two";
                    let fault = Fault::new("", "is in this file twice; the first counts", mend);
                    faults.push(Warning::new(&key, fault).in_file(path));
                    continue;
                }
                let notes = notes.into_iter();
                faults.extend(notes.map(|note| Warning::new(&key, note).in_file(path)));
                triggers.extend(trigger.map(|at| (key.clone(), at)));
                new.insert(key, object);
            }
            Item::Bad { key, fault } => {
                faults.push(Warning::new(&key, fault).in_file(path));
                bad.push(key);
            }
            Item::Unreadable { fault } => {
                faults.push(Warning::new("", fault).in_file(path));
                unreadable = true;
            }
        }
    }
    for (key, object) in old {
        if (unreadable || bad.contains(key)) && !new.contains_key(key) {
            new.insert(key.clone(), object.clone());
        }
    }
    (new, faults)
}
