//! etcd as a process.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;
use crate::process::Process;
use crate::wait;

use super::super::client::Client;
use super::{LOOPBACK, command, free_port};

/// For its start.
const LIMIT: Duration = Duration::from_secs(30);

/// A running etcd of one member. It is killed on drop; its data stays in its directory.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    client: SocketAddr,
}

impl Etcd {
    /// Starts it at the loopback address of a namespace, of the calling thread's if none is said,
    /// and waits until it is healthy. Data and log go to the directory, which is made.
    pub fn start(ns: Option<&NetNs>, program: &Path, directory: &Path) -> Result<Self> {
        let data = directory.join("etcd");
        std::fs::create_dir_all(&data).trying(|| format!("make {}", data.display()))?;
        let client = SocketAddr::new(LOOPBACK, free_port(ns, LOOPBACK)?);
        let peer = SocketAddr::new(LOOPBACK, free_port(ns, LOOPBACK)?);
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let mut command = command(ns, program)?;
        command.arg("--data-dir").arg(&data);
        command.args(["--name", "test"]);
        command.args(["--listen-client-urls", &client_url]);
        command.args(["--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url]);
        command.args(["--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("test={peer_url}")]);
        command.args(["--log-level", "warn"]);
        let process = Process::spawn("etcd", command, &directory.join("etcd.log"))?;
        let mut etcd = Self { process, client };
        etcd.wait_healthy(ns)?;
        Ok(etcd)
    }

    fn wait_healthy(&mut self, ns: Option<&NetNs>) -> Result<()> {
        let client = Client::new(ns, self.client, None, None)?;
        let waited = wait::until("no health of etcd", LIMIT, || {
            self.process.check_running()?;
            let answer = client.request(&Method::GET, "/health", "", "");
            let health = answer
                .ok()
                .and_then(|a| serde_json::from_slice::<Value>(&a.body).ok());
            Ok(health.is_some_and(|h| h["health"] == "true").then_some(()))
        });
        let log = self.process.log_tail();
        waited.map_err(|error| match error {
            Error::Timeout { what, limit, .. } => Error::Timeout {
                what,
                limit,
                detail: format!("; the end of its log:\n{log}"),
            },
            other => other,
        })
    }

    /// Where its clients find it.
    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
