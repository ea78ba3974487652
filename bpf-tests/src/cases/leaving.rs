//! Pods that leave the cluster: `MASQUERADE` at `tulle_nic_out`, and their answers.

use std::collections::HashMap;
use std::net::IpAddr;

use datapath_common::{Feature, FlowState, Hook, Limit, Network, NodeClient, Reason, Traffic};

use super::Case;
use super::fixture::{BPORT, LOCAL_ID, NOW, SPORT};
use super::uplink::{Flow, Kind, OPENERS, SNAT, SYN, Uplink};
use crate::model::{FragmentId, FragmentRow, Verdict, World};
use crate::packet::tcp_flag::{ACK, FIN, SYN as SYN_FLAG};
use crate::packet::{Piece, Spec, Upper};

const OUT: Hook = Hook::NicOut;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS.into_iter().chain([echo(u)]) {
        cases.extend(opening_and_answers(u, kind));
    }
    cases.extend(later_packets(u));
    cases.extend(not_ours(u));
    cases.extend(fragments(u));
    cases.push(counted(u));
    cases
}

/// An echo request: as a flow, of port 0.
fn echo(u: &Uplink) -> Kind {
    Kind {
        name: "echo",
        upper: Upper::Icmp(if u.base.v6 { 128 } else { 8 }),
        proto: if u.base.v6 {
            datapath_common::proto::ICMPV6
        } else {
            datapath_common::proto::ICMP
        },
        more: 0,
    }
}

/// The tables with masquerade.
pub fn world(u: &Uplink) -> World {
    let mut world = u.base.world.clone();
    world.config.features |= Feature::MASQUERADE;
    world
}

/// A flow of the pod to a host outside, with the node's address and the only port.
pub fn flow(u: &Uplink, kind: Kind) -> Flow {
    let port = if matches!(kind.upper, Upper::Icmp(_)) {
        0
    } else {
        BPORT
    };
    Flow {
        kind,
        client: (u.base.client, SPORT),
        frontend: (u.client, port),
        id: 0,
        nat: Some((u.own, SNAT)),
        hairpin: false,
        node: NodeClient::No,
    }
}

