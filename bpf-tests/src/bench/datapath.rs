//! The programs as the agent loads them, and their tables.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap as BpfHash, PerCpuArray};
use aya::programs::{ProgramFd, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use datapath_common::{
    Config, Counter, Flow, FlowKey, Hook, Ip4, Ip6, Part, Reason, Traffic, counter_index, maps,
};
use serde::Serialize;

use super::scaffold::{self, Reading, run};
use super::setup::Setup;
use crate::engine::tables::{self, Family};
use crate::engine::{fill, object, table};
use crate::model::{FlowId, FlowRow, World};
use crate::time::{Aged, tick};

/// Frontend rows that there is room for: a service takes two.
const FRONTENDS: u32 = 131_072;

/// The twin's program.
const TWIN: &str = "bench_twin";

/// The programs of every setup, upon one set of maps.
pub struct Datapath {
    /// The maps, and the programs of [`Setup::Plain`].
    ebpf: Ebpf,
    /// The programs of the other setups.
    others: Vec<(Setup, Ebpf)>,
    /// The twin.
    twin: Ebpf,
    ahead: u32,
}

/// A program as the verifier left it.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Its name.
    pub program: String,
    /// Octets after the verifier's rewriting.
    pub xlated_octets: Option<u32>,
    /// Instructions that the verifier walked, over all paths.
    pub verified_instructions: Option<u32>,
}

/// The program of a hook.
pub fn program_name(hook: Hook) -> String {
    format!("tulle_{}", hook.name())
}

impl Datapath {
    /// Loads the object once for each setup and fills the tables.
    pub fn load(world: &World) -> Result<Self> {
        let object = object()?;
        let config = Setup::Plain.config(&world.config);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("CONFIG", &config, true)
            .map_max_entries(maps::FRONT_V4, FRONTENDS)
            .map_max_entries(maps::FRONT_V6, FRONTENDS);
        let mut ebpf = loader.load(&object).context("load the object")?;
        crate::load::datapath(&mut ebpf)?;
        let ahead = world.now.wrapping_sub(tick(false)?);
        fill(&mut ebpf, world, ahead)?;
        let names: Vec<_> = maps::ALL.iter().map(|map| map.name).collect();
        let mut others = Vec::new();
        for setup in Setup::ALL {
            if setup != Setup::Plain {
                let config = setup.config(&world.config);
                let other = upon_maps(&ebpf, &names, &config, &object);
                let mut other = other.with_context(|| format!("load the object, {setup:?}"))?;
                crate::load::datapath(&mut other)?;
                others.push((setup, other));
            }
        }
        let twin = upon_maps(&ebpf, &scaffold::TWIN_MAPS, &config, &scaffold::object()?);
        let mut twin = twin.context("load the twin")?;
        crate::load::program(&mut twin, TWIN)?;
        Ok(Self {
            ebpf,
            others,
            twin,
            ahead,
        })
    }

    /// The object that holds a setup's programs.
    fn of(&self, setup: Setup) -> &Ebpf {
        let other = self.others.iter().find(|(other, _)| *other == setup);
        other.map_or(&self.ebpf, |(_, ebpf)| ebpf)
    }

    /// The twin of `tulle_pod_from`, for a tail call.
    pub fn twin(&self) -> Result<&ProgramFd> {
        let program = self.twin.program(TWIN).context("no twin")?;
        Ok(<&SchedClassifier>::try_from(program)?.fd()?)
    }

    /// Runs the twin on one packet, once.
    pub fn run_twin_once(&self, frame: &[u8]) -> Result<Reading> {
        let program = self.twin.program(TWIN).context("no twin")?;
        run(<&SchedClassifier>::try_from(program)?, frame, 1)
    }

    /// A setup's program of a hook, for a tail call.
    pub fn fd(&self, setup: Setup, hook: Hook) -> Result<&ProgramFd> {
        let program = self.of(setup).program(&program_name(hook));
        let program = program.with_context(|| format!("no program for {}", hook.name()))?;
        if hook == Hook::Xdp {
            Ok(<&Xdp>::try_from(program)?.fd()?)
        } else {
            Ok(<&SchedClassifier>::try_from(program)?.fd()?)
        }
    }

    /// Runs a program on one packet, once.
    pub fn run_once(&self, setup: Setup, hook: Hook, frame: &[u8]) -> Result<Reading> {
        let program = self.of(setup).program(&program_name(hook));
        let program = program.with_context(|| format!("no program for {}", hook.name()))?;
        if hook == Hook::Xdp {
            run(<&Xdp>::try_from(program)?, frame, 1)
        } else {
            run(<&SchedClassifier>::try_from(program)?, frame, 1)
        }
    }

