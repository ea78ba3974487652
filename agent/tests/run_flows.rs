//! Connections outlive the loss of their rows in the flow table. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use run_support::{LIMIT, World, addresses};
use testkit::echo::{EchoServer, LongConnection};
use testkit::manifests::{Protocol, Service};
use testkit::{NetNs, wait};
use tulle_cli::datapath::Datapath;
use tulle_cli::flows::{FlowView, forget, join};
use tulle_cli::tables::FrontendRow;

/// Port of the echo servers.
const ECHO: u16 = 9000;
/// Datagrams to this port of the service come back.
const ANSWERED: u16 = 7;
/// Nobody listens behind this one.
const UNANSWERED: u16 = 9;
/// Rows of a small flow table.
const ROWS: u32 = 4096;
/// After this a connection that nothing was said on is silent: the last delayed
/// acknowledgement (200 ms at most) has come, and nobody repeats anything.
const QUIET: Duration = Duration::from_secs(1);

/// A world with an echo service of every pod, and what a client holds open to it.
struct Talk {
    world: World,
    _servers: Vec<EchoServer>,
    service: Service,
}

impl Talk {
    fn start(label: &str, args: &[&str]) -> Self {
        let world = World::start(label, args);
        let start =
            |(_, pod): (_, &testkit::Pod)| EchoServer::start(pod.ns(), pod.name(), ECHO).unwrap();
        let servers = world.cluster.pods().map(start).collect();
        let service = Service::dual_stack("echo", 11)
            .port(Protocol::Tcp, 7, ECHO)
            .port(Protocol::Udp, ANSWERED, ECHO)
            .port(Protocol::Udp, UNANSWERED, ECHO + 1)
            .endpoints(world.cluster.pods());
        world.write(&service);
        Self {
            world,
            _servers: servers,
            service,
        }
    }

    fn client(&self) -> &NetNs {
        self.world.cluster.nodes()[0].pods()[0].ns()
    }

    fn datapath(&self) -> Datapath {
        Datapath::open(&self.world.cluster.nodes()[0].bpffs()).unwrap()
    }

    /// Connections to every backend most likely: local and remote, both families.
    fn idle(&self) -> Vec<Idle> {
        let to = addresses(&self.service);
        let open = |n: usize| Idle::open(self.client(), to[n % to.len()]);
        let idle = (0..16).map(open).collect();
        std::thread::sleep(QUIET);
        idle
    }

    /// Flows of the idle connections.
    fn views(&self, of: &[Idle]) -> Vec<FlowView> {
        let mut views = join(&self.datapath().flows().unwrap());
        views.retain(|view| view.proto == 6 && of.iter().any(|idle| idle.client == view.client));
        views
    }

    /// Waits until data to the service asks the flow table.
    fn wait_asking(&self) {
        let fronts = addresses(&self.service);
        wait::until("frontends that ask", LIMIT, || {
            let rows = self.datapath().frontends().unwrap();
            let asking = |at: &SocketAddr| {
                rows.iter()
                    .any(|row| row.addr == *at && row.proto == 6 && row.asks_flow_table())
            };
            Ok(fronts.iter().all(asking).then_some(()))
        })
        .unwrap();
    }

    fn asks(&self) -> bool {
        let rows = self.datapath().frontends().unwrap();
        rows.iter().any(FrontendRow::asks_flow_table)
    }
}

/// A connection on which nothing is said unless it is asked to.
struct Idle {
    stream: TcpStream,
    client: SocketAddr,
}

impl Idle {
    fn open(ns: &NetNs, to: SocketAddr) -> Self {
        let stream = ns
            .run(|| TcpStream::connect_timeout(&to, LIMIT))
            .unwrap()
            .unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut idle = Self {
            client: stream.local_addr().unwrap(),
            stream,
        };
        // The server's name, then a line feed.
        let mut octet = [0];
        while octet != *b"\n" {
            idle.stream.read_exact(&mut octet).unwrap();
        }
        idle.ask().unwrap();
        idle
    }

    fn ask(&mut self) -> std::io::Result<()> {
        self.stream.write_all(b"still there")?;
        let mut back = [0; 11];
        self.stream.read_exact(&mut back)?;
        assert_eq!(&back, b"still there");
        Ok(())
    }
}

fn busy(talk: &Talk) -> Vec<LongConnection> {
    let open = |at: SocketAddr| {
        LongConnection::start(talk.client(), at, Duration::from_millis(20)).unwrap()
    };
    addresses(&talk.service).into_iter().map(open).collect()
}

fn finish(connections: Vec<LongConnection>, more_than: u64) {
    for connection in connections {
        let report = connection.finish();
        assert_eq!(report.broken, None, "{report:?}");
        assert!(report.echoes > more_than, "{report:?}");
    }
}

#[test]
fn connections_outlive_a_flush() {
    let talk = Talk::start("flush", &["--gc-interval", "1"]);
    let (mut idle, busy) = (talk.idle(), busy(&talk));
    assert!(!talk.asks(), "an unchanged service");
    let datapath = talk.datapath();
    for _ in 0..3 {
        let all = join(&datapath.flows().unwrap());
        assert!(all.len() >= 18, "{}", all.len());
        let flushed = forget(&datapath, &all, true).unwrap();
        assert!(flushed.rows_closing >= 16, "{flushed:?}");
        std::thread::sleep(Duration::from_millis(700));
    }
    talk.wait_asking();
    // What is left of the silent ones goes, as it does after two minutes.
    let left = talk.views(&idle);
    assert_eq!(left.len(), idle.len());
    assert!(left.iter().all(|view| view.forward.is_none()));
    datapath
        .remove_flows(left.iter().filter_map(|view| view.reply))
        .unwrap();
    for idle in &mut idle {
        idle.ask().unwrap();
    }
    let back = talk.views(&idle);
    let whole = |view: &FlowView| {
        view.forward.is_some() && view.reply.is_some() && view.state_name() == "established"
    };
    assert_eq!(back.len(), idle.len());
    assert!(back.iter().all(whole), "{back:?}");
    finish(busy, 50);
}

