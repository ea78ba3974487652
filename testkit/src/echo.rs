//! Echo over UDP and over a TCP connection that lives long.
//!
//! The UDP server answers `<name> <datagram>`, and `<name> <client address>` to
//! [`WHO_AM_I`]. The TCP server first sends its
//! name and a line feed, then returns what it gets.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::http::{FailureKind, RequestError};
use crate::netns::NetNs;

/// A datagram that asks for the sender's address as the server sees it.
pub const WHO_AM_I: &[u8] = b"who am I?";
/// Longest that stopping a server takes.
const POLL: Duration = Duration::from_millis(50);
/// Longest wait of a [`LongConnection`] for one echo.
const PATIENCE: Duration = Duration::from_secs(10);

/// A UDP and TCP echo server on one port number. Stops on drop.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    listener: TcpListener,
    threads: Vec<JoinHandle<()>>,
}

impl EchoServer {
    /// Serves in a namespace, on all its addresses of both families.
    pub fn start(ns: &NetNs, name: &str, port: u16) -> Result<Self> {
        ns.run(|| Self::start_here(name, port))?
    }

    /// Serves in the calling thread's namespace.
    pub fn start_here(name: &str, port: u16) -> Result<Self> {
        let what = || format!("start the echo server of {name} on port {port}");
        let listener = crate::http::listen(port)?;
        let udp = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
            .trying(what)?;
        udp.set_read_timeout(Some(POLL)).trying(what)?;
        let accepting = listener.try_clone().trying(what)?;
        let mut server = Self {
            stop: Arc::default(),
            listener,
            threads: Vec::new(),
        };
        let (stop, own) = (Arc::clone(&server.stop), name.to_owned());
        let thread = std::thread::Builder::new().spawn(move || serve_udp(&udp, &own, &stop));
        server.threads.push(thread.trying(what)?);
        let (stop, own) = (Arc::clone(&server.stop), name.to_owned());
        let thread = std::thread::Builder::new().spawn(move || serve_tcp(&accepting, &own, &stop));
        server.threads.push(thread.trying(what)?);
        Ok(server)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        crate::http::stop_listening(&self.listener);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // the threads have no panic of their own
        }
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        // Errors are timeouts, and refusals of earlier answers.
        if let Ok((len, client)) = socket.recv_from(&mut buffer) {
            let seen = SocketAddr::new(client.ip().to_canonical(), client.port()).to_string();
            let data = match &buffer[..len] {
                WHO_AM_I => seen.as_bytes(),
                other => other,
            };
            let answer = [name.as_bytes(), b" ", data].concat();
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &Arc<AtomicBool>) {
    let mut clients: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
    while let Some((stream, _)) = crate::http::accept(listener, stop) {
        clients.retain(|(_, thread)| !thread.is_finished());
        let Ok(second) = stream.try_clone() else {
            continue;
        };
        let name = name.to_owned();
        let thread = std::thread::Builder::new().spawn(move || {
            let _ = echo(stream, &name); // ends with its client
        });
        if let Ok(thread) = thread {
            clients.push((second, thread));
        }
    }
    for (stream, thread) in clients {
        let _ = stream.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

fn echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{name}\n").as_bytes())?;
    let mut buffer = vec![0; 65_536];
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..len])?;
    }
}

/// Sends one datagram from a namespace and returns the name of the pod that
/// answered with the same data.
pub fn udp_ask(
    ns: &NetNs,
    server: SocketAddr,
    data: &[u8],
    limit: Duration,
) -> std::result::Result<String, RequestError> {
    let local = |e: Error| RequestError {
        kind: FailureKind::Local,
        text: e.to_string(),
    };
    let socket = ns.run(|| udp_socket(server)).map_err(local)??;
    udp_exchange(&socket, data, limit)
}

/// A connected UDP socket of a namespace, for several exchanges of one flow.
pub fn udp_connect(ns: &NetNs, server: SocketAddr) -> Result<UdpSocket> {
    ns.run(|| udp_socket(server))?
        .trying(|| format!("connect UDP to {server}"))
}

fn udp_socket(server: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match server {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
    };
    socket.connect(server)?; // so that ICMP errors come back
    Ok(socket)
}

