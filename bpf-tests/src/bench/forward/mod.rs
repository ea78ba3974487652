//! What sending a packet on before an skb is made costs, over the number of live flows: services
//! of clients outside by `tulle_xdp`, beside a program that only writes a constant header.

mod report;
mod tables;
mod way;

use anyhow::{Context as _, Result, ensure};
use datapath_common::Reason;
use serde::Serialize;

use super::sample::Spread;
use super::scaffold::{Reading, Scaffold};
use crate::engine::Driver;
pub use report::{draw, markdown};
use tables::{FULL, Packet, ROOM, Tables};
use way::Way;

/// Live flows.
pub const LIVE: [u32; 3] = [1, 16_000, 1_000_000];
/// Packets of a reading, at least: in XDP the kernel waits for all CPUs before and after each.
const REPEAT: u32 = 25_000;
/// Readings of packets of known flows and of no service.
const READINGS: u32 = 10;
/// New flows in a reading, and readings: few beside the flows that live.
const NEW: u32 = 1000;
const NEW_READINGS: u32 = 15;
/// New flows for each tick, where there are many more.
const FLOOD_LIMIT: u32 = 1000;
/// The first of all flows that are new has this number.
const UNSEEN: u32 = 4_000_000;
/// One packet in so many may take another way: one to each next hop in each tick goes by the
/// stack, and sometimes a checksum looks like one that is not whole.
const STRAY: u64 = 1000;

/// XDP's verdicts.
const DROP: i32 = 1;
const PASS: i32 = 2;
const TRANSMIT: i32 = 3;

/// What a packet costs.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The packet and its way.
    pub packet: &'static str,
    /// How the packet leaves: by one of the ways to a backend, or with the constant header.
    pub way: &'static str,
    /// IP version.
    pub version: u8,
    /// Live flows.
    pub flows: u32,
    /// Nanoseconds over the empty program.
    pub over_empty: Spread,
}

/// The program with the constant header.
pub const CONSTANT: &str = "constant header";

/// A packet that is sent round after round.
struct Load<'a> {
    packet: &'a Packet,
    /// The number of the first flow.
    first: u32,
    /// Any of so many flows, or each time another one.
    among: Option<u32>,
    repeat: u32,
    readings: u32,
    /// What is returned and counted.
    expected: (i32, Reason),
    /// Which of them open flows.
    opens: Opens,
}

/// Packets that open flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Opens {
    /// None.
    None,
    /// All.
    All,
    /// The first of each tick; they go another way than the others.
    First,
}

/// Measures all of it, in a network namespace with an uplink, routes and neighbours.
pub fn measure() -> Result<Vec<Figure>> {
    let namespace = Driver::namespace()?;
    namespace.run(in_namespace)?
}

fn in_namespace() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for way in Way::ALL {
        let name = way.name();
        eprintln!(
            "services by XDP, {name}: up to {} flows …",
            LIVE[LIVE.len() - 1]
        );
        live_flows(way, &mut figures)?;
        eprintln!("services by XDP, {name}: full tables …");
        full_tables(way, &mut figures)?;
        eprintln!("services by XDP, {name}: too many new flows …");
        let mut flood = Bench::new(Tables::load(FULL, FLOOD_LIMIT, way)?)?;
        for v6 in [false, true] {
            let packets = tables::Packets::new(v6)?;
            figures.push(flood.flood(&packets.syn)?);
        }
    }
    Ok(figures)
}

/// More and more flows, in tables with room for more.
fn live_flows(way: Way, figures: &mut Vec<Figure>) -> Result<()> {
    let mut room = Bench::new(Tables::load(ROOM, 0, way)?)?;
    for v6 in [false, true] {
        let packets = tables::Packets::new(v6)?;
        room.check_way(&packets.data)?;
        let mut opened = 0;
        let mut unseen = UNSEEN;
        for live in LIVE {
            eprintln!("IPv{}, {live} flows …", packets.syn.version);
            room.open(&packets.syn, opened, live)?;
            opened = live;
            figures.push(room.known(&packets.data, live)?);
            figures.push(room.foreign(&packets.foreign, live)?);
            figures.push(room.new_flows("new flow, room", &packets.syn, &mut unseen, live)?);
        }
        if way == Way::Translated {
            figures.push(room.constant(&packets.data)?);
        }
    }
    Ok(())
}

/// New flows where others are evicted.
fn full_tables(way: Way, figures: &mut Vec<Figure>) -> Result<()> {
    // What a flow needs: a row for each direction that goes by this node.
    let rows = if way == Way::Translated { 2 } else { 1 };
    let mut full = Bench::new(Tables::load(FULL, 0, way)?)?;
    for v6 in [false, true] {
        let packets = tables::Packets::new(v6)?;
        full.open(&packets.syn, 0, FULL * 2)?;
        let mut unseen = UNSEEN;
        figures.push(full.new_flows(
            "new flow, table full",
            &packets.syn,
            &mut unseen,
            FULL / rows,
        )?);
    }
    Ok(())
}

struct Bench {
    tables: Tables,
    under_test: Scaffold,
    empty: Scaffold,
    constant: Scaffold,
}

impl Bench {
    fn new(tables: Tables) -> Result<Self> {
        Ok(Self {
            under_test: Scaffold::new(datapath_common::Hook::Xdp, Some(tables.program()?))?,
            empty: Scaffold::new(datapath_common::Hook::Xdp, None)?,
            constant: Scaffold::constant()?,
            tables,
        })
    }

