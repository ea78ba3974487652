//! "Service", step 4: the better of two backends by their living flows.

use datapath_common::{FlowState, Frontend, FrontendFlags, proto};

use super::fixture::{LOCAL_ID, OUTSIDE_ID};
use super::{Case, Fixture};
use crate::model::{FlowId, FlowRow};
use crate::packet::{Spec, Upper, tcp_flag};

/// Number of the service port.
const SERVICE: u32 = 78;

/// A packet from the client to a service with two backends, of which `local` and `outside`
/// weigh so much if that is not the same, and that have so many living flows.
fn case(f: &Fixture, name: &str, flag: u8, weights: [usize; 2], flows: [i64; 2]) -> (Case, Spec) {
    let spec = f.from_client(Upper::Tcp(flag), f.local_service, 80);
    let mut case = f.case(name, &spec);
    let table = if weights[0] == weights[1] {
        Vec::new()
    } else {
        [
            [LOCAL_ID].repeat(weights[0]),
            [OUTSIDE_ID].repeat(weights[1]),
        ]
        .concat()
    };
    let row = Frontend {
        service: SERVICE,
        flags: FrontendFlags::LEAST_FLOWS | FrontendFlags::FLOWS_DECIDE,
        ..Frontend::default()
    };
    f.serve_by_two(&mut case, proto::TCP, 0, &table, row);
    for (id, count) in [LOCAL_ID, OUTSIDE_ID].into_iter().zip(flows) {
        if count != 0 {
            case.world.live.insert((version(f), id), count);
        }
    }
    case.live.clone_from(&case.world.live);
    (case, spec)
}

fn version(f: &Fixture) -> u8 {
    if f.v6 { 6 } else { 4 }
}

/// Rows of a flow that is counted, the forward one first.
fn rows(f: &Fixture, id: u32, state: FlowState, counted: bool) -> [(FlowId, FlowRow); 2] {
    let [(forward, row), (reply, back)] = f.rows(proto::TCP, f.local_service, id, state, 0);
    let service = SERVICE;
    let row = FlowRow {
        service,
        counted,
        ..row
    };
    [(forward, row), (reply, FlowRow { service, ..back })]
}

pub fn cases(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    // Of two backends both are looked at, whatever the hash; of a table any two slots, so that
    // the one that is worse may win only where one backend has both.
    for (flows, to) in [
        ([0, 1], LOCAL_ID),
        ([1, 0], OUTSIDE_ID),
        ([9, 1_000_000], LOCAL_ID),
        ([4, 3], OUTSIDE_ID),
        // Below 0 counts as none.
        ([1, -5], OUTSIDE_ID),
    ] {
        let name = format!("living flows {flows:?}: backend {to} has fewer");
        let (mut case, spec) = case(f, &name, tcp_flag::SYN, [1, 1], flows);
        let count = case.live.entry((version(f), to)).or_default();
        *count += 1;
        case.live.retain(|_, count| *count != 0);
        let rows = rows(f, to, FlowState::Opening, true);
        cases.push(f.goes(case, &spec, to).writes(rows));
    }
    // Two slots, both different: the weights decide. 4 + 1 for 1, or 11 + 1 for 3.
    for (weights, flows, to) in [([1, 3], [4, 11], OUTSIDE_ID), ([3, 1], [11, 4], LOCAL_ID)] {
        let name = format!("living flows {flows:?} for weights {weights:?}: backend {to}");
        let (mut case, spec) = case(f, &name, tcp_flag::SYN, weights, flows);
        *case.live.entry((version(f), to)).or_default() += 1;
        let rows = rows(f, to, FlowState::Opening, true);
        cases.push(f.goes(case, &spec, to).writes(rows));
    }
    // The end of a flow counts once.
    for (what, flag) in [("FIN", tcp_flag::FIN), ("RST", tcp_flag::RST)] {
        for (counted, state) in [
            (true, FlowState::Established),
            (true, FlowState::Opening),
            (false, FlowState::Established),
            (false, FlowState::Closing),
        ] {
            let name = format!("{what} of a flow, {}, counted {counted}", state.name());
            let (mut case, spec) = case(f, &name, flag, [1, 1], [5, 5]);
            for (key, row) in rows(f, LOCAL_ID, state, counted) {
                case.world.flows.insert(key, row);
            }
            if counted {
                case.live.insert((version(f), LOCAL_ID), 4);
            }
            let closed = rows(f, LOCAL_ID, FlowState::Closing, false);
            cases.push(f.goes(case, &spec, LOCAL_ID).writes(closed));
        }
    }
    // Data and what is sent again change nothing.
    for (what, flag) in [
        ("a SYN that comes again", tcp_flag::SYN),
        ("data", tcp_flag::ACK),
    ] {
        let name = format!("{what} of a counted flow");
        let (mut case, spec) = case(f, &name, flag, [1, 1], [5, 1]);
        for (key, row) in rows(f, LOCAL_ID, FlowState::Opening, true) {
            case.world.flows.insert(key, row);
        }
        cases.push(f.goes(case, &spec, LOCAL_ID));
    }
    cases
}
