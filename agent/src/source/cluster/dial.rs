//! Connections to whichever API server answers: known addresses are tried one after the other,
//! the next one while the one before is still silent, and the first that completes its handshake
//! is taken. A name is as many addresses as it has.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::addresses::{Address, Addresses};

/// Until the next address is tried besides.
const NEXT: Duration = Duration::from_millis(300);
/// For one address, handshake and all.
const ATTEMPT: Duration = Duration::from_secs(10);
/// The name that the certificate of every API server has.
const OF_ALL: &str = "kubernetes.default.svc";
/// Until a connection whose packets nobody acknowledges is given up.
const UNHEARD: Duration = Duration::from_secs(30);

/// Makes connections.
#[derive(Clone, Debug)]
pub struct Dialer {
    known: Arc<Addresses>,
    tls: Option<Tls>,
}

/// How servers prove who they are.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificates, and what is spoken inside.
    pub config: Arc<ClientConfig>,
    /// A name that counts in place of that in the address (`tls-server-name`).
    pub name: Option<ServerName<'static>>,
}

/// No address answers.
#[derive(Debug, thiserror::Error)]
#[error("no API server answers: {0}")]
pub struct Unreachable(String);

impl Dialer {
    /// With TLS unless the configuration says `http`.
    pub const fn new(known: Arc<Addresses>, tls: Option<Tls>) -> Self {
        Self { known, tls }
    }

    async fn race(self, configured: Address) -> Result<Stream, Unreachable> {
        let order = self.known.order(&configured, Instant::now());
        let left = order.into_iter().map(Step::from).collect();
        self.run(left, configured).await
    }

    async fn run(
        &self,
        mut left: VecDeque<Step>,
        configured: Address,
    ) -> Result<Stream, Unreachable> {
        let mut attempts = FuturesUnordered::new();
        let mut failed: Vec<String> = Vec::new();
        loop {
            let mut has_next = true;
            match left.pop_front() {
                Some(step) => attempts.push(self.attempt(step, &configured)),
                None => has_next = false,
            }
            if attempts.is_empty() {
                return Err(Unreachable(failed.join("; ")));
            }
            tokio::select! {
                Some((step, tried)) = attempts.next() => match tried {
                    Ok(Tried::Connected(stream)) => {
                        self.known.answered(&step.dialled());
                        return Ok(*stream);
                    }
                    Ok(Tried::Found(ips)) => self.enqueue(&mut left, &step.address, ips),
                    Err(error) => failed.push(format!("{step}: {error}")),
                },
                () = tokio::time::sleep(NEXT), if has_next => {}
            }
        }
    }

    /// The addresses of a name come next, but those last that serve nothing.
    fn enqueue(&self, left: &mut VecDeque<Step>, address: &Address, ips: Vec<SocketAddr>) {
        let now = Instant::now();
        let step = |at: SocketAddr| Step {
            address: address.clone(),
            at: Some(at),
        };
        let (back, front): (Vec<Step>, Vec<Step>) = ips
            .into_iter()
            .map(step)
            .partition(|step| self.known.is_passed_over(&step.dialled(), now));
        for step in front.into_iter().rev() {
            left.push_front(step);
        }
        left.extend(back);
    }

    async fn attempt(&self, step: Step, configured: &Address) -> (Step, io::Result<Tried>) {
        let tried = async {
            match step.at {
                Some(at) => {
                    let stream = self.connect(at, &step.address, configured).await?;
                    Ok(Tried::Connected(Box::new(stream)))
                }
                None => look_up(&step.address).await.map(Tried::Found),
            }
        };
        let tried = timeout(ATTEMPT, tried).await;
        let tried =
            tried.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")));
        (step, tried)
    }

    async fn connect(
        &self,
        at: SocketAddr,
        address: &Address,
        configured: &Address,
    ) -> io::Result<Stream> {
        let tcp = || async {
            let stream = TcpStream::connect(at).await?;
            watch_over(&stream)?;
            io::Result::Ok(stream)
        };
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(tcp().await?));
        };
        let name = match &tls.name {
            Some(name) => name.clone(),
            None => server_name(&configured.host)?,
        };
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        match connector.connect(name, tcp().await?).await {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
            // A server's certificate may not name what the configuration has for all of them, but
            // names the address that somebody gave, or the name that each of a cluster's has.
            Err(error) if is_other_name(&error) && tls.name.is_none() && address != configured => {
                let given = self.known.is_given(address);
                let name = server_name(if given { &address.host } else { OF_ALL })?;
                let stream = connector.connect(name, tcp().await?).await?;
                Ok(Stream::Tls(Box::new(stream)))
            }
            Err(error) => Err(error),
        }
    }
}

/// What is tried next: to find the addresses of a name, or to connect to one.
#[derive(Clone, Debug)]
struct Step {
    /// As somebody wrote it.
    address: Address,
    /// Where it is, once that is known.
    at: Option<SocketAddr>,
}

/// What became of it.
enum Tried {
    Connected(Box<Stream>),
    Found(Vec<SocketAddr>),
}

impl Step {
    /// The address that is connected to.
    fn dialled(&self) -> Address {
        self.at.map_or_else(|| self.address.clone(), Address::from)
    }
}

impl From<Address> for Step {
    fn from(address: Address) -> Self {
        let at = address.ip().map(|ip| SocketAddr::new(ip, address.port));
        Self { address, at }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) if self.address.ip().is_none() => write!(f, "{} ({at})", self.address),
            _ => self.address.fmt(f),
        }
    }
}

