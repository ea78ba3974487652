//! Where cluster state comes from. A source turns what it watches into
//! [`Change`]s of the model; it knows nothing of tables.

pub mod cluster;
mod decode;
mod directory;
mod document;
mod file;
pub mod manifests;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use self::cluster::{Cluster, Complaint};
use self::manifests::Manifests;
use tokio::sync::watch;

use crate::model::{Family, Object, ObjectKey, Warning};

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

/// When something happened, a pod became ready for example, that changed endpoints: what
/// the annotation [`convert::CAUSE`](crate::model::convert::CAUSE) says of a slice that is new or different. Nothing else of it is
/// looked at, so that a slice with another such time alone is no change; a slice that is
/// deleted says nothing, for what it has is of the time before (KP-160).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// The family of the endpoints.
    pub family: Family,
    /// When.
    pub at: SystemTime,
}

impl Trigger {
    /// What happened `at` that time and made an object what it is. Slices that feed no Service
    /// have no effect (KP-09, KP-10).
    fn of(object: &Object, at: Option<SystemTime>) -> Option<Self> {
        let Object::Slice(slice) = object else {
            return None;
        };
        slice.service.as_ref()?;
        Some(Self {
            family: slice.family?,
            at: at?,
        })
    }
}

/// Changes that were noticed together and become one plan.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The changes, in the order in which they take effect; may be empty if
    /// only the warnings changed.
    pub changes: Vec<Change>,
    /// What caused those of the changes that are of endpoints, where their slices say it.
    pub triggers: Vec<Trigger>,
    /// Everything that is wrong with the source's objects now.
    pub warnings: Arc<[Warning]>,
    /// When the first change of the batch was noticed, to measure with.
    pub noticed: Instant,
    /// The same moment, to print.
    pub noticed_at: SystemTime,
}

/// A watched source.
#[derive(Debug)]
pub enum Source {
    /// A directory.
    Manifests(Manifests),
    /// An API server.
    Cluster(Cluster),
}

impl Source {
    /// Everything that has changed since; `None` when the source has ended.
    ///
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Batch> {
        match self {
            Self::Manifests(manifests) => {
                let mut batch = manifests.recv().await?;
                while let Some(next) = manifests.try_recv() {
                    batch.join(next);
                }
                Some(batch)
            }
            // It joins them itself.
            Self::Cluster(cluster) => cluster.recv().await,
        }
    }

    /// Tells users what is wrong now, where it can.
    pub fn complain(&self, complaints: impl FnOnce() -> BTreeSet<Complaint>) {
        if let Self::Cluster(cluster) = self {
            cluster.complain(complaints());
        }
    }

    /// Tells what keeps it from seeing changes, a sentence each. What cannot be read of a
    /// directory is a warning of the file.
    pub fn contact(&self) -> Option<watch::Receiver<Vec<String>>> {
        match self {
            Self::Manifests(_) => None,
            Self::Cluster(cluster) => Some(cluster.contact()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(manifests) => write!(f, "directory {}", manifests.path().display()),
            Self::Cluster(cluster) => write!(f, "API server {}", cluster.server()),
        }
    }
}

impl Batch {
    /// What came after this batch takes effect after it, and counts as noticed with it.
    fn join(&mut self, next: Self) {
        self.changes.extend(next.changes);
        self.triggers.extend(next.triggers);
        self.warnings = next.warnings;
    }
}

/// The objects of one YAML text, as if it were the only file there is, and
/// what is wrong with them; `file` is what the warnings call it.
pub fn parse(file: &Path, text: &str) -> (Vec<Change>, Vec<Warning>) {
    let mut directory = directory::Directory::default();
    let items = document::yaml(text, &mut document::Parsed::default());
    let changes = directory.update(file, directory::Contents::Items(items));
    (changes, directory.warnings())
}
