//! Packets on one CPU, changes of services on the other: the agent's own plan, writes and maps.
//! Needs root and two CPUs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

mod kernel_support;
mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Map, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use bpf_tests::packet::{Spec, Upper, tcp_flag};
use datapath_common::{
    Backend, BackendState, Config, Feature, Frontend, FrontendKey, Ip4, Traffic, Via, maps, proto,
};
use kernel_support::{Node, on_node, options};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use support::balanced::{here, object, service, slice};
use support::{batch, facts};
use tulle_agent::kernel::loader::OBJECT;
use tulle_agent::kernel::{AttachKind, Capacities, Datapath, FlowGc, Maps, now_ticks};
use tulle_agent::model::{Choice, Family, Object, Scheduler};
use tulle_agent::plan::{self, Applied, GRACE, Here, MapOp, MapWriter, Planner, WriteError};
use tulle_agent::source::Change;

/// How long it lasts by its own time; there is a change of the first service for each millisecond.
const STORM: Duration = Duration::from_secs(8);
/// Services, of which the first one is in the storm and the others come and go with it.
const SERVICES: u8 = 6;
/// Endpoints of each, by their last octets.
const HOSTS: u8 = 160;
/// How long after it left a service a backend may still be selected, unless the agent's CPU
/// was another's meanwhile.
const LATE: Duration = Duration::from_millis(100);
/// A backend that slots name which nobody may read: id and address.
const POISON: (u32, [u8; 4]) = (4095, [10, 66, 66, 66]);
/// Where a frame has its addresses.
const SRC: usize = 14 + 12;
const DST: usize = 14 + 16;
const SPORT: usize = 14 + 20;
/// Packets that are sent in one go.
const REPEAT: u32 = 200;
/// Slots of Maglev tables.
const MAGLEV: u16 = 251;

/// A thread's own time: without that in which it could run and its CPU was another's, as on
/// a machine that is busy. What is late by this is late by itself.
struct OwnTime {
    began: Instant,
    waited: Duration,
}

impl OwnTime {
    fn start() -> Self {
        let waited = Self::waited();
        Self {
            began: Instant::now(),
            waited,
        }
    }

    fn elapsed(&self) -> Duration {
        let elapsed = self.began.elapsed();
        elapsed.saturating_sub(Self::waited().saturating_sub(self.waited))
    }

    /// How long this thread has waited for its CPU since it is there.
    fn waited() -> Duration {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let waited = stat.split_whitespace().nth(1).unwrap();
        Duration::from_nanos(waited.parse().unwrap())
    }
}

/// What is known of an endpoint of a service, in nanoseconds since the beginning.
struct Member {
    /// When the change was handed over by which it left; [`IN`] while it is in the service.
    left: AtomicU64,
    /// When that change had been carried out; [`IN`] until then.
    gone: AtomicU64,
}

/// The endpoints of all services.
struct Members {
    began: Instant,
    all: Vec<Member>,
}

const IN: u64 = u64::MAX;
/// Never was in the service.
const NEVER: u64 = 0;

