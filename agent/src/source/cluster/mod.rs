//! The Kubernetes API as a source. A thread of its own follows each kind (`follow.rs`) and keeps the
//! objects (`book.rs`); the loop is told of changes as fast as it takes them, and what changes
//! meanwhile joins them.

mod access;
mod addresses;
mod backoff;
mod book;
mod contact;
mod dial;
mod events;
mod exec;
mod follow;
mod gauges;
mod kinds;
mod request;
mod tidings;

pub use access::{Access, AccessError};
pub use addresses::Address;
pub use events::Complaint;
pub use gauges::Gauges;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use super::Batch;
use book::Book;
use follow::{Follower, Shared};
use tidings::Tidings;

/// What is followed, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node.
    pub node: String,
    /// The kubeconfig; without one the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// Further addresses of API servers.
    pub servers: Vec<Address>,
    /// Where learned addresses are kept.
    pub lib_dir: PathBuf,
    /// Whether this node's Pods are followed for their host ports.
    pub host_ports: bool,
    /// How long a watch may be silent: servers send a bookmark each minute.
    pub silence: Duration,
}

/// Why the API cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no way in.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The thread did not start.
    #[error("cannot start the thread that follows the cluster: {0}")]
    Thread(#[source] io::Error),
}

/// A followed cluster; dropping it ends that.
#[derive(Debug)]
pub struct Cluster {
    batches: mpsc::Receiver<Batch>,
    contact: watch::Receiver<Vec<String>>,
    complaints: watch::Sender<Arc<BTreeSet<Complaint>>>,
    gauges: Arc<Gauges>,
    server: String,
}

impl Cluster {
    /// Begins to follow. The first batch holds all objects and ends with `Synced`; it comes when
    /// every kind has been listed (KP-128).
    ///
    /// # Errors
    ///
    /// The configuration cannot be used. A server that does not answer is none.
    pub fn follow(options: Options) -> Result<Self, ClusterError> {
        // Both may have installed one already: the first counts, and it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClusterError::Thread)?;
        let all = kinds::all(options.host_ports.then_some(options.node.as_str()));
        let kinds = || all.iter().map(|followed| followed.kind);
        let open = Access::open(
            options.kubeconfig.as_deref(),
            &options.lib_dir,
            options.servers,
        );
        let access = runtime.block_on(open)?;
        let server = access.server().to_owned();
        let gauges = Arc::new(Gauges::new(kinds()));
        let (ear, contact) = watch::channel(Vec::new());
        let shared = Arc::new(Shared {
            access,
            book: Mutex::new(Book::new(kinds())),
            news: Notify::new(),
            tidings: Tidings::new(),
            gauges: Arc::clone(&gauges),
            silence: options.silence,
        });
        let (complaints, heard) = watch::channel(Arc::default());
        let (outbox, batches) = mpsc::channel(1);
        let work = async move {
            for followed in all {
                tokio::spawn(Follower::new(Arc::clone(&shared), followed).run());
            }
            let told = Arc::clone(&shared);
            tokio::spawn(async move { told.tidings.tell(ear).await });
            tokio::spawn(events::tell(Arc::clone(&shared), options.node, heard));
            tell(&shared, &outbox).await;
        };
        std::thread::Builder::new()
            .name("cluster".to_owned())
            .spawn(move || runtime.block_on(work))
            .map_err(ClusterError::Thread)?;
        Ok(Self {
            batches,
            contact,
            complaints,
            gauges,
            server,
        })
    }

    /// The next batch; `None` when the thread has ended.
    ///
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// Tells what is wrong with the contact to the server, a sentence each.
    pub fn contact(&self) -> watch::Receiver<Vec<String>> {
        self.contact.clone()
    }

    /// Tells users by Events what is wrong now, all of it; what was there before is not repeated.
    pub fn complain(&self, complaints: BTreeSet<Complaint>) {
        self.complaints.send_if_modified(|before| {
            let news = **before != complaints;
            if news {
                *before = Arc::new(complaints);
            }
            news
        });
    }

    /// The server that the configuration names.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Figures.
    pub fn gauges(&self) -> &Arc<Gauges> {
        &self.gauges
    }
}

/// Tells the loop what is new, when it has room for it.
async fn tell(shared: &Shared, outbox: &mpsc::Sender<Batch>) {
    loop {
        tokio::select! {
            () = shared.news.notified() => {}
            () = outbox.closed() => return,
        }
        let Ok(place) = outbox.reserve().await else {
            return;
        };
        let mut book = shared.book.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(batch) = book.take() {
            place.send(batch);
        }
    }
}
