use std::collections::BTreeMap;

use super::*;
use crate::source::cluster::request::Head;

/// A Service of one port.
fn service(name: &str, port: u16) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"1","annotations":{{"x":"{port}"}}}},
            "spec":{{"clusterIP":"10.96.0.7","clusterIPs":["10.96.0.7"],"ports":[{{"port":{port}}}]}}}}"#
    )
}

fn slice(namespace: &str, service: &str, addrs: &[&str], port: u16) -> String {
    let endpoints: Vec<String> = addrs
        .iter()
        .map(|addr| format!(r#"{{"addresses":["{addr}"]}}"#))
        .collect();
    format!(
        r#"{{"metadata":{{"name":"{service}","namespace":"{namespace}","labels":{{"kubernetes.io/service-name":"{service}"}}}},
            "addressType":"IPv4","ports":[{{"name":"https","port":{port},"protocol":"TCP"}}],
            "endpoints":[{}]}}"#,
        endpoints.join(",")
    )
}

fn raw(json: &str) -> (HeadMeta, Box<RawValue>) {
    let head: Head = serde_json::from_str(json).unwrap();
    (head.metadata, serde_json::from_str(json).unwrap())
}

fn apply(book: &mut Book, json: &str) {
    let (head, json) = raw(json);
    book.apply(Kind::Service, &head, &json);
}

fn delete(book: &mut Book, json: &str) {
    book.delete(Kind::Service, &raw(json).0);
}

fn list(book: &mut Book, objects: &[String]) {
    let mut listing = Listing::new(Kind::Service);
    for object in objects {
        let (head, json) = raw(object);
        listing.add(&head, &json);
    }
    book.replace(listing);
}

/// What a batch says of each name: applied or deleted.
fn told(book: &mut Book) -> BTreeMap<String, bool> {
    let batch = book.take();
    let changes = batch.into_iter().flat_map(|batch| batch.changes);
    let name = |change: Change| match change {
        Change::Apply(object) => (object.key().name.to_string(), true),
        Change::Delete(key) => (key.name.to_string(), false),
        Change::Synced => ("synced".to_owned(), true),
    };
    changes.map(name).collect()
}

fn synced() -> Book {
    let mut book = Book::new([Kind::Service]);
    list(&mut book, &[service("web", 80)]);
    assert_eq!(told(&mut book).len(), 2);
    book
}

#[test]
fn kp128_nothing_is_told_before_every_first_list() {
    let mut book = Book::new([Kind::Service, Kind::EndpointSlice]);
    list(&mut book, &[service("web", 80)]);
    assert!(!book.has_news() && book.take().is_none());
    book.without(Kind::EndpointSlice);
    let all = told(&mut book);
    assert_eq!(all.len(), 2);
    assert!(all["shop/web"] && all["synced"]);
    assert!(book.take().is_none(), "once");

    let mut empty = Book::new([Kind::Service]);
    empty.without(Kind::Service);
    assert!(told(&mut empty)["synced"], "an empty cluster is known, too");
}

#[test]
fn kp130_changes_join_and_cancel_out() {
    let mut book = synced();
    apply(&mut book, &service("new", 80));
    apply(&mut book, &service("new", 81));
    delete(&mut book, &service("new", 81));
    assert!(book.take().is_none(), "it came and went");

    apply(&mut book, &service("web", 81));
    apply(&mut book, &service("web", 80));
    assert!(book.take().is_none(), "it is as it was");

    delete(&mut book, &service("web", 80));
    apply(&mut book, &service("web", 82));
    assert!(told(&mut book)["shop/web"], "one change, no removal");
    delete(&mut book, &service("web", 82));
    assert!(!told(&mut book)["shop/web"]);
}

