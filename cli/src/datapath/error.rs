//! Why the maps cannot be read.

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;

/// Why the maps cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// No pins.
    #[error(
        "no datapath under {dir}: is tulle-agent running? it pins its maps there; another \
         directory: --bpffs DIR"
    )]
    Missing {
        /// The directory.
        dir: PathBuf,
    },
    /// Not allowed.
    #[error("may not read {path}: tulle reads the kernel's maps and needs root; run it with sudo")]
    Permission {
        /// The directory or pin.
        path: PathBuf,
    },
    /// A pin that was removed, or pins of another release.
    #[error(
        "map {map} is not pinned under {dir}, other maps of tulle are: somebody removed the pin, \
         then restart tulle-agent, which makes the map anew; or the agent that pinned them is of \
         another release, then use agent and tulle of one release"
    )]
    NotPinned {
        /// Name of the map.
        map: &'static str,
        /// The directory.
        dir: PathBuf,
    },
    /// Another layout.
    #[error(
        "map {map} has keys of {key} and values of {value} bytes, this program knows keys of \
         {known_key} and values of {known_value}: use agent and tulle of one release"
    )]
    Layout {
        /// Name of the map.
        map: &'static str,
        /// Bytes of a key.
        key: usize,
        /// Bytes of a value.
        value: usize,
        /// Bytes of a key as this program knows it.
        known_key: usize,
        /// Bytes of a value as this program knows it.
        known_value: usize,
    },
    /// The kernel or aya refuses.
    #[error("map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What is wrong.
        source: MapError,
    },
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
}
