//! The image's one layer: a tar of files, the same octets for the same content.

use std::io::Write;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// A directory or file of the image; all belong to root and have no time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, without a slash at either end.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// What is in the file; nothing for a directory.
    pub content: Option<Vec<u8>>,
}

impl Entry {
    /// A file.
    pub fn file(path: &str, mode: u32, content: Vec<u8>) -> Self {
        Self {
            path: path.to_owned(),
            mode,
            content: Some(content),
        }
    }

    fn directory(path: &str, mode: u32) -> Self {
        Self {
            path: path.to_owned(),
            mode,
            content: None,
        }
    }
}

/// The directories: those of the files, and those that are mounted over, which a runtime cannot make
/// where the root is read-only.
pub fn directories() -> Vec<Entry> {
    [
        ("dev", 0o755),
        ("etc", 0o755),
        ("etc/tulle", 0o755),
        ("host", 0o755),
        ("host/proc", 0o755),
        ("host/proc/sys", 0o755),
        ("host/proc/sys/net", 0o755),
        ("host/sys", 0o755),
        ("host/sys/fs", 0o755),
        ("host/sys/fs/cgroup", 0o755),
        ("proc", 0o555),
        ("run", 0o755),
        ("run/tulle", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("usr/bin", 0o755),
        ("usr/share", 0o755),
        ("usr/share/doc", 0o755),
        ("usr/share/doc/tulle", 0o755),
        ("var", 0o755),
        ("var/lib", 0o755),
        ("var/lib/tulle", 0o755),
        ("var/run", 0o755),
    ]
    .map(|(path, mode)| Entry::directory(path, mode))
    .into()
}

/// The layer as a tar, sorted by path: parents come before what is in them.
pub fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut builder = Builder::new(Vec::new());
    for entry in sorted {
        append(&mut builder, entry).with_context(|| format!("cannot pack {}", entry.path))?;
    }
    builder.into_inner().context("cannot end the layer")
}

fn append(builder: &mut Builder<Vec<u8>>, entry: &Entry) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    if let Some(content) = &entry.content {
        header.set_entry_type(EntryType::Regular);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, &entry.path, content.as_slice())?;
    } else {
        header.set_entry_type(EntryType::Directory);
        header.set_size(0);
        builder.append_data(&mut header, format!("{}/", entry.path), [].as_slice())?;
    }
    Ok(())
}

/// Compressed by gzip, which every runtime reads, without a time or a name.
pub fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut packer = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    packer
        .write_all(content)
        .and_then(|()| packer.finish())
        .context("cannot compress the layer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_its_directory_and_order_does_not_matter() {
        let mut entries = directories();
        entries.push(Entry::file("usr/bin/a", 0o755, b"x".to_vec()));
        for entry in &entries {
            if let Some((parent, _)) = entry.path.rsplit_once('/') {
                assert!(
                    entries
                        .iter()
                        .any(|e| e.path == parent && e.content.is_none()),
                    "{}",
                    entry.path
                );
            }
        }
        let one = tar(&entries).unwrap();
        entries.reverse();
        assert_eq!(one, tar(&entries).unwrap());
        assert_eq!(gzip(&one).unwrap(), gzip(&one).unwrap());
    }
}
