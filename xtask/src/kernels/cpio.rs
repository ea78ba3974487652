//! Writes an archive of the "newc" kind, which the kernel unpacks into its first root directory
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::path::{Component, Path};

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
/// Ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction. All entries belong to root and have no time.
#[derive(Debug, Default)]
pub struct Archive {
    octets: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Adds a directory, and those above it that are not there yet.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        let mut name = String::new();
        for part in parts(path)? {
            if !name.is_empty() {
                name.push('/');
            }
            name.push_str(part);
            if self.names.insert(name.clone()) {
                self.entry(&name, DIRECTORY, &[])?;
            }
        }
        Ok(())
    }

    /// Adds an executable file and the directories above it. A path that is there already is left
    /// as it is.
    pub fn file(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let parts = parts(path)?;
        let Some((_name, above)) = parts.split_last() else {
            bail!("a file in the archive needs a name");
        };
        self.directory(&above.join("/"))?;
        let name = parts.join("/");
        if self.names.insert(name.clone()) {
            self.entry(&name, EXECUTABLE, content)?;
        }
        Ok(())
    }

    /// The whole archive.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(TRAILER, 0, &[])?;
        Ok(self.octets)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len())
            .ok()
            .with_context(|| format!("{name} is too large for the archive"))?;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        // Each entry has an inode of its own: equal ones would be one file with many names.
        let inode = self.names.len() as u32;
        let fields = [
            inode,
            mode,
            0, // owner
            0, // group
            links,
            0, // time
            size,
            0, // device's numbers, four fields with the next three
            0,
            0,
            0,
            name.len() as u32 + 1,
            0, // check sum, which newc has not
        ];
        self.octets.extend(b"070701");
        for field in fields {
            self.octets.extend(format!("{field:08x}").bytes());
        }
        self.octets.extend(name.bytes());
        self.octets.push(0);
        self.align();
        self.octets.extend(content);
        self.align();
        Ok(())
    }

    fn align(&mut self) {
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
    }
}

/// The names of a path, without the root.
fn parts(path: &str) -> Result<Vec<&str>> {
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().context("a path that is no text")?),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("{path} leads out of the archive")
            }
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of each entry, read by the format's own rules.
    fn read(octets: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&octets[at..at + 6], b"070701");
            let field = |n: usize| {
                let start = at + 6 + 8 * n;
                let text = std::str::from_utf8(&octets[start..start + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name_at = at + 110;
            let name = &octets[name_at..name_at + name_size - 1];
            assert_eq!(octets[name_at + name_size - 1], 0);
            let content = (name_at + name_size).next_multiple_of(4);
            let name = String::from_utf8(name.to_vec()).unwrap();
            at = (content + size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(at, octets.len());
                return entries;
            }
            entries.push((name, mode, octets[content..content + size].to_vec()));
        }
    }

    #[test]
    fn entries_come_back_with_their_directories() {
        let mut archive = Archive::default();
        archive.file("/usr/bin/tool", b"12345").unwrap();
        archive.directory("usr/lib").unwrap();
        archive.file("init", b"").unwrap();
        archive.file("/usr/bin/tool", b"another").unwrap();
        let directory = |name: &str| (name.to_owned(), DIRECTORY, Vec::new());
        assert_eq!(
            read(&archive.finish().unwrap()),
            [
                directory("usr"),
                directory("usr/bin"),
                ("usr/bin/tool".into(), EXECUTABLE, b"12345".to_vec()),
                directory("usr/lib"),
                ("init".into(), EXECUTABLE, Vec::new()),
            ]
        );
    }

    #[test]
    fn nothing_leads_out_and_a_file_has_a_name() {
        let mut archive = Archive::default();
        assert!(archive.file("../etc/passwd", b"").is_err());
        assert!(archive.file("/", b"").is_err());
        assert!(archive.directory("a/../..").is_err());
        assert!(read(&archive.finish().unwrap()).is_empty());
    }

    #[test]
    fn inodes_differ() {
        let mut archive = Archive::default();
        archive.file("a", b"").unwrap();
        archive.file("b", b"").unwrap();
        let octets = archive.finish().unwrap();
        assert_ne!(octets[6..14], octets[112 + 6..112 + 14]);
    }
}
