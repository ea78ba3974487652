//! The programs as the agent loads them, and their tables.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap as BpfHash, PerCpuArray};
use aya::programs::{ProgramFd, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use datapath_common::{Counter, Flow, FlowKey, Hook, Ip4, Ip6, Reason, counter_index, maps};
use serde::Serialize;

use super::scaffold::{self, Reading, run};
use crate::engine::tables::{self, Family};
use crate::engine::{fill, object, table};
use crate::model::{FlowId, FlowRow, World};
use crate::time::{Aged, tick};

/// Frontend rows that there is room for: a service takes two.
const FRONTENDS: u32 = 131_072;

/// The twin's program.
const TWIN: &str = "bench_twin";

/// A loaded object.
pub struct Datapath {
    ebpf: Ebpf,
    /// The twin, upon the same maps.
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
    /// Loads the object and fills its tables.
    pub fn load(world: &World) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader
            .override_global("CONFIG", &world.config, true)
            .map_max_entries(maps::FRONT_V4, FRONTENDS)
            .map_max_entries(maps::FRONT_V6, FRONTENDS);
        let mut ebpf = loader.load(&object()?).context("load the object")?;
        for hook in Hook::ALL {
            crate::load::program(&mut ebpf, &program_name(hook))?;
        }
        let ahead = world.now.wrapping_sub(tick(false)?);
        fill(&mut ebpf, world, ahead)?;
        let twin = load_twin(&ebpf, world).context("load the twin")?;
        Ok(Self { ebpf, twin, ahead })
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

    /// The program of a hook, for a tail call.
    pub fn fd(&self, hook: Hook) -> Result<&ProgramFd> {
        let program = self.ebpf.program(&program_name(hook));
        let program = program.with_context(|| format!("no program for {}", hook.name()))?;
        if hook == Hook::Xdp {
            Ok(<&Xdp>::try_from(program)?.fd()?)
        } else {
            Ok(<&SchedClassifier>::try_from(program)?.fd()?)
        }
    }

    /// Runs a program on one packet, once.
    pub fn run_once(&self, hook: Hook, frame: &[u8]) -> Result<Reading> {
        let program = self.ebpf.program(&program_name(hook));
        let program = program.with_context(|| format!("no program for {}", hook.name()))?;
        if hook == Hook::Xdp {
            run(<&Xdp>::try_from(program)?, frame, 1)
        } else {
            run(<&SchedClassifier>::try_from(program)?, frame, 1)
        }
    }

    /// What the verifier made of each program.
    pub fn sizes(&self) -> Result<Vec<Size>> {
        let mut sizes = Vec::new();
        for hook in Hook::ALL {
            let name = program_name(hook);
            let program = self.ebpf.program(&name);
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

/// Loads the twin upon the maps of `ebpf`. For this they are pinned as long as it takes.
fn load_twin(ebpf: &Ebpf, world: &World) -> Result<Ebpf> {
    let pins = Path::new("/sys/fs/bpf").join(format!("tulle-bench-{}", std::process::id()));
    std::fs::create_dir(&pins).with_context(|| format!("make {}", pins.display()))?;
    let loaded = upon_pins(ebpf, world, &pins);
    let removed = std::fs::remove_dir_all(&pins);
    let twin = loaded?;
    removed.with_context(|| format!("remove {}", pins.display()))?;
    Ok(twin)
}

fn upon_pins(ebpf: &Ebpf, world: &World, pins: &Path) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", &world.config, true);
    for name in scaffold::TWIN_MAPS {
        let pin = pins.join(name);
        let map = ebpf.map(name);
        let map = map.with_context(|| format!("the object has no map {name}"))?;
        map.pin(&pin).with_context(|| format!("pin {name}"))?;
        loader.map_pin_path(name, pin);
    }
    let mut twin = loader.load(&scaffold::object()?)?;
    crate::load::program(&mut twin, TWIN)?;
    Ok(twin)
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
