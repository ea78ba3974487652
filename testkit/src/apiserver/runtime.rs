//! A thread that drives the server's tasks.

use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::error::{Context, Result};

/// A runtime in a thread of its own. Everything that runs in it ends on drop.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Runtime {
    pub(crate) fn start(name: &str) -> Result<Self> {
        let what = || format!("start the runtime of {name}");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .trying(what)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Ends by word or because the owner is gone.
                let _ = runtime.block_on(stopped);
            })
            .trying(what)?;
        Ok(Self {
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
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
