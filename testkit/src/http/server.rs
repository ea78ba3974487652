//! The server: a thread for each connection, bounded.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Context, Result};
use crate::netns::NetNs;

const HEAD_MAX: u64 = 16 << 10;
const BODY_MAX: u64 = 1 << 30;
const CONNECTIONS_MAX: usize = 1024;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(30);

/// A running server. Stops, with its connections, on drop.
///
/// `GET /` answers `<name> <client address>`, with the name also in the header
/// `X-Pod`; `GET /bytes/N` answers N octets; `POST` answers how many octets
/// came.
#[derive(Debug)]
pub struct HttpServer {
    shared: Arc<Shared>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    stop: AtomicBool,
    requests: AtomicU64,
    connections: Mutex<HashMap<u64, TcpStream>>,
}

impl HttpServer {
    /// Serves in a namespace, on all its addresses of both families.
    pub fn start(ns: &NetNs, name: &str, port: u16) -> Result<Self> {
        ns.run(|| Self::start_here(name, port))?
    }

    /// Serves in the calling thread's namespace.
    pub fn start_here(name: &str, port: u16) -> Result<Self> {
        let listener = listen(port)?;
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            stop: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let what = || format!("start the HTTP server of {name}");
        let accepting = listener.try_clone().trying(what)?;
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("http-{name}"))
            .spawn(move || for_thread.accept(&accepting))
            .trying(what)?;
        Ok(Self {
            shared,
            listener,
            thread: Some(thread),
        })
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        stop_listening(&self.listener);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // the thread has no panic of its own
        }
    }
}

/// A listening socket for both families, or IPv4 where the kernel has no IPv6.
pub(crate) fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|e| match e.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            }
            _ => Err(e),
        })
        .trying(|| format!("listen on TCP port {port}"))
}

/// Wakes a thread that waits in `accept`, which then fails.
pub(crate) fn stop_listening(listener: &TcpListener) {
    // Cannot fail for a socket that is ours and listens.
    let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let mut threads: Vec<JoinHandle<()>> = Vec::new();
        let mut next = 0;
        while let Some((stream, client)) = accept(listener, &self.stop) {
            threads.retain(|thread| !thread.is_finished());
            let Ok(second) = stream.try_clone() else {
                continue;
            };
            let mut open = self.open();
            if open.len() >= CONNECTIONS_MAX {
                continue; // closes it: the client sees that and counts it
            }
            next += 1;
            let id = next;
            open.insert(id, second);
            drop(open);
            let shared = Arc::clone(self);
            let spawned = std::thread::Builder::new().spawn(move || {
                // A client that goes away is its own affair.
                let _ = shared.serve(&stream, client);
                shared.open().remove(&id);
            });
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(_) => drop(self.open().remove(&id)),
            }
        }
        for stream in self.open().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for thread in threads {
            let _ = thread.join();
        }
    }

    fn serve(&self, stream: &TcpStream, client: SocketAddr) -> io::Result<()> {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(IDLE))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while !self.stop.load(Ordering::Relaxed) {
            let request = match read_request(&mut reader) {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    return self.answer(stream, "400 Bad Request", b"bad request\n", false, true);
                }
                Err(e) => return Err(e),
            };
            let taken = io::copy(&mut (&mut reader).take(request.body), &mut io::sink())?;
            self.requests.fetch_add(1, Ordering::Relaxed);
            let (status, body) = self.respond(&request, client, taken);
            self.answer(
                stream,
                status,
                &body,
                request.method == "HEAD",
                request.close,
            )?;
            if request.close {
                return stream.shutdown(Shutdown::Write);
            }
        }
        Ok(())
    }

    fn respond(
        &self,
        request: &Request,
        client: SocketAddr,
        taken: u64,
    ) -> (&'static str, Vec<u8>) {
        let size = request
            .path
            .strip_prefix("/bytes/")
            .and_then(|n| n.parse::<u32>().ok());
        match (request.method.as_str(), request.path.as_str(), size) {
            ("GET" | "HEAD", "/", _) => {
                let client = SocketAddr::new(plain(client.ip()), client.port());
                ("200 OK", format!("{} {client}\n", self.name).into_bytes())
            }
            ("GET" | "HEAD", _, Some(size)) => ("200 OK", vec![b'.'; size as usize]),
            ("POST", _, _) => ("200 OK", format!("{taken}\n").into_bytes()),
            ("GET" | "HEAD", ..) => ("404 Not Found", b"try / or /bytes/N\n".to_vec()),
            _ => ("405 Method Not Allowed", b"GET, HEAD or POST\n".to_vec()),
        }
    }

    fn answer(
        &self,
        mut stream: &TcpStream,
        status: &str,
        body: &[u8],
        head: bool,
        close: bool,
    ) -> io::Result<()> {
        let connection = if close { "close" } else { "keep-alive" };
        let mut out = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\nX-Pod: {}\r\n\r\n",
            body.len(),
            self.name
        )
        .into_bytes();
        if !head {
            out.extend(body);
        }
        stream.write_all(&out)
    }
}

/// The next connection, until `stop`.
pub(crate) fn accept(listener: &TcpListener, stop: &AtomicBool) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return None;
        }
        match accepted {
            Ok(connection) => return Some(connection),
            // Out of descriptors, or the client is gone already.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// IPv4 clients of a dual-stack socket look like IPv6.
pub(crate) fn plain(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

struct Request {
    method: String,
    path: String,
    body: u64,
    close: bool,
}

/// `None` at the end of the connection; `InvalidData` if it is no request.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = reader.take(HEAD_MAX);
    let mut line = String::new();
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(method), Some(path), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        body: 0,
        close: match version {
            "HTTP/1.1" => false,
            "HTTP/1.0" => true,
            _ => return Err(bad()),
        },
    };
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Err(bad());
        }
        let field = line.trim_end();
        if field.is_empty() {
            return Ok(Some(request));
        }
        let (name, value) = field.split_once(':').ok_or_else(bad)?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                request.body = value
                    .parse()
                    .ok()
                    .filter(|n| *n <= BODY_MAX)
                    .ok_or_else(bad)?;
            }
            "transfer-encoding" => return Err(bad()),
            "connection" if value.eq_ignore_ascii_case("close") => request.close = true,
            "connection" if value.eq_ignore_ascii_case("keep-alive") => request.close = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<Option<Request>> {
        read_request(&mut text.as_bytes())
    }

    #[test]
    fn requests_are_read() {
        let request = read("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("POST", "/x")
        );
        assert_eq!((request.body, request.close), (7, false));
        let request = read("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n")
            .unwrap()
            .unwrap();
        assert!(request.close);
        assert!(read("").unwrap().is_none());
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "GET /\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: cut",
        ] {
            let error = read(text).err().expect(text);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text:?}");
        }
    }
}
