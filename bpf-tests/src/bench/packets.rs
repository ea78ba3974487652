//! `packets`: nanoseconds for each packet.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use datapath_common::{Group, Hook, Reason};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::datapath::Datapath;
use super::report::{Figure, Method, Report};
use super::sample::Spread;
use super::scaffold::{PRIMED, Scaffold};
use super::scenes::{self, Repeats, Scene, Table};
use super::setup::Setup;
use super::{forward, outside, worlds, yard};
use crate::cases::{Fixture, NOW};
use crate::model::Verdict;

/// Rounds in one test run.
const REPEAT: u32 = 1000;
/// The same at XDP, for so many fewer test runs: the kernel waits for all CPUs
/// before and after each.
const XDP_TIMES: u32 = 25;
/// Test runs of one round for one of many.
const SINGLES: u32 = 10;
/// Times that all scenes are gone through, each with every number of services
/// in turn: a noisy second on the machine does not fall on one figure alone.
const PASSES: u32 = 5;
/// Flows that are opened before a table with room is emptied again. It has
/// room for four times as many.
const ROOM: u32 = 16_000;
/// The same where each takes a port for its source, of 20,000: nine of ten
/// find theirs at the first try.
const TRANSLATED: u32 = 2_000;
/// Flows that fill every table.
const FILL: u32 = 200_000;

/// The name of what XDP sends on, for `--filter`.
const FORWARDED: &str = "services by XDP";

/// Nanoseconds for each packet of each program on its main ways
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,
    /// Readings of each figure: each is the mean of 1,000 packets, beside one of the empty program
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(20..=20_000))]
    rounds: u32,
    /// Numbers of services in the tables
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000, 50_000], value_parser = clap::value_parser!(u32).range(1..=60_000))]
    services: Vec<u32>,
    /// Only packets with this in their names: `pod_from v4`, `overlay`
    #[arg(long)]
    filter: Option<String>,
    /// Write a plot (SVG) into this directory, and a line that shows it after its table
    #[arg(long)]
    plots: Option<PathBuf>,
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let report = measure(args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        let plots = args.plots.as_deref();
        let plot = plots.filter(|_| !report.forwarded.is_empty());
        let line = plot.map(|directory| forward::draw(&report.forwarded, directory));
        print!(
            "{}",
            report.markdown(&line.transpose()?.unwrap_or_default())
        );
    }
    Ok(())
}

/// Measures.
pub fn measure(args: &Args) -> Result<Report> {
    pin()?;
    let (v4, v6) = (Fixture::new(false), Fixture::new(true));
    let mut all = scenes::scenes(&v4)?;
    all.extend(scenes::scenes(&v6)?);
    let mut scenes = all.clone();
    let forwards = args.filter.as_ref().is_none_or(|f| FORWARDED.contains(f));
    if let Some(filter) = &args.filter {
        scenes.retain(|scene| label(scene).contains(filter.as_str()));
        ensure!(
            !scenes.is_empty() || forwards,
            "no packet's name contains {filter:?}"
        );
    }
    let mut report = Report::new()?;
    report.yardsticks = yard::measure()?;
    if forwards {
        report.forwarded = forward::measure().context(FORWARDED)?;
    }
    if scenes.is_empty() {
        return Ok(report);
    }
    eprintln!("filling the tables …");
    let mut benches = Vec::new();
    for services in &args.services {
        let mut world = worlds::world(&v4, &v6, *services - 1);
        scenes::add_deciding(&mut world, &v4);
        scenes::add_deciding(&mut world, &v6);
        outside::add_node_ports(&mut world, &v4)?;
        outside::add_node_ports(&mut world, &v6)?;
        let bench = Bench::new(Datapath::load(&world)?, &scenes)?;
        report.sizes = bench.datapath.sizes()?;
        let readings: Vec<Readings> = scenes.iter().map(|_| Readings::default()).collect();
        benches.push((bench, readings));
    }
    for pass in 0..PASSES {
        eprintln!("pass {} of {PASSES} …", pass + 1);
        for (at, scene) in scenes.iter().enumerate() {
            let primer = primer(&all, scene);
            for (bench, readings) in &mut benches {
                bench
                    .scene(
                        scene,
                        primer,
                        args.rounds.div_ceil(PASSES),
                        &mut readings[at],
                    )
                    .with_context(|| label(scene))?;
            }
        }
    }
    for (services, (_, readings)) in args.services.iter().zip(benches) {
        for (scene, readings) in scenes.iter().zip(readings) {
            report.figures.extend(readings.figures(scene, *services));
        }
    }
    Ok(report)
}

/// The scene whose rounds go before a scene.
fn primer<'a>(all: &'a [Scene], scene: &Scene) -> Option<&'a Scene> {
    let Repeats::After(name) = scene.repeats else {
        return None;
    };
    all.iter().find(|other| {
        other.name == name
            && other.program() == scene.program()
            && other.setup == scene.setup
            && other.version() == scene.version()
    })
}

/// The name that `--filter` looks at.
fn label(scene: &Scene) -> String {
    format!("{} v{}: {}", scene.program(), scene.version(), scene.name)
}

