use datapath_common::{Direction, Flow, FlowKey, Ip4};

use super::*;
use crate::args::{Protocol, State};
use crate::flows_summary;

const CLIENT: [u8; 4] = [10, 244, 0, 9];
const VIP: [u8; 4] = [10, 96, 0, 1];
const POD: [u8; 4] = [10, 244, 1, 2];

/// Ends of a packet, and what its row says.
struct Row4 {
    src: ([u8; 4], u16),
    dst: ([u8; 4], u16),
    direction: Direction,
    target: ([u8; 4], u16),
    state: FlowState,
    hairpin: bool,
    seen: u32,
}

fn row(row: &Row4) -> FlowRow {
    let key = FlowKey {
        src: Ip4::new(row.src.0),
        dst: Ip4::new(row.dst.0),
        sport: row.src.1,
        dport: row.dst.1,
        proto: 6,
        direction: row.direction as u8,
        reserved: 0,
    };
    let flow = Flow {
        addr: Ip4::new(row.target.0),
        port: row.target.1,
        state: row.state as u8,
        hairpin: u8::from(row.hairpin),
        backend: 5,
        generation: 2,
        service: 1,
        opened: 1000,
        seen: row.seen,
        ..Flow::default()
    };
    FlowRow::new(key, flow)
}

fn forward(sport: u16, state: FlowState, seen: u32) -> Row4 {
    Row4 {
        src: (CLIENT, sport),
        dst: (VIP, 80),
        direction: Direction::Forward,
        target: (POD, 8080),
        state,
        hairpin: false,
        seen,
    }
}

fn reply(sport: u16, state: FlowState, seen: u32) -> Row4 {
    Row4 {
        src: (POD, 8080),
        dst: (CLIENT, sport),
        direction: Direction::Reply,
        target: (VIP, 80),
        ..forward(sport, state, seen)
    }
}

fn views() -> Vec<FlowView> {
    let hairpin = Row4 {
        src: (POD, 50_000),
        hairpin: true,
        ..forward(0, FlowState::Opening, 1090)
    };
    let hairpin_reply = Row4 {
        src: (POD, 8080),
        dst: (VIP, 50_000),
        direction: Direction::Reply,
        target: (VIP, 80),
        ..forward(0, FlowState::Opening, 1090)
    };
    let rows = [
        forward(40_000, FlowState::Opening, 1100),
        reply(40_000, FlowState::Established, 1099),
        forward(40_001, FlowState::Opening, 1050),
        reply(40_002, FlowState::Closing, 1010),
        hairpin,
        Row4 {
            hairpin: true,
            ..hairpin_reply
        },
    ];
    join(&rows.map(|r| row(&r)))
}

