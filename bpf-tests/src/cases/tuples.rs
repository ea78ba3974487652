//! Two flows of a client's port to one backend's port, by two services or by one and
//! straight: each has a reply row of its own.

use datapath_common::{Feature, FlowState, FrontendFlags, Hook, Reason};

use super::Case;
use super::fixture::{BPORT, Fixture, LOCAL_ID, NOW, OUTSIDE_ID, REMOTE_ID, SPORT};
use super::north_south::masqueraded;
use super::uplink::{Flow, OPENERS, SNAT, SYN, Uplink};
use crate::model::{FlowId, FlowRow, Tuple};
use crate::packet::tcp_flag::{ACK, FIN, SYN as OPEN};
use crate::packet::{Spec, Upper};

/// Ticks of silence after which a closing connection may lose its port.
const QUIET: u32 = 30;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = second_services(u);
    cases.extend(whose_row(u));
    cases.extend(not_moved(u));
    cases.extend(lost_rows(u));
    cases.extend(former_connections(u));
    cases
}

/// The same flow by another port of the service.
fn beside(flow: &Flow) -> Flow {
    Flow {
        frontend: (flow.frontend.0, 81),
        ..*flow
    }
}

/// The flow with the client's own address, and the only port for translated sources.
fn moved(flow: &Flow) -> Flow {
    Flow {
        nat: Some((flow.client.0, SNAT)),
        ..*flow
    }
}

fn with(mut case: Case, rows: impl IntoIterator<Item = (FlowId, FlowRow)>) -> Case {
    case.world.flows.extend(rows);
    case
}

/// The second flow gets another port, and its packets and answers have it.
fn second_services(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in OPENERS {
        let ways = [
            (Hook::PodFrom, u.pod_flow(kind, LOCAL_ID), "a local one"),
            (Hook::PodFrom, u.pod_flow(kind, REMOTE_ID), "a remote one"),
            (Hook::PodFrom, u.pod_flow(kind, OUTSIDE_ID), "one outside"),
            (Hook::NicIn, u.outside_flow(kind, LOCAL_ID), "a local one"),
            (Hook::NicOut, u.node_flow(kind, LOCAL_ID), "a local one"),
        ];
        for (hook, flow, place) in ways {
            let rows = u.rows(&beside(&flow), FlowState::Established, 1);
            let flow = moved(&flow);
            let name = format!("{}, another service has its row: {place}", kind.name);
            cases.push(with(u.opens(hook, &name, &flow, 0), rows));
        }
        let flow = moved(&u.pod_flow(kind, LOCAL_ID));
        let way = |back: &Spec| Fixture::delivered(back, 2);
        let name = format!("{}, an answer to a port that was changed", kind.name);
        cases.push(u.answers(Hook::PodFrom, &name, &flow, false, way));
        let flow = moved(&u.pod_flow(kind, REMOTE_ID));
        cases.push(u.answers(Hook::NicIn, &name, &flow, true, way));
        cases.push(u.answers(Hook::PodTo, &name, &flow, false, |back| {
            (crate::model::Verdict::Kernel, back.build())
        }));
        let flow = moved(&u.outside_flow(kind, LOCAL_ID));
        cases.push(u.answers(Hook::PodFrom, &name, &flow, false, |back| u.routed(back)));
    }
    for id in [LOCAL_ID, REMOTE_ID] {
        let flow = moved(&u.pod_flow(SYN, id));
        let data = Spec {
            upper: Upper::Tcp(ACK),
            ..u.sent(&flow)
        };
        let (reason, verdict, out) = u.leaving(Hook::PodFrom, &flow, &u.translated(&flow, &data));
        let world = u.world(&flow, FrontendFlags::FLOWS_DECIDE);
        let name = "data with a port that was changed";
        let case = u.case(Hook::PodFrom, name, &world, data.build());
        let rows = u.rows(&flow, FlowState::Established, 1);
        cases.push(with(case.leaves(reason, verdict, out), rows));
    }
    cases
}

