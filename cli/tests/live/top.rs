//! `tulle top` in a terminal, and printed.

use std::env;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::maps::PerCpuValues;
use datapath_common::{
    Backend, BackendState, Counter, Frontend, FrontendKey, Hook, Ip4, Reason, Traffic, Via,
    counter_index, maps, proto,
};
use nix::sys::signal::Signal;
use tulle_cli::top::terminal::Screen;

use crate::fixture::{backend, fill_services, frontend};
use crate::pins::Pins;
use crate::terminal::Terminal;
use crate::tulle::Tulle;

/// Bytes that a terminal sends for keys.
const ESCAPE: &str = "\x1b";
const CTRL_C: &str = "\x03";
const DOWN: &str = "\x1b[B";
const BACKSPACE: &str = "\x7f";

/// Variable by which a test is told that it is the program in the terminal.
const INSIDE: &str = "TULLE_TEST_INSIDE";

/// Counters that grow as if packets came.
struct Packets {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Packets {
    /// Of service 7, of backend 1, and of two reasons, at all CPUs.
    fn start(pins: &Pins) -> Self {
        let mut services = pins.per_cpu::<Traffic>(maps::SVC_STATS);
        let mut backends = pins.per_cpu::<Traffic>(maps::BK_STATS4);
        let mut counters = pins.per_cpu::<Counter>(maps::COUNTERS);
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let cpus = aya::util::nr_cpus().unwrap();
            let mut n = 0;
            while !ended.load(Ordering::Relaxed) {
                n += 1;
                let traffic = Traffic {
                    flows: n,
                    packets: 10 * n,
                    bytes: 10_000 * n,
                    reply_packets: 9 * n,
                    reply_bytes: 20_000 * n,
                };
                let values = || PerCpuValues::try_from(vec![traffic; cpus]).unwrap();
                services.set(7, values(), 0).unwrap();
                backends.set(1, values(), 0).unwrap();
                for (hook, reason) in [
                    (Hook::PodFrom, Reason::Encapsulated),
                    (Hook::NicIn, Reason::UnknownNode),
                ] {
                    let counter = Counter {
                        packets: n,
                        bytes: 100 * n,
                    };
                    let values = PerCpuValues::try_from(vec![counter; cpus]).unwrap();
                    counters
                        .set(counter_index(hook, reason), values, 0)
                        .unwrap();
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Packets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The words of the line that begins with `start`.
fn words<'a>(screen: &'a str, start: &str) -> Vec<&'a str> {
    let line = screen.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no {start:?} on\n{screen}"));
    line[start.len()..].split_whitespace().collect()
}

/// Whether the words in these places are numbers above zero.
fn rates(words: &[&str], places: &[usize]) -> bool {
    places.iter().all(|at| {
        words
            .get(*at)
            .is_some_and(|word| word.starts_with(|c: char| ('1'..='9').contains(&c)))
    })
}

fn has_line(screen: &str, start: &str) -> bool {
    screen.lines().any(|line| line.starts_with(start))
}

#[test]
fn the_screen_shows_what_the_maps_hold() {
    let pins = Pins::new();
    fill_services(&pins);
    let tulle = Tulle::new(&pins.dir);
    tulle.serve();
    let _packets = Packets::start(&pins);
    let mut terminal = Terminal::run(&tulle.command(&["top", "--interval", "0.2"]));
    let shown = terminal.wait_until("rates", |screen| {
        has_line(screen, "3 ports") && rates(&words(screen, "3 ports"), &[0, 1, 2, 3, 4])
    });
    assert!(terminal.is_raw() && terminal.screen().alternate_screen());
    for text in [
        "tulle top  n1  agent up 2h05m",
        "1 warning",
        "every 0.2s",
        "[1 Overview] 2 Services  3 Backends  4 Drops  5 Maps",
        "4 backends, 1 draining, 1 port without a backend",
        "tulle_back_v4",
    ] {
        assert!(shown.contains(text), "{text:?} on\n{shown}");
    }
    assert!(shown.lines().count() <= 24 && shown.lines().all(|l| l.chars().count() <= 80));
    terminal.wait_until("losses", |screen| {
        has_line(screen, "unknown_node") && rates(&words(screen, "unknown_node"), &[2])
    });
    terminal.wait_until("a curve", |screen| {
        screen.contains('█') || screen.contains('▇')
    });

    terminal.press("2");
    let shown = terminal.wait_until("the service's rates", |screen| {
        has_line(screen, "default/web:http")
            && rates(&words(screen, "default/web:http"), &[1, 2, 3, 4])
    });
    let found = words(&shown, "default/web:http");
    assert_eq!(found[5], "2", "backends: {shown}");
    assert!(
        shown.contains("▼BIT/S") && shown.contains("#9 10.96.0.10:53 UDP"),
        "{shown}"
    );
    assert_eq!(
        words(&shown, "#9 10.96.0.10:53 UDP")[..5],
        ["4", "0", "0", "0", "0"],
        "{shown}"
    );
    terminal.press("/10.96.0.10:53\r");
    terminal.wait_until("only one", |screen| {
        screen.contains("1 of 3") && !has_line(screen, "default/web")
    });
    terminal.press(ESCAPE);
    terminal.wait_for(&["default/web:http"]);
    terminal.press("\r");
    let shown = terminal.wait_for(&["2 of default/web:http", "10.244.0.5:8080"]);
    assert!(!shown.contains("[fd00"), "of another service: {shown}");
    terminal.wait_until("the backend's rates", |screen| {
        rates(&words(screen, "10.244.0.5:8080"), &[2, 3, 4])
    });
    let shown = terminal.text();
    assert_eq!(
        words(&shown, "10.244.1.7:8080")[..4],
        ["TCP", "active", "-", "-"],
        "not counted: {shown}"
    );
    terminal.press(BACKSPACE);
    terminal.wait_for(&["[2 Services]"]);
    terminal.press("3");
    terminal.wait_for(&["[fd00:0:0:1::5]:8080", "draining", "10.96.0.10:8080"]);

    terminal.press("4");
    terminal.wait_for(&["unknown_node", "nic_in", "→ If the sender is a node"]);
    terminal.press("5");
    let shown = terminal.wait_for(&["tulle_segments", "MEMORY"]);
    assert!(shown.contains("░"), "{shown}");
    terminal.press(DOWN);
    terminal.press("?");
    terminal.wait_for(&["Enter           backends of the chosen service"]);
    terminal.press("x");
    terminal.press("p");
    terminal.wait_for(&["PAUSED", "p go on"]);
    terminal.press("p+");
    terminal.wait_until("a longer interval", |screen| {
        screen.contains("every 0.5s") && !screen.contains("PAUSED")
    });
    terminal.press("1");
    terminal.resize(120, 40);
    terminal.wait_until("all of the new width", |screen| {
        let first = screen.lines().next().unwrap_or_default();
        first.starts_with("tulle top") && first.trim_end().chars().count() == 120
    });
    terminal.resize(40, 10);
    terminal.wait_for(&["too small: 40x10"]);
    terminal.press("q");
    assert!(terminal.wait().success());
    terminal.assert_given_back();
}

#[test]
fn colours_can_be_switched_off() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    let colored = |terminal: &Terminal| {
        let screen = terminal.screen();
        let cells = (0..24).flat_map(|row| (0..80).filter_map(move |col| screen.cell(row, col)));
        cells
            .filter(|cell| cell.fgcolor() != vt100::Color::Default)
            .count()
    };
    let mut command = tulle.command(&["top"]);
    let mut terminal = Terminal::run(command.env_remove("NO_COLOR"));
    terminal.wait_for(&["agent not running", "nothing lost"]);
    assert!(colored(&terminal) > 0);
    terminal.press(CTRL_C);
    assert!(terminal.wait().success());
    terminal.assert_given_back();
    let mut by_flag = tulle.command(&["top", "--no-color"]);
    let mut by_environment = tulle.command(&["top"]);
    for command in [
        by_flag.env_remove("NO_COLOR"),
        by_environment.env("NO_COLOR", "1"),
    ] {
        let mut terminal = Terminal::run(command);
        terminal.wait_for(&["agent not running", "nothing lost"]);
        assert_eq!(colored(&terminal), 0);
        terminal.press("q");
        assert!(terminal.wait().success());
    }
}

#[test]
fn signals_give_the_terminal_back() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut terminal = Terminal::run(&tulle.command(&["top"]));
        terminal.wait_for(&["[1 Overview]"]);
        assert!(terminal.is_raw());
        terminal.signal(signal);
        assert!(terminal.wait().success(), "{signal}");
        terminal.assert_given_back();
    }
}

