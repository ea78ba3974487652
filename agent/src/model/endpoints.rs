//! Which endpoints a service port uses.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Endpoint, EndpointSlice, Family, ServicePort};

/// Address and port of every endpoint that new flows of `port` may go to, in
/// ascending order without duplicates: the ready ones of the whole cluster
/// (KP-76), or, if there is none, those that terminate but still serve (KP-77).
pub fn usable<'a>(
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    family: Family,
    port: &ServicePort,
) -> Vec<SocketAddr> {
    let mut merged: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for slice in slices {
        if slice.family != Some(family) {
            continue;
        }
        // By name and protocol; the number is the slice's own (KP-13, KP-14).
        let numbers = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol);
        for number in numbers {
            for endpoint in &slice.endpoints {
                merged
                    .entry(SocketAddr::new(endpoint.addr, number.port))
                    .and_modify(|held| {
                        if rank(endpoint) > rank(held) {
                            *held = *endpoint;
                        }
                    })
                    .or_insert(*endpoint);
            }
        }
    }
    let pick = |usable: fn(&Endpoint) -> bool| -> Vec<SocketAddr> {
        merged
            .iter()
            .filter(|(_, e)| usable(e))
            .map(|(addr, _)| *addr)
            .collect()
    };
    let ready = pick(|e| e.ready);
    if ready.is_empty() {
        pick(|e| e.serving && e.terminating)
    } else {
        ready
    }
}

/// Which of two entries of one address and port counts: never the terminating
/// one (KP-17), else the more usable, so that the order of slices is irrelevant.
const fn rank(e: &Endpoint) -> (bool, bool, bool) {
    (!e.terminating, e.ready, e.serving)
}
