use super::*;
use crate::net::overlay::desired;
use crate::net::overlay::tests::{overlay, peer};
use netlink_packet_route::route::RouteScope;

const DEVICE: u32 = 9;

/// The kernel's rows when it holds just `items`.
fn holding(items: &[Item]) -> Observed {
    let mut observed = Observed::default();
    for item in items {
        match *item {
            Item::Address(ip) => observed.addresses.push(AddressRow {
                index: DEVICE,
                ip,
                prefix: host_net(ip).prefix_len(),
                link_scope: false,
                permanent: true,
                deprecated: false,
                temporary: false,
            }),
            Item::Neighbour { ip, mac } => observed.neighbours.push(NeighbourRow {
                index: DEVICE,
                ip,
                mac: Some(mac),
                permanent: true,
                valid: true,
            }),
            Item::Forward { mac, node } => observed.forwards.push(ForwardRow {
                mac,
                node: Some(node.into()),
                permanent: true,
                special: false,
            }),
            Item::Route {
                destination,
                gateway,
                mtu,
            } => observed.routes.push(RouteRow {
                gateway: Some(gateway),
                index: Some(DEVICE),
                mtu: Some(mtu),
                onlink: true,
                metric: if destination.addr().is_ipv4() {
                    0
                } else {
                    1024
                },
                ..route(destination)
            }),
            Item::Unreachable { destination } => observed.routes.push(RouteRow {
                kind: RouteType::Unreachable,
                metric: UNREACHABLE_METRIC,
                ..route(destination)
            }),
        }
    }
    observed
}

fn route(destination: IpNet) -> RouteRow {
    RouteRow {
        destination,
        kind: RouteType::Unicast,
        gateway: None,
        index: None,
        source: None,
        protocol: ROUTE_PROTOCOL,
        scope: RouteScope::Universe,
        tos: 0,
        metric: 0,
        mtu: None,
        onlink: false,
        table: MAIN,
    }
}

fn items() -> Vec<Item> {
    desired(&overlay()).items
}

fn first(observed: &Observed) -> Plan {
    let applied = HashSet::new();
    let history = History {
        applied: &applied,
        any: false,
        rebuilt: false,
    };
    diff(&items(), observed, DEVICE, &history)
}

fn later(wanted: &[Item], observed: &Observed) -> Plan {
    let applied = items().into_iter().collect();
    let history = History {
        applied: &applied,
        any: true,
        rebuilt: false,
    };
    diff(wanted, observed, DEVICE, &history)
}

fn causes(plan: &Plan) -> Vec<Cause> {
    plan.changes
        .iter()
        .filter_map(|change| match change {
            Change::Put { cause, .. } => Some(*cause),
            _ => None,
        })
        .collect()
}

#[test]
fn an_empty_kernel_gets_everything_once() {
    let plan = first(&Observed::default());
    assert_eq!(plan.changes.len(), items().len());
    assert!(causes(&plan).iter().all(|c| *c == Cause::Created));
    assert_eq!(plan.unchanged, []);
}

#[test]
fn a_right_kernel_gets_nothing() {
    let plan = later(&items(), &holding(&items()));
    assert_eq!(plan.changes, []);
    assert_eq!(plan.conflicts, [""; 0]);
    assert_eq!(plan.unchanged.len(), items().len());
}

#[test]
fn each_missing_row_is_a_repair_of_that_row() {
    for missing in items() {
        let rest: Vec<Item> = items().into_iter().filter(|i| *i != missing).collect();
        let plan = later(&items(), &holding(&rest));
        assert_eq!(
            plan.changes,
            [Change::Put {
                item: missing,
                replace: false,
                cause: Cause::Repaired
            }]
        );
    }
}

#[test]
fn after_a_rebuild_missing_rows_are_no_drift() {
    let applied = items().into_iter().collect();
    let history = History {
        applied: &applied,
        any: true,
        rebuilt: true,
    };
    let plan = diff(&items(), &Observed::default(), DEVICE, &history);
    assert!(causes(&plan).iter().all(|c| *c == Cause::Updated));
}

#[test]
fn a_peers_new_mac_is_an_update_and_the_old_entry_goes() {
    let mut overlay = overlay();
    overlay.peers[0].vtep_mac = Mac::new([2, 0, 0, 0, 9, 9]);
    let plan = later(&desired(&overlay).items, &holding(&items()));
    // Two neighbours change; the forwarding entry of the new MAC is a new row.
    assert_eq!(
        causes(&plan),
        [Cause::Updated, Cause::Updated, Cause::Created]
    );
    assert_eq!(
        plan.changes.last(),
        Some(&Change::RemoveForward {
            mac: peer(2).vtep_mac
        })
    );
    assert_eq!(plan.changes.len(), 4);
}