/// Ties the thread to the last of its CPUs: most interrupts go to the first.
fn pin() -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("ask for the thread's CPUs")?;
    let last = (0..CpuSet::count()).rfind(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.context("the thread may run on no CPU")?)?;
    sched_setaffinity(Pid::from_raw(0), &one).context("tie the thread to a CPU")
}

/// Readings of one scene.
#[derive(Default)]
struct Readings {
    /// Many rounds; of the primer if the scene has one.
    looped: Pairs,
    /// Nanoseconds over a round of the primer.
    over_primer: Vec<f64>,
    single: Pairs,
}

/// Readings of a program, each beside one of the empty program.
#[derive(Default)]
struct Pairs {
    over: Vec<f64>,
    empty: Vec<f64>,
}

impl Readings {
    fn figures(self, scene: &Scene, services: u32) -> Vec<Figure> {
        let figure = |method, over_empty: Spread, empty: Vec<f64>| {
            Some(Figure {
                program: scene.program(),
                packet: scene.name,
                version: scene.version(),
                services,
                method,
                over_empty,
                empty: Spread::of(empty)?.middle,
            })
        };
        let looped =
            Spread::of(self.looped.over).and_then(|over| match Spread::of(self.over_primer) {
                Some(more) => figure(Method::Primed, more.shifted(over.middle), self.looped.empty),
                None => figure(Method::Loop, over, self.looped.empty),
            });
        let single = Spread::of(self.single.over)
            .and_then(|over| figure(Method::Single, over, self.single.empty));
        looped.into_iter().chain(single).collect()
    }
}

struct Bench {
    datapath: Datapath,
    scaffolds: Vec<Place>,
}

/// A program under test, and what runs it.
struct Place {
    setup: Setup,
    hook: Hook,
    twin: bool,
    under_test: Scaffold,
    empty: Scaffold,
}

impl Place {
    fn is_of(&self, scene: &Scene) -> bool {
        (self.setup, self.hook, self.twin) == (scene.setup, scene.hook, scene.twin)
    }
}

impl Bench {
    /// With a place for each of these scenes.
    fn new(datapath: Datapath, scenes: &[Scene]) -> Result<Self> {
        let mut scaffolds: Vec<Place> = Vec::new();
        for scene in scenes {
            if scaffolds.iter().any(|place| place.is_of(scene)) {
                continue;
            }
            let Scene {
                setup, hook, twin, ..
            } = *scene;
            let program = if twin {
                datapath.twin()?
            } else {
                datapath.fd(setup, hook)?
            };
            let place = Place {
                setup,
                hook,
                twin,
                under_test: Scaffold::new(hook, Some(program))?,
                empty: Scaffold::new(hook, None)?,
            };
            scaffolds.push(place);
        }
        Ok(Self {
            datapath,
            scaffolds,
        })
    }

    /// The place of a scene.
    fn place(&mut self, scene: &Scene) -> Result<&mut Place> {
        let found = self.scaffolds.iter_mut().find(|place| place.is_of(scene));
        found.context("no scaffold for this packet")
    }

    /// One pass over a scene.
    fn scene(
        &mut self,
        scene: &Scene,
        primer: Option<&Scene>,
        rounds: u32,
        readings: &mut Readings,
    ) -> Result<()> {
        self.datapath.set_flows(&scene.flows, NOW)?;
        let before = self.datapath.counts(scene.hook)?;
        let service = scene.flows.first().map_or(0, |(_, row)| row.service);
        let served = self.datapath.served(service)?;
        let mut packets = 0;
        let mut primers = 0;
        match (scene.repeats, primer) {
            (Repeats::Always, _) => packets += self.looped(scene, rounds, &mut readings.looped)?,
            (Repeats::After(_), Some(primer)) => {
                primers += self.looped(primer, rounds, &mut readings.looped)?;
                let times = rounds * SINGLES;
                let (last, before_it) =
                    self.primed(scene, primer, times, &mut readings.over_primer)?;
                packets += last;
                primers += before_it;
            }
            (Repeats::After(name), None) => bail!("no scene is called {name:?}"),
            (Repeats::Never, _) => {}
        }
        // The same packet again would be no new flow.
        if scene.table == Table::Quiet {
            packets += self.single(scene, rounds * SINGLES, &mut readings.single)?;
        }
        let after = self.datapath.counts(scene.hook)?;
        for ((reason, before), (_, after)) in before.iter().zip(after) {
            let expected = match primer {
                _ if *reason == scene.reason => packets,
                Some(primer) if *reason == primer.reason => primers,
                _ => 0,
            };
            ensure!(
                after - before == expected,
                "{expected} packets should have been counted as {}, and {} were: the figures would \
                 be of another way",
                reason.label(),
                after - before
            );
        }
        let expected = match scene.setup {
            Setup::Plain | Setup::Serving => 0,
            Setup::Counting => packets,
        };
        let served = self.datapath.served(service)? - served;
        ensure!(
            served == expected,
            "{expected} packets should have been counted for the service, and {served} were"
        );
        self.check_rows(scene)
    }

