//! Ports of masqueraded flows: who gets which, and what becomes of a flow whose
//! port another has by now.

use datapath_common::{FlowState, FrontendFlags, Hook, Reason};

use super::fixture::{Fixture, LOCAL_ID, NOW, REMOTE_ID, SPORT};
use super::north_south::masqueraded;
use super::uplink::{Flow, MASQUERADE, SNAT, SYN, Uplink};
use super::{Case, leaving};
use crate::model::{FlowId, FlowRow};
use crate::packet::{Spec, Upper, tcp_flag};

/// Ticks of silence after which a closing connection may lose its port.
const QUIET: u32 = 30;

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut cases = free_ports(u);
    cases.extend(shared_tuples(u));
    cases.extend(accepted_anew(u));
    cases
}

/// How a masqueraded flow gets its port.
fn free_ports(u: &Uplink) -> Vec<Case> {
    let flow = masqueraded(u, u.outside_flow(SYN, REMOTE_ID));
    let other = Flow {
        client: (u.client, SPORT + 1),
        ..flow
    };
    let taken = u
        .case(
            Hook::NicIn,
            "every port is taken",
            &u.world(&flow, MASQUERADE),
            u.sent(&flow).build(),
        )
        .drops(Reason::SnatPortsExhausted);
    let taken = among(&taken, "", u.rows(&other, FlowState::Established, 1));

    let second = Flow {
        nat: Some((u.vtep, SNAT + 1)),
        ..flow
    };
    let mut next = u.opens(Hook::NicIn, "the other port is free", &second, MASQUERADE);
    next.world.config.snat_ports = 2;
    // A port that nobody has is better than one of a connection that is closing.
    next.world.config.idle.tcp_closing = 4 * QUIET;
    let next = among(&next, "", u.rows(&other, FlowState::Closing, QUIET));

    // The same port serves another backend.
    let elsewhere = masqueraded(u, u.outside_flow(SYN, LOCAL_ID));
    let shared = u.opens(
        Hook::NicIn,
        "taken towards another backend",
        &elsewhere,
        MASQUERADE,
    );
    let shared = among(&shared, "", u.rows(&other, FlowState::Established, 1));
    let mut cases = vec![taken, next, shared];
    cases.extend(own_ports(u, &flow));
    cases.extend(ports_taken_over(u, &flow, &other));
    cases
}

/// The same with these rows, and so much more of a name.
fn among(case: &Case, name: &str, rows: impl IntoIterator<Item = (FlowId, FlowRow)>) -> Case {
    let mut case = case.clone();
    case.name += name;
    case.world.flows.extend(rows);
    case
}

/// A flow finds its own port again.
fn own_ports(u: &Uplink, flow: &Flow) -> Vec<Case> {
    let mut cases = Vec::new();
    let anew = u.opens(Hook::NicIn, "a SYN to a closing flow", flow, MASQUERADE);
    cases.push(among(
        &anew,
        ": its port",
        u.rows(flow, FlowState::Closing, 1),
    ));
    // What lost its forward row goes on as if it had not.
    for (name, upper, state) in [
        ("data", Upper::Tcp(tcp_flag::ACK), FlowState::Established),
        ("a SYN", Upper::Tcp(tcp_flag::SYN), FlowState::Opening),
    ] {
        let spec = Spec {
            upper,
            ..u.sent(flow)
        };
        let (reason, verdict, out) = u.leaving(Hook::NicIn, flow, &u.translated(flow, &spec));
        for before in [FlowState::Established, FlowState::Closing] {
            let name = format!(
                "{name}, the forward row lost, the reply's {}",
                before.name()
            );
            let world = u.world(flow, MASQUERADE);
            let case = u
                .case(Hook::NicIn, &name, &world, spec.build())
                .leaves(reason, verdict, out.clone())
                .writes(u.rows(flow, state, 0));
            let [_, reply] = u.rows(flow, before, 1);
            cases.push(among(&case, "", [reply]));
        }
    }
    // Not its own: by another frontend, or to the backend's row before this one.
    let spec = Spec {
        upper: Upper::Tcp(tcp_flag::ACK),
        ..u.sent(flow)
    };
    let beside = Flow {
        frontend: (u.vip, 81),
        ..*flow
    };
    let [_, reply] = u.rows(&beside, FlowState::Established, 1);
    let case = u
        .case(
            Hook::NicIn,
            "the client's own flow by another frontend has the port",
            &u.world(flow, MASQUERADE),
            spec.build(),
        )
        .drops(Reason::SnatPortsExhausted);
    cases.push(among(&case, "", [reply]));
    cases
}

