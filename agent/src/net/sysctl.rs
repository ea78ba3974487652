//! Kernel switches that forwarding needs, and a record of what they were, so
//! that cleanup can put them back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};
use serde::{Deserialize, Serialize};

/// What went wrong with a switch or its record.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// A switch cannot be read.
    #[error("cannot read sysctl {key}: {cause}")]
    Read {
        /// Path below /proc/sys.
        key: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A switch cannot be written.
    #[error(
        "cannot set sysctl {key} to {value}: {cause}; /proc/sys must be writable, or the host's \
         /proc/sys/net be mounted at /host/proc/sys/net, or set it on the host"
    )]
    Write {
        /// Path below /proc/sys.
        key: String,
        /// The value.
        value: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The record cannot be read, written or removed.
    #[error(
        "cannot use the record of changed sysctls {path}: {cause}; if it is damaged, remove it and \
         set net.ipv4.ip_forward, net.ipv4.conf.lo.accept_local and net.ipv6.conf.all.forwarding by hand"
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// A switch that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Changed {
    /// Path below /proc/sys.
    key: String,
    /// Its value before.
    was: String,
    /// The value it was given.
    set: String,
    /// Switches that the kernel changes along with it, as they were.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    also: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    sysctls: Vec<Changed>,
}

/// The switches below a root (`/proc/sys`) and the record of those changed.
#[derive(Clone, Debug)]
pub(crate) struct Sysctls {
    root: PathBuf,
    record: PathBuf,
}

/// Where a container has the host's switches, for its own are read-only unless it is privileged.
const OF_HOST: &str = "/host/proc/sys";

/// The first of the two directories, unless it can only be read and the second has the switches of
/// networks, too: these are those of the process's own network namespace at either place.
fn writable<'a>(own: &'a Path, of_host: &'a Path) -> &'a Path {
    let net = |root: &Path| statvfs(&root.join("net"));
    let read_only = net(own).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY));
    if read_only && net(of_host).is_ok() {
        of_host
    } else {
        own
    }
}

impl Sysctls {
    pub(crate) fn new(record: &Path) -> Self {
        Self::below(writable(Path::new("/proc/sys"), Path::new(OF_HOST)), record)
    }

    fn below(root: &Path, record: &Path) -> Self {
        Self {
            root: root.into(),
            record: record.into(),
        }
    }

    /// The value, none if there is no such switch.
    pub(crate) fn get(&self, key: &str) -> Result<Option<String>, SysctlError> {
        match fs::read_to_string(self.root.join(key)) {
            Ok(value) => Ok(Some(value.trim().into())),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(SysctlError::Read {
                key: key.into(),
                cause,
            }),
        }
    }

