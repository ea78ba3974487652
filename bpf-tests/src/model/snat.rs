//! Ports for translated sources ("Opening a flow").

use std::net::IpAddr;

use super::world::World;
use super::{FlowId, Hash, Tuple};

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

/// The port of `addr` that a new flow to `backend` takes for its source.
pub fn port(
    world: &World,
    backend: (IpAddr, u16),
    proto: u8,
    addr: IpAddr,
    hash: Hash,
) -> Option<u16> {
    let (first, ports) = (world.config.snat_first, world.config.snat_ports);
    // A row that has expired and is still there is in the way of another.
    let is_free = |port: &u16| {
        !world
            .flows
            .contains_key(&reply(backend, proto, (addr, *port)))
    };
    let seen = match hash {
        Hash::Is(hash) => {
            return (0..ATTEMPTS)
                .map(|attempt| candidate(hash, attempt, first, ports))
                .find(is_free);
        }
        Hash::Seen { port, .. } => port,
    };
    let all = || (0..ports).map(|more| first.wrapping_add(more));
    if let Some(port) = seen.filter(|port| all().any(|one| one == *port) && is_free(port)) {
        return Some(port);
    }
    // What no hash, or hardly any, gives is not what was seen.
    let taken = all().filter(|port| !is_free(port)).count();
    let chance = (taken as f64 / f64::from(ports)).powi(ATTEMPTS.cast_signed());
    if chance < UNLIKELY {
        all().find(is_free)
    } else {
        None
    }
}

fn reply((src, sport): (IpAddr, u16), proto: u8, (dst, dport): (IpAddr, u16)) -> FlowId {
    Tuple {
        src,
        dst,
        sport,
        dport,
        proto,
    }
    .reply()
}
