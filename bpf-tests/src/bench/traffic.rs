//! Loads: request and response of one octet, on one connection or on a new one
//! each time, and a stream. Blocking sockets, one client, one server, each tied
//! to a CPU.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::unistd::Pid;
use testkit::NetNs;

/// Port of the TCP server that answers octet by octet.
pub const TCP_ECHO: u16 = 7000;
/// Port of the UDP server that does.
pub const UDP_ECHO: u16 = 7001;
/// Port of the TCP server that takes what comes.
pub const TCP_SINK: u16 = 7002;

/// How long a server waits for its client, and a client for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Exchanges before the clock starts.
const WARM_UP: u32 = 50;
/// Connections or sockets that are opened before the clock starts.
const WARM_UP_OPENINGS: u32 = 5;
/// Most exchanges of one measurement.
const MOST: u64 = 1_000_000;
/// Octets of one write of a stream.
const CHUNK: usize = 65_536;

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One octet there and back over one TCP connection.
    TcpExchange,
    /// One octet there and back by UDP.
    UdpExchange,
    /// As much as goes over one TCP connection.
    TcpStream,
    /// A connection for each octet there and back; the server closes it first.
    TcpConnect,
    /// A socket for each octet there and back by UDP.
    UdpOpen,
}

/// CPUs of client and server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cpus {
    client: usize,
    server: usize,
}

/// A load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// For people.
    pub name: &'static str,
    /// Unit of its rate.
    pub unit: &'static str,
    /// What is sent.
    pub kind: Kind,
    /// By whom.
    pub cpus: Cpus,
}

/// Between whom a load runs.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// Where the client is.
    pub client: &'a NetNs,
    /// Where the server is.
    pub server: &'a NetNs,
    /// What the client asks.
    pub address: SocketAddr,
}

/// When a measurement ends, whichever comes first.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// After this time.
    pub time: Duration,
    /// After so many exchanges.
    pub count: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// In the load's unit.
    pub rate: f64,
    /// Packets that the client cannot have sent fewer of.
    pub packets: u64,
    /// Of a load that opens connections or sockets: microseconds until each first
    /// packet was answered.
    pub first: Vec<f64>,
}

impl Cpus {
    /// The first two that the process may run on; one and the same on a
    /// machine with one.
    pub fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("ask for the process's CPUs")?;
        let mut usable = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let client = usable.next().context("the process may run on no CPU")?;
        Ok(Self {
            client,
            server: usable.next().unwrap_or(client),
        })
    }

    /// Both on one.
    #[must_use]
    pub fn together(self) -> Self {
        Self {
            client: self.server,
            server: self.server,
        }
    }
}

impl Limit {
    /// After this time.
    pub fn time(time: Duration) -> Self {
        Self { time, count: MOST }
    }

    fn holds(self, start: Instant, count: u64) -> bool {
        count < self.count && start.elapsed() < self.time
    }
}

impl Kind {
    /// Where its server listens.
    pub fn port(self) -> u16 {
        match self {
            Self::TcpExchange | Self::TcpConnect => TCP_ECHO,
            Self::UdpExchange | Self::UdpOpen => UDP_ECHO,
            Self::TcpStream => TCP_SINK,
        }
    }
}

/// Runs a load once.
pub fn run(ends: Ends<'_>, load: Load, limit: Limit) -> Result<Measured> {
    let (ready, listens) = mpsc::channel();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| ends.server.run(|| serve(load, &ready))?);
        // If the server fails before, its error says more than the channel's.
        let measured = match listens.recv_timeout(PATIENCE) {
            Ok(()) => ends.client.run(|| ask(load, ends.address, limit))?,
            Err(_) => Err(anyhow!("no server")),
        };
        let served = serving
            .join()
            .map_err(|_| anyhow!("the server's thread panicked"))?;
        match (measured, served) {
            // Who has no client any more gives up only later.
            (Err(client), Err(server)) => {
                Err(client.context(format!("client (and the server: {server:#})")))
            }
            (measured, served) => {
                served.context("server")?;
                measured.context("client")
            }
        }
    })
}

fn tie(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &one).with_context(|| format!("tie a thread to CPU {cpu}"))
}

fn serve(load: Load, ready: &mpsc::Sender<()>) -> Result<()> {
    tie(load.cpus.server)?;
    let here = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), load.kind.port());
    if matches!(load.kind, Kind::UdpExchange | Kind::UdpOpen) {
        let socket = UdpSocket::bind(here).context("bind")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        ready.send(())?;
        return echo_datagrams(&socket);
    }
    let listener = TcpListener::bind(here).context("bind")?;
    ready.send(())?;
    if load.kind == Kind::TcpConnect {
        return answer_and_close(&listener);
    }
    let mut stream = accept(&listener)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    if load.kind == Kind::TcpExchange {
        let mut octet = [0];
        while stream.read(&mut octet)? == 1 {
            stream.write_all(&octet)?;
        }
        return Ok(());
    }
    let mut buffer = vec![0; CHUNK];
    let mut total = 0_u64;
    loop {
        let octets = stream.read(&mut buffer)?;
        if octets == 0 {
            break;
        }
        total += octets as u64;
    }
    Ok(stream.write_all(&total.to_be_bytes())?)
}

