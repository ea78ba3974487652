//! A client of any API server, for tests that write objects: one request at a time, blocking.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::error::{Error, Result};
use crate::netns::NetNs;

use super::kinds::Kind;
use super::objects::{at, named, place};
use super::runtime::Runtime;
use super::shared::lock;
use super::tls::provider;

/// For one request.
const LIMIT: Duration = Duration::from_secs(30);
/// Who owns the fields that tests write.
const MANAGER: &str = "testkit";

/// A client of an API server.
#[derive(Debug)]
pub struct Client {
    server: SocketAddr,
    token: Option<String>,
    tls: Option<Arc<ClientConfig>>,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
    runtime: Runtime,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Bytes,
}

impl Client {
    /// Of a server that is reached from a namespace, from the calling thread's if none is said;
    /// by TLS if authorities (PEM) are.
    pub fn new(
        ns: Option<&NetNs>,
        server: SocketAddr,
        authorities: Option<&str>,
        token: Option<&str>,
    ) -> Result<Self> {
        Ok(Self {
            server,
            token: token.map(str::to_owned),
            tls: authorities.map(trust).transpose()?,
            connection: Mutex::default(),
            runtime: Runtime::start_in(ns, "client")?,
        })
    }

    /// Makes or changes an object, and its status if it has one: what is said of it becomes so.
    pub fn apply(&self, object: &Value) -> Result<()> {
        let (kind, name) = place(object)?;
        let namespace = kind.namespaced.then_some(name.namespace.as_str());
        if let Some(namespace) = namespace {
            self.make_namespace(namespace)?;
        }
        let path = format!("{}/{}", kind.path(namespace), name.name);
        self.apply_at(&path, object)?;
        match object.get("status").filter(|_| kind.status) {
            None => Ok(()),
            Some(status) => {
                let part = json!({
                    "apiVersion": object["apiVersion"],
                    "kind": object["kind"],
                    "metadata": {"name": name.name},
                    "status": status,
                });
                self.apply_at(&format!("{path}/status"), &part)
            }
        }
    }

    fn apply_at(&self, path: &str, object: &Value) -> Result<()> {
        let path = format!("{path}?fieldManager={MANAGER}&force=true");
        let body = object.to_string(); // JSON is YAML
        self.request(&Method::PATCH, &path, "application/apply-patch+yaml", body)?
            .good(&path)
            .map(drop)
    }

    /// An API server stores nothing in a namespace that is not there.
    fn make_namespace(&self, name: &str) -> Result<()> {
        let kind = named("Namespace")?;
        let path = format!("{}/{name}", kind.path(None));
        if self.request(&Method::GET, &path, "", "")?.status == 200 {
            return Ok(());
        }
        let namespace = json!({"apiVersion": "v1", "kind": kind.kind, "metadata": {"name": name}});
        self.apply_at(&path, &namespace)
    }

    /// Removes an object; whether it was there.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<bool> {
        let kind = named(kind)?;
        let place = at(kind, namespace, name);
        let path = format!("{}/{}", kind.path(Some(&place.namespace)), place.name);
        let answer = self.request(&Method::DELETE, &path, "", "")?;
        if answer.status == 404 {
            return Ok(false);
        }
        answer.good(&path).map(|_| true)
    }

    /// All objects of a kind, with their kind.
    pub fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let kind: &Kind = named(kind)?;
        let path = kind.path(None);
        let mut list = self.request(&Method::GET, &path, "", "")?.good(&path)?;
        let Value::Array(mut items) = list["items"].take() else {
            return Err(Error::Invalid(format!("{path}: the answer is no list")));
        };
        for item in &mut items {
            item["apiVersion"] = kind.api_version().into();
            item["kind"] = kind.kind.into();
        }
        Ok(items)
    }

    /// Any request; `content_type` is that of a body which is not empty.
    pub fn request(
        &self,
        method: &Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let what =
            |why: String| Error::Invalid(format!("{method} {path} of {}: {why}", self.server));
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.server.to_string())
            .header(CONTENT_TYPE, content_type);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(body.into()))
            .map_err(|e| what(e.to_string()))?;
        let mut held = lock(&self.connection);
        let kept = held.take().filter(SendRequest::is_ready);
        let (server, tls) = (self.server, self.tls.clone());
        let exchange = async move {
            let mut sender = match kept {
                Some(sender) => sender,
                None => connect(server, tls).await?,
            };
            let response = sender
                .send_request(request)
                .await
                .map_err(|e| e.to_string())?;
            let status = response.status().as_u16();
            let body = response
                .into_body()
                .collect()
                .await
                .map_err(|e| e.to_string())?;
            let body = body.to_bytes();
            // Only then is it ready for another.
            let _ = sender.ready().await;
            Ok::<_, String>((sender, Answer { status, body }))
        };
        let exchange = async { tokio::time::timeout(LIMIT, exchange).await };
        let late = |_| what(format!("no answer within {LIMIT:?}"));
        let (sender, answer) = self.runtime.run(exchange)?.map_err(late)?.map_err(what)?;
        *held = Some(sender);
        Ok(answer)
    }
}

impl Answer {
    /// The object in it, if the request was granted.
    pub fn good(&self, path: &str) -> Result<Value> {
        let text = || String::from_utf8_lossy(&self.body).into_owned();
        if !(200..300).contains(&self.status) {
            let what = format!("{path}: the API server answers {}: {}", self.status, text());
            return Err(Error::Invalid(what));
        }
        serde_json::from_slice(&self.body).map_err(|source| Error::Json {
            command: path.to_owned(),
            source,
        })
    }
}

fn trust(pem: &str) -> Result<Arc<ClientConfig>> {
    let bad = |e: &dyn std::fmt::Display| Error::Invalid(format!("the authorities: {e}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| bad(&e))?;
        roots.add(certificate).map_err(|e| bad(&e))?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(&e))?;
    Ok(Arc::new(
        config.with_root_certificates(roots).with_no_client_auth(),
    ))
}

async fn connect(
    server: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
) -> std::result::Result<SendRequest<Full<Bytes>>, String> {
    let socket = TcpStream::connect(server)
        .await
        .map_err(|e| e.to_string())?;
    match tls {
        None => begin(socket).await,
        Some(config) => {
            let connecting =
                TlsConnector::from(config).connect(ServerName::from(server.ip()), socket);
            begin(connecting.await.map_err(|e| e.to_string())?).await
        }
    }
}

async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> std::result::Result<SendRequest<Full<Bytes>>, String> {
    let begun = handshake(TokioIo::new(stream)).await;
    let (sender, connection) = begun.map_err(|e| e.to_string())?;
    // Its error is that of the request.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
