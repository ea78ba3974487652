//! Flow tracking: states, idle times, the reply's way.

use core::hint::black_box;

use datapath_common::{
    Address, BackendState, Direction, Flow, FlowKey, FlowState, FragmentKey, FragmentPorts,
    IdleTicks, proto,
};

use crate::{FlowRow, Fragment, Headers, Rewrite, Signal, Tables};

/// The state that a packet leads to. Total over state, direction and signal.
#[inline(always)]
pub(crate) fn step(state: FlowState, direction: Direction, signal: Signal) -> FlowState {
    match (state, direction, signal) {
        // Either end closes or resets. What follows (the last ACKs) changes nothing.
        (FlowState::Closing, _, _) | (_, _, Signal::Close) => FlowState::Closing,
        // An answer of any kind: also of a connection that is older than its rows.
        (FlowState::Established, _, _) | (FlowState::Opening, Direction::Reply, _) => {
            FlowState::Established
        }
        // The client repeats its SYN or sends the next datagram: no answer yet.
        (FlowState::Opening, Direction::Forward, _) => FlowState::Opening,
    }
}

/// Ticks after which a flow without packets has expired.
#[inline(always)]
pub fn idle_limit(idle: &IdleTicks, p: u8, state: FlowState) -> u32 {
    let (opening, established, closing) = match p {
        proto::TCP => (idle.tcp_opening, idle.tcp_established, idle.tcp_closing),
        proto::SCTP => (idle.sctp_opening, idle.sctp_established, idle.sctp_closing),
        _ => (idle.udp_opening, idle.udp_established, idle.udp_established),
    };
    // Opaque: the compiler would compute an address from `state`, whose range
    // the verifier (Linux 6.18 and before) has lost by then.
    match state {
        FlowState::Opening => black_box(opening),
        FlowState::Established => black_box(established),
        FlowState::Closing => black_box(closing),
    }
}

/// The state of a row that has not expired.
#[inline(always)]
pub fn live_state<A>(idle: &IdleTicks, flow: &Flow<A>, p: u8, now: u32) -> Option<FlowState> {
    let state = FlowState::from_u8(flow.state)?;
    // `seen` may be ahead of `now` by a tick, written by another CPU.
    let age = now.wrapping_sub(flow.seen).cast_signed();
    if age < SEEN_LAG.cast_signed() || age <= idle_limit(idle, p, state).cast_signed() {
        Some(state)
    } else {
        None
    }
}

/// Whether the row's backend is still there, if it has one: a row outlives it, and
/// whoever has the address then is another.
#[inline(always)]
pub(crate) fn has_backend<A, T: Tables<A>>(tables: &T, flow: &Flow<A>) -> bool {
    flow.backend == 0
        || tables.backend(flow.backend).is_some_and(|backend| {
            backend.generation == flow.generation && backend.state != BackendState::Free as u8
        })
}

/// Ticks that `seen` may lag behind, so that a busy flow's row is seldom written.
const SEEN_LAG: u32 = 2;

/// Whether a row must be written: its state changes or `seen` is old.
#[inline(always)]
pub(crate) fn is_stale<A>(flow: &Flow<A>, state: FlowState, now: u32) -> bool {
    flow.state != state as u8 || now.wrapping_sub(flow.seen) >= SEEN_LAG
}

/// Key of a packet of the flow table.
#[inline(always)]
pub(crate) fn key<A: Address>(headers: &Headers<A>, direction: Direction) -> FlowKey<A> {
    FlowKey {
        src: headers.src,
        dst: headers.dst,
        sport: headers.sport,
        dport: headers.dport,
        proto: headers.proto,
        direction: direction as u8,
        reserved: 0,
    }
}

/// Ticks for which a datagram's fragments may come (RFC 791: about 30 s).
const FRAGMENT_TICKS: u32 = 30;

/// Fills in the ports of a later fragment. False if they are not known.
#[inline(always)]
pub(crate) fn recall_ports<A: Address, T: Tables<A>>(tables: &T, headers: &mut Headers<A>) -> bool {
    if headers.fragment != Fragment::Later {
        return true;
    }
    let Some(ports) = tables.ports(fragment_key(headers)) else {
        return false;
    };
    // An identification comes round again; what is old belongs to another datagram.
    if tables.now().wrapping_sub(ports.seen) > FRAGMENT_TICKS {
        return false;
    }
    (headers.sport, headers.dport) = (ports.sport, ports.dport);
    true
}

/// Remembers the ports of a first fragment whose datagram is translated.
#[inline(always)]
pub(crate) fn remember_ports<A: Address, T: Tables<A>>(tables: &T, headers: &Headers<A>) {
    if headers.fragment == Fragment::First {
        let ports = FragmentPorts {
            sport: headers.sport,
            dport: headers.dport,
            seen: tables.now(),
        };
        tables.remember_ports(fragment_key(headers), ports);
    }
}

#[inline(always)]
fn fragment_key<A: Address>(headers: &Headers<A>) -> FragmentKey<A> {
    FragmentKey {
        src: headers.src,
        dst: headers.dst,
        id: headers.fragment_id,
        proto: headers.proto as u32,
    }
}

/// The translation of a service's reply, if the packet is one. Moves the
/// flow's state and refreshes both of its rows. `headers` has its ports.
#[inline(always)]
pub(crate) fn reply<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
) -> Option<Rewrite<A>> {
    reply_of(tables, headers, Some(false)).map(|(rewrite, _)| rewrite)
}

