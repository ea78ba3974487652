//! The tests' API server, by the client that agents use: lists, watches, writes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod apiserver_support;

use std::time::{Duration, Instant};

use apiserver_support::{LIMIT, Site, Watched, eventually, service};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, VersionMatch, WatchEvent,
    WatchParams,
};
use kube::runtime::watcher;
use serde_json::{Value, json};
use testkit::apiserver::{Options, StaleWatch, Verb};

fn code(error: kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_watcher_lists_and_then_sees_changes() {
    let site = Site::start();
    site.apply(service("web", "web"));
    let client = site.client().await;
    let mut watched = Watched::start(&client, watcher::Config::default());
    watched.expect(&["init", "+web", "done"]).await;
    site.apply(service("db", "db"));
    watched.expect(&["db"]).await;
    let version = site.server.version();
    assert_eq!(site.apply(service("db", "db")), version, "nothing changed");
    site.apply(service("db", "other"));
    site.server.delete("Service", "default", "web").unwrap();
    watched.expect(&["db", "-web"]).await;
    let requests = site.server.requests();
    let asked: Vec<_> = requests.iter().map(|r| (r.verb, r.status)).collect();
    assert_eq!(
        asked,
        [
            (Some(Verb::List), Some(200)),
            (Some(Verb::Watch), Some(200))
        ]
    );
    assert!(requests.iter().all(|r| r.user == testkit::apiserver::USER));
}

#[tokio::test]
async fn lists_are_streamed_where_the_server_can() {
    let site = Site::start();
    for n in 0..3 {
        site.apply(service(&format!("s{n}"), "web"));
    }
    let client = site.client().await;
    let streaming = || watcher::Config::default().streaming_lists();
    let mut watched = Watched::start(&client, streaming());
    watched.expect(&["init", "+s0", "+s1", "+s2", "done"]).await;
    site.apply(service("s3", "web"));
    watched.expect(&["s3"]).await;
    assert_eq!(site.server.requests().len(), 1);
    site.server
        .configure(|settings| settings.watch_list = false);
    Watched::start(&client, streaming())
        .expect_error("422")
        .await;
}

#[tokio::test]
async fn pages_are_of_one_state_until_history_is_gone() {
    let site = Site::start();
    for n in 0..10 {
        site.apply(service(&format!("s{n}"), "web"));
    }
    let services: Api<Service> = Api::default_namespaced(site.client().await);
    let at = site.server.version().to_string();
    let mut page = ListParams::default().limit(4);
    let mut names = Vec::new();
    loop {
        let list = services.list(&page).await.unwrap();
        assert_eq!(list.metadata.resource_version.as_ref(), Some(&at));
        names.extend(list.items.into_iter().map(|s| s.metadata.name.unwrap()));
        // What happens between two pages is not seen.
        site.apply(service(&format!("a{}", names.len()), "web"));
        site.server.delete("services", "default", "s9").unwrap();
        match list.metadata.continue_ {
            Some(token) if !token.is_empty() => {
                assert_eq!(
                    list.metadata.remaining_item_count,
                    Some(10 - i64::try_from(names.len()).unwrap())
                );
                page = ListParams::default().limit(4).continue_token(&token);
            }
            _ => break,
        }
    }
    let wanted: Vec<String> = (0..10).map(|n| format!("s{n}")).collect();
    assert_eq!(names, wanted);
    let first = services
        .list(&ListParams::default().limit(1))
        .await
        .unwrap();
    let token = first.metadata.continue_.unwrap();
    site.apply(service("later", "web"));
    site.server.compact();
    let next = services
        .list(&ListParams::default().limit(1).continue_token(&token))
        .await;
    let kube::Error::Api(status) = next.unwrap_err() else {
        panic!("no status");
    };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
}

#[tokio::test]
async fn a_list_is_as_new_or_exactly_as_old_as_asked() {
    let site = Site::start();
    let old = site.apply(service("web", "web"));
    site.apply(service("db", "db"));
    let services: Api<Service> = Api::all(site.client().await);
    let list = async |version: u64, rule| {
        let params = ListParams::default()
            .at(&version.to_string())
            .matching(rule);
        let list = services.list(&params).await;
        list.map(|l| l.items.len()).map_err(code)
    };
    assert_eq!(list(old, VersionMatch::Exact).await, Ok(1));
    assert_eq!(list(old, VersionMatch::NotOlderThan).await, Ok(2));
    assert_eq!(list(0, VersionMatch::NotOlderThan).await, Ok(2));
    let future = site.server.version() + 1;
    assert_eq!(list(future, VersionMatch::NotOlderThan).await, Err(504));
    site.server.compact();
    assert_eq!(list(old, VersionMatch::Exact).await, Err(410));
}

#[tokio::test]
async fn selectors_choose_what_is_listed_and_watched() {
    let site = Site::start();
    site.apply(service("web", "web"));
    site.apply(service("db", "db"));
    site.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p1"}, "spec": {"nodeName": "n1"}}));
    site.apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p2"}, "spec": {"nodeName": "n2"}}));
    let client = site.client().await;
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::all(client.clone());
    let here = pods
        .list(&ListParams::default().fields("spec.nodeName=n2"))
        .await
        .unwrap();
    assert_eq!(here.items.len(), 1);
    let bad = pods
        .list(&ListParams::default().fields("spec.color=red"))
        .await;
    assert_eq!(code(bad.unwrap_err()), 400);
    let mut watched = Watched::start(&client, watcher::Config::default().labels("app in (web)"));
    watched.expect(&["init", "+web", "done"]).await;
    site.apply(service("db", "web")); // enters
    site.apply(service("db", "other")); // leaves
    site.apply(service("cache", "cache")); // never seen
    site.apply(service("web", "web2"));
    watched.expect(&["db", "-db", "-web"]).await;
}

/// A raw watch, each event as its type and the version it is at.
async fn watch_raw(site: &Site, params: &WatchParams, version: u64, events: usize) -> Vec<String> {
    let services: Api<Service> = Api::all(site.client().await);
    let stream = services.watch(params, &version.to_string()).await.unwrap();
    let text = stream.take(events).map_ok(|event| match event {
        WatchEvent::Added(s) => format!("ADDED {}", s.metadata.name.unwrap()),
        WatchEvent::Modified(s) => format!("MODIFIED {}", s.metadata.name.unwrap()),
        WatchEvent::Deleted(s) => format!(
            "DELETED {} {}",
            s.metadata.name.unwrap(),
            s.metadata.resource_version.unwrap()
        ),
        WatchEvent::Bookmark(b) => format!("BOOKMARK {}", b.metadata.resource_version),
        WatchEvent::Error(e) => format!("ERROR {}", e.code),
    });
    tokio::time::timeout(LIMIT, text.try_collect())
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn a_watch_resumes_where_it_is_told() {
    let site = Site::start();
    let first = site.apply(service("web", "web"));
    site.apply(service("web", "other"));
    site.server.delete("Service", "default", "web").unwrap();
    let version = site.server.version();
    let wanted = ["MODIFIED web".to_owned(), format!("DELETED web {version}")];
    assert_eq!(
        watch_raw(&site, &WatchParams::default(), first, 2).await,
        wanted
    );
}

#[tokio::test]
async fn bookmarks_tell_versions_while_nothing_changes() {
    let site = Site::start();
    let version = site.apply(service("web", "web"));
    site.server
        .configure(|s| s.bookmark_interval = Duration::from_millis(20));
    site.server.skip_versions(5);
    let bookmark = format!("BOOKMARK {}", version + 5);
    let seen = watch_raw(&site, &WatchParams::default(), version, 2).await;
    assert_eq!(seen, [bookmark.clone(), bookmark.clone()]);
    // One at the end of a watch's time, and then its end.
    site.server.configure(|s| s.bookmark_interval = LIMIT);
    let began = Instant::now();
    let seen = watch_raw(&site, &WatchParams::default().timeout(1), version, 9).await;
    assert_eq!(seen, [bookmark]);
    assert!(began.elapsed() >= Duration::from_millis(900));
    site.server.configure(|s| s.bookmarks = false);
    let seen = watch_raw(&site, &WatchParams::default().timeout(1), version, 9).await;
    assert_eq!(seen, Vec::<String>::new());
}

#[tokio::test]
async fn a_watch_that_is_too_late_is_told_so_in_both_forms() {
    let site = Site::start();
    let old = site.apply(service("web", "web"));
    site.apply(service("web", "other"));
    site.server.compact();
    let seen = watch_raw(&site, &WatchParams::default(), old, 9).await;
    assert_eq!(seen, ["ERROR 410"]);
    site.server.configure(|s| s.stale_watch = StaleWatch::Http);
    let services: Api<Service> = Api::all(site.client().await);
    let stream = services
        .watch(&WatchParams::default(), &old.to_string())
        .await;
    assert_eq!(code(stream.err().unwrap()), 410);
    // A bounded history ends by itself.
    site.server.configure(|s| s.history = 3);
    let kept = site.server.version();
    for n in 0..3 {
        site.apply(service("web", &format!("v{n}")));
    }
    assert_eq!(
        watch_raw(&site, &WatchParams::default(), kept, 3)
            .await
            .len(),
        3
    );
    site.apply(service("web", "v4"));
    let stream = services
        .watch(&WatchParams::default(), &kept.to_string())
        .await;
    assert_eq!(code(stream.err().unwrap()), 410);
}

#[tokio::test]
async fn objects_are_made_changed_and_removed() {
    let site = Site::start();
    let client = site.client().await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "shop");
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"generateName": "web-"}, "addressType": "IPv4", "endpoints": [],
    }))
    .unwrap();
    let made = slices.create(&PostParams::default(), &slice).await.unwrap();
    let name = made.metadata.name.clone().unwrap();
    assert!(name.starts_with("web-") && made.metadata.uid.is_some());
    assert_eq!(made.metadata.generation, Some(1));
    let twice = slices.create(&PostParams::default(), &made).await;
    assert_eq!(code(twice.unwrap_err()), 409);

    let mut changed = made.clone();
    changed.endpoints = serde_json::from_value(json!([{"addresses": ["10.0.0.1"]}])).unwrap();
    let now = slices
        .replace(&name, &PostParams::default(), &changed)
        .await
        .unwrap();
    assert_eq!(now.metadata.generation, Some(2));
    let stale = slices
        .replace(&name, &PostParams::default(), &changed)
        .await;
    assert_eq!(code(stale.unwrap_err()), 409);

    slices
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(code(slices.get(&name).await.unwrap_err()), 404);
    assert_eq!(
        site.server.get("EndpointSlice", "shop", &name).unwrap(),
        None
    );
}

