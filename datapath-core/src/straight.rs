//! Connections from outside straight to a pod's address: what the pod answers is
//! not masqueraded.

use datapath_common::{Direction, Flow, FlowKey, FlowState, proto};

use crate::{
    Family, Grant, Headers, Signal, Tables,
    flow::{is_stale, key, live_state, living, step},
    masquerade::leaves,
    tables::FlowRow,
};

/// Notes a packet that goes straight to a pod: the reply row of the flow, which
/// nothing translates. `h` has its ports. A function of its own, for its stack.
#[inline(never)]
pub(crate) fn comes_straight<F: Family, T: Tables<F::Addr>>(tables: &T, h: &Headers<F::Addr>) {
    let has_flow = matches!(h.proto, proto::TCP | proto::UDP | proto::SCTP);
    if !has_flow || !leaves::<F, T>(tables, h.dst, h.src, tables.network(&h.src)) {
        return;
    }
    let now = tables.now();
    let back = |direction| FlowKey {
        src: h.dst,
        dst: h.src,
        sport: h.dport,
        dport: h.sport,
        ..key(h, direction)
    };
    if let Some(row) = tables.flow(back(Direction::Reply))
        && let Some(state) = living(tables, &row.get(), h.proto, now)
        && !(h.signal == Signal::Open && state == FlowState::Closing)
    {
        let next = step(state, Direction::Forward, h.signal);
        if is_straight(&row.get()) && is_stale(&row.get(), next, now) {
            row.touch(next, now);
        }
        return;
    }
    // What the pod itself opened keeps the node's address.
    if let Some(row) = tables.flow(back(Direction::Forward))
        && row.get().backend == 0
        && row.get().nat_port != 0
        && live_state(&tables.config().idle, &row.get(), h.proto, now).is_some()
    {
        return;
    }
    if !tables.grant(Grant::Flow) {
        return;
    }
    // Best effort: the next packet tries again.
    let _ = tables.fill_flow(|key, row| {
        *key = back(Direction::Reply);
        (row.addr, row.port) = (h.dst, h.dport);
        (row.nat_addr, row.nat_port) = (datapath_common::Address::UNSPECIFIED, 0);
        row.state = step(FlowState::Opening, Direction::Forward, h.signal) as u8;
        (row.hairpin, row.node, row.reserved) = (0, 0, 0);
        (row.backend, row.generation, row.service) = (0, 0, 0);
        (row.opened, row.seen) = (now, now);
    });
}

/// Whether a reply row is of such a flow.
#[inline(always)]
pub(crate) const fn is_straight<A>(row: &Flow<A>) -> bool {
    row.backend == 0 && row.nat_port == 0
}