/// Waits for the one client, but not for ever.
fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                ensure!(Instant::now() < deadline, "no client came");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e).context("accept"),
        }
    }
}

/// Answers one octet of each connection and closes it, until a connection
/// sends none.
fn answer_and_close(listener: &TcpListener) -> Result<()> {
    let mut stream = accept(listener)?;
    listener.set_nonblocking(false)?;
    let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
    setsockopt(listener, ReceiveTimeout, &patience)?;
    loop {
        let mut octet = [0];
        if stream.read(&mut octet)? == 0 {
            return Ok(());
        }
        stream.write_all(&octet)?;
        drop(stream);
        stream = listener.accept().context("accept")?.0;
    }
}

/// Answers datagrams of one octet, until one of two comes.
fn echo_datagrams(socket: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 2];
    loop {
        let (octets, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..octets], from)?;
        if octets == 2 {
            return Ok(());
        }
    }
}

fn ask(load: Load, address: SocketAddr, limit: Limit) -> Result<Measured> {
    tie(load.cpus.client)?;
    match load.kind {
        Kind::TcpExchange => {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("connect")?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            exchanges(limit, || {
                stream.write_all(&[1])?;
                stream.read_exact(&mut [0])
            })
        }
        Kind::UdpExchange => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("bind")?;
            socket.connect(address).context("connect")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let exchange = |octets: &[u8]| {
                socket.send(octets)?;
                socket.recv(&mut [0; 2]).map(drop)
            };
            let measured = exchanges(limit, || exchange(&[1]));
            exchange(&[0, 0])?;
            measured
        }
        Kind::TcpStream => stream_out(address, limit.time),
        Kind::TcpConnect => {
            let SocketAddr::V4(to) = address else {
                bail!("{address}: this load is for IPv4 only");
            };
            let measured = openings(limit, || {
                let (mut stream, first) = connect(to)?;
                stream.write_all(&[1])?;
                stream.read_exact(&mut [0])?;
                // The server closes: who closes last keeps no port.
                let more = stream.read(&mut [0])?;
                debug_assert_eq!(more, 0, "the server sent one octet");
                Ok(first)
            })?;
            // A connection without an octet ends the server.
            drop(TcpStream::connect_timeout(&address, PATIENCE).context("last connection")?);
            Ok(measured)
        }
        Kind::UdpOpen => {
            let exchange = |octets: &[u8]| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                let start = Instant::now();
                socket.connect(address)?;
                socket.send(octets)?;
                socket.recv(&mut [0; 2])?;
                Ok(start.elapsed())
            };
            let measured = openings(limit, || exchange(&[1]))?;
            exchange(&[0, 0]).context("last datagram")?;
            Ok(measured)
        }
    }
}

/// A connection, and how long the other side's first answer took.
fn connect(to: SocketAddrV4) -> std::io::Result<(TcpStream, Duration)> {
    // The standard library has a limit only together with more system calls.
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
    setsockopt(&socket, SendTimeout, &patience)?;
    setsockopt(&socket, ReceiveTimeout, &patience)?;
    let start = Instant::now();
    socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok((TcpStream::from(socket), start.elapsed()))
}

/// Opens again and again; the first few are not counted.
fn openings(limit: Limit, mut open: impl FnMut() -> std::io::Result<Duration>) -> Result<Measured> {
    for _ in 0..WARM_UP_OPENINGS {
        open().context("first openings")?;
    }
    let mut first = Vec::new();
    let start = Instant::now();
    while limit.holds(start, first.len() as u64) {
        first.push(open().context("opening")?.as_secs_f64() * 1e6);
    }
    Ok(Measured {
        rate: first.len() as f64 / start.elapsed().as_secs_f64(),
        packets: first.len() as u64,
        first,
    })
}

/// Exchanges until the limit, each after the answer to the one before.
fn exchanges(limit: Limit, mut exchange: impl FnMut() -> std::io::Result<()>) -> Result<Measured> {
    for _ in 0..WARM_UP {
        exchange().context("first exchanges")?;
    }
    let start = Instant::now();
    let mut count = 0;
    while limit.holds(start, count) {
        exchange().context("exchange")?;
        count += 1;
    }
    Ok(Measured {
        rate: count as f64 / start.elapsed().as_secs_f64(),
        packets: count,
        first: Vec::new(),
    })
}

fn stream_out(address: SocketAddr, limit: Duration) -> Result<Measured> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let chunk = vec![0x55; CHUNK];
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < limit {
        stream.write_all(&chunk).context("write")?;
        sent += chunk.len() as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut total = [0; 8];
    stream
        .read_exact(&mut total)
        .context("wait for the count")?;
    let elapsed = start.elapsed();
    ensure!(
        u64::from_be_bytes(total) == sent,
        "the server took {} octets of {sent}",
        u64::from_be_bytes(total)
    );
    Ok(Measured {
        rate: sent as f64 * 8.0 / elapsed.as_secs_f64() / 1e9,
        // Each packet of segmentation offload carries up to a chunk.
        packets: sent / CHUNK as u64,
        first: Vec::new(),
    })
}
