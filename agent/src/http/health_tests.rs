use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::model::convert;

struct Clock {
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    fn at(&self, secs: u64) -> Instant {
        self.start + Duration::from_secs(secs)
    }

    fn now(&self, secs: u64) -> Now {
        Now {
            instant: self.at(secs),
            time: wall(secs),
            busy: None,
        }
    }
}

fn wall(secs: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
}

/// A node that stays, nothing written yet.
fn stays() -> Health {
    Health {
        node: NodeState::Stays,
        serves: true,
        ..Health::default()
    }
}

fn body(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap()
}

#[test]
fn kp150_healthy_while_starting_and_idle() {
    let clock = Clock::new();
    assert_eq!(livez(&Health::default(), clock.now(0)).status, 200);
    assert_eq!(livez(&stays(), clock.now(10_000)).status, 200);
    let mut health = stays();
    health.syncs.queue(clock.at(5), wall(5));
    health.syncs.written(|_| false, clock.at(6), wall(6));
    assert_eq!(livez(&health, clock.now(10_000)).status, 200);
}

#[test]
fn kp150_a_change_that_waits_for_a_minute_in_one_family() {
    for late in [Family::V4, Family::V6] {
        let clock = Clock::new();
        let mut health = stays();
        health.syncs.queue(clock.at(100), wall(100));
        health
            .syncs
            .written(|family| family == late, clock.at(101), wall(101));
        for probe in [livez, healthz] {
            assert_eq!(probe(&health, clock.now(159)).status, 200);
            let answer = probe(&health, clock.now(160));
            assert_eq!(answer.status, 503);
            let body = body(&answer);
            assert_eq!(body["healthy"], false);
            for family in [Family::V4, Family::V6] {
                let status = &body["status"][family.name()];
                assert_eq!(status["healthy"], family != late, "{body}");
            }
        }
        // Changes that the other family writes meanwhile do not help.
        health.syncs.queue(clock.at(170), wall(170));
        health
            .syncs
            .written(|family| family == late, clock.at(170), wall(170));
        assert_eq!(livez(&health, clock.now(170)).status, 503);
        health.syncs.written(|_| false, clock.at(171), wall(171));
        assert_eq!(livez(&health, clock.now(171)).status, 200);
    }
}

#[test]
fn kp150_a_loop_that_hangs_is_late_in_both_families() {
    let clock = Clock::new();
    let mut now = clock.now(60);
    for probe in [livez, healthz] {
        now.busy = Some(clock.at(1));
        assert_eq!(probe(&stays(), now).status, 200);
        now.busy = Some(clock.at(0));
        assert_late(&probe(&stays(), now));
    }
}

/// A restart brings no uplink back.
#[test]
fn programs_that_are_missing_concern_load_balancers_and_not_the_liveness_probe() {
    let clock = Clock::new();
    let mut health = stays();
    health.syncs.set_programs(false, clock.at(0));
    assert_eq!(healthz(&health, clock.now(59)).status, 200);
    assert_late(&healthz(&health, clock.now(60)));
    assert_eq!(readyz(&health, None, clock.now(60)).status, 503);
    let alive = livez(&health, clock.now(100_000));
    assert_eq!(alive.status, 200);
    assert_eq!(body(&alive)["healthy"], true);
}

fn assert_late(answer: &Answer) {
    assert_eq!(answer.status, 503);
    for family in ["IPv4", "IPv6"] {
        assert_eq!(body(answer)["status"][family]["healthy"], false);
    }
}

