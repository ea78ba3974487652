//! The log, and its filter, which can be another while the agent runs.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Crates that tell of every attribute and relocation; named in `--log` they do so again.
const QUIET: [&str; 4] = [
    "netlink_packet_route=error",
    "netlink_packet_utils=error",
    "aya=info",
    "aya_obj=info",
];

type Set = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// What is logged. Clones share it.
#[derive(Clone)]
pub struct LogFilter {
    set: Arc<Set>,
    now: Arc<Mutex<String>>,
}

impl std::fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LogFilter").field(&self.now()).finish()
    }
}

impl LogFilter {
    /// Logs to the standard error from now on, what `filter` lets through.
    ///
    /// # Errors
    ///
    /// It is no filter.
    pub fn start(filter: &str) -> anyhow::Result<Self> {
        let stderr = std::io::stderr;
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(parse(filter)?)
            .with_writer(stderr)
            .with_ansi(stderr().is_terminal())
            .with_filter_reloading();
        let handle = subscriber.reload_handle();
        subscriber
            .try_init()
            .map_err(|error| anyhow::anyhow!("cannot log: {error}"))?;
        Ok(Self {
            set: Arc::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())),
            now: Arc::new(Mutex::new(filter.to_owned())),
        })
    }

    /// What `--log` would have to be for it.
    pub fn now(&self) -> String {
        self.now
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Lets something else through from now on.
    ///
    /// # Errors
    ///
    /// It is no filter, or cannot be set; the former one stays.
    pub fn set(&self, filter: &str) -> anyhow::Result<()> {
        let filter = filter.trim();
        (self.set)(parse(filter)?).map_err(|error| anyhow::anyhow!("{error}"))?;
        filter.clone_into(&mut self.now.lock().unwrap_or_else(PoisonError::into_inner));
        tracing::info!("logs {filter} from now on");
        Ok(())
    }
}

/// Whether it is a filter.
///
/// # Errors
///
/// It is none.
pub fn check(filter: &str) -> anyhow::Result<()> {
    parse(filter).map(drop)
}

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    let mut directives: Vec<&str> = QUIET.to_vec();
    directives.push(filter);
    EnvFilter::try_new(directives.join(","))
        .with_context(|| format!("--log {filter} is neither a level nor a list of directives"))
}
