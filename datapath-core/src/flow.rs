//! Flow tracking: the rows of a flow, and the reply's way.

use core::hint::black_box;

use datapath_common::{
    Address, BackendState, Direction, Flow, FlowKey, FlowState, FragmentKey, FragmentPorts,
};

use crate::{
    FlowRow, Fragment, Headers, Rewrite, Signal, Tables,
    hooks::front_key,
    open::{FAILED, LATER},
    ports::{KEEPS, ONLY},
    states::{SEEN_LAG, idle_limit, is_direct, live_state, met},
    straight::is_straight,
};

/// Whether the row's backend is still there, if it has one: a row outlives it, and
/// whoever has the address then is another.
#[inline(always)]
pub(crate) fn has_backend<A, T: Tables<A>>(tables: &T, flow: &Flow<A>) -> bool {
    flow.backend == 0
        || tables.backend(flow.backend).is_some_and(|backend| {
            backend.generation == flow.generation && backend.state != BackendState::Free as u8
        })
}

/// The state of a row that has not expired, and whose backend is still there.
#[inline(always)]
pub(crate) fn living<A, T: Tables<A>>(
    tables: &T,
    flow: &Flow<A>,
    p: u8,
    now: u32,
) -> Option<FlowState> {
    let state = live_state(&tables.config().idle, flow, p, now)?;
    has_backend(tables, flow).then_some(state)
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
    if A::VERSION == 4 {
        // Without a branch: a verifier would follow both sides to the program's end.
        let left = tables.config().overlay_mtu as i64 - black_box(ports.first_octets as i64);
        let large = black_box(left >> 63);
        headers.follows_large = large & !(headers.dont_fragment as i64) & 1 != 0;
    }
    true
}

/// Whether the ports of a later fragment's datagram are known.
#[inline(always)]
pub fn knows_ports<A: Address, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> bool {
    recall_ports(tables, &mut { *headers })
}

/// Whether the packet is for a frontend, or is an answer of a flow that is known.
/// `headers` has its ports.
#[inline(always)]
pub fn is_translated<A: Address, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> bool {
    tables.frontend(&front_key(headers)).is_some()
        || tables.flow(key(headers, Direction::Reply)).is_some()
}

/// Remembers the ports of a first fragment.
#[inline(always)]
pub fn remember_ports<A: Address, T: Tables<A>>(tables: &T, headers: &Headers<A>) {
    if headers.fragment == Fragment::First {
        let ports = FragmentPorts {
            sport: headers.sport,
            dport: headers.dport,
            seen: tables.now(),
            first_octets: headers.octets(),
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
    let (rewrite, _) = reply_of(tables, headers, Some(false))?;
    rewrite.any.then_some(rewrite)
}

/// Whose a reply is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asker {
    /// The client is its own backend.
    pub hairpin: bool,
    /// A [`datapath_common::NodeClient`].
    pub node: u8,
    /// It is a pod's that left the cluster through no service.
    pub left: bool,
}

/// The translation of a reply, and who its client is; `wanted`: only of those
/// whose client is its own backend, or is not. What answers somebody who came
/// straight to a pod is a reply too, of which nothing changes.
#[inline(always)]
pub(crate) fn reply_of<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    wanted: Option<bool>,
) -> Option<(Rewrite<A>, Asker)> {
    if !headers.has_flow() {
        return None;
    }
    let row = tables.flow(key(headers, Direction::Reply))?;
    let flow = row.get();
    let hairpin = flow.hairpin != 0;
    if wanted.is_some_and(|wanted| wanted != hairpin) {
        return None;
    }
    let progress = tables.progress(met(&flow, headers, Direction::Reply), flow.seen);
    let next = progress.next()?;
    if !has_backend(tables, &flow) {
        return None;
    }
    if headers.signal == Signal::Accept && progress.was_quiet() {
        // It accepts a connection that knows nothing of this row's, which is over.
        retire(tables, row, headers.proto);
        return None;
    }
    if progress.is_stale() {
        touch_both(tables, headers, row, Direction::Reply, next);
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
        any: !is_straight(&flow),
        src: flow.addr,
        sport: flow.port,
        dst,
        dport,
    };
    let asker = Asker {
        hairpin,
        node: flow.node,
        left: flow.backend == 0,
    };
    Some((rewrite, asker))
}

