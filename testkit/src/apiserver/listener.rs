//! Addresses that the server is reached at, each opened and shut by itself.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;

use crate::error::Result;
use crate::netns::NetNs;

use super::gate::Gate;
use super::service::{Peer, serve};
use super::shared::Shared;
use super::tls::Tls;
use super::wire::{Control, State};

/// An address of the server. A value that is dropped leaves it as it is.
#[derive(Clone, Debug)]
pub struct Listener {
    number: usize,
    scheme: &'static str,
    gate: Gate,
}

/// What every connection of a listener needs.
#[derive(Clone)]
struct Host {
    number: usize,
    shared: Arc<Shared>,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Listens in a namespace, in the calling thread's if none is said.
    pub(super) fn new(
        number: usize,
        ns: Option<&NetNs>,
        address: SocketAddr,
        shared: &Arc<Shared>,
        tls: Option<&Arc<Tls>>,
        runtime: &Handle,
    ) -> Result<Self> {
        let host = Host {
            number,
            shared: Arc::clone(shared),
            tls: tls.cloned(),
        };
        let handler = Box::new(move |socket, control| {
            let host = host.clone();
            Box::pin(async move { host.talk(socket, control).await }) as _
        });
        Ok(Self {
            number,
            scheme: if tls.is_some() { "https" } else { "http" },
            gate: Gate::new(ns, address, runtime, handler)?,
        })
    }

    /// Number of the listener, from 0, as records have it.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.gate.address()
    }

    /// `https://192.0.2.1:6443`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address())
    }

    /// Stops listening: new connections are refused, those that are there go on.
    pub fn close(&self) {
        self.gate.close();
    }

    /// Listens again at the same address; one that began in the calling thread's namespace, in
    /// that of the thread that calls now.
    pub fn open(&self) -> Result<()> {
        self.gate.open()
    }

    /// Stops listening and resets every connection, as the end of a process does.
    pub fn shut(&self) {
        self.close();
        self.reset_connections();
    }

    /// Whether new connections are accepted by the kernel and then get nothing, not even a
    /// handshake. Those that waited get one when it ends.
    pub fn set_deaf(&self, deaf: bool) {
        self.gate.set_deaf(deaf);
    }

    /// Resets every connection.
    pub fn reset_connections(&self) {
        self.gate.command(State::Reset);
    }

    /// Neither reads from nor writes to any connection that is there, and keeps them open: what a
    /// network that drops everything looks like to a client. `false` heals it.
    pub fn set_silent(&self, silent: bool) {
        let state = if silent { State::Silent } else { State::Serve };
        self.gate.command(state);
    }

    /// Number of open connections.
    pub fn connections(&self) -> usize {
        self.gate.connections()
    }
}

impl Host {
    async fn talk(self, socket: TcpStream, control: Arc<Control>) {
        let Some(tls) = &self.tls else {
            return self.http(socket, None, control).await;
        };
        // A client that does not believe the certificate is its own affair.
        let Ok(stream) = TlsAcceptor::from(tls.config()).accept(socket).await else {
            return;
        };
        let shown = stream.get_ref().1.peer_certificates();
        let certificate = shown.and_then(|c| c.first()).map(|c| c.to_vec());
        self.http(stream, certificate, control).await;
    }

    async fn http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        certificate: Option<Vec<u8>>,
        control: Arc<Control>,
    ) {
        let peer = Arc::new(Peer {
            shared: Arc::clone(&self.shared),
            listener: self.number,
            certificate,
            control,
        });
        let service = service_fn(move |request| serve(Arc::clone(&peer), request));
        // A connection that breaks is what tests are about; there is nobody to tell.
        let _ = auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}
