//! The client that tests write objects by, the proxy, etcd, and the start of a kube-apiserver.
//! Needs etcd (Debian: etcd-server), and root for namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod apiserver_support;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use apiserver_support::{LIMIT, SILENCE, Site, Watched, client_of, eventually, service};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ListParams};
use kube::runtime::watcher;
use serde_json::json;
use testkit::NetNs;
use testkit::apiserver::real::{Etcd, Programs, RealServer};
use testkit::apiserver::{Client, Proxy, TOKEN};

/// Debian's etcd.
const ETCD: &str = "/usr/bin/etcd";

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn objects_are_written_through_any_api_server() {
    let site = Site::start();
    let authority = site.server.authority().unwrap();
    let at = site.server.listener().address();
    let client = Client::new(None, at, Some(&authority), Some(TOKEN)).unwrap();
    let mut web = service("web", "web");
    web["metadata"]["namespace"] = "shop".into();
    web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    client.apply(&web).unwrap();
    let stored = site.server.get("Service", "shop", "web").unwrap().unwrap();
    assert_eq!(stored["status"], web["status"]);
    assert_eq!(stored["spec"], web["spec"]);
    assert!(site.server.get("Namespace", "", "shop").unwrap().is_some());
    client
        .apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
        .unwrap();
    let listed = client.list("Service").unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0]["kind"], &listed[0]["apiVersion"]),
        (&json!("Service"), &json!("v1"))
    );
    assert!(client.delete("Service", "shop", "web").unwrap());
    assert!(!client.delete("Service", "shop", "web").unwrap());
    assert!(client.list("Service").unwrap().is_empty());
    // One connection for all of it; another after its end.
    assert_eq!(site.server.listener().connections(), 1);
    site.server.listener().reset_connections();
    assert_eq!(client.list("Node").unwrap().len(), 1);
    site.server.remove_token(TOKEN);
    let error = client.list("Node").unwrap_err().to_string();
    assert!(
        error.contains("401") && error.contains("/api/v1/nodes"),
        "{error}"
    );
    let stranger = testkit::apiserver::Authority::new("stranger")
        .unwrap()
        .pem();
    let stranger = Client::new(None, at, Some(&stranger), Some(TOKEN)).unwrap();
    assert!(
        stranger
            .list("Node")
            .unwrap_err()
            .to_string()
            .contains("UnknownIssuer")
    );
}

/// By `TULLE_KUBE_APISERVER` and `TULLE_ETCD` against a real one.
#[tokio::test]
async fn a_client_sees_what_is_written_to_any_api_server() {
    let files = tempfile::tempdir().unwrap();
    let backend = testkit::apiserver::backend(None, loopback(), files.path()).unwrap();
    let written = backend.kubeconfig(&files.path().join("client")).unwrap();
    let text = std::fs::read_to_string(&written.path).unwrap();
    assert!(text.contains(&backend.address().to_string()), "{text}");
    backend.apply(service("web", "web")).unwrap();
    let client = client_of(&written.path).await;
    let selected = || watcher::Config::default().labels("app in (web, db)");
    let mut watched = Watched::start(&client, selected());
    watched.expect(&["init", "+web", "done"]).await;
    let mut db = service("db", "db");
    db["spec"]["clusterIP"] = "10.96.0.11".into();
    backend.apply(db).unwrap();
    watched.expect(&["db"]).await;
    assert!(backend.delete("Service", "default", "web").unwrap());
    watched.expect(&["-web"]).await;
    let names = backend.list("Service").unwrap();
    assert!(
        names
            .iter()
            .any(|service| service["metadata"]["name"] == "db")
    );
    Watched::start(&client, selected().streaming_lists())
        .expect(&["init", "+db", "done"])
        .await;
}

#[tokio::test]
async fn a_proxy_cuts_hangs_and_refuses() {
    let site = Site::start();
    site.apply(service("web", "web"));
    let proxy = Proxy::start(None, loopback(), site.server.listener().address()).unwrap();
    let written = site.server.kubeconfig(site.files.path()).unwrap();
    let text = std::fs::read_to_string(&written.path).unwrap();
    let through = text.replace(&site.server.url(), &format!("https://{}", proxy.address()));
    assert_ne!(through, text);
    std::fs::write(&written.path, through).unwrap();
    let client = client_of(&written.path).await;
    let services: Api<Service> = Api::all(client.clone());
    let mut watched = Watched::start(&client, watcher::Config::default());
    watched.expect(&["init", "+web", "done"]).await;
    watched.expect_silence().await;
    assert_eq!(proxy.connections(), 1);

    proxy.set_silent(true);
    site.apply(service("a", "a"));
    watched.expect_silence().await;
    proxy.set_silent(false);
    watched.expect(&["a"]).await;

    proxy.close();
    site.apply(service("b", "b"));
    watched.expect(&["b"]).await;
    proxy.cut();
    watched.expect_error("").await;
    let refused = services.list(&ListParams::default()).await.unwrap_err();
    assert!(
        format!("{refused:?}").contains("ConnectionRefused"),
        "{refused:?}"
    );
    proxy.open().unwrap();
    services.list(&ListParams::default()).await.unwrap();

    proxy.cut();
    proxy.set_deaf(true);
    let list = async || services.list(&ListParams::default()).await;
    assert!(tokio::time::timeout(SILENCE, list()).await.is_err());
    proxy.set_deaf(false);
    list().await.unwrap();
    // Without a server behind it, connections close.
    site.server.listener().shut();
    assert!(tokio::time::timeout(LIMIT, list()).await.unwrap().is_err());
    drop(client);
    drop(watched);
    eventually("connections stay", || proxy.connections() == 0).await;
}

