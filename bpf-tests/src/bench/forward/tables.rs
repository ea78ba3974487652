//! The service that is measured, its packets, and the tables of the programs.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{PerCpuArray, PerCpuValues};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use datapath_common::{
    Config, Counter, Feature, Frontend, Hook, IdleTicks, Limit, Reason, counter_index, maps, proto,
};

use crate::bench::scaffold::{FRAME, Restore, Rounds, Vary};
use crate::bench::scenes::sized;
use crate::bench::setup::Setup;
use crate::bench::worlds;
use crate::cases::uplink::{MASQUERADE, Uplink};
use crate::engine::{fill, object, table};
use crate::model::{BackendRow, World};
use crate::packet::tcp_flag::{ACK, SYN};
use crate::packet::{Spec, Upper};
use crate::time::tick;

/// Rows of flow tables in which a million flows have room.
pub const ROOM: u32 = 1 << 22;
/// Rows of flow tables that are to be full: the agent's default.
pub const FULL: u32 = 131_072;
/// Backends of the service, on another node: each has as many ports for translated sources as
/// there are.
const BACKENDS: u32 = 128;
const FIRST_ID: u32 = 1000;
/// Ports for translated sources, so that a million flows have theirs.
const SNAT: (u16, u16) = (10_000, 50_000);
/// Its number.
const SERVICE: u32 = 500;
/// Where the client's port and the service's are.
const PORTS: (u16, u16) = (40_001, 80);

/// One packet.
pub struct Packet {
    /// What the scaffold sends.
    pub rounds: Rounds,
    /// IP version.
    pub version: u8,
}

/// All packets of a family.
pub struct Packets {
    /// Opens a flow.
    pub syn: Packet,
    /// Of a flow that is open.
    pub data: Packet,
    /// For no service.
    pub foreign: Packet,
}

impl Packets {
    /// Of IPv4 or IPv6.
    pub fn new(v6: bool) -> Result<Self> {
        let u = Uplink::new(v6);
        let packet = |flags, port| {
            let spec = Spec::new(Upper::Tcp(flags), u.client, PORTS.0, u.vip, port);
            let frame = sized(spec, FRAME);
            ensure!(frame.len() == FRAME, "{} octets", frame.len());
            Ok(Packet {
                rounds: Rounds {
                    frame,
                    restore: Restore::Octets,
                    vary: Vary::Source,
                    v6,
                },
                version: if v6 { 6 } else { 4 },
            })
        };
        Ok(Self {
            syn: packet(SYN, PORTS.1)?,
            data: packet(ACK, PORTS.1)?,
            foreign: packet(ACK, PORTS.1 + 1)?,
        })
    }
}

/// The programs and their tables.
pub struct Tables(Ebpf);

impl Tables {
    /// With so many rows for flows of each family, and so many new flows in a tick (0: any number).
    pub fn load(flows: u32, flows_per_tick: u32) -> Result<Self> {
        let world = world()?;
        let usual = Setup::Counting.config(&world.config);
        let config = Config {
            features: usual.features | Feature::XDP_SERVICES,
            snat_first: SNAT.0,
            snat_ports: SNAT.1,
            flows_per_tick,
            // Nobody answers, and no flow is to end.
            idle: IdleTicks {
                tcp_opening: IdleTicks::DEFAULT.tcp_established,
                ..IdleTicks::DEFAULT
            },
            ..usual
        };
        let mut loader = EbpfLoader::new();
        loader
            .override_global("CONFIG", &config, true)
            .map_max_entries(maps::FLOW_V4, flows)
            .map_max_entries(maps::FLOW_V6, flows);
        let mut ebpf = loader.load(&object()?).context("load the object")?;
        crate::load::datapath(&mut ebpf)?;
        let ahead = world.now.wrapping_sub(tick(false)?);
        fill(&mut ebpf, &world, ahead)?;
        Ok(Self(ebpf))
    }

    /// The program at the driver.
    pub fn program(&self) -> Result<&ProgramFd> {
        let program = self.0.program("tulle_xdp").context("no tulle_xdp")?;
        Ok(<&Xdp>::try_from(program)?.fd()?)
    }

    /// Packets that left `tulle_xdp` for this reason.
    pub fn counted(&mut self, reason: Reason) -> Result<u64> {
        let counters: PerCpuArray<_, Counter> = table(&mut self.0, maps::COUNTERS)?;
        let rows = counters.get(&counter_index(Hook::Xdp, reason), 0)?;
        Ok(rows.iter().map(|row| row.packets).sum())
    }

    /// Each next hop has had its packet by the stack, in this tick.
    pub fn hear_of_next_hops(&mut self) -> Result<()> {
        let now = tick(true)?;
        let mut limits: PerCpuArray<_, Limit> = table(&mut self.0, maps::LIMITS)?;
        for row in maps::LIMIT_NEXT_HOPS..maps::LIMIT_NEXT_HOPS + maps::NEXT_HOP_ROWS {
            let heard = Limit {
                tick: now,
                ..Limit::default()
            };
            let all = vec![heard; limits.get(&row, 0)?.len()];
            limits.set(row, PerCpuValues::try_from(all)?, 0)?;
        }
        Ok(())
    }
}

/// Both families, with the service.
fn world() -> Result<World> {
    let (v4, v6) = (Uplink::new(false), Uplink::new(true));
    let mut world = worlds::world(&v4.base, &v6.base, 0);
    let start = world.segments.len() as u32;
    let ids = FIRST_ID..FIRST_ID + BACKENDS;
    world.segments.extend(ids.clone());
    for (version, uplink) in [(4, &v4), (6, &v6)] {
        let known = world.backends.values();
        let like = known
            .copied()
            .find(|row| row.addr == uplink.base.remote && row.proto == proto::TCP);
        let like = like.context("no backend on another node")?;
        for id in ids.clone() {
            let port = 20_000 + id as u16;
            world
                .backends
                .insert((version, id), BackendRow { port, ..like });
        }
        let row = Frontend {
            service: SERVICE + u32::from(version),
            start,
            len: BACKENDS,
            out_start: start,
            out_len: BACKENDS,
            flags: MASQUERADE,
            ..Frontend::default()
        };
        world
            .frontends
            .insert((uplink.vip, PORTS.1, proto::TCP), row);
    }
    Ok(world)
}
