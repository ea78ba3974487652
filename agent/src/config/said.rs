//! What somebody said about an option, and where.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// An option with its values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// The option's name on the command line, without the dashes.
    pub option: String,
    /// Its values, as the command line takes them.
    pub values: Vec<String>,
    /// Where it was said.
    pub place: Place,
}

/// Where something was said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a file.
    File {
        /// The file.
        path: Arc<PathBuf>,
        /// Its line, from 1 on.
        line: u64,
        /// The field, with those that it is in: `iptables.masqueradeAll`.
        field: String,
    },
    /// By an option of kube-proxy's own, named without the dashes.
    Flag(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, field } => {
                write!(f, "{}:{line}: {field}", path.display())
            }
            Self::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

/// What was found in one place.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// What counts.
    pub said: Vec<Said>,
    /// What means nothing to Tulle: sentences.
    pub notes: Vec<String>,
    /// What is wrong: sentences.
    pub errors: Vec<String>,
}

impl Reading {
    /// Takes the other in, behind what is here.
    pub fn append(&mut self, mut other: Self) {
        self.said.append(&mut other.said);
        self.notes.append(&mut other.notes);
        self.errors.append(&mut other.errors);
    }
}
