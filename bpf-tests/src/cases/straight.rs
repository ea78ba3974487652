//! Clients outside that go straight to a pod's address, with `MASQUERADE`: what
//! the pod answers keeps its address.

use datapath_common::{Feature, FlowState, Hook, Limit, Network, NodeClient, Reason};

use super::Case;
use super::fixture::{BPORT, Fixture, LOCAL_ID, NOW, OUTSIDE_ID, SPORT};
use super::leaving;
use super::uplink::{Flow, Kind, OPENERS, SYN, Uplink};
use crate::model::{FlowId, FlowRow, Tuple};
use crate::packet::tcp_flag::{ACK, FIN, SYN as OPEN};
use crate::packet::{Spec, Upper, tunnel};

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        cases.extend(there_and_back(u, kind));
    }
    cases.extend(later_packets(u));
    cases.extend(not_noted(u));
    cases
}

/// A packet of a client outside for the pod.
fn sent(u: &Uplink, upper: Upper) -> Spec {
    Spec::new(upper, u.client, SPORT, u.base.client, BPORT)
}

/// What the pod answers.
fn answer(u: &Uplink, upper: Upper) -> Spec {
    let upper = match upper {
        Upper::Tcp(OPEN) => Upper::Tcp(OPEN | ACK),
        Upper::Sctp(_) => Upper::Sctp(Some(2)),
        other => other,
    };
    Spec::new(upper, u.base.client, BPORT, u.client, SPORT)
}

/// The flow's only row.
fn row(u: &Uplink, kind: Kind, state: FlowState, age: u32) -> (FlowId, FlowRow) {
    let (client, pod) = ((u.client, SPORT), (u.base.client, BPORT));
    let id = Tuple {
        src: pod.0,
        dst: client.0,
        sport: pod.1,
        dport: client.1,
        proto: kind.proto,
    };
    let row = FlowRow {
        addr: pod.0,
        port: pod.1,
        nat: None,
        state,
        hairpin: false,
        node: NodeClient::No,
        backend: 0,
        generation: 0,
        service: 0,
        counted: false,
        opened: NOW - age,
        seen: NOW - age,
    };
    (id.reply(), row)
}

/// The kernel forwards it, as what the pod answers.
fn arrives(u: &Uplink, name: &str, spec: &Spec) -> Case {
    u.case(Hook::NicIn, name, &leaving::world(u), spec.build())
        .passes(Reason::SlowPath)
}

fn seen((id, row): (FlowId, FlowRow), state: FlowState) -> (FlowId, FlowRow) {
    let row = FlowRow {
        state,
        seen: NOW,
        ..row
    };
    (id, row)
}

fn there_and_back(u: &Uplink, kind: Kind) -> Vec<Case> {
    let name = |what: &str| format!("{} {what} straight to a pod", kind.name);
    let opening = row(u, kind, FlowState::Opening, 0);
    let mut cases = vec![arrives(u, &name("from outside"), &sent(u, kind.upper)).writes([opening])];
    let old = row(u, kind, FlowState::Opening, 1);
    for hook in [Hook::NicOut, Hook::PodFrom] {
        let frame = answer(u, kind.upper).build();
        let mut case = u
            .case(hook, &name("answer to who came"), &leaving::world(u), frame)
            .writes([seen(old, FlowState::Established)]);
        case.world.flows.extend([old]);
        cases.push(case);
    }
    cases
}

