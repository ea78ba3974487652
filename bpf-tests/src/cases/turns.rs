//! "Service", step 4: backends in turn.

use datapath_common::{FlowState, Frontend, FrontendFlags, proto};

use super::fixture::{LOCAL_ID, OUTSIDE_ID};
use super::{Case, Fixture};
use crate::model::FlowRow;
use crate::packet::{Spec, Upper, tcp_flag};

/// Number of the service port, whatever the protocol.
const SERVICE: u32 = 77;
const ROW: u32 = 2 * SERVICE;

/// The case of a packet from the client to a service with two backends, and a table if
/// `table` has ids; `turns` were taken before.
fn case(f: &Fixture, name: &str, upper: Upper, table: &[u32], turns: u64) -> (Case, Spec, u8) {
    let proto = match upper {
        Upper::Udp => proto::UDP,
        _ => proto::TCP,
    };
    let spec = f.from_client(upper, f.local_service, 80);
    let mut case = f.case(name, &spec);
    let more = if proto == proto::UDP { 10 } else { 0 };
    let row = Frontend {
        service: SERVICE,
        flags: FrontendFlags::ROUND_ROBIN | FrontendFlags::FLOWS_DECIDE,
        ..Frontend::default()
    };
    let table: Vec<u32> = table.iter().map(|id| id + more).collect();
    f.serve_by_two(&mut case, proto, more, &table, row);
    if turns > 0 {
        case.world.turns.insert(ROW, turns);
        case.turns.insert(ROW, turns);
    }
    (case, spec, proto)
}

/// It opens a flow to this backend.
fn opens(f: &Fixture, case: Case, (spec, proto): (&Spec, u8), id: u32) -> Case {
    let more = if proto == proto::UDP { 10 } else { 0 };
    let rows = f.rows(proto, f.local_service, id + more, FlowState::Opening, 0);
    let rows = rows.map(|(key, row)| {
        let service = SERVICE;
        (key, FlowRow { service, ..row })
    });
    f.goes(case, spec, id).writes(rows)
}

pub fn cases(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    let syn = Upper::Tcp(tcp_flag::SYN);
    let thrice = [LOCAL_ID, OUTSIDE_ID, OUTSIDE_ID];
    for (turns, to) in [
        (0, LOCAL_ID),
        (1, OUTSIDE_ID),
        (7_000_000_000_002, LOCAL_ID),
    ] {
        for upper in [syn, Upper::Udp] {
            let name = format!("turn {turns} is backend {to}'s");
            let (mut case, spec, proto) = case(f, &name, upper, &[], turns);
            case.turns.insert(ROW, turns + 1);
            cases.push(opens(f, case, (&spec, proto), to));
        }
    }
    for (turns, to) in [(3, LOCAL_ID), (4, OUTSIDE_ID), (5, OUTSIDE_ID)] {
        let name = format!("turn {turns} is backend {to}'s by the table");
        let (mut case, spec, proto) = case(f, &name, syn, &thrice, turns);
        case.turns.insert(ROW, turns + 1);
        cases.push(opens(f, case, (&spec, proto), to));
    }
    for (flags, outside) in [
        (FrontendFlags::LOCAL_INSIDE, false),
        (FrontendFlags::LOCAL_OUTSIDE, true),
    ] {
        let name = format!("the list of this node's endpoints has turns apart: outside {outside}");
        let (mut case, spec, proto) = case(f, &name, syn, &[], 1);
        let front = case.world.frontends.get_mut(&(f.local_service, 80, proto));
        if let Some(front) = front {
            front.flags |= flags;
        }
        // A pod's are those inside.
        let (row, was, to) = if outside {
            (ROW, 1, OUTSIDE_ID)
        } else {
            (ROW + 1, 0, LOCAL_ID)
        };
        case.turns.insert(row, was + 1);
        cases.push(opens(f, case, (&spec, proto), to));
    }
    // What opens nothing takes no turn: it goes by the hash, to the only backend there is for it.
    let only = [OUTSIDE_ID; 3];
    let (unknown, spec, proto) = case(
        f,
        "data of an unknown connection takes no turn",
        Upper::Tcp(tcp_flag::ACK),
        &only,
        8,
    );
    cases.push(opens(f, unknown, (&spec, proto), OUTSIDE_ID));
    let (unknown, spec, _) = case(
        f,
        "the end of an unknown connection takes no turn",
        Upper::Tcp(tcp_flag::RST),
        &only,
        8,
    );
    cases.push(f.goes(unknown, &spec, OUTSIDE_ID));
    for (what, upper, state) in [
        ("a SYN that comes again", syn, FlowState::Opening),
        (
            "a known flow's next datagram",
            Upper::Udp,
            FlowState::Opening,
        ),
    ] {
        let name = format!("{what} takes no turn");
        let (mut case, spec, proto) = case(f, &name, upper, &[], 8);
        let more = if proto == proto::UDP { 10 } else { 0 };
        let rows = f.rows(proto, f.local_service, OUTSIDE_ID + more, state, 0);
        for (key, row) in rows {
            let service = SERVICE;
            case.world.flows.insert(key, FlowRow { service, ..row });
        }
        cases.push(f.goes(case, &spec, OUTSIDE_ID));
    }
    cases
}