/// Ports of flows that are over, or nearly so.
fn ports_taken_over(u: &Uplink, flow: &Flow, other: &Flow) -> Vec<Case> {
    let long = |mut case: Case| {
        case.world.config.idle.tcp_closing = 4 * QUIET;
        case
    };
    let opens = |name: &str| long(u.opens(Hook::NicIn, name, flow, MASQUERADE));
    let mut cases = Vec::new();
    let idle = opens("").world.config.idle;
    for (state, limit) in [
        (FlowState::Opening, idle.tcp_opening),
        (FlowState::Established, idle.tcp_established),
        (FlowState::Closing, idle.tcp_closing),
    ] {
        let case = opens(&format!(
            "the port of a flow that has expired, {}",
            state.name()
        ));
        cases.push(among(&case, "", u.rows(other, state, limit + 2)));
    }
    let rows = u
        .rows(other, FlowState::Established, 1)
        .map(|(id, mut row)| {
            row.generation -= 1;
            (id, row)
        });
    cases.push(among(
        &opens("the port of a flow of a former backend"),
        "",
        rows,
    ));

    let closing = |age| u.rows(other, FlowState::Closing, age);
    let mut quiet = opens("the port of a silent closing connection");
    quiet.world.flows.extend(closing(QUIET));
    // The clock may step once.
    let mut young = quiet.clone().drops(Reason::SnatPortsExhausted);
    young.name += ", not silent for long";
    young.flows.clear();
    young.world.flows.extend(closing(QUIET - 2));
    let mut data = quiet.clone().drops(Reason::SnatPortsExhausted);
    data.name += ", for data";
    data.flows.clear();
    data.frame = Spec {
        upper: Upper::Tcp(tcp_flag::ACK),
        ..u.sent(flow)
    }
    .build();
    let mut heard = quiet.clone().drops(Reason::SnatPortsExhausted);
    heard.name += ", no: it is open";
    heard.flows.clear();
    heard
        .world
        .flows
        .extend(u.rows(other, FlowState::Established, QUIET));
    cases.extend([quiet, young, data, heard]);
    cases
}

/// A flow whose reply row, and with it the port, is another's by now.
fn shared_tuples(u: &Uplink) -> Vec<Case> {
    let flow = masqueraded(u, u.outside_flow(SYN, LOCAL_ID));
    let other = Flow {
        client: (u.client, SPORT + 1),
        ..flow
    };
    let [forward, reply] = u.rows(&flow, FlowState::Established, 2);
    let others = u.rows(&other, FlowState::Established, 1);
    let sent = |flags| Spec {
        upper: Upper::Tcp(flags),
        ..u.sent(&flow)
    };
    let world = u.world(&flow, MASQUERADE);
    let at = |name: &str, flags: u8| u.case(Hook::NicIn, name, &world, sent(flags).build());
    let data = at("data by a port that is another's", tcp_flag::ACK);
    let none = among(&data, ": no other", others.into_iter().chain([forward]))
        .drops(Reason::SnatPortsExhausted);
    let end = at("a FIN by a port that is another's", tcp_flag::FIN);
    let end = among(&end, "", others.into_iter().chain([forward])).drops(Reason::UnknownFlow);

    let second = Flow {
        nat: Some((u.vtep, SNAT + 1)),
        ..flow
    };
    let to = u.translated(&second, &sent(tcp_flag::ACK));
    let (reason, verdict, out) = u.leaving(Hook::NicIn, &second, &to);
    let mut moved = among(&data, ": the next one", others.into_iter().chain([forward]))
        .leaves(reason, verdict, out)
        .writes(u.rows(&second, FlowState::Opening, 0));
    moved.world.config.snat_ports = 2;

    // Nobody's yet: the flow goes on.
    let to = u.translated(&flow, &sent(tcp_flag::ACK));
    let (reason, verdict, out) = u.leaving(Hook::NicIn, &flow, &to);
    let now = |(id, mut row): (FlowId, FlowRow)| {
        row.seen = NOW;
        (id, row)
    };
    let back = at(
        "data whose reply row is lost, after two ticks",
        tcp_flag::ACK,
    )
    .leaves(reason, verdict, out)
    .writes([now(forward), now(reply)]);
    let back = among(&back, "", [forward]);

    // An answer to the flow that had the port before the client's next one.
    let (answer, to_client) = u.answer(&flow);
    let [next, _] = u.rows(&second, FlowState::Established, 3);
    let (verdict, out) = u.routed(&to_client);
    let old = u
        .case(
            Hook::PodFrom,
            "an answer to the client's former flow",
            &world,
            answer.build(),
        )
        .leaves(Reason::ReplyTranslated, verdict, out)
        .writes([now(reply)]);
    let old = among(&old, "", [next, reply]);

    // Not masqueraded: both flows go on, as far as they can be told apart.
    let plain = u.outside_flow(SYN, LOCAL_ID);
    let beside = Flow {
        frontend: (u.vip, 81),
        ..plain
    };
    let to = u.translated(&plain, &sent(tcp_flag::ACK));
    let (reason, verdict, out) = u.leaving(Hook::NicIn, &plain, &to);
    let [forward, _] = u.rows(&plain, FlowState::Established, 2);
    let [_, reply] = u.rows(&beside, FlowState::Established, 2);
    let world = u.world(&plain, FrontendFlags::FLOWS_DECIDE);
    let frame = sent(tcp_flag::ACK).build();
    let both = u
        .case(
            Hook::NicIn,
            "data, the reply row is another frontend's",
            &world,
            frame,
        )
        .leaves(reason, verdict, out)
        .writes([now(forward)]);
    let both = among(&both, "", [forward, reply]);
    let mut cases = vec![none, end, moved, back, old, both];
    cases.extend(shared_outside(u));
    cases
}