/// Whose the reply row is decides.
fn whose_row(u: &Uplink) -> Vec<Case> {
    let flow = u.pod_flow(SYN, LOCAL_ID);
    let [_, own] = u.rows(&flow, FlowState::Established, 1);
    let other = |state, age| {
        let [_, reply] = u.rows(&beside(&flow), state, age);
        reply
    };
    let idle = u.base.world.config.idle;
    let stays = |name: &str| u.opens(Hook::PodFrom, name, &flow, 0);
    let moves = |name: &str| u.opens(Hook::PodFrom, name, &moved(&flow), 0);
    let long = |mut case: Case| {
        case.world.config.idle.tcp_closing = 4 * QUIET;
        case
    };
    let former = |(id, mut row): (FlowId, FlowRow)| {
        row.generation -= 1;
        (id, row)
    };
    let mut cases = vec![
        with(stays("its own row is there"), [own]),
        with(stays("its own, of a former backend"), [former(own)]),
        with(
            stays("another's that has expired"),
            [other(FlowState::Established, idle.tcp_established + 2)],
        ),
        with(
            stays("another's, of a former backend"),
            [former(other(FlowState::Established, 1))],
        ),
        with(
            moves("another's that opens"),
            [other(FlowState::Opening, 1)],
        ),
        with(
            long(moves("another's that closes")),
            [other(FlowState::Closing, QUIET - 2)],
        ),
        with(
            long(stays("another's that closed long ago")),
            [other(FlowState::Closing, QUIET)],
        ),
    ];
    // Who came straight to the pod.
    let flow = u.outside_flow(SYN, LOCAL_ID);
    let [_, (id, row)] = u.rows(&flow, FlowState::Established, 1);
    let (addr, port) = u.backend(&flow);
    let straight = FlowRow {
        addr,
        port,
        backend: 0,
        generation: 0,
        service: 0,
        ..row
    };
    let name = "the row of who came straight to the pod";
    let case = u.opens(Hook::NicIn, name, &moved(&flow), 0);
    cases.push(with(case, [(id, straight)]));
    cases
}

/// What gets no other port.
fn not_moved(u: &Uplink) -> Vec<Case> {
    let flow = u.pod_flow(SYN, LOCAL_ID);
    let others = u.rows(&beside(&flow), FlowState::Established, 1);
    let stays = |name: &str| with(u.opens(Hook::PodFrom, name, &flow, 0), others);
    let mut none = stays("another service has its row, without ports");
    none.world.config.snat_ports = 0;
    let mut off = stays("another service has its row, without UPLINK_SERVICES");
    off.world.config.features &= !Feature::UPLINK_SERVICES;

    let third = Flow {
        frontend: (u.vip, 82),
        ..moved(&flow)
    };
    let name = "another service has its row, and the port too";
    let frame = u.sent(&flow).build();
    let taken = u.case(Hook::PodFrom, name, &u.world(&flow, 0), frame);
    let taken = with(taken.drops(Reason::SnatPortsExhausted), others);
    let taken = with(taken, u.rows(&third, FlowState::Established, 1));
    vec![none, off, taken]
}

/// Data of a connection that lost its forward row goes on by its port, whatever is free.
fn lost_rows(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    let flows = [
        (
            Hook::PodFrom,
            moved(&u.pod_flow(SYN, LOCAL_ID)),
            FrontendFlags::FLOWS_DECIDE,
        ),
        (
            Hook::NicIn,
            masqueraded(u, u.outside_flow(SYN, LOCAL_ID)),
            FrontendFlags::MASQUERADE_OUTSIDE,
        ),
    ];
    for (hook, flow, flags) in flows {
        for more in [0, 1] {
            let flow = Flow {
                nat: flow.nat.map(|(addr, port)| (addr, port + more)),
                ..flow
            };
            let data = Spec {
                upper: Upper::Tcp(ACK),
                ..u.sent(&flow)
            };
            let (reason, verdict, out) = u.leaving(hook, &flow, &u.translated(&flow, &data));
            let name = format!("data that lost its forward row, port {more} of two");
            let mut case = u
                .case(hook, &name, &u.world(&flow, flags), data.build())
                .leaves(reason, verdict, out)
                .writes(u.rows(&flow, FlowState::Established, 0));
            case.world.config.snat_ports = 2;
            let [_, reply] = u.rows(&flow, FlowState::Established, 1);
            cases.push(with(case, [reply]));
        }
    }
    cases.extend(lost_backends(u));
    cases
}

