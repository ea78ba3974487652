//! An address where connections are taken in, opened and shut by word.

use std::fmt;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;

use super::shared::lock;
use super::wire::{self, Control, Fuse, State};

/// What is done with a connection until its end.
pub(super) type Handler =
    Box<dyn Fn(TcpStream, Arc<Control>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// An address and its connections.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    ns: Option<NetNs>,
    runtime: Handle,
    handler: Handler,
    accepting: Mutex<Option<Accepting>>,
    /// Whether new connections are left alone.
    deaf: watch::Sender<bool>,
    connections: Mutex<Vec<Arc<Control>>>,
}

/// A running loop of accepts, and the word that it has ended.
struct Accepting {
    stop: watch::Sender<bool>,
    stopped: mpsc::Receiver<()>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Gate");
        shown
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Gate {
    /// Listens in a namespace, in the calling thread's if none is said.
    pub(super) fn new(
        ns: Option<&NetNs>,
        address: SocketAddr,
        runtime: &Handle,
        handler: Handler,
    ) -> Result<Self> {
        let ns = ns.map(|ns| NetNs::adopt(ns.name())).transpose()?;
        let socket = bind(ns.as_ref(), address)?;
        let bound = socket
            .local_addr()
            .trying(|| format!("look at the listener of {address}"))?;
        let gate = Self(Arc::new(Inner {
            address: bound,
            ns,
            runtime: runtime.clone(),
            handler,
            accepting: Mutex::default(),
            deaf: watch::Sender::new(false),
            connections: Mutex::default(),
        }));
        gate.accept(socket)?;
        Ok(gate)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Stops listening; connections go on.
    pub(super) fn close(&self) {
        let Some(accepting) = lock(&self.0.accepting).take() else {
            return;
        };
        accepting.stop.send_replace(true);
        // Fails if the runtime is gone, and with it the socket.
        let _ = accepting.stopped.recv();
    }

    /// Listens again at the same address.
    pub(super) fn open(&self) -> Result<()> {
        if lock(&self.0.accepting).is_some() {
            return Ok(());
        }
        self.accept(bind(self.0.ns.as_ref(), self.0.address)?)
    }

    /// Leaves new connections alone until it is no longer deaf.
    pub(super) fn set_deaf(&self, deaf: bool) {
        self.0.deaf.send_replace(deaf);
    }

    pub(super) fn connections(&self) -> usize {
        let mut connections = lock(&self.0.connections);
        connections.retain(|control| control.is_open());
        connections.len()
    }

    /// Tells every connection, and waits until they do it.
    pub(super) fn command(&self, state: State) {
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
                "listen on {address}: its server has ended; start another"
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
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
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
            let mut deaf = inner.deaf.subscribe();
            let talk = async {
                if deaf.wait_for(|deaf| !deaf).await.is_ok() {
                    (inner.handler)(socket, Arc::clone(&control)).await;
                }
            };
            wire::run(talk, &control, state, fuse).await;
        });
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
