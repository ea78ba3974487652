//! Where API servers are: configured, learned from the cluster, and which one answered last.
//! What was learned is kept on disk, for a node that boots has no services yet by which it
//! could reach the cluster's own address of them.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// Name of the file in `--lib-dir`.
const FILE: &str = "api-servers.json";
/// More than any cluster has.
const MOST_LEARNED: usize = 64;

/// Host and port of an API server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Address {
    /// Name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Address {
    /// The IP address, unless the host is a name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self {
            host: addr.ip().to_string(),
            port: addr.port(),
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bad = || {
            format!(
                "{text:?} is no address of an API server such as 192.0.2.1:6443, [2001:db8::1]:6443 or name:6443"
            )
        };
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(addr.into());
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(bad)?;
        let named = !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
        if !named {
            return Err(bad());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// All addresses that are known.
#[derive(Debug)]
pub struct Addresses {
    file: PathBuf,
    /// Whether addresses that the cluster tells of are used: not for plain HTTP.
    learns: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The one that answered last.
    good: Option<Address>,
    /// Of the command line.
    given: Vec<Address>,
    learned: Vec<Address>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// The one that answered last comes first.
    servers: Vec<String>,
}

impl Addresses {
    /// Those of the command line, and those that a former agent left in `directory`.
    pub fn new(directory: &Path, given: Vec<Address>, learns: bool) -> Self {
        let file = directory.join(FILE);
        let learned = if learns { read(&file) } else { Vec::new() };
        let inner = Inner {
            good: learned.first().cloned(),
            given,
            learned,
        };
        Self {
            file,
            learns,
            inner: Mutex::new(inner),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In which order they are tried; `configured` is that of the client's configuration.
    pub fn order(&self, configured: &Address) -> Vec<Address> {
        let inner = self.inner();
        let all = inner.good.iter().chain([configured]);
        let mut order: Vec<Address> = Vec::new();
        for address in all.chain(&inner.given).chain(&inner.learned) {
            if !order.contains(address) {
                order.push(address.clone());
            }
        }
        order
    }

    /// This one answered.
    pub fn answered(&self, address: &Address) {
        let mut inner = self.inner();
        if inner.good.as_ref() != Some(address) {
            inner.good = Some(address.clone());
            self.keep(&inner);
        }
    }

    /// This one takes connections and answers nothing of use: others come first.
    pub fn distrust(&self) {
        self.inner().good = None;
    }

    /// What the cluster says its API servers are; nothing says nothing.
    pub fn learn(&self, mut servers: Vec<Address>) {
        servers.truncate(MOST_LEARNED);
        let mut inner = self.inner();
        if !self.learns || servers.is_empty() || inner.learned == servers {
            return;
        }
        inner.learned = servers;
        self.keep(&inner);
    }

    /// Whoever cannot keep them boots by the configuration alone.
    fn keep(&self, inner: &Inner) {
        if !self.learns || inner.learned.is_empty() {
            return;
        }
        let good = inner
            .good
            .iter()
            .filter(|good| inner.learned.contains(good));
        let others = inner
            .learned
            .iter()
            .filter(|a| Some(*a) != inner.good.as_ref());
        let servers = good.chain(others).map(ToString::to_string).collect();
        if let Err(error) = write(&self.file, &Kept { servers }) {
            tracing::warn!(
                "cannot keep the addresses of API servers in {}: {error}; after a boot only those of the \
                 configuration are tried, check --lib-dir",
                self.file.display()
            );
        }
    }
}

fn read(file: &Path) -> Vec<Address> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("cannot read {}: {error}", file.display());
            return Vec::new();
        }
    };
    match serde_json::from_str::<Kept>(&text) {
        Ok(kept) => {
            let servers = kept.servers.iter().filter_map(|text| text.parse().ok());
            servers.take(MOST_LEARNED).collect()
        }
        Err(error) => {
            tracing::warn!("{} is damaged and not used: {error}", file.display());
            Vec::new()
        }
    }
}

/// Whole or not at all, also when the node loses power.
fn write(file: &Path, kept: &Kept) -> io::Result<()> {
    use std::io::Write as _;

    let directory = file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(directory)?;
    let fresh = file.with_extension("new");
    let mut out = std::fs::File::create(&fresh)?;
    serde_json::to_writer(&mut out, kept)?;
    out.write_all(b"\n")?;
    out.sync_all()?;
    std::fs::rename(&fresh, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_read_and_written() {
        for good in ["192.0.2.1:6443", "[2001:db8::1]:6443", "api.example:443"] {
            assert_eq!(at(good).to_string(), good);
        }
        assert_eq!(at("[2001:db8::1]:6443").ip(), "2001:db8::1".parse().ok());
        for bad in [
            "",
            "192.0.2.1",
            "host:0",
            ":6443",
            "a b:1",
            "https://a:1",
            "2001:db8::1:6443x",
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_one_that_answered_comes_first_and_survives() {
        let directory = tempfile::tempdir().unwrap();
        let service = at("10.96.0.1:443");
        let known = Addresses::new(directory.path(), vec![at("192.0.2.9:6443")], true);
        assert_eq!(
            known.order(&service),
            [service.clone(), at("192.0.2.9:6443")]
        );
        known.learn(vec![at("192.0.2.1:6443"), at("192.0.2.2:6443")]);
        known.answered(&at("192.0.2.2:6443"));
        let order = [
            "192.0.2.2:6443",
            "10.96.0.1:443",
            "192.0.2.9:6443",
            "192.0.2.1:6443",
        ];
        assert_eq!(known.order(&service), order.map(at));
        known.learn(Vec::new());

        let known = Addresses::new(directory.path(), Vec::new(), true);
        let order = ["192.0.2.2:6443", "10.96.0.1:443", "192.0.2.1:6443"];
        assert_eq!(known.order(&service), order.map(at), "after a boot");
        known.distrust();
        assert_eq!(known.order(&service)[0], service);
        let plain = Addresses::new(directory.path(), Vec::new(), false);
        assert_eq!(plain.order(&service), [service]);
    }

    #[test]
    fn a_damaged_file_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "{\"servers\": [").unwrap();
        let known = Addresses::new(directory.path(), Vec::new(), true);
        assert_eq!(known.order(&at("a:1")), [at("a:1")]);
        known.learn(vec![at("192.0.2.1:6443")]);
        let known = Addresses::new(directory.path(), Vec::new(), true);
        assert_eq!(known.order(&at("a:1")).len(), 2);
    }
}