fn later_packets(u: &Uplink) -> Vec<Case> {
    let known = |mut case: Case, row: (FlowId, FlowRow)| {
        case.world.flows.extend([row]);
        case
    };
    let (open, closing) = (FlowState::Established, FlowState::Closing);
    let data = sent(u, Upper::Tcp(ACK));
    let fresh = arrives(u, "data of a straight connection", &data);
    let stale =
        arrives(u, "data of it after two ticks", &data).writes([seen(row(u, SYN, open, 2), open)]);
    let end = arrives(u, "a FIN of it", &sent(u, Upper::Tcp(FIN | ACK)))
        .writes([seen(row(u, SYN, open, 1), closing)]);
    let again = arrives(u, "a SYN when it is closing", &sent(u, Upper::Tcp(OPEN))).writes([row(
        u,
        SYN,
        FlowState::Opening,
        0,
    )]);
    let lost = arrives(
        u,
        "a FIN when its row is lost",
        &sent(u, Upper::Tcp(FIN | ACK)),
    )
    .writes([row(u, SYN, closing, 0)]);
    let frame = answer(u, Upper::Tcp(FIN | ACK)).build();
    let answered = u
        .case(Hook::NicOut, "the pod's FIN", &leaving::world(u), frame)
        .writes([seen(row(u, SYN, open, 1), closing)]);
    // What the pod opened keeps the node's address; so do a service's replies theirs.
    let own = leaving::rows(
        u,
        &Flow {
            client: (u.base.client, BPORT),
            frontend: (u.client, SPORT),
            ..leaving::flow(u, SYN)
        },
        open,
        1,
    );
    let mut kept = arrives(u, "data where the pod has a flow of its own", &data);
    kept.world.flows.extend(own);
    let mut before = arrives(u, "a SYN where the pod had one", &sent(u, Upper::Tcp(OPEN)))
        .writes([row(u, SYN, FlowState::Opening, 0)]);
    let limit = before.world.config.idle.tcp_established + 2;
    before.world.flows.extend(own.map(|(id, mut row)| {
        row.seen = NOW - limit;
        (id, row)
    }));
    let plain = u.outside_flow(SYN, LOCAL_ID);
    let data = Spec::new(Upper::Tcp(ACK), u.client, SPORT, u.base.pod, BPORT);
    let mut world = u.world(&plain, 0);
    world.config.features |= Feature::MASQUERADE;
    world.flows.extend(u.rows(&plain, open, 2));
    let served = u
        .case(
            Hook::NicIn,
            "data beside a service's connection",
            &world,
            data.build(),
        )
        .passes(Reason::SlowPath);
    // `tulle_pod_to` translates it: the kernel forwarded what it answers.
    let flow = u.pod_flow(SYN, OUTSIDE_ID);
    let mut through = arrives(u, "answer of a service's backend", &u.answer(&flow).0);
    through.world.flows.extend(u.rows(&flow, open, 1));
    let bits = if u.base.v6 { 128 } else { 32 };
    let network = (u.base.outside, bits, Network::DIRECT);
    through.world.networks.push(network);
    vec![
        known(fresh, row(u, SYN, open, 1)),
        known(stale, row(u, SYN, open, 2)),
        known(end, row(u, SYN, open, 1)),
        known(again, row(u, SYN, closing, 1)),
        lost,
        known(answered, row(u, SYN, open, 1)),
        kept,
        before,
        served,
        through,
    ]
}

fn not_noted(u: &Uplink) -> Vec<Case> {
    let spec = sent(u, Upper::Tcp(OPEN));
    let mut off = arrives(u, "masquerade is off", &spec);
    off.world.config.features &= !Feature::MASQUERADE;
    let mut direct = arrives(u, "from a direct network", &spec);
    let bits = if u.base.v6 { 120 } else { 24 };
    let network = crate::strategies::outside_ip(u.base.v6, 0);
    direct.world.networks.push((network, bits, Network::DIRECT));
    let mut limited = arrives(u, "beyond the limit of new flows", &spec);
    limited.world.config.flows_per_tick = 1;
    limited.world.flow_grants = Limit {
        tick: NOW,
        count: 1,
    };
    let ping = arrives(
        u,
        "an echo request",
        &sent(u, Upper::Icmp(if u.base.v6 { 128 } else { 8 })),
    );
    let inside = Spec {
        src: u.base.remote,
        ..spec.clone()
    };
    let peer = arrives(u, "from a pod of another node", &inside);
    let (verdict, out) = Fixture::delivered(&spec, 2);
    let frame = u.base.stripped(&spec).build();
    let name = "out of the overlay by XDP";
    let xdp = u.case(Hook::NicIn, name, &leaving::world(u), frame).leaves(
        Reason::DeliveredLocal,
        verdict,
        out,
    );
    let (outer, inner) = u.base.arriving(&spec);
    let (verdict, out) = Fixture::delivered(&spec, 2);
    let frame = tunnel(&outer, &inner);
    let tunneled = u
        .case(Hook::NicIn, "out of the overlay", &leaving::world(u), frame)
        .leaves(Reason::Decapsulated, verdict, out);
    let expired = Spec { ttl: 1, ..spec };
    let expired = arrives(u, "with TTL 1", &expired);
    vec![off, direct, limited, ping, peer, xdp, tunneled, expired]
}