#[test]
fn a_flush_without_an_agent_breaks_nothing_either() {
    let mut talk = Talk::start("flushed", &["--gc-interval", "1"]);
    let (mut idle, busy) = (talk.idle(), busy(&talk));
    talk.world.agents[0].kill().unwrap();
    let datapath = talk.datapath();
    let flushed = forget(&datapath, &join(&datapath.flows().unwrap()), false).unwrap();
    assert_eq!((flushed.rows_closing, flushed.notes.len()), (0, 1));
    assert!(flushed.rows_kept >= 18, "{flushed:?}");
    for idle in idle.iter_mut().take(8) {
        idle.ask().unwrap();
    }
    let agent = &mut talk.world.agents[0];
    agent.spawn().unwrap();
    agent.wait_ready(LIMIT).unwrap();
    talk.wait_asking();
    for idle in &mut idle {
        idle.ask().unwrap();
    }
    let whole = |view: &FlowView| view.forward.is_some() && view.reply.is_some();
    assert!(talk.views(&idle).iter().all(whole));
    finish(busy, 10);
}

#[test]
fn connections_outlive_a_flow_table_that_is_made_anew() {
    let mut talk = Talk::start("anew", &[]);
    let mut idle = talk.idle();
    talk.world.agents[0].terminate(LIMIT).unwrap();
    for map in ["tulle_flow_v4", "tulle_flow_v6"] {
        std::fs::remove_file(talk.world.cluster.nodes()[0].bpffs().join(map)).unwrap();
    }
    let agent = &mut talk.world.agents[0];
    agent.spawn().unwrap();
    agent.wait_ready(LIMIT).unwrap();
    assert_eq!(talk.views(&idle), [], "an empty table");
    talk.wait_asking();
    for idle in &mut idle {
        idle.ask().unwrap();
    }
    assert_eq!(talk.views(&idle).len(), idle.len());
    // The next agent knows it from the rows.
    let agent = &mut talk.world.agents[0];
    agent.restart(LIMIT).unwrap();
    talk.wait_asking();
}

/// Opens flows to a port of the service for so long, each by one datagram from a
/// port of its own. Says whether the agent told that both tables were full.
fn flood(talk: &Talk, port: u16, seconds: u64) -> bool {
    let sinks: Vec<SocketAddr> = talk
        .service
        .ips
        .iter()
        .map(|ip| SocketAddr::new(*ip, port))
        .collect();
    let send = || {
        let began = Instant::now();
        let mut sent = 0_u32;
        while began.elapsed() < Duration::from_secs(seconds) {
            for sink in sinks.iter().cycle().take(200) {
                let any: IpAddr = match sink {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                let socket = UdpSocket::bind((any, 0)).unwrap();
                socket.send_to(b"?", sink).unwrap();
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        sent
    };
    let (sent, told) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| talk.client().run(send).unwrap());
        let mut told = false;
        while !flood.is_finished() {
            told |= is_full(talk, "tulle_flow_v4") && is_full(talk, "tulle_flow_v6");
            std::thread::sleep(Duration::from_millis(200));
        }
        (flood.join().unwrap(), told)
    });
    // Two rows for each datagram, in one of two tables.
    assert!(sent > 4 * ROWS, "{sent} datagrams");
    told
}

fn is_full(talk: &Talk, map: &str) -> bool {
    let status = talk.world.agents[0].status().unwrap();
    let full = |fault: &String| fault.contains(map) && fault.contains("is full");
    status.faults.iter().any(full)
}

#[test]
fn connections_outlive_a_full_flow_table() {
    let rows = ROWS.to_string();
    let talk = Talk::start("full", &["--max-flows", &rows, "--gc-interval", "2"]);
    let (mut idle, busy) = (talk.idle(), busy(&talk));
    assert!(flood(&talk, ANSWERED, 12), "faults name both tables");
    talk.wait_asking();
    let whole = |view: &FlowView| view.forward.is_some() && view.reply.is_some();
    let left = talk.views(&idle);
    let kept = left.iter().filter(|view| whole(view)).count();
    assert!(kept < idle.len(), "rows of silent connections were evicted");
    for idle in &mut idle {
        idle.ask().unwrap_or_else(|error| {
            let before = left.iter().find(|view| view.client == idle.client);
            panic!("{}: {error}; before: {before:?}", idle.client);
        });
    }
    finish(busy, 100);
}

#[test]
fn unanswered_flows_evict_no_answered_ones_and_go_early() {
    let rows = ROWS.to_string();
    let talk = Talk::start("unheard", &["--max-flows", &rows, "--gc-interval", "2"]);
    let (idle, busy) = (talk.idle(), busy(&talk));
    assert!(flood(&talk, UNANSWERED, 10), "faults name both tables");
    let whole = |view: &FlowView| view.forward.is_some() && view.reply.is_some();
    let left = talk.views(&idle);
    assert_eq!(left.len(), idle.len());
    assert!(left.iter().all(whole), "{left:?}");
    finish(busy, 100);
    // Left to their 30 s of silence they would keep the table full for longer.
    let limit = Duration::from_secs(15);
    wait::until("an end of the fault", limit, || {
        let full = is_full(&talk, "tulle_flow_v4") || is_full(&talk, "tulle_flow_v6");
        Ok((!full).then_some(()))
    })
    .unwrap();
}
