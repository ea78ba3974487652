use datapath_common::{Direction, Flow, FlowKey, FlowState, Hook, Ip4, proto};

use super::*;
use crate::args::{FlowFilter, Protocol};
use crate::tables::FlowRow;

type End = ([u8; 4], u16);

const OUTSIDE: [u8; 4] = [203, 0, 113, 7];
const NODE: [u8; 4] = [192, 0, 2, 1];
const POD: [u8; 4] = [10, 244, 1, 2];
const REMOTE: [u8; 4] = [198, 51, 100, 1];

/// What the two rows of a flow say; `frontend` is none without a service.
struct Masqueraded {
    client: End,
    translated: End,
    frontend: Option<End>,
    backend: End,
    proto: u8,
    seen: u32,
}

fn row(src: End, dst: End, target: End, nat: Option<End>, of: &Masqueraded) -> FlowRow {
    let reply = src == of.backend;
    let direction = if reply {
        Direction::Reply
    } else {
        Direction::Forward
    };
    let key = FlowKey {
        src: Ip4::new(src.0),
        dst: Ip4::new(dst.0),
        sport: src.1,
        dport: dst.1,
        proto: of.proto,
        direction: direction as u8,
        reserved: 0,
    };
    let service = u32::from(of.frontend.is_some());
    let (nat_addr, nat_port) = nat.unwrap_or(([0; 4], 0));
    let flow = Flow {
        addr: Ip4::new(target.0),
        port: target.1,
        nat_addr: Ip4::new(nat_addr),
        nat_port,
        state: FlowState::Established as u8,
        backend: service * 5,
        generation: service * 2,
        service: service * 7,
        opened: 900,
        seen: of.seen,
        ..Flow::default()
    };
    FlowRow::new(key, flow)
}

impl Masqueraded {
    fn rows(&self) -> [FlowRow; 2] {
        let frontend = self.frontend.unwrap_or(self.backend);
        let (client, nat) = (self.client, self.translated);
        [
            row(client, frontend, self.backend, Some(nat), self),
            row(self.backend, nat, frontend, Some(client), self),
        ]
    }
}

fn service(client_port: u16, port: u16, seen: u32) -> Masqueraded {
    Masqueraded {
        client: (OUTSIDE, client_port),
        translated: (NODE, port),
        frontend: Some((NODE, 30_080)),
        backend: (POD, 8080),
        proto: proto::TCP,
        seen,
    }
}

fn egress(proto: u8, client_port: u16, port: u16, remote_port: u16) -> Masqueraded {
    Masqueraded {
        client: (POD, client_port),
        translated: (NODE, port),
        frontend: None,
        backend: (REMOTE, remote_port),
        proto,
        seen: 950,
    }
}

fn views() -> Vec<FlowView> {
    let plain = row(
        ([10, 244, 0, 9], 1),
        ([10, 96, 0, 1], 80),
        (POD, 8080),
        None,
        &service(0, 0, 999),
    );
    let mut rows = vec![plain];
    rows.extend(service(40_000, 50_001, 1000).rows());
    rows.extend(service(40_001, 50_002, 990).rows());
    // The client came back from the same port: an old reply row is left.
    rows.push(service(40_001, 50_000, 960).rows()[1]);
    rows.extend(egress(proto::UDP, 5353, 50_001, 53).rows());
    rows.extend(egress(proto::ICMP, 77, 50_009, 0).rows());
    flows::join(&rows)
}

fn report_of(shown: impl Fn(&FlowView) -> bool, limit: usize, config: Option<Config>) -> Report {
    let counters = [CounterRow {
        hook: Hook::NicIn,
        reason: Reason::SnatPortsExhausted as u8,
        packets: 3,
        bytes: 180,
    }];
    let facts = Facts {
        names: &Names::default(),
        config,
        counters: &counters,
        now: 1000,
    };
    rows(&views(), shown, limit, facts)
}

fn config(snat_ports: u16) -> Config {
    Config {
        snat_first: 50_000,
        snat_ports,
        ..Config::EMPTY
    }
}