#[test]
fn two_rows_are_one_flow_and_the_latest_comes_first() {
    let report = rows(&views(), &Names::default(), 1100, usize::MAX);
    assert_eq!(
        render(
            &report,
            Style {
                color: false,
                width: Some(110)
            }
        ),
        "\
PROTO  CLIENT            FRONTEND      BACKEND          STATE          AGE   IDLE  SERVICE
TCP    10.244.0.9:40000  10.96.0.1:80  10.244.1.2:8080  established  1m47s     1s  #1
TCP    10.244.1.2:50000  10.96.0.1:80  10.244.1.2:8080  opening      1m47s    10s  #1
TCP    10.244.0.9:40001  10.96.0.1:80  10.244.1.2:8080  opening*     1m47s    53s  #1
TCP    10.244.0.9:40002  10.96.0.1:80  10.244.1.2:8080  closing*     1m47s  1m36s  #1
* only one of the two rows of the flow is in the table
"
    );
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn a_flow_keeps_the_keys_of_both_rows() {
    let views = views();
    let both = |view: &&FlowView| view.forward.is_some() && view.reply.is_some();
    assert_eq!(
        views.iter().filter(both).count(),
        2,
        "the ordinary one and the hairpin"
    );
}

#[test]
fn limits_say_what_they_hide() {
    let report = rows(&views(), &Names::default(), 1100, 1);
    assert_eq!((report.matching, report.flows.len()), (4, 1));
    assert_eq!(
        report.notes,
        ["the latest 1 of 4 flows; all of them: --limit 0"]
    );
    assert_eq!(render(&Report::default(), Style::default()), "no flows\n");
}

#[test]
fn filters_take_any_end_and_all_conditions() {
    let count = |filter: &FlowFilter| views().iter().filter(|v| v.matches(filter)).count();
    let net = |text: &str| FlowFilter {
        addr: Some(text.parse().unwrap()),
        ..FlowFilter::default()
    };
    assert_eq!(count(&FlowFilter::default()), 4);
    assert_eq!(count(&net("10.244.0.0/24")), 3);
    assert_eq!(count(&net("10.96.0.1/32")), 4);
    assert_eq!(count(&net("fd00::/8")), 0);
    assert_eq!(
        count(&FlowFilter {
            port: Some(40_001),
            ..FlowFilter::default()
        }),
        1
    );
    assert_eq!(
        count(&FlowFilter {
            state: Some(State::Opening),
            ..net("10.244.0.0/24")
        }),
        1
    );
    assert_eq!(
        count(&FlowFilter {
            proto: Some(Protocol::Udp),
            ..FlowFilter::default()
        }),
        0
    );
}

#[test]
fn the_summary_counts_by_service_and_client() {
    let table = crate::tables::MapUsage {
        name: "tulle_flow_v4".into(),
        what: String::new(),
        used: Some(6),
        at_least: false,
        limit: 48,
        memory_bytes: None,
    };
    let report = flows_summary::rows(&views(), vec![table], &Names::default());
    assert_eq!(
        flows_summary::render(
            &report,
            Style {
                color: false,
                width: Some(100)
            }
        ),
        "\
4 flows

SERVICE  PROTO  OPENING  ESTABLISHED  CLOSING  TOTAL
#1       TCP          2            1        1      4

CLIENT      OPENING  TOTAL
10.244.0.9        1      3
10.244.1.2        1      1

TABLE          ROWS  LIMIT    FULL
tulle_flow_v4     6     48  12.5 %
"
    );
}

#[test]
fn a_flush_keeps_the_reply_rows_that_nobody_would_write_anew() {
    let rows = [
        forward(1, FlowState::Established, 1050),
        reply(1, FlowState::Established, 1050),
        forward(2, FlowState::Established, 1050),
        reply(3, FlowState::Established, 1050),
    ];
    let views = join(&rows.each_ref().map(row));
    let front: Front = ((VIP, 80).into(), proto::TCP);
    let of = |unasking: &[Front], agent| {
        let unasking = unasking.iter().copied().collect();
        let all = Forgotten::of(&views, &unasking, agent);
        (all.removed.len(), all.closing.len(), all.kept)
    };
    assert_eq!(of(&[front], false), (2, 0, 2));
    assert_eq!(of(&[front], true), (2, 2, 0), "the agent will see them");
    assert_eq!(of(&[], false), (2, 2, 0), "the next packet sees them");
    let masqueraded = rows.each_ref().map(|of| FlowRow {
        nat: Some(([192, 0, 2, 1], 50_000).into()),
        ..row(of)
    });
    let all = Forgotten::of(&join(&masqueraded), &[front].into(), false);
    assert_eq!(all.kept, 0, "masqueraded packets ask the flow table");
    let other: Front = ((VIP, 81).into(), proto::TCP);
    assert_eq!(of(&[other], false), (2, 2, 0), "of another service");
}

#[test]
fn flows_of_direct_return_are_whole_on_either_node() {
    let of = |node: NodeClient, backend: u32, row4: &Row4| FlowRow {
        node: Some(node),
        backend,
        ..row(row4)
    };
    // Where the client asked: one row.
    let asked = of(
        NodeClient::Direct,
        5,
        &forward(40_000, FlowState::Established, 1090),
    );
    // Where the backend is: both, of no service that this node knows.
    let here = [
        forward(40_001, FlowState::Established, 1080),
        reply(40_001, FlowState::Established, 1080),
    ];
    let here = here.each_ref().map(|row| of(NodeClient::Forwarded, 0, row));
    let all = join(&[asked, here[0], here[1]]);
    let report = rows(&all, &Names::default(), 1100, usize::MAX);
    let [first, second] = &report.flows[..] else {
        panic!("{report:?}");
    };
    assert!(first.direct && !first.forwarded, "{first:?}");
    assert_eq!(
        (first.rows.as_str(), first.state_text()),
        ("forward", "established".into())
    );
    assert!(second.forwarded && !second.direct, "{second:?}");
    assert_eq!(second.frontend, Some(SocketAddr::from((VIP, 80))));
    assert_eq!(second.service_text(), OTHER_NODES);
    assert_eq!(half_flows(&report.flows), "");
}
