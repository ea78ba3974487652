//! Connections to whichever API server answers: known addresses are tried one after the other,
//! the next one while the one before is still silent, and the first that completes its handshake
//! is taken.

use std::future::Future;
use std::io;
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
        let mut left = self.known.order(&configured, Instant::now()).into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failed: Vec<String> = Vec::new();
        loop {
            let mut has_next = true;
            match left.next() {
                Some(address) => attempts.push(self.attempt(address, &configured)),
                None => has_next = false,
            }
            if attempts.is_empty() {
                return Err(Unreachable(failed.join("; ")));
            }
            tokio::select! {
                Some((address, tried)) = attempts.next() => match tried {
                    Ok(stream) => {
                        self.known.answered(&address);
                        return Ok(stream);
                    }
                    Err(error) => failed.push(format!("{address}: {error}")),
                },
                () = tokio::time::sleep(NEXT), if has_next => {}
            }
        }
    }

    async fn attempt(
        &self,
        address: Address,
        configured: &Address,
    ) -> (Address, io::Result<Stream>) {
        let tried = timeout(ATTEMPT, self.connect(&address, configured)).await;
        let tried =
            tried.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")));
        (address, tried)
    }

    async fn connect(&self, address: &Address, configured: &Address) -> io::Result<Stream> {
        let tcp = || async {
            let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
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
