//! The ports of masqueraded flows, and that one hash selects them and the
//! backends. Needs root and `target/bpf/tulle.bpf.o`.
//!
//! The hash is the program's. But what it selects out of many backends, and
//! which port it tries first, leave a handful of hashes; every further port
//! has to follow from one of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bpf_tests::engine::{Change, Engine, InProcess, Kernel, object};
use bpf_tests::model::{Ctx, FlowRow, Tuple, World, snat};
use bpf_tests::packet::{Spec, Upper, tcp_flag};
use bpf_tests::strategies::config;
use datapath_common::{Feature, Frontend, FrontendFlags, Hook, Reason, proto};

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
        world.add_backend(id, address(v6, id));
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

/// A packet of a connection by its source port: what it counts as, and the port
/// that the connection's source is translated with.
fn one(
    engine: &mut dyn Engine,
    sport: u16,
    flags: u8,
) -> anyhow::Result<(Option<Reason>, Option<u16>)> {
    let spec = Spec::new(
        Upper::Tcp(flags),
        address(false, 20_000),
        sport,
        address(false, 0),
        443,
    );
    let observed = engine.run(Hook::NicIn, &spec.build(), &Ctx::default())?;
    let tuple = Tuple {
        src: spec.src,
        dst: spec.dst,
        sport,
        dport: spec.dport,
        proto: proto::TCP,
    };
    let row = observed.flows.get(&tuple.forward());
    Ok((
        observed.counted.first().map(|counted| counted.reason),
        row.and_then(FlowRow::translated_source).map(|nat| nat.1),
    ))
}

/// Connections one after the other, many more than ports: what closed half a
/// minute ago makes room, what closed just now does not, what is open never.
fn short_connections(engine: &mut dyn Engine) -> anyhow::Result<()> {
    use tcp_flag::{ACK, FIN, SYN};
    const FEW: u16 = 4;
    let mut world = world(false, 443);
    (world.config.snat_ports, world.config.idle.tcp_closing) = (FEW, 10_000);
    world.config.idle.tcp_opening = 10_000;
    for row in world.frontends.values_mut() {
        (row.len, row.out_len) = (1, 1);
    }
    engine.load(&world)?;
    let served = Some(Reason::TranslatedToKernel);
    let (reason, kept) = one(engine, 1000, SYN)?;
    anyhow::ensure!(reason == served && kept.is_some(), "{reason:?}");
    let mut next = 1000;
    for round in 0..25 {
        let mut ports: Vec<u16> = kept.into_iter().collect();
        for _ in 1..FEW {
            next += 1;
            let (reason, port) = one(engine, next, SYN)?;
            anyhow::ensure!(reason == served, "round {round}: {reason:?}");
            ports.extend(port);
            let (reason, _) = one(engine, next, FIN | ACK)?;
            anyhow::ensure!(reason == served, "round {round}, closing: {reason:?}");
        }
        ports.sort_unstable();
        ports.dedup();
        anyhow::ensure!(ports.len() == FEW as usize, "round {round}: {ports:?}");
        let (reason, _) = one(engine, next + 1, SYN)?;
        let exhausted = Some(Reason::SnatPortsExhausted);
        anyhow::ensure!(reason == exhausted, "round {round}, too many: {reason:?}");
        engine.apply_change(&Change::Ticks(30))?;
    }
    let (reason, port) = one(engine, 1000, ACK)?;
    anyhow::ensure!(reason == served && port == kept, "{reason:?} by {port:?}");
    Ok(())
}

#[test]
fn short_connections_do_not_use_up_the_models_ports() {
    short_connections(&mut InProcess::new(None)).unwrap();
}

#[test]
fn short_connections_do_not_use_up_the_programs_ports() {
    let mut engine = Kernel::new(object().unwrap()).unwrap();
    short_connections(&mut engine).unwrap();
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
