use super::*;
use crate::model::{NamespacedName, SlicePort};

/// From `address words…`: `not-ready`, `terminating`, `not-serving`, `on:NODE`,
/// `node:HINT`, `zone:HINT`.
fn endpoint(text: &str) -> Endpoint {
    let (addr, words) = text.split_once(' ').unwrap_or((text, ""));
    let mut endpoint = Endpoint::new(addr.parse().unwrap());
    for word in words.split_whitespace() {
        match word.split_once(':') {
            Some(("on", name)) => endpoint.node = Some(name.into()),
            Some(("node", name)) => endpoint
                .hints
                .get_or_insert_default()
                .nodes
                .push(name.into()),
            Some(("zone", name)) => endpoint
                .hints
                .get_or_insert_default()
                .zones
                .push(name.into()),
            None if word == "not-ready" => endpoint.ready = false,
            None if word == "not-serving" => endpoint.serving = false,
            None if word == "terminating" => {
                endpoint.terminating = true;
                endpoint.ready = false;
            }
            _ => panic!("{word}"),
        }
    }
    endpoint
}

/// A slice of port 80/TCP named `http` at the number `port`.
fn slice(port: u16, endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        name: NamespacedName::new("shop", format!("web-{port}")),
        service: Some("web".into()),
        family: Some(Family::V4),
        ports: vec![SlicePort {
            name: "http".into(),
            port,
            protocol: Protocol::Tcp,
        }],
        endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
    }
}

fn http() -> ServicePort {
    ServicePort {
        name: "http".into(),
        port: 80,
        protocol: Protocol::Tcp,
        node_port: None,
    }
}

/// What node n0 in zone a selects, by last octets; the result must not depend
/// on the order of slices or of endpoints.
fn sets(slices: &[EndpointSlice]) -> (Vec<u8>, Vec<u8>, bool) {
    let octets = |list: &[SocketAddr]| -> Vec<u8> {
        let last = |at: &SocketAddr| match at.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(_) => panic!("{at}"),
        };
        list.iter().map(last).collect()
    };
    let found = select(slices, Family::V4, &http(), "n0", Some("a"));
    let mut turned = slices.to_vec();
    turned.reverse();
    for slice in &mut turned {
        slice.endpoints.reverse();
    }
    let again = select(&turned, Family::V4, &http(), "n0", Some("a"));
    assert_eq!(found, again, "{slices:#?}");
    (octets(&found.cluster), octets(&found.local), found.any)
}

#[test]
fn kp76_to_kp90_sets() {
    type Row<'a> = (&'a str, &'a [&'a str], &'a [u8], &'a [u8], bool);
    let rows: &[Row] = &[
        ("KP-53: nothing", &[], &[], &[], false),
        (
            "KP-20: local by node name",
            &["10.0.0.1 on:n0", "10.0.0.2 on:n1", "10.0.0.3"],
            &[1, 2, 3],
            &[1],
            true,
        ),
        (
            "KP-54: only elsewhere",
            &["10.0.0.2 on:n1"],
            &[2],
            &[],
            true,
        ),
        (
            "KP-56: a remote one that terminates counts",
            &["10.0.0.2 on:n1 terminating"],
            &[2],
            &[],
            true,
        ),
        (
            "KP-76: not ready is absent",
            &["10.0.0.1 on:n0 not-ready"],
            &[],
            &[],
            false,
        ),
        (
            "KP-77: serving while all terminate",
            &["10.0.0.1 on:n0 terminating", "10.0.0.2 on:n1 terminating"],
            &[1, 2],
            &[1],
            true,
        ),
        (
            "KP-77: topology does not narrow them",
            &[
                "10.0.0.1 on:n1 terminating zone:a",
                "10.0.0.2 on:n1 terminating zone:b",
            ],
            &[1, 2],
            &[],
            true,
        ),
        (
            "KP-78, KP-79: local falls back alone",
            &["10.0.0.1 on:n0 terminating", "10.0.0.2 on:n1"],
            &[2],
            &[1],
            true,
        ),
        (
            "KP-80: no mixing",
            &["10.0.0.1 on:n0", "10.0.0.2 on:n0 terminating"],
            &[1],
            &[1],
            true,
        ),
        (
            "KP-81: dead",
            &["10.0.0.1 on:n0 terminating not-serving"],
            &[],
            &[],
            false,
        ),
        (
            "KP-85: node hints first",
            &["10.0.0.1 node:n0 zone:b", "10.0.0.2 node:n1 zone:a"],
            &[1],
            &[],
            true,
        ),
        (
            "KP-86: no node hint for us",
            &["10.0.0.1 node:n2 zone:a", "10.0.0.2 node:n1 zone:b"],
            &[1],
            &[],
            true,
        ),
        (
            "KP-86: not all have node hints",
            &["10.0.0.1 node:n0 zone:b", "10.0.0.2 zone:a"],
            &[2],
            &[],
            true,
        ),
        (
            "KP-87: one without hints",
            &["10.0.0.1 zone:a", "10.0.0.2"],
            &[1, 2],
            &[],
            true,
        ),
        (
            "KP-87: no hint for us",
            &["10.0.0.1 zone:b", "10.0.0.2 zone:c"],
            &[1, 2],
            &[],
            true,
        ),
        (
            "KP-88: unready neither enables",
            &["10.0.0.1 zone:a not-ready", "10.0.0.2 zone:b"],
            &[2],
            &[],
            true,
        ),
        (
            "KP-88: nor blocks",
            &["10.0.0.1 zone:a", "10.0.0.2 zone:b", "10.0.0.3 not-ready"],
            &[1],
            &[],
            true,
        ),
        (
            "KP-89: several zones",
            &["10.0.0.1 zone:a zone:b", "10.0.0.2 zone:b"],
            &[1],
            &[],
            true,
        ),
        (
            "KP-90: never for local",
            &["10.0.0.1 on:n0 zone:b", "10.0.0.2 on:n1 zone:a"],
            &[2],
            &[1],
            true,
        ),
    ];
    for (what, endpoints, cluster, local, any) in rows {
        let found = sets(&[slice(8080, endpoints)]);
        assert_eq!(found, (cluster.to_vec(), local.to_vec(), *any), "{what}");
    }
}

