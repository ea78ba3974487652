//! The socket for `tulle`: answers from the last snapshot that the loop published.
//! Only for names, which are much in a large cluster, it asks the loop.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use admin_api::{
    MAX_REQUEST_BYTES, Refusal, RefusalKind, Request, Response, decode_request, encode_response,
};
use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::run::status::{Names, Snapshot};

/// Clients at the same time; more wait.
const CLIENTS: usize = 32;
/// How long a client may be silent, or take for reading its answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the loop may take for names, shorter than clients wait.
const NAMES_PATIENCE: Duration = Duration::from_millis(1500);

/// Who is waiting for names.
pub type Asking = oneshot::Sender<Names>;

/// What the socket answers from.
#[derive(Clone, Debug)]
pub struct Answers {
    /// The last snapshot.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The loop's ear.
    pub asks: mpsc::Sender<Asking>,
}

impl Answers {
    /// Ends of both for the socket, and the others for the loop.
    pub fn new(snapshot: Snapshot) -> (Self, watch::Sender<Arc<Snapshot>>, mpsc::Receiver<Asking>) {
        let (publish, snapshots) = watch::channel(Arc::new(snapshot));
        let (asks, asked) = mpsc::channel(CLIENTS);
        (Self { snapshots, asks }, publish, asked)
    }

    /// Names as they are now; `None` if the loop is busy with something long.
    async fn names(&self) -> Option<Names> {
        let (asking, answer) = oneshot::channel();
        let answered = async {
            self.asks.send(asking).await.ok()?;
            answer.await.ok()
        };
        timeout(NAMES_PATIENCE, answered).await.ok().flatten()
    }
}

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers on it.
    #[error(
        "another agent answers at {}; stop it first, or give this one its own --run-dir",
        path.display()
    )]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot listen at {}: {source}; check --run-dir", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// The listening socket. Its file goes with it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens at `path`, for root only. What a dead agent left there is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let fail = |source| SocketError::Bind {
            path: path.to_owned(),
            source,
        };
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                return Err(SocketError::Taken {
                    path: path.to_owned(),
                });
            }
            // A file that is no socket refuses too, and stays.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {
                std::fs::remove_file(path).map_err(fail)?;
            }
            // What is wrong with the path, binding says better.
            Err(_) => {}
        }
        // From its first moment on nobody else may connect.
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(path);
        umask(before);
        let server = Self {
            listener: bound.map_err(fail)?,
            path: path.to_owned(),
        };
        server.listener.set_nonblocking(true).map_err(fail)?;
        Ok(server)
    }

    /// Answers in a thread of its own, so that a long answer holds no change up, and loading programs
    /// no client that asks for the status. Names are asked of the loop, for a while. Ends when nobody
    /// publishes any more.
    pub fn start(self, answers: Answers) -> Result<JoinHandle<()>, SocketError> {
        let path = self.path.clone();
        let fail = |source| SocketError::Bind {
            path: path.clone(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(fail)?;
        std::thread::Builder::new()
            .name("socket".to_owned())
            .spawn(move || runtime.block_on(self.serve(answers)))
            .map_err(fail)
    }

    async fn serve(self, answers: Answers) {
        let mut published = answers.snapshots.clone();
        let closed = async { while published.changed().await.is_ok() {} };
        tokio::select! {
            () = closed => {}
            result = self.accept(answers) => if let Err(error) = result {
                tracing::warn!(%error, "nobody answers at {} any more", self.path.display());
            }
        }
    }

    async fn accept(&self, answers: Answers) -> io::Result<()> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        let room = Arc::new(Semaphore::new(CLIENTS));
        loop {
            let permit = Arc::clone(&room).acquire_owned().await;
            let permit = permit.map_err(io::Error::other)?;
            match listener.accept().await {
                Ok((stream, _)) => {
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        if let Err(error) = client(stream, answers).await {
                            tracing::debug!(%error, "a client of the socket went away");
                        }
                        drop(permit);
                    });
                }
                // Too many open files, mostly: it passes.
                Err(error) => {
                    tracing::warn!(%error, "cannot take a client at {}", self.path.display());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "cannot remove {}", self.path.display());
        }
    }
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

async fn client(mut stream: UnixStream, answers: Answers) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let most = MAX_REQUEST_BYTES as u64 + 1;
        let mut limited = (&mut read).take(most);
        timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await??;
        if line.is_empty() {
            return Ok(());
        }
        let whole = line.ends_with(b"\n");
        let response = match decode_request(&String::from_utf8_lossy(&line)) {
            Ok(request) => answer(request, &answers).await,
            Err(refusal) => Response::Refused(refusal),
        };
        let answer = encode_response(&response).map_err(io::Error::other)?;
        timeout(PATIENCE, write.write_all(answer.as_bytes())).await??;
        if !whole {
            // The rest of a request that was too long, or the end.
            return Ok(());
        }
    }
}

/// The answer to a request.
async fn answer(request: Request, answers: &Answers) -> Response {
    let snapshot = Arc::clone(&answers.snapshots.borrow());
    let of_names: fn(Names) -> Response = match request {
        Request::Status => return Response::Status(Box::new(snapshot.status.clone())),
        Request::Warnings => return Response::Warnings(snapshot.status.warnings.to_vec()),
        Request::Services => |names| Response::Services(names.services),
        Request::Overlay => |names| Response::Overlay(names.peers),
        Request::Backends => |names| Response::Backends(names.backends),
    };
    if !snapshot.has_names {
        let waiting = snapshot.status.waiting_for.as_deref();
        return unavailable(format!(
            "the agent has nothing to tell yet: it waits for {}",
            waiting.unwrap_or("its first look at the node")
        ));
    }
    match answers.names().await {
        Some(names) => of_names(names),
        None => unavailable(
            "the agent is busy loading programs or with many changes, and did not tell names in \
             time; ask again"
                .to_owned(),
        ),
    }
}

fn unavailable(message: String) -> Response {
    Response::Refused(Refusal {
        kind: RefusalKind::Unavailable,
        message,
    })
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
