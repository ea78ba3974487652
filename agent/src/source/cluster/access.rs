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
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::client::{ClientBuilder, ConfigExt};
use kube::config::{AuthInfo, Config, KubeConfigOptions, Kubeconfig};
use tokio::sync::Mutex;
use tower::BoxError;
use tower::util::MapErrLayer;

use super::addresses::{Address, Addresses};
use super::dial::{self, Dialer, Tls};
use super::exec;

/// Between two pings on an HTTP/2 connection that is silent.
const PING: Duration = Duration::from_secs(15);
/// Until an answer to a ping.
const PONG: Duration = Duration::from_secs(15);
/// Until a connection is closed on which no request began: longer than any watch, whose next request
/// goes by the same one. Pings tell whether it lives.
const IDLE: Duration = Duration::from_mins(11);

/// Credentials are asked for anew so long before they expire.
const BEFORE: SignedDuration = SignedDuration::from_secs(10);

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
    current: Mutex<Logins>,
    server: String,
}

/// A client, and the how-manieth it is: who complains of one does not mean a later one.
#[derive(Clone)]
pub struct Login {
    /// The client.
    pub client: Client,
    /// Its number.
    pub number: u64,
}

#[derive(Debug, Default)]
struct Logins {
    made: u64,
    current: Option<Current>,
}

struct Current {
    login: Login,
    loaded: Loaded,
}

impl Current {
    fn is_fresh(&self) -> bool {
        let same = |(path, seen): &(PathBuf, Stamp)| stamp(path) == *seen;
        let valid = |end: Timestamp| Timestamp::now() + BEFORE < end;
        let Loaded { files, expires, .. } = &self.loaded;
        files.iter().all(same) && expires.is_none_or(valid)
    }
}

/// A configuration, with what it is good for.
#[derive(Clone)]
struct Loaded {
    config: Config,
    files: Vec<(PathBuf, Stamp)>,
    /// When the credentials that a program gave end.
    expires: Option<Timestamp>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("files", &self.loaded.files)
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
        let loaded = origin.load().await?;
        let server = loaded.config.cluster_url.to_string();
        let known = Arc::new(Addresses::new(lib_dir, given, &server));
        let access = Self {
            server,
            origin,
            known,
            current: Mutex::default(),
        };
        access.begin(&mut *access.current.lock().await, loaded)?;
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

    /// The client, made anew if its files have changed or its credentials are about to expire. Files
    /// that have become unusable are as good as the server's refusal: the error says what is wrong with
    /// them.
    pub async fn client(&self) -> Result<Login, AccessError> {
        let mut logins = self.current.lock().await;
        if let Some(current) = logins.current.as_ref().filter(|current| current.is_fresh()) {
            return Ok(current.login.clone());
        }
        let loaded = self.origin.load().await?;
        let again = logins.current.is_some();
        let login = self.begin(&mut logins, loaded)?;
        if again {
            tracing::info!("credentials for the API server were read again");
        }
        Ok(login)
    }

    fn begin(&self, logins: &mut Logins, loaded: Loaded) -> Result<Login, AccessError> {
        let client = self.make(loaded.config.clone())?;
        logins.made += 1;
        let login = Login {
            client,
            number: logins.made,
        };
        logins.current = Some(Current {
            login: login.clone(),
            loaded,
        });
        Ok(login)
    }

    /// What this client holds is not accepted any more: the next one reads all files again, unless
    /// there is a later one already.
    pub async fn refused(&self, number: u64) {
        let mut logins = self.current.lock().await;
        logins
            .current
            .take_if(|current| current.login.number == number);
    }

