//! What a pod runs: HTTP and echo under its name.

use crate::echo::EchoServer;
use crate::error::Result;
use crate::http::HttpServer;
use crate::netns::NetNs;

/// TCP port of the HTTP server.
pub const HTTP_PORT: u16 = 8080;
/// TCP and UDP port of the echo server.
pub const ECHO_PORT: u16 = 7007;

/// Both servers. They stop on drop.
#[derive(Debug)]
pub struct PodServer {
    /// On [`HTTP_PORT`].
    pub http: HttpServer,
    /// On [`ECHO_PORT`].
    pub echo: EchoServer,
}

impl PodServer {
    /// Serves in a namespace by threads of this process.
    pub fn start(ns: &NetNs, name: &str) -> Result<Self> {
        ns.run(|| Self::start_here(name))?
    }

    /// Serves in the calling thread's namespace: for a process of its own that
    /// was started by [`NetNs::command`] and outlives its parent.
    pub fn start_here(name: &str) -> Result<Self> {
        Ok(Self {
            http: HttpServer::start_here(name, HTTP_PORT)?,
            echo: EchoServer::start_here(name, ECHO_PORT)?,
        })
    }
}