    /// Whether packets of known flows opened none, and new flows those that
    /// they should.
    fn check_rows(&mut self, scene: &Scene) -> Result<()> {
        match scene.table {
            Table::Quiet => {
                let (rows, _) = self.datapath.rows()?;
                let expected = scene.flows.len();
                ensure!(
                    rows == expected,
                    "the flow table has {rows} rows, not {expected}"
                );
            }
            Table::Translated => {
                let (rows, translated) = self.datapath.rows()?;
                ensure!(
                    rows > 0 && rows == translated,
                    "{translated} of {rows} rows have a translated source"
                );
            }
            Table::Room | Table::Full => {}
        }
        Ok(())
    }

    /// Readings of a round of `scene` over one of `primer`, of which so many go
    /// before it that the caches know the way. Returns the packets of both.
    fn primed(
        &mut self,
        scene: &Scene,
        primer: &Scene,
        times: u32,
        over: &mut Vec<f64>,
    ) -> Result<(u64, u64)> {
        let scaffold = &mut self.place(scene)?.under_test;
        let mut run = |last: &Scene| {
            scaffold.set_primed(&last.rounds, &primer.rounds.frame)?;
            let reading = scaffold.run(&last.rounds.frame, PRIMED)?;
            check_return(last, reading.ret)?;
            anyhow::Ok(reading.nanos)
        };
        for time in 0..times {
            let (last, without) = if time % 2 == 0 {
                (run(scene)?, run(primer)?)
            } else {
                let without = run(primer)?;
                (run(scene)?, without)
            };
            over.push(f64::from(PRIMED) * (last - without));
        }
        let (times, primed) = (u64::from(times), u64::from(PRIMED));
        Ok((times, times * (2 * primed - 1)))
    }

    /// Readings of many rounds each. Returns the packets.
    fn looped(&mut self, scene: &Scene, rounds: u32, pairs: &mut Pairs) -> Result<u64> {
        let (repeat, rounds) = match scene.hook {
            Hook::Xdp => (REPEAT * XDP_TIMES, rounds.div_ceil(XDP_TIMES)),
            _ => (REPEAT, rounds),
        };
        let room = match scene.table {
            Table::Room => ROOM,
            Table::Translated => TRANSLATED,
            Table::Quiet | Table::Full => u32::MAX,
        };
        let place = self.place(scene)?;
        place.under_test.set(&scene.rounds)?;
        place.empty.set(&scene.rounds)?;
        let frame = &scene.rounds.frame;
        let mut packets = 0;
        let mut opened = 0;
        if scene.table == Table::Full {
            place.under_test.run(frame, FILL)?;
            packets += u64::from(FILL);
        }
        for round in 0..rounds {
            if opened + repeat > room {
                self.datapath.set_flows(&scene.flows, NOW)?;
                opened = 0;
            }
            let Place {
                under_test, empty, ..
            } = self.place(scene)?;
            let run = |scaffold: &Scaffold| scaffold.run(frame, repeat);
            let (full, floor) = if round % 2 == 0 {
                (run(under_test)?, run(empty)?)
            } else {
                let floor = run(empty)?;
                (run(under_test)?, floor)
            };
            check_return(scene, full.ret)?;
            if room != u32::MAX {
                opened += repeat;
            }
            packets += u64::from(repeat);
            pairs.over.push(full.nanos - floor.nanos);
            if round % 4 == 0 {
                pairs.empty.push(empty.run_empty(frame, repeat)?.nanos);
            }
        }
        Ok(packets)
    }

    /// Readings of one round each. Returns the packets.
    fn single(&mut self, scene: &Scene, rounds: u32, pairs: &mut Pairs) -> Result<u64> {
        let frame = &scene.rounds.frame;
        let place = self.scaffolds.iter().find(|place| place.is_of(scene));
        let empty = &place.context("no scaffold for this packet")?.empty;
        for round in 0..rounds {
            let run = || {
                if scene.twin {
                    self.datapath.run_twin_once(frame)
                } else {
                    self.datapath.run_once(scene.setup, scene.hook, frame)
                }
            };
            let (full, floor) = if round % 2 == 0 {
                (run()?, empty.run_empty(frame, 1)?)
            } else {
                let floor = empty.run_empty(frame, 1)?;
                (run()?, floor)
            };
            check_return(scene, full.ret)?;
            pairs.over.push(full.nanos - floor.nanos);
            pairs.empty.push(floor.nanos);
        }
        Ok(u64::from(rounds))
    }
}

fn check_return(scene: &Scene, ret: i32) -> Result<()> {
    // A redirect shows without its target, so any stands for all.
    let verdict = match scene.reason.group() {
        Group::Dropped => Verdict::Drop,
        Group::Passed => Verdict::Kernel,
        Group::Forwarded | Group::Refused => match (scene.hook, scene.reason) {
            (Hook::Xdp | Hook::PodTo, _)
            | (Hook::NicOut, Reason::Masqueraded | Reason::ReplyTranslated) => Verdict::Kernel,
            _ => Verdict::RedirectPeer { ifindex: 0 },
        },
    };
    let expected = verdict.code(scene.hook);
    ensure!(
        ret == expected,
        "the program returned {ret}, not {expected}"
    );
    Ok(())
}
