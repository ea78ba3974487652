//! Direct server return: `tulle_nic_in` where a client outside asks, and at the backend's node;
//! `tulle_pod_from` where the backend answers.

use datapath_common::{Feature, FlowState, FrontendFlags, Hook, NodeClient, Reason, Via};

use super::Case;
use super::fixture::{Fixture, LOCAL_ID, NOW, REMOTE_ID, SPORT};
use super::north_south::masqueraded;
use super::uplink::{Flow, MASQUERADE, NODE_PORT, OPENERS, SNAT, SYN, Uplink};
use crate::model::direct::{MARK, name};
use crate::model::{FlowId, FlowRow, Verdict, World};
use crate::packet::tcp_flag::{ACK, FIN};
use crate::packet::{Piece, Spec, Upper, tunnel};

/// Where the octet behind the VNI is.
const MARK_AT: usize = 49;
/// Where the inner Ethernet addresses are.
const NAME_AT: usize = 50;

const FLAGS: u16 = MASQUERADE | FrontendFlags::DIRECT_RETURN;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = forwarded(u);
    cases.extend(kept_or_hidden(u));
    cases.extend(later_packets(u));
    cases.extend(sizes(u));
    cases.extend(at_the_backend(u));
    cases.extend(continued(u));
    cases.extend(refused(u));
    cases.extend(answers(u));
    cases
}

/// The other node answers clients itself.
fn direct(u: &Uplink, flow: &Flow, flags: u16) -> World {
    let mut world = u.world(flow, flags);
    for row in world.backends.values_mut() {
        if row.via == u.base.way() {
            row.via.flags = Via::DIRECT;
        }
    }
    world
}

/// The only row, where the client asks.
fn row(u: &Uplink, flow: &Flow, state: FlowState, age: u32) -> (FlowId, FlowRow) {
    let direct = Flow {
        node: NodeClient::Direct,
        nat: None,
        ..*flow
    };
    u.rows(&direct, state, age)[0]
}

/// Into the overlay as it came, but for a hop.
fn forward(u: &Uplink, flow: &Flow, sent: &Spec) -> (Verdict, Vec<u8>) {
    let (verdict, mut frame) = u.base.encapsulated(sent);
    let (addr, port) = u.backend(flow);
    frame[MARK_AT] = MARK;
    frame[NAME_AT..NAME_AT + 12].copy_from_slice(&name(addr, port));
    (verdict, frame)
}

fn forwarded(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        for frontend in [(u.vip, 80), (u.own, NODE_PORT)] {
            let flow = Flow {
                frontend,
                ..u.outside_flow(kind, REMOTE_ID)
            };
            let sent = u.sent(&flow);
            let (verdict, out) = forward(u, &flow, &sent);
            let world = direct(u, &flow, FLAGS);
            let name = format!("{} to a backend whose node answers", kind.name);
            cases.push(
                u.case(Hook::NicIn, &name, &world, sent.build())
                    .leaves(Reason::Encapsulated, verdict, out)
                    .writes([row(u, &flow, FlowState::Opening, 0)]),
            );
        }
    }
    cases
}

/// Who is hidden, and who is not.
fn kept_or_hidden(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let case = |name: &str, hook: Hook, flow: &Flow, world: &World| {
        let sent = u.sent(flow);
        let (reason, verdict, out) = u.leaving(hook, flow, &u.translated(flow, &sent));
        u.case(hook, name, world, sent.build())
            .leaves(reason, verdict, out)
            .writes(u.rows(flow, FlowState::Opening, 0))
    };
    // A backend here sees the client, too.
    let flow = u.outside_flow(SYN, LOCAL_ID);
    let world = direct(u, &flow, FLAGS);
    cases.push(case("a backend of this node", Hook::NicIn, &flow, &world));
    // Its node answers nobody.
    let flow = masqueraded(u, u.outside_flow(SYN, REMOTE_ID));
    let name = "a backend whose node does not answer";
    cases.push(case(name, Hook::NicIn, &flow, &u.world(&flow, FLAGS)));
    // The service returns by the node that was asked.
    let world = direct(u, &flow, MASQUERADE);
    let name = "a service that does not return directly";
    cases.push(case(name, Hook::NicIn, &flow, &world));
    // To a pod of another node the backend's node would answer as to any.
    let far = Flow {
        client: (u.base.remote, SPORT),
        ..u.outside_flow(SYN, REMOTE_ID)
    };
    for id in [REMOTE_ID, LOCAL_ID] {
        let flow = masqueraded(u, Flow { id, ..far });
        let world = direct(u, &flow, FLAGS);
        cases.push(case(
            "a pod of another node asks",
            Hook::NicIn,
            &flow,
            &world,
        ));
    }
    // Not of a pod's.
    let flow = masqueraded(u, u.pod_flow(SYN, REMOTE_ID));
    let world = direct(u, &flow, FLAGS);
    cases.push(case("a pod's packet", Hook::PodFrom, &flow, &world));
    cases
}

