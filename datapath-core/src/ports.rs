//! Which port the source of a masqueraded flow gets: its reply row, which nobody
//! else may have, holds it. Of two CPUs that want a free port one gets it; two that
//! take over the same dead row in the same moment can both get it.

use datapath_common::{Address, FlowState, Reason, proto};

use crate::{
    Headers, Signal, Tables,
    flow::{has_backend, is_quiet, is_same, live_state},
    open::{FAILED, HEARD},
    reduce,
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

/// What a port is to a flow that wants one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    /// Nobody's.
    Free,
    /// The flow's own already.
    Own,
    /// Of a flow that is over.
    Left,
    /// Of a connection that is closing and silent.
    Quiet,
    /// Another's.
    Busy,
}

/// Writes the reply row that is prepared, under the first port that is free or
/// may be taken over. Returns the port, with a bit if the backend has been heard
/// by it, or a bit and a reason.
#[inline(always)]
pub fn claim_port<A: Address, T: Tables<A>>(tables: &T, hash: u32, facts: u32) -> u32 {
    let config = tables.config();
    let (first, ports) = (config.snat_first, config.snat_ports as u32);
    let mut quiet = 0;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let port = first.wrapping_add(reduce(scatter(hash, attempt), ports) as u16);
        tables.stage_port(port);
        let told = port as u32;
        match look(tables, facts) {
            Port::Own if facts & DATA != 0 => return told | HEARD,
            Port::Free | Port::Own => return told,
            Port::Left if tables.put(Put::Instead) => return told,
            Port::Quiet if quiet == 0 => quiet = port,
            Port::Left | Port::Quiet | Port::Busy => {}
        }
        attempt += 1;
    }
    if quiet != 0 && facts & OPENS != 0 {
        tables.stage_port(quiet);
        if look(tables, facts) == Port::Quiet && tables.put(Put::Instead) {
            return quiet as u32;
        }
    }
    FAILED | Reason::SnatPortsExhausted as u32
}

/// What the port of the row that is prepared is to it. Free and own ones have the
/// row then.
#[inline(always)]
fn look<A: Address, T: Tables<A>>(tables: &T, facts: u32) -> Port {
    if tables.put(Put::New) {
        return Port::Free;
    }
    let Some((mine, there)) = tables.rival() else {
        return Port::Busy;
    };
    let now = tables.now();
    if is_own(mine, there) {
        if facts & DATA != 0 {
            mine.touch(FlowState::Established, now);
        }
        return if tables.put(Put::Over) {
            Port::Own
        } else {
            Port::Busy
        };
    }
    let row = there.get();
    match live_state(&tables.config().idle, &row, facts as u8, now) {
        Some(state) if has_backend(tables, &row) => {
            if is_quiet(&row, state, now) {
                Port::Quiet
            } else {
                Port::Busy
            }
        }
        _ => Port::Left,
    }
}

/// Whether a reply row is of the flow that another is prepared for: the same client,
/// frontend and backend.
#[inline(always)]
fn is_own<A: Address, R: FlowRow<A>>(mine: R, there: R) -> bool {
    let (a, b) = (mine.get(), there.get());
    there.names(a.backend, a.generation)
        && (a.port, a.nat_port) == (b.port, b.nat_port)
        && is_same(a.addr, b.addr)
        && is_same(a.nat_addr, b.nat_addr)
}
