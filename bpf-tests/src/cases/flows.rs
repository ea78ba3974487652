//! "Flow rows", and what a live one decides.

use datapath_common::{BackendState, FlowState, FrontendFlags, Hook, Reason, proto};

use super::fixture::{BPORT, LOCAL_ID, NOW, OWN_ID, REMOTE_ID, SPORT};
use super::{Case, Fixture};
use crate::model::{FlowId, FlowRow, FragmentId, FragmentRow, Verdict};
use crate::packet::tcp_flag::{ACK, FIN, RST, SYN};
use crate::packet::{Piece, Spec, Upper};

use FlowState::{Closing, Established, Opening};

type Row = (FlowId, FlowRow);
type Rows = [Row; 2];

pub fn cases(f: &Fixture) -> Vec<Case> {
    let mut cases = forward(f);
    cases.extend(reply_states(f));
    cases.extend(liveness(f));
    cases.extend(hairpin_reply(f));
    cases.extend(reply_fragments(f));
    cases.extend(lost_rows(f));
    cases.extend(of_another_service(f));
    cases
}

fn local_rows(f: &Fixture, protocol: u8, state: FlowState, age: u32) -> Rows {
    let more = match protocol {
        proto::TCP => 0,
        proto::UDP => 10,
        _ => 20,
    };
    f.rows(protocol, f.local_service, LOCAL_ID + more, state, age)
}

fn set(rows: Rows, change: impl Fn(&mut FlowRow)) -> Rows {
    rows.map(|(id, mut row)| {
        change(&mut row);
        (id, row)
    })
}

/// Another packet of the flow, to its backend; `after` is what the rows become.
fn again(f: &Fixture, name: &str, upper: Upper, before: Rows, after: Rows) -> Case {
    let spec = f.from_client(upper, f.local_service, 80);
    let (verdict, out) = Fixture::delivered(
        &Spec {
            dst: f.pod,
            dport: BPORT,
            ..spec.clone()
        },
        3,
    );
    let mut case = f
        .case(name, &spec)
        .leaves(Reason::DeliveredLocal, verdict, out)
        .writes(after);
    case.world.flows.extend(before);
    case
}

fn forward(f: &Fixture) -> Vec<Case> {
    let tcp = |state, age| local_rows(f, proto::TCP, state, age);
    let udp = |age| local_rows(f, proto::UDP, Opening, age);
    let sctp = local_rows(f, proto::SCTP, Established, 1);
    // A change of state is written at once, and the time with it.
    let close = |row: &mut FlowRow| (row.state, row.seen) = (Closing, NOW);
    let mut cases = vec![
        again(f, "one tick old: not written", Upper::Udp, udp(1), udp(1)),
        again(
            f,
            "two ticks old: both rows written",
            Upper::Udp,
            udp(2),
            set(udp(2), |row| {
                row.seen = NOW;
            }),
        ),
        again(
            f,
            "SCTP SHUTDOWN closes",
            Upper::Sctp(Some(7)),
            sctp,
            set(sctp, close),
        ),
        again(
            f,
            "SCTP ABORT closes",
            Upper::Sctp(Some(6)),
            sctp,
            set(sctp, close),
        ),
        again(
            f,
            "SCTP heartbeat does not close",
            Upper::Sctp(Some(4)),
            sctp,
            sctp,
        ),
        again(
            f,
            "a SYN to a closing flow opens anew",
            Upper::Tcp(SYN),
            tcp(Closing, 1),
            tcp(Opening, 0),
        ),
    ];
    for flags in [FIN | ACK, RST] {
        let before = tcp(Established, 1);
        let name = format!("TCP flags {flags:#04x} close both rows");
        cases.push(again(
            f,
            &name,
            Upper::Tcp(flags),
            before,
            set(before, close),
        ));
    }
    let before = tcp(Established, 1);
    cases.push(again(
        f,
        "a SYN again on an open flow",
        Upper::Tcp(SYN),
        before,
        before,
    ));
    // The segment is empty, but the flow lives.
    let mut case = again(
        f,
        "no endpoints, but a live row",
        Upper::Tcp(ACK),
        before,
        before,
    );
    for row in case.world.frontends.values_mut() {
        row.len = 0;
    }
    cases.push(case);
    cases
}