#[test]
fn kp87_without_a_zone_of_our_own() {
    let slices = [slice(8080, &["10.0.0.1 zone:a", "10.0.0.2 zone:b"])];
    for zone in [None, Some("")] {
        let found = select(&slices, Family::V4, &http(), "n0", zone);
        assert_eq!(found.cluster.len(), 2, "{zone:?}");
    }
}

#[test]
fn kp13_numbers_are_the_slices_own() {
    let slices = [
        slice(80, &["10.0.0.1"]),
        slice(8080, &["10.0.0.1", "10.0.0.2"]),
    ];
    let found = select(&slices, Family::V4, &http(), "n0", None);
    let want = ["10.0.0.1:80", "10.0.0.1:8080", "10.0.0.2:8080"];
    assert_eq!(found.cluster, want.map(|at| at.parse().unwrap()));
}

#[test]
fn kp14_names_protocols_and_families_do_not_mix() {
    let slices = [slice(80, &["10.0.0.1"])];
    let mut udp = http();
    udp.protocol = Protocol::Udp;
    let mut unnamed = http();
    unnamed.name.clear();
    for (family, port) in [
        (Family::V4, udp),
        (Family::V4, unnamed),
        (Family::V6, http()),
    ] {
        let found = select(&slices, family, &port, "n0", None);
        assert_eq!(found, EndpointSets::default(), "{family:?} {port:?}");
    }
}

#[test]
fn kp16_kp17_duplicates() {
    let one = sets(&[
        slice(80, &["10.0.0.1 on:n0"]),
        slice(80, &["10.0.0.1 on:n0"]),
    ]);
    assert_eq!(one, (vec![1], vec![1], true));
    // The address was given to a new pod; where its old pod ran does not matter.
    let reused = sets(&[
        slice(80, &["10.0.0.1 on:n1"]),
        slice(80, &["10.0.0.1 on:n0 terminating"]),
    ]);
    assert_eq!(reused, (vec![1], vec![], true));
    // Not ready, but the entry that counts.
    let starting = sets(&[
        slice(80, &["10.0.0.1 on:n0 not-ready"]),
        slice(80, &["10.0.0.1 on:n0 terminating"]),
    ]);
    assert_eq!(starting, (vec![], vec![], false));
}

#[test]
fn kp82_kp155_what_load_balancers_may_count_on() {
    let mut other = slice(9090, &["10.0.0.1 on:n0", "10.0.0.4 on:n0"]);
    other.ports[0].name = "metrics".into();
    let web = slice(
        8080,
        &[
            "10.0.0.1 on:n0",
            "10.0.0.2 on:n0 terminating",
            "10.0.0.3 on:n1",
            "10.0.0.5 on:n0 not-ready",
        ],
    );
    let slices = [web, other];
    assert_eq!(ready_here(&slices, Family::V4, "n0"), 2);
    assert_eq!(ready_here(&slices, Family::V4, "n1"), 1);
    assert_eq!(ready_here(&slices, Family::V6, "n0"), 0);
    assert_eq!(ready_here(&slices[..1], Family::V4, "n2"), 0);
}