#[test]
fn kp151_which_nodes_are_eligible() {
    let clock = Clock::new();
    let node = |meta: &Value, spec: &Value| {
        let mut object = json!({"apiVersion": "v1", "kind": "Node", "spec": spec});
        object["metadata"] = meta.clone();
        convert::node(&serde_json::from_value(object).unwrap())
            .unwrap()
            .object
    };
    let named = json!({"name": "n0"});
    let deleted = json!({"name": "n0", "deletionTimestamp": "2026-01-01T00:00:00Z"});
    let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
    let autoscaler = "ToBeDeletedByClusterAutoscaler";
    for (meta, spec, eligible) in [
        (&named, json!({}), true),
        (
            &named,
            taint("node.kubernetes.io/not-ready", "NoExecute"),
            true,
        ),
        (&named, json!({"unschedulable": true}), true),
        (&named, taint(autoscaler, "NoSchedule"), false),
        (&named, taint(autoscaler, "PreferNoSchedule"), false),
        (
            &named,
            json!({"taints": [{"key": "a", "effect": "NoSchedule"},
                              {"key": autoscaler, "value": "9", "effect": "NoExecute"}]}),
            false,
        ),
        (&deleted, json!({}), false),
    ] {
        let health = Health {
            node: NodeState::from(Some(&node(meta, &spec))),
            ..stays()
        };
        let status = if eligible { 200 } else { 503 };
        let answer = healthz(&health, clock.now(1));
        assert_eq!(answer.status, status, "{meta} {spec}");
        assert_eq!(body(&answer)["nodeEligible"], eligible);
        assert_eq!(livez(&health, clock.now(1)).status, 200, "{meta} {spec}");
    }
    let unknown = Health {
        node: NodeState::from(None),
        ..stays()
    };
    assert_eq!(healthz(&unknown, clock.now(1)).status, 503);
    assert_eq!(livez(&unknown, clock.now(1)).status, 200);
}

#[test]
fn kp152_bodies() {
    let clock = Clock::new();
    let mut health = stays();
    health.syncs.queue(clock.at(10), wall(10));
    health
        .syncs
        .written(|family| family == Family::V6, clock.at(10), wall(10));
    let status = |healthy6: bool| {
        json!({"IPv4": {"lastUpdated": "1970-01-01T00:00:10Z", "healthy": true},
               "IPv6": {"lastUpdated": "0001-01-01T00:00:00Z", "healthy": healthy6}})
    };
    // While the response is 200, "now" is when it was updated last.
    let well = json!({"lastUpdated": "1970-01-01T00:00:40Z", "currentTime": "1970-01-01T00:00:40Z",
                      "healthy": true, "status": status(true)});
    assert_eq!(body(&livez(&health, clock.now(40))), well);
    let mut eligible = well;
    eligible["nodeEligible"] = true.into();
    assert_eq!(body(&healthz(&health, clock.now(40))), eligible);
    let late = json!({"lastUpdated": "1970-01-01T00:00:10Z", "currentTime": "1970-01-01T00:01:10Z",
                      "healthy": false, "status": status(false)});
    assert_eq!(body(&livez(&health, clock.now(70))), late);
    // `healthy` is of syncs alone, and may be true in a 503.
    health.node = NodeState::Leaving(Leaving::ScaledDown);
    let answer = healthz(&health, clock.now(40));
    assert_eq!(answer.status, 503);
    let leaving = json!({"lastUpdated": "1970-01-01T00:00:10Z",
                         "currentTime": "1970-01-01T00:00:40Z", "nodeEligible": false,
                         "healthy": true, "status": status(true)});
    assert_eq!(body(&answer), leaving);
}

#[test]
fn ready_once_it_serves_and_for_as_long_as_its_programs_are_there() {
    let clock = Clock::new();
    let now = clock.now(1000);
    let mut health = Health::default();
    let answer = readyz(&health, Some("the first full list of objects"), now);
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("first full list"), "{answer:?}");
    health.serves = true;
    assert_eq!(
        readyz(&health, None, now),
        Answer {
            status: 200,
            body: "ok".into()
        }
    );
    // Neither a Node that is gone nor a change that cannot be written takes it away.
    health.syncs.queue(clock.at(0), wall(0));
    health.node = NodeState::Unknown;
    assert_eq!(readyz(&health, None, now).status, 200);
    health.syncs.set_programs(false, clock.at(940));
    assert_eq!(readyz(&health, None, now).status, 503);
    assert_eq!(readyz(&health, None, clock.now(999)).status, 200);
}
