//! Tables for sockets over plain memory, which may change between two look-ups.

#![allow(dead_code, reason = "each test uses a part")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use datapath_common::{
    Affinity, Backend, BackendState, Config, Connection, Feature, Frontend, FrontendKey, Ip4,
    SocketClient, SocketId, SocketKey, SocketPeer, Via, proto,
};
use datapath_core::socket::{Peer, Socket, Sockets, Target, connect, peer_name, send, sender_name};

pub const NODE: [u32; 2] = [7, 0];
pub const POD: [u32; 2] = [8, 0];
/// Whom a socket is connected to that is not.
pub const NOBODY: Peer<Ip4> = Peer {
    addr: Ip4::new([0; 4]),
    port: 0,
};

/// What happens when a program stands still at some look-up.
type Change = Box<dyn Fn(&Plain)>;

#[derive(Default)]
pub struct Plain {
    pub config: Option<Config>,
    pub now: Cell<u32>,
    random: Cell<u32>,
    turns: Cell<u32>,
    pub fronts: RefCell<HashMap<FrontendKey<Ip4>, Frontend>>,
    pub slots: RefCell<Vec<u32>>,
    pub backends: RefCell<Vec<Backend<Ip4>>>,
    pub connections: RefCell<HashMap<SocketId, Connection<Ip4>>>,
    pub peers: RefCell<HashMap<SocketKey<Ip4>, SocketPeer<Ip4>>>,
    pub is_full: Cell<bool>,
    affinities: RefCell<HashMap<SocketClient, Affinity>>,
    pub counts: RefCell<BTreeMap<(u32, u32), u32>>,
    /// Look-ups of frontends, slots and backends until now.
    pub looks: Cell<u32>,
    /// What changes before such a look-up, by its number.
    pub changes: RefCell<BTreeMap<u32, Change>>,
}

impl Plain {
    fn look(&self) {
        let number = self.looks.replace(self.looks.get() + 1);
        let change = self.changes.borrow_mut().remove(&number);
        if let Some(change) = change {
            change(self);
        }
    }
}

impl Sockets<Ip4> for Plain {
    fn config(&self) -> &Config {
        self.config.as_ref().unwrap()
    }
    fn now(&self) -> u32 {
        self.now.get()
    }
    fn random(&self) -> u32 {
        // Spread over all bits, and every value in turn.
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9));
        self.random.get()
    }
    fn frontend(&self, key: &FrontendKey<Ip4>) -> Option<Frontend> {
        self.look();
        self.fronts.borrow().get(key).copied()
    }
    fn is_frontend(&self, key: &FrontendKey<Ip4>) -> bool {
        self.frontend(key).is_some()
    }
    fn slot(&self, index: u32) -> Option<u32> {
        self.look();
        self.slots.borrow().get(index as usize).copied()
    }
    fn holds(&self, start: u32, len: u32, id: u32) -> bool {
        self.look();
        let slots = self.slots.borrow();
        let list = slots.iter().skip(start as usize).take(len as usize);
        list.into_iter().any(|slot| *slot == id)
    }
    fn pick(&self, list: u64, _how: u64, _hash: u32) -> u32 {
        let turn = self.turns.replace(self.turns.get() + 1);
        list as u32 + turn % (list >> 32) as u32
    }
    fn backend(&self, id: u32) -> Option<Target<Ip4>> {
        self.look();
        let row = *self.backends.borrow().get(id as usize)?;
        Some(Target {
            at: Peer {
                addr: row.addr,
                port: row.port,
            },
            generation: row.generation,
            is_active: row.state == BackendState::Active as u8,
        })
    }
    fn connection(&self, id: &SocketId) -> Option<Connection<Ip4>> {
        self.connections.borrow().get(id).copied()
    }
    fn put_connection(&self, id: &SocketId, row: &Connection<Ip4>) -> bool {
        if !self.is_full.get() {
            self.connections.borrow_mut().insert(*id, *row);
        }
        !self.is_full.get()
    }
    fn remove_connection(&self, id: &SocketId) {
        assert!(self.connections.borrow_mut().remove(id).is_some());
    }
    fn peer(&self, key: &SocketKey<Ip4>) -> Option<SocketPeer<Ip4>> {
        self.peers.borrow().get(key).copied()
    }
    fn put_peer(&self, key: &SocketKey<Ip4>, peer: &SocketPeer<Ip4>) -> bool {
        if !self.is_full.get() {
            self.peers.borrow_mut().insert(*key, *peer);
        }
        !self.is_full.get()
    }
    fn remove_peer(&self, key: &SocketKey<Ip4>) {
        self.peers.borrow_mut().remove(key);
    }
    fn affinity(&self, client: &SocketClient) -> Option<Affinity> {
        self.affinities.borrow().get(client).copied()
    }
    fn remember_affinity(&self, client: &SocketClient, affinity: &Affinity) {
        self.affinities.borrow_mut().insert(*client, *affinity);
    }
    fn count_flow(&self, service: u32, backend: u32) {
        *self
            .counts
            .borrow_mut()
            .entry((service, backend))
            .or_default() += 1;
    }
}

