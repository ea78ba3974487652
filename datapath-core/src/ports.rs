//! Which port a flow's source has towards its backend: its reply row, which nobody
//! else may have, holds it.
//!
//! **Concurrency.** Whoever writes a row that holds a port has the lock of its key from
//! before it looks at what is there until the new row is. So of two CPUs that take over
//! the same dead row the second finds the first's, alive. Lock and unlock are atomic
//! operations that order all that comes before and after them, also on CPUs that
//! reorder memory accesses: who has the lock sees what the last one wrote. Packets that
//! only look a row up need no lock: rows are replaced as a whole, by the map, so that
//! they find the old or the new one, never half of one. Eviction and the agent's walk
//! take rows away without the lock, which makes a port free and gives it to nobody.
//!
//! A lock may be another's for long, of a CPU that its host took away. That says nothing
//! of the port: who may have another one looks there, who may not comes again. Only the
//! port that a source comes with is then taken without the lock, if there is no row: that
//! the table writes a row only where none is, is atomic. (The other CPU may be about to
//! write over a dead row; it meets this one only if that was evicted just now, too.)

use core::hint::black_box;

use datapath_common::{Address, Flow, FlowState, Reason, proto};

use crate::{
    Headers, Signal, Tables,
    flow::{has_backend, is_same},
    open::{FAILED, HEARD, LATER},
    reduce,
    states::{is_quiet, live_state},
    tables::{FlowRow, Put},
};

/// How many ports are tried.
const ATTEMPTS: u32 = 32;

/// Where attempt after attempt looks for a port.
#[inline(always)]
fn scatter(hash: u32, attempt: u32) -> u32 {
    let x = hash.wrapping_add(attempt.wrapping_mul(0x9e37_79b9));
    let x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x ^ (x >> 13)
}

// What `claim_port` is told of the packet, beside its protocol.

/// It opens a connection.
const OPENS: u32 = 1 << 8;
/// It is data of a connection.
const DATA: u32 = 1 << 9;
/// The source has the port that it comes with, if it may; the row is prepared so.
pub(crate) const KEEPS: u32 = 1 << 10;
/// That port or none.
pub(crate) const ONLY: u32 = 1 << 11;
/// That port, whoever has it.
pub(crate) const FORCE: u32 = 1 << 12;

/// What [`claim_port`] is told of a packet.
#[inline(always)]
pub(crate) fn facts<A>(h: &Headers<A>) -> u32 {
    let more = match h.signal {
        Signal::Open => OPENS,
        Signal::Data if matches!(h.proto, proto::TCP | proto::SCTP) => DATA,
        _ => 0,
    };
    more | h.proto as u32
}

// What is told of a claim to one port, beside the packet's facts.

/// It is the one that the source comes with.
const KEPT: u32 = 1 << 16;
/// It may also be a connection's that is closing and silent.
const QUIET_TOO: u32 = 1 << 17;
/// Only if it is the flow's own.
const OWN_ONLY: u32 = 1 << 18;

// What becomes of the claim.

/// The port is the flow's: nobody had it, or a flow that is over, or this one.
const TAKEN: u32 = 0;
/// The same; and it was the flow's already, which goes on.
const GOES_ON: u32 = 1;
/// A connection has it that is closing and silent.
const QUIET: u32 = 2;
/// Another flow has it.
const BUSY: u32 = 3;
/// The table does not take the row.
const REFUSED: u32 = 4;
/// The lock is not to be had, and without it the port is not.
const LOCKED: u32 = 5;

/// What is told where the table took no row.
const FULL: u32 = FAILED | Reason::FlowTableFull as u32;
/// What is told where the port may be had with the next packet.
const AGAIN: u32 = FULL | LATER;

/// Writes the reply row that is prepared, under the first port that is free or
/// may be taken over. Returns the port (0 for the one that the source comes with), with
/// a bit if the backend has been heard by it, or a bit and a reason.
#[inline(always)]
pub fn claim_port<A: Address, T: Tables<A>>(tables: &T, hash: u32, facts: u32) -> u32 {
    let keeps = facts & KEEPS != 0;
    let (opens, data) = (facts & OPENS != 0, facts & DATA != 0);
    // A connection that lost its forward row has its port, whatever else is free by now.
    if data && facts & (ONLY | FORCE) == 0 {
        if keeps {
            match tables.claim(facts | KEPT | OWN_ONLY) {
                GOES_ON => return HEARD,
                REFUSED => return FULL,
                LOCKED => return AGAIN,
                _ => {}
            }
            tables.stage_moved(true);
        }
        let told = search(tables, hash, facts);
        if told != 0 {
            return told;
        }
        if keeps {
            tables.stage_moved(false);
        }
    }
    if keeps {
        match tables.claim(facts | KEPT | if opens { QUIET_TOO } else { 0 }) {
            TAKEN => return 0,
            GOES_ON => return HEARD,
            REFUSED => return FULL,
            LOCKED if facts & FORCE == 0 => return AGAIN,
            _ => {}
        }
        if facts & FORCE != 0 {
            return if tables.put(Put::Over) { 0 } else { FULL };
        }
        if facts & ONLY != 0 {
            return FAILED | Reason::SnatPortsExhausted as u32;
        }
        tables.stage_moved(true);
    }
    let mut quiet = 0;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let port = candidate(tables, hash, attempt);
        match tables.claim(facts) {
            TAKEN => return port as u32,
            GOES_ON => return port as u32 | HEARD,
            REFUSED => return FULL,
            LOCKED if data => return AGAIN,
            QUIET if quiet == 0 => quiet = port,
            _ => {}
        }
        attempt += 1;
    }
    if quiet != 0 && opens {
        tables.stage_port(quiet);
        if tables.claim(facts | QUIET_TOO) == TAKEN {
            return quiet as u32;
        }
    }
    FAILED | Reason::SnatPortsExhausted as u32
}