#[test]
fn kp131_what_the_model_does_not_read_is_no_change() {
    let mut book = synced();
    let annotated = service("web", 80).replace(r#""x":"80""#, r#""x":"other""#);
    apply(
        &mut book,
        &annotated.replace(r#""resourceVersion":"1""#, r#""resourceVersion":"9""#),
    );
    assert!(!book.has_news());
}

#[test]
fn kp141_what_a_new_list_lacks_is_gone() {
    let mut book = synced();
    apply(&mut book, &service("other", 80));
    told(&mut book);
    list(&mut book, &[service("other", 80), service("third", 80)]);
    let all = told(&mut book);
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(!all["shop/web"] && all["shop/third"]);
}

#[test]
fn a_bad_object_stays_as_it_was_and_is_told_of() {
    let mut book = synced();
    let bad = service("web", 80).replace(r#""port":80"#, r#""port":"eighty""#);
    apply(&mut book, &bad);
    let batch = book.take().unwrap();
    assert!(batch.changes.is_empty());
    assert_eq!(batch.warnings.len(), 1);
    let said = batch.warnings[0].to_string();
    assert!(
        said.contains("Service shop/web") && said.contains("spec.ports[0].port"),
        "{said}"
    );

    apply(&mut book, &service("web", 80));
    let mended = book.take().unwrap();
    assert!(mended.changes.is_empty() && mended.warnings.is_empty());

    // One that was never good, and goes.
    apply(&mut book, &bad.replace("web", "bad"));
    assert_eq!(book.take().unwrap().warnings.len(), 1);
    list(&mut book, &[service("web", 80)]);
    assert!(book.take().unwrap().warnings.is_empty());
}

#[test]
fn api_servers_are_learned_from_their_own_slices() {
    let mut book = Book::new([Kind::EndpointSlice]);
    let mut put = |json: String| {
        let (head, json) = raw(&json);
        book.apply(Kind::EndpointSlice, &head, &json);
        let servers = book.servers();
        servers.map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(put(slice("shop", "kubernetes", &["192.0.2.9"], 1)), None);
    assert_eq!(put(slice("default", "web", &["192.0.2.9"], 1)), None);
    let two = ["192.0.2.2", "192.0.2.1"];
    let learned = put(slice("default", "kubernetes", &two, 6443)).unwrap();
    assert_eq!(learned, ["192.0.2.1:6443", "192.0.2.2:6443"]);
    assert_eq!(
        put(slice("default", "kubernetes", &two, 6443)),
        None,
        "no news"
    );
}

#[test]
fn kp160_what_caused_a_change_of_endpoints_is_told_with_it() {
    let slice = |host: &str, at: &str| {
        format!(
            r#"{{"metadata":{{"name":"web","namespace":"shop",
                "annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"{at}"}},
                "labels":{{"kubernetes.io/service-name":"web"}}}},
                "addressType":"IPv4","ports":[],"endpoints":[{{"addresses":["{host}"]}}]}}"#
        )
    };
    let put = |book: &mut Book, host: &str, at: &str| {
        let json = slice(host, at);
        let (head, json) = raw(&json);
        book.apply(Kind::EndpointSlice, &head, &json);
    };
    let mut book = Book::new([Kind::EndpointSlice]);
    book.replace(Listing::new(Kind::EndpointSlice));
    let causes = |book: &mut Book| {
        let batch = book.take();
        let triggers = batch.into_iter().flat_map(|batch| batch.triggers);
        let secs = triggers.map(|trigger| {
            let since = trigger.at.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap().as_secs()
        });
        secs.collect::<Vec<_>>()
    };
    assert_eq!(causes(&mut book), [0; 0]);
    put(&mut book, "10.0.0.1", "1970-01-01T00:00:01Z");
    put(&mut book, "10.0.0.2", "1970-01-01T00:00:02Z");
    assert_eq!(causes(&mut book), [1, 2]);
    // Another time alone is no change.
    put(&mut book, "10.0.0.2", "1970-01-01T00:00:03Z");
    assert_eq!(causes(&mut book), [0; 0]);
    // What ends where it began was nothing, and what is gone says nothing.
    put(&mut book, "10.0.0.3", "1970-01-01T00:00:04Z");
    put(&mut book, "10.0.0.2", "1970-01-01T00:00:05Z");
    assert_eq!(causes(&mut book), [0; 0]);
    put(&mut book, "10.0.0.4", "1970-01-01T00:00:06Z");
    let gone = slice("10.0.0.4", "");
    book.delete(Kind::EndpointSlice, &raw(&gone).0);
    assert_eq!(causes(&mut book), [0; 0]);
}
