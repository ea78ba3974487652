//! What runs a program on one packet many times, and what it is compared with.

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use datapath_common::{Hook, maps};

use crate::engine::table;

#[allow(dead_code, reason = "the programs use all of it, this side most")]
#[path = "../../../datapath-ebpf/bench/scene.rs"]
mod layout;

pub use layout::{FRAME, TIMES, YARD_KEY};

/// Rounds of which the last is the measured one where the scaffold cannot
/// restore what the program does; a power of two.
pub const PRIMED: u32 = 8;

/// What the scaffold has to restore besides the frame's octets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restore {
    /// Nothing.
    Octets,
    /// Octets at the front.
    Head,
    /// The length at the end.
    Tail,
}

/// What differs between rounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vary {
    /// Nothing.
    Nothing,
    /// Source address and port.
    Source,
}

/// A packet as the scaffold makes it each round.
#[derive(Clone, Debug)]
pub struct Rounds {
    /// The frame, of [`FRAME`] octets.
    pub frame: Vec<u8>,
    /// What is to be restored.
    pub restore: Restore,
    /// What differs.
    pub vary: Vary,
    /// The packet is IPv6.
    pub v6: bool,
}

/// One load of the scaffold, with one target.
pub struct Scaffold {
    ebpf: Ebpf,
    xdp: bool,
}

/// The result of one test run.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Nanoseconds for each round by the kernel's own measure.
    pub nanos: f64,
    /// What the last round returned.
    pub ret: i32,
}

/// The object's bytes: the file that `TULLE_BENCH_OBJECT` names, otherwise
/// where the build leaves it.
pub fn object() -> Result<Vec<u8>> {
    let built = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/bpf/tulle-bench.bpf.o"
    );
    let path = std::env::var("TULLE_BENCH_OBJECT").unwrap_or_else(|_| built.to_owned());
    std::fs::read(&path).with_context(|| format!("read {path}: run `cargo xtask bench`"))
}

/// The maps of the programs that the twin uses.
pub const TWIN_MAPS: [&str; 8] = [
    maps::FRONT_V4,
    maps::SEGMENTS,
    maps::BACK_V4,
    maps::FLOW_V4,
    maps::PODS_V4,
    maps::PEERS_V4,
    maps::COUNTERS,
    maps::MONITOR,
];

/// Loads the object for what is not the twin: the twin's maps are small and stay empty.
pub fn load() -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    for name in TWIN_MAPS {
        loader.map_max_entries(name, 64);
    }
    loader.load(&object()?).context("load the scaffold")
}

impl Scaffold {
    /// A scaffold for the type of a hook's program, with the empty program as
    /// its target unless another is given.
    pub fn new(hook: Hook, target: Option<&ProgramFd>) -> Result<Self> {
        let xdp = hook == Hook::Xdp;
        let mut ebpf = load()?;
        let names = if xdp {
            ["bench_xdp", "bench_xdp_empty"]
        } else {
            ["bench_skb", "bench_skb_empty"]
        };
        for name in names {
            crate::load::program(&mut ebpf, name)?;
        }
        let own = match target {
            Some(fd) => fd.try_clone()?,
            None => fd_of(&ebpf, xdp, names[1])?,
        };
        let next = if xdp {
            "bench_xdp_next"
        } else {
            "bench_skb_next"
        };
        let mut next: ProgramArray<_> = table(&mut ebpf, next)?;
        next.set(0, &own, 0).context("set the scaffold's target")?;
        Ok(Self { ebpf, xdp })
    }

    /// Sets the packet of every round.
    pub fn set(&mut self, rounds: &Rounds) -> Result<()> {
        self.set_primed(rounds, &rounds.frame)
    }

    /// Sets the packet of every round, which has one flow after the other from number `first`
    /// on, or any of `among` by chance.
    pub fn set_flows(&mut self, rounds: &Rounds, first: u32, among: Option<u32>) -> Result<()> {
        self.set(rounds)?;
        let mut scene: Array<_, [u64; layout::WORDS]> = table(&mut self.ebpf, "bench_scene")?;
        let mut row = scene.get(&0, 0)?;
        row[layout::ROUNDS] = u64::from(first);
        row[layout::FLOWS] = among.map_or(0, u64::from);
        Ok(scene.set(0, row, 0)?)
    }