/// All addresses of a name, each once, in the order in which they are given.
async fn look_up(address: &Address) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await?;
    let mut ips: Vec<SocketAddr> = Vec::new();
    for ip in found {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    if ips.is_empty() {
        let text = "the name has no address";
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    Ok(ips)
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Unreachable>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let address = configured(&uri).ok_or_else(|| {
                Unreachable(format!("{uri} names no server; correct the kubeconfig"))
            })?;
            dialer.race(address).await.map(TokioIo::new)
        })
    }
}

/// The address in a URI.
pub fn configured(uri: &Uri) -> Option<Address> {
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    let default = if uri.scheme_str() == Some("http") {
        80
    } else {
        443
    };
    Some(Address {
        host: host.to_owned(),
        port: uri.port_u16().unwrap_or(default),
    })
}

/// The name that a certificate has to have.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(|error| {
        let text = format!("{host:?} cannot be in a certificate: {error}");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })
}

fn is_other_name(error: &io::Error) -> bool {
    use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(
        inner,
        Some(rustls::Error::InvalidCertificate(
            NotValidForName | NotValidForNameContext { .. }
        ))
    )
}

/// A server that went away without a word is noticed: by unanswered probes while nothing is sent,
/// by unacknowledged octets otherwise.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &10)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &5)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    setsockopt(
        stream,
        sockopt::TcpUserTimeout,
        &(UNHEARD.as_millis() as u32),
    )?;
    Ok(())
}

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// In the clear.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            Self::Plain(_) | Self::Tls(_) => Connected::new(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, octets),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, octets),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A listener that says its letter to who asks.
    fn server(ip: [u8; 4], port: u16, letter: u8) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::from(ip), port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                if stream.read_exact(&mut [0]).is_ok() {
                    stream.write_all(&[letter]).unwrap();
                }
            }
        });
        port
    }

    /// Who answers if a name has these addresses.
    fn answer(dialer: &Dialer, ips: &[[u8; 4]], port: u16) -> Result<u8, Unreachable> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let name = Address {
            host: "api.example".to_owned(),
            port,
        };
        let ips = ips.iter().map(|ip| SocketAddr::from((*ip, port)));
        let mut left = VecDeque::new();
        dialer.enqueue(&mut left, &name, ips.collect());
        runtime.block_on(async {
            let mut stream = dialer.run(left, name).await?;
            stream.write_all(b"?").await.unwrap();
            Ok(stream.read_u8().await.unwrap())
        })
    }

    fn dialer(directory: &std::path::Path) -> Dialer {
        let known = Addresses::new(directory, Vec::new(), "http://api.example/");
        Dialer::new(Arc::new(known), None)
    }

    const FIRST: [u8; 4] = [127, 0, 0, 1];
    const SECOND: [u8; 4] = [127, 0, 0, 2];

    #[test]
    fn each_address_of_a_name_is_tried() {
        let directory = tempfile::tempdir().unwrap();
        let dialer = dialer(directory.path());
        let port = server(SECOND, 0, b'b');
        assert_eq!(answer(&dialer, &[FIRST, SECOND], port).unwrap(), b'b');
        let error = answer(&dialer, &[FIRST], port).unwrap_err().to_string();
        let both = format!("api.example:{port} (127.0.0.1:{port}): ");
        assert!(error.contains(&both), "{error}");
    }

    /// Where nobody answers, not even with a refusal, the next address is tried besides.
    #[test]
    fn an_address_of_a_name_that_is_silent_holds_up_none() {
        let directory = tempfile::tempdir().unwrap();
        let dialer = dialer(directory.path());
        let port = server(SECOND, 0, b'b');
        // Its queue is full: the kernel drops what begins a connection.
        let full = silent(FIRST, port);
        let began = Instant::now();
        assert_eq!(answer(&dialer, &[FIRST, SECOND], port).unwrap(), b'b');
        assert!(began.elapsed() < ATTEMPT / 2, "{:?}", began.elapsed());
        drop(full);
    }

    #[test]
    fn an_address_that_serves_nothing_comes_behind_the_others_of_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let dialer = dialer(directory.path());
        let port = server(FIRST, 0, b'a');
        server(SECOND, port, b'b');
        assert_eq!(answer(&dialer, &[FIRST, SECOND], port).unwrap(), b'a');
        dialer.known.pass_over(Instant::now());
        assert_eq!(answer(&dialer, &[FIRST, SECOND], port).unwrap(), b'b');
    }

    #[test]
    fn names_are_looked_up() {
        let directory = tempfile::tempdir().unwrap();
        let dialer = dialer(directory.path());
        let port = server(FIRST, 0, b'a');
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let at = |host: &str| Address {
            host: host.to_owned(),
            port,
        };
        runtime.block_on(async {
            dialer.clone().race(at("localhost")).await.unwrap();
            let error = dialer.race(at("name.invalid")).await.unwrap_err();
            assert!(error.to_string().contains("name.invalid"), "{error}");
        });
    }

    /// A listener that takes nobody, with as many in its queue as it holds.
    fn silent(ip: [u8; 4], port: u16) -> Vec<std::net::TcpStream> {
        use nix::sys::socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket,
        };
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let [a, b, c, d] = ip;
        let address = SockaddrIn::new(a, b, c, d, port);
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).unwrap();
        listen(&fd, Backlog::new(0).unwrap()).unwrap();
        let at = SocketAddr::from((ip, port));
        let mut held = vec![std::net::TcpStream::from(fd)];
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&at, Duration::from_millis(300))
        {
            held.push(stream);
        }
        held
    }
}