fn later_packets(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let flow = u.outside_flow(SYN, REMOTE_ID);
    let data = Spec {
        upper: Upper::Tcp(ACK),
        ..u.sent(&flow)
    };
    let (verdict, out) = forward(u, &flow, &data);
    let case =
        |name: &str, world: &World, spec: &Spec| u.case(Hook::NicIn, name, world, spec.build());
    // A connection that was opened by another node, or whose row was lost.
    let world = direct(u, &flow, FLAGS);
    cases.push(
        case("data of a connection that is not known", &world, &data)
            .leaves(Reason::Encapsulated, verdict, out.clone())
            .writes([row(u, &flow, FlowState::Opening, 0)]),
    );
    // What goes on says that there was an answer.
    let mut world = direct(u, &flow, FLAGS);
    world.flows.extend([row(u, &flow, FlowState::Opening, 1)]);
    let mut established = row(u, &flow, FlowState::Established, 0);
    established.1.opened = NOW - 1;
    cases.push(
        case("data after an opening", &world, &data)
            .leaves(Reason::Encapsulated, verdict, out.clone())
            .writes([established]),
    );
    // It ends.
    let fin = Spec {
        upper: Upper::Tcp(ACK | FIN),
        ..data.clone()
    };
    let mut world = direct(u, &flow, FLAGS);
    world
        .flows
        .extend([row(u, &flow, FlowState::Established, 1)]);
    let mut closing = row(u, &flow, FlowState::Closing, 0);
    closing.1.opened = NOW - 1;
    let (verdict, out) = forward(u, &flow, &fin);
    cases.push(
        case("the end", &world, &fin)
            .leaves(Reason::Encapsulated, verdict, out)
            .writes([closing]),
    );
    // Opened with a translated source it stays so.
    let hidden = masqueraded(u, flow);
    let mut world = direct(u, &flow, FLAGS);
    world
        .flows
        .extend(u.rows(&hidden, FlowState::Established, 1));
    let to = u.translated(&hidden, &data);
    let (reason, verdict, out) = u.leaving(Hook::NicIn, &hidden, &to);
    cases.push(
        case("data of a connection that was hidden", &world, &data).leaves(reason, verdict, out),
    );
    cases
}

/// What does not fit is refused, whoever may divide it; and so is what would expire on its way.
fn sizes(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let flow = u.outside_flow(OPENERS[1], REMOTE_ID);
    let world = direct(u, &flow, FLAGS);
    let mtu = u.base.world.config.overlay_mtu;
    let (kind, code) = if u.base.v6 { (2, 0) } else { (3, 4) };
    for dont_fragment in [true, false] {
        let spec = Spec {
            payload: vec![3; usize::from(mtu)],
            dont_fragment,
            ..u.sent(&flow)
        };
        let answer = u.base.error(&spec, kind, code, mtu);
        cases.push(
            u.case(Hook::NicIn, "too large to forward", &world, spec.build())
                .answered(Reason::TooBig, answer),
        );
    }
    let spec = Spec {
        ttl: 2,
        ..u.sent(&flow)
    };
    let (kind, code) = if u.base.v6 { (3, 0) } else { (11, 0) };
    cases.push(
        u.case(Hook::NicIn, "it would expire", &world, spec.build())
            .answered(Reason::TtlExceeded, u.base.error(&spec, kind, code, 0)),
    );
    cases
}

/// A flow as the node of its backend knows it.
fn here(flow: Flow) -> Flow {
    Flow {
        node: NodeClient::Forwarded,
        ..flow
    }
}

