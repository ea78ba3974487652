//! Where cluster state comes from. A source turns what it watches into
//! [`Change`]s of the model; it knows nothing of tables.

mod directory;
mod document;
mod file;
pub mod manifests;

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use crate::model::{Object, ObjectKey, Warning};

/// One change of the cluster's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The object is new or different.
    Apply(Object),
    /// The object is gone.
    Delete(ObjectKey),
    /// The first full list is complete; only now may what is not in it be pruned (KP-128).
    Synced,
}

/// Changes that were noticed together and become one plan.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The changes, in the order in which they take effect; may be empty if
    /// only the warnings changed.
    pub changes: Vec<Change>,
    /// Everything that is wrong with the source's objects now.
    pub warnings: Arc<[Warning]>,
    /// When the first change of the batch was noticed, to measure with.
    pub noticed: Instant,
    /// The same moment, to print.
    pub noticed_at: SystemTime,
}

/// The objects of one YAML text, as if it were the only file there is, and
/// what is wrong with them; `file` is what the warnings call it.
pub fn parse(file: &Path, text: &str) -> (Vec<Change>, Vec<Warning>) {
    let mut directory = directory::Directory::default();
    let items = document::yaml(text, &mut document::Parsed::default());
    let changes = directory.update(file, directory::Contents::Items(items));
    (changes, directory.warnings())
}
