//! How the server behaves where real ones differ.

use std::time::Duration;

/// Behaviour that can be changed while the server runs; running watches take it up at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Whether watches that ask for bookmarks get any.
    pub bookmarks: bool,
    /// Between two bookmarks of a watch.
    pub bookmark_interval: Duration,
    /// Whether lists can be streamed (`sendInitialEvents`); a server without says that the
    /// parameter is invalid.
    pub watch_list: bool,
    /// How a watch is refused whose history is gone.
    pub stale_watch: StaleWatch,
    /// How long a watch lasts that names no limit.
    pub watch_timeout: Duration,
    /// Most changes in the history, of all kinds together.
    pub history: usize,
}

/// How "too old resource version" is told to a watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StaleWatch {
    /// HTTP 200, then an event `ERROR` with a status of 410, as kube-apiserver does from its
    /// watch cache.
    Event,
    /// HTTP 410, as it does where the cache is off.
    Http,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            bookmarks: true,
            bookmark_interval: Duration::from_mins(1),
            watch_list: true,
            stale_watch: StaleWatch::Event,
            watch_timeout: Duration::from_mins(30),
            history: 100_000,
        }
    }
}