#[test]
fn a_terminal_that_hangs_up_ends_it() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    let mut terminal = Terminal::run(&tulle.command(&["top"]));
    terminal.wait_for(&["[1 Overview]"]);
    let began = Instant::now();
    terminal.hang_up();
    terminal.wait();
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn a_terminal_that_is_stopped_keeps_nobody() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    let mut terminal = Terminal::run(&tulle.command(&["top", "--interval", "0.1"]));
    terminal.wait_for(&["[1 Overview]"]);
    // Each size is drawn anew, and nobody reads it.
    let deadline = Instant::now() + Duration::from_secs(30);
    for columns in (80..200).cycle() {
        terminal.stty(columns, 24);
        if terminal.is_full() {
            break;
        }
        assert!(Instant::now() < deadline, "there is still room");
        thread::sleep(Duration::from_millis(20));
    }
    terminal.signal(Signal::SIGTERM);
    let status = terminal.wait_unread();
    assert_eq!(status.code(), Some(1), "it was in the middle of a write");
    assert!(!terminal.is_raw());
}

#[test]
fn a_panic_gives_the_terminal_back() {
    if env::var_os(INSIDE).is_some() {
        let mut screen = Screen::enter().unwrap();
        screen
            .draw(|frame| frame.render_widget("about to fail", frame.area()))
            .unwrap();
        // Until the test has seen it.
        std::io::stdin().read_line(&mut String::new()).unwrap();
        panic!("on purpose");
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--exact",
        "top::a_panic_gives_the_terminal_back",
        "--nocapture",
    ]);
    let mut terminal = Terminal::run(command.env(INSIDE, "1").env("RUST_BACKTRACE", "0"));
    terminal.wait_for(&["about to fail"]);
    assert!(terminal.is_raw() && terminal.screen().alternate_screen());
    // There is no line in raw mode, but what a line ends with is still read.
    terminal.press("\n");
    assert!(!terminal.wait().success());
    terminal.assert_given_back();
    assert!(
        terminal.text().contains("on purpose"),
        "{}",
        terminal.text()
    );
}