/// A reply of the local backend to the client, at two hooks and back.
fn reply(f: &Fixture, name: &str, upper: Upper, before: Rows, after: Rows) -> Vec<Case> {
    let sent = Spec::new(upper, f.pod, BPORT, f.client, SPORT);
    let back = Spec {
        src: f.local_service,
        sport: 80,
        ..sent.clone()
    };
    let (verdict, out) = Fixture::delivered(&back, 2);
    let (outer, inner) = f.arriving(&sent);
    let mut cases = vec![
        f.case(name, &sent)
            .leaves(Reason::ReplyTranslated, verdict, out.clone()),
        f.case_at(Hook::NicIn, name, crate::packet::tunnel(&outer, &inner))
            .leaves(Reason::ReplyTranslated, verdict, out.clone()),
        f.case_at(
            Hook::NicIn,
            &format!("{name}, after XDP"),
            f.stripped(&sent).build(),
        )
        .leaves(Reason::ReplyTranslated, verdict, out),
        f.case_at(Hook::PodTo, name, sent.build()).leaves(
            Reason::ReplyTranslated,
            Verdict::Kernel,
            back.build(),
        ),
    ];
    for case in &mut cases {
        case.world.flows.extend(before);
        case.flows.extend(after);
    }
    cases
}

fn reply_states(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    let table = [
        (proto::TCP, Upper::Tcp(SYN | ACK), Opening, Established),
        (proto::TCP, Upper::Tcp(ACK), Opening, Established),
        (proto::TCP, Upper::Tcp(ACK), Established, Established),
        (proto::TCP, Upper::Tcp(ACK), Closing, Closing),
        (proto::TCP, Upper::Tcp(RST | ACK), Opening, Closing),
        (proto::TCP, Upper::Tcp(FIN | ACK), Established, Closing),
        (proto::UDP, Upper::Udp, Opening, Established),
        (proto::UDP, Upper::Udp, Established, Established),
        (proto::SCTP, Upper::Sctp(Some(2)), Opening, Established),
        (proto::SCTP, Upper::Sctp(Some(0)), Established, Established),
        (proto::SCTP, Upper::Sctp(Some(6)), Established, Closing),
    ];
    for (protocol, upper, from, to) in table {
        let before = local_rows(f, protocol, from, 1);
        let after = if from == to {
            before
        } else {
            set(before, |row| (row.state, row.seen) = (to, NOW))
        };
        let name = format!("reply {upper:?}: {} to {}", from.name(), to.name());
        cases.extend(reply(f, &name, upper, before, after));
    }
    let before = local_rows(f, proto::UDP, Established, 2);
    let after = set(before, |row| row.seen = NOW);
    cases.extend(reply(
        f,
        "a reply refreshes both rows",
        Upper::Udp,
        before,
        after,
    ));
    cases
}

fn liveness(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    let idle = f.world.config.idle;
    let limits = [
        (proto::TCP, Opening, idle.tcp_opening),
        (proto::TCP, Established, idle.tcp_established),
        (proto::TCP, Closing, idle.tcp_closing),
        (proto::UDP, Opening, idle.udp_opening),
        (proto::UDP, Established, idle.udp_established),
        (proto::SCTP, Opening, idle.sctp_opening),
        (proto::SCTP, Established, idle.sctp_established),
        (proto::SCTP, Closing, idle.sctp_closing),
    ];
    for (protocol, state, limit) in limits {
        let upper = match protocol {
            proto::TCP => Upper::Tcp(ACK),
            proto::UDP => Upper::Udp,
            _ => Upper::Sctp(Some(0)),
        };
        let sent = Spec::new(upper, f.pod, BPORT, f.client, SPORT);
        let name = format!(
            "protocol {protocol} {}, idle beyond its limit",
            state.name()
        );
        let mut case = f
            .case_at(Hook::PodTo, &name, sent.build())
            .passes(Reason::NotOurs);
        // One more than one over: the clock may step during the test.
        case.world
            .flows
            .extend(local_rows(f, protocol, state, limit + 2));
        cases.push(case);
        let before = local_rows(f, protocol, state, limit - 1);
        let to = state.max(Established);
        let after = set(before, |row| (row.state, row.seen) = (to, NOW));
        let name = format!(
            "protocol {protocol} {}, idle within its limit",
            state.name()
        );
        cases.extend(reply(f, &name, upper, before, after).pop());
    }
    let tcp = Upper::Tcp(ACK);
    for (name, protocol, upper, state, generation, live) in [
        (
            "a draining backend, TCP",
            proto::TCP,
            tcp,
            BackendState::Draining,
            7,
            true,
        ),
        (
            "a draining backend, UDP",
            proto::UDP,
            Upper::Udp,
            BackendState::Draining,
            7,
            true,
        ),
        (
            "a free backend",
            proto::TCP,
            tcp,
            BackendState::Free,
            7,
            false,
        ),
        (
            "a backend of another generation",
            proto::TCP,
            tcp,
            BackendState::Active,
            8,
            false,
        ),
    ] {
        let before = local_rows(f, protocol, Established, 1);
        let Some(mut case) = reply(f, name, upper, before, before).pop() else {
            continue;
        };
        for row in case.world.backends.values_mut() {
            (row.state, row.generation) = (state, generation);
        }
        cases.push(if live { case } else { unchanged(case) });
    }
    cases
}

