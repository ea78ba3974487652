//! Services at the socket: whom a socket is connected to instead of a frontend, and
//! whose name it is told afterwards. What cannot be honoured exactly stays as it is:
//! then its packets meet the service.

use datapath_common::{
    Address, Affinity, Config, Connection, Direction, Frontend, FrontendKey, SocketClient,
    SocketId, SocketKey, SocketPeer, proto,
};

mod choice;

use choice::{choose, frontend, opened, serves, usable};

/// What is asked of the maps and of the kernel. Rows are copies: a program at a socket may stand
/// still between two look-ups while others write.
pub trait Sockets<A> {
    /// The configuration.
    fn config(&self) -> &Config;
    /// Now, in ticks.
    fn now(&self) -> u32;
    /// Any number.
    fn random(&self) -> u32;
    /// A frontend.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<Frontend>;
    /// Whether there is one.
    fn is_frontend(&self, key: &FrontendKey<A>) -> bool;
    /// What a slot of the segments holds.
    fn slot(&self, index: u32) -> Option<u32>;
    /// Whether a segment holds a backend's id.
    fn holds(&self, start: u32, len: u32, id: u32) -> bool;
    /// [`pick`](crate::pick): the slot of a new flow that takes its turn.
    fn pick(&self, list: u64, how: u64, hash: u32) -> u32;
    /// A backend.
    fn backend(&self, id: u32) -> Option<Target<A>>;
    /// What a connected socket was given.
    fn connection(&self, id: &SocketId) -> Option<Connection<A>>;
    /// Writes that. False if it is not taken.
    fn put_connection(&self, id: &SocketId, row: &Connection<A>) -> bool;
    /// Removes it.
    fn remove_connection(&self, id: &SocketId);
    /// A row of what sockets that are not connected were given.
    fn peer(&self, key: &SocketKey<A>) -> Option<SocketPeer<A>>;
    /// Writes one. False if it is not taken.
    fn put_peer(&self, key: &SocketKey<A>, peer: &SocketPeer<A>) -> bool;
    /// Removes one, if it is there.
    fn remove_peer(&self, key: &SocketKey<A>);
    /// Whom a client was given last.
    fn affinity(&self, client: &SocketClient) -> Option<Affinity>;
    /// Remembers it, if there is room.
    fn remember_affinity(&self, client: &SocketClient, affinity: &Affinity);
    /// Counts a new flow.
    fn count_flow(&self, service: u32, backend: u32);
}

/// What sockets need of a backend's row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target<A> {
    /// Address and port.
    pub at: Peer<A>,
    /// Generation of the row.
    pub generation: u32,
    /// Whether it serves ([`BackendState::Active`](datapath_common::BackendState::Active)).
    pub is_active: bool,
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
    const fn id(&self) -> SocketId {
        SocketId {
            cookie: self.cookie,
        }
    }

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

/// Connects a socket: to the backend that takes the place of `to`, which then is it.
/// False leaves it as it is.
#[inline(always)]
pub fn connect<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, to: &mut Peer<A>) -> bool {
    if give(tables, socket, to) {
        return true;
    }
    // It may have been connected before, to a service: it is so no more.
    let id = socket.id();
    if tables.connection(&id).is_some() {
        tables.remove_connection(&id);
    }
    false
}

#[inline(always)]
fn give<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, to: &mut Peer<A>) -> bool {
    let Some(mut front) = frontend(tables, socket, to) else {
        return false;
    };
    let now = tables.now();
    let mut kept = None;
    if socket.proto == proto::UDP
        && let Some(row) = tables.peer(&socket.key(to.addr, to.port, Direction::Forward))
        && is_fresh(tables.config(), row.seen, now)
    {
        // It has sent there before it was connected, and stays with whom it met.
        if row.backend == 0 {
            return false;
        }
        if serves(tables, &front, row.backend, row.generation) {
            kept = usable(tables, socket, row.backend)
                .filter(|target| target.generation == row.generation)
                .map(|target| (row.backend, target));
        }
    }
    let is_new = kept.is_none();
    let Some((backend, target)) = kept.or_else(|| choose(tables, socket, to, &mut front)) else {
        return false;
    };
    let row = Connection {
        backend_addr: target.at.addr,
        service_addr: to.addr,
        backend_port: target.at.port,
        service_port: to.port,
        proto: socket.proto,
        reserved: [0; 3],
        backend,
        generation: target.generation,
        seen: now,
    };
    // Without it nobody could tell the socket whom it asked for.
    if !tables.put_connection(&socket.id(), &row) {
        return false;
    }
    if is_new {
        opened(tables, socket, &front, backend, target.generation);
    }
    *to = target.at;
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
    let mut asked = *peer;
    if !peer_name(tables, socket, &mut asked) || asked != *to {
        return false;
    }
    *to = *peer;
    true
}