/// The translation of a reply, and whether its client is its own backend; `wanted`:
/// only of those of which this is so, or is not.
#[inline(always)]
pub(crate) fn reply_of<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    wanted: Option<bool>,
) -> Option<(Rewrite<A>, bool)> {
    if !headers.has_flow() {
        return None;
    }
    let row = tables.flow(key(headers, Direction::Reply))?;
    let flow = row.get();
    let hairpin = flow.hairpin != 0;
    if wanted.is_some_and(|wanted| wanted != hairpin) {
        return None;
    }
    let now = tables.now();
    let state = live_state(&tables.config().idle, &flow, headers.proto, now)?;
    if !has_backend(tables, &flow) {
        return None;
    }
    let next = step(state, Direction::Reply, headers.signal);
    if is_stale(&flow, next, now) {
        refresh(tables, headers, row, Direction::Reply, next);
    }
    remember_ports(tables, headers);
    // Read only now: kept over the calls it would take much of the stack.
    let flow = row.get();
    tables.count(flow.service, flow.backend, Direction::Reply);
    let (dst, dport) = if flow.nat_port != 0 {
        (flow.nat_addr, flow.nat_port)
    } else if hairpin {
        (headers.src, headers.dport)
    } else {
        (headers.dst, headers.dport)
    };
    let rewrite = Rewrite {
        any: true,
        src: flow.addr,
        sport: flow.port,
        dst,
        dport,
    };
    Some((rewrite, hairpin))
}

/// Key of the other direction's row.
#[inline(always)]
pub fn mate<A: Address>(key: &FlowKey<A>, flow: &Flow<A>) -> FlowKey<A> {
    let forward = key.direction == Direction::Forward as u8;
    // The client's end of the other row. A client that is its own backend is
    // seen by the backend as the frontend.
    let (client, client_port) = if flow.nat_port != 0 {
        (flow.nat_addr, flow.nat_port)
    } else {
        (
            if forward == (flow.hairpin == 0) {
                key.src
            } else {
                key.dst
            },
            if forward { key.sport } else { key.dport },
        )
    };
    if forward {
        FlowKey {
            src: flow.addr,
            dst: client,
            sport: flow.port,
            dport: client_port,
            proto: key.proto,
            direction: Direction::Reply as u8,
            reserved: 0,
        }
    } else {
        FlowKey {
            src: client,
            dst: flow.addr,
            sport: client_port,
            dport: flow.port,
            proto: key.proto,
            direction: Direction::Forward as u8,
            reserved: 0,
        }
    }
}

/// Refreshes a flow's row, which `headers` met, and the other row, unless the
/// client's next flow has it by now. Gives the reply's row back if it was
/// evicted: without it answers would go out untranslated.
#[inline(always)]
pub(crate) fn refresh<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    row: T::Row,
    direction: Direction,
    state: FlowState,
) {
    if !touch_both(tables, headers, row, direction, state) && direction == Direction::Forward {
        give_back_reply(tables, headers, row, state);
    }
}

// Functions of their own: they are seldom needed, and need much of the stack. The
// row is read again at each step for the same reason.

/// Refreshes both rows. False if the other one is not there.
#[inline(never)]
fn touch_both<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    row: T::Row,
    direction: Direction,
    state: FlowState,
) -> bool {
    row.touch(state, tables.now());
    let Some(other) = tables.flow(mate(&key(headers, direction), &row.get())) else {
        return false;
    };
    let own = row.get();
    if other.names(own.backend, own.generation) {
        other.touch(state, tables.now());
    }
    true
}

/// Writes the reply row of a forward row. Best effort: the next refresh tries again.
#[inline(never)]
fn give_back_reply<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    row: T::Row,
    state: FlowState,
) {
    let _ = tables.fill_flow(|key, reply| {
        let own = row.get();
        *key = mate(&self::key(headers, Direction::Forward), &own);
        (reply.addr, reply.port) = (headers.dst, headers.dport);
        (reply.nat_addr, reply.nat_port) = if own.nat_port == 0 {
            (A::UNSPECIFIED, 0)
        } else {
            (headers.src, headers.sport)
        };
        (reply.state, reply.hairpin, reply.reserved) = (state as u8, own.hairpin, 0);
        (reply.backend, reply.generation) = (own.backend, own.generation);
        (reply.service, reply.opened, reply.seen) = (own.service, own.opened, tables.now());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [FlowState; 3] = [
        FlowState::Opening,
        FlowState::Established,
        FlowState::Closing,
    ];
    const SIGNALS: [Signal; 4] = [Signal::Data, Signal::Open, Signal::Accept, Signal::Close];

    #[test]
    fn a_close_is_final_and_states_never_go_back() {
        for direction in [Direction::Forward, Direction::Reply] {
            for state in STATES {
                for signal in SIGNALS {
                    let next = step(state, direction, signal);
                    assert!(next >= state, "{state:?} {direction:?} {signal:?}");
                    assert_eq!(
                        next == FlowState::Closing,
                        state == FlowState::Closing || signal == Signal::Close
                    );
                }
            }
        }
    }

    #[test]
    fn only_an_answer_establishes() {
        for signal in [Signal::Data, Signal::Open, Signal::Accept] {
            let forward = step(FlowState::Opening, Direction::Forward, signal);
            assert_eq!(forward, FlowState::Opening);
            let reply = step(FlowState::Opening, Direction::Reply, signal);
            assert_eq!(reply, FlowState::Established);
        }
    }
}
