//! Services at the socket: whom a socket is connected to instead of a frontend, and
//! whose name it is told afterwards. What cannot be honoured exactly stays as it is:
//! then its packets meet the service.

use datapath_common::{
    Address, Affinity, Backend, Config, Direction, Feature, Frontend, FrontendFlags, FrontendKey,
    Scope, SocketClient, SocketKey, SocketPeer, TICK_SHIFT, proto,
};

use crate::{pick::Rules, reduce};

/// What is asked of the maps and of the kernel.
pub trait Sockets<A> {
    /// The configuration.
    fn config(&self) -> &Config;
    /// Now, in ticks.
    fn now(&self) -> u32;
    /// Any number.
    fn random(&self) -> u32;
    /// A frontend.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<&Frontend>;
    /// What a slot of the segments holds.
    fn slot(&self, index: u32) -> Option<u32>;
    /// Whether a segment holds a backend's id.
    fn holds(&self, start: u32, len: u32, id: u32) -> bool;
    /// [`pick`](crate::pick): the slot of a new flow that takes its turn.
    fn pick(&self, list: u64, how: u64, hash: u32) -> u32;
    /// A backend.
    fn backend(&self, id: u32) -> Option<&Backend<A>>;
    /// A row of what sockets were given.
    fn peer(&self, key: &SocketKey<A>) -> Option<&SocketPeer<A>>;
    /// Writes one. False if it is not taken.
    fn put_peer(&self, key: &SocketKey<A>, peer: &SocketPeer<A>) -> bool;
    /// Removes one, if it is there.
    fn remove_peer(&self, key: &SocketKey<A>);
    /// Whom a client was given last.
    fn affinity(&self, client: &SocketClient) -> Option<&Affinity>;
    /// Remembers it, if there is room.
    fn remember_affinity(&self, client: &SocketClient, affinity: &Affinity);
    /// Counts a new flow.
    fn count_flow(&self, service: u32, backend: u32);
}

/// A socket.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    /// Its cookie, low word first.
    pub cookie: [u32; 2],
    /// The cookie of its network namespace.
    pub netns: [u32; 2],
    /// IP protocol number.
    pub proto: u8,
    /// Whether something besides the destination says how its packets go: an address or
    /// an interface that it is bound to, or a mark.
    pub is_bound: bool,
    /// Whether the process names the source of the datagram that it sends.
    pub names_source: bool,
}

impl Socket {
    #[inline(always)]
    fn key<A>(&self, addr: A, port: u16, direction: Direction) -> SocketKey<A> {
        SocketKey {
            cookie: self.cookie,
            addr,
            port,
            proto: self.proto,
            direction: direction as u8,
        }
    }

    /// Whether it is a process' of the node itself.
    #[inline(always)]
    fn is_nodes(&self, config: &Config) -> bool {
        self.netns[0] == config.netns[0] && self.netns[1] == config.netns[1]
    }
}

/// An address and a port, host order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer<A> {
    /// The address.
    pub addr: A,
    /// The port.
    pub port: u16,
}

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

/// The frontend, if it is served at this socket.
#[inline(always)]
fn frontend<'t, A: Address, T: Sockets<A>>(
    tables: &'t T,
    socket: &Socket,
    to: &Peer<A>,
) -> Option<&'t Frontend> {
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
    let front = tables.frontend(&FrontendKey {
        addr: to.addr,
        port: to.port,
        proto: socket.proto,
        scope: Scope::Any as u8,
    })?;
    (front.flags & !honoured == 0 && front.len != 0).then_some(front)
}

/// Connects a socket: to the backend that takes the place of `to`, which then is it.
/// False leaves it as it is.
#[inline(always)]
pub fn connect<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, to: &mut Peer<A>) -> bool {
    let Some(front) = frontend(tables, socket, to) else {
        return false;
    };
    let Some(id) = choose(tables, socket, front) else {
        return false;
    };
    let Some(backend) = usable(tables, socket, id) else {
        return false;
    };
    let peer = SocketPeer {
        addr: to.addr,
        port: to.port,
        reserved: 0,
        backend: id,
        generation: backend.generation,
        seen: tables.now(),
    };
    // Without it nobody could tell the socket whom it asked for.
    let key = socket.key(backend.addr, backend.port, Direction::Reply);
    if !tables.put_peer(&key, &peer) {
        return false;
    }
    opened(tables, socket, front, id, backend.generation);
    to.addr = backend.addr;
    to.port = backend.port;
    true
}

/// Sends a datagram by a socket that is connected to `peer` to an address all the same: one
/// that names the service which it was connected to means the peer, and the kernel gives
/// it the peer's answers alone. False leaves it as it is.
#[inline(always)]
pub fn again<A: Address, T: Sockets<A>>(
    tables: &T,
    socket: &Socket,
    peer: &Peer<A>,
    to: &mut Peer<A>,
) -> bool {
    let key = socket.key(peer.addr, peer.port, Direction::Reply);
    let Some(row) = tables.peer(&key) else {
        return false;
    };
    if row.addr != to.addr || row.port != to.port {
        return false;
    }
    to.addr = peer.addr;
    to.port = peer.port;
    true
}