    /// Writes a switch without recording it: for those that go with a device of ours.
    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), SysctlError> {
        fs::write(self.root.join(key), value).map_err(|cause| SysctlError::Write {
            key: key.into(),
            value: value.into(),
            cause,
        })
    }

    /// Switches IPv4 forwarding on, unless it is; returns what was done.
    pub(crate) fn forward4(&self) -> Result<Vec<String>, SysctlError> {
        let key = "net/ipv4/ip_forward";
        let mut also = self.each_interface("net/ipv4/conf", "forwarding")?;
        // Forwarding also switches redirects (RFC 1812 against RFC 1122).
        let redirects = "net/ipv4/conf/all/accept_redirects";
        if let Some(value) = self.get(redirects)? {
            also.insert(redirects.into(), value);
        }
        self.ensure(key, "1", also)
    }

    /// Switches IPv6 forwarding on, unless it is or there is no IPv6. A router
    /// ignores router advertisements and drops the routes it has from them,
    /// so `uplink` first gets `accept_ra` 2 if it had 1.
    pub(crate) fn forward6(&self, uplink: &str) -> Result<Vec<String>, SysctlError> {
        let key = "net/ipv6/conf/all/forwarding";
        if self.get(key)?.is_none_or(|value| value == "1") {
            return Ok(Vec::new());
        }
        let mut done = Vec::new();
        let advertisements = format!("net/ipv6/conf/{uplink}/accept_ra");
        if self.get(&advertisements)?.as_deref() == Some("1") {
            done.extend(self.ensure(&advertisements, "2", BTreeMap::new())?);
        }
        let also = self.each_interface("net/ipv6/conf", "forwarding")?;
        done.extend(self.ensure(key, "1", also)?);
        Ok(done)
    }

    /// Lets the loopback device take IPv4 packets with a source of this node, which
    /// programs redirect there; what the kernel itself sends by it needs no leave.
    pub(crate) fn accept_local(&self) -> Result<Vec<String>, SysctlError> {
        self.ensure("net/ipv4/conf/lo/accept_local", "1", BTreeMap::new())
    }

    /// The value of `name` for each interface below `directory`.
    fn each_interface(
        &self,
        directory: &str,
        name: &str,
    ) -> Result<BTreeMap<String, String>, SysctlError> {
        let read = |cause| SysctlError::Read {
            key: directory.into(),
            cause,
        };
        let mut values = BTreeMap::new();
        for entry in fs::read_dir(self.root.join(directory)).map_err(read)? {
            let interface = entry.map_err(read)?.file_name();
            let Some(interface) = interface.to_str() else {
                continue;
            };
            let key = format!("{directory}/{interface}/{name}");
            if let Some(value) = self.get(&key)? {
                values.insert(key, value);
            }
        }
        Ok(values)
    }

    /// Gives `key` the value and records what it was, before it is written.
    fn ensure(
        &self,
        key: &str,
        value: &str,
        also: BTreeMap<String, String>,
    ) -> Result<Vec<String>, SysctlError> {
        let Some(was) = self.get(key)?.filter(|was| was != value) else {
            return Ok(Vec::new());
        };
        let mut record = self.read_record()?;
        // If it is there, somebody switched it back meanwhile: the first value counts.
        if !record.sysctls.iter().any(|changed| changed.key == key) {
            record.sysctls.push(Changed {
                key: key.into(),
                was: was.clone(),
                set: value.into(),
                also,
            });
            self.write_record(&record)?;
        }
        self.set(key, value)?;
        Ok(vec![format!(
            "set sysctl {} to {value} (was {was})",
            dotted(key)
        )])
    }

    /// Puts back what the record names and removes the record. A switch that
    /// somebody else has changed since is left.
    pub(crate) fn restore(&self) -> Result<Vec<String>, SysctlError> {
        let mut done = Vec::new();
        for changed in self.read_record()?.sysctls.iter().rev() {
            let key = &changed.key;
            match self.get(key)? {
                Some(now) if now == changed.set => {
                    self.set(key, &changed.was)?;
                    done.push(format!(
                        "set sysctl {} back to {}",
                        dotted(key),
                        changed.was
                    ));
                }
                Some(now) if now != changed.was => {
                    done.push(format!(
                        "left sysctl {} at {now}: it was changed after Tulle set it",
                        dotted(key)
                    ));
                    continue;
                }
                _ => continue,
            }
            for (key, was) in &changed.also {
                if self.get(key)?.is_some_and(|now| now != *was) {
                    self.set(key, was)?;
                }
            }
        }
        match fs::remove_file(&self.record) {
            Ok(()) => {
                done.push(format!("removed {}", self.record.display()));
                Ok(done)
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(done),
            Err(cause) => Err(self.record_error(cause)),
        }
    }

    fn read_record(&self) -> Result<Record, SysctlError> {
        match fs::read(&self.record) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map_err(|e| self.record_error(io::Error::from(e)))
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(cause) => Err(self.record_error(cause)),
        }
    }

    fn write_record(&self, record: &Record) -> Result<(), SysctlError> {
        let write = || -> io::Result<()> {
            if let Some(directory) = self.record.parent() {
                fs::create_dir_all(directory)?;
            }
            let mut bytes = serde_json::to_vec_pretty(record)?;
            bytes.push(b'\n');
            let beside = self.record.with_extension("new");
            fs::write(&beside, bytes)?;
            fs::rename(&beside, &self.record)
        };
        write().map_err(|cause| self.record_error(cause))
    }

    fn record_error(&self, cause: io::Error) -> SysctlError {
        SysctlError::Record {
            path: self.record.clone(),
            cause,
        }
    }
}