fn unchanged(mut case: Case) -> Case {
    case.out = super::Out::Same;
    case.passes(Reason::NotOurs)
}

fn hairpin_reply(f: &Fixture) -> Vec<Case> {
    let before = f.rows(proto::TCP, f.own_service, OWN_ID, Opening, 1);
    let sent = Spec::new(Upper::Tcp(SYN | ACK), f.client, BPORT, f.own_service, SPORT);
    let back = Spec {
        src: f.own_service,
        sport: 80,
        dst: f.client,
        ..sent.clone()
    };
    let (verdict, out) = Fixture::delivered(&back, 2);
    let mut case = f
        .case("the reply of a hairpin", &sent)
        .leaves(Reason::ReplyTranslated, verdict, out)
        .writes(set(before, |row| {
            (row.state, row.seen) = (Established, NOW);
        }));
    case.world.flows.extend(before);
    let mut old = case.clone();
    old.name += ", TTL 1";
    let spec = Spec { ttl: 1, ..sent };
    let (kind, code) = if f.v6 { (3, 0) } else { (11, 0) };
    old.frame = spec.build();
    old.flows.clear();
    vec![
        case,
        old.answered(Reason::TtlExceeded, f.error(&spec, kind, code, 0)),
    ]
}

/// First and later fragments of a reply are translated alike.
fn reply_fragments(f: &Fixture) -> Vec<Case> {
    let rows = local_rows(f, proto::UDP, Established, 1);
    let whole = Spec::new(Upper::Udp, f.pod, BPORT, f.client, SPORT);
    let first = Spec {
        piece: Some(Piece {
            offset: 0,
            more: true,
        }),
        dont_fragment: false,
        ..whole
    };
    let later = Spec {
        piece: Some(Piece {
            offset: 3,
            more: false,
        }),
        ..first.clone()
    };
    let id = FragmentId {
        src: f.pod,
        dst: f.client,
        id: first.id,
        proto: proto::UDP,
    };
    let ports = FragmentRow {
        sport: BPORT,
        dport: SPORT,
        seen: NOW,
        first_octets: first.ip_octets(),
    };
    let mut cases = Vec::new();
    for (name, sent) in [("first", first), ("later", later)] {
        let back = Spec {
            src: f.local_service,
            sport: 80,
            ..sent.clone()
        };
        let (verdict, out) = Fixture::delivered(&back, 2);
        let name = format!("{name} fragment of a reply");
        for (hook, sent) in [
            (Hook::PodFrom, sent.clone()),
            (Hook::NicIn, f.stripped(&sent)),
        ] {
            let case = f.case_at(hook, &name, sent.build());
            cases.push(case.leaves(Reason::ReplyTranslated, verdict, out.clone()));
        }
        let case = f.case_at(Hook::PodTo, &name, sent.build());
        cases.push(case.leaves(Reason::ReplyTranslated, Verdict::Kernel, back.build()));
        for case in cases.iter_mut().rev().take(3) {
            case.world.flows.extend(rows);
            if sent.piece.is_some_and(|piece| piece.offset != 0) {
                case.world.fragments.insert(id, ports);
            } else {
                case.fragments.push((id, ports));
            }
        }
    }
    // What cannot be translated goes on as it is.
    let short = Spec {
        upper: Upper::Other(proto::UDP),
        payload: [BPORT.to_be_bytes(), SPORT.to_be_bytes()].concat(),
        ..Spec::new(Upper::Udp, f.pod, BPORT, f.client, SPORT)
    };
    let mut case = f.case_at(
        Hook::PodTo,
        "a reply without its checksum field",
        short.build(),
    );
    case.world.flows.extend(rows);
    cases.push(case.passes(Reason::NotOurs));
    cases
}