    /// The scaffold's own program that does the least with which a packet is sent through the
    /// overlay, instead of a target.
    pub fn constant() -> Result<Self> {
        let mut scaffold = Self::new(Hook::Xdp, None)?;
        let name = "bench_xdp_constant";
        crate::load::program(&mut scaffold.ebpf, name)?;
        let target = fd_of(&scaffold.ebpf, true, name)?;
        let mut next: ProgramArray<_> = table(&mut scaffold.ebpf, "bench_xdp_next")?;
        next.set(0, &target, 0)
            .context("set the scaffold's target")?;
        Ok(scaffold)
    }

    /// Sets the packet of every [`PRIMED`]th round, and the primer's frame,
    /// which is the packet of all others.
    pub fn set_primed(&mut self, rounds: &Rounds, primer: &[u8]) -> Result<()> {
        let mut row = [0_u64; layout::WORDS];
        for (at, frame) in [(0, rounds.frame.as_slice()), (layout::FRAME_WORDS, primer)] {
            ensure!(
                frame.len() == FRAME,
                "a frame of {} octets, not {FRAME}",
                frame.len()
            );
            for (word, octets) in row[at..].iter_mut().zip(frame.chunks_exact(8)) {
                *word = u64::from_ne_bytes(octets.try_into()?);
            }
        }
        row[layout::MASK] = u64::from(PRIMED - 1);
        row[layout::RESTORE] = match rounds.restore {
            Restore::Octets => layout::RESTORE_BYTES,
            Restore::Head => layout::RESTORE_HEAD,
            Restore::Tail => layout::RESTORE_TAIL,
        };
        row[layout::VARY] = match (rounds.vary, rounds.v6) {
            (Vary::Nothing, _) => layout::VARY_NOTHING,
            (Vary::Source, false) => layout::VARY_V4,
            (Vary::Source, true) => layout::VARY_V6,
        };
        let mut scene: Array<_, [u64; layout::WORDS]> = table(&mut self.ebpf, "bench_scene")?;
        Ok(scene.set(0, row, 0)?)
    }

    /// Runs so many rounds.
    pub fn run(&self, frame: &[u8], repeat: u32) -> Result<Reading> {
        self.program(
            if self.xdp { "bench_xdp" } else { "bench_skb" },
            frame,
            repeat,
        )
    }

    /// Runs the empty program itself, without scaffold.
    pub fn run_empty(&self, frame: &[u8], repeat: u32) -> Result<Reading> {
        let name = if self.xdp {
            "bench_xdp_empty"
        } else {
            "bench_skb_empty"
        };
        self.program(name, frame, repeat)
    }

    fn program(&self, name: &str, frame: &[u8], repeat: u32) -> Result<Reading> {
        let program = self.ebpf.program(name);
        let program = program.with_context(|| format!("no program {name}"))?;
        if self.xdp {
            run(<&Xdp>::try_from(program)?, frame, repeat)
        } else {
            run(<&SchedClassifier>::try_from(program)?, frame, repeat)
        }
    }
}

fn fd_of(ebpf: &Ebpf, xdp: bool, name: &str) -> Result<ProgramFd> {
    let program = ebpf.program(name);
    let program = program.with_context(|| format!("no program {name}"))?;
    let fd = if xdp {
        <&Xdp>::try_from(program)?.fd()?
    } else {
        <&SchedClassifier>::try_from(program)?.fd()?
    };
    Ok(fd.try_clone()?)
}

/// A test run of a loaded program.
pub fn run<'a, P>(program: &P, frame: &'a [u8], repeat: u32) -> Result<Reading>
where
    P: TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>,
{
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.repeat = repeat;
    let result = program.test_run(options).context("test run")?;
    Ok(Reading {
        nanos: result.duration.as_nanos() as f64,
        ret: result.return_value.cast_signed(),
    })
}
