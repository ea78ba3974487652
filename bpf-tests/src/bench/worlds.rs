//! Tables of many services, of which one is in use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{BackendState, Config, Frontend, FrontendFlags, IdleTicks, proto};

use crate::cases::Fixture;
use crate::model::{BackendRow, World};
use crate::strategies::local_via;

/// First backend id of the services that nobody uses.
const FIRST_ID: u32 = 1000;

/// Both families' fixtures, and `services` more of each family.
pub fn world(v4: &Fixture, v6: &Fixture, services: u32) -> World {
    let mut world = v4.world.clone();
    world.config = Config {
        idle: IdleTicks::DEFAULT,
        ..world.config
    };
    // Both fixtures lay the same ids into the same slots.
    world.frontends.extend(&v6.world.frontends);
    world.backends.extend(&v6.world.backends);
    world.pods.extend(&v6.world.pods);
    world.peers.extend(&v6.world.peers);
    for number in 0..services {
        let start = world.segments.len() as u32;
        let id = FIRST_ID + number;
        world.segments.extend([id, id]);
        for version in [4, 6] {
            let row = Frontend {
                service: id,
                start,
                len: 2,
                ..Frontend::default()
            };
            let marker = Frontend {
                flags: FrontendFlags::ADDRESS,
                ..Frontend::default()
            };
            let backend = BackendRow {
                addr: address(version, 0x80, number),
                port: 8080,
                proto: proto::TCP,
                state: BackendState::Active,
                generation: 1,
                via: local_via(3),
            };
            let addr = address(version, 0x70, number);
            world.frontends.insert((addr, 80, proto::TCP), row);
            world.frontends.insert((addr, 0, 0), marker);
            world.backends.insert((version, id), backend);
        }
    }
    world
}

/// An address of a range of 2^24 that the fixtures do not use.
fn address(version: u8, range: u8, number: u32) -> IpAddr {
    if version == 4 {
        Ipv4Addr::from_bits(u32::from(range) << 24 | number).into()
    } else {
        let network = 0xfd01 << 112 | u128::from(range) << 64;
        Ipv6Addr::from_bits(network | u128::from(number)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_has_its_rows() {
        let (v4, v6) = (Fixture::new(false), Fixture::new(true));
        let (one, many) = (world(&v4, &v6, 0), world(&v4, &v6, 300));
        assert_eq!(many.frontends.len() - one.frontends.len(), 1200);
        assert_eq!(many.backends.len() - one.backends.len(), 600);
        assert_eq!(many.segments.len() - one.segments.len(), 600);
    }
}