#[test]
fn agent_and_datapath_may_come_and_go() {
    let pins = Pins::new();
    fill_services(&pins);
    let tulle = Tulle::new(&pins.dir);
    let args = [
        "top",
        "--interval",
        "0.1",
        "--page",
        "services",
        "--sort",
        "name",
    ];
    let mut terminal = Terminal::run(&tulle.command(&args));
    terminal.wait_for(&[
        "agent not running",
        "some services have no name",
        "#7 10.96.0.10:80 TCP",
    ]);
    tulle.serve();
    terminal.wait_for(&["n1  agent up", "default/web:http"]);
    pins.clear();
    let shown = terminal.wait_for(&["no datapath under", "trying again every 0.1s"]);
    assert!(!shown.contains("default/web"), "{shown}");
    pins.fill();
    terminal.wait_for(&["nothing here"]);
    fill_services(&pins);
    terminal.wait_for(&["default/web:http"]);
    std::fs::remove_file(pins.dir.join(maps::SVC_STATS)).unwrap();
    let shown = terminal.wait_for(&["fault", "map tulle_svc_stats is not pinned"]);
    assert!(
        shown.contains("default/web:http"),
        "the rest goes on: {shown}"
    );
    terminal.press("q");
    assert!(terminal.wait().success());
    terminal.assert_given_back();
}

#[test]
fn two_readings_are_printed() {
    let pins = Pins::new();
    fill_services(&pins);
    let tulle = Tulle::new(&pins.dir);
    tulle.serve();
    let _packets = Packets::start(&pins);
    let json = tulle.json(&["top", "--once", "--interval", "0.3"]);
    assert_eq!(
        (&json["schema"], &json["agent"]["node"]),
        (&"tulle.top".into(), &"n1".into())
    );
    let secs = json["between_secs"].as_f64().unwrap();
    assert!((0.3..5.0).contains(&secs), "{secs}");
    let services = json["services"].as_array().unwrap();
    let web = services.iter().find(|row| row["number"] == 7).unwrap();
    assert_eq!(web["service"], "default/web:http");
    let rate = |name: &str| web["rates"][name].as_f64().unwrap();
    assert!(rate("flows") > 0.0);
    // Of counters that were not read at the very same moment.
    let ratio = rate("bits") / rate("flows");
    assert!((ratio - 80_000.0).abs() < 1.0, "{ratio}");
    let hook = json["hooks"].as_array().unwrap();
    let hook = hook.iter().find(|row| row["hook"] == "nic_in").unwrap();
    assert!(hook["rates"]["lost"].as_f64().unwrap() > 0.0);
    assert_eq!(json["drops"][0]["reason"], "unknown_node");
    assert_eq!(json["faults"], serde_json::json!([]));

    let shown = tulle.ok(&["top", "--once", "-i", "0.1"]);
    for text in [
        "tulle top  n1  agent up ",
        "\nServices\n",
        "default/web:http",
        "\nMaps\n",
    ] {
        assert!(shown.stdout.contains(text), "{text:?} in {}", shown.stdout);
    }
    assert!(!shown.stdout.contains('\x1b'), "no terminal, no colours");
    let shown = tulle.ok(&[
        "top", "--once", "-i", "0.1", "--page", "backends", "-n", "1",
    ]);
    assert_eq!(shown.stdout.lines().count(), 4, "{}", shown.stdout);
    assert_eq!(
        shown.stderr,
        "the first 1 of 4 rows of backends; -n 0 shows all\n"
    );
}

