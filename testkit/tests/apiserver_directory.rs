//! The tests' API server has what a directory of manifests says, as agents read it by `--state`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod apiserver_support;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use apiserver_support::{LIMIT, SILENCE, Site, Watched, eventually};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use serde_json::json;
use testkit::manifests::{Endpoint, Protocol, Service, StateDir, many_services};

fn endpoint(n: u8) -> Endpoint {
    Endpoint {
        ips: vec![Ipv4Addr::new(10, 244, 1, n).into()],
        node: "node-1".to_owned(),
        pod: format!("pod-{n}"),
        ready: true,
        serving: true,
        terminating: false,
    }
}

fn web(endpoints: u8) -> Service {
    let ip: IpAddr = Ipv4Addr::new(10, 96, 0, 10).into();
    let mut service = Service::new("web", &[ip]).port(Protocol::Tcp, 80, 8080);
    service.endpoints = (1..=endpoints).map(endpoint).collect();
    service
}

fn state(site: &Site) -> StateDir {
    StateDir::create(site.files.path().join("state")).unwrap()
}

#[tokio::test]
async fn objects_come_change_and_go_with_their_files() {
    let site = Site::start();
    let state = state(&site);
    state.write_service(&web(1)).unwrap();
    let follower = site.server.follow_directory(state.path()).unwrap();
    let count = || {
        let slice = site
            .server
            .get("EndpointSlice", "default", "web-ipv4")
            .unwrap();
        slice.map(|s| s["endpoints"].as_array().unwrap().len())
    };
    assert_eq!(count(), Some(1), "there at once");
    let client = site.client().await;
    let mut watched = Watched::start(&client, watcher::Config::default());
    watched.expect(&["init", "+web", "done"]).await;
    // Only the slice changes, not the service in the same file.
    let version = site.server.version();
    state.write_service(&web(2)).unwrap();
    follower.wait(LIMIT).unwrap();
    assert_eq!(count(), Some(2));
    site.server.wait_delivered(LIMIT).unwrap();
    assert_eq!(site.server.version(), version + 1);
    watched.expect_silence().await;
    // A file that cannot be read changes nothing.
    state.put("web.yaml", "a: [").unwrap();
    eventually("no fault", || follower.faults().len() == 1).await;
    assert_eq!(count(), Some(2));
    state.remove_service(&web(2)).unwrap();
    watched.expect(&["-web"]).await;
    assert_eq!(count(), None);
    eventually("a fault stays", || follower.faults().is_empty()).await;
}

#[tokio::test]
async fn what_others_write_to_an_object_stays() {
    let site = Site::start();
    let state = state(&site);
    let node = |label: &str| {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "n1", "labels": {label: "yes"}},
            "spec": {"podCIDR": "10.244.1.0/24"},
        });
        state.put("nodes.json", &object.to_string()).unwrap();
    };
    node("old");
    let _follower = site.server.follow_directory(state.path()).unwrap();
    let nodes: Api<Node> = Api::all(site.client().await);
    let annotate = Patch::Merge(json!({"metadata": {"annotations": {"by": "agent"}}}));
    nodes
        .patch("n1", &PatchParams::default(), &annotate)
        .await
        .unwrap();
    node("new");
    let seen = || site.server.get("Node", "", "n1").unwrap().unwrap();
    eventually("no change", || seen()["metadata"]["labels"]["new"] == "yes").await;
    assert_eq!(seen()["metadata"]["labels"].get("old"), None);
    assert_eq!(seen()["metadata"]["annotations"]["by"], "agent");
    // Removed by somebody, said again by the file: it comes back with its next change.
    site.server.delete("Node", "", "n1").unwrap();
    tokio::time::sleep(SILENCE).await;
    assert_eq!(site.server.get("Node", "", "n1").unwrap(), None);
    node("third");
    eventually("no node", || {
        site.server.get("Node", "", "n1").unwrap().is_some()
    })
    .await;
    assert_eq!(seen()["spec"]["podCIDR"], "10.244.1.0/24");
}

#[tokio::test]
async fn of_two_files_the_first_counts() {
    let site = Site::start();
    let state = state(&site);
    state.put("a.yaml", &web(1).to_string()).unwrap();
    state.put("b.yaml", &web(3).to_string()).unwrap();
    state
        .put(
            ".c.yaml",
            "{apiVersion: v1, kind: Node, metadata: {name: hidden}}",
        )
        .unwrap();
    state
        .put(
            "d.yaml",
            "{apiVersion: v1, kind: Secret, metadata: {name: unknown}}",
        )
        .unwrap();
    let follower = site.server.follow_directory(state.path()).unwrap();
    let count = || {
        let slice = site
            .server
            .get("EndpointSlice", "default", "web-ipv4")
            .unwrap();
        slice.unwrap()["endpoints"].as_array().unwrap().len()
    };
    assert_eq!(count(), 1);
    assert!(site.server.list("Node").unwrap().is_empty());
    state.remove("a.yaml").unwrap();
    eventually("the second file does not count", || count() == 3).await;
    assert!(follower.faults().is_empty());
    drop(follower);
    state.remove("b.yaml").unwrap();
    tokio::time::sleep(SILENCE).await;
    assert_eq!(count(), 3, "nobody follows any more");
}

#[tokio::test]
async fn many_services_are_there_soon() {
    let site = Site::start();
    let state = state(&site);
    let services = many_services("s", 2000, &[endpoint(1), endpoint(2), endpoint(3)]).unwrap();
    let _follower = site.server.follow_directory(state.path()).unwrap();
    state.write_services("many", &services).unwrap();
    let all = || site.server.list("EndpointSlice").unwrap().len() == 4000;
    let began = std::time::Instant::now();
    eventually("slices are missing", all).await;
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
}