impl Members {
    fn new() -> Self {
        let member = |_| Member {
            left: AtomicU64::new(NEVER),
            gone: AtomicU64::new(NEVER),
        };
        Self {
            began: Instant::now(),
            all: (0..usize::from(SERVICES + 1) * 256).map(member).collect(),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn at(&self, service: u8, host: u8) -> &Member {
        &self.all[usize::from(service) * 256 + usize::from(host)]
    }

    /// The service is to have these endpoints from now on.
    fn set(&self, service: u8, hosts: &[u8]) {
        let now = self.now();
        for host in 1..=HOSTS {
            let Member { left, gone } = self.at(service, host);
            if hosts.contains(&host) {
                gone.store(IN, Ordering::SeqCst);
                left.store(IN, Ordering::SeqCst);
            } else if left.load(Ordering::SeqCst) == IN {
                left.store(now, Ordering::SeqCst);
            }
        }
    }

    /// All changes have been carried out.
    fn done(&self) {
        let now = self.now();
        for Member { left, gone } in &self.all {
            if left.load(Ordering::SeqCst) != IN && gone.load(Ordering::SeqCst) == IN {
                gone.store(now, Ordering::SeqCst);
            }
        }
    }
}

/// The maps, with a look at each write: slots that are in use, or were a moment ago, are
/// nobody else's; those of nobody are poisoned.
struct Watch<'a> {
    maps: &'a mut Maps,
    /// Slots of each frontend: the first, and how many.
    live: HashMap<FrontendKey<Ip4>, (u32, u32)>,
    /// Slots that a frontend left, and when; and whether they are poisoned.
    left: Vec<(Instant, (u32, u32), bool)>,
    /// What is written there.
    poison: Vec<u32>,
    faults: Vec<String>,
    /// Slots written that had been somebody's before.
    reused: u64,
    /// Highest slot written.
    highest: u32,
}

fn overlap(a: (u32, u32), b: (u32, u32)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

impl Watch<'_> {
    fn fault(&mut self, what: String) {
        if self.faults.len() < 5 {
            self.faults.push(what);
        }
    }

    /// Takes slots from everybody after their time.
    fn poison(&mut self) {
        for (since, (start, slots), done) in &mut self.left {
            if !*done && since.elapsed() >= GRACE {
                *done = true;
                let poison = &self.poison[..*slots as usize];
                assert!(self.maps.segments.write(*start, poison).unwrap());
            }
        }
        self.left
            .retain(|(since, ..)| since.elapsed() < 2 * GRACE + LATE);
    }

    /// The slots of a frontend are others now.
    fn moves(&mut self, key: FrontendKey<Ip4>, row: Option<&Frontend>) {
        let slots = row.map(Frontend::slots).filter(|slots| slots.1 > 0);
        let former = self.live.remove(&key);
        if let Some(slots) = slots {
            let other = self.live.values().find(|other| overlap(slots, **other));
            if let Some(other) = other {
                let fault = format!("slots {slots:?} of {key:?} are another's too: {other:?}");
                self.fault(fault);
            }
            self.live.insert(key, slots);
        }
        if let Some(former) = former.filter(|former| Some(*former) != slots) {
            self.left.push((Instant::now(), former, GRACE.is_zero()));
        }
    }

    fn writes(&mut self, start: u32, slots: u32) {
        let new = (start, slots);
        if let Some(live) = self.live.values().find(|live| overlap(new, **live)) {
            let fault = format!("slots {new:?} are written, which a frontend has: {live:?}");
            self.fault(fault);
        }
        let late = self.left.iter().find(|(_, left, _)| overlap(new, *left));
        if let Some((since, left, _)) = late {
            let age = since.elapsed();
            if age < LATE {
                let fault = format!("slots {new:?} are written {age:?} after {left:?} were left");
                self.fault(fault);
            }
        }
        self.reused += u64::from(self.highest.saturating_sub(start).min(slots));
        self.highest = self.highest.max(start + slots);
        self.left.retain(|(_, left, _)| !overlap(new, *left));
    }
}

impl MapWriter for Watch<'_> {
    fn write(&mut self, op: &MapOp) -> Result<(), WriteError> {
        if let MapOp::WriteSlots { start, ids } = op {
            self.writes(*start, ids.len() as u32);
        }
        let (key, row) = match op {
            MapOp::PutFront4 { key, row } => (key, Some(row)),
            MapOp::DeleteFront4 { key } => (key, None),
            _ => return self.maps.write(op),
        };
        let former = self.live.get(key).copied();
        let is_new = row.is_none_or(|row| Some(row.slots()) != former);
        self.maps.write(op)?;
        if let Some((start, slots)) = former.filter(|_| is_new && GRACE.is_zero()) {
            // Then this is the moment.
            let poison = &self.poison[..slots as usize];
            assert!(self.maps.segments.write(start, poison).unwrap());
        }
        self.moves(*key, row);
        Ok(())
    }
}

/// The programs once more, on the node's maps.
fn programs(node: &Node, config: &Config) -> Ebpf {
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", config, true);
    for map in maps::ALL {
        loader.map_pin_path(map.name, node.pins.join(map.name));
    }
    let mut ebpf = loader.load(OBJECT).unwrap();
    bpf_tests::load::datapath(&mut ebpf).unwrap();
    ebpf
}

