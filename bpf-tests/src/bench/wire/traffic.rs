//! Loads: request and response of one octet, and a stream. Blocking sockets,
//! one client, one server, each tied to a CPU.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::hosts::{Side, Target};

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
    cpus: Cpus,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// In the load's unit.
    pub rate: f64,
    /// Packets that the client cannot have sent fewer of.
    pub packets: u64,
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

    fn together(self) -> Self {
        Self {
            client: self.server,
            server: self.server,
        }
    }
}

impl Load {
    /// Every load.
    pub fn all(cpus: Cpus) -> Vec<Self> {
        let load = |name, unit, kind, cpus| Self {
            name,
            unit,
            kind,
            cpus,
        };
        let (exchanges, one) = ("exchanges/s", cpus.together());
        vec![
            load(
                "TCP request/response, one CPU",
                exchanges,
                Kind::TcpExchange,
                one,
            ),
            load(
                "UDP request/response, one CPU",
                exchanges,
                Kind::UdpExchange,
                one,
            ),
            load(
                "TCP request/response, two CPUs",
                exchanges,
                Kind::TcpExchange,
                cpus,
            ),
            load(
                "UDP request/response, two CPUs",
                exchanges,
                Kind::UdpExchange,
                cpus,
            ),
            load("TCP stream", "Gbit/s", Kind::TcpStream, cpus),
        ]
    }
}

/// Runs a load between the two pods of a side.
pub fn run(side: &Side, target: Target, load: Load, limit: Duration) -> Result<Measured> {
    let port = match load.kind {
        Kind::TcpExchange => TCP_ECHO,
        Kind::UdpExchange => UDP_ECHO,
        Kind::TcpStream => TCP_SINK,
    };
    let address = SocketAddr::new(side.address(target)?, port);
    let (client, server) = (side.client()?, side.server()?);
    let (ready, listens) = mpsc::channel();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.run(|| serve(load, port, &ready))?);
        // If the server fails before, its error says more than the channel's.
        let measured = match listens.recv_timeout(PATIENCE) {
            Ok(()) => client.run(|| ask(load, address, limit))?,
            Err(_) => Err(anyhow!("no server")),
        };
        let served = serving
            .join()
            .map_err(|_| anyhow!("the server's thread panicked"))?;
        served.context("server")?;
        measured.context("client")
    })
}

fn tie(cpu: usize) -> Result<()> {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &one).with_context(|| format!("tie a thread to CPU {cpu}"))
}

fn serve(load: Load, port: u16, ready: &mpsc::Sender<()>) -> Result<()> {
    tie(load.cpus.server)?;
    let here = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    if load.kind == Kind::UdpExchange {
        let socket = UdpSocket::bind(here).context("bind")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        ready.send(())?;
        return echo_datagrams(&socket);
    }
    let listener = TcpListener::bind(here).context("bind")?;
    ready.send(())?;
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

fn ask(load: Load, address: SocketAddr, limit: Duration) -> Result<Measured> {
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
        Kind::TcpStream => stream_out(address, limit),
    }
}

/// Exchanges until the limit, each after the answer to the one before.
fn exchanges(
    limit: Duration,
    mut exchange: impl FnMut() -> std::io::Result<()>,
) -> Result<Measured> {
    for _ in 0..WARM_UP {
        exchange().context("first exchanges")?;
    }
    let start = Instant::now();
    let mut count = 0;
    while count < MOST && start.elapsed() < limit {
        exchange().context("exchange")?;
        count += 1;
    }
    Ok(Measured {
        rate: count as f64 / start.elapsed().as_secs_f64(),
        packets: count,
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
    })
}
