//! Where API servers are: configured, and learned from the cluster.
//! What was learned is kept on disk, for a node that boots has no services yet by which it
//! could reach the cluster's own address of them.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Name of the file in `--lib-dir`.
const FILE: &str = "api-servers.json";
/// How long others come before one that serves nothing.
const PASSED_OVER: Duration = Duration::from_mins(1);
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
            return if addr.port() == 0 {
                Err(bad())
            } else {
                Ok(addr.into())
            };
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
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The server of the configuration, with its scheme: what is learned is learned of its cluster.
    configured: String,
    /// Of the command line.
    given: Vec<Address>,
    /// In an order of this process's own, so that not all nodes go to the same server.
    learned: Vec<Address>,
    /// The one that answered last.
    good: Option<Address>,
    /// Those that answer and serve nothing, and until when they come last.
    passed_over: Vec<(Address, Instant)>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// The server of the configuration by which they were learned.
    configured: String,
    servers: Vec<String>,
}

impl Addresses {
    /// Those of the command line, and those that a former agent left in `directory` of the cluster
    /// that is reached by `configured`, a URL.
    pub fn new(directory: &Path, given: Vec<Address>, configured: &str) -> Self {
        let known = Self {
            file: directory.join(FILE),
            inner: Mutex::new(Inner {
                given,
                ..Inner::default()
            }),
        };
        known.configure(configured);
        known
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configuration names this server, perhaps of another cluster than before.
    pub fn configure(&self, configured: &str) {
        let mut inner = self.inner();
        if inner.configured == configured {
            return;
        }
        configured.clone_into(&mut inner.configured);
        inner.good = None;
        inner.passed_over.clear();
        inner.learned = if inner.learns() {
            read(&self.file, configured)
        } else {
            Vec::new()
        };
        fastrand::shuffle(&mut inner.learned);
    }

    /// In which order they are tried; `configured` is that of the client's configuration.
    pub fn order(&self, configured: &Address, now: Instant) -> Vec<Address> {
        let inner = self.inner();
        let all = std::iter::once(configured)
            .chain(&inner.given)
            .chain(&inner.learned);
        let (back, front): (Vec<&Address>, Vec<&Address>) =
            all.partition(|address| inner.is_passed_over(address, now));
        let mut order: Vec<Address> = Vec::new();
        for address in front.into_iter().chain(back) {
            if !order.contains(address) {
                order.push(address.clone());
            }
        }
        order
    }

    /// Whether somebody wrote the address, or the cluster told of it.
    pub fn is_given(&self, address: &Address) -> bool {
        self.inner().given.contains(address)
    }

    /// Whether others come before it, for it serves nothing.
    pub fn is_passed_over(&self, address: &Address, now: Instant) -> bool {
        self.inner().is_passed_over(address, now)
    }

    /// This one answered; of a name, the address that it was found to have.
    pub fn answered(&self, address: &Address) {
        self.inner().good = Some(address.clone());
    }

    /// The one that answered last serves nothing: for a minute the others come first.
    pub fn pass_over(&self, now: Instant) {
        let mut inner = self.inner();
        inner.passed_over.retain(|(_, until)| now < *until);
        if let Some(good) = inner.good.take() {
            inner.passed_over.push((good, now + PASSED_OVER));
        }
    }

    /// What the cluster says its API servers are; nothing says nothing. Whoever cannot keep them boots
    /// by the configuration alone.
    pub fn learn(&self, mut servers: Vec<Address>) {
        servers.truncate(MOST_LEARNED);
        let mut inner = self.inner();
        let same = servers.len() == inner.learned.len()
            && servers.iter().all(|server| inner.learned.contains(server));
        if !inner.learns() || servers.is_empty() || same {
            return;
        }
        let kept = Kept {
            configured: inner.configured.clone(),
            servers: servers.iter().map(ToString::to_string).collect(),
        };
        fastrand::shuffle(&mut servers);
        inner.learned = servers;
        drop(inner);
        if let Err(error) = write(&self.file, &kept) {
            tracing::warn!(
                "cannot keep the addresses of API servers in {}: {error}; after a boot only those of the \
                 configuration are tried, check --lib-dir",
                self.file.display()
            );
        }
    }
}

impl Inner {
    fn is_passed_over(&self, address: &Address, now: Instant) -> bool {
        let mut over = self.passed_over.iter();
        over.any(|(passed, until)| passed == address && now < *until)
    }

    /// Whether addresses that the cluster tells of are used: they are those of HTTPS.
    fn learns(&self) -> bool {
        self.configured.starts_with("https:")
    }
}

fn read(file: &Path, configured: &str) -> Vec<Address> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!("cannot read {}: {error}", file.display());
            return Vec::new();
        }
    };
    match serde_json::from_str::<Kept>(&text) {
        Ok(kept) if kept.configured != configured => Vec::new(),
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

    const URL: &str = "https://10.96.0.1:443/";

    fn orders(known: &Addresses) -> Vec<String> {
        let order = known.order(&at("10.96.0.1:443"), Instant::now());
        order.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn learned_ones_come_last_and_survive() {
        let directory = tempfile::tempdir().unwrap();
        let given = vec![at("192.0.2.9:6443")];
        let known = Addresses::new(directory.path(), given, URL);
        assert_eq!(orders(&known), ["10.96.0.1:443", "192.0.2.9:6443"]);
        known.learn(vec![at("192.0.2.1:6443"), at("192.0.2.2:6443")]);
        let mut learned = orders(&known).split_off(2);
        learned.sort();
        assert_eq!(learned, ["192.0.2.1:6443", "192.0.2.2:6443"]);
        known.learn(Vec::new());

        let known = Addresses::new(directory.path(), Vec::new(), URL);
        assert_eq!(orders(&known).len(), 3, "after a boot");
        let other = Addresses::new(directory.path(), Vec::new(), "https://other:6443/");
        assert_eq!(orders(&other).len(), 1, "those of another cluster");
        let plain = Addresses::new(directory.path(), Vec::new(), "http://10.96.0.1:443/");
        assert_eq!(orders(&plain).len(), 1);
        known.configure("https://other:6443/");
        assert_eq!(orders(&known).len(), 1, "another cluster while it runs");
    }

    #[test]
    fn one_that_serves_nothing_comes_last_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let known = Addresses::new(directory.path(), vec![at("192.0.2.9:6443")], URL);
        let now = Instant::now();
        known.answered(&at("10.96.0.1:443"));
        known.pass_over(now);
        assert_eq!(orders(&known), ["192.0.2.9:6443", "10.96.0.1:443"]);
        known.pass_over(now);
        let later = known.order(&at("10.96.0.1:443"), now + PASSED_OVER);
        assert_eq!(later[0], at("10.96.0.1:443"));
    }

    #[test]
    fn a_damaged_file_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE), "{\"servers\": [").unwrap();
        let known = Addresses::new(directory.path(), Vec::new(), URL);
        assert_eq!(orders(&known).len(), 1);
        known.learn(vec![at("192.0.2.1:6443")]);
        let known = Addresses::new(directory.path(), Vec::new(), URL);
        assert_eq!(orders(&known).len(), 2);
    }
}