/// Ties the thread to a CPU, of which it gets what it wants: how long a change takes is
/// to say something of it, not of what else runs on the machine.
fn pin_to(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    let thread = nix::unistd::gettid().to_string();
    kernel_support::run("renice", &["-n", "-10", "-p", &thread]);
}

/// What packets met.
#[derive(Default, Debug)]
struct Seen {
    packets: u64,
    selected: u64,
    /// By its own time.
    lasted: Duration,
    /// How long after it was to leave one was selected at most.
    longest: Duration,
    faults: Vec<String>,
}

/// Sends SYNs of new clients to all services in turn, and looks where they go.
fn packets(ebpf: &Ebpf, members: &Members, stop: &AtomicBool) -> Seen {
    pin_to(1);
    let program = ebpf.program("tulle_pod_from").unwrap();
    let program = <&SchedClassifier>::try_from(program).unwrap();
    let frames = |flag: u8| -> Vec<Vec<u8>> {
        let frame = |i: u8| {
            let (from, to) = ([10, 244, 0, 1], [10, 96, 0, i]);
            Spec::new(Upper::Tcp(flag), from.into(), 1000, to.into(), 80).build()
        };
        (1..=SERVICES).map(frame).collect()
    };
    let (frames, closing) = (frames(tcp_flag::SYN), frames(tcp_flag::RST));
    let mut turn: u64 = 0;
    let mut out = vec![0; frames[0].len() + 256];
    let mut seen = Seen::default();
    let own = OwnTime::start();
    while !stop.load(Ordering::Relaxed) {
        let number = turn;
        turn += 1;
        // Half of them to the one in the storm.
        let i = if number.is_multiple_of(2) {
            1
        } else {
            (number / 2 % u64::from(SERVICES)) as u8 + 1
        };
        let mut frame = frames[usize::from(i) - 1].clone();
        frame[SRC + 2..SRC + 4].copy_from_slice(&((number >> 15) as u16).to_be_bytes());
        frame[SPORT..SPORT + 2].copy_from_slice(&((number % 32_768 + 1024) as u16).to_be_bytes());
        let state = |host: u8| {
            let Member { left, gone } = members.at(i, host);
            (left.load(Ordering::SeqCst), gone.load(Ordering::SeqCst))
        };
        let before: Vec<(u64, u64)> = (0..=HOSTS).map(state).collect();
        let began = members.now();
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.data_out = Some(&mut out);
        program.test_run(options).unwrap();
        seen.packets += 1;
        // And many that open nothing, as fast as it goes: what they read shows in the traffic.
        let mut options = TestRunOptions::new();
        options.data_in = Some(&closing[usize::from(i) - 1]);
        options.repeat = REPEAT;
        program.test_run(options).unwrap();
        seen.packets += u64::from(REPEAT);
        let to: [u8; 4] = out[DST..DST + 4].try_into().unwrap();
        // Left alone, or answered: at the moment there is no such service, or nobody behind it.
        if to == [10, 96, 0, i] || to[..2] == [10, 244] {
            continue;
        }
        seen.selected += 1;
        let mut fault = |what: &str| {
            if seen.faults.len() < 5 {
                seen.faults
                    .push(format!("packet {number} to service {i}: {what}"));
            }
        };
        match to {
            [10, 9, of, host] if of == i => {
                let (left, gone) = before[usize::from(host)];
                if left == IN || state(host).0 != left {
                    continue;
                }
                let late = Duration::from_nanos(began - left.min(began));
                if left == NEVER {
                    fault(&format!("{to:?} was never in it"));
                } else if gone < began {
                    fault(&format!(
                        "{to:?} had left it, and was still there {late:?} later"
                    ));
                }
                seen.longest = seen.longest.max(late);
            }
            to if to == POISON.1 => fault("read slots that are nobody's"),
            to => fault(&format!("{to:?} is another's")),
        }
    }
    seen.lasted = own.elapsed();
    seen
}

