//! What all connections and the tests share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::access::Access;
use super::fault::Faults;
use super::record::Record;
use super::settings::Settings;
use super::store::Store;

#[derive(Debug)]
pub(super) struct Shared {
    store: Mutex<Store>,
    settings: Mutex<Settings>,
    access: Mutex<Access>,
    record: Mutex<Record>,
    /// Up to which version each running watch has sent what there is.
    progress: Mutex<Vec<Weak<AtomicU64>>>,
    pub(super) faults: Faults,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            store: Mutex::new(Store::new(settings.history)),
            settings: Mutex::new(settings),
            access: Mutex::default(),
            record: Mutex::default(),
            progress: Mutex::default(),
            faults: Faults::new(),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    pub(super) fn access(&self) -> MutexGuard<'_, Access> {
        lock(&self.access)
    }

    /// Where a new watch notes its progress, which begins at a version.
    pub(super) fn begin_watch(&self, version: u64) -> Arc<AtomicU64> {
        let progress = Arc::new(AtomicU64::new(version));
        let mut all = lock(&self.progress);
        all.retain(|watch| watch.strong_count() > 0);
        all.push(Arc::downgrade(&progress));
        progress
    }

    /// Whether every running watch has sent what there is up to a version.
    pub(super) fn is_delivered(&self, version: u64) -> bool {
        let running = lock(&self.progress);
        let mut running = running.iter().filter_map(Weak::upgrade);
        running.all(|watch| watch.load(Ordering::Relaxed) >= version)
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

/// A test that panicked while it held the lock has failed already.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
