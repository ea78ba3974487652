//! The pin directory: where maps and links live while no agent runs.
//!
//! ```text
//! DIR/<map>                     maps by name
//! DIR/<map>-next                a map that is about to take the place of <map>
//! DIR/abi                       the layout version that the maps were made with, and their names
//! DIR/tulle_parts-<id>          the parts that the attached programs go on with
//! DIR/links/<program>-<ifindex> TCX and XDP links
//! DIR/links/<program>           links to the cgroup
//! DIR/links/clsact-<ifindex>    a directory: we added this device's clsact qdisc
//! DIR/links/filter-<program>-<ifindex>  a directory: we put a filter there
//! ```

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::sys::{self, Kind, RawMap, Shape};

/// The pin directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Not a bpffs, or no rights.
    #[error("cannot make {}: {source}; it must be on a bpffs (mount -t bpf bpf /sys/fs/bpf)", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Something that is no map is pinned where a map belongs.
    #[error("{} is not a map but {what}, which Tulle never pins there; remove it (rm {}) and start again", path.display(), path.display())]
    Foreign {
        /// The pin.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A pin cannot be read, made or moved.
    #[error("cannot {what} {}: {source}", path.display())]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The pin directory.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
}

/// Name of the layout version's pin.
const ABI: &str = "abi";
/// Entries of its array that hold a map's name: the kernel gives it 15 octets and a zero.
const NAME_WORDS: usize = 4;
/// Entries of it that are looked at.
const MOST_WORDS: u32 = 1024;
/// Folder of the links.
const LINKS: &str = "links";

impl Pins {
    /// The directory, which need not be there.
    pub(crate) fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The directory itself.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of the links.
    pub(crate) fn links(&self) -> PathBuf {
        self.dir.join(LINKS)
    }

    /// The pin of a map.
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where a map waits to take another's place. (A dot is not allowed in a bpffs.)
    pub(crate) fn next(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-next"))
    }

    /// The pin of the layout version.
    pub(crate) fn abi(&self) -> PathBuf {
        self.map(ABI)
    }

    /// Makes the directory and the folder of links.
    pub(crate) fn prepare(&self) -> Result<(), PinError> {
        let links = self.links();
        std::fs::create_dir_all(&links).map_err(|source| PinError::Directory {
            path: self.dir.clone(),
            source,
        })
    }

