use datapath_common::{
    Backend, BackendState, Frontend, FrontendFlags, FrontendKey, Ip4, Ip6, SourceNet, Via,
};

use super::*;
use crate::output::Style;

const STYLE: Style = Style {
    color: false,
    width: Some(100),
};

fn frontend(port: u16, service: u32, start: u32, len: u32, flags: u16) -> FrontendRow {
    frontend_at([10, 96, 0, 1], port, service, start, len, flags)
}

fn frontend_at(
    addr: [u8; 4],
    port: u16,
    service: u32,
    start: u32,
    len: u32,
    flags: u16,
) -> FrontendRow {
    let key = FrontendKey {
        addr: Ip4::new(addr),
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
            flags,
            ..Frontend::default()
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

fn tables() -> Tables {
    let mut web = frontend(80, 1, 0, 2, FrontendFlags::FLOWS_DECIDE);
    (web.value.table, web.value.out_table) = (4, 4);
    let mut sticky = frontend(443, 3, 6, 4, FrontendFlags::MASQUERADE_OUTSIDE);
    sticky.value.affinity_secs = 10_800;
    let six = FrontendKey {
        addr: Ip6::new([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        port: 80,
        proto: 132,
        scope: 0,
    };
    let six_value = Frontend {
        service: 1,
        start: 10,
        len: 1,
        out_start: 10,
        out_len: 1,
        ..Frontend::default()
    };
    Tables {
        frontends: vec![
            frontend(53, 2, 0, 0, 0),
            web,
            sticky,
            frontend(0, 0, 0, 0, FrontendFlags::ADDRESS),
            FrontendRow::new(six, six_value),
        ],
        segments: vec![1, 2, 2, 1, 2, 2, 1, 2, 3, 4, 1],
        backends: [1, 2, 3, 4].map(backend).to_vec(),
        sources: Vec::new(),
    }
}

/// A service of every kind of frontend; clients outside go elsewhere.
fn exposed() -> Tables {
    let mut cluster_ip = frontend(80, 7, 0, 2, FrontendFlags::MASQUERADE_OUTSIDE);
    let outside = |mut row: FrontendRow, out_len, flags| {
        (row.value.out_start, row.value.out_len) = (2, out_len);
        row.value.flags |= flags;
        row
    };
    cluster_ip.value.affinity_secs = 60;
    let source = |service: u32, net: [u8; 4], bits: u32| {
        SourceRow::new(32 + bits, SourceNet::new(service, Ip4::new(net))).unwrap()
    };
    Tables {
        frontends: vec![
            frontend(0, 0, 0, 0, FrontendFlags::ADDRESS),
            cluster_ip,
            outside(frontend_at([192, 0, 2, 1], 30_080, 7, 0, 2, 0), 1, 0),
            outside(
                frontend_at([203, 0, 113, 9], 80, 7, 0, 2, 0),
                0,
                FrontendFlags::DROP_OUTSIDE | FrontendFlags::SOURCE_RANGES,
            ),
            frontend_at(
                [203, 0, 113, 8],
                80,
                7,
                0,
                0,
                FrontendFlags::DROP_INSIDE
                    | FrontendFlags::MASQUERADE_PODS
                    | FrontendFlags::MASQUERADE_OUTSIDE
                    | FrontendFlags::FLOWS_MAY_BE_LOST,
            ),
        ],
        segments: vec![1, 2, 3],
        backends: [1, 2, 3].map(backend).to_vec(),
        sources: vec![
            source(7, [198, 51, 100, 0], 24),
            source(7, [10, 0, 0, 0], 8),
            source(8, [0, 0, 0, 0], 0),
        ],
    }
}

fn filtered(text: &str) -> Report {
    let filter = Filter {
        text: Some(text),
        ..Filter::default()
    };
    rows(&tables(), &names(), filter)
}

fn report() -> Report {
    rows(&tables(), &names(), Filter::default())
}

#[test]
fn the_table_is_short() {
    assert_eq!(
        render(&report(), STYLE, false, false),
        "\
SERVICE           FRONTEND       PROTO  KIND       BACKENDS  FLAGS           ENDPOINTS
default/web:http  10.96.0.1:80   TCP    ClusterIP         2  changed         10.244.0.1:8080 25%
                                                                             10.244.0.2:8080 75%
default/web:http  [fd00::1]:80   SCTP   external          1  -               id 1 (free!)
kube-system/dns   10.96.0.1:53   TCP    ClusterIP         0  -               none: clients are
                                                                             refused
#3                10.96.0.1:443  TCP    ClusterIP         4  masq outside,   10.244.0.1:8080
                                                             affinity 3h00m  10.244.0.2:8080
                                                                             10.244.0.3:8080 +1
"
    );
}

#[test]
fn the_wide_table_has_it_all() {
    let style = Style::default();
    assert_eq!(
        render(&filtered("10.96.0.1:443"), style, true, false),
        "\
SERVICE  FRONTEND       PROTO  KIND       BACKENDS  NUMBER  SLOTS  FLAGS                         \
         ENDPOINTS
#3       10.96.0.1:443  TCP    ClusterIP         4       3      4  masq outside, affinity \
         3h00m  10.244.0.1:8080 10.244.0.2:8080 10.244.0.3:8080 10.244.0.4:8080
"
    );
    let exposed = rows(&exposed(), &Names::default(), Filter::default());
    assert_eq!(render(&exposed, style, true, false), "\
SERVICE  FRONTEND         PROTO  KIND         BACKENDS  NUMBER       SLOTS  FLAGS                                 \
         ENDPOINTS
#7       10.96.0.1:80     TCP    ClusterIP           2       7           2  masq outside, \
         affinity 1m00s          10.244.0.1:8080 10.244.0.2:8080
#7       192.0.2.1:30080  TCP    NodePort   2 in 1 out       7  2 in 1 out  -                                     \
         inside 10.244.0.1:8080 10.244.0.2:8080; outside 10.244.0.3:8080
#7       203.0.113.8:80   TCP    external   0 in 0 out       7  0 in 0 out  masq all, flows \
         may be lost           inside none: packets are dropped; outside none: clients are \
         refused
#7       203.0.113.9:80   TCP    VIP        2 in 0 out       7  2 in 0 out  only from \
         10.0.0.0/8 198.51.100.0/24  inside 10.244.0.1:8080 10.244.0.2:8080; outside none: \
         packets are dropped
");
    assert_eq!(
        render(&exposed, style, false, false),
        "\
SERVICE  FRONTEND         PROTO  KIND         BACKENDS  FLAGS                         ENDPOINTS
#7       10.96.0.1:80     TCP    ClusterIP           2  masq outside, affinity 1m00s  \
         10.244.0.1:8080 10.244.0.2:8080
#7       192.0.2.1:30080  TCP    NodePort   2 in 1 out  -                             inside \
         10.244.0.1:8080 10.244.0.2:8080; outside 10.244.0.3:8080
#7       203.0.113.8:80   TCP    external   0 in 0 out  masq all, flows may be lost   inside \
         none: packets are dropped; outside none: clients are refused
#7       203.0.113.9:80   TCP    VIP        2 in 0 out  2 source ranges               inside \
         10.244.0.1:8080 10.244.0.2:8080; outside none: packets are dropped
"
    );
}

#[test]
fn traffic_is_that_of_the_service_port() {
    let mut exposed = rows(&exposed(), &Names::default(), Filter::default());
    exposed.services.truncate(2);
    let traffic = datapath_common::Traffic {
        flows: 12,
        packets: 3_456,
        bytes: 2048,
        reply_packets: 1,
        reply_bytes: 60,
    };
    exposed.services[1].number = 9_999;
    add_traffic(&mut exposed, &[(7, traffic)].into());
    assert_eq!(render(&exposed, Style::default(), false, true), "\
SERVICE  FRONTEND         PROTO  KIND         BACKENDS  FLOWS  PACKETS    BYTES  REPLIES  \
         REPLY BYTES  FLAGS                         ENDPOINTS
#7       10.96.0.1:80     TCP    ClusterIP           2     12    3,456  2.0 KiB        1         \
         60 B  masq outside, affinity 1m00s  10.244.0.1:8080 10.244.0.2:8080
#9999    192.0.2.1:30080  TCP    NodePort   2 in 1 out      -        -        -        -            \
         -  -                             inside 10.244.0.1:8080 10.244.0.2:8080; outside \
         10.244.0.3:8080
");
}

#[test]
fn filters_look_at_names_and_addresses() {
    let of = |filter| {
        let report = rows(&tables(), &names(), filter);
        let numbers = report.services.iter().map(|row| row.number);
        numbers.collect::<Vec<_>>()
    };
    let numbers = |text| {
        of(Filter {
            text: Some(text),
            ..Filter::default()
        })
    };
    assert_eq!(numbers("WEB"), [1, 1]);
    assert_eq!(numbers("10.244.0.3"), [3]);
    assert_eq!(numbers("sctp"), [1]);
    assert_eq!(numbers("clusterip"), [1, 2, 3]);
    assert!(numbers("nothing").is_empty());
    let named = |namespace, name| {
        of(Filter {
            namespace,
            name,
            text: None,
        })
    };
    assert_eq!(named(Some("kube-system"), None), [2]);
    assert_eq!(named(Some("default"), Some("web")), [1, 1]);
    assert!(named(None, Some("we")).is_empty(), "not a part of a name");
    assert_eq!(
        render(&filtered("nothing"), STYLE, false, false),
        "no services\n"
    );
}

#[test]
fn a_host_port_is_its_pods() {
    let tables = Tables {
        frontends: vec![frontend_at([192, 0, 2, 1], 8080, 9, 0, 1, 0)],
        segments: vec![1],
        ..Tables::default()
    };
    let with = |names: &Names| rows(&tables, names, Filter::default()).services.remove(0);
    let names = Names {
        services: [(9, "apps/pod/web:8080".to_owned())].into(),
        ..Names::default()
    };
    let row = with(&names);
    assert_eq!(row.kind, Kind::HostPort);
    let parts = [row.namespace, row.name, row.port_name].map(Option::unwrap);
    assert_eq!(parts, ["apps", "pod/web", "8080"]);
    assert_eq!(row.service.unwrap(), "apps/pod/web:8080");
    assert_eq!(with(&Names::default()).kind, Kind::External);
}

#[test]
fn a_segment_beyond_the_table_names_no_backend() {
    assert_eq!(slots(7, 4, &[0; 8]), [0]);
    assert_eq!(slots(u32::MAX, u32::MAX, &[0; 8]), [0; 0]);
}

#[test]
fn lists_that_are_empty_in_different_ways_are_two() {
    let mut row = frontend(80, 1, 0, 0, 0);
    assert!(row.one_list());
    let outside = |row: FrontendRow| {
        let tables = Tables {
            frontends: vec![row],
            ..Tables::default()
        };
        let report = rows(&tables, &Names::default(), Filter::default());
        report.services[0].outside.clone()
    };
    assert_eq!(outside(row), None);
    row.value.flags = FrontendFlags::DROP_OUTSIDE;
    let expected = Outside {
        slots: 0,
        backends: Vec::new(),
        when_empty: WhenEmpty::Drops,
    };
    assert_eq!(outside(row), Some(expected));
    row.value.flags |= FrontendFlags::DROP_INSIDE;
    assert_eq!(outside(row), None);
}

#[test]
fn json_is_read_back_and_complete() {
    for tables in [tables(), exposed()] {
        let report = rows(&tables, &names(), Filter::default());
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
    let text = serde_json::to_string(&report()).unwrap();
    assert!(text.contains("\"frontend\":\"[fd00::1]:80\""), "{text}");
    let report = rows(&exposed(), &Names::default(), Filter::default());
    let value = serde_json::to_value(&report).unwrap();
    let row = value["services"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["frontend"] == "203.0.113.9:80")
        .unwrap();
    assert_eq!(row["kind"], "vip");
    assert_eq!(row["outside"]["when_empty"], "drops");
    assert_eq!(row["source_ranges"][1], "198.51.100.0/24");
    assert_eq!(row["masquerades_outside"], false);
}
