//! One request on its own connection.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::netns::NetNs;

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// The client's own end of the connection.
    pub local: SocketAddr,
    /// Who answered (`X-Pod`), or empty.
    pub pod: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// Who answered `/`, and which client address it saw.
    pub fn seen(&self) -> Option<(String, SocketAddr)> {
        seen(&self.body)
    }
}

/// Reads `<name> <client address>`.
pub(crate) fn seen(answer: &[u8]) -> Option<(String, SocketAddr)> {
    let text = std::str::from_utf8(answer).ok()?;
    let (pod, client) = text.trim_end().split_once(' ')?;
    Some((pod.to_owned(), client.parse().ok()?))
}

/// Why a request failed, by what an operator would see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FailureKind {
    /// RST or ICMP port unreachable while connecting.
    Refused,
    /// ICMP network or host unreachable, or no route.
    Unreachable,
    /// The connection was reset after it was open.
    Reset,
    /// No answer in time.
    Timeout,
    /// The connection ended, or the answer is no HTTP.
    Protocol,
    /// An error of this machine.
    Local,
}

/// A request that failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestError {
    /// What kind of failure.
    pub kind: FailureKind,
    /// In words.
    pub text: String,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

impl std::error::Error for RequestError {}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> Self {
        Self {
            kind: FailureKind::of(&error),
            text: error.to_string(),
        }
    }
}

impl FailureKind {
    /// The kind of an I/O error.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Timeout,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Protocol,
            _ => Self::Local,
        }
    }
}

/// `GET path` from a namespace on a new connection; `limit` is for all of it.
pub fn get(
    ns: &NetNs,
    server: SocketAddr,
    path: &str,
    limit: Duration,
) -> Result<Response, RequestError> {
    let local = |e: crate::Error| RequestError {
        kind: FailureKind::Local,
        text: e.to_string(),
    };
    ns.run(|| get_here(server, path, limit)).map_err(local)?
}

/// The same from the calling thread's namespace.
pub fn get_here(server: SocketAddr, path: &str, limit: Duration) -> Result<Response, RequestError> {
    let deadline = Instant::now() + limit;
    let stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_nodelay(true)?;
    let mut timed = Timed {
        stream: &stream,
        deadline,
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    timed.write_all(request.as_bytes())?;
    let local = stream.local_addr()?;
    Ok(read_response(&mut BufReader::new(timed), local)?)
}

/// A stream whose every call ends at one deadline.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn read_response(reader: &mut impl BufRead, local: SocketAddr) -> io::Result<Response> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    let mut next_line = |reader: &mut dyn BufRead| {
        line.clear();
        match reader.read_line(&mut line)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let status_line = next_line(reader)?;
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| bad("no HTTP/1.1 status line"))?;
    let (mut pod, mut length) = (String::new(), None);
    loop {
        let field = next_line(reader)?;
        if field.is_empty() {
            break;
        }
        let (name, value) = field
            .split_once(':')
            .ok_or_else(|| bad("header field without colon"))?;
        match name.to_ascii_lowercase().as_str() {
            "x-pod" => value.trim().clone_into(&mut pod),
            "content-length" => length = value.trim().parse().ok(),
            _ => {}
        }
    }
    let length: usize = length.ok_or_else(|| bad("no content length"))?;
    let mut body = Vec::new();
    reader.take(length as u64).read_to_end(&mut body)?;
    if body.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Response {
        status,
        local,
        pod,
        body,
    })
}