#[tokio::test]
async fn patches_change_parts_and_status_has_its_own() {
    let site = Site::start();
    site.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {"phase": "old"}}));
    let nodes: Api<Node> = Api::all(site.client().await);
    let annotate = |value: Value| {
        Patch::Merge(json!({"metadata": {"annotations": {"tulle.io/direct-return": value}}}))
    };
    let params = PatchParams::default();
    let node = nodes
        .patch("n1", &params, &annotate(json!("IPv4")))
        .await
        .unwrap();
    assert_eq!(
        node.metadata.annotations.unwrap()["tulle.io/direct-return"],
        "IPv4"
    );
    let version = node.metadata.resource_version.clone();
    let same = nodes
        .patch("n1", &params, &annotate(json!("IPv4")))
        .await
        .unwrap();
    assert_eq!(same.metadata.resource_version, version, "nothing changed");
    let none = nodes
        .patch("n1", &params, &annotate(Value::Null))
        .await
        .unwrap();
    assert!(none.metadata.annotations.is_none_or(|a| a.is_empty()));

    let status =
        Patch::Merge(json!({"status": {"phase": "new"}, "metadata": {"labels": {"a": "b"}}}));
    nodes.patch("n1", &params, &status).await.unwrap();
    let phase = || site.server.get("Node", "", "n1").unwrap().unwrap()["status"]["phase"].clone();
    assert_eq!(phase(), "old");
    nodes.patch_status("n1", &params, &status).await.unwrap();
    assert_eq!(phase(), "new");

    let apply =
        Patch::Apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}));
    nodes
        .patch("n2", &PatchParams::apply("test"), &apply)
        .await
        .unwrap();
    assert!(site.server.get("Node", "", "n2").unwrap().is_some());
    let absent = nodes.patch("n3", &params, &annotate(json!("IPv4"))).await;
    assert_eq!(code(absent.unwrap_err()), 404);
}