/// The same for a pod that leaves the cluster.
fn shared_outside(u: &Uplink) -> Vec<Case> {
    let flow = leaving::flow(u, SYN);
    let other = Flow {
        client: (u.base.client, SPORT + 1),
        ..flow
    };
    let [forward, _] = leaving::rows(u, &flow, FlowState::Established, 2);
    let others = leaving::rows(u, &other, FlowState::Established, 1);
    let frame = Spec {
        upper: Upper::Tcp(tcp_flag::ACK),
        ..u.sent(&flow)
    }
    .build();
    let name = "data by a port that is another's";
    let case = u.case(Hook::NicOut, name, &leaving::world(u), frame);
    let case = case.drops(Reason::SnatPortsExhausted);
    vec![among(&case, "", others.into_iter().chain([forward]))]
}

/// A SYN-ACK is no answer of a connection that is over.
fn accepted_anew(u: &Uplink) -> Vec<Case> {
    let flow = u.pod_flow(SYN, LOCAL_ID);
    let (answer, back) = u.answer(&flow);
    let case = |name: &str| {
        let mut case = u.case(Hook::PodFrom, name, &u.world(&flow, 0), answer.build());
        case.world.config.idle.tcp_closing = 4 * QUIET;
        case
    };
    let (verdict, out) = Fixture::delivered(&answer, 2);
    let rows = u.rows(&flow, FlowState::Closing, QUIET);
    let [forward, (id, mut over)] = rows;
    over.seen = NOW - (4 * QUIET + 2);
    let anew = case("a SYN-ACK long after a connection closed")
        .leaves(Reason::DeliveredLocal, verdict, out)
        .writes([(id, over)]);
    let anew = among(&anew, "", rows);
    // What comes then finds the row expired.
    let data = Spec {
        upper: Upper::Tcp(tcp_flag::ACK),
        ..answer.clone()
    };
    let (verdict, out) = Fixture::delivered(&data, 2);
    let mut then = case("data after it").leaves(Reason::DeliveredLocal, verdict, out);
    then.frame = data.build();
    let then = among(&then, "", [forward, (id, over)]);
    // Soon after it, it is one that came twice.
    let (verdict, out) = Fixture::delivered(&back, 2);
    let rows = u.rows(&flow, FlowState::Closing, QUIET - 2);
    let again = case("a SYN-ACK soon after a connection closed")
        .leaves(Reason::ReplyTranslated, verdict, out)
        .writes(rows.map(|(id, mut row)| {
            row.seen = NOW;
            (id, row)
        }));
    vec![anew, then, among(&again, "", rows)]
}
