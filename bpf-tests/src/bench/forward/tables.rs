//! The service that is measured, its packets, and the tables of the programs.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap as BpfHash, PerCpuArray};
use aya::programs::{Program, ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use datapath_common::{
    Config, Counter, Feature, Flow, FlowKey, Frontend, Hook, IdleTicks, Ip4, Ip6, NodeClient,
    Reason, Traffic, Via, counter_index, maps, proto,
};

use super::way::{Rows, Way};
use crate::bench::scaffold::{FRAME, Restore, Rounds, Vary};
use crate::bench::scenes::sized;
use crate::bench::setup::Setup;
use crate::bench::worlds;
use crate::cases::uplink::Uplink;
use crate::engine::tables::Family;
use crate::engine::{fill, hear_of_next_hops, object, table};
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
pub struct Tables {
    ebpf: Ebpf,
    way: Way,
}

impl Tables {
    /// With so many rows for flows of each family, and so many new flows in a tick (0: any number);
    /// clients outside reach the service by `way`.
    pub fn load(flows: u32, flows_per_tick: u32, way: Way) -> Result<Self> {
        let world = world(way)?;
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
        Ok(Self { ebpf, way })
    }

    /// By which clients outside reach the service.
    pub const fn way(&self) -> Way {
        self.way
    }

    /// The program at the driver.
    pub fn xdp(&self) -> Result<&Program> {
        self.ebpf.program("tulle_xdp").context("no tulle_xdp")
    }

    /// The same, for a tail call.
    pub fn program(&self) -> Result<&ProgramFd> {
        Ok(<&Xdp>::try_from(self.xdp()?)?.fd()?)
    }

    /// Flows of the service that were opened.
    pub fn opened(&mut self, version: u8) -> Result<u64> {
        let traffic: PerCpuArray<_, Traffic> = table(&mut self.ebpf, maps::SVC_STATS)?;
        let rows = traffic.get(&service(version), 0)?;
        Ok(rows.iter().map(|row| row.flows).sum())
    }

    /// Rows of a family's flow table.
    pub fn rows(&mut self, v6: bool) -> Result<Rows> {
        if v6 {
            rows::<Ip6>(&mut self.ebpf)
        } else {
            rows::<Ip4>(&mut self.ebpf)
        }
    }

    /// Packets that left `tulle_xdp` for this reason.
    pub fn counted(&mut self, reason: Reason) -> Result<u64> {
        let counters: PerCpuArray<_, Counter> = table(&mut self.ebpf, maps::COUNTERS)?;
        let rows = counters.get(&counter_index(Hook::Xdp, reason), 0)?;
        Ok(rows.iter().map(|row| row.packets).sum())
    }

    /// Each next hop has had its packet by the stack, in this tick.
    pub fn hear_of_next_hops(&mut self) -> Result<()> {
        hear_of_next_hops(&mut self.ebpf)
    }
}

fn rows<A: Family>(ebpf: &mut Ebpf) -> Result<Rows>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let flows: BpfHash<_, FlowKey<A>, Flow<A>> = table(ebpf, A::FLOWS)?;
    let mut rows = Rows::default();
    for entry in &flows {
        let (_, row) = entry?;
        rows.all += 1;
        rows.translated += u64::from(row.nat_port != 0);
        rows.direct += u64::from(row.node == NodeClient::Direct as u8);
    }
    Ok(rows)
}

/// Number of the service for clients of an IP version.
const fn service(version: u8) -> u32 {
    SERVICE + version as u32
}

/// Both families, with the service.
fn world(way: Way) -> Result<World> {
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
            let via = Via {
                flags: way.via(),
                ..like.via
            };
            world
                .backends
                .insert((version, id), BackendRow { port, via, ..like });
        }
        let row = Frontend {
            service: service(version),
            start,
            len: BACKENDS,
            out_start: start,
            out_len: BACKENDS,
            flags: way.flags(),
            ..Frontend::default()
        };
        world
            .frontends
            .insert((uplink.vip, PORTS.1, proto::TCP), row);
    }
    Ok(world)
}