/// Sends a datagram from a socket that need not be connected: as [`connect`], but what
/// goes to one service goes to one backend, as long as that serves (KP-62, KP-117).
#[inline(always)]
pub fn send<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, to: &mut Peer<A>) -> bool {
    let Some(mut front) = frontend(tables, socket, to) else {
        return false;
    };
    let now = tables.now();
    let forward = socket.key(to.addr, to.port, Direction::Forward);
    let mut known = false;
    // Whether the row says the same for long enough.
    let mut written = false;
    let mut kept = None;
    if let Some(row) = tables.peer(&forward)
        && is_fresh(tables.config(), row.seen, now)
    {
        known = true;
        written = is_recent(row.seen, now);
        if row.backend == 0 {
            // Its packets are translated, and stay so while there are any.
            if !written {
                leave(tables, &forward, now);
            }
            return false;
        }
        if serves(tables, &front, row.backend, row.generation) {
            let Some(target) = usable(tables, socket, row.backend) else {
                return false;
            };
            // Another one has the number by now.
            kept = (target.generation == row.generation).then_some((row.backend, target));
        }
    }
    if !known && socket.names_source {
        // Nor are its later ones that name none, or it would meet two backends.
        begin(tables, socket, to, now);
        leave(tables, &forward, now);
        return false;
    }
    let is_new = kept.is_none();
    let Some((id, target)) = kept.or_else(|| choose(tables, socket, to, &mut front)) else {
        return false;
    };
    if !known || !written {
        begin(tables, socket, to, now);
    }
    let reply = socket.key(target.at.addr, target.at.port, Direction::Reply);
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
        generation: target.generation,
        seen: now,
    };
    // The way back first: what goes out is translated, so the answer is too.
    if (is_new || !told || !written) && !tables.put_peer(&reply, &peer) {
        return false;
    }
    if is_new || !written {
        peer.addr = target.at.addr;
        peer.port = target.at.port;
        if !tables.put_peer(&forward, &peer) {
            return false;
        }
    }
    if is_new {
        opened(tables, socket, &front, id, target.generation);
    }
    *to = target.at;
    true
}

/// Whom a connected socket asked for: `peer`, if it is the backend that it was given, becomes
/// the frontend. False leaves it as it is.
#[inline(always)]
pub fn peer_name<A: Address, T: Sockets<A>>(
    tables: &T,
    socket: &Socket,
    peer: &mut Peer<A>,
) -> bool {
    let Some(row) = tables.connection(&socket.id()) else {
        return false;
    };
    if row.backend_addr != peer.addr || row.backend_port != peer.port {
        return false;
    }
    peer.addr = row.service_addr;
    peer.port = row.service_port;
    true
}

/// Whose datagram a socket reads, that is connected to `peer` unless its port is 0: `from`
/// becomes the frontend that was asked. False leaves it as it is.
#[inline(always)]
pub fn sender_name<A: Address, T: Sockets<A>>(
    tables: &T,
    socket: &Socket,
    peer: &Peer<A>,
    from: &mut Peer<A>,
) -> bool {
    if peer.port != 0 && *peer == *from {
        return peer_name(tables, socket, from);
    }
    // Also of a connected socket: what came before it was.
    let key = socket.key(from.addr, from.port, Direction::Reply);
    let Some(row) = tables.peer(&key) else {
        return false;
    };
    // Who is at the address after the backend is somebody else, and whom the socket did not
    // ask for so long is nobody whom the service had.
    if !is_fresh(tables.config(), row.seen, tables.now())
        || tables
            .backend(row.backend)
            .is_none_or(|b| b.generation != row.generation)
    {
        return false;
    }
    if !is_recent(row.seen, tables.now()) {
        goes_on(tables, socket, &key, &row);
    }
    from.addr = row.addr;
    from.port = row.port;
    true
}

/// A socket reads answers of a service: its rows live on, whether it sends or not.
#[inline(always)]
fn goes_on<A: Address, T: Sockets<A>>(
    tables: &T,
    socket: &Socket,
    reply: &SocketKey<A>,
    row: &SocketPeer<A>,
) {
    let now = tables.now();
    // Best effort: the next answer tries again.
    let _ = tables.put_peer(reply, &SocketPeer { seen: now, ..*row });
    let forward = socket.key(row.addr, row.port, Direction::Forward);
    if let Some(there) = tables.peer(&forward) {
        let _ = tables.put_peer(&forward, &SocketPeer { seen: now, ..there });
    }
}

/// Forgets a socket that is closed.
#[inline(always)]
pub fn close<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket) {
    let id = socket.id();
    if tables.connection(&id).is_some() {
        tables.remove_connection(&id);
    }
    if socket.proto != proto::UDP {
        return;
    }
    // Most have sent to one service, or to none. Other rows expire.
    let last = socket.key(A::UNSPECIFIED, 0, Direction::Forward);
    let Some(service) = tables.peer(&last) else {
        return;
    };
    tables.remove_peer(&last);
    let forward = socket.key(service.addr, service.port, Direction::Forward);
    let Some(row) = tables.peer(&forward) else {
        return;
    };
    tables.remove_peer(&forward);
    if row.backend != 0 {
        tables.remove_peer(&socket.key(row.addr, row.port, Direction::Reply));
    }
}

/// A socket begins to send to a service.
#[inline(always)]
fn begin<A: Address, T: Sockets<A>>(tables: &T, socket: &Socket, to: &Peer<A>, now: u32) {
    let row = SocketPeer {
        addr: to.addr,
        port: to.port,
        reserved: 0,
        backend: 0,
        generation: 0,
        seen: now,
    };
    // Without it the others stay until they expire.
    let _ = tables.put_peer(&socket.key(A::UNSPECIFIED, 0, Direction::Forward), &row);
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