/// Data where rows may be lost: what is gone is written anew, in whichever
/// direction; elsewhere data asks nothing.
fn lost_rows(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    let kinds = [
        ("TCP", proto::TCP, Upper::Tcp(ACK)),
        ("SCTP", proto::SCTP, Upper::Sctp(Some(0))),
    ];
    for (name, protocol, upper) in kinds {
        let old = |state| local_rows(f, protocol, state, 1);
        let new = |state| local_rows(f, protocol, state, 0);
        let [forward, reply] = old(Established);
        // Rows before, which of them are there, rows after.
        let seen_now = |rows| set(rows, |row| row.seen = NOW);
        let table: [(&str, &[Row], Rows); 6] = [
            ("both rows lost", &[], new(Opening)),
            ("the forward row lost", &[reply], new(Established)),
            (
                "the forward row lost, the reply's closing",
                &old(Closing)[1..],
                new(Established),
            ),
            (
                "a reply row of another generation",
                &set(old(Established), |row| row.generation = 6)[1..],
                new(Opening),
            ),
            ("the reply row lost", &[forward], seen_now(old(Established))),
            (
                "both rows there",
                &[forward, reply],
                seen_now(old(Established)),
            ),
        ];
        for (what, before, after) in table {
            let name = format!("{name} data, {what}");
            let mut case = again(f, &name, upper, old(Established), after);
            case.world.flows.clear();
            case.world.flows.extend(before.iter().copied());
            let mut unasked = case.clone();
            unasked.name += ", unchanged service";
            unasked.flows.clear();
            cases.push(unasked);
            for row in case.world.frontends.values_mut() {
                row.flags |= FrontendFlags::FLOWS_MAY_BE_LOST;
            }
            case.name += ", and known to be";
            cases.push(case);
        }
    }
    // What ends a flow opens none, whatever was lost.
    let rows = local_rows(f, proto::TCP, Established, 1);
    let mut case = again(
        f,
        "a FIN whose rows are lost",
        Upper::Tcp(FIN | ACK),
        rows,
        rows,
    );
    case.world.flows.clear();
    case.flows.clear();
    for row in case.world.frontends.values_mut() {
        row.flags |= FrontendFlags::FLOWS_MAY_BE_LOST;
    }
    cases.push(case);
    cases
}

/// A flow to a backend that its frontend does not name any more, but another does.
fn of_another_service(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, protocol, upper, more) in [
        ("UDP", proto::UDP, Upper::Udp, 10),
        ("TCP", proto::TCP, Upper::Tcp(ACK), 0),
        ("SCTP", proto::SCTP, Upper::Sctp(Some(1)), 20),
    ] {
        let spec = f.from_client(upper, f.local_service, 80);
        let elsewhere = f.rows(protocol, f.local_service, REMOTE_ID + more, Established, 1);
        let to = Spec {
            dst: f.remote,
            dport: BPORT,
            ..spec.clone()
        };
        let (verdict, out) = f.encapsulated(&to);
        let name = format!("KP-117 {name} to a backend of another service");
        let mut stays =
            f.case(&format!("{name} alone"), &spec)
                .leaves(Reason::Encapsulated, verdict, out);
        for row in stays.world.frontends.values_mut() {
            row.flags |= FrontendFlags::FLOWS_DECIDE;
        }
        stays.world.flows.extend(elsewhere);
        if protocol == proto::UDP {
            let new = local_rows(f, protocol, Opening, 0);
            let mut moves = again(f, &name, upper, elsewhere, new);
            moves.world = stays.world.clone();
            cases.push(moves);
            // Of its own it keeps the backend.
            let old = local_rows(f, protocol, Established, 1);
            let mut own = again(f, "KP-117 UDP to a backend of its own", upper, old, old);
            own.world.frontends.clone_from(&stays.world.frontends);
            cases.push(own);
            // Where nothing has changed, nothing is looked for.
            for row in stays.world.frontends.values_mut() {
                row.flags &= !FrontendFlags::FLOWS_DECIDE;
            }
            stays.name += ", unchanged";
        }
        cases.push(stays);
    }
    cases
}