#[tokio::test]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let site = Site::start();
    site.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "finalizers": ["x/y"]}}));
    let nodes: Api<Node> = Api::all(site.client().await);
    nodes.delete("n1", &DeleteParams::default()).await.unwrap();
    let marked = nodes.get("n1").await.unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    nodes
        .patch("n1", &PatchParams::default(), &free)
        .await
        .unwrap();
    assert_eq!(code(nodes.get("n1").await.unwrap_err()), 404);
}

#[tokio::test]
async fn events_that_a_real_server_refuses_are_refused() {
    use kube::runtime::events::{Event, EventType, Recorder, Reporter};
    let site = Site::start();
    let client = site.client().await;
    let reporter = Reporter {
        controller: "tulle.io/agent".to_owned(),
        instance: Some("node-1".to_owned()),
    };
    let recorder = Recorder::new(client, reporter);
    let about = k8s_openapi::api::core::v1::ObjectReference {
        kind: Some("Service".to_owned()),
        name: Some("web".to_owned()),
        namespace: Some("shop".to_owned()),
        ..Default::default()
    };
    let event = |action: &str| Event {
        type_: EventType::Warning,
        reason: "BadSourceRange".to_owned(),
        note: Some("10.0.0.0/33 is no network".to_owned()),
        action: action.to_owned(),
        secondary: None,
    };
    recorder.publish(&event("Sync"), &about).await.unwrap();
    recorder.publish(&event("Sync"), &about).await.unwrap();
    let events = site.server.list("Event").unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["series"]["count"], 2);
    let refused = recorder.publish(&event(""), &about).await;
    assert_eq!(code(refused.unwrap_err()), 422);
}

