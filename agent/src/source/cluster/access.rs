//! How the agent proves who it is to the API server: a kubeconfig, or the service account of its
//! pod. Files are read again when they change, so that rotated tokens and certificates count from
//! the next request on.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use http::header::USER_AGENT;
use hyper_util::client::legacy::Client as Http;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::{ClientBuilder, ConfigExt};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use tokio::sync::Mutex;
use tower::BoxError;
use tower::util::MapErrLayer;

use super::addresses::{Address, Addresses};
use super::dial::{self, Dialer, Tls};

/// Between two pings on an HTTP/2 connection that is silent.
const PING: Duration = Duration::from_secs(15);
/// Until an answer to a ping.
const PONG: Duration = Duration::from_secs(15);
/// Until a connection is closed on which no request began: longer than any watch, whose next request
/// goes by the same one. Pings tell whether it lives.
const IDLE: Duration = Duration::from_mins(11);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A kubeconfig cannot be used.
    #[error(
        "cannot use the kubeconfig {path}: {problem}; correct the file, or name another by --kubeconfig"
    )]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// There is no service account.
    #[error(
        "nothing says where objects come from: give --state DIR, or --kubeconfig FILE, or run in a pod \
         with a service account ({0})"
    )]
    InCluster(String),
    /// What the configuration holds makes no client.
    #[error("the API server's configuration cannot be used: {0}")]
    Client(String),
}

/// Where the configuration is.
#[derive(Clone, Debug)]
enum Origin {
    Kubeconfig(PathBuf),
    InCluster,
}

/// The current client.
#[derive(Debug)]
pub struct Access {
    origin: Origin,
    known: Arc<Addresses>,
    current: Mutex<Option<Current>>,
    server: String,
}

struct Current {
    client: Client,
    files: Vec<(PathBuf, Stamp)>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// By what a file is known to be another.
type Stamp = Option<(u64, u64, SystemTime)>;

impl Access {
    /// Reads the configuration: of `kubeconfig`, or without one that of the pod.
    ///
    /// # Errors
    ///
    /// There is none, or it is not usable as it is now.
    pub async fn open(
        kubeconfig: Option<&Path>,
        lib_dir: &Path,
        given: Vec<Address>,
    ) -> Result<Self, AccessError> {
        let origin = match kubeconfig {
            Some(path) => Origin::Kubeconfig(path.to_owned()),
            None => Origin::InCluster,
        };
        let (config, _) = origin.load().await?;
        let server = config.cluster_url.to_string();
        let known = Arc::new(Addresses::new(lib_dir, given, &server));
        let access = Self {
            server,
            origin,
            known,
            current: Mutex::new(None),
        };
        access.client().await?;
        Ok(access)
    }

    /// The server that the configuration names.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Where servers are.
    pub fn addresses(&self) -> &Addresses {
        &self.known
    }

    /// The client, made anew if its files have changed. Files that have become unusable are as
    /// good as the server's refusal: the error says what is wrong with them.
    pub async fn client(&self) -> Result<Client, AccessError> {
        let mut current = self.current.lock().await;
        if let Some(current) = &*current
            && current
                .files
                .iter()
                .all(|(path, seen)| stamp(path) == *seen)
        {
            return Ok(current.client.clone());
        }
        let (config, files) = self.origin.load().await?;
        let client = self.make(config)?;
        let fresh = Current {
            client: client.clone(),
            files,
        };
        if current.replace(fresh).is_some() {
            tracing::info!("credentials for the API server were read again");
        }
        Ok(client)
    }

    /// What the client holds is not accepted any more: the next one reads all files again.
    pub async fn refused(&self) {
        *self.current.lock().await = None;
    }

    /// The server that answered last serves nothing: the next client has no connection to it, and
    /// tries others first.
    pub async fn pass_over(&self) {
        self.known.pass_over(Instant::now());
        self.refused().await;
    }

    fn make(&self, mut config: Config) -> Result<Client, AccessError> {
        let fail = |error: &dyn std::fmt::Display| AccessError::Client(error.to_string());
        self.known.configure(&config.cluster_url.to_string());
        let agent = concat!("tulle-agent/", env!("CARGO_PKG_VERSION"));
        config
            .headers
            .push((USER_AGENT, HeaderValue::from_static(agent)));
        let tls = match config.cluster_url.scheme_str() {
            Some("https") => {
                let mut rustls = config.rustls_client_config().map_err(|e| fail(&e))?;
                rustls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
                let name = config.tls_server_name.as_deref();
                let name = name
                    .map(dial::server_name)
                    .transpose()
                    .map_err(|e| fail(&e))?;
                Some(Tls {
                    config: Arc::new(rustls),
                    name,
                })
            }
            _ => None,
        };
        let http = Http::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG)
            .http2_keep_alive_while_idle(true)
            .build::<_, kube::client::Body>(Dialer::new(Arc::clone(&self.known), tls));
        let auth = config.auth_layer().map_err(|e| fail(&e))?;
        let headers = config.extra_headers_layer().map_err(|e| fail(&e))?;
        let builder = ClientBuilder::new(http, config.default_namespace.as_str());
        Ok(builder
            .with_layer(&MapErrLayer::new(BoxError::from))
            .with_layer(&headers)
            .with_layer(&tower::util::option_layer(auth))
            .with_layer(&config.base_uri_layer())
            .build())
    }
}

impl Origin {
    async fn load(&self) -> Result<(Config, Vec<(PathBuf, Stamp)>), AccessError> {
        match self {
            Self::Kubeconfig(path) => {
                let fail = |problem: String| AccessError::Kubeconfig {
                    path: path.clone(),
                    problem,
                };
                // Looked at before reading: a change meanwhile is read again.
                let own = (path.clone(), stamp(path));
                let kubeconfig = Kubeconfig::read_from(path).map_err(|e| fail(chain(&e)))?;
                let mut files = vec![own];
                files.extend(named(&kubeconfig).map(|path| (path.clone(), stamp(&path))));
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
                Ok((config.map_err(|e| fail(chain(&e)))?, files))
            }
            Self::InCluster => {
                let directory = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
                let files = ["ca.crt", "token"].map(|name| directory.join(name));
                let files = files.map(|path| (path.clone(), stamp(&path)));
                let config = Config::incluster().map_err(|e| AccessError::InCluster(chain(&e)))?;
                Ok((config, files.into()))
            }
        }
    }
}

/// An error with what caused it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Files that a kubeconfig names.
fn named(kubeconfig: &Kubeconfig) -> impl Iterator<Item = PathBuf> {
    let clusters = kubeconfig
        .clusters
        .iter()
        .filter_map(|named| named.cluster.as_ref());
    let users = kubeconfig
        .auth_infos
        .iter()
        .filter_map(|named| named.auth_info.as_ref());
    let authorities = clusters.filter_map(|cluster| cluster.certificate_authority.clone());
    let users = users.flat_map(|user| {
        let files = [&user.client_certificate, &user.client_key, &user.token_file];
        files.into_iter().flatten().cloned().collect::<Vec<_>>()
    });
    authorities
        .chain(users)
        .map(PathBuf::from)
        .collect::<Vec<_>>()
        .into_iter()
}

fn stamp(path: &Path) -> Stamp {
    let meta: io::Result<_> = std::fs::metadata(path);
    let meta = meta.ok()?;
    Some((meta.ino(), meta.len(), meta.modified().ok()?))
}
