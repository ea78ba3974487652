//! A TCP proxy that cuts, hangs and refuses: faults for a server that has none of its own.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use crate::error::Result;
use crate::netns::NetNs;

use super::gate::Gate;
use super::runtime::Runtime;
use super::wire::State;

/// A proxy. It ends on drop, with its connections.
#[derive(Debug)]
pub struct Proxy {
    gate: Gate,
    to: SocketAddr,
    _runtime: Runtime,
}

impl Proxy {
    /// Forwards connections from one address to another, both in a namespace, in the calling
    /// thread's if none is said. Port 0 takes a free one.
    pub fn start(ns: Option<&NetNs>, at: SocketAddr, to: SocketAddr) -> Result<Self> {
        // Connections to the server are made where the runtime's thread is.
        let runtime = Runtime::start_in(ns, "proxy")?;
        let handler = Box::new(move |socket: TcpStream, _| {
            let forward = async move { forward(socket, to).await };
            Box::pin(forward) as _
        });
        Ok(Self {
            gate: Gate::new(ns, at, runtime.handle(), handler)?,
            to,
            _runtime: runtime,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.gate.address()
    }

    /// Where it leads.
    pub fn target(&self) -> SocketAddr {
        self.to
    }

    /// Refuses new connections; those that are there go on.
    pub fn close(&self) {
        self.gate.close();
    }

    /// Takes connections again.
    pub fn open(&self) -> Result<()> {
        self.gate.open()
    }

    /// Resets the clients' side of every connection, and closes the server's.
    pub fn cut(&self) {
        self.gate.command(State::Reset);
    }

    /// Whether every connection that is there stays open and carries nothing more, in either
    /// direction; `false` heals it.
    pub fn set_silent(&self, silent: bool) {
        let state = if silent { State::Silent } else { State::Serve };
        self.gate.command(state);
    }

    /// Whether new connections are accepted and then carry nothing until it ends.
    pub fn set_deaf(&self, deaf: bool) {
        self.gate.set_deaf(deaf);
    }

    /// Number of open connections.
    pub fn connections(&self) -> usize {
        self.gate.connections()
    }
}

async fn forward(mut client: TcpStream, to: SocketAddr) {
    // A client whose server is not there sees its connection close; so it does if either breaks.
    if let Ok(mut server) = TcpStream::connect(to).await
        && server.set_nodelay(true).is_ok()
    {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