/// Small random numbers (Marsaglia's xorshift), the same in each run.
struct Dice(u32);

impl Dice {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % n
    }
}

/// A service; each has a scheduler of its own.
fn served(i: u8) -> Object {
    let schedulers = [
        Scheduler::Random,
        Scheduler::Random,
        Scheduler::RoundRobin,
        Scheduler::LeastConnection,
        Scheduler::Maglev,
        Scheduler::SourceHash,
    ];
    let mut service = service(i);
    service.vips = Vec::new();
    service.choice = Choice {
        scheduler: Some(schedulers[usize::from(i - 1)]),
        // Half of them have tables by weight.
        weights: "10.9.0.0/17=1, 10.9.3.0/25=3, 10.9.4.0/25=2"
            .parse()
            .unwrap(),
    };
    object(service)
}

/// Endpoints of a service, as many as are asked for.
fn endpoints(i: u8, hosts: &[u8]) -> Object {
    let addrs: Vec<String> = hosts
        .iter()
        .map(|host| format!("10.9.{i}.{host}"))
        .collect();
    let all: Vec<(&str, u8)> = addrs.iter().map(|addr| (addr.as_str(), 1)).collect();
    slice(i, &all)
}

/// `len` hosts from the `first` on, round and round.
fn window(first: u32, len: u32) -> Vec<u8> {
    let host = |at: u32| (at % u32::from(HOSTS)) as u8 + 1;
    (first..first + len).map(host).collect()
}

/// Goes on with a walk over the flow tables, at the end of which backends are freed that
/// drain and that no living flow names, and numbers of services that are gone, as the agent does it.
fn walk(gc: &mut FlowGc, began: &mut Instant, planner: &mut Planner, maps: &Maps, config: &Config) {
    let pass = gc
        .step(maps, &config.idle, now_ticks(), &|_| false)
        .unwrap();
    let Some(pass) = pass else {
        return;
    };
    let mut unused = planner.draining();
    unused.retain(|(family, id)| {
        let row = planner.applied().backends(*family).row(*id);
        *family == Family::V4 && !row.is_some_and(|row| pass.names(4, *id, row.generation))
    });
    planner.release_backends(unused, *began);
    let numbers = planner.idle_numbers(|number| pass.oldest.contains_key(&number), *began);
    planner.reuse_numbers(&numbers);
    *began = Instant::now();
}

/// What came of the changes.
#[derive(Default, Debug)]
struct Told {
    changes: u64,
    runs: u64,
    /// The longest run, by its own time.
    longest: Duration,
    /// How long all of it took, whoever had the CPU.
    lasted: Duration,
    faults: Vec<String>,
    reused: u64,
}