#[test]
fn what_cannot_be_shown_is_said() {
    let pins = Pins::new();
    let tulle = Tulle::new(&pins.dir);
    let refused = |args: &[&str]| {
        let run = tulle.command(args).stdin(Stdio::null()).output().unwrap();
        assert!(!run.status.success(), "{args:?}");
        String::from_utf8(run.stderr).unwrap()
    };
    let error = refused(&["top"]);
    assert!(
        error.contains("needs a terminal") && error.contains("`tulle top --once`"),
        "{error}"
    );
    let error = refused(&["-o", "json", "top"]);
    assert!(error.contains("`tulle -o json top --once`"), "{error}");
    let error = refused(&["top", "--once", "--page", "maps", "--sort", "flows"]);
    assert!(
        error.contains("it knows name, full, total, memory"),
        "{error}"
    );
    let error = refused(&["top", "--once", "--page", "overview", "--sort", "flows"]);
    assert!(error.contains("has no list to sort"), "{error}");
    for interval in ["0", "61", "nan", "x"] {
        let error = refused(&["top", "--interval", interval]);
        assert!(error.contains("--interval"), "{interval}: {error}");
    }
    let gone = Pins::empty();
    let tulle = Tulle::new(&gone.dir);
    let run = tulle.run(&["top", "--once"]);
    assert!(
        !run.ok && run.stderr.starts_with("tulle: no datapath under"),
        "{}",
        run.stderr
    );
    let mut terminal = Terminal::run(&tulle.command(&["top"]));
    assert!(!terminal.wait().success());
    assert!(
        terminal.text().contains("tulle: no datapath under"),
        "{}",
        terminal.text()
    );
    terminal.assert_given_back();
}

/// What a large cluster has: services, and backends of each.
const SERVICES: u32 = 10_000;
const BACKENDS: u32 = 10;

#[test]
fn a_large_cluster_is_read_in_time() {
    let pins = Pins::new();
    for (map, rows) in [
        (maps::SEGMENTS, 1 << 20),
        (maps::BACK_V4, 1 << 17),
        (maps::BK_STATS4, 1 << 17),
        (maps::SVC_STATS, 1 << 14),
        (maps::FLOW_V4, 1 << 17),
    ] {
        pins.resize(map, rows);
    }
    let mut segments = pins.array::<u32>(maps::SEGMENTS);
    let mut backends = pins.array::<Backend<Ip4>>(maps::BACK_V4);
    let mut frontends = pins.hash::<FrontendKey<Ip4>, Frontend>(maps::FRONT_V4);
    for service in 0..SERVICES {
        let start = service * BACKENDS;
        for id in start..start + BACKENDS {
            let addr = Ip4::new((0x0a00_0000 + id).to_be_bytes());
            let row = backend(addr, BackendState::Active, Via::KERNEL);
            backends.set(id + 1, row, 0).unwrap();
            segments.set(id, id + 1, 0).unwrap();
        }
        let key = FrontendKey {
            addr: Ip4::new((0x0a60_0000 + service).to_be_bytes()),
            port: 80,
            proto: proto::TCP,
            scope: 0,
        };
        frontends
            .insert(key, frontend(service + 1, start, BACKENDS, 0), 0)
            .unwrap();
    }
    let tulle = Tulle::new(&pins.dir);
    let json = tulle.json(&["top", "--once", "--interval", "1"]);
    let rows = |name: &str| json[name].as_array().unwrap().len();
    assert_eq!((rows("services"), rows("backends")), (10_000, 100_000));
    assert!(
        json["backends"]
            .as_array()
            .unwrap()
            .iter()
            .all(|row| !row["rates"].is_null())
    );
    let took = Duration::from_micros(json["reading_micros"].as_u64().unwrap());
    println!("a reading of 10,000 services and 100,000 backends takes {took:?}");
    // Without optimisation, on a machine that does other things, too.
    assert!(took < Duration::from_secs(5), "{took:?}");

    // Keys are answered meanwhile.
    let mut terminal = Terminal::run(&tulle.command(&["top", "--page", "backends"]));
    terminal.wait_for(&["[3 Backends]", "100,000"]);
    terminal.press("/10.1.134.1:\r");
    terminal.wait_for(&["1 of 100,000", "10.1.134.1:8080"]);
    terminal.press("q");
    assert!(terminal.wait().success());
    terminal.assert_given_back();
}
