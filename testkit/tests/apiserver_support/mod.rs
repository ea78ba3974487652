//! A server, and clients as agents have them.
#![allow(dead_code, reason = "each test file uses a part")]

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Config};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::apiserver::{ApiServer, Options};

/// For everything that has to happen soon; the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Long enough to tell that nothing comes.
pub const SILENCE: Duration = Duration::from_millis(300);

/// A server with a client's files.
pub struct Site {
    pub server: ApiServer,
    pub files: TempDir,
}

impl Site {
    pub fn start() -> Self {
        Self::of(Options::default())
    }

    pub fn of(options: Options) -> Self {
        Self {
            server: ApiServer::start_here(options).unwrap(),
            files: tempfile::tempdir().unwrap(),
        }
    }

    /// A client by the first address and token.
    pub async fn client(&self) -> Client {
        let written = self.server.kubeconfig(self.files.path()).unwrap();
        client_of(&written.path).await
    }

    pub fn apply(&self, object: Value) -> u64 {
        self.server.apply(object).unwrap()
    }
}

pub async fn config_of(path: &std::path::Path) -> Config {
    let read = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(read, &options)
        .await
        .unwrap();
    config.default_retry = false; // every answer is to be seen
    config
}

pub async fn client_of(path: &std::path::Path) -> Client {
    Client::try_from(config_of(path).await).unwrap()
}

/// A service with a label `app`.
pub fn service(name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]},
    })
}

/// What a watcher tells.
pub struct Watched(Pin<Box<dyn Stream<Item = watcher::Result<Event<Service>>> + Send>>);

impl Watched {
    pub fn start(client: &Client, config: watcher::Config) -> Self {
        Self(watcher(Api::<Service>::all(client.clone()), config).boxed())
    }

    /// The next thing it tells, as text: `init`, `+web`, `done`, `web`, `-web`, `error: …`.
    pub async fn next(&mut self) -> String {
        let next = tokio::time::timeout(LIMIT, self.0.next()).await;
        let name = |s: Service| s.metadata.name.unwrap();
        match next.expect("no event in time").expect("the stream's end") {
            Ok(Event::Init) => "init".to_owned(),
            Ok(Event::InitApply(s)) => format!("+{}", name(s)),
            Ok(Event::InitDone) => "done".to_owned(),
            Ok(Event::Apply(s)) => name(s),
            Ok(Event::Delete(s)) => format!("-{}", name(s)),
            Err(error) => format!("error: {error}"),
        }
    }

    pub async fn expect(&mut self, wanted: &[&str]) {
        for wanted in wanted {
            assert_eq!(self.next().await, *wanted);
        }
    }

    /// The next thing is an error that contains `wanted`.
    pub async fn expect_error(&mut self, wanted: &str) {
        let next = self.next().await;
        assert!(
            next.starts_with("error: ") && next.contains(wanted),
            "{next}"
        );
    }

    /// Nothing comes for a while.
    pub async fn expect_silence(&mut self) {
        let next = tokio::time::timeout(SILENCE, self.0.next()).await;
        assert!(
            next.is_err(),
            "{:?}",
            next.unwrap().map(|e| e.map(|_| "event"))
        );
    }
}

/// Waits until `holds`.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
