//! `COUNT_SERVICES`: the traffic of service ports and backends.

use datapath_common::{Feature, Traffic};

use super::world::version_of;
use super::{Outcome, World};

/// Counts what became of a packet that arrived as `frame`.
pub fn count(world: &mut World, frame: &[u8], outcome: &Outcome) {
    if !world.has(Feature::COUNT_SERVICES) {
        return;
    }
    let octets = frame.len() as u64;
    if let Some((version, service, backend)) = outcome.given {
        add(world, version, service, backend, &|traffic| {
            traffic.packets += 1;
            traffic.bytes += octets;
        });
    }
    if let Some(id) = outcome.opened_flow
        && let Some(row) = world.flows.get(&id).copied()
    {
        let version = version_of(id.tuple.src);
        add(world, version, row.service, row.backend, &|traffic| {
            traffic.flows += 1;
        });
    }
    if let Some((version, service, backend)) = world.answered {
        add(world, version, service, backend, &|traffic| {
            traffic.reply_packets += 1;
            traffic.reply_bytes += octets;
        });
    }
}

/// Changes both rows; what is for no service has none.
fn add(world: &mut World, version: u8, service: u32, backend: u32, change: &dyn Fn(&mut Traffic)) {
    if backend == 0 {
        return;
    }
    change(world.service_traffic.entry(service).or_default());
    change(world.backend_traffic.entry((version, backend)).or_default());
}
