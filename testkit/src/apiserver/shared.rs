//! What all connections and the tests share.

use std::sync::{Mutex, MutexGuard, PoisonError};

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
    pub(super) faults: Faults,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            store: Mutex::new(Store::new(settings.history)),
            settings: Mutex::new(settings),
            access: Mutex::default(),
            record: Mutex::default(),
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

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        lock(&self.record)
    }
}

/// A test that panicked while it held the lock has failed already.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