    /// The server that answered this client last serves nothing: the next client has no connection to
    /// it, and tries others first. Its credentials are as good as they were.
    pub async fn pass_over(&self, number: u64) {
        let mut logins = self.current.lock().await;
        let Some(current) = logins
            .current
            .take_if(|current| current.login.number == number)
        else {
            return;
        };
        self.known.pass_over(Instant::now());
        // Without a client of it the next one reads all files again, and says what is wrong.
        let _ = self.begin(&mut logins, current.loaded);
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
    async fn load(&self) -> Result<Loaded, AccessError> {
        let (mut config, files) = self.read().await?;
        let fail = |problem: String| match self {
            Self::Kubeconfig(path) => AccessError::Kubeconfig {
                path: path.clone(),
                problem,
            },
            Self::InCluster => AccessError::InCluster(problem),
        };
        let expires = exec::resolve(&mut config.auth_info).await.map_err(fail)?;
        read_token(&mut config.auth_info).map_err(fail)?;
        Ok(Loaded {
            config,
            files,
            expires,
        })
    }

    /// The configuration as it is written.
    async fn read(&self) -> Result<(Config, Vec<(PathBuf, Stamp)>), AccessError> {
        match self {
            Self::Kubeconfig(path) => {
                let fail = |problem: String| AccessError::Kubeconfig {
                    path: path.clone(),
                    problem,
                };
                // Looked at before reading: a change meanwhile is read again.
                let own = (path.clone(), stamp(path));
                let kubeconfig = Kubeconfig::read_from(path).map_err(|e| fail(chain(&e)))?;
                if let Some(cluster) = proxied(&kubeconfig) {
                    return Err(fail(format!(
                        "clusters[{cluster:?}].cluster.proxy-url is set, and the agent goes to API servers \
                         straight; take the field away"
                    )));
                }
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

/// The cluster of the current context, if it is to be reached through a proxy.
fn proxied(kubeconfig: &Kubeconfig) -> Option<&str> {
    let current = kubeconfig.current_context.as_ref()?;
    let mut contexts = kubeconfig.contexts.iter();
    let context = contexts.find(|context| context.name == *current)?;
    let name = &context.context.as_ref()?.cluster;
    let mut clusters = kubeconfig.clusters.iter();
    let cluster = clusters.find(|cluster| cluster.name == *name)?;
    let proxy = cluster.cluster.as_ref()?.proxy_url.as_deref();
    proxy.filter(|url| !url.is_empty()).map(|_| name.as_str())
}

/// Puts the token of a file in the place of its name. It counts more than one that is written beside it,
/// as for other clients; white space around it, such as the newline that editors leave, is none of it.
/// The file is looked at before each request.
fn read_token(auth: &mut AuthInfo) -> Result<(), String> {
    let Some(file) = auth.token_file.take().filter(|file| !file.is_empty()) else {
        return Ok(());
    };
    let text = std::fs::read_to_string(&file)
        .map_err(|error| format!("the token file {file} cannot be read: {error}"))?;
    let token = text.trim();
    if token.is_empty() {
        return Err(format!("the token file {file} is empty"));
    }
    auth.token = Some(token.to_owned().into());
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": "http://192.0.2.1:8080"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]}"#;

    /// Runs a test on the access of this kubeconfig.
    fn with_access(test: impl AsyncFnOnce(Access, &Path)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubeconfig");
        std::fs::write(&path, CONFIG).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let access = Access::open(Some(&path), directory.path(), Vec::new()).await;
            test(access.unwrap(), &path).await;
        });
    }

    #[test]
    fn who_complains_of_a_former_client_takes_no_later_one_away() {
        with_access(async |access, _| {
            let first = access.client().await.unwrap().number;
            assert_eq!(access.client().await.unwrap().number, first);
            access.refused(first).await;
            let second = access.client().await.unwrap().number;
            assert_ne!(second, first);
            // The other watches had asked with the first one, too.
            access.refused(first).await;
            access.pass_over(first).await;
            assert_eq!(access.client().await.unwrap().number, second);
        });
    }

    #[test]
    fn a_server_is_passed_over_once_for_all_that_asked_it() {
        with_access(async |access, _| {
            let server: Address = "192.0.2.1:8080".parse().unwrap();
            let other: Address = "192.0.2.2:8080".parse().unwrap();
            let first = access.client().await.unwrap().number;
            access.addresses().answered(&server);
            access.pass_over(first).await;
            access.client().await.unwrap();
            access.addresses().answered(&other);
            // It said so late, and of the former server.
            access.pass_over(first).await;
            let now = Instant::now();
            assert!(access.addresses().is_passed_over(&server, now));
            assert!(!access.addresses().is_passed_over(&other, now));
        });
    }

    #[test]
    fn credentials_that_end_are_asked_for_again() {
        with_access(async |access, path| {
            let script = |after: i64| {
                let end = Timestamp::now() + SignedDuration::from_secs(after);
                format!(r#"echo '{{"status": {{"token": "t", "expirationTimestamp": "{end}"}}}}'"#)
            };
            let write = |text: &str| {
                let mut config: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
                let args = ["-c", text];
                let exec = serde_json::json!({"command": "/bin/sh", "args": args});
                config["users"][0]["user"] = serde_json::json!({"exec": exec});
                std::fs::write(path, config.to_string()).unwrap();
            };
            write(&script(3600));
            let long = access.client().await.unwrap().number;
            assert_eq!(access.client().await.unwrap().number, long);
            write(&format!("{} ", script(5)));
            let short = access.client().await.unwrap().number;
            assert_ne!(access.client().await.unwrap().number, short);
        });
    }
}
