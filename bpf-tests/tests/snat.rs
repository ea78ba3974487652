//! The ports of masqueraded flows, and that one hash selects them and the
//! backends. Needs root and `target/bpf/tulle.bpf.o`.
//!
//! The hash is the program's. But what it selects out of many backends, and
//! which port it tries first, leave a handful of hashes; every further port
//! has to follow from one of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bpf_tests::engine::{Engine, InProcess, Kernel, object};
use bpf_tests::model::{BackendRow, Ctx, FlowRow, Tuple, World, snat};
use bpf_tests::packet::{Spec, Upper, tcp_flag};
use bpf_tests::strategies::config;
use datapath_common::{BackendState, Feature, Frontend, FrontendFlags, Hook, Via, proto};

/// Backends, out of which the hash selects one.
const BACKENDS: u32 = 500;
/// Ports: many, so that few hashes share one.
const FIRST: u16 = 2000;
const PORTS: u16 = 60_000;
/// Attempts to get a port that the rules allow.
const ATTEMPTS: u32 = 32;

fn world(v6: bool, port: u16) -> World {
    let mut config = config(0);
    config.features |= Feature::UPLINK_SERVICES;
    (config.snat_first, config.snat_ports) = (FIRST, PORTS);
    let mut world = World::new(config);
    world.now = 1_000_000;
    world.segments = (0..=BACKENDS).collect();
    for id in 1..=BACKENDS {
        let row = BackendRow {
            addr: address(v6, id),
            port: 8080,
            proto: proto::TCP,
            state: BackendState::Active,
            generation: 1,
            via: Via::KERNEL,
        };
        world.backends.insert((if v6 { 6 } else { 4 }, id), row);
    }
    let frontend = Frontend {
        service: 1,
        start: 1,
        len: BACKENDS,
        out_start: 1,
        out_len: BACKENDS,
        flags: FrontendFlags::MASQUERADE_OUTSIDE,
        ..Frontend::default()
    };
    world
        .frontends
        .insert((address(v6, 0), port, proto::TCP), frontend);
    world
}

/// Backend `number`; 0 is the frontend.
fn address(v6: bool, number: u32) -> IpAddr {
    if v6 {
        Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(number)).into()
    } else {
        Ipv4Addr::from_bits(0xc633_0000 + number).into()
    }
}

/// The forward row of the flow that a packet opened.
fn opened(engine: &mut dyn Engine, world: &World, sent: &Spec) -> anyhow::Result<FlowRow> {
    engine.load(world)?;
    let observed = engine.run(Hook::NicIn, &sent.build(), &Ctx::default())?;
    let tuple = Tuple {
        src: sent.src,
        dst: sent.dst,
        sport: sent.sport,
        dport: sent.dport,
        proto: proto::TCP,
    };
    let row = observed.flows.get(&tuple.forward()).copied();
    row.ok_or_else(|| anyhow::anyhow!("no flow opened: {:?}", observed.counted))
}

/// Hashes that select this backend.
fn hashes(backend: u32) -> impl Iterator<Item = u32> {
    let bound = |slot: u64| (slot << 32).div_ceil(u64::from(BACKENDS));
    let slot = u64::from(backend - 1);
    (bound(slot)..bound(slot + 1)).map(|hash| hash as u32)
}

/// The port that a hash gives if these are taken.
fn first_free(hash: u32, taken: &[u16]) -> Option<u16> {
    (0..ATTEMPTS)
        .map(|attempt| snat::candidate(hash, attempt, FIRST, PORTS))
        .find(|port| !taken.contains(port))
}

fn follow_one_hash(engine: &mut dyn Engine) -> anyhow::Result<()> {
    for (v6, client) in [(false, 7), (true, 7), (false, 8), (true, 9)] {
        let src = address(v6, 10_000 + client);
        let (sport, dport) = (40_000 + client as u16, 443);
        let upper = Upper::Tcp(tcp_flag::SYN);
        let sent = Spec::new(upper, src, sport, address(v6, 0), dport);
        let mut world = world(v6, dport);
        let mut possible: Option<Vec<u32>> = None;
        // Each port that the flow was given is taken the next time.
        let mut taken = Vec::new();
        loop {
            let next = |hash: u32| first_free(hash, &taken);
            if let Some([hash]) = possible.as_deref()
                && next(*hash).is_none()
            {
                break;
            }
            let row = opened(engine, &world, &sent)?;
            let (addr, port) = row.translated_source().unwrap_or((src, 0));
            let follows = |hash: &u32| next(*hash) == Some(port);
            let left: Vec<u32> = match &possible {
                None => hashes(row.backend).filter(follows).collect(),
                Some(hashes) => hashes.iter().copied().filter(follows).collect(),
            };
            let tried = taken.len();
            anyhow::ensure!(
                !left.is_empty(),
                "port {port} after {tried} follows from no hash of {possible:?}"
            );
            possible = Some(left);
            taken.push(port);
            let reply = Tuple {
                src: row.addr,
                dst: addr,
                sport: row.port,
                dport: port,
                proto: proto::TCP,
            };
            world.flows.insert(reply.reply(), row);
        }
        anyhow::ensure!(taken.len() > 16, "only {} ports were tried", taken.len());
        let more = opened(engine, &world, &sent);
        anyhow::ensure!(more.is_err(), "a port after {ATTEMPTS} attempts: {more:?}");
    }
    Ok(())
}

#[test]
fn the_models_ports_follow_one_hash() {
    follow_one_hash(&mut InProcess::new(None)).unwrap();
}

#[test]
fn the_programs_ports_follow_one_hash() {
    let mut engine = Kernel::new(object().unwrap()).unwrap();
    follow_one_hash(&mut engine).unwrap();
}
