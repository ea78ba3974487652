use admin_api::Peer;
use datapath_common::{Backend, Frontend, FrontendKey, Ip4};

use super::*;

fn via(kind: ViaKind, ifindex: u32) -> Via {
    let node = Ip4::new([192, 168, 0, 2]);
    Via {
        kind: kind as u8,
        ifindex,
        node,
        next_hop: node,
        ..Via::KERNEL
    }
}

fn report(names: &Names, filter: Option<&str>) -> Report {
    let backend = |id: u32, state, via| {
        let addr = Ip4::new([10, 244, 0, id as u8]);
        let row = Backend {
            addr,
            port: 53,
            proto: 17,
            state,
            generation: 1,
            via,
        };
        BackendRow::new(id, row).unwrap()
    };
    let backends = [
        backend(1, 1, via(ViaKind::Local, 7)),
        backend(2, 1, via(ViaKind::Vxlan, 2)),
        backend(3, 2, via(ViaKind::Local, 8)),
        backend(4, 9, Via::KERNEL),
        backend(5, 1, via(ViaKind::Host, 0)),
    ];
    let key = FrontendKey {
        addr: Ip4::new([10, 96, 0, 10]),
        port: 53,
        proto: 17,
        scope: 0,
    };
    let value = Frontend {
        service: 5,
        start: 0,
        len: 2,
        out_start: 2,
        out_len: 1,
        ..Frontend::default()
    };
    let interfaces = |ifindex| (ifindex == 7).then(|| "veth7".to_owned());
    let frontends = [FrontendRow::new(key, value)];
    rows(
        &backends,
        &frontends,
        &[1, 2, 5],
        names,
        &interfaces,
        filter,
    )
}

fn names() -> Names {
    let peer = Peer {
        node: "n2".into(),
        address: [192, 168, 0, 2].into(),
        pod_cidrs: Vec::new(),
        vtep_mac: None,
    };
    Names {
        services: [(5, "kube-system/dns:dns".into())].into(),
        backends: [((4, 3), vec!["kube-system/dns:dns".into()])].into(),
        peers: vec![peer],
        notes: Vec::new(),
    }
}

#[test]
fn the_way_to_each_backend_is_told() {
    assert_eq!(
        render(
            &report(&names(), None),
            Style {
                color: false,
                width: Some(100)
            },
            false
        ),
        "\
ID  GEN  ADDRESS        PROTO  STATE     VIA                     SERVICES
 1    1  10.244.0.1:53  UDP    active    local veth7             kube-system/dns:dns
 2    1  10.244.0.2:53  UDP    active    vxlan n2 (192.168.0.2)  kube-system/dns:dns
 3    1  10.244.0.3:53  UDP    draining  local if8               kube-system/dns:dns
 4    1  10.244.0.4:53  UDP    unknown   kernel                  -
 5    1  10.244.0.5:53  UDP    active    this node               kube-system/dns:dns
"
    );
}

#[test]
fn filters_look_at_names_ways_and_states() {
    let ids = |filter| {
        let rows = report(&names(), Some(filter)).backends;
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(ids("n2"), [2]);
    assert_eq!(ids("DNS"), [1, 2, 3, 5], "also of clients outside alone");
    assert_eq!(ids("this node"), [5]);
    assert_eq!(ids("draining"), [3]);
    assert_eq!(
        render(&report(&names(), Some("no such")), Style::default(), false),
        "no backends\n"
    );
}

#[test]
fn json_is_read_back() {
    let report = report(&Names::default(), None);
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    assert!(text.contains("\"via\":{\"kind\":\"local\",\"ifindex\":7,\"interface\":\"veth7\"}"));
    assert!(text.contains("\"via\":{\"kind\":\"host\"}"), "{text}");
    assert!(!text.contains("traffic"), "{text}");
    assert_eq!(report.backends[0].services, ["#5"]);
}

#[test]
fn traffic_is_that_of_the_family() {
    let mut report = report(&names(), Some("this node"));
    let traffic = datapath_common::Traffic {
        flows: 1,
        packets: 2_000,
        bytes: 3 << 20,
        reply_packets: 4,
        reply_bytes: 5,
    };
    add_traffic(&mut report, 6, &[(5, traffic)].into());
    assert_eq!(report.backends[0].traffic, None);
    add_traffic(&mut report, 4, &[(5, traffic)].into());
    assert_eq!(
        render(&report, Style::default(), true),
        "\
ID  GEN  ADDRESS        PROTO  STATE   VIA        FLOWS  PACKETS    BYTES  REPLIES  REPLY BYTES  \
         SERVICES
 5    1  10.244.0.5:53  UDP    active  this node      1    2,000  3.0 MiB        4          5 B  \
         kube-system/dns:dns
"
    );
}