/// Both rows: of no service, to where the packet goes by itself.
pub fn rows(
    u: &Uplink,
    flow: &Flow,
    state: FlowState,
    age: u32,
) -> [(crate::model::FlowId, crate::model::FlowRow); 2] {
    let tuple = |(src, sport), (dst, dport)| crate::model::Tuple {
        src,
        dst,
        sport,
        dport,
        proto: flow.kind.proto,
    };
    let (target, source) = (flow.frontend, flow.nat.unwrap_or((u.own, SNAT)));
    let forward = crate::model::FlowRow {
        addr: target.0,
        port: target.1,
        nat: Some(source),
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
    let reply = crate::model::FlowRow {
        nat: Some(flow.client),
        ..forward
    };
    [
        (tuple(flow.client, target).forward(), forward),
        (tuple(target, source).reply(), reply),
    ]
}

fn masqueraded(u: &Uplink, spec: &Spec) -> Vec<u8> {
    Spec {
        src: u.own,
        sport: SNAT,
        ..spec.clone()
    }
    .build()
}

/// A packet of the pod's that gets the node's address.
fn leaves(u: &Uplink, name: &str, spec: &Spec) -> Case {
    let out = masqueraded(u, spec);
    u.case(OUT, name, &world(u), spec.build())
        .leaves(Reason::Masqueraded, Verdict::Kernel, out)
}

fn opening_and_answers(u: &Uplink, kind: Kind) -> Vec<Case> {
    let flow = flow(u, kind);
    let sent = u.sent(&flow);
    let name = format!("{} leaves the cluster", kind.name);
    let opens = leaves(u, &name, &sent).writes(rows(u, &flow, FlowState::Opening, 0));

    let answer = Spec {
        src: flow.frontend.0,
        sport: flow.frontend.1,
        dst: u.own,
        dport: SNAT,
        upper: match kind.upper {
            Upper::Tcp(_) => Upper::Tcp(crate::packet::tcp_flag::SYN | ACK),
            Upper::Sctp(_) => Upper::Sctp(Some(2)),
            Upper::Icmp(8) => Upper::Icmp(0),
            Upper::Icmp(_) => Upper::Icmp(129),
            other => other,
        },
        ..sent
    };
    let back = Spec {
        dst: flow.client.0,
        dport: flow.client.1,
        ..answer.clone()
    };
    let heard = rows(u, &flow, FlowState::Established, 0).map(|(id, mut row)| {
        row.opened = NOW - 1;
        (id, row)
    });
    let name = format!("{} answer to a masqueraded pod", kind.name);
    let mut answers = u
        .case(Hook::NicIn, &name, &world(u), answer.build())
        .leaves(Reason::ReplyTranslated, Verdict::Kernel, back.build())
        .writes(heard);
    answers
        .world
        .flows
        .extend(rows(u, &flow, FlowState::Opening, 1));
    // The kernel forwarded the pod's packet, and so it does this one, whatever else is
    // known of the pod; where its TTL ends it says so.
    let mut unknown_pod = answers.clone();
    unknown_pod.name = format!("{}, of a bridge", answers.name);
    unknown_pod.world.pods.remove(&flow.client.0);
    let mut used_up = answers.clone();
    used_up.name = format!("{}, TTL 1", answers.name);
    used_up.frame = Spec {
        ttl: 1,
        ..answer.clone()
    }
    .build();
    used_up.out = super::Out::Frame(Spec { ttl: 1, ..back }.build());
    // What nobody asked for is the node's.
    let name = format!("{} answer to no flow", kind.name);
    let unknown = u.case(Hook::NicIn, &name, &world(u), answer.build());
    vec![opens, answers, unknown_pod, used_up, unknown]
}

fn later_packets(u: &Uplink) -> Vec<Case> {
    let flow = flow(u, SYN);
    let tcp = |flags| Spec {
        upper: Upper::Tcp(flags),
        ..u.sent(&flow)
    };
    let mut known = leaves(u, "data of a known flow", &tcp(ACK));
    known
        .world
        .flows
        .extend(rows(u, &flow, FlowState::Established, 1));
    let mut end = leaves(u, "a FIN of a known flow", &tcp(FIN | ACK));
    end.world
        .flows
        .extend(rows(u, &flow, FlowState::Established, 1));
    let ended = rows(u, &flow, FlowState::Closing, 0).map(|(id, mut row)| {
        row.opened = NOW - 1;
        (id, row)
    });
    let end = end.writes(ended);
    // What opens no flow leaves as it is: it answers somebody, or nobody.
    let nothing = |name: &str, flags| u.case(OUT, name, &world(u), tcp(flags).build());
    let lost = nothing("a FIN of no flow", FIN | ACK);
    let accepts = nothing("a SYN-ACK of no flow", SYN_FLAG | ACK);
    let other = Flow {
        client: (u.base.client, SPORT + 1),
        ..flow
    };
    let mut taken = u.case(OUT, "every port is taken", &world(u), tcp(ACK).build());
    taken
        .world
        .flows
        .extend(rows(u, &other, FlowState::Established, 1));
    let taken = taken.drops(Reason::SnatPortsExhausted);
    // Its own port, and one of a flow that is over.
    let mut found = leaves(u, "data whose forward row is lost", &tcp(ACK)).writes(rows(
        u,
        &flow,
        FlowState::Established,
        0,
    ));
    let [_, reply] = rows(u, &flow, FlowState::Established, 1);
    found.world.flows.extend([reply]);
    let mut over = leaves(u, "the port of a flow that has expired", &tcp(ACK)).writes(rows(
        u,
        &flow,
        FlowState::Opening,
        0,
    ));
    let limit = over.world.config.idle.tcp_established;
    over.world
        .flows
        .extend(rows(u, &other, FlowState::Established, limit + 2));
    let mut limited = u.case(OUT, "beyond the limit", &world(u), tcp(ACK).build());
    limited.world.config.flows_per_tick = 1;
    limited.world.flow_grants = Limit {
        tick: NOW,
        count: 1,
    };
    let limited = limited.drops(Reason::NewFlowLimit);
    vec![known, end, lost, accepts, taken, found, over, limited]
}

fn not_ours(u: &Uplink) -> Vec<Case> {
    let sent = u.sent(&flow(u, SYN));
    let to = |dst| Spec {
        dst,
        ..sent.clone()
    };
    let from = |src| Spec {
        src,
        ..sent.clone()
    };
    let case = |name: &str, spec: &Spec| u.case(OUT, name, &world(u), spec.build());
    let mut off = case("masquerade is off", &sent);
    off.world.config.features &= !Feature::MASQUERADE;
    let mut direct = case("to a direct network", &sent);
    let bits = if u.base.v6 { 120 } else { 24 };
    let network = crate::strategies::outside_ip(u.base.v6, 0);
    direct.world.networks.push((network, bits, Network::DIRECT));
    let mut no_ports = case("no ports for sources", &sent);
    no_ports.world.config.snat_ports = 0;
    let mut no_address = case("no node address", &sent);
    no_address.world.config.node_ip4 = datapath_common::Ip4::new([0; 4]);
    no_address.world.config.node_ip6 = datapath_common::Ip6::new([0; 16]);
    let mut no_port = sent.clone();
    no_port.sport = 0;
    let reply = Spec {
        upper: Upper::Icmp(if u.base.v6 { 129 } else { 0 }),
        ..sent.clone()
    };
    let other = Spec {
        upper: Upper::Other(47),
        ..sent.clone()
    };
    let strange: IpAddr = u.client;
    vec![
        off,
        direct,
        no_ports,
        no_address,
        case("without source port", &no_port),
        case("an echo reply", &reply),
        case("another protocol", &other),
        case("to this node's pods", &to(u.base.pod)),
        case("to a peer", &to(u.base.remote)),
        case("from the VTEP address", &from(u.vtep)),
        case("from elsewhere", &from(strange)),
    ]
}

fn fragments(u: &Uplink) -> Vec<Case> {
    let flow = flow(u, OPENERS[1]);
    let piece = |offset, more| Spec {
        piece: Some(Piece { offset, more }),
        ..u.sent(&flow)
    };
    let (first, later) = (piece(0, true), piece(100, false));
    let id = FragmentId {
        src: u.base.client,
        dst: u.client,
        id: first.id,
        proto: flow.kind.proto,
    };
    let row = FragmentRow {
        sport: SPORT,
        dport: BPORT,
        seen: NOW,
        first_octets: first.ip_octets(),
    };
    let mut opens = leaves(u, "a first fragment leaves its ports", &first).writes(rows(
        u,
        &flow,
        FlowState::Opening,
        0,
    ));
    opens.fragments.push((id, row));
    let mut follows = leaves(u, "a later fragment follows", &later);
    follows
        .world
        .flows
        .extend(rows(u, &flow, FlowState::Opening, 1));
    follows.world.fragments.insert(id, row);
    let alone = u.case(OUT, "a later fragment alone", &world(u), later.build());
    vec![opens, follows, alone]
}

/// `COUNT_SERVICES`: a flow of a service, opened and answered.
fn counted(u: &Uplink) -> Case {
    let flow = u.outside_flow(SYN, LOCAL_ID);
    let mut case = u.opens(Hook::NicIn, "what opens a flow counts", &flow, 0);
    case.world.config.features |= Feature::COUNT_SERVICES;
    let traffic = Traffic {
        flows: 1,
        packets: 1,
        bytes: case.frame.len() as u64,
        ..Traffic::default()
    };
    case.service_traffic = HashMap::from([(flow.service(), traffic)]);
    case.backend_traffic = HashMap::from([((if u.base.v6 { 6 } else { 4 }, LOCAL_ID), traffic)]);
    case
}
