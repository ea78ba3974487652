//! Whom packets of open flows go to, or could.

use proptest::sample::Index;

use crate::model::flow::forward_of_any;
use crate::model::world::version_of;
use crate::model::{FlowId, FlowRow, Tuple, World};

/// The type of the echo that a tuple stands for: only a request has a source port.
pub fn echo_of(tuple: &Tuple) -> u8 {
    match (tuple.src.is_ipv6(), tuple.sport != 0) {
        (false, true) => 8,
        (false, false) => 0,
        (true, true) => 128,
        (true, false) => 129,
    }
}

/// A row of the flow table.
pub fn pick_flow(world: &World, pick: Index) -> Option<(FlowId, FlowRow)> {
    let mut all: Vec<_> = world.flows.iter().map(|(id, row)| (*id, *row)).collect();
    all.sort_by_key(|(id, _)| (id.tuple, id.direction as u8));
    if all.is_empty() {
        None
    } else {
        Some(all[pick.index(all.len())])
    }
}

/// From the client of a flow to another frontend of its protocol: one that has the flow's
/// backend, if any has.
pub fn sibling(world: &World, id: FlowId, row: &FlowRow, pick: Index) -> Option<Tuple> {
    let open = forward_of_any(id, row).tuple;
    let mut all: Vec<_> = world.frontends.iter().collect();
    all.retain(|((dst, port, proto), _)| {
        version_of(*dst) == version_of(open.dst)
            && *proto == open.proto
            && (*dst, *port) != (open.dst, open.dport)
    });
    all.sort_by_key(|(key, _)| **key);
    let mut shared = all.clone();
    shared.retain(|(_, frontend)| world.ids_of(frontend).contains(&row.backend));
    // The fewer backends it has the surer it gets this one.
    let few = |frontend| world.ids_of(frontend).len();
    let least = shared.iter().map(|(_, frontend)| few(frontend)).min();
    shared.retain(|(_, frontend)| Some(few(frontend)) == least);
    let all = if shared.is_empty() { all } else { shared };
    let ((dst, dport, _), _) = all.get(pick.index(all.len().max(1)))?;
    Some(Tuple {
        dst: *dst,
        dport: *dport,
        ..open
    })
}

/// From the client of a flow straight to its backend.
pub fn straight(id: FlowId, row: &FlowRow) -> Tuple {
    let open = forward_of_any(id, row).tuple;
    let back = crate::model::flow::reply_of(open, row).tuple;
    let (dst, dport) = match id.direction {
        datapath_common::Direction::Forward => (back.src, back.sport),
        datapath_common::Direction::Reply => (id.tuple.src, id.tuple.sport),
    };
    Tuple { dst, dport, ..open }
}