fn storm(datapath: &mut Datapath, config: &Config, members: &Members) -> Told {
    pin_to(0);
    let applied = Applied::new(plan::Capacities {
        frontends: 64,
        backends: POISON.0,
        segments: datapath.maps.segments.len(),
        sources: 16,
    });
    let mut planner = Planner::new("n0", applied);
    planner.set_here(Here {
        maglev_slots: MAGLEV,
        ..here()
    });
    planner.set_facts(facts(&["10.244.0.1"]));
    let mut changes: Vec<Change> = Vec::new();
    for i in 1..=SERVICES {
        members.set(i, &window(0, 3));
        changes.extend(support::apply([served(i), endpoints(i, &window(0, 3))]));
    }
    changes.push(Change::Synced);
    planner.ingest(batch(changes));
    let mut watch = Watch {
        maps: &mut datapath.maps,
        live: HashMap::new(),
        left: Vec::new(),
        poison: vec![POISON.0; 65_536],
        faults: Vec::new(),
        reused: 0,
        highest: 0,
    };
    let (mut told, mut dice) = (Told::default(), Dice(2_463_534_242));
    let (began, own) = (Instant::now(), OwnTime::start());
    let (mut gc, mut walked) = (FlowGc::new(), began);
    loop {
        let elapsed = own.elapsed();
        if elapsed >= STORM {
            break;
        }
        // What is due by now comes together, as from a source that was busy.
        let due = elapsed.as_millis() as u64;
        if due <= told.changes {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        let started = OwnTime::start();
        let mut changes = Vec::new();
        for k in told.changes as u32 + 1..=due as u32 {
            let hosts = window(k, 1 + k * 7 % 40);
            members.set(1, &hosts);
            changes.extend(support::apply([endpoints(1, &hosts)]));
        }
        told.changes = due;
        let i = 2 + dice.below(u32::from(SERVICES) - 1) as u8;
        let len = if dice.below(8) == 0 {
            0
        } else {
            1 + dice.below(60)
        };
        let hosts = window(told.runs as u32 / 4, len);
        members.set(i, &hosts);
        changes.extend(support::apply([endpoints(i, &hosts)]));
        // Sometimes one is gone for a moment.
        let gone = 2 + dice.below(u32::from(SERVICES) - 1) as u8;
        if told.runs % 16 == 3 && gone != i {
            changes.push(Change::Delete(served(gone).key()));
        } else if told.runs % 16 == 4 {
            changes.extend(support::apply((2..=SERVICES).map(served)));
        }
        planner.ingest(batch(changes));
        watch.poison();
        let outcome = planner.run(&mut watch, Instant::now);
        assert_eq!(outcome.failed, 0, "{:?}", outcome.errors);
        members.done();
        told.runs += 1;
        told.longest = told.longest.max(started.elapsed());
        walk(&mut gc, &mut walked, &mut planner, watch.maps, config);
    }
    told.lasted = began.elapsed();
    told.faults = watch.faults;
    told.reused = watch.reused;
    told
}

#[test]
fn a_storm_of_changes_never_shows_a_packet_what_is_not_its_service_s() {
    on_node(|node| {
        let capacities = Capacities {
            frontends: 64,
            slots: 262_144,
            backends: POISON.0 + 1,
            flows: 1024,
            stats: POISON.0 + 1,
            ..kernel_support::small()
        };
        let mut config = Config {
            features: Feature::COUNT_SERVICES,
            ..Config::EMPTY
        };
        // So that ids of backends are free again soon.
        config.idle.tcp_opening = 0;
        let mut datapath =
            Datapath::open(&node.pins, &config, &capacities, &options(AttachKind::Tcx)).unwrap();
        let row = Backend {
            addr: Ip4::new(POISON.1),
            port: 1,
            proto: proto::TCP,
            state: BackendState::Active as u8,
            generation: 1,
            via: Via::KERNEL,
        };
        datapath.maps.back_v4.set(POISON.0, row, 0).unwrap();
        let ebpf = programs(node, &config);
        let (members, stop) = (Members::new(), AtomicBool::new(false));
        let (told, seen) = std::thread::scope(|scope| {
            let packets = scope.spawn(|| packets(&ebpf, &members, &stop));
            let changes = scope.spawn(|| storm(&mut datapath, &config, &members));
            let told = changes.join();
            stop.store(true, Ordering::Relaxed);
            (told.unwrap(), packets.join().unwrap())
        });
        let traffic = Map::PerCpuArray(node.map(maps::BK_STATS4));
        let traffic: PerCpuArray<_, Traffic> = traffic.try_into().unwrap();
        let rows = traffic.get(&POISON.0, 0).unwrap();
        let poisoned: u64 = rows.iter().map(|row| row.packets).sum();
        println!("{told:?}\n{seen:?}\n{poisoned} poisoned");
        let mut faults = told.faults;
        faults.extend(seen.faults.iter().cloned());
        assert_eq!(faults, [""; 0]);
        assert_eq!(poisoned, 0, "packets that read slots which are nobody's");
        assert!(u128::from(told.changes) * 10 >= STORM.as_millis() * 9);
        assert!(told.runs > 400, "too few runs to be a storm");
        assert!(told.reused > 10_000, "slots are hardly used again");
        let due = 10_000 * seen.lasted.as_millis() / STORM.as_millis();
        assert!(
            u128::from(seen.selected) > due,
            "hardly a packet went anywhere"
        );
        // A backend is selected until the run that takes it out is over.
        assert!(told.longest < LATE, "changes are carried out late");
    });
}