/// The port of an attempt, which the prepared row gets.
#[inline(always)]
fn candidate<A, T: Tables<A>>(tables: &T, hash: u32, attempt: u32) -> u16 {
    let (first, ports) = (tables.config().snat_first, tables.config().snat_ports);
    let port = first.wrapping_add(reduce(scatter(hash, attempt), ports as u32) as u16);
    tables.stage_port(port);
    port
}

/// Finds the port that the flow has already, among those that it tries. 0 if it has none.
#[inline(always)]
fn search<A: Address, T: Tables<A>>(tables: &T, hash: u32, facts: u32) -> u32 {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let port = candidate(tables, hash, attempt);
        match tables.claim(facts | OWN_ONLY) {
            GOES_ON => return port as u32 | HEARD,
            REFUSED => return FULL,
            LOCKED => return AGAIN,
            _ => {}
        }
        attempt += 1;
    }
    0
}

/// Writes the prepared row if its port may be had. `how`: what is told of packet and port.
#[inline(always)]
pub fn claim<A: Address, T: Tables<A>>(tables: &T, how: u32) -> u32 {
    // Of the ports that are searched few are the flow's: most need no lock.
    if how & OWN_ONLY != 0 && !has_own(tables, how) {
        return BUSY;
    }
    let Some(lock) = tables.lock() else {
        return claim_unlocked(tables, how);
    };
    let told = claim_locked(tables, how);
    tables.unlock(lock);
    told
}

// Rows are read again at each step: kept over the calls they would take much of the stack.

#[inline(always)]
fn claim_locked<A: Address, T: Tables<A>>(tables: &T, how: u32) -> u32 {
    if how & OWN_ONLY == 0 && tables.put(Put::New) {
        return TAKEN;
    }
    let found = match tables.rival() {
        Some((mine, there)) if is_own(mine, there, how) => take_up(tables, mine, there, how),
        _ if how & OWN_ONLY != 0 => BUSY,
        Some((_, there)) => whose(tables, there, how),
        // It went just now, or the table did not take the new one.
        None if tables.put(Put::New) => return TAKEN,
        None => REFUSED,
    };
    if found > GOES_ON || tables.put(Put::Over) {
        found
    } else {
        REFUSED
    }
}

/// What may be said of a port whose lock is another's. Only the one that the source comes
/// with is worth a look.
#[inline(always)]
fn claim_unlocked<A: Address, T: Tables<A>>(tables: &T, how: u32) -> u32 {
    if how & (KEPT | OWN_ONLY) != KEPT {
        return LOCKED;
    }
    if tables.put(Put::New) {
        return TAKEN;
    }
    match tables.rival() {
        Some((mine, there)) if !is_own(mine, there, how) => match whose(tables, there, how) {
            TAKEN => LOCKED,
            another => another,
        },
        _ => LOCKED,
    }
}

/// Whether the row that is there is the flow's own.
#[inline(always)]
fn has_own<A: Address, T: Tables<A>>(tables: &T, how: u32) -> bool {
    let found = tables.rival();
    found.is_some_and(|(mine, there)| is_own(mine, there, how))
}

/// The row that is there is the flow's own.
#[inline(always)]
fn take_up<A, T: Tables<A>>(tables: &T, mine: T::Row, there: T::Row, how: u32) -> u32 {
    let (backend, generation) = (mine.get().backend, mine.get().generation);
    if how & DATA == 0 || !there.names(backend, generation) {
        return TAKEN;
    }
    mine.touch(FlowState::Established, tables.now());
    GOES_ON
}

/// The row that is there is another flow's.
#[inline(always)]
fn whose<A: Address, T: Tables<A>>(tables: &T, there: T::Row, how: u32) -> u32 {
    let now = tables.now();
    let Some(state) = live_state(&tables.config().idle, &there.get(), how as u8, now) else {
        return TAKEN;
    };
    if !has_backend(tables, &there.get()) {
        TAKEN
    } else if !is_quiet(state, there.get().seen, now) {
        BUSY
    } else if how & QUIET_TOO == 0 {
        QUIET
    } else {
        TAKEN
    }
}

/// Whether a reply row is of the flow that another is prepared for: the same client (not one
/// that is its own backend, which is known as the frontend) and frontend; and the same backend, unless the client comes with the port: then no other
/// flow can be meant. But a connection that lost its forward row is its backend's.
#[inline(always)]
fn is_own<A: Address, R: FlowRow<A>>(mine: R, there: R, how: u32) -> bool {
    let (a, b) = (mine.get(), there.get());
    let facts = |row: &Flow<A>| (row.port, row.nat_port, row.hairpin);
    if facts(&a) != facts(&b) || !is_same(a.addr, b.addr) {
        return false;
    }
    // Opaque: the compiler would read both pairs of addresses first, onto the stack.
    let (mine, there) = black_box((mine, there));
    is_same(mine.get().nat_addr, there.get().nat_addr)
        && (how & (KEPT | OWN_ONLY) == KEPT
            || there.names(mine.get().backend, mine.get().generation))
}