/// Data whose own row names a former backend: the new one has not been heard.
fn lost_backends(u: &Uplink) -> [Case; 2] {
    let kept = u.pod_flow(SYN, LOCAL_ID);
    let [_, (id, mut former)] = u.rows(&kept, FlowState::Established, 1);
    former.generation -= 1;
    let case = |name: &str, flow: &Flow, state| {
        let data = Spec {
            upper: Upper::Tcp(ACK),
            ..u.sent(flow)
        };
        let (reason, verdict, out) = u.leaving(Hook::PodFrom, flow, &u.translated(flow, &data));
        let world = u.world(flow, FrontendFlags::FLOWS_DECIDE);
        let case = u
            .case(Hook::PodFrom, name, &world, data.build())
            .leaves(reason, verdict, out)
            .writes(u.rows(flow, state, 0));
        with(case, [(id, former)])
    };
    let moved = moved(&kept);
    let [_, reply] = u.rows(&moved, FlowState::Established, 1);
    [
        case(
            "data with the row of a former backend",
            &kept,
            FlowState::Opening,
        ),
        with(
            case(
                "data with the row of a former backend, and a port",
                &moved,
                FlowState::Established,
            ),
            [reply],
        ),
    ]
}

/// A connection straight to a pod ends what its client had by the same ports before.
fn former_connections(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for (hook, id) in [
        (Hook::PodFrom, LOCAL_ID),
        (Hook::PodFrom, REMOTE_ID),
        (Hook::PodTo, LOCAL_ID),
    ] {
        let former = if hook == Hook::PodTo {
            u.node_flow(SYN, id)
        } else {
            u.pod_flow(SYN, id)
        };
        let (to, _) = u.backend(&former);
        for (flags, state, over) in [
            (OPEN, FlowState::Closing, true),
            (OPEN, FlowState::Established, false),
            (ACK, FlowState::Closing, false),
            (FIN | ACK, FlowState::Closing, false),
        ] {
            let sent = Spec::new(Upper::Tcp(flags), former.client.0, SPORT, to, BPORT);
            let (reason, verdict, out) = if hook == Hook::PodTo {
                (Reason::NotOurs, crate::model::Verdict::Kernel, sent.build())
            } else if id == LOCAL_ID {
                let (verdict, out) = Fixture::delivered(&sent, 3);
                (Reason::DeliveredLocal, verdict, out)
            } else {
                let (verdict, out) = u.base.encapsulated(&sent);
                (Reason::Encapsulated, verdict, out)
            };
            let name = format!(
                "straight to a pod, flags {flags:#x}, its row {}",
                state.name()
            );
            let case = u
                .case(hook, &name, &u.world(&former, 0), sent.build())
                .leaves(reason, verdict, out);
            let rows = u.rows(&former, state, 1);
            let [_, (id, mut row)] = rows;
            row.seen = NOW - (case.world.config.idle.tcp_closing + 2);
            let case = if over { case.writes([(id, row)]) } else { case };
            cases.push(with(case, rows));
        }
    }
    // Nothing of the sort is known.
    let tuple = Tuple {
        src: u.base.client,
        dst: u.base.pod,
        sport: SPORT,
        dport: BPORT,
        proto: SYN.proto,
    };
    let sent = Spec::new(
        Upper::Tcp(OPEN),
        tuple.src,
        tuple.sport,
        tuple.dst,
        tuple.dport,
    );
    let (verdict, out) = Fixture::delivered(&sent, 3);
    let name = "straight to a pod, no row";
    let case = u.base.case_at(Hook::PodFrom, name, sent.build());
    cases.push(case.leaves(Reason::DeliveredLocal, verdict, out));
    cases
}
