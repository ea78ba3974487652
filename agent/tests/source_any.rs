//! The source on any API server: the tests' own, or a real one where `TULLE_KUBE_APISERVER` and
//! `TULLE_ETCD` name its programs. What goes wrong is the network's: a proxy before the server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod source_support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use source_support::{LIMIT, Told, node, slice};
use tempfile::TempDir;
use testkit::apiserver::{Backend, Proxy, backend};
use testkit::wait;
use tokio::runtime::Runtime;
use tulle_agent::model::{Kind, NamespacedName, ObjectKey};
use tulle_agent::source::cluster::{Complaint, Options};

/// Nothing more comes within it.
const PAUSE: Duration = Duration::from_secs(1);

/// A server, and the way there.
struct Any {
    server: Box<dyn Backend>,
    proxy: Proxy,
    kubeconfig: PathBuf,
    runtime: Runtime,
    files: TempDir,
}

impl Any {
    fn start() -> Self {
        let here = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let files = tempfile::tempdir().unwrap();
        let server = backend(None, here, files.path()).unwrap();
        let proxy = Proxy::start(None, here, server.address()).unwrap();
        let written = server.kubeconfig(&files.path().join("client")).unwrap();
        let text = std::fs::read_to_string(&written.path).unwrap();
        let (from, to) = (server.address().to_string(), proxy.address().to_string());
        assert!(text.contains(&from), "{text}");
        std::fs::write(&written.path, text.replace(&from, &to)).unwrap();
        Self {
            server,
            proxy,
            kubeconfig: written.path,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            files,
        }
    }

    fn options(&self) -> Options {
        Options {
            node: "node-1".to_owned(),
            kubeconfig: Some(self.kubeconfig.clone()),
            servers: Vec::new(),
            lib_dir: self.files.path().join("lib"),
            host_ports: false,
            silence: Duration::from_secs(100),
        }
    }

    fn follow(&self) -> Told<'_> {
        Told::follow(&self.runtime, self.options())
    }

    fn apply(&self, object: Value) {
        self.server.apply(object).unwrap();
    }

    fn delete(&self, kind: &str, name: &str) {
        assert!(self.server.delete(kind, "shop", name).unwrap());
    }
}

/// Each has an address of its own, as a real server insists.
fn service(name: &str, host: u8) -> Value {
    let ip = format!("10.96.0.{host}");
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip],
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}

/// Names of what is there of a kind in the tests' namespace; a real server has objects of its own.
fn of(told: &Told<'_>, kind: &str) -> Vec<String> {
    let prefix = format!("{kind} shop/");
    let names = told.there.iter().filter_map(|n| n.strip_prefix(&prefix));
    names.map(str::to_owned).collect()
}

fn until(told: &mut Told<'_>, kind: &str, names: &[&str]) {
    told.until(&format!("{kind} {names:?}"), |told| of(told, kind) == names);
}

#[test]
fn kp128_the_first_batch_is_everything_and_changes_follow() {
    let any = Any::start();
    any.apply(service("web", 100));
    any.apply(slice("shop", "web", "10.244.1.2", 8080));
    any.apply(node("node-1"));
    let mut told = any.follow();
    told.next(LIMIT).unwrap();
    assert!(told.synced);
    assert_eq!(
        (of(&told, "Service"), of(&told, "EndpointSlice")),
        (vec!["web".to_owned()], vec!["web".to_owned()])
    );
    assert!(told.there.contains("Node node-1"), "{:?}", told.there);

    any.apply(service("other", 101));
    until(&mut told, "Service", &["other", "web"]);
    let before = told.batches.len();
    let mut changed = service("other", 101);
    changed["spec"]["ports"][0]["port"] = json!(81);
    any.apply(changed);
    told.until("changed", |told| told.batches.len() > before);
    any.delete("Service", "web");
    until(&mut told, "Service", &["other"]);
    any.delete("EndpointSlice", "web");
    until(&mut told, "EndpointSlice", &[]);
    assert_eq!(told.contact_now(), [""; 0]);
}

