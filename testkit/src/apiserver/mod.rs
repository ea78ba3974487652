//! An API server of the tests' own: as much of the Kubernetes API as a node agent meets, faithful
//! in what matters to clients that list and watch, and faulty on demand.
//!
//! It is an HTTP/1.1 server (HTTP/2 on demand), by TLS unless told otherwise, in a thread of its own. Objects are
//! JSON values with the metadata that a server sets; what it refuses is in `validate`, which knows
//! names and events: what tests [apply](ApiServer::apply) is stored as it is. Not there:
//! defaults of fields, admission, owners of fields, protobuf, tables, `watch` of old paths.
//!
//! Server-side apply and strategic merge patches are read as merge patches (RFC 7386).
//!
//! ```no_run
//! use testkit::apiserver::{ApiServer, Fault, Options, Verb};
//! # fn main() -> testkit::Result<()> {
//! let server = ApiServer::start_here(Options::default())?;
//! server.apply_yaml("{apiVersion: v1, kind: Service, metadata: {name: web}}")?;
//! let config = server.kubeconfig("/tmp/client".as_ref())?;
//! let fault = server.fault(Fault::answer(503).on(Verb::List).of("services"));
//! // … run a client with config.path …
//! fault.lift();
//! # Ok(())
//! # }
//! ```

mod access;
mod backend;
mod client;
mod cluster;
mod discovery;
mod fault;
mod follow;
mod gate;
mod kinds;
mod kubeconfig;
mod listener;
mod object;
mod objects;
mod patch;
mod proxy;
mod read;
pub mod real;
mod record;
mod reply;
mod request;
mod runtime;
mod selector;
mod service;
mod settings;
mod shared;
mod status;
mod store;
mod tls;
mod validate;
mod watch;
mod wire;
mod write;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::netns::NetNs;
use crate::wait;

use runtime::Runtime;
use shared::{Shared, lock};
use tls::Tls;

pub use access::Rule;
pub use backend::{Backend, backend};
pub use client::{Answer, Client};
pub use cluster::{ClusterApi, PORT};
pub use fault::{Break, Effect, Fault, FaultHandle};
pub use follow::Follower;
pub use kinds::{KINDS, Kind};
pub use kubeconfig::Kubeconfig;
pub use listener::Listener;
pub use proxy::Proxy;
pub use record::Recorded;
pub use request::Verb;
pub use settings::{Settings, StaleWatch};
pub use status::Failure;
pub use tls::{Authority, Identity};

/// The user of the first token.
pub const USER: &str = "system:serviceaccount:kube-system:tulle-agent";
/// The first token.
pub const TOKEN: &str = "testkit-token";

/// How a server begins.
#[derive(Clone, Debug)]
pub struct Options {
    /// The first address; port 0 takes a free one.
    pub address: SocketAddr,
    /// Whether by TLS.
    pub tls: bool,
    /// Whether HTTP/2 is offered, which real servers prefer. Faults that break a body off do it
    /// there by resetting the stream.
    pub http2: bool,
    /// Names and addresses of the serving certificate, beside `address`.
    pub names: Vec<String>,
    /// Behaviour.
    pub settings: Settings,
}

/// A running server. It ends on drop.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    tls: Option<Arc<Tls>>,
    listeners: Mutex<Vec<Listener>>,
    first: Listener,
    // The last to go: until then tasks may use the others.
    runtime: Runtime,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: true,
            http2: false,
            names: vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()],
            settings: Settings::default(),
        }
    }
}

impl Options {
    /// At an address.
    pub fn at(address: impl Into<SocketAddr>) -> Self {
        Self {
            address: address.into(),
            ..Self::default()
        }
    }

    /// Without TLS.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.tls = false;
        self
    }

    /// By HTTP/2 with clients that know it.
    #[must_use]
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// With these names and addresses in the serving certificate, too.
    #[must_use]
    pub fn names(mut self, names: impl IntoIterator<Item = impl ToString>) -> Self {
        self.names
            .extend(names.into_iter().map(|name| name.to_string()));
        self
    }
}

impl ApiServer {
    /// Serves in a namespace.
    pub fn start(ns: &NetNs, options: Options) -> Result<Self> {
        Self::new(Some(ns), options)
    }

    /// Serves in the calling thread's namespace.
    pub fn start_here(options: Options) -> Result<Self> {
        Self::new(None, options)
    }

    fn new(ns: Option<&NetNs>, options: Options) -> Result<Self> {
        let shared = Arc::new(Shared::new(options.settings));
        shared
            .access()
            .tokens
            .insert(TOKEN.to_owned(), USER.to_owned());
        let mut names = options.names;
        names.push(options.address.ip().to_string());
        let tls = options
            .tls
            .then(|| Tls::new(&names, options.http2))
            .transpose()?
            .map(Arc::new);
        let runtime = Runtime::start("apiserver")?;
        let first = Listener::new(
            0,
            ns,
            options.address,
            &shared,
            tls.as_ref(),
            runtime.handle(),
        )?;
        Ok(Self {
            shared,
            tls,
            listeners: Mutex::new(vec![first.clone()]),
            first,
            runtime,
        })
    }

