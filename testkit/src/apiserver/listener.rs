//! Addresses that the server is reached at, each opened and shut by itself.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;

use super::service::{Peer, serve};
use super::shared::{Shared, lock};
use super::tls::Tls;
use super::wire::{self, Control, Fuse, State};

/// An address of the server. A value that is dropped leaves it as it is.
#[derive(Clone, Debug)]
pub struct Listener(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: usize,
    address: SocketAddr,
    ns: Option<NetNs>,
    shared: Arc<Shared>,
    tls: Option<Arc<Tls>>,
    runtime: Handle,
    accepting: Mutex<Option<Accepting>>,
    /// Whether new connections get no handshake.
    deaf: watch::Sender<bool>,
    connections: Mutex<Vec<Arc<Control>>>,
}

/// A running loop of accepts, and the word that it has ended.
#[derive(Debug)]
struct Accepting {
    stop: watch::Sender<bool>,
    stopped: mpsc::Receiver<()>,
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
        let ns = ns.map(|ns| NetNs::adopt(ns.name())).transpose()?;
        let socket = bind(ns.as_ref(), address)?;
        let bound = socket
            .local_addr()
            .trying(|| format!("look at the listener of {address}"))?;
        let listener = Self(Arc::new(Inner {
            number,
            address: bound,
            ns,
            shared: Arc::clone(shared),
            tls: tls.cloned(),
            runtime: runtime.clone(),
            accepting: Mutex::default(),
            deaf: watch::Sender::new(false),
            connections: Mutex::default(),
        }));
        listener.accept(socket)?;
        Ok(listener)
    }

    /// Number of the listener, from 0, as records have it.
    pub fn number(&self) -> usize {
        self.0.number
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// `https://192.0.2.1:6443`.
    pub fn url(&self) -> String {
        let scheme = if self.0.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.0.address)
    }

    /// Stops listening: new connections are refused, those that are there go on.
    pub fn close(&self) {
        let Some(accepting) = lock(&self.0.accepting).take() else {
            return;
        };
        accepting.stop.send_replace(true);
        // Fails if the server is gone, and with it the socket.
        let _ = accepting.stopped.recv();
    }

    /// Listens again at the same address.
    pub fn open(&self) -> Result<()> {
        if lock(&self.0.accepting).is_some() {
            return Ok(());
        }
        self.accept(bind(self.0.ns.as_ref(), self.0.address)?)
    }

    /// Stops listening and resets every connection, as the end of a process does.
    pub fn shut(&self) {
        self.close();
        self.reset_connections();
    }

    /// Whether new connections are accepted by the kernel and then get nothing, not even a
    /// handshake. Those that waited get one when it ends.
    pub fn set_deaf(&self, deaf: bool) {
        self.0.deaf.send_replace(deaf);
    }

    /// Resets every connection.
    pub fn reset_connections(&self) {
        self.command(State::Reset);
    }

    /// Neither reads from nor writes to any connection that is there, and keeps them open: what a
    /// network that drops everything looks like to a client. `false` heals it.
    pub fn set_silent(&self, silent: bool) {
        self.command(if silent { State::Silent } else { State::Serve });
    }

    /// Number of open connections.
    pub fn connections(&self) -> usize {
        let mut connections = lock(&self.0.connections);
        connections.retain(|control| control.is_open());
        connections.len()
    }

    fn command(&self, state: State) {
        let connections = lock(&self.0.connections).clone();
        for control in &connections {
            control.set(state);
        }
        for control in &connections {
            control.wait();
        }
    }

    fn accept(&self, socket: TcpListener) -> Result<()> {
        let (stop, stopping) = watch::channel(false);
        let (ended, stopped) = mpsc::channel();
        let (begun, ready) = mpsc::channel();
        let inner = Arc::clone(&self.0);
        self.0.runtime.spawn(async move {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(listener) => {
                    // Nobody waits any more if this fails.
                    let _ = begun.send(Ok(()));
                    inner.accept_until(listener, stopping).await;
                }
                Err(error) => drop(begun.send(Err(error))),
            }
            let _ = ended.send(());
        });
        let address = self.0.address;
        let ready = ready.recv().map_err(|_| {
            Error::Invalid(format!(
                "listen on {address}: the server has ended; start another"
            ))
        })?;
        ready.trying(|| format!("listen on {address}"))?;
        *lock(&self.0.accepting) = Some(Accepting { stop, stopped });
        Ok(())
    }
}

impl Inner {
    async fn accept_until(
        self: Arc<Self>,
        listener: tokio::net::TcpListener,
        mut stopping: watch::Receiver<bool>,
    ) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.changed() => return,
            };
            match accepted {
                Ok((socket, _)) => self.connect(socket),
                // Out of descriptors, or the client is gone already.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    }

    fn connect(self: &Arc<Self>, socket: TcpStream) {
        // Without either the connection would not do as it is told.
        let (Ok(()), Ok(fuse)) = (socket.set_nodelay(true), Fuse::of(&socket)) else {
            return;
        };
        let control = Arc::new(Control::new());
        let state = control.subscribe();
        let mut connections = lock(&self.connections);
        connections.retain(|control| control.is_open());
        connections.push(Arc::clone(&control));
        drop(connections);
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let talk = inner.talk(socket, Arc::clone(&control));
            wire::run(talk, &control, state, fuse).await;
        });
    }

    async fn talk(self: Arc<Self>, socket: TcpStream, control: Arc<Control>) {
        let mut deaf = self.deaf.subscribe();
        if deaf.wait_for(|deaf| !deaf).await.is_err() {
            return;
        }
        match &self.tls {
            None => self.http(socket, None, control).await,
            Some(tls) => {
                // A client that does not believe the certificate is its own affair.
                let Ok(stream) = TlsAcceptor::from(tls.config()).accept(socket).await else {
                    return;
                };
                let shown = stream.get_ref().1.peer_certificates();
                let certificate = shown.and_then(|c| c.first()).map(|c| c.to_vec());
                self.http(stream, certificate, control).await;
            }
        }
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
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

fn bind(ns: Option<&NetNs>, address: SocketAddr) -> Result<TcpListener> {
    let bind = || TcpListener::bind(address);
    let socket = match ns {
        Some(ns) => ns.run(bind)?,
        None => bind(),
    };
    let socket = socket.trying(|| format!("listen on {address}"))?;
    let waiting = socket.set_nonblocking(true);
    waiting.trying(|| format!("set up the listener of {address}"))?;
    Ok(socket)
}
