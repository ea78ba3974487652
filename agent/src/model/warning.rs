//! What is wrong with an object, and how to mend it.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

/// A fault in one field of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
#[error("{field}: {problem}; {mend}")]
pub struct Fault {
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
}

impl Fault {
    /// A fault of `field`.
    pub fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            mend: mend.into(),
        }
    }
}

/// Something in the cluster's state that does not do what its author meant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Warning {
    /// File it came from, if it came from a file.
    pub file: Option<PathBuf>,
    /// Kind and name of the object; empty if the whole file is meant.
    pub object: String,
    /// Path of the field; empty if the whole object is meant.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub mend: String,
}

impl Warning {
    /// A warning about `object`, from no particular file.
    pub fn new(object: impl fmt::Display, fault: Fault) -> Self {
        Self {
            file: None,
            object: plain(object.to_string()),
            field: plain(fault.field),
            problem: plain(fault.problem),
            mend: plain(fault.mend),
        }
    }

    /// The same, in a file.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.file = Some(file.into());
        self
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        write!(f, "{}; {}", self.problem, self.mend)
    }
}

/// Names come from files and go to terminals: control characters are spelled out.
fn plain(text: String) -> String {
    if text.chars().any(char::is_control) {
        text.escape_debug().to_string()
    } else {
        text
    }
}