    /// Serves at a further address, which the certificate has to name: another API server of the
    /// same cluster. In the calling thread's namespace if none is said.
    pub fn listen(&self, ns: Option<&NetNs>, address: SocketAddr) -> Result<Listener> {
        let mut listeners = lock(&self.listeners);
        let number = listeners.len();
        let (tls, runtime) = (self.tls.as_ref(), self.runtime.handle());
        let listener = Listener::new(number, ns, address, &self.shared, tls, runtime)?;
        listeners.push(listener.clone());
        Ok(listener)
    }

    /// The first address.
    pub fn listener(&self) -> &Listener {
        &self.first
    }

    /// Every address, in the order of their numbers.
    pub fn listeners(&self) -> Vec<Listener> {
        lock(&self.listeners).clone()
    }

    /// Where the first address is, as clients write it.
    pub fn url(&self) -> String {
        self.first.url()
    }

    /// Writes a kubeconfig for the first address and token into a directory.
    pub fn kubeconfig(&self, directory: &Path) -> Result<Kubeconfig> {
        self.kubeconfig_for(directory, &self.first, TOKEN)
    }

    /// Writes a kubeconfig for an address and a token into a directory.
    pub fn kubeconfig_for(
        &self,
        directory: &Path,
        at: &Listener,
        token: &str,
    ) -> Result<Kubeconfig> {
        let authority = self.tls.as_ref().map(|_| self.authority()).transpose()?;
        Kubeconfig::write(directory, &at.url(), authority.as_deref(), token)
    }

    /// The certificate of the present authority, PEM.
    pub fn authority(&self) -> Result<String> {
        self.with_tls()?.authority(|authority| Ok(authority.pem()))
    }

    /// A client certificate for a user, who is known by it from now on.
    pub fn client_certificate(&self, user: &str) -> Result<Identity> {
        let identity = self.with_tls()?.authority(|a| a.client(user, None))?;
        let mut access = self.shared.access();
        access
            .certificates
            .insert(identity.der.clone(), user.to_owned());
        Ok(identity)
    }

    /// Shows new connections a new certificate by the same authority.
    pub fn rotate_certificate(&self) -> Result<()> {
        self.with_tls()?.rotate(false)
    }

    /// Shows new connections a new certificate by a new authority, which clients do not believe
    /// until they have [`ApiServer::authority`] anew.
    pub fn rotate_authority(&self) -> Result<()> {
        self.with_tls()?.rotate(true)
    }

    fn with_tls(&self) -> Result<&Tls> {
        let tls = self.tls.as_deref();
        tls.ok_or_else(|| Error::Invalid("the server is without TLS; start one with it".to_owned()))
    }

    /// Knows a token as this user's.
    pub fn add_token(&self, token: &str, user: &str) {
        let mut access = self.shared.access();
        access.tokens.insert(token.to_owned(), user.to_owned());
    }

    /// Knows a token no longer: it has expired.
    pub fn remove_token(&self, token: &str) {
        self.shared.access().tokens.remove(token);
    }

    /// Lets a user do only what rules say; without rules, everything.
    pub fn restrict(&self, user: &str, rules: Option<Vec<Rule>>) {
        let mut access = self.shared.access();
        match rules {
            Some(rules) => access.rules.insert(user.to_owned(), rules),
            None => access.rules.remove(user),
        };
    }

    /// Has something go wrong from now on.
    pub fn fault(&self, fault: Fault) -> FaultHandle {
        self.shared.faults.add(fault)
    }

    /// Ends all faults.
    pub fn lift_faults(&self) {
        self.shared.faults.lift_all();
    }

    /// Changes the server's behaviour.
    pub fn configure(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.shared.settings();
        change(&mut settings);
        let bound = settings.history;
        drop(settings);
        self.shared.store().set_bound(bound);
    }

    /// Forgets all history: who asks for what happened after an earlier version than the present
    /// one is told 410.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// The version of the latest change.
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// Lets so many versions go by, as changes of other kinds do.
    pub fn skip_versions(&self, versions: u64) {
        self.shared.store().skip(versions);
    }

    /// Waits until every running watch has sent what there is now.
    pub fn wait_delivered(&self, limit: Duration) -> Result<()> {
        let version = self.version();
        wait::until("a watch of the API server is behind", limit, || {
            Ok(self.shared.is_delivered(version).then_some(()))
        })
    }

    /// All requests, in the order of arrival; of very many the latest.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.record().all()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.record().clear();
    }

    /// Requests that went beyond what their user may do.
    pub fn forbidden(&self) -> Vec<Recorded> {
        let mut requests = self.requests();
        requests.retain(|request| request.status == Some(403));
        requests
    }
}
