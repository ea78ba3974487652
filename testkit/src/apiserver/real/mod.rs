//! A real kube-apiserver with its etcd, for the same tests as the server of this crate.
//!
//! Their programs are named by the variables `TULLE_KUBE_APISERVER` and `TULLE_ETCD`. etcd is
//! tested as Debian has it. kube-apiserver is in no package of Debian: what is said to it follows
//! its documentation (1.31 and later) and has not been run; only the order of things, its
//! arguments and its failure are tested, by a program in its place.

mod etcd;
mod kube;

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;

pub use etcd::Etcd;
pub use kube::RealServer;

/// Variable that names the program kube-apiserver.
pub const KUBE_APISERVER: &str = "TULLE_KUBE_APISERVER";
/// Variable that names the program etcd.
pub const ETCD: &str = "TULLE_ETCD";

/// The programs of a real API server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Programs {
    /// kube-apiserver.
    pub kube_apiserver: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
}

impl Programs {
    /// Those that the environment names, if it names any.
    ///
    /// # Errors
    /// If it names only one of the two.
    pub fn named() -> Result<Option<Self>> {
        match (std::env::var_os(KUBE_APISERVER), std::env::var_os(ETCD)) {
            (None, None) => Ok(None),
            (Some(server), Some(etcd)) => Ok(Some(Self {
                kube_apiserver: server.into(),
                etcd: etcd.into(),
            })),
            (server, _) => {
                let absent = if server.is_some() {
                    ETCD
                } else {
                    KUBE_APISERVER
                };
                Err(Error::Invalid(format!(
                    "{absent} is not set; name both programs or none"
                )))
            }
        }
    }
}

/// A command in a namespace, in the calling thread's if none is said.
fn command(ns: Option<&NetNs>, program: impl AsRef<OsStr>) -> Result<Command> {
    match ns {
        Some(ns) => ns.command(program),
        None => Ok(Command::new(program)),
    }
}

/// A port that nobody listens on at the loopback address, for a process that cannot choose.
fn free_port(ns: Option<&NetNs>, ip: IpAddr) -> Result<u16> {
    let bound = || TcpListener::bind((ip, 0))?.local_addr();
    let bound = match ns {
        Some(ns) => ns.run(bound)?,
        None => bound(),
    };
    let bound: SocketAddr = bound.trying(|| format!("find a free port of {ip}"))?;
    Ok(bound.port())
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).trying(|| format!("write {}", path.display()))
}