/// Sends a datagram from a socket that need not be connected: as [`connect`], but what
/// goes to one service goes to one backend, as long as that serves (KP-62, KP-117).
#[inline(always)]
pub fn send<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, to: &mut Peer<A>) -> bool {
    let Some(front) = frontend(tables, socket, to) else {
        return false;
    };
    let now = tables.now();
    let forward = socket.key(to.addr, to.port, Direction::Forward);
    let mut id = 0;
    let mut known = false;
    // Whether the row says the same for long enough.
    let mut written = false;
    if let Some(row) = tables.peer(&forward)
        && is_fresh(tables.config(), row.seen, now)
    {
        known = true;
        written = is_recent(row.seen, now);
        id = row.backend;
        if id == 0 {
            // Its packets are translated, and stay so while there are any.
            if !written {
                leave(tables, &forward, now);
            }
            return false;
        }
        let holds = tables
            .backend(id)
            .is_some_and(|b| b.generation == row.generation)
            && tables.holds(front.start, front.len, id);
        if !holds {
            id = 0;
        }
    }
    if !known && socket.names_source {
        // Nor are its later ones that name none, or it would meet two backends.
        leave(tables, &forward, now);
        return false;
    }
    let is_new = id == 0;
    if is_new {
        let Some(chosen) = choose(tables, socket, front) else {
            return false;
        };
        id = chosen;
    }
    let Some(backend) = usable(tables, socket, id) else {
        return false;
    };
    let reply = socket.key(backend.addr, backend.port, Direction::Reply);
    let mut told = false;
    if let Some(row) = tables.peer(&reply) {
        told = row.addr == to.addr && row.port == to.port;
        if !told && is_fresh(tables.config(), row.seen, now) {
            // Another service of this socket has the backend: by its address alone
            // nobody could tell whose answer comes. Packets can, by another port.
            let other = socket.key(row.addr, row.port, Direction::Forward);
            leave(tables, &other, now);
            leave(tables, &forward, now);
            return false;
        }
    }
    let mut peer = SocketPeer {
        addr: to.addr,
        port: to.port,
        reserved: 0,
        backend: id,
        generation: backend.generation,
        seen: now,
    };
    // The way back first: what goes out is translated, so the answer is too.
    if (is_new || !told || !written) && !tables.put_peer(&reply, &peer) {
        return false;
    }
    if is_new || !written {
        peer.addr = backend.addr;
        peer.port = backend.port;
        if !tables.put_peer(&forward, &peer) {
            return false;
        }
    }
    if is_new {
        opened(tables, socket, front, id, backend.generation);
    }
    to.addr = backend.addr;
    to.port = backend.port;
    true
}

/// Whom a socket asked for: `from`, if it is a backend that it was given, becomes the
/// frontend. False leaves it as it is.
#[inline(always)]
pub fn name<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, from: &mut Peer<A>) -> bool {
    let key = socket.key(from.addr, from.port, Direction::Reply);
    let Some(row) = tables.peer(&key) else {
        return false;
    };
    from.addr = row.addr;
    from.port = row.port;
    true
}

/// Forgets a socket that is closed, by the peer that it is connected to.
#[inline(always)]
pub fn close<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, peer: &Peer<A>) {
    tables.remove_peer(&socket.key(peer.addr, peer.port, Direction::Reply));
}

/// Leaves a service to the packets of a socket.
#[inline(always)]
fn leave<A: Address, T: Sockets<A>>(tables: &T, forward: &SocketKey<A>, now: u32) {
    let row = SocketPeer {
        addr: A::UNSPECIFIED,
        port: 0,
        reserved: 0,
        backend: 0,
        generation: 0,
        seen: now,
    };
    // Without the row the next datagram finds out again.
    let _ = tables.put_peer(forward, &row);
}

/// Ticks since a row was written; one that another CPU wrote in a tick that has not
/// begun here was written now.
#[inline(always)]
const fn age(seen: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(seen);
    if age == u32::MAX { 0 } else { age }
}

/// Whether a flow of datagrams is not idle for too long.
#[inline(always)]
fn is_fresh(config: &Config, seen: u32, now: u32) -> bool {
    age(seen, now) <= config.idle.udp_established
}

/// Whether a row need not be written again yet.
#[inline(always)]
fn is_recent(seen: u32, now: u32) -> bool {
    age(seen, now) < 2
}

/// The backend of a new flow.
#[inline(always)]
fn choose<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, front: &Frontend) -> Option<u32> {
    if front.affinity_secs != 0
        && let Some(row) = tables.affinity(&client(socket, front))
    {
        let limit = ((front.affinity_secs as u64 * 1_000_000_000) >> TICK_SHIFT) as u32;
        let id = row.backend;
        if age(row.seen, tables.now()) <= limit
            && tables
                .backend(id)
                .is_some_and(|b| b.generation == row.generation)
            && tables.holds(front.start, front.len, id)
        {
            return Some(id);
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

/// The row of a backend that a socket may be given.
#[inline(always)]
fn usable<'t, A: Address, T: Sockets<A>>(
    tables: &'t T,
    socket: &Socket,
    id: u32,
) -> Option<&'t Backend<A>> {
    let backend = tables.backend(id)?;
    // What is sent to a frontend is translated once; this would be the second time.
    let again = FrontendKey {
        addr: backend.addr,
        port: backend.port,
        proto: socket.proto,
        scope: Scope::Any as u8,
    };
    (backend.is_active() && tables.frontend(&again).is_none()).then_some(backend)
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
fn opened<A: Address, T: Sockets<A>>(
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
