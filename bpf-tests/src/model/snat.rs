//! Ports for translated sources ("Opening a flow").

use std::net::IpAddr;

use datapath_common::FlowState;

use super::flow::QUIET_TICKS;
use super::world::World;
use super::{FlowId, FlowRow, Hash, Tuple};

/// How often a flow tries to get a port.
const ATTEMPTS: u32 = 32;
/// Exhaustion less likely than this is taken for a fault, as long as a port is free.
const UNLIKELY: f64 = 1e-9;

/// Spreads a hash over the ports.
fn mix(hash: u32) -> u32 {
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash ^ (hash >> 13)
}

/// The port that attempt number `attempt` looks at, out of `ports` ports from `first` on.
pub fn candidate(hash: u32, attempt: u32, first: u16, ports: u16) -> u16 {
    let mixed = mix(hash.wrapping_add(attempt.wrapping_mul(0x9e37_79b9)));
    first.wrapping_add(((u64::from(mixed) * u64::from(ports)) >> 32) as u16)
}

/// A flow that wants a port for its source.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// The client's packet.
    pub tuple: Tuple,
    /// Whether it opens a connection.
    pub opens: bool,
    /// Whether it is data of a connection.
    pub data: bool,
    /// Where it goes.
    pub to: (IpAddr, u16),
    /// Id and generation of the backend that this is, or zeros.
    pub backend: (u32, u32),
    /// The address that its source becomes.
    pub addr: IpAddr,
}

/// What a port is to a flow that wants one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Port {
    /// Nobody has it, or nobody any more, or the flow itself.
    Free,
    /// A connection that is closing and silent has it.
    Quiet,
    /// It is another's.
    Busy,
}

impl Wish {
    /// Key of the row that holds a port.
    fn row(&self, port: u16) -> FlowId {
        Tuple {
            src: self.to.0,
            dst: self.addr,
            sport: self.to.1,
            dport: port,
            proto: self.tuple.proto,
        }
        .reply()
    }

    /// Whether a source that may stay keeps its port: its reply row is nobody else's, and
    /// this is no connection that has another already.
    pub fn keeps(&self, world: &World, hash: Hash) -> bool {
        let id = self.row(self.tuple.sport);
        let row = world.flows.get(&id);
        let is_mine = |row: &&FlowRow| {
            (row.addr, row.port) == (self.tuple.dst, self.tuple.dport)
                && row.nat.is_none()
                && !row.hairpin
        };
        let mine = row.filter(is_mine);
        let goes_on = mine.is_some_and(|row| (row.backend, row.generation) == self.backend);
        if self.data && !goes_on && had_before(world, self, hash).is_some() {
            return false;
        }
        let Some(row) = row else {
            return true;
        };
        let silent = world.now.wrapping_sub(row.seen);
        let is_quiet = row.state == FlowState::Closing && silent >= QUIET_TICKS;
        mine.is_some() || world.live_reply(id).is_none() || (is_quiet && self.opens)
    }

    /// Whether the row that holds a port is this flow's own.
    fn owns(&self, row: &FlowRow) -> bool {
        (row.backend, row.generation) == self.backend
            && (row.addr, row.port) == (self.tuple.dst, self.tuple.dport)
            && row.translated_source() == Some((self.tuple.src, self.tuple.sport))
    }

    fn looks_at(&self, world: &World, port: u16) -> Port {
        let id = self.row(port);
        let Some(row) = world.flows.get(&id) else {
            return Port::Free;
        };
        if self.owns(row) || world.live_reply(id).is_none() {
            return Port::Free;
        }
        let silent = world.now.wrapping_sub(row.seen);
        if row.state == FlowState::Closing && silent >= QUIET_TICKS {
            return Port::Quiet;
        }
        Port::Busy
    }
}

/// The port that a connection had before it lost its forward row.
fn had_before(world: &World, wish: &Wish, hash: Hash) -> Option<u16> {
    let (first, ports) = (world.config.snat_first, world.config.snat_ports);
    let owns = |port: &u16| {
        let row = world.flows.get(&wish.row(*port));
        row.is_some_and(|row| wish.owns(row))
    };
    let mut all = (0..ports).map(|more| first.wrapping_add(more));
    match hash {
        Hash::Is(hash) => (0..ATTEMPTS)
            .map(|attempt| candidate(hash, attempt, first, ports))
            .find(owns),
        Hash::Seen { port, .. } => {
            let seen = port.filter(|port| all.clone().any(|one| one == *port) && owns(port));
            // Of many ports not all are looked at.
            let others = f64::from(ports.saturating_sub(1)) / f64::from(ports);
            let missed = others.powi(ATTEMPTS.cast_signed()) >= UNLIKELY;
            seen.or_else(|| all.find(owns).filter(|_| !missed))
        }
    }
}

/// The port that a new flow takes for its source.
pub fn port(world: &World, wish: &Wish, hash: Hash) -> Option<u16> {
    if wish.data
        && let Some(port) = had_before(world, wish, hash)
    {
        return Some(port);
    }
    let (first, ports) = (world.config.snat_first, world.config.snat_ports);
    let is = |port: &u16, what: Port| wish.looks_at(world, *port) == what;
    let seen = match hash {
        Hash::Is(hash) => {
            let mut tried = (0..ATTEMPTS).map(|attempt| candidate(hash, attempt, first, ports));
            let free = tried.clone().find(|port| is(port, Port::Free));
            return free.or_else(|| tried.find(|port| wish.opens && is(port, Port::Quiet)));
        }
        Hash::Seen { port, .. } => port,
    };
    let all = || (0..ports).map(|more| first.wrapping_add(more));
    let seen = seen.filter(|port| all().any(|one| one == *port));
    if let Some(port) = seen.filter(|port| is(port, Port::Free)) {
        return Some(port);
    }
    // What no hash, or hardly any, gives is not what was seen.
    let happens = |misses: &dyn Fn(&u16) -> bool| {
        let missed = all().filter(misses).count();
        (missed as f64 / f64::from(ports)).powi(ATTEMPTS.cast_signed()) >= UNLIKELY
    };
    if !happens(&|port| !is(port, Port::Free)) {
        return all().find(|port| is(port, Port::Free));
    }
    if !wish.opens {
        return None;
    }
    if let Some(port) = seen.filter(|port| is(port, Port::Quiet)) {
        return Some(port);
    }
    if happens(&|port| is(port, Port::Busy)) {
        return None;
    }
    all().find(|port| is(port, Port::Quiet))
}
