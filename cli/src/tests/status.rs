use admin_api::{Feature, MapFault, Overlay, RowRound, Status, Warning};
use datapath_common::Reason;

use super::*;
use crate::output::Style;

const STYLE: Style = Style {
    color: false,
    width: Some(100),
};

fn counter(hook: Hook, reason: u8, packets: u64) -> CounterRow {
    CounterRow {
        hook,
        reason,
        packets,
        bytes: 0,
    }
}

fn report() -> Report {
    let usage = |name: &str, used, limit| MapUsage {
        name: name.into(),
        what: "what it holds".into(),
        used,
        at_least: used == Some(1_000_000),
        limit,
        memory_bytes: Some(1 << 20),
    };
    Report {
        bpffs: "/sys/fs/bpf/tulle".into(),
        agent: None,
        agent_error: Some("no agent listens at /run/tulle/agent.sock".into()),
        agent_age_secs: None,
        last_round_age_secs: None,
        links: vec![LinkRow {
            pin: "pod_from-7".into(),
            program: Some("tulle_pod_from".into()),
            ifindex: Some(7),
            interface: Some("veth7".into()),
            mode: "tcx ingress".into(),
        }],
        maps: vec![
            usage("tulle_flow_v4", Some(1_000_000), 4_000_000),
            usage("tulle_counters", None, 512),
            usage("tulle_events", None, 262_144),
        ],
        packets: totals(&[
            counter(Hook::PodFrom, Reason::Encapsulated as u8, 12_345),
            counter(Hook::PodFrom, Reason::NotOurs as u8, 10),
            counter(Hook::PodFrom, Reason::NoEndpoints as u8, 2),
            counter(Hook::Xdp, Reason::UnknownNode as u8, 1),
        ]),
        faults: Vec::new(),
    }
}

#[test]
fn without_an_agent_the_datapath_is_shown() {
    assert_eq!(
        render(&report(), STYLE),
        "\
Agent      not running (no agent listens at /run/tulle/agent.sock)
           the datapath goes on by its last state

PROGRAM         INTERFACE  ATTACHED BY
tulle_pod_from  veth7      tcx ingress

MAP                    USED      LIMIT    FULL   MEMORY  HOLDS
tulle_flow_v4   ≥ 1,000,000  4,000,000  25.0 %  1.0 MiB  what it holds
tulle_counters            -        512       -  1.0 MiB  what it holds
tulle_events              -  256.0 KiB       -  1.0 MiB  what it holds
all maps: 3.0 MiB

PACKETS AT  FORWARDED  TO KERNEL  REFUSED  DROPPED
pod_from       12,345         10        2        0
pod_to              0          0        0        0
nic_in              0          0        0        0
xdp                 0          0        0        1
nic_out             0          0        0        0
why packets were refused or dropped: tulle drops
"
    );
}

#[test]
fn the_agent_tells_choices_and_warnings() {
    let agent = Status {
        agent_version: "0.1.0".into(),
        pid: 42,
        node: "n1".into(),
        source: "directory /etc/tulle/state".into(),
        uplink: "eth0".into(),
        overlay: Some(Overlay {
            device: "flannel.1".into(),
            mtu: 1450,
            vni: 1,
            port: 8472,
            address: None,
            vtep_mac: None,
        }),
        features: vec![Feature {
            name: "attach".into(),
            chosen: "tcx".into(),
            why: "Linux 6.18 has it".into(),
        }],
        last_sync_micros: Some(2_345),
        syncs: 12,
        last_round: Some(RowRound {
            ended_at_secs: 1_000,
            found: 0,
            pending: 0,
        }),
        warnings: [Warning {
            file: String::new(),
            object: "Service default/web".into(),
            field: "spec.ports[0].port".into(),
            message: "0 is no port; write 1 to 65535".into(),
        }]
        .into(),
        map_errors: vec![MapFault {
            map: "tulle_front_v4".into(),
            message: "full".into(),
        }],
        ..Status::default()
    };
    let report = Report {
        agent: Some(agent),
        agent_age_secs: Some(3_700),
        last_round_age_secs: Some(12),
        faults: vec!["map x is odd".into()],
        ..Report::default()
    };
    assert_eq!(
        render(&report, STYLE),
        "\
Agent      running on n1, version 0.1.0, pid 42, up 1h01m
Objects    directory /etc/tulle/state: 0 services, 0 endpoint slices, 0 nodes, 0 local pods
Syncs      12 (0 failed), the last one 2.3 ms from change to map; 0 drift repairs
Rows       compared 12s ago: all as written
Uplink     eth0
Overlay    flannel.1, VNI 1, UDP port 8472, MTU 1,450

FEATURE  CHOSEN  WHY
attach   tcx     Linux 6.18 has it

no pinned links

fault  map x is odd
fault  map tulle_front_v4: full

warning  Service default/web: spec.ports[0].port
         0 is no port; write 1 to 65535
"
    );
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn rows_that_differed_are_told_until_the_next_round() {
    let told = |found, pending| {
        let last_round = Some(RowRound {
            ended_at_secs: 1_000,
            found,
            pending,
        });
        let report = Report {
            agent: Some(Status {
                last_round,
                ..Status::default()
            }),
            last_round_age_secs: Some(3),
            ..Report::default()
        };
        let text = render(&report, STYLE);
        let line = text.lines().find(|line| line.starts_with("Rows"));
        line.unwrap().to_owned()
    };
    assert_eq!(
        told(1, 0),
        "Rows       compared 3s ago: 1 was not as written, and put right"
    );
    assert_eq!(
        told(1_200, 3),
        "Rows       compared 3s ago: 1,200 were not as written; 3 to be put right"
    );
}

#[test]
fn an_agent_that_waits_does_not_count_as_running() {
    let report = Report {
        agent: Some(Status {
            agent_version: "0.1.0".into(),
            pid: 42,
            node: "n1".into(),
            waiting_for: Some("the first full list of objects".into()),
            ..Status::default()
        }),
        agent_age_secs: Some(3),
        ..Report::default()
    };
    let text = render(&report, STYLE);
    assert!(
        text.starts_with("Agent      waiting on n1, version 0.1.0, pid 42, up 3s\n"),
        "{text}"
    );
    let told = "\nfault  the agent waits for the first full list of objects\n";
    assert!(text.ends_with(told), "{text}");
}

#[test]
fn numbers_of_later_releases_are_counted_apart() {
    let report = Report {
        packets: totals(&[counter(Hook::PodTo, 126, 4)]),
        ..Report::default()
    };
    assert_eq!(report.packets[1].unknown, 4);
    assert!(render(&report, STYLE).contains("UNKNOWN"));
}
