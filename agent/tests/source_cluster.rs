//! The Kubernetes API as a source, on an API server of the tests' own: what is asked, what is told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod source_support;

use std::time::Duration;

use serde_json::json;
use testkit::apiserver::{Fault, Rule, Verb};
use tulle_agent::model::{Kind, NamespacedName, ObjectKey};
use tulle_agent::source::cluster::Complaint;

use source_support::{Site, node, service, slice};

/// Long enough to tell that nothing comes.
const PAUSE: Duration = Duration::from_millis(300);

#[test]
fn kp128_the_first_batch_is_everything_and_comes_after_every_list() {
    let site = Site::start();
    let late = site
        .server
        .fault(Fault::new(testkit::apiserver::Effect::Hang).of("endpointslices"));
    site.apply(service("web", 80));
    site.apply(slice("shop", "web", "10.244.1.2", 8080));
    site.apply(node("node-1"));
    site.apply(
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
    );
    let mut told = site.follow();
    assert!(told.next(PAUSE * 3).is_none(), "a list is missing");
    late.lift();
    // What hangs stays so; the source begins anew when it loses patience, or the connection.
    site.server.listener().reset_connections();
    let first = told.next(source_support::LIMIT).unwrap();
    assert_eq!(
        first.changes.len(),
        5,
        "four objects and the end of the lists"
    );
    assert!(told.synced);

    site.apply(service("other", 80));
    told.until_services(&["other", "web"]);
    site.apply(service("other", 81));
    let before = told.batches.len();
    told.until("changed", |told| told.batches.len() > before);
    site.delete_service("web");
    told.until_services(&["other"]);
}

#[test]
fn a_server_without_streaming_lists_is_read_by_pages() {
    let site = Site::start();
    site.server
        .configure(|settings| settings.watch_list = false);
    let services = (0..1203).map(|n| service(&format!("s{n}"), 80));
    site.server.apply_many(services).unwrap();
    let mut told = site.follow();
    told.until_synced();
    assert_eq!(told.services().len(), 1203);
    let pages = site
        .server
        .requests()
        .into_iter()
        .filter(|request| request.resource == "services" && request.verb == Some(Verb::List));
    assert_eq!(pages.count(), 3, "of 500 objects each");
    site.apply(service("late", 80));
    told.until("aware of the late one", |told| {
        told.services().len() == 1204
    });
}

#[test]
fn a_continuation_that_is_history_begins_anew() {
    let site = Site::start();
    site.server
        .configure(|settings| settings.watch_list = false);
    let services = (0..1203).map(|n| service(&format!("s{n}"), 80));
    site.server.apply_many(services).unwrap();
    let expired = Fault::new(testkit::apiserver::Effect::Expired);
    let expired = site
        .server
        .fault(expired.of("services").on(Verb::List).skip(1).times(1));
    let mut told = site.follow();
    told.until_synced();
    assert_eq!(told.services().len(), 1203);
    assert_eq!(expired.used(), 1);
}

#[test]
fn the_server_selects_what_can_mean_something() {
    let site = Site::start();
    let mut headless = slice("shop", "none", "10.244.1.2", 80);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    site.apply(headless);
    let mut foreign = slice("shop", "foreign", "10.244.1.3", 80);
    foreign["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("x");
    site.apply(foreign);
    let mut none = service("none", 80);
    none["spec"]["clusterIP"] = json!("None");
    none["spec"]["clusterIPs"] = json!(["None"]);
    site.apply(none);
    site.apply(service("web", 80));
    site.apply(slice("shop", "web", "10.244.1.4", 80));
    let mut told = site.follow();
    told.until_synced();
    let there: Vec<&str> = told.there.iter().map(String::as_str).collect();
    assert_eq!(there, ["EndpointSlice shop/web", "Service shop/web"]);
    let pods = site
        .server
        .requests()
        .into_iter()
        .any(|request| request.resource == "pods");
    assert!(!pods, "Pods are nobody's business without --host-ports");
}

#[test]
fn host_ports_ask_for_the_pods_of_this_node() {
    let site = Site::start();
    for (name, on) in [("here", "node-1"), ("there", "node-2")] {
        site.apply(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"nodeName": on, "containers": [{"name": "c",
                "ports": [{"containerPort": 80, "hostPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.244.1.7"}]}}));
    }
    let mut options = site.options();
    options.host_ports = true;
    let mut told = site.follow_by(options);
    told.until_synced();
    assert!(told.there.contains("Pod shop/here") && !told.there.contains("Pod shop/there"));
}

#[test]
fn a_server_without_service_cidrs_has_none() {
    let site = Site::start();
    let absent = site.server.fault(Fault::answer(404).of("servicecidrs"));
    site.apply(service("web", 80));
    let mut told = site.follow();
    told.until_synced();
    assert!(absent.used() > 0);
    told.until_contact("well", <[String]>::is_empty);
}