/// Its rows.
fn rows(u: &Uplink, flow: &Flow, state: FlowState, age: u32) -> [(FlowId, FlowRow); 2] {
    u.rows(flow, state, age).map(|(id, row)| {
        let row = FlowRow {
            backend: 0,
            generation: 0,
            service: 0,
            ..row
        };
        (id, row)
    })
}

/// The packet as the other node sends it here.
fn arriving(u: &Uplink, flow: &Flow, spec: &Spec) -> Vec<u8> {
    let (outer, inner) = u.base.arriving(spec);
    let mut frame = tunnel(&outer, &inner);
    let (addr, port) = u.backend(flow);
    frame[MARK_AT] = MARK;
    frame[NAME_AT..NAME_AT + 12].copy_from_slice(&name(addr, port));
    frame
}

/// The tables of a node that does not know the service.
fn unknown(u: &Uplink) -> World {
    u.base.world.clone()
}

fn given(u: &Uplink, flow: &Flow, spec: &Spec) -> (Reason, Verdict, Vec<u8>) {
    let (verdict, frame) = Fixture::delivered(&u.translated(flow, spec), 3);
    (Reason::Decapsulated, verdict, frame)
}

fn at_the_backend(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        // A node port of the other node: no frontend of this one.
        let flow = here(Flow {
            frontend: (u.base.remote, NODE_PORT),
            ..u.outside_flow(kind, LOCAL_ID)
        });
        let spec = u.sent(&flow);
        let (reason, verdict, out) = given(u, &flow, &spec);
        let name = format!("{} of a client by way of another node", kind.name);
        let frame = arriving(u, &flow, &spec);
        cases.push(
            u.case(Hook::NicIn, &name, &unknown(u), frame.clone())
                .leaves(reason, verdict, out)
                .writes(rows(u, &flow, FlowState::Opening, 0)),
        );
        cases.push(
            u.case(Hook::Xdp, &name, &unknown(u), frame)
                .passes(Reason::LeftByXdp),
        );
        // The row of its answers is another flow's.
        let other = Flow {
            frontend: (flow.frontend.0, 81),
            ..flow
        };
        let moved = Flow {
            nat: Some((flow.client.0, SNAT)),
            ..flow
        };
        let mut world = unknown(u);
        world
            .flows
            .extend(rows(u, &other, FlowState::Established, 1));
        let (reason, verdict, out) = given(u, &moved, &spec);
        let name = format!("{}, whose answers another flow has", kind.name);
        cases.push(
            u.case(Hook::NicIn, &name, &world, arriving(u, &flow, &spec))
                .leaves(reason, verdict, out)
                .writes(rows(u, &moved, FlowState::Opening, 0)),
        );
    }
    // Behind the bridge the kernel knows the pod.
    let flow = here(u.outside_flow(SYN, LOCAL_ID));
    let spec = u.sent(&flow);
    let mut world = unknown(u);
    world.config.bridge = 8;
    world.pods.clear();
    let to = u.translated(&flow, &spec);
    let mut out = to.clone();
    out.ttl -= 1;
    cases.push(
        u.case(
            Hook::NicIn,
            "to a pod behind the bridge",
            &world,
            arriving(u, &flow, &spec),
        )
        .leaves(
            Reason::Decapsulated,
            Verdict::Route { ifindex: 8 },
            out.build(),
        )
        .writes(rows(u, &flow, FlowState::Opening, 0)),
    );
    cases
}