    /// What the verifier made of each program as the agent loads it by default.
    pub fn sizes(&self) -> Result<Vec<Size>> {
        let mut sizes = Vec::new();
        let names = Hook::ALL.map(program_name).into_iter();
        let parts = Part::ALL.iter().map(|part| part.program().to_owned());
        for name in names.chain(parts) {
            let program = self.of(Setup::Counting).program(&name);
            let program = program.with_context(|| format!("the object has no program {name}"))?;
            let info = program.info()?;
            sizes.push(Size {
                program: name,
                xlated_octets: info.size_translated(),
                verified_instructions: info.verified_instruction_count(),
            });
        }
        Ok(sizes)
    }

    /// Makes the flow tables hold these rows and no others. Rows are seen now,
    /// as far as they say `now`.
    pub fn set_flows(&mut self, flows: &[(FlowId, FlowRow)], now: u32) -> Result<()> {
        self.ahead = now.wrapping_sub(tick(false)?);
        set_family::<Ip4>(&mut self.ebpf, flows, self.ahead)?;
        set_family::<Ip6>(&mut self.ebpf, flows, self.ahead)
    }

    /// Rows of both flow tables, and how many of them have a translated source.
    pub fn rows(&mut self) -> Result<(usize, usize)> {
        let (v4, v6) = (
            count_family::<Ip4>(&mut self.ebpf)?,
            count_family::<Ip6>(&mut self.ebpf)?,
        );
        Ok((v4.0 + v6.0, v4.1 + v6.1))
    }

    /// Packets that were counted for a service port, either way.
    pub fn served(&mut self, service: u32) -> Result<u64> {
        let traffic: PerCpuArray<_, Traffic> = table(&mut self.ebpf, maps::SVC_STATS)?;
        let rows = traffic.get(&service, 0)?;
        Ok(rows.iter().map(|row| row.packets + row.reply_packets).sum())
    }

    /// Packets that left a program, for each reason, over all CPUs.
    pub fn counts(&mut self, hook: Hook) -> Result<Vec<(Reason, u64)>> {
        let counters: PerCpuArray<_, Counter> = table(&mut self.ebpf, maps::COUNTERS)?;
        let mut counts = Vec::new();
        for reason in Reason::ALL {
            let rows = counters.get(&counter_index(hook, *reason), 0)?;
            counts.push((*reason, rows.iter().map(|row| row.packets).sum()));
        }
        Ok(counts)
    }
}

/// An object upon the maps of `ebpf` that have these names, its programs not
/// loaded yet. For this the maps are pinned as long as it takes.
fn upon_maps(ebpf: &Ebpf, names: &[&str], config: &Config, object: &[u8]) -> Result<Ebpf> {
    let pins = Path::new("/sys/fs/bpf").join(format!("tulle-bench-{}", std::process::id()));
    std::fs::create_dir(&pins).with_context(|| format!("make {}", pins.display()))?;
    let made = upon_pins(ebpf, names, config, object, &pins);
    let removed = std::fs::remove_dir_all(&pins);
    let made = made?;
    removed.with_context(|| format!("remove {}", pins.display()))?;
    Ok(made)
}

fn upon_pins(
    ebpf: &Ebpf,
    names: &[&str],
    config: &Config,
    object: &[u8],
    pins: &Path,
) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", config, true);
    for name in names {
        let pin = pins.join(name);
        let map = ebpf.map(name);
        let map = map.with_context(|| format!("the object has no map {name}"))?;
        map.pin(&pin).with_context(|| format!("pin {name}"))?;
        loader.map_pin_path(name, pin);
    }
    Ok(loader.load(object)?)
}

fn set_family<A: Family>(ebpf: &mut Ebpf, rows: &[(FlowId, FlowRow)], ahead: u32) -> Result<()>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let mut flows: BpfHash<_, FlowKey<A>, Flow<A>> = table(ebpf, A::FLOWS)?;
    for key in flows.keys().collect::<Result<Vec<_>, _>>()? {
        flows.remove(&key)?;
    }
    for (key, row) in rows
        .iter()
        .filter_map(|(id, row)| tables::flow::<A>(id, row))
    {
        flows.insert(key, row.aged(ahead), 0)?;
    }
    Ok(())
}

fn count_family<A: Family>(ebpf: &mut Ebpf) -> Result<(usize, usize)>
where
    FlowKey<A>: aya::Pod,
    Flow<A>: aya::Pod,
{
    let flows: BpfHash<_, FlowKey<A>, Flow<A>> = table(ebpf, A::FLOWS)?;
    let (mut all, mut translated) = (0, 0);
    for entry in &flows {
        let (_, row) = entry?;
        all += 1;
        translated += usize::from(row.nat_port != 0);
    }
    Ok((all, translated))
}
