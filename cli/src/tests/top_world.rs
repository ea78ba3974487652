//! Samples and views for the tests of `tulle top`.

use std::net::SocketAddr;
use std::time::Duration;

use datapath_common::{Hook, Reason, Traffic, maps, proto};

use crate::tables::{CounterRow, MapUsage};
use crate::top::sample::{Agent, BackendSample, Part, Sample, ServiceSample};
use crate::top::view::View;

pub fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn traffic(n: u64) -> Traffic {
    Traffic {
        flows: n,
        packets: 10 * n,
        bytes: 1000 * n,
        reply_packets: 20 * n,
        reply_bytes: 2000 * n,
    }
}

pub fn service(number: u32, name: Option<&str>, frontend: &str, n: u64) -> ServiceSample {
    ServiceSample {
        number,
        name: name.map(str::to_owned),
        frontends: vec![(addr(frontend), proto::TCP)],
        backends: 2,
        traffic: Some(traffic(n)),
    }
}

pub fn backend(id: u32, at: &str, services: &[u32], n: u64) -> BackendSample {
    let addr = addr(at);
    BackendSample {
        id: (if addr.is_ipv4() { 4 } else { 6 }, id, 1),
        addr,
        proto: proto::TCP,
        state: "active",
        services: services.to_vec(),
        traffic: Some(traffic(n)),
    }
}

pub fn counter(hook: Hook, reason: Reason, packets: u64) -> CounterRow {
    CounterRow {
        hook,
        reason: reason as u8,
        packets,
        bytes: packets * 100,
    }
}

pub fn part<T>(at: Duration, map: u32, rows: Vec<T>) -> Part<T> {
    Part {
        at,
        maps: vec![map],
        rows,
    }
}

pub fn map(name: &str, used: Option<u64>, limit: u64) -> MapUsage {
    MapUsage {
        name: name.into(),
        what: "what it holds".into(),
        used,
        at_least: false,
        limit,
        memory_bytes: Some(limit * 64),
    }
}

/// Two services, three backends, losses and maps; counters have grown by `n` since the beginning.
pub fn sample(at: Duration, n: u64) -> Sample {
    let mut draining = backend(2, "10.244.1.7:8080", &[7], n);
    draining.state = "draining";
    let long = "[2001:db8:1234:5678:9abc:def0:1234:5678]:65535";
    Sample {
        unix_nanos: 3_723_000_000_000 + at.as_nanos() as u64,
        took: Duration::from_millis(7),
        agent: Agent {
            running: true,
            node: Some("n1".into()),
            age_secs: Some(65),
            ..Agent::default()
        },
        services: part(
            at,
            1,
            vec![
                service(7, Some("default/web:http"), "10.96.0.10:80", 100 + 3 * n),
                service(8, None, "[fd00::10]:80", 5 + n),
                ServiceSample {
                    backends: 0,
                    traffic: None,
                    ..service(9, Some("kube-system/metrics"), "10.96.0.11:443", 0)
                },
            ],
        ),
        backends: part(
            at,
            2,
            vec![
                backend(1, "10.244.0.5:8080", &[7], 100 + 2 * n),
                draining,
                backend(1, long, &[8], 5 + n),
            ],
        ),
        counters: part(
            at,
            3,
            vec![
                counter(Hook::PodFrom, Reason::Encapsulated, 1000 + 50 * n),
                counter(Hook::PodFrom, Reason::NoEndpoints, 2000 + n),
                counter(Hook::NicIn, Reason::UnknownNode, 4),
                counter(Hook::NicIn, Reason::NotOurs, 10 + n),
            ],
        ),
        maps: vec![
            map(maps::FRONT_V4, Some(3), 65_536),
            map(maps::FLOW_V4, Some(120_000), 131_072),
            map(maps::BACK_V4, Some(52_000), 65_536),
            map(maps::COUNTERS, None, 640),
            map(maps::LOCKS, Some(1_024), 1_024),
            map(maps::EVENTS, None, 262_144),
        ],
        ..Sample::default()
    }
}

/// What two readings show that are two seconds apart.
pub fn view() -> View {
    let before = sample(Duration::from_secs(1), 0);
    View::new(Some(&before), &sample(Duration::from_secs(3), 10))
}
