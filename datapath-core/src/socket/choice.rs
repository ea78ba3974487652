//! Which backend a socket is given, while the agent may change the service.

use datapath_common::{
    Address, Affinity, Feature, Frontend, FrontendFlags, FrontendKey, Scope, SocketClient,
    TICK_SHIFT, proto,
};

use super::{Peer, Socket, Sockets, Target, age};
use crate::{pick::Rules, reduce};

/// Flags of frontends that a socket can honour, whoever has it. Those of affinity and of
/// rows in the flow table mean nothing here, and an empty list is left to packets.
const HONOURED: u16 = FrontendFlags::FLOWS_DECIDE
    | FrontendFlags::FLOWS_MAY_BE_LOST
    | FrontendFlags::DROP_INSIDE
    | FrontendFlags::DROP_OUTSIDE
    | FrontendFlags::MASQUERADE_OUTSIDE
    | FrontendFlags::ROUND_ROBIN
    | FrontendFlags::LOCAL_INSIDE
    | FrontendFlags::LOCAL_OUTSIDE;

/// The same for processes of the node. The kernel gives what they send straight to a pod
/// the source that masquerade would give it.
const HONOURED_FOR_NODE: u16 = HONOURED | FrontendFlags::MASQUERADE_PODS;

/// How often a backend is chosen while the service changes.
const TRIES: u32 = 2;

#[inline(always)]
const fn front_key<A: Address>(at: &Peer<A>, proto: u8) -> FrontendKey<A> {
    FrontendKey {
        addr: at.addr,
        port: at.port,
        proto,
        scope: Scope::Any as u8,
    }
}

/// The frontend, if it is served at this socket.
#[inline(always)]
pub(super) fn frontend<A: Address, T: Sockets<A>>(
    tables: &T,
    socket: &Socket,
    to: &Peer<A>,
) -> Option<Frontend> {
    if socket.is_bound || (socket.proto != proto::TCP && socket.proto != proto::UDP) {
        return None;
    }
    let config = tables.config();
    let (feature, honoured) = if socket.is_nodes(config) {
        (Feature::NODE_SOCKETS, HONOURED_FOR_NODE)
    } else {
        (Feature::POD_SOCKETS, HONOURED)
    };
    if config.features & feature == 0 {
        return None;
    }
    let front = tables.frontend(&front_key(to, socket.proto))?;
    (front.flags & !honoured == 0 && front.len != 0).then_some(front)
}

/// The backend of a new flow, which serves the frontend now, as `front` then is. None where
/// there is none, or the service changes all the time.
#[inline(always)]
pub(super) fn choose<A: Address, T: Sockets<A>>(
    tables: &T,
    socket: &Socket,
    to: &Peer<A>,
    front: &mut Frontend,
) -> Option<(u32, Target<A>)> {
    for _ in 0..TRIES {
        let id = pick(tables, socket, front)?;
        let target = usable(tables, socket, id)?;
        // Whoever stood still meanwhile may have read the list of another service, or another
        // backend behind the number: lists are written where no frontend has them.
        let now = frontend(tables, socket, to)?;
        let is_same = now.service == front.service
            && now.start == front.start
            && now.len == front.len
            && now.table == front.table;
        *front = now;
        if is_same && tables.backend(id)?.generation == target.generation {
            return Some((id, target));
        }
    }
    None
}

/// The id of a backend for a new flow.
#[inline(always)]
fn pick<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, front: &Frontend) -> Option<u32> {
    if front.affinity_secs != 0
        && let Some(row) = tables.affinity(&client(socket, front))
    {
        let limit = ((front.affinity_secs as u64 * 1_000_000_000) >> TICK_SHIFT) as u32;
        if age(row.seen, tables.now()) <= limit
            && serves(tables, front, row.backend, row.generation)
        {
            return Some(row.backend);
        }
    }
    if front.flags & FrontendFlags::ROUND_ROBIN != 0 {
        let Rules { list, how } = Rules::new(front, false);
        return tables.slot(tables.pick(list, how, tables.random()));
    }
    let (first, slots) = if front.table == 0 {
        (front.start, front.len)
    } else {
        (front.start.wrapping_add(front.len), front.table as u32)
    };
    tables.slot(first.wrapping_add(reduce(tables.random(), slots)))
}

/// Whether a frontend has a backend still.
#[inline(always)]
pub(super) fn serves<A: Address, T: Sockets<A>>(
    tables: &T,
    front: &Frontend,
    id: u32,
    generation: u32,
) -> bool {
    tables
        .backend(id)
        .is_some_and(|b| b.generation == generation)
        && tables.holds(front.start, front.len, id)
}

/// A backend that a socket may be given.
#[inline(always)]
pub(super) fn usable<A: Address, T: Sockets<A>>(
    tables: &T,
    socket: &Socket,
    id: u32,
) -> Option<Target<A>> {
    let backend = tables.backend(id)?;
    // What is sent to a frontend is translated once; this would be the second time.
    let is_again = || tables.is_frontend(&front_key(&backend.at, socket.proto));
    (backend.is_active && !is_again()).then_some(backend)
}

#[inline(always)]
const fn client(socket: &Socket, front: &Frontend) -> SocketClient {
    SocketClient {
        netns: socket.netns,
        service: front.service,
    }
}

/// A flow was opened.
#[inline(always)]
pub(super) fn opened<A: Address, T: Sockets<A>>(
    tables: &T,
    socket: &Socket,
    front: &Frontend,
    backend: u32,
    generation: u32,
) {
    if front.affinity_secs != 0 {
        let affinity = Affinity {
            backend,
            generation,
            seen: tables.now(),
        };
        tables.remember_affinity(&client(socket, front), &affinity);
    }
    tables.count_flow(front.service, backend);
}