#[test]
fn a_gone_peer_leaves_nothing() {
    let mut overlay = overlay();
    overlay.peers.clear();
    let plan = later(&desired(&overlay).items, &holding(&items()));
    let mut stages: Vec<u8> = plan.changes.iter().map(Change::stage).collect();
    stages.sort_unstable();
    assert_eq!(stages, [4, 4, 5, 5, 5], "{:#?}", plan.changes);
}

#[test]
fn rows_that_stand_wrong_are_replaced() {
    type Spoil = fn(&mut Observed);
    let cases: [Spoil; 9] = [
        |o| o.neighbours[0].mac = None,
        |o| o.neighbours[0].permanent = false,
        |o| o.forwards[0].node = None,
        |o| o.forwards[0].special = true,
        |o| o.forwards[0].permanent = false,
        |o| o.routes.last_mut().unwrap().mtu = None,
        |o| o.routes.last_mut().unwrap().onlink = false,
        |o| o.routes.last_mut().unwrap().index = Some(4),
        |o| o.routes.last_mut().unwrap().gateway = None,
    ];
    for spoil in cases {
        let mut observed = holding(&items());
        spoil(&mut observed);
        let plan = later(&items(), &observed);
        assert!(
            matches!(
                plan.changes.as_slice(),
                [Change::Put {
                    replace: true,
                    cause: Cause::Repaired,
                    ..
                }]
            ),
            "{:#?}",
            plan.changes
        );
    }
}

#[test]
fn flannels_routes_are_taken_over_and_its_leftovers_removed() {
    let mut observed = holding(&items());
    for row in observed
        .routes
        .iter_mut()
        .filter(|r| r.kind == RouteType::Unicast)
    {
        row.protocol = BOOT;
        row.mtu = None;
    }
    let leftover = RouteRow {
        protocol: BOOT,
        gateway: Some("10.244.7.0".parse().unwrap()),
        index: Some(DEVICE),
        onlink: true,
        ..route("10.244.7.0/24".parse().unwrap())
    };
    observed.routes.push(leftover.clone());
    let plan = first(&observed);
    assert_eq!(causes(&plan), [Cause::Repaired, Cause::Repaired]);
    assert_eq!(
        plan.changes.last(),
        Some(&Change::RemoveRoute(leftover.clone()))
    );
    assert_eq!(plan.changes.len(), 3);
}

#[test]
fn foreign_routes_are_left_and_named() {
    let wanted = items();
    let mut observed = holding(&wanted);
    let ours = observed
        .routes
        .iter_mut()
        .find(|r| r.destination.to_string() == "10.244.2.0/24")
        .unwrap();
    ours.protocol = 4;
    ours.index = Some(4);
    ours.onlink = false;
    observed.routes.push(RouteRow {
        protocol: 4,
        index: Some(4),
        ..route("172.16.0.0/12".parse().unwrap())
    });
    let plan = later(&wanted, &observed);
    assert_eq!(plan.changes, []);
    assert_eq!(plan.conflicts.len(), 1);
    assert!(plan.conflicts[0].contains("`ip route del 10.244.2.0/24`"));
}

#[test]
fn addresses_of_others_stay_on_the_device() {
    let mut observed = holding(&items());
    let add = |observed: &mut Observed, ip: &str, prefix, link_scope| {
        observed.addresses.push(AddressRow {
            ip: ip.parse().unwrap(),
            prefix,
            link_scope,
            ..observed.addresses[0]
        });
    };
    add(&mut observed, "172.16.5.5", 32, false);
    add(&mut observed, "fe80::5", 64, true);
    add(&mut observed, "10.244.1.9", 32, false);
    add(&mut observed, "10.244.1.0", 24, false);
    let plan = later(&items(), &observed);
    let removed: Vec<String> = plan.changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        removed,
        ["address 10.244.1.9/32", "address 10.244.1.0/24"],
        "{:#?}",
        plan.changes
    );
}

#[test]
fn unresolved_neighbours_are_not_ours_to_remove() {
    let mut observed = holding(&items());
    observed.neighbours.push(NeighbourRow {
        index: DEVICE,
        ip: "10.244.9.0".parse().unwrap(),
        mac: None,
        permanent: false,
        valid: false,
    });
    assert_eq!(later(&items(), &observed).changes, []);
}