/// RBAC no wider than the calls: with exactly these rules nothing is forbidden, and each is used.
#[test]
fn the_role_is_enough_and_needed() {
    let site = Site::start();
    let rule = |group: &str, resource: &str| json!({"apiGroups": [group], "resources": [resource], "verbs": ["list", "watch"]});
    let rules = vec![
        rule("", "services"),
        rule("", "nodes"),
        rule("discovery.k8s.io", "endpointslices"),
        rule("networking.k8s.io", "servicecidrs"),
    ];
    let role = |rules: &[serde_json::Value]| Rule::of_role(&json!({"rules": rules})).unwrap();
    let user = testkit::apiserver::USER;
    site.server.restrict(user, Some(role(&rules)));
    site.apply(service("web", 80));
    let mut told = site.follow();
    told.until_synced();
    site.apply(service("late", 80));
    told.until_services(&["late", "web"]);
    assert_eq!(site.server.forbidden().len(), 0);
    drop(told);

    site.server.restrict(user, Some(role(&rules[1..])));
    let mut told = site.follow();
    let said = told.until_contact("forbidden", |said| !said.is_empty());
    assert!(said[0].contains("Service cannot be followed") && said[0].contains("ClusterRole"));
    assert!(
        told.next(PAUSE).is_none(),
        "nothing is told before the list is there"
    );
    site.server.restrict(user, Some(role(&rules)));
    told.until_synced();
    told.until_contact("well", <[String]>::is_empty);
}

/// Whichever verb of whichever resource is missing, the fault names both and the kind.
#[test]
fn what_the_role_lacks_is_named() {
    let site = Site::start();
    // Else nothing is listed but by watches.
    site.server
        .configure(|settings| settings.watch_list = false);
    let all = [
        ("", "services", "Service"),
        ("", "nodes", "Node"),
        ("discovery.k8s.io", "endpointslices", "EndpointSlice"),
        ("networking.k8s.io", "servicecidrs", "ServiceCIDR"),
    ];
    for (_, lacking, kind) in all {
        for (verb, other) in [("list", "watch"), ("watch", "list")] {
            let rule = |(group, resource, _): (&str, &str, &str)| {
                let verbs = if resource == lacking {
                    vec![other]
                } else {
                    vec!["list", "watch"]
                };
                json!({"apiGroups": [group], "resources": [resource], "verbs": verbs})
            };
            let role = Rule::of_role(&json!({"rules": all.map(rule)})).unwrap();
            site.server.restrict(testkit::apiserver::USER, Some(role));
            let named = format!("cannot {verb} resource \"{lacking}\"");
            let said = site.follow().until_contact(&named, |said| !said.is_empty());
            assert_eq!(said.len(), 1, "{said:?}");
            for words in [&*named, kind, "ClusterRole"] {
                assert!(said[0].contains(words), "{words}: {said:?}");
            }
        }
    }
}

/// The same with the role that `deploy/manifests` installs.
#[test]
fn the_role_that_is_installed_is_enough() {
    use serde::Deserialize;
    let manifests = include_str!("../../deploy/manifests/tulle.yaml");
    let role = serde_norway::Deserializer::from_str(manifests)
        .map(|document| serde_json::Value::deserialize(document).unwrap())
        .find(|object| object["kind"] == "ClusterRole")
        .unwrap();
    let site = Site::start();
    let rules = Rule::of_role(&role).unwrap();
    site.server.restrict(testkit::apiserver::USER, Some(rules));
    site.apply(node("node-1"));
    site.apply(service("web", 80));
    let mut told = site.follow();
    told.until_synced();
    site.apply(service("late", 80));
    told.until_services(&["late", "web"]);
    let complaint = |kind, namespace: &str, name: &str| Complaint {
        object: ObjectKey {
            kind,
            name: NamespacedName::new(namespace, name),
        },
        reason: "NotAsWritten",
        note: "is wrong".to_owned(),
        normal: false,
        own: kind == Kind::Node,
    };
    let of_node = complaint(Kind::Node, "", "node-1");
    let of_service = complaint(Kind::Service, "shop", "web");
    told.cluster.complain([of_node, of_service].into());
    let events = || Ok((site.server.list("Event")?.len() == 2).then_some(()));
    testkit::wait::until("events", source_support::LIMIT, events).unwrap();
    assert_eq!(site.server.forbidden().len(), 0);
}

#[test]
fn ages_and_restarts_are_measured() {
    let site = Site::start();
    let mut told = site.follow();
    told.until_synced();
    let gauges = told.cluster.gauges().clone();
    let all: Vec<_> = gauges.ages().collect();
    assert_eq!(all.len(), 4);
    assert!(
        all.iter()
            .all(|(_, age)| age.is_some_and(|a| a < Duration::from_mins(1))),
        "{all:?}"
    );
    assert!(gauges.restarts().is_empty());
    site.server.compact();
    let error = testkit::apiserver::Effect::Expired;
    let gone = site
        .server
        .fault(Fault::new(error).of("services").on(Verb::Watch).times(1));
    site.server.listener().reset_connections();
    let met = || Ok((gone.used() > 0).then_some(()));
    testkit::wait::until("history that is gone", source_support::LIMIT, met).unwrap();
    site.apply(service("late", 80));
    told.until_services(&["late"]);
    let restarts = gauges.restarts();
    assert_eq!(
        restarts.get(&(Kind::Service, "gone")),
        Some(&1),
        "{restarts:?}"
    );
    assert!(restarts.keys().any(|(_, reason)| *reason == "broken"));
}
