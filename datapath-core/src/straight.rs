//! Connections from outside straight to a pod's address: what the pod answers is
//! not masqueraded.

use datapath_common::{Address, Direction, Flow, FlowKey, FlowState, NodeClient, proto};

use crate::{
    Family, Grant, Headers, Signal, Tables,
    flow::{key, living, retire},
    masquerade::leaves,
    ports::{KEEPS, ONLY},
    states::{is_stale, live_state, step},
    tables::FlowRow,
};

/// Notes a packet that goes straight to a pod: the reply row of the flow, which
/// nothing translates. `h` has its ports.
#[inline(always)]
pub(crate) fn comes_straight<F: Family, T: Tables<F::Addr>>(tables: &T, h: &Headers<F::Addr>) {
    if stage_apart::<F, T>(tables, h) {
        opens_straight(tables, h);
        // Best effort: the next packet tries again.
        let _ = tables.claim_port(0, h.proto as u32 | KEEPS | ONLY);
    }
}

/// Refreshes the row if it is there, or prepares it and returns true. A function of its
/// own, for its stack.
#[inline(never)]
fn stage_apart<F: Family, T: Tables<F::Addr>>(tables: &T, h: &Headers<F::Addr>) -> bool {
    let has_flow = matches!(h.proto, proto::TCP | proto::UDP | proto::SCTP);
    if !has_flow || !leaves::<F, T>(tables, h.dst, h.src, tables.network(&h.src)) {
        return false;
    }
    let now = tables.now();
    if let Some(row) = tables.flow(back(h, Direction::Reply))
        && let Some(state) = living(tables, &row.get(), h.proto, now)
        && !(h.signal == Signal::Open && state == FlowState::Closing)
    {
        let next = step(state, Direction::Forward, h.signal);
        if is_straight(&row.get()) && is_stale(row.get().state, row.get().seen, next, now) {
            row.touch(next, now);
        }
        return false;
    }
    // What the pod itself opened keeps the node's address.
    if let Some(row) = tables.flow(back(h, Direction::Forward))
        && row.get().backend == 0
        && row.get().nat_port != 0
        && live_state(&tables.config().idle, &row.get(), h.proto, now).is_some()
    {
        return false;
    }
    if !tables.grant(Grant::Flow) {
        return false;
    }
    tables.stage(|key, row| {
        *key = back(h, Direction::Reply);
        (row.addr, row.port) = (h.dst, h.dport);
        (row.nat_addr, row.nat_port) = (Address::UNSPECIFIED, 0);
        row.state = step(FlowState::Opening, Direction::Forward, h.signal) as u8;
        (row.hairpin, row.node, row.counted) = (0, 0, 0);
        (row.backend, row.generation, row.service) = (0, 0, 0);
        (row.opened, row.seen) = (now, now);
    })
}

/// A packet that opens a connection straight to a pod: what its client had through a
/// service by the same ports is over if it was closing. Otherwise the answers were taken
/// for that service's.
#[inline(always)]
pub(crate) fn opens_straight<A: Address, T: Tables<A>>(tables: &T, h: &Headers<A>) {
    if h.signal == Signal::Open {
        ends_former(tables, h);
    }
}

#[inline(never)]
fn ends_former<A: Address, T: Tables<A>>(tables: &T, h: &Headers<A>) {
    if let Some(row) = tables.flow(back(h, Direction::Reply))
        && row.get().state == FlowState::Closing as u8
    {
        retire(tables, row, h.proto);
    }
}

/// Key of the row of what comes back.
#[inline(always)]
fn back<A: Address>(h: &Headers<A>, direction: Direction) -> FlowKey<A> {
    FlowKey {
        src: h.dst,
        dst: h.src,
        sport: h.dport,
        dport: h.sport,
        ..key(h, direction)
    }
}

/// Whether a reply row is of such a flow.
#[inline(always)]
pub(crate) const fn is_straight<A>(row: &Flow<A>) -> bool {
    row.backend == 0 && row.nat_port == 0 && row.node != NodeClient::Forwarded as u8
}