#[test]
fn a_proxy_serves_a_namespace() {
    let ns = NetNs::new("proxy").unwrap();
    let options = testkit::apiserver::Options::default();
    let server = testkit::apiserver::ApiServer::start(&ns, options).unwrap();
    let proxy = Proxy::start(Some(&ns), loopback(), server.listener().address()).unwrap();
    let authority = server.authority().unwrap();
    let client = Client::new(Some(&ns), proxy.address(), Some(&authority), Some(TOKEN)).unwrap();
    client.apply(&service("web", "web")).unwrap();
    assert!(server.get("Service", "default", "web").unwrap().is_some());
    let outside = Client::new(None, proxy.address(), Some(&authority), Some(TOKEN)).unwrap();
    assert!(outside.list("Service").is_err());
}

#[test]
fn etcd_runs_in_a_namespace_of_its_own() {
    let (first, second) = (NetNs::new("etcd-1").unwrap(), NetNs::new("etcd-2").unwrap());
    let files = tempfile::tempdir().unwrap();
    let start = |ns: &NetNs, name: &str| {
        Etcd::start(Some(ns), Path::new(ETCD), &files.path().join(name)).unwrap()
    };
    let mut one = start(&first, "one");
    let two = start(&second, "two");
    assert!(one.url().starts_with("http://127.0.0.1:"));
    let address: SocketAddr = one.url().trim_start_matches("http://").parse().unwrap();
    let client = Client::new(Some(&first), address, None, None).unwrap();
    let put = r#"{"key": "YQ==", "value": "Yg=="}"#;
    let post = |path: &str, body: &'static str| {
        client
            .request(&hyper::Method::POST, path, "application/json", body)
            .unwrap()
    };
    assert_eq!(post("/v3/kv/put", put).status, 200);
    let got = post("/v3/kv/range", r#"{"key": "YQ=="}"#)
        .good("/v3/kv/range")
        .unwrap();
    assert_eq!(got["kvs"][0]["value"], "Yg==");
    let pid = one.process().pid();
    drop((one, two));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let error = Etcd::start(Some(&first), Path::new("/bin/false"), files.path()).unwrap_err();
    assert!(error.to_string().contains("etcd ended"), "{error}");
}

/// A program in the place of kube-apiserver.
fn stand_in(files: &Path, script: &str) -> PathBuf {
    let path = files.join("kube-apiserver");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn what_a_kube_apiserver_is_told_is_there() {
    let ns = NetNs::new("kube").unwrap();
    let files = tempfile::tempdir().unwrap();
    // It looks at each file that it is told of, and at etcd's port, and gives up.
    let script = r#"
for argument in "$@"; do
    echo "$argument"
    case "$argument" in --*-file=*) test -s "${argument#*=}" || echo "no ${argument#*=}" ;; esac
done
exit 7"#;
    let programs = Programs {
        kube_apiserver: stand_in(files.path(), script),
        etcd: ETCD.into(),
    };
    let at: SocketAddr = "127.0.0.1:6443".parse().unwrap();
    let error = RealServer::start(Some(&ns), at, &programs, files.path()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("kube-apiserver ended (exit status: 7)"),
        "{text}"
    );
    for wanted in [
        "--secure-port=6443",
        "--etcd-servers=http://127.0.0.1:",
        "--authorization-mode=RBAC",
    ] {
        assert!(text.contains(wanted), "{text}");
    }
    assert!(!text.contains("\nno "), "{text}");
    let keys = ["server.key", "tokens.csv", "service-accounts.key"];
    for name in keys {
        let mode = std::fs::metadata(files.path().join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    // Nothing of it is left.
    let gone = || ns.processes().map(|left| left.is_empty().then_some(()));
    testkit::wait::until("processes stay", LIMIT, gone).unwrap();
}