pub const fn ip(a: u8, b: u8) -> Ip4 {
    Ip4::new([10, a, 0, b])
}

/// Address and port of the service with this number.
pub const fn vip(n: u8) -> Peer<Ip4> {
    Peer {
        addr: ip(96, n),
        port: 53,
    }
}

/// Address and port of the backend with this id.
pub const fn pod(id: u8) -> Peer<Ip4> {
    Peer {
        addr: ip(244, id),
        port: 5353,
    }
}

pub fn front_key(at: Peer<Ip4>, proto: u8) -> FrontendKey<Ip4> {
    FrontendKey {
        addr: at.addr,
        port: at.port,
        proto,
        scope: 0,
    }
}

impl Plain {
    /// Backends 1 to 4, and the service 1 of all of them, by TCP and UDP.
    pub fn new() -> Self {
        let plain = Self {
            config: Some(Config {
                features: Feature::POD_SOCKETS | Feature::NODE_SOCKETS,
                netns: NODE,
                ..Config::EMPTY
            }),
            now: Cell::new(1000),
            ..Self::default()
        };
        for id in 0..=4 {
            plain.backends.borrow_mut().push(Backend {
                addr: pod(id).addr,
                port: pod(id).port,
                proto: 0,
                state: BackendState::Active as u8,
                generation: 3,
                via: Via::KERNEL,
            });
        }
        plain.service(1, &[1, 2, 3, 4]);
        plain
    }

    /// Writes the service with this number, with a list of its own behind all others.
    pub fn service(&self, n: u8, ids: &[u32]) {
        let start = self.slots.borrow().len() as u32;
        self.slots.borrow_mut().extend(ids);
        for proto in [proto::TCP, proto::UDP, proto::SCTP] {
            let row = Frontend {
                service: n.into(),
                start,
                len: ids.len() as u32,
                ..Frontend::default()
            };
            self.fronts
                .borrow_mut()
                .insert(front_key(vip(n), proto), row);
        }
    }

    /// Changes the first service's row.
    pub fn front(&self, proto: u8, change: impl FnOnce(&mut Frontend)) {
        let mut fronts = self.fronts.borrow_mut();
        change(fronts.get_mut(&front_key(vip(1), proto)).unwrap());
    }

    /// Takes a backend from all lists; the first service has `len` left.
    pub fn drop_backend(&self, proto: u8, id: u8, len: u32) {
        self.slots
            .borrow_mut()
            .retain(|slot| *slot != u32::from(id));
        self.front(proto, |front| front.len = len);
    }
}

pub fn socket(cookie: u32, proto: u8) -> Socket {
    Socket {
        cookie: [cookie, 0],
        netns: POD,
        proto,
        is_bound: false,
        names_source: false,
    }
}

pub fn connected(plain: &Plain, socket: &Socket, to: Peer<Ip4>) -> Option<Peer<Ip4>> {
    let mut peer = to;
    let is_new = connect(plain, socket, &mut peer);
    assert_eq!(is_new, peer != to, "what is left is left as it is");
    is_new.then_some(peer)
}

pub fn sent(plain: &Plain, socket: &Socket, to: Peer<Ip4>) -> Option<Peer<Ip4>> {
    let mut peer = to;
    let is_new = send(plain, socket, &mut peer);
    assert_eq!(is_new, peer != to, "what is left is left as it is");
    is_new.then_some(peer)
}

/// The peer that a connected socket is told.
pub fn told(plain: &Plain, socket: &Socket, peer: Peer<Ip4>) -> Peer<Ip4> {
    let mut told = peer;
    peer_name(plain, socket, &mut told);
    told
}

/// Whose datagram it is for a socket that is connected to `peer`.
pub fn read_from(plain: &Plain, socket: &Socket, peer: Peer<Ip4>, from: Peer<Ip4>) -> Peer<Ip4> {
    let mut told = from;
    sender_name(plain, socket, &peer, &mut told);
    told
}

/// The same for one that is not connected.
pub fn named(plain: &Plain, socket: &Socket, from: Peer<Ip4>) -> Peer<Ip4> {
    read_from(plain, socket, NOBODY, from)
}
