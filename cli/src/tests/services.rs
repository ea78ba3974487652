use datapath_common::{Backend, BackendState, Frontend, FrontendFlags, FrontendKey, Ip4, Ip6, Via};

use super::*;

const STYLE: Style = Style {
    color: false,
    width: Some(100),
};

fn frontend(port: u16, service: u32, start: u32, len: u32, flags: u16) -> FrontendRow {
    let key = FrontendKey {
        addr: Ip4::new([10, 96, 0, 1]),
        port,
        proto: 6,
        scope: 0,
    };
    FrontendRow::new(
        key,
        Frontend {
            service,
            start,
            len,
            out_start: start,
            out_len: len,
            affinity_secs: 0,
            flags,
            reserved: 0,
        },
    )
}

fn backend(id: u32) -> BackendRow {
    let addr = Ip4::new([10, 244, 0, id as u8]);
    let state = BackendState::Active as u8;
    let row = Backend {
        addr,
        port: 8080,
        proto: 6,
        state,
        generation: 0,
        via: Via::KERNEL,
    };
    BackendRow::new(id, row).unwrap()
}

fn names() -> Names {
    let services = [
        (1, "default/web:http".to_owned()),
        (2, "kube-system/dns".to_owned()),
    ];
    Names {
        services: services.into(),
        ..Names::default()
    }
}

fn report(filter: Option<&str>) -> Report {
    let mut sticky = frontend(443, 3, 4, 4, 0);
    sticky.value.affinity_secs = 10_800;
    let six = FrontendKey {
        addr: Ip6::new([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        port: 80,
        proto: 132,
        scope: 0,
    };
    let frontends = [
        frontend(53, 2, 0, 0, 0),
        frontend(80, 1, 0, 4, FrontendFlags::FLOWS_DECIDE),
        sticky,
        frontend(0, 0, 0, 0, FrontendFlags::ADDRESS),
        FrontendRow::new(
            six,
            Frontend {
                service: 1,
                start: 8,
                len: 1,
                ..Frontend::default()
            },
        ),
    ];
    let segments = [2, 1, 2, 2, 4, 3, 2, 1, 1];
    rows(
        &frontends,
        &segments,
        &[1, 2, 3, 4].map(backend),
        &names(),
        filter,
    )
}

#[test]
fn the_table_is_short() {
    assert_eq!(
        render(&report(None), STYLE, false),
        "\
SERVICE           FRONTEND       PROTO  BACKENDS  FLOWS    ENDPOINTS
default/web:http  10.96.0.1:80   TCP           2  changed  10.244.0.2:8080 ×3 10.244.0.1:8080 ×1
default/web:http  [fd00::1]:80   SCTP          1  -        id 1 (free!)
kube-system/dns   10.96.0.1:53   TCP           0  -        none: clients are refused
#3                10.96.0.1:443  TCP           4  -        10.244.0.4:8080 10.244.0.3:8080
                                                           10.244.0.2:8080 +1
"
    );
}

#[test]
fn the_wide_table_has_it_all() {
    let style = Style {
        color: false,
        width: None,
    };
    assert_eq!(
        render(&report(Some("10.96.0.1:443")), style, true),
        "\
SERVICE  FRONTEND       PROTO  BACKENDS  NUMBER  SLOTS  AFFINITY  FLOWS  ENDPOINTS
#3       10.96.0.1:443  TCP           4       3      4     3h00m  -      \
         10.244.0.4:8080 10.244.0.3:8080 10.244.0.2:8080 10.244.0.1:8080
"
    );
}

#[test]
fn filters_look_at_names_and_addresses() {
    let numbers = |filter| {
        report(Some(filter))
            .services
            .iter()
            .map(|row| row.number)
            .collect::<Vec<_>>()
    };
    assert_eq!(numbers("WEB"), [1, 1]);
    assert_eq!(numbers("10.244.0.3"), [3]);
    assert_eq!(numbers("sctp"), [1]);
    assert!(numbers("nothing").is_empty());
    assert_eq!(
        render(&report(Some("nothing")), STYLE, false),
        "no services\n"
    );
}

#[test]
fn a_segment_beyond_the_table_names_no_backend() {
    assert_eq!(slots_of(&frontend(80, 1, 7, 4, 0), &[0; 8]), [(0, 1)]);
    assert_eq!(
        slots_of(&frontend(80, 1, u32::MAX, u32::MAX, 0), &[0; 8]),
        []
    );
}

#[test]
fn json_is_read_back() {
    let report = report(None);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    assert!(text.contains("\"frontend\":\"[fd00::1]:80\""), "{text}");
}
