//! A thread that drives the server's tasks.

use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;

/// A runtime in a thread of its own. Everything that runs in it ends on drop.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    pub(crate) fn start(name: &str) -> Result<Self> {
        Self::start_in(None, name)
    }

    /// The same with a thread in a namespace: sockets that tasks open are there.
    pub(crate) fn start_in(ns: Option<&NetNs>, name: &str) -> Result<Self> {
        let ns = ns.map(|ns| NetNs::adopt(ns.name())).transpose()?;
        let what = || format!("start the runtime of {name}");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .trying(what)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (entered, inside) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if let Some(Err(error)) = ns.as_ref().map(NetNs::enter) {
                    let _ = entered.send(Err(error)); // the starter waits for it
                    return;
                }
                let _ = entered.send(Ok(()));
                // Ends by word or because the owner is gone.
                let _ = runtime.block_on(stopped);
            })
            .trying(what)?;
        let runtime = Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        };
        let gone = |_| Error::Invalid(format!("{}: its thread has ended", what()));
        inside.recv().map_err(gone)??;
        Ok(runtime)
    }

    /// Runs `work` in the runtime's thread and waits for its value.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let (done, value) = mpsc::channel();
        self.handle.spawn(async move {
            let _ = done.send(work.await); // its waiter is there until then
        });
        let gone = |_| Error::Invalid("the runtime's thread has ended; start another".to_owned());
        value.recv().map_err(gone)
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(()); // fails if the thread has ended
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic of a task stays in its task
        }
    }
}
