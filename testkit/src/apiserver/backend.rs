//! What tests write objects to and agents read them from: the tests' own server or a real one.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::netns::NetNs;

use super::real::{Programs, RealServer};
use super::{ApiServer, Kubeconfig, Options};

/// The API server for tests that hold for any: a real one if the environment names its programs
/// ([`Programs`]), else the tests' own. In a namespace, in the calling thread's if none is said;
/// port 0 takes a free one; files go to the directory.
pub fn backend(
    ns: Option<&NetNs>,
    address: SocketAddr,
    directory: &Path,
) -> Result<Box<dyn Backend>> {
    let options = || Options::at(address);
    Ok(match (Programs::named()?, ns) {
        (Some(programs), ns) => Box::new(RealServer::start(ns, address, &programs, directory)?),
        (None, Some(ns)) => Box::new(ApiServer::start(ns, options())?),
        (None, None) => Box::new(ApiServer::start_here(options())?),
    })
}

/// An API server that tests can write to.
pub trait Backend: Send + Sync {
    /// Makes or changes an object, status included.
    fn apply(&self, object: Value) -> Result<()>;

    /// Removes an object; whether it was there.
    fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<bool>;

    /// All objects of a kind.
    fn list(&self, kind: &str) -> Result<Vec<Value>>;

    /// Where it listens.
    fn address(&self) -> SocketAddr;

    /// Writes a kubeconfig, for a user who may do everything, into a directory.
    fn kubeconfig(&self, directory: &Path) -> Result<Kubeconfig>;
}

impl Backend for ApiServer {
    fn apply(&self, object: Value) -> Result<()> {
        ApiServer::apply(self, object).map(drop)
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<bool> {
        ApiServer::delete(self, kind, namespace, name)
    }

    fn list(&self, kind: &str) -> Result<Vec<Value>> {
        ApiServer::list(self, kind)
    }

    fn address(&self) -> SocketAddr {
        self.listener().address()
    }

    fn kubeconfig(&self, directory: &Path) -> Result<Kubeconfig> {
        ApiServer::kubeconfig(self, directory)
    }
}

impl Backend for RealServer {
    fn apply(&self, object: Value) -> Result<()> {
        self.client().apply(&object)
    }

    fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<bool> {
        self.client().delete(kind, namespace, name)
    }

    fn list(&self, kind: &str) -> Result<Vec<Value>> {
        self.client().list(kind)
    }

    fn address(&self) -> SocketAddr {
        RealServer::address(self)
    }

    fn kubeconfig(&self, directory: &Path) -> Result<Kubeconfig> {
        RealServer::kubeconfig(self, directory)
    }
}
