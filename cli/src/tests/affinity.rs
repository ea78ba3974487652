use datapath_common::{
    Affinity, AffinityKey, Backend, BackendState, Frontend, FrontendKey, Ip4, Via,
};

use super::*;

const NOW: u32 = 20_000;

fn affinity(last: u8, service: u32, backend: u32, generation: u32, seen: u32) -> AffinityRow {
    let client = Ip4::new([10, 244, 0, last]);
    let value = Affinity {
        backend,
        generation,
        seen,
    };
    AffinityRow::new(AffinityKey { client, service }, value)
}

fn judge() -> Judge {
    let front = |port, service, affinity_secs| {
        let addr = Ip4::new([10, 96, 0, 1]);
        let key = FrontendKey {
            addr,
            port,
            proto: 6,
            scope: 0,
        };
        let value = Frontend {
            service,
            start: 0,
            len: 1,
            out_start: 1,
            out_len: 1,
            affinity_secs,
            ..Frontend::default()
        };
        FrontendRow::new(key, value)
    };
    let back = |id, state: BackendState| {
        let row = Backend {
            addr: Ip4::new([10, 244, 1, id as u8]),
            port: 8080,
            proto: 6,
            state: state as u8,
            generation: 4,
            via: Via::KERNEL,
        };
        BackendRow::new(id, row).unwrap()
    };
    let backends = [
        back(1, BackendState::Active),
        back(2, BackendState::Draining),
        back(3, BackendState::Active),
    ];
    Judge::new(
        &[front(80, 7, 10_800), front(81, 8, 0)],
        &[1, 2],
        &backends,
        NOW,
    )
}

fn names() -> Names {
    Names {
        services: [(7, "default/web:http".into())].into(),
        ..Names::default()
    }
}

fn found() -> Vec<AffinityRow> {
    vec![
        affinity(1, 7, 1, 4, NOW - 100),
        affinity(2, 7, 1, 3, NOW - 200),
        affinity(3, 7, 2, 4, NOW - 300),
        affinity(4, 7, 3, 4, NOW - 400),
        affinity(5, 7, 1, 4, NOW - 10_059),
        affinity(6, 8, 1, 4, NOW - 500),
    ]
}

#[test]
fn rows_are_worth_what_the_programs_make_of_them() {
    let report = rows(&found(), &judge(), &names(), 10);
    assert_eq!(
        render(&report, Style::default()),
        "\
CLIENT      SERVICE           BACKEND            AGE   LEFT  STATE
10.244.0.1  default/web:http  10.244.1.1:8080  1m47s  2h58m  live
10.244.0.2  default/web:http  id 1             3m34s      -  backend gone
10.244.0.3  default/web:http  10.244.1.2:8080  5m22s      -  backend gone
10.244.0.4  default/web:http  10.244.1.3:8080  7m09s      -  backend gone
10.244.0.6  #8                10.244.1.1:8080  8m56s      -  expired
10.244.0.5  default/web:http  10.244.1.1:8080  3h00m      -  expired
"
    );
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    assert!(text.contains("\"state\":\"backend_gone\""), "{text}");
}

#[test]
fn the_last_tick_counts() {
    // 10,800 s are 10,058 ticks and a bit.
    let state = |age| {
        let row = judge().row(&affinity(1, 7, 1, 4, NOW - age), &names());
        (row.state, row.remaining_secs)
    };
    assert_eq!(state(10_058), (State::Live, 0));
    assert_eq!(state(10_059), (State::Expired, 0));
    assert_eq!(state(0), (State::Live, 10_799));
}

#[test]
fn filters_take_clients_and_services() {
    let count = |client: Option<&str>, service: Option<&str>| {
        let filter = AffinityFilter {
            client: client.map(|net| net.parse().unwrap()),
            service: service.map(str::to_owned),
        };
        let found = found();
        let taken = found.iter().filter(|row| matches(row, &names(), &filter));
        taken.count()
    };
    assert_eq!(count(None, None), 6);
    assert_eq!(count(Some("10.244.0.2/31"), None), 2);
    assert_eq!(count(None, Some("WEB")), 5);
    assert_eq!(count(None, Some("8")), 1);
    assert_eq!(count(None, Some("#7")), 5);
    assert_eq!(count(Some("10.244.0.6/32"), Some("web")), 0);
}

#[test]
fn limits_say_what_they_hide() {
    let report = rows(&found(), &judge(), &names(), 1);
    assert_eq!((report.matching, report.affinities.len()), (6, 1));
    assert_eq!(
        report.notes,
        ["the latest 1 of 6 rows; all of them: --limit 0"]
    );
    assert_eq!(
        render(&Report::default(), Style::default()),
        "no session affinity\n"
    );
}