/// One exchange on a connected socket; answers to earlier data are passed over.
pub fn udp_exchange(
    socket: &UdpSocket,
    data: &[u8],
    limit: Duration,
) -> std::result::Result<String, RequestError> {
    let deadline = Instant::now() + limit;
    socket.send(data)?;
    let mut buffer = vec![0; 65_536];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        socket.set_read_timeout(Some(left))?;
        let len = socket.recv(&mut buffer)?;
        let space = buffer[..len].iter().position(|byte| *byte == b' ');
        if let Some(at) = space.filter(|at| buffer[at + 1..len] == *data) {
            return Ok(String::from_utf8_lossy(&buffer[..at]).into_owned());
        }
    }
}

/// Asks on a connected socket, which has asked nothing else, who answers, and
/// which client address it sees.
pub fn udp_who(
    socket: &UdpSocket,
    limit: Duration,
) -> std::result::Result<(String, SocketAddr), RequestError> {
    socket.send(WHO_AM_I)?;
    socket.set_read_timeout(Some(limit))?;
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer)?;
    crate::http::seen(&buffer[..len])
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData).into())
}

/// A TCP connection that sends a counter at an interval and checks its echo,
/// until it is stopped.
#[derive(Debug)]
pub struct LongConnection {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<LongReport>>,
    thread: Option<JoinHandle<()>>,
}

/// What a [`LongConnection`] saw.
#[derive(Clone, Default, Debug)]
pub struct LongReport {
    /// Who answered.
    pub pod: String,
    /// Counters that came back.
    pub echoes: u64,
    /// Longest time from a counter to its echo.
    pub longest: Duration,
    /// Echoes that took longer than 200 ms, the kernel's shortest
    /// retransmission timeout: when, since the beginning, and how long. A lost
    /// packet shows here.
    pub gaps: Vec<(Duration, Duration)>,
    /// Why it broke, if it did.
    pub broken: Option<String>,
}

impl LongConnection {
    /// Connects from a namespace to an [`EchoServer`] and begins. Returns when
    /// the first echo has come.
    pub fn start(ns: &NetNs, server: SocketAddr, interval: Duration) -> Result<Self> {
        let what = || format!("open a long connection to {server}");
        let stream = ns
            .run(|| TcpStream::connect_timeout(&server, PATIENCE))?
            .trying(what)?;
        let mut line = Line { stream, counter: 0 };
        let pod = line.open().trying(what)?;
        let mut report = LongReport {
            pod,
            ..LongReport::default()
        };
        report.longest = line.exchange().trying(what)?;
        report.echoes = 1;
        let mut connection = Self {
            stop: Arc::default(),
            report: Arc::new(Mutex::new(report)),
            thread: None,
        };
        let (stop, report) = (Arc::clone(&connection.stop), Arc::clone(&connection.report));
        let thread = std::thread::Builder::new()
            .name("long-connection".to_owned())
            .spawn(move || line.keep_on(interval, &stop, &report))
            .trying(what)?;
        connection.thread = Some(thread);
        Ok(connection)
    }

    /// What it has seen so far.
    pub fn report(&self) -> LongReport {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Closes it and reports.
    pub fn finish(mut self) -> LongReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // the thread has no panic of its own
        }
    }
}

impl Drop for LongConnection {
    fn drop(&mut self) {
        self.end();
    }
}

struct Line {
    stream: TcpStream,
    counter: u64,
}

impl Line {
    fn open(&mut self) -> io::Result<String> {
        self.stream.set_nodelay(true)?;
        self.stream.set_read_timeout(Some(PATIENCE))?;
        self.stream.set_write_timeout(Some(PATIENCE))?;
        let mut name = Vec::new();
        loop {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            if byte == *b"\n" {
                return Ok(String::from_utf8_lossy(&name).into_owned());
            }
            name.push(byte[0]);
        }
    }

    fn exchange(&mut self) -> io::Result<Duration> {
        self.counter += 1;
        let sent = self.counter.to_be_bytes();
        let began = Instant::now();
        self.stream.write_all(&sent)?;
        let mut back = [0; 8];
        self.stream.read_exact(&mut back)?;
        if back != sent {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "another counter came back",
            ));
        }
        Ok(began.elapsed())
    }

    fn keep_on(mut self, interval: Duration, stop: &AtomicBool, report: &Mutex<LongReport>) {
        const GAP: Duration = Duration::from_millis(200);
        let began = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            let at = began.elapsed();
            let result = self.exchange();
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            match result {
                Ok(took) => {
                    report.echoes += 1;
                    report.longest = report.longest.max(took);
                    if took > GAP {
                        report.gaps.push((at, took));
                    }
                }
                Err(e) => {
                    report.broken = Some(format!("at {at:?}: {e}"));
                    return;
                }
            }
            drop(report);
            std::thread::sleep(interval);
        }
    }
}
