//! What can go wrong while making or asking test hosts.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error that names what was tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or file operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with its object.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A command ended with a failure.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The command line, with its namespace.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// A command printed something else than the JSON asked for.
    #[error("`{command}` did not print the JSON expected: {source}")]
    Json {
        /// The command line or file.
        command: String,
        /// The parser's answer.
        source: serde_json::Error,
    },
    /// Something awaited did not come.
    #[error("{what} within {limit:?}{detail}")]
    Timeout {
        /// What was awaited, as in "no answer from 10.0.0.1".
        what: String,
        /// How long it was awaited.
        limit: Duration,
        /// The last thing seen, or empty.
        detail: String,
    },
    /// A process ended that should run.
    #[error("{what} ended ({status}); the end of its log:\n{log}")]
    Exited {
        /// The process.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines of its log.
        log: String,
    },
    /// An argument is out of its range; the text says the mend.
    #[error("{0}")]
    Invalid(String),
    /// Cleanup has begun, so nothing new is made.
    #[error("interrupted: everything is being removed")]
    Interrupted,
}

/// Names what an I/O error is about.
pub trait Context<T> {
    /// Adds what was tried.
    fn trying(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn trying(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source,
        })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn trying(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Io {
            what: what(),
            source: errno.into(),
        })
    }
}