#[test]
fn the_server_selects_what_can_mean_something() {
    let any = Any::start();
    let mut headless = slice("shop", "none", "10.244.1.2", 80);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    any.apply(headless);
    let mut foreign = slice("shop", "foreign", "10.244.1.3", 80);
    foreign["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("x");
    any.apply(foreign);
    let mut none = service("none", 100);
    none["spec"]["clusterIP"] = json!("None");
    none["spec"]["clusterIPs"] = json!(["None"]);
    any.apply(none);
    any.apply(service("web", 101));
    any.apply(slice("shop", "web", "10.244.1.4", 80));
    let mut told = any.follow();
    told.until_synced();
    assert_eq!(
        (of(&told, "Service"), of(&told, "EndpointSlice")),
        (vec!["web".to_owned()], vec!["web".to_owned()])
    );
}

#[test]
fn more_than_a_page_comes_whole() {
    let any = Any::start();
    let name = |n: u16| format!("slice-{n:04}");
    for n in 0..1203 {
        let endpoint = format!("10.244.{}.{}", n / 200, 1 + n % 200);
        any.apply(slice("shop", &name(n), &endpoint, 80));
    }
    let mut told = any.follow();
    told.until_synced();
    assert_eq!(of(&told, "EndpointSlice").len(), 1203);
    any.delete("EndpointSlice", &name(700));
    told.until("aware of the deletion", |told| {
        of(told, "EndpointSlice").len() == 1202
    });
}

#[test]
fn kp141_what_happens_while_connections_are_cut_is_found() {
    let any = Any::start();
    any.apply(service("web", 100));
    any.apply(service("gone", 101));
    let mut told = any.follow();
    told.until_synced();
    any.proxy.close();
    any.proxy.cut();
    let said = told.until_contact("away", |said| !said.is_empty());
    assert_eq!(said.len(), 1, "{said:?}");
    any.delete("Service", "gone");
    any.apply(service("late", 102));
    assert!(
        told.next(PAUSE).is_none(),
        "nothing is told without a server"
    );
    assert_eq!(of(&told, "Service"), ["gone", "web"]);
    any.proxy.open().unwrap();
    until(&mut told, "Service", &["late", "web"]);
    told.until_contact("well", <[String]>::is_empty);
    // Nothing is told twice.
    assert!(told.next(PAUSE).is_none());
}

#[test]
fn kp141_connections_that_carry_nothing_are_left() {
    let any = Any::start();
    any.apply(service("web", 100));
    let mut options = any.options();
    options.silence = Duration::from_secs(2);
    let mut told = Told::follow(&any.runtime, options);
    told.until_synced();
    any.proxy.set_silent(true);
    any.apply(service("late", 101));
    until(&mut told, "Service", &["late", "web"]);
}

#[test]
fn kp142_a_start_without_a_server_waits() {
    let any = Any::start();
    any.apply(service("web", 100));
    any.proxy.close();
    let mut told = any.follow();
    told.until_contact("away", |said| !said.is_empty());
    assert!(told.next(PAUSE).is_none());
    any.proxy.open().unwrap();
    told.until_synced();
    assert_eq!(of(&told, "Service"), ["web"]);
}

#[test]
fn kp158_events_are_written() {
    let any = Any::start();
    any.apply(service("web", 100));
    any.apply(node("node-1"));
    let mut told = any.follow();
    told.until_synced();
    let web = Complaint {
        object: ObjectKey {
            kind: Kind::Service,
            name: NamespacedName::new("shop", "web"),
        },
        reason: "NotAsWritten",
        note: "spec.ports[0]: is taken; take another".to_owned(),
        normal: false,
        own: false,
    };
    told.cluster.complain([web].into());
    let event = wait::until("an event", LIMIT, || {
        let events = any.server.list("Event")?;
        Ok(events
            .into_iter()
            .find(|event| event["reason"] == "NotAsWritten"))
    })
    .unwrap();
    assert_eq!(event["regarding"]["name"], "web");
    assert_eq!(event["reportingInstance"], "node-1");
}