    /// Opens the flows `from .. to`.
    fn open(&mut self, syn: &Packet, from: u32, to: u32) -> Result<()> {
        self.tables.hear_of_next_hops()?;
        self.under_test.set_flows(&syn.rounds, from, None)?;
        let before = self.tables.opened(syn.version)?;
        let reading = self.under_test.run(&syn.rounds.frame, to - from)?;
        ensure!(
            reading.ret == TRANSMIT || reading.ret == PASS,
            "XDP returned {} for a new flow",
            reading.ret
        );
        let opened = self.tables.opened(syn.version)? - before;
        Opens::All.check(opened, u64::from(to - from))
    }

    fn known(&mut self, data: &Packet, live: u32) -> Result<Figure> {
        let load = Load {
            packet: data,
            first: 0,
            among: Some(live),
            // Most flows are met again before their rows have to be written again.
            repeat: REPEAT.max(live),
            readings: READINGS,
            expected: (TRANSMIT, Reason::Encapsulated),
            opens: Opens::None,
        };
        self.figure("known flow", &load, live)
    }

    fn foreign(&mut self, foreign: &Packet, live: u32) -> Result<Figure> {
        let load = Load {
            packet: foreign,
            first: 0,
            among: Some(live),
            repeat: REPEAT,
            readings: READINGS,
            expected: (PASS, Reason::NotOurs),
            opens: Opens::None,
        };
        self.figure("for no service", &load, live)
    }

    fn new_flows(
        &mut self,
        name: &'static str,
        syn: &Packet,
        unseen: &mut u32,
        live: u32,
    ) -> Result<Figure> {
        let load = Load {
            packet: syn,
            first: *unseen,
            among: None,
            repeat: NEW,
            readings: NEW_READINGS,
            expected: (TRANSMIT, Reason::Encapsulated),
            opens: Opens::All,
        };
        *unseen += NEW * (NEW_READINGS + 1);
        self.figure(name, &load, live)
    }

    fn flood(&mut self, syn: &Packet) -> Result<Figure> {
        let load = Load {
            packet: syn,
            first: UNSEEN,
            among: None,
            repeat: 20 * FLOOD_LIMIT,
            readings: READINGS,
            expected: (DROP, Reason::NewFlowLimit),
            opens: Opens::First,
        };
        self.figure("new flow, beyond the limit", &load, FLOOD_LIMIT)
    }

    /// The constant header over the empty program.
    fn constant(&mut self, data: &Packet) -> Result<Figure> {
        let mut over = Vec::new();
        self.constant.set_flows(&data.rounds, 0, Some(1))?;
        self.empty.set_flows(&data.rounds, 0, Some(1))?;
        let frame = &data.rounds.frame;
        for _ in 0..READINGS {
            let (full, floor) = (
                self.constant.run(frame, REPEAT)?,
                self.empty.run(frame, REPEAT)?,
            );
            ensure!(full.ret == TRANSMIT, "the program returned {}", full.ret);
            over.push(full.nanos - floor.nanos);
        }
        figure("any packet", CONSTANT, data.version, 1, over)
    }

    fn figure(&mut self, name: &'static str, load: &Load<'_>, live: u32) -> Result<Figure> {
        let what = || format!("{name}, IPv{}, {live} flows", load.packet.version);
        let over = self.readings(load).with_context(what)?;
        figure(
            name,
            self.tables.way().name(),
            load.packet.version,
            live,
            over,
        )
    }

    /// Nanoseconds over the empty program. The first run is not counted: it warms caches, and
    /// writes what is old.
    fn readings(&mut self, load: &Load<'_>) -> Result<Vec<f64>> {
        let rounds = &load.packet.rounds;
        let (expected, reason) = load.expected;
        self.under_test.set_flows(rounds, load.first, load.among)?;
        self.empty.set_flows(rounds, load.first, load.among)?;
        let mut over = Vec::new();
        let before = self.tables.counted(reason)?;
        let opened = self.tables.opened(load.packet.version)?;
        for reading in 0..=load.readings {
            self.tables.hear_of_next_hops()?;
            let run = |scaffold: &Scaffold| -> Result<Reading> {
                scaffold.run(&rounds.frame, load.repeat)
            };
            let (full, floor) = if reading % 2 == 0 {
                (run(&self.under_test)?, run(&self.empty)?)
            } else {
                let floor = run(&self.empty)?;
                (run(&self.under_test)?, floor)
            };
            // What strays is passed to the stack.
            ensure!(
                full.ret == expected || full.ret == PASS,
                "the program returned {}, not {expected}",
                full.ret
            );
            if reading > 0 {
                over.push(full.nanos - floor.nanos);
            }
        }
        let packets = u64::from(load.repeat) * u64::from(load.readings + 1);
        let counted = self.tables.counted(reason)? - before;
        let opened = self.tables.opened(load.packet.version)? - opened;
        load.opens.check(opened, packets)?;
        let least = if load.opens == Opens::First {
            packets - packets / 4
        } else {
            packets - packets / STRAY - u64::from(load.readings)
        };
        ensure!(
            (least..=packets).contains(&counted),
            "{packets} packets should have been counted as {}, and {counted} were: the figure \
             would be of another way",
            reason.label()
        );
        Ok(over)
    }
}

impl Opens {
    /// Whether so many flows may have been opened by so many packets.
    fn check(self, opened: u64, packets: u64) -> Result<()> {
        let may = match self {
            Self::None => 0..=packets / STRAY,
            Self::All => packets - packets / STRAY..=packets,
            Self::First => 0..=packets / 4,
        };
        ensure!(
            may.contains(&opened),
            "{packets} packets opened {opened} flows, which should be {may:?}: the figure would be \
             of another way"
        );
        Ok(())
    }
}

fn figure(
    packet: &'static str,
    way: &'static str,
    version: u8,
    flows: u32,
    over: Vec<f64>,
) -> Result<Figure> {
    Ok(Figure {
        packet,
        way,
        version,
        flows,
        over_empty: Spread::of(over).context("no readings")?,
    })
}
