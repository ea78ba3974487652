//! Events for who looks at an object with `kubectl`: what is wrong with it, said once (KP-158).
//!
//! Whatever the whole cluster can see is told by one node for all, chosen by the object's name,
//! so that a thousand nodes don't say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Client;
use kube::api::Api;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::watch;

use super::follow::Shared;
use crate::model::{Kind, NamespacedName, ObjectKey};

/// Who says it.
const REPORTER: &str = "tulle-agent";
/// Between two events, so that many faults are no flood.
const GAP: Duration = Duration::from_millis(200);
/// About so long after a first failure the next is tried, and so long after many.
const AGAIN: Duration = Duration::from_secs(5);
const LAST: Duration = Duration::from_mins(10);
/// Failures after which the others wait, too.
const MOST_FAILURES: u32 = 3;
/// What comes again within this time after it went is not told again.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Until the server has answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// The API takes notes of at most 1024 octets.
const LONGEST: usize = 1000;

/// Something that a user should see.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Complaint {
    /// The object that is shown with it.
    pub object: ObjectKey,
    /// Why, in a word in `UpperCamelCase`.
    pub reason: &'static str,
    /// What is wrong, and how to mend it.
    pub note: String,
    /// Whether it is no fault.
    pub normal: bool,
    /// Whether only this node knows it.
    pub own: bool,
}

/// Tells complaints as they come; one that comes and goes is told once.
pub async fn tell(
    shared: Arc<Shared>,
    node: String,
    mut complaints: watch::Receiver<Arc<BTreeSet<Complaint>>>,
) {
    let reporter = Reporter {
        controller: REPORTER.to_owned(),
        instance: Some(node.clone()),
    };
    // When they were there last.
    let mut told: BTreeMap<Complaint, Instant> = BTreeMap::new();
    let mut again = AGAIN;
    loop {
        let all = Arc::clone(&complaints.borrow_and_update());
        let now = Instant::now();
        for (complaint, last) in &mut told {
            if all.contains(complaint) {
                *last = now;
            }
        }
        told.retain(|_, last| now.saturating_duration_since(*last) < REMEMBERED);
        let mut failures = 0;
        for complaint in all.iter() {
            if told.contains_key(complaint) {
                continue;
            }
            let mut failed = false;
            if complaint.own || speaks(&shared, &node, &complaint.object) {
                let published = publish(&shared, &reporter, complaint);
                match tokio::time::timeout(PATIENCE, published).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::debug!("no event about {}: {error:#}", complaint.object);
                        failed = true;
                    }
                    Err(_) => failed = true,
                }
                tokio::time::sleep(GAP).await;
            }
            if !failed {
                told.insert(complaint.clone(), now);
                continue;
            }
            failures += 1;
            if failures >= MOST_FAILURES {
                break;
            }
        }
        let wait = again.mul_f64(0.5 + fastrand::f64());
        again = if failures > 0 {
            (again * 2).min(LAST)
        } else {
            AGAIN
        };
        tokio::select! {
            // What comes while the server refuses waits for its turn.
            changed = complaints.changed(), if failures == 0 => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(wait), if failures > 0 => {}
        }
    }
}

/// Whether this node is the one that tells of an object: that which comes first in an order of
/// nodes that each object has of its own.
fn speaks(shared: &Shared, node: &str, object: &ObjectKey) -> bool {
    let book = shared.book.lock().unwrap_or_else(PoisonError::into_inner);
    chosen(book.names(Kind::Node), object).is_none_or(|first| first == *node)
}

fn chosen<'a>(
    nodes: impl Iterator<Item = &'a NamespacedName>,
    object: &ObjectKey,
) -> Option<String> {
    // The same on every node, which the standard library's own keys are not.
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let rank = |node: &&NamespacedName| hasher.hash_one((&node.name, object));
    nodes.min_by_key(rank).map(|node| node.name.to_string())
}

async fn publish(
    shared: &Shared,
    reporter: &Reporter,
    complaint: &Complaint,
) -> anyhow::Result<()> {
    let client = shared.access.client().await?.client;
    let reference = match reference(client.clone(), &complaint.object).await {
        Ok(reference) => reference,
        // It is gone, and nobody looks at it any more.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut note = complaint.note.clone();
    note.truncate(note.floor_char_boundary(LONGEST));
    let event = Event {
        type_: if complaint.normal {
            EventType::Normal
        } else {
            EventType::Warning
        },
        reason: complaint.reason.to_owned(),
        note: Some(note),
        action: "Sync".to_owned(),
        secondary: None,
    };
    // A recorder would count an event up by its object and reason and drop the other note.
    let recorder = Recorder::new(client, reporter.clone());
    Ok(recorder.publish(&event, &reference).await?)
}

/// The object as events name it. Without the identity that the server gave it, `kubectl describe`
/// does not find them.
async fn reference(client: Client, object: &ObjectKey) -> kube::Result<ObjectReference> {
    let (namespace, name) = (&*object.name.namespace, &*object.name.name);
    let (version, found) = match object.kind {
        Kind::Service => {
            let api = Api::<Service>::namespaced(client, namespace);
            ("v1", api.get_metadata(name).await?.metadata)
        }
        Kind::EndpointSlice => {
            let api = Api::<EndpointSlice>::namespaced(client, namespace);
            (
                "discovery.k8s.io/v1",
                api.get_metadata(name).await?.metadata,
            )
        }
        Kind::Pod => {
            let api = Api::<Pod>::namespaced(client, namespace);
            ("v1", api.get_metadata(name).await?.metadata)
        }
        Kind::Node => {
            let api = Api::<Node>::all(client);
            ("v1", api.get_metadata(name).await?.metadata)
        }
        Kind::ServiceCidr => {
            let api = Api::<ServiceCIDR>::all(client);
            (
                "networking.k8s.io/v1",
                api.get_metadata(name).await?.metadata,
            )
        }
    };
    Ok(ObjectReference {
        api_version: Some(version.to_owned()),
        kind: Some(object.kind.name().to_owned()),
        name: Some(name.to_owned()),
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        uid: found.uid,
        ..ObjectReference::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_has_one_node_that_speaks() {
        let nodes: Vec<NamespacedName> = ["a", "b", "c"].map(|n| NamespacedName::new("", n)).into();
        let of = |name: &str, nodes: &[NamespacedName]| {
            let object = ObjectKey {
                kind: Kind::Service,
                name: NamespacedName::new("shop", name),
            };
            chosen(nodes.iter(), &object)
        };
        let mut speakers = BTreeSet::new();
        for n in 0..64 {
            let name = format!("s{n}");
            let speaker = of(&name, &nodes).unwrap();
            let reversed: Vec<_> = nodes.iter().rev().cloned().collect();
            assert_eq!(
                of(&name, &reversed).as_ref(),
                Some(&speaker),
                "in any order"
            );
            speakers.insert(speaker);
        }
        assert_eq!(speakers.len(), 3, "all take their part");
        assert_eq!(of("s", &[]), None);
    }
}