#[tokio::test]
async fn it_says_what_it_has() {
    let site = Site::start();
    let client = site.client().await;
    assert_eq!(client.apiserver_version().await.unwrap().major, "1");
    let groups = client.list_api_groups().await.unwrap();
    assert!(groups.groups.iter().any(|g| g.name == "discovery.k8s.io"));
    let core = client.list_core_api_resources("v1").await.unwrap();
    assert!(core.resources.iter().any(|r| r.name == "nodes/status"));
}

#[tokio::test]
async fn large_clusters_are_made_and_listed_soon() {
    let site = Site::of(Options::default().plain());
    let began = Instant::now();
    let services = (0..10_000).map(|n| service(&format!("s{n:05}"), "web"));
    let nodes = (0..5000).map(
        |n| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{n:04}")}}),
    );
    site.server.apply_many(services.chain(nodes)).unwrap();
    let services: Api<Service> = Api::all(site.client().await);
    let list = services.list(&ListParams::default()).await.unwrap();
    assert_eq!(list.items.len(), 10_000);
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn streams_end_with_their_clients() {
    let site = Site::start();
    let client = site.client().await;
    let mut watched = Watched::start(&client, watcher::Config::default());
    watched.expect(&["init", "done"]).await;
    assert_eq!(site.server.listener().connections(), 1);
    drop((watched, client));
    eventually("the connection stays", || {
        site.server.listener().connections() == 0
    })
    .await;
}