    /// Opens the map that is pinned at `path`; `None` if nothing is.
    pub(crate) fn open_map(path: &Path) -> Result<Option<OwnedFd>, PinError> {
        let foreign = |what| PinError::Foreign {
            path: path.to_owned(),
            what,
        };
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(PinError::Kernel {
                    what: "look at",
                    path: path.to_owned(),
                    source,
                });
            }
            Ok(meta) if meta.is_dir() => return Err(foreign("a directory")),
            Ok(meta) if meta.is_symlink() => return Err(foreign("a symbolic link")),
            Ok(_) => {}
        }
        let fd = sys::open_pin(path).map_err(|source| PinError::Kernel {
            what: "open",
            path: path.to_owned(),
            source,
        })?;
        match sys::kind(fd.as_fd()) {
            Kind::Map => Ok(Some(fd)),
            Kind::Program => Err(foreign("a program")),
            Kind::Link => Err(foreign("a link")),
            Kind::Other => Err(foreign("another object")),
        }
    }

    /// Shape of the map that is pinned under `name`; `None` if nothing is.
    pub(crate) fn shape(&self, name: &str) -> Result<Option<Shape>, PinError> {
        let path = self.map(name);
        let Some(fd) = Self::open_map(&path)? else {
            return Ok(None);
        };
        let map = RawMap::new(fd.as_fd()).map_err(|source| PinError::Kernel {
            what: "look at",
            path: path.clone(),
            source,
        })?;
        Ok(Some(map.shape()))
    }

    /// The layout version that the maps were made with; `None` if there is
    /// none to be read.
    pub(crate) fn abi_version(&self) -> Result<Option<u32>, PinError> {
        let path = self.abi();
        let Some(fd) = Self::open_map(&path)? else {
            return Ok(None);
        };
        let read = RawMap::new(fd.as_fd()).and_then(|map| map.get(&0u32.to_ne_bytes()));
        // A map of another shape says nothing about the version.
        let Ok(Some(value)) = read else {
            return Ok(None);
        };
        Ok(<[u8; 4]>::try_from(value.as_slice())
            .ok()
            .map(u32::from_ne_bytes))
    }

    /// Names of the maps that were all there when the layout version was written; none
    /// if that says nothing of them.
    pub(crate) fn known_maps(&self) -> Result<BTreeSet<String>, PinError> {
        let path = self.abi();
        let Some(fd) = Self::open_map(&path)? else {
            return Ok(BTreeSet::new());
        };
        let read = RawMap::new(fd.as_fd()).and_then(|map| {
            let words = 1..map.shape().max_entries.min(MOST_WORDS);
            let word = |index: u32| map.get(&index.to_ne_bytes());
            words.map(word).collect::<io::Result<Vec<_>>>()
        });
        // A map of another shape says nothing.
        let words: Vec<u8> = read.into_iter().flatten().flatten().flatten().collect();
        let name = |octets: &[u8]| {
            let text = octets.split(|octet| *octet == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        Ok(words.chunks_exact(NAME_WORDS * 4).map(name).collect())
    }

    /// Writes the layout version, and which maps there are, whole or not at all.
    pub(crate) fn set_abi<'a>(
        &self,
        version: u32,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), PinError> {
        let mut words = vec![version.to_ne_bytes()];
        for name in names {
            let mut octets = name.bytes().chain(std::iter::repeat(0));
            for _ in 0..NAME_WORDS {
                words.push(std::array::from_fn(|_| octets.next().unwrap_or(0)));
            }
        }
        let (path, next) = (self.abi(), self.next(ABI));
        let fail = |source| PinError::Kernel {
            what: "make",
            path: path.clone(),
            source,
        };
        remove(&next)?;
        let spec = aya_obj::Map::new_from_params(
            aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
            4,
            4,
            words.len() as u32,
            0,
        );
        let map = aya::maps::MapData::create(spec, "tulle_abi", None)
            .map_err(|e| fail(super::maps::io_of(e)))?;
        sys::raw(&map)
            .and_then(|raw| {
                (0u32..)
                    .zip(&words)
                    .try_for_each(|(index, word)| raw.put(&index.to_ne_bytes(), word, sys::ANY))
            })
            .and_then(|()| sys::pin(map.fd().as_fd(), &next))
            .map_err(fail)?;
        rename(&next, &path)
    }
}

/// Moves a pin over another, at once.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), PinError> {
    std::fs::rename(from, to).map_err(|source| PinError::Kernel {
        what: "move into place",
        path: from.to_owned(),
        source,
    })
}

/// Removes a pin or an empty directory, if it is there. Says whether it was.
pub(crate) fn remove(path: &Path) -> Result<bool, PinError> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match gone {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(PinError::Kernel {
            what: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Opens the link that is pinned at `path`; `None` if there is nothing, or no link.
pub(crate) fn open_link(path: &Path) -> Result<Option<OwnedFd>, PinError> {
    match sys::open_pin(path) {
        Ok(link) => Ok((sys::kind(link.as_fd()) == Kind::Link).then_some(link)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PinError::Kernel {
            what: "open",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Detaches the link that is pinned at `path` and removes the pin. Says whether
/// there was one.
pub(crate) fn remove_link(path: &Path) -> Result<bool, PinError> {
    if let Ok(link) = sys::open_pin(path)
        && sys::kind(link.as_fd()) == Kind::Link
        && let Err(source) = sys::link_detach(link.as_fd())
    {
        // Without the pin it goes all the same, only later.
        tracing::debug!(pin = %path.display(), %source, "link not detached at once");
    }
    remove(path)
}

/// Names in a folder; none if there is no folder.
pub(crate) fn list(dir: &Path) -> Result<Vec<String>, PinError> {
    let fail = |source| PinError::Kernel {
        what: "list",
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(fail(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(
            entry
                .map_err(fail)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}
