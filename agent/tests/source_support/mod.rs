//! The source on the tests' API server, and what it tells.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::apiserver::{ApiServer, Options};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tulle_agent::source::cluster::{self, Cluster};
use tulle_agent::source::{Batch, Change};

/// For everything that has to happen soon; the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(40);

/// A server, a client's files, and a runtime to wait in.
pub struct Site {
    pub server: ApiServer,
    pub files: TempDir,
    pub runtime: Runtime,
}

/// A source, with what it has told so far.
pub struct Told<'a> {
    runtime: &'a Runtime,
    pub cluster: Cluster,
    contact: watch::Receiver<Vec<String>>,
    /// Names of objects that are there, as `Kind namespace/name`.
    pub there: BTreeSet<String>,
    pub synced: bool,
    pub batches: Vec<Batch>,
}

impl Site {
    pub fn start() -> Self {
        Self::of(Options::default())
    }

    pub fn of(options: Options) -> Self {
        Self {
            server: ApiServer::start_here(options).unwrap(),
            files: tempfile::tempdir().unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    /// Options of a source with the first token.
    pub fn options(&self) -> cluster::Options {
        let written = self.server.kubeconfig(self.files.path()).unwrap();
        cluster::Options {
            node: "node-1".to_owned(),
            kubeconfig: Some(written.path),
            servers: Vec::new(),
            lib_dir: self.files.path().join("lib"),
            host_ports: false,
            silence: Duration::from_secs(100),
        }
    }

    pub fn follow(&self) -> Told<'_> {
        self.follow_by(self.options())
    }

    pub fn follow_by(&self, options: cluster::Options) -> Told<'_> {
        Told::follow(&self.runtime, options)
    }

    pub fn apply(&self, object: Value) {
        self.server.apply(object).unwrap();
    }

    pub fn delete_service(&self, name: &str) {
        assert!(self.server.delete("Service", "shop", name).unwrap());
    }
}

impl<'a> Told<'a> {
    /// A source by these options.
    pub fn follow(runtime: &'a Runtime, options: cluster::Options) -> Self {
        let cluster = Cluster::follow(options).unwrap();
        Self {
            runtime,
            contact: cluster.contact(),
            cluster,
            there: BTreeSet::new(),
            synced: false,
            batches: Vec::new(),
        }
    }

    /// Takes the next batch in, if one comes within `limit`.
    pub fn next(&mut self, limit: Duration) -> Option<&Batch> {
        let Self {
            runtime, cluster, ..
        } = self;
        let waited = async { tokio::time::timeout(limit, cluster.recv()).await.ok() };
        let batch = runtime.block_on(waited)?.expect("the source ended");
        for change in &batch.changes {
            match change {
                Change::Apply(object) => drop(self.there.insert(object.key().to_string())),
                Change::Delete(key) => assert!(self.there.remove(&key.to_string()), "{key}"),
                Change::Synced => self.synced = true,
            }
        }
        self.batches.push(batch);
        self.batches.last()
    }

    /// Takes batches in until `done`.
    pub fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !done(self) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(self.next(left).is_some(), "not {what}: {:?}", self.there);
        }
    }

    pub fn until_synced(&mut self) {
        self.until("synced", |told| told.synced);
    }

    /// Until the services are exactly these.
    pub fn until_services(&mut self, names: &[&str]) {
        let want: BTreeSet<String> = names.iter().map(|n| format!("Service shop/{n}")).collect();
        self.until(&format!("{names:?}"), |told| told.services() == want);
    }

    pub fn services(&self) -> BTreeSet<String> {
        let services = self
            .there
            .iter()
            .filter(|name| name.starts_with("Service "));
        services.cloned().collect()
    }

    /// The sentences about the contact as they are.
    pub fn contact_now(&self) -> Vec<String> {
        self.contact.borrow().clone()
    }

    /// Until the sentences about the contact are as asked.
    pub fn until_contact(&mut self, what: &str, done: impl Fn(&[String]) -> bool) -> Vec<String> {
        let Self {
            runtime, contact, ..
        } = self;
        let waited = async {
            let wait = contact.wait_for(|said| done(said));
            let said = tokio::time::timeout(LIMIT, wait).await;
            said.ok()
                .map(|said| said.expect("the source ended").clone())
        };
        let said = runtime.block_on(waited);
        said.unwrap_or_else(|| panic!("not {what}: {:?}", self.contact.borrow()))
    }
}

pub fn service(name: &str, port: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"port": port}]}})
}

pub fn slice(namespace: &str, service: &str, endpoint: &str, port: u16) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": service, "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [endpoint]}]})
}

pub fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}
