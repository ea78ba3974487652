//! A blocking client over a Unix stream.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::types::{BackendServices, Peer, Service, Status, Warning};
use crate::wire::{
    MAX_RESPONSE_BYTES, Refusal, Request, Response, WireError, decode_response, encode_request,
};

/// How long a client waits for an answer unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket, or nobody listens at it.
    #[error("no agent listens at {path}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket may not be opened.
    #[error("may not open {path}: run as root")]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// No whole answer in time.
    #[error("the agent at {path} did not answer within {} ms", .timeout.as_millis())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long it was waited.
        timeout: Duration,
    },
    /// The agent closed the connection before the end of its answer.
    #[error("the agent at {path} closed the connection without an answer")]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// An answer beyond [`MAX_RESPONSE_BYTES`].
    #[error("the agent's answer is longer than {MAX_RESPONSE_BYTES} bytes")]
    TooLong,
    /// Another failure of the socket.
    #[error("talking to the agent at {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// A line that is no answer.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The agent refused.
    #[error("the agent refused: {0}")]
    Refused(#[from] Refusal),
    /// An answer to something else.
    #[error("the agent answered something else than {0:?}")]
    Mismatch(Request),
}

/// A connection to the agent; one request at a time.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Connects to the socket at `path`; every request must be answered within
    /// `timeout`.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotRunning`], [`ClientError::Permission`] or [`ClientError::Io`].
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let owned = || path.to_path_buf();
        let stream = UnixStream::connect(path).map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: owned() }
            }
            ErrorKind::PermissionDenied => ClientError::Permission { path: owned() },
            _ => ClientError::Io {
                path: owned(),
                source,
            },
        })?;
        Ok(Self {
            stream: BufReader::new(stream),
            path: owned(),
            timeout,
        })
    }

    /// Sends a request and reads its answer. A refusal is an answer here.
    ///
    /// # Errors
    ///
    /// Everything but [`ClientError::Refused`] and [`ClientError::Mismatch`].
    pub fn ask(&mut self, request: Request) -> Result<Response, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let line = encode_request(request)?;
        self.arm(deadline)?;
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        sent.map_err(|e| self.failure(e))?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") {
            self.arm(deadline)?;
            let got = self.read_some(&mut answer).map_err(|e| self.failure(e))?;
            if got == 0 {
                return Err(ClientError::Closed {
                    path: self.path.clone(),
                });
            }
            if answer.len() > MAX_RESPONSE_BYTES {
                return Err(ClientError::TooLong);
            }
        }
        let text = String::from_utf8(answer)
            .map_err(|e| self.failure(io::Error::new(ErrorKind::InvalidData, e)))?;
        Ok(decode_response(&text)?)
    }

    /// Asks for [`Request::Status`].
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.answer(Request::Status)? {
            Response::Status(status) => Ok(*status),
            _ => Err(ClientError::Mismatch(Request::Status)),
        }
    }

    /// Asks for [`Request::Services`].
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn services(&mut self) -> Result<Vec<Service>, ClientError> {
        match self.answer(Request::Services)? {
            Response::Services(services) => Ok(services),
            _ => Err(ClientError::Mismatch(Request::Services)),
        }
    }

    /// Asks for [`Request::Overlay`].
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn overlay(&mut self) -> Result<Vec<Peer>, ClientError> {
        match self.answer(Request::Overlay)? {
            Response::Overlay(peers) => Ok(peers),
            _ => Err(ClientError::Mismatch(Request::Overlay)),
        }
    }

    /// Asks for [`Request::Backends`].
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn backends(&mut self) -> Result<Vec<BackendServices>, ClientError> {
        match self.answer(Request::Backends)? {
            Response::Backends(backends) => Ok(backends),
            _ => Err(ClientError::Mismatch(Request::Backends)),
        }
    }

    /// Asks for [`Request::Warnings`].
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn warnings(&mut self) -> Result<Vec<Warning>, ClientError> {
        match self.answer(Request::Warnings)? {
            Response::Warnings(warnings) => Ok(warnings),
            _ => Err(ClientError::Mismatch(Request::Warnings)),
        }
    }

    fn answer(&mut self, request: Request) -> Result<Response, ClientError> {
        match self.ask(request)? {
            Response::Refused(refusal) => Err(refusal.into()),
            response => Ok(response),
        }
    }

    /// One read at most, so that the deadline is looked at between reads.
    fn read_some(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let chunk = match self.stream.fill_buf() {
            Err(e) if e.kind() == ErrorKind::Interrupted => return self.read_some(into),
            other => other?,
        };
        let line = chunk
            .iter()
            .position(|&b| b == b'\n')
            .map_or(chunk.len(), |end| end + 1);
        let got = chunk.take(line as u64).read_to_end(into)?;
        self.stream.consume(got);
        Ok(got)
    }

    fn arm(&self, deadline: Instant) -> Result<(), ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.failure(ErrorKind::TimedOut.into()));
        }
        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(Some(left))
            .and_then(|()| stream.set_write_timeout(Some(left)))
            .map_err(|e| self.failure(e))
    }

    fn failure(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::Timeout {
                path,
                timeout: self.timeout,
            },
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ClientError::Closed { path },
            _ => ClientError::Io { path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;
    use crate::wire::{RefusalKind, decode_request, encode_response};

    /// Answers each connection by `answer`, until the test's process ends.
    fn agent(answer: fn(&str, &mut UnixStream)) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(crate::SOCKET_NAME);
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while lines.read_line(&mut line).unwrap() > 0 {
                    answer(&line, &mut stream);
                    line.clear();
                }
            }
        });
        (dir, path)
    }

    fn honest(line: &str, stream: &mut UnixStream) {
        let response = match decode_request(line) {
            Ok(Request::Status) => Response::Status(Box::new(Status {
                pid: 42,
                ..Status::default()
            })),
            Ok(Request::Warnings) => Response::Warnings(Vec::new()),
            Ok(_) => Response::Refused(Refusal {
                kind: RefusalKind::Unavailable,
                message: "not synced yet".into(),
            }),
            Err(refusal) => Response::Refused(refusal),
        };
        stream
            .write_all(encode_response(&response).unwrap().as_bytes())
            .unwrap();
    }

    #[test]
    fn one_connection_answers_many_requests() {
        let (_dir, path) = agent(honest);
        let mut client = Client::connect(&path, DEFAULT_TIMEOUT).unwrap();
        assert_eq!(client.status().unwrap().pid, 42);
        assert!(client.warnings().unwrap().is_empty());
        let refused = client.services().unwrap_err();
        assert_eq!(refused.to_string(), "the agent refused: not synced yet");
        assert_eq!(client.status().unwrap().pid, 42);
    }

    #[test]
    fn a_missing_or_dead_socket_is_no_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let error = Client::connect(&path, DEFAULT_TIMEOUT).unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
        drop(UnixListener::bind(&path).unwrap());
        let error = Client::connect(&path, DEFAULT_TIMEOUT).unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
    }

    #[test]
    fn a_silent_agent_times_out_though_it_trickles() {
        let (_dir, path) = agent(|_, stream| {
            // Never a whole line; stops when the client has gone.
            while stream.write_all(b" ").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let mut client = Client::connect(&path, Duration::from_millis(100)).unwrap();
        let error = client.status().unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    }

    #[test]
    fn an_early_end_and_a_wrong_answer_are_told_apart() {
        let (_dir, path) = agent(|_, stream| {
            stream.write_all(b"{\"version\":1").unwrap();
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        });
        let error = Client::connect(&path, DEFAULT_TIMEOUT)
            .unwrap()
            .status()
            .unwrap_err();
        assert!(matches!(error, ClientError::Closed { .. }), "{error}");
        let (_dir, path) = agent(|_, stream| {
            let line = encode_response(&Response::Warnings(Vec::new())).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
        });
        let error = Client::connect(&path, DEFAULT_TIMEOUT)
            .unwrap()
            .status()
            .unwrap_err();
        assert!(
            matches!(error, ClientError::Mismatch(Request::Status)),
            "{error}"
        );
    }
}