#[test]
fn both_rows_tell_the_same_client() {
    let mut all = views();
    all.retain(|view| view.translated.is_some());
    let whole = all
        .iter()
        .filter(|v| v.forward.is_some() && v.reply.is_some());
    assert_eq!((all.len(), whole.count()), (5, 4));
    let report = report_of(|_| true, 10, Some(config(10_000)));
    assert_eq!(
        render(&report, Style::default()),
        "\
PROTO  CLIENT             TRANSLATED       BACKEND          STATE         IDLE  FRONTEND         \
         SERVICE
TCP    203.0.113.7:40000  192.0.2.1:50001  10.244.1.2:8080  established     0s  \
         192.0.2.1:30080  #7
TCP    203.0.113.7:40001  192.0.2.1:50002  10.244.1.2:8080  established    10s  \
         192.0.2.1:30080  #7
TCP    203.0.113.7:40001  192.0.2.1:50000  10.244.1.2:8080  established*   42s  \
         192.0.2.1:30080  #7
ICMP   10.244.1.2:77      192.0.2.1:50009  198.51.100.1:0   established    53s  -                \
         (no service)
UDP    10.244.1.2:5353    192.0.2.1:50001  198.51.100.1:53  established    53s  -                \
         (no service)
* only one of the two rows of the flow is in the table

5 masqueraded flows; 10,000 ports (50000 to 59999) for each translated address, backend and \
         protocol; 3 packets dropped for want of a port
TRANSLATED  BACKEND          PROTO  PORTS   USED
192.0.2.1   10.244.1.2:8080  TCP        3  0.0 %
192.0.2.1   198.51.100.1:0   ICMP       1  0.0 %
192.0.2.1   198.51.100.1:53  UDP        1  0.0 %
"
    );
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn exhaustion_is_told() {
    let report = report_of(|_| true, 1, Some(config(4)));
    assert_eq!(report.users[0].ports, 3, "the old reply row holds its port");
    assert_eq!(
        report.notes,
        [
            "the latest 1 of 5 flows; all of them: --limit 0",
            "1 backend with 75 % of the ports in use or more: new flows there may find none and be \
             dropped (snat_ports_exhausted); widen --snat-ports or set externalTrafficPolicy: Local"
        ]
    );
    let text = render(&report_of(|_| false, 1, None), Style::default());
    assert_eq!(
        text,
        "no masqueraded flows\n\n0 masqueraded flows; no program is loaded that says how many ports \
         there are; 3 packets dropped for want of a port\n"
    );
    let text = render(&report_of(|_| false, 1, Some(config(0))), Style::default());
    assert!(text.contains("masquerade is off"), "{text}");
}

#[test]
fn a_filter_shows_all_ports_of_the_backends_that_it_takes() {
    let of = |filter: FlowFilter| {
        let report = report_of(|view| view.matches(&filter), 10, Some(config(10_000)));
        let users = report.users.iter().map(|user| user.ports);
        (report.matching, users.collect::<Vec<_>>())
    };
    let port = |port| FlowFilter {
        port: Some(port),
        ..FlowFilter::default()
    };
    assert_eq!(of(port(40_000)), (1, vec![3]), "ports of other clients too");
    assert_eq!(of(port(50_009)), (1, vec![1]), "as translated");
    let icmp = FlowFilter {
        proto: Some(Protocol::Icmp),
        ..FlowFilter::default()
    };
    assert_eq!(of(icmp), (1, vec![1]));
    let node = FlowFilter {
        addr: Some("192.0.2.1/32".parse().unwrap()),
        ..FlowFilter::default()
    };
    assert_eq!(of(node), (5, vec![3, 1, 1]));
}

#[test]
fn flows_show_what_is_translated() {
    let report = flows::rows(&views(), &Names::default(), 1000, 2);
    assert_eq!(
        flows::render(&report, Style::default()),
        "\
PROTO  CLIENT             TRANSLATED       FRONTEND         BACKEND          STATE           \
         AGE  IDLE  SERVICE
TCP    203.0.113.7:40000  192.0.2.1:50001  192.0.2.1:30080  10.244.1.2:8080  established   \
         1m47s    0s  #7
TCP    10.244.0.9:1       -                10.96.0.1:80     10.244.1.2:8080  established*  \
         1m47s    1s  #7
* only one of the two rows of the flow is in the table
"
    );
    let report = flows::rows(&views(), &Names::default(), 1000, usize::MAX);
    let echo = report.flows.iter().find(|flow| flow.protocol == "ICMP");
    let echo = serde_json::to_value(echo.unwrap()).unwrap();
    assert_eq!(echo["frontend"], serde_json::Value::Null);
    assert_eq!(echo["translated"], "192.0.2.1:50009");
    assert_eq!(
        (&echo["number"], &echo["backend_id"]),
        (&0.into(), &0.into())
    );
    let text = flows::render(&report, Style::default());
    assert!(text.contains("(no service)"), "{text}");
}
