//! Events for who looks at an object with `kubectl`: what is wrong with it, said once (KP-158).
//!
//! Whatever the whole cluster can see is told by one node for all, chosen by the object's name,
//! so that a thousand nodes don't say the same.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
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
use crate::model::{Kind, ObjectKey};

/// Who says it.
const REPORTER: &str = "tulle-agent";
/// At most so many are told by one node at the same time: more than a user reads.
const MOST: usize = 200;
/// Points that a node has on the circle of [`Speakers`], so that all have about as much to tell.
const POINTS: u32 = 16;
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
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
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
    // Those that were another node's to tell when they came.
    let mut others: HashSet<u64> = HashSet::new();
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
        let speakers = Speakers::of(&shared, &node);
        others = of_others(&all, &speakers, &others);
        let known = |complaint: &Complaint| {
            told.contains_key(complaint) || others.contains(&rank(complaint))
        };
        // Whom it is for to tell is looked at first, or all nodes would tell the same few.
        for complaint in mine(&all, &speakers, known) {
            let published = publish(&shared, &reporter, complaint);
            let failed = match tokio::time::timeout(PATIENCE, published).await {
                Ok(Ok(())) => false,
                Ok(Err(error)) => {
                    tracing::debug!("no event about {}: {error:#}", complaint.object);
                    true
                }
                Err(_) => true,
            };
            tokio::time::sleep(GAP).await;
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

/// Of all complaints those that this node tells and has not `told`, as far as there is room.
fn mine<'a>(
    all: &'a BTreeSet<Complaint>,
    speakers: &Speakers,
    told: impl Fn(&Complaint) -> bool,
) -> Vec<&'a Complaint> {
    let (known, mut fresh): (Vec<&Complaint>, Vec<&Complaint>) = all
        .iter()
        .filter(|complaint| speakers.tell(complaint))
        .partition(|complaint| told(complaint));
    // What no other node knows goes first.
    fresh.sort_by_key(|complaint| !complaint.own);
    fresh.truncate(MOST.saturating_sub(known.len()));
    fresh
}

/// Those that others tell or told: where nodes come and go, nothing is told again for it.
fn of_others(
    all: &BTreeSet<Complaint>,
    speakers: &Speakers,
    before: &HashSet<u64>,
) -> HashSet<u64> {
    let others = all.iter().map(|complaint| (complaint, rank(complaint)));
    let others =
        others.filter(|(complaint, rank)| before.contains(rank) || !speakers.tell(complaint));
    others.map(|(_, rank)| rank).collect()
}

/// Which objects this node tells of for all: nodes have points on a circle, and an object is told of by
/// the node whose point comes next. So a node that comes or goes changes little.
#[derive(Debug)]
struct Speakers {
    /// In order; whether they are this node's.
    points: Vec<(u64, bool)>,
}

impl Speakers {
    fn of(shared: &Shared, node: &str) -> Self {
        let book = shared.book.lock().unwrap_or_else(PoisonError::into_inner);
        Self::among(book.names(Kind::Node).map(|name| &*name.name), node)
    }

    fn among<'a>(nodes: impl Iterator<Item = &'a str>, own: &str) -> Self {
        let points = |name: &'a str| {
            let is_own = name == own;
            (0..POINTS).map(move |point| (rank(&(name, point)), is_own))
        };
        let mut points: Vec<(u64, bool)> = nodes.flat_map(points).collect();
        points.sort_unstable();
        Self { points }
    }

    fn tell(&self, complaint: &Complaint) -> bool {
        complaint.own || self.chose(&complaint.object)
    }

    /// Whether this node tells of an object; it does if there is none.
    fn chose(&self, object: &ObjectKey) -> bool {
        let rank = rank(object);
        let at = self.points.partition_point(|(point, _)| *point < rank);
        let next = self.points.get(at).or(self.points.first());
        next.is_none_or(|(_, is_own)| *is_own)
    }
}

/// The same on every node, which the standard library's own keys are not.
fn rank(of: &impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(of)
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
    use crate::model::NamespacedName;

    fn object(n: usize) -> ObjectKey {
        ObjectKey {
            kind: Kind::Service,
            name: NamespacedName::new("shop", format!("s{n}")),
        }
    }

    const NODES: [&str; 3] = ["a", "b", "c"];

    #[test]
    fn each_object_has_one_node_that_speaks() {
        let speakers = NODES.map(|own| Speakers::among(NODES.into_iter(), own));
        let reversed = NODES.map(|own| Speakers::among(NODES.into_iter().rev(), own));
        let fewer = NODES.map(|own| Speakers::among(["a", "b"].into_iter(), own));
        let mut spoke = [0; 3];
        for object in (0..300).map(object) {
            let chosen = speakers.each_ref().map(|one| one.chose(&object));
            assert_eq!(chosen.iter().filter(|chosen| **chosen).count(), 1);
            assert_eq!(reversed.each_ref().map(|one| one.chose(&object)), chosen);
            for (count, chosen) in spoke.iter_mut().zip(chosen) {
                *count += u32::from(chosen);
            }
            // What was not the third one's stays where it was.
            let without = fewer.each_ref().map(|one| one.chose(&object));
            assert!(chosen[2] || without == chosen, "{object}");
        }
        assert!(spoke.iter().all(|count| *count > 30), "{spoke:?}");
        assert!(Speakers::among([].into_iter(), "a").chose(&object(1)));
    }

    /// Thousands are told by all nodes together, not the first few by some of them.
    #[test]
    fn each_node_has_room_for_its_own_part() {
        let complaint = |n: usize| Complaint {
            object: object(n),
            reason: "NotAsWritten",
            note: String::new(),
            normal: false,
            own: false,
        };
        let all: BTreeSet<Complaint> = (0..500).map(complaint).collect();
        let mut told = BTreeSet::new();
        for own in NODES {
            let speakers = Speakers::among(NODES.into_iter(), own);
            let mine = mine(&all, &speakers, |_| false);
            assert!(mine.len() <= MOST && !mine.is_empty());
            told.extend(mine);
        }
        let few: BTreeSet<Complaint> = all.iter().take(200).cloned().collect();
        assert!(told.len() > 200 && !told.iter().all(|told| few.contains(*told)));
        // What is told makes room for nothing else while it lasts.
        let alone = Speakers::among(["a"].into_iter(), "a");
        let first = mine(&all, &alone, |_| false);
        assert_eq!(first.len(), MOST);
        let known = |complaint: &Complaint| first.contains(&complaint);
        assert!(mine(&all, &alone, known).is_empty());
        let left: BTreeSet<Complaint> = all.iter().skip(5).cloned().collect();
        assert_eq!(mine(&left, &alone, known).len(), 5);
    }

    #[test]
    fn what_another_node_told_is_not_told_again_when_that_goes() {
        let complaint = |n: usize| Complaint {
            object: object(n),
            reason: "NotAsWritten",
            note: String::new(),
            normal: false,
            own: n == 0,
        };
        let all: BTreeSet<Complaint> = (0..90).map(complaint).collect();
        let among = Speakers::among(NODES.into_iter(), "a");
        let others = of_others(&all, &among, &HashSet::new());
        let own = mine(&all, &among, |_| false);
        assert!(own.len() + others.len() == 90 && own[0].own);
        let alone = Speakers::among(["a"].into_iter(), "a");
        let others = of_others(&all, &alone, &others);
        let known = |complaint: &Complaint| others.contains(&rank(complaint));
        let now = mine(&all, &alone, known);
        assert_eq!(now.len(), own.len());
        // It is forgotten when it goes.
        assert!(of_others(&BTreeSet::new(), &alone, &others).is_empty());
    }
}