fn continued(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let flow = here(u.outside_flow(SYN, LOCAL_ID));
    let data = Spec {
        upper: Upper::Tcp(ACK),
        ..u.sent(&flow)
    };
    let opened_before = |rows: [(FlowId, FlowRow); 2]| {
        rows.map(|(id, mut row)| {
            row.opened = NOW - 1;
            (id, row)
        })
    };
    for flow in [
        flow,
        Flow {
            nat: Some((flow.client.0, SNAT)),
            ..flow
        },
    ] {
        let (reason, verdict, out) = given(u, &flow, &data);
        let mut world = unknown(u);
        world
            .flows
            .extend(rows(u, &flow, FlowState::Established, 1));
        let frame = arriving(u, &flow, &data);
        cases.push(
            u.case(
                Hook::NicIn,
                "data that was forwarded",
                &world,
                frame.clone(),
            )
            .leaves(reason, verdict, out.clone())
            .writes(opened_before(rows(u, &flow, FlowState::Established, 0))),
        );
        // The row of its answers was lost.
        let [forward, reply] = rows(u, &flow, FlowState::Established, 1);
        world.flows.remove(&reply.0);
        assert!(world.flows.contains_key(&forward.0));
        cases.push(
            u.case(Hook::NicIn, "data whose reply row is gone", &world, frame)
                .leaves(reason, verdict, out)
                .writes(opened_before(rows(u, &flow, FlowState::Established, 0))),
        );
    }
    // What ends a flow that nobody knows opens none.
    let fin = Spec {
        upper: Upper::Tcp(ACK | FIN),
        ..data
    };
    let (reason, verdict, out) = given(u, &flow, &fin);
    let frame = arriving(u, &flow, &fin);
    cases.push(
        u.case(Hook::NicIn, "the end of an unknown one", &unknown(u), frame)
            .leaves(reason, verdict, out),
    );
    // A later fragment without ports has only its address changed.
    let flow = here(u.outside_flow(OPENERS[1], LOCAL_ID));
    let later = Spec {
        piece: Some(Piece {
            offset: 5,
            more: false,
        }),
        dont_fragment: false,
        ..u.sent(&flow)
    };
    let (reason, verdict, out) = given(u, &flow, &later);
    let frame = arriving(u, &flow, &later);
    cases.push(
        u.case(Hook::NicIn, "a later fragment", &unknown(u), frame)
            .leaves(reason, verdict, out),
    );
    cases
}

/// What is not taken.
fn refused(u: &Uplink) -> Vec<Case> {
    let flow = here(u.outside_flow(SYN, LOCAL_ID));
    let spec = u.sent(&flow);
    let frame = arriving(u, &flow, &spec);
    let case =
        |name: &str, world: &World, frame: &[u8]| u.case(Hook::NicIn, name, world, frame.to_vec());
    let mut cases = Vec::new();
    let mut gone = unknown(u);
    gone.pods.clear();
    cases.push(case("a pod that is gone", &gone, &frame).drops(Reason::BackendGone));
    let mut strangers = unknown(u);
    strangers.nodes.clear();
    cases.push(case("of a stranger", &strangers, &frame).drops(Reason::UnknownNode));
    let mut off = unknown(u);
    off.config.features &= !Feature::UPLINK_SERVICES;
    cases.push(case("services are off", &off, &frame).passes(Reason::OverlayToKernel));
    let mut other = frame.clone();
    other[MARK_AT] = MARK + 1;
    cases.push(case("another mark", &unknown(u), &other).passes(Reason::OverlayToKernel));
    let mut other = frame;
    (other[NAME_AT + 12], other[NAME_AT + 13]) = (0x88, 0xcc);
    cases.push(case("no IP packet", &unknown(u), &other).drops(Reason::BadHeader));
    for src in [u.base.client, u.vtep] {
        let spec = Spec {
            src,
            ..spec.clone()
        };
        let frame = arriving(u, &flow, &spec);
        cases.push(
            case("a source of this node's", &unknown(u), &frame).drops(Reason::MartianSource),
        );
    }
    let expired = Spec { ttl: 1, ..spec };
    let frame = arriving(u, &flow, &expired);
    cases.push(case("its last hop", &unknown(u), &frame).drops(Reason::TtlExceeded));
    cases
}

/// What the pod says goes straight to the client, as the frontend.
fn answers(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let flow = here(Flow {
            frontend: (u.base.remote, NODE_PORT),
            ..u.outside_flow(kind, LOCAL_ID)
        });
        for flow in [
            flow,
            Flow {
                nat: Some((flow.client.0, SNAT)),
                ..flow
            },
        ] {
            let (sent, back) = u.answer(&flow);
            let (verdict, out) = u.routed(&back);
            let mut world = unknown(u);
            world.flows.extend(rows(u, &flow, FlowState::Opening, 1));
            let name = format!("{}: the backend answers", kind.name);
            cases.push(
                u.case(Hook::PodFrom, &name, &world, sent.build())
                    .leaves(Reason::ReplyTranslated, verdict, out)
                    .writes(
                        rows(u, &flow, FlowState::Established, 0).map(|(id, mut row)| {
                            row.opened = NOW - 1;
                            (id, row)
                        }),
                    ),
            );
        }
    }
    cases
}