/// Makes a closing row one that has expired.
#[inline(never)]
pub(crate) fn retire<A, T: Tables<A>>(tables: &T, row: T::Row, proto: u8) {
    let limit = idle_limit(&tables.config().idle, proto, FlowState::Closing);
    let seen = tables.now().wrapping_sub(limit).wrapping_sub(SEEN_LAG);
    row.touch(FlowState::Closing, seen);
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

/// The forward row of a packet, if the flow goes on by it: it lives, `fits`, and
/// no other flow has its port. Refreshes both rows; `lost`: in any case, for the
/// reply's may be missing, however fresh this one is.
#[inline(always)]
pub(crate) fn continued<A: Address, T: Tables<A>>(
    tables: &T,
    h: &Headers<A>,
    lost: bool,
    fits: impl FnOnce(&Flow<A>) -> bool,
) -> Option<T::Row> {
    let row = tables.flow(key(h, Direction::Forward))?;
    let flow = row.get();
    let progress = tables.progress(met(&flow, h, Direction::Forward), flow.seen);
    let next = progress.next()?;
    if h.signal == Signal::Open && next == FlowState::Closing {
        // The client uses the port again.
        return None;
    }
    if !fits(&flow) {
        return None;
    }
    if (lost || progress.is_stale()) && !refresh(tables, h, row, next) {
        return None;
    }
    Some(row)
}

/// Refreshes the rows of a flow whose forward row `h` met. Gives the reply's row
/// back if it was evicted: without it answers would go out untranslated. False if
/// that is another flow's by now, and with it the port of the translated source.
#[inline(always)]
fn refresh<A: Address, T: Tables<A>>(
    tables: &T,
    h: &Headers<A>,
    row: T::Row,
    state: FlowState,
) -> bool {
    match touch_both(tables, h, row, Direction::Forward, state) {
        OTHERS => false,
        GONE => {
            // If another flow was faster it has the port.
            let staged = stage_again(tables, h, row, state);
            let facts = h.proto as u32 | KEEPS | ONLY;
            let told = if staged {
                tables.claim_port(0, facts)
            } else {
                FAILED
            };
            if told & LATER != 0 {
                // The next packet tries again.
                row.touch(state, tables.now().wrapping_sub(SEEN_LAG));
            }
            told & (FAILED | LATER) != FAILED || row.get().nat_port == 0
        }
        _ => true,
    }
}

// Functions of their own: they are seldom needed, and need much of the stack. The
// row is read again at each step for the same reason.

// What `touch_both` says of the other row.

/// It is refreshed too, or not this flow's.
const DONE: u32 = 0;
/// It is not there.
const GONE: u32 = 1;
/// Another flow has it; nothing was refreshed.
const OTHERS: u32 = 2;

/// Refreshes the row that `h` met, and the flow's other row.
#[inline(always)]
fn touch_both<A: Address, T: Tables<A>>(
    tables: &T,
    h: &Headers<A>,
    row: T::Row,
    direction: Direction,
    state: FlowState,
) -> u32 {
    match direction {
        Direction::Forward => touch_apart::<A, T, true>(tables, h, row, state),
        Direction::Reply => touch_apart::<A, T, false>(tables, h, row, state),
    }
}

#[inline(never)]
fn touch_apart<A: Address, T: Tables<A>, const FORWARD: bool>(
    tables: &T,
    h: &Headers<A>,
    row: T::Row,
    state: FlowState,
) -> u32 {
    let direction = if FORWARD {
        Direction::Forward
    } else {
        Direction::Reply
    };
    // Where the backend's node answers there is no other row.
    let alone = FORWARD && is_direct(&row.get());
    let other = if alone {
        None
    } else {
        tables.flow(mate(&key(h, direction), &row.get()))
    };
    let said = match other {
        None if alone => DONE,
        None => GONE,
        Some(other) if is_mate::<A, T::Row, FORWARD>(h, row, other) => {
            other.touch(state, tables.now());
            if !FORWARD {
                tables.count_live(other.uncount(state), false);
            }
            DONE
        }
        Some(_) if FORWARD && row.get().nat_port != 0 => return OTHERS,
        Some(_) => DONE,
    };
    row.touch(state, tables.now());
    // Though both ends may close it on two CPUs at the same time, a flow is uncounted once.
    if FORWARD {
        tables.count_live(row.uncount(state), false);
    }
    said
}

/// Whether `other`, which has the key of the other row of a flow, is that: the
/// client's next flow may have it, or who has the port now.
#[inline(always)]
fn is_mate<A: Address, R: FlowRow<A>, const FORWARD: bool>(
    h: &Headers<A>,
    row: R,
    other: R,
) -> bool {
    let (own, found) = (row.get(), other.get());
    if !other.names(own.backend, own.generation) || found.hairpin != own.hairpin {
        return false;
    }
    let translated = own.nat_port != 0;
    // Frontend and client, or backend and what it knows as the client.
    if FORWARD {
        found.port == h.dport
            && is_same(found.addr, h.dst)
            && found.nat_port == if translated { h.sport } else { 0 }
            && (!translated || is_same(found.nat_addr, h.src))
    } else {
        found.port == h.sport
            && is_same(found.addr, h.src)
            && found.nat_port == if translated { h.dport } else { 0 }
            && (!translated || is_same(found.nat_addr, h.dst))
    }
}

/// Prepares the reply row of a forward row. False if there is no place.
#[inline(never)]
fn stage_again<A: Address, T: Tables<A>>(
    tables: &T,
    headers: &Headers<A>,
    row: T::Row,
    state: FlowState,
) -> bool {
    tables.stage(|key, reply| {
        *key = mate(&self::key(headers, Direction::Forward), &row.get());
        (reply.addr, reply.port) = (headers.dst, headers.dport);
        // Read again: a copy would take much of the stack.
        let own = row.get();
        (reply.nat_addr, reply.nat_port) = if own.nat_port == 0 {
            (A::UNSPECIFIED, 0)
        } else {
            (headers.src, headers.sport)
        };
        (reply.state, reply.hairpin) = (state as u8, own.hairpin);
        (reply.node, reply.counted) = (own.node, 0);
        (reply.backend, reply.generation) = (own.backend, own.generation);
        (reply.service, reply.opened, reply.seen) = (own.service, own.opened, tables.now());
    })
}

/// Whether two addresses are the same. In words: the octets of two rows are not
/// copied for it.
#[inline(always)]
pub(crate) fn is_same<A: Address>(a: A, b: A) -> bool {
    let (a, b) = (a.words(), b.words());
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}
