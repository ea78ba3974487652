//! Events: what is wrong with objects is told at them, by one node, once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod source_support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use testkit::apiserver::{Fault, Verb};
use testkit::wait;
use tulle_agent::model::{Kind, NamespacedName, ObjectKey};
use tulle_agent::source::cluster::Complaint;

use source_support::{LIMIT, Site, node, service};

fn complaint(kind: Kind, namespace: &str, name: &str, note: &str) -> Complaint {
    Complaint {
        object: ObjectKey {
            kind,
            name: NamespacedName::new(namespace, name),
        },
        reason: "NotAsWritten",
        note: note.to_owned(),
        normal: false,
        own: kind == Kind::Node,
    }
}

fn events(site: &Site) -> Vec<Value> {
    site.server.list("Event").unwrap()
}

fn until(site: &Site, count: usize) -> Vec<Value> {
    let poll = || Ok((events(site).len() >= count).then(|| events(site)));
    wait::until("events", LIMIT, poll).unwrap()
}

#[test]
fn kp158_events_name_the_object_and_come_once() {
    let site = Site::start();
    site.apply(service("web", 80));
    site.apply(node("node-1"));
    let mut told = site.follow();
    told.until_synced();
    let web = complaint(
        Kind::Service,
        "shop",
        "web",
        "spec.ports[0]: is taken; take another",
    );
    told.cluster.complain([web.clone()].into());
    let all = until(&site, 1);
    let event = &all[0];
    assert_eq!(event["reason"], "NotAsWritten");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["note"], "spec.ports[0]: is taken; take another");
    assert_eq!(event["reportingController"], "tulle-agent");
    assert_eq!(event["reportingInstance"], "node-1");
    assert_eq!(event["metadata"]["namespace"], "shop");
    let object = site.server.get("Service", "shop", "web").unwrap().unwrap();
    assert_eq!(event["regarding"]["uid"], object["metadata"]["uid"]);
    assert_eq!(event["regarding"]["kind"], "Service");

    let here = complaint(Kind::Node, "", "node-1", "slow path: broken");
    told.cluster.complain([web.clone(), here].into());
    assert_eq!(until(&site, 2).len(), 2, "the first is not repeated");
    told.cluster.complain(BTreeSet::new());
    std::thread::sleep(Duration::from_millis(600));
    told.cluster.complain([web].into());
    let late = complaint(Kind::Node, "", "node-1", "uplink: gone");
    told.cluster.complain([late].into());
    until(&site, 3);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(events(&site).len(), 3, "what comes and goes is told once");
}

#[test]
fn one_node_of_many_speaks_for_an_object() {
    let site = Site::start();
    let names = ["node-1", "node-2", "node-3"];
    for name in names {
        site.apply(node(name));
    }
    let services: Vec<String> = (0..12).map(|n| format!("s{n}")).collect();
    for name in &services {
        site.apply(service(name, 80));
    }
    let complaints = || {
        let of = |name: &String| complaint(Kind::Service, "shop", name, "is wrong");
        services.iter().map(of).collect::<BTreeSet<_>>()
    };
    let mut all = Vec::new();
    for name in names {
        let mut options = site.options();
        options.node = name.to_owned();
        let mut told = site.follow_by(options);
        told.until_synced();
        told.cluster.complain(complaints());
        all.push(told);
    }
    until(&site, services.len());
    std::thread::sleep(Duration::from_secs(3));
    let said = events(&site);
    let about: BTreeSet<&str> = said
        .iter()
        .map(|event| event["regarding"]["name"].as_str().unwrap())
        .collect();
    assert_eq!((said.len(), about.len()), (services.len(), services.len()));
    let by: BTreeSet<&str> = said
        .iter()
        .map(|event| event["reportingInstance"].as_str().unwrap())
        .collect();
    assert!(by.len() > 1, "not one for all: {by:?}");
}

#[test]
fn an_event_that_is_refused_is_told_later() {
    let site = Site::start();
    site.apply(service("web", 80));
    let refused = site
        .server
        .fault(Fault::answer(500).of("events").on(Verb::Create).times(1));
    let mut told = site.follow();
    told.until_synced();
    told.cluster
        .complain([complaint(Kind::Service, "shop", "web", "is wrong")].into());
    until(&site, 1);
    assert_eq!(refused.used(), 1);
}