/// A key as `sysctl` prints it: dots for slashes, and slashes for the dots of
/// interface names.
fn dotted(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, Sysctls) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("sys");
        for (key, value) in [
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/all/forwarding", "0"),
            ("net/ipv4/conf/eth0/forwarding", "1"),
            ("net/ipv4/conf/lo/accept_local", "0"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv6/conf/eth0.7/accept_ra", "1"),
            ("net/ipv6/conf/eth0.7/forwarding", "0"),
        ] {
            let path = root.join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        let record = dir.path().join("state/sysctls.json");
        let sysctls = Sysctls::below(&root, &record);
        (dir, sysctls)
    }

    fn all(sysctls: &Sysctls) -> Vec<String> {
        let keys = [
            "net/ipv4/ip_forward",
            "net/ipv4/conf/all/accept_redirects",
            "net/ipv4/conf/eth0/forwarding",
            "net/ipv4/conf/lo/accept_local",
            "net/ipv6/conf/all/forwarding",
            "net/ipv6/conf/eth0.7/accept_ra",
        ];
        keys.iter()
            .map(|key| sysctls.get(key).unwrap().unwrap())
            .collect()
    }

    #[test]
    fn what_was_changed_is_put_back() {
        let (_dir, sysctls) = root();
        let before = all(&sysctls);
        assert_eq!(
            sysctls.forward4().unwrap(),
            ["set sysctl net.ipv4.ip_forward to 1 (was 0)"]
        );
        assert_eq!(
            sysctls.forward6("eth0.7").unwrap(),
            [
                "set sysctl net.ipv6.conf.eth0/7.accept_ra to 2 (was 1)",
                "set sysctl net.ipv6.conf.all.forwarding to 1 (was 0)"
            ]
        );
        assert_eq!(
            sysctls.accept_local().unwrap(),
            ["set sysctl net.ipv4.conf.lo.accept_local to 1 (was 0)"]
        );
        // As the kernel does when forwarding is switched.
        sysctls.set("net/ipv4/conf/eth0/forwarding", "0").unwrap();
        sysctls
            .set("net/ipv4/conf/all/accept_redirects", "1")
            .unwrap();
        assert_eq!(sysctls.forward4().unwrap(), [""; 0]);
        assert_eq!(sysctls.forward6("eth0.7").unwrap(), [""; 0]);
        assert_eq!(sysctls.restore().unwrap().len(), 5);
        assert_eq!(all(&sysctls), before);
        assert_eq!(sysctls.restore().unwrap(), [""; 0]);
    }

    #[test]
    fn nothing_is_recorded_for_what_was_right() {
        let (_dir, sysctls) = root();
        sysctls.set("net/ipv4/ip_forward", "1").unwrap();
        assert_eq!(sysctls.forward4().unwrap(), [""; 0]);
        assert!(!sysctls.record.exists());
        assert_eq!(sysctls.restore().unwrap(), [""; 0]);
        assert_eq!(sysctls.get("net/ipv4/ip_forward").unwrap().unwrap(), "1");
    }

    #[test]
    fn the_first_value_is_the_one_that_comes_back() {
        let (_dir, sysctls) = root();
        sysctls.forward4().unwrap();
        sysctls.set("net/ipv4/ip_forward", "0").unwrap();
        assert_eq!(sysctls.forward4().unwrap().len(), 1);
        sysctls.restore().unwrap();
        assert_eq!(sysctls.get("net/ipv4/ip_forward").unwrap().unwrap(), "0");
    }

    #[test]
    fn a_value_of_somebody_else_is_left() {
        let (_dir, sysctls) = root();
        sysctls.forward6("eth0.7").unwrap();
        sysctls.set("net/ipv6/conf/eth0.7/accept_ra", "0").unwrap();
        let done = sysctls.restore().unwrap();
        assert!(
            done.iter()
                .any(|s| s.starts_with("left sysctl net.ipv6.conf.eth0/7.accept_ra at 0"))
        );
    }

    #[test]
    fn without_ipv6_there_is_nothing_to_do() {
        let (dir, sysctls) = root();
        fs::remove_dir_all(dir.path().join("sys/net/ipv6")).unwrap();
        assert_eq!(sysctls.forward6("eth0").unwrap(), [""; 0]);
    }

    #[test]
    fn a_broken_record_is_named() {
        let (_dir, sysctls) = root();
        fs::create_dir_all(sysctls.record.parent().unwrap()).unwrap();
        fs::write(&sysctls.record, "{").unwrap();
        let error = sysctls.forward4().unwrap_err().to_string();
        assert!(error.contains("sysctls.json"), "{error}");
        assert_eq!(sysctls.get("net/ipv4/ip_forward").unwrap().unwrap(), "0");
    }
}
