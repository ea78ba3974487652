use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use clap::Parser;
use datapath_common::{Ip4, Mac, Via, ViaKind};

use super::*;
use crate::args::{Args, Verb};
use crate::model::Node;
use crate::plan::{Applied, Capacities, MapOp, MapWriter, Planner, Rows, WriteError};
use crate::source::{Batch, Change};

const UPLINK: u32 = 3;

fn uplink() -> Uplink {
    Uplink {
        name: "eth0".into(),
        index: UPLINK,
        mac: Mac::new([2, 0, 0, 0, 0, 9]),
        mtu: 1500,
        addresses4: vec!["192.0.2.1".parse().unwrap()],
        addresses6: Vec::new(),
        carrier: true,
        kind: String::new(),
        vlans: false,
    }
}

fn view() -> NodeView {
    let node = Node {
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        internal_ips: vec!["192.0.2.1".parse().unwrap()],
        ..Node::new("node-1")
    };
    let base = ["tulle-agent", "run", "--state", "/s", "--node", "node-1"];
    match Args::parse_from(base).verb {
        Verb::Run(args) => NodeView::new(&node, &uplink(), &args.overlay),
        other => panic!("{other:?}"),
    }
}

fn pods(addresses: &[&str]) -> LocalPods {
    let pod = |address: &&str| LocalPod {
        ip: address.parse().unwrap(),
        ifindex: 7,
        host_mac: Mac::new([2, 0, 0, 0, 0, 1]),
        pod_mac: Mac::new([2, 0, 0, 0, 0, 2]),
        mtu: 1450,
        pod_mtu: None,
        veth: true,
    };
    LocalPods {
        pods: addresses.iter().map(pod).collect(),
        ..LocalPods::default()
    }
}

fn interrupted() -> NetlinkError {
    NetlinkError::Interrupted {
        what: "list routes".into(),
    }
}

fn refused(errno: i32) -> NetlinkError {
    NetlinkError::Refused {
        what: "find a route".into(),
        cause: io::Error::from_raw_os_error(errno),
        detail: None,
    }
}

#[derive(Default)]
struct Recorder(Vec<MapOp>);

impl MapWriter for Recorder {
    fn write(&mut self, op: &MapOp) -> Result<(), WriteError> {
        self.0.push(op.clone());
        Ok(())
    }
}

#[test]
fn rows_of_a_former_agent_outlive_a_failed_first_look() {
    let via = Via {
        kind: ViaKind::Local as u8,
        ifindex: 7,
        ..Via::KERNEL
    };
    let rows = Rows {
        pods_v4: vec![
            (Ip4::new([10, 244, 1, 5]), via),
            (Ip4::new([10, 244, 1, 6]), via),
        ],
        ..Rows::default()
    };
    let now = Instant::now();
    let applied = Applied::from_rows(Capacities::default(), &rows, now);
    let mut planner = Planner::new("node-1", applied);
    planner.ingest(Batch {
        changes: vec![Change::Synced],
        triggers: Vec::new(),
        warnings: Vec::new().into(),
        noticed: now,
        noticed_at: std::time::SystemTime::now(),
    });
    let mut found = Found::new(UPLINK, BTreeMap::new());
    let mut writer = Recorder::default();
    let mut pass = |found: &mut Found, look| {
        let result = found.take_pods(look);
        if let Some(facts) = found.facts(&view(), "node-1", &uplink()) {
            planner.set_facts(facts);
        }
        planner.run(&mut writer, || now);
        let rows: Vec<String> = planner
            .applied()
            .pods()
            .keys()
            .map(ToString::to_string)
            .collect();
        (result.is_ok(), rows)
    };

    let both = ["10.244.1.5", "10.244.1.6"].map(String::from).to_vec();
    for _ in 0..2 {
        assert_eq!(pass(&mut found, Err(interrupted())), (false, both.clone()));
        assert!(!found.is_known());
    }
    let one = vec!["10.244.1.5".to_owned()];
    let look = Ok(pods(&["10.244.1.5"]));
    assert_eq!(pass(&mut found, look), (true, one.clone()));
    assert_eq!(pass(&mut found, Err(interrupted())), (false, one));
    assert_eq!(found.pods().len(), 1);
    assert_eq!(pass(&mut found, Ok(pods(&[]))), (true, Vec::new()));
}

#[test]
fn an_address_left_to_the_kernel_is_news_once() {
    let mut found = Found::new(UPLINK, BTreeMap::new());
    let skip = ("10.244.1.9".parse().unwrap(), "eth9 is down".to_owned());
    let look = LocalPods {
        pods: Vec::new(),
        skipped: vec![skip.clone()],
        ..LocalPods::default()
    };
    assert_eq!(found.take_pods(Ok(look.clone())).unwrap(), [skip]);
    assert_eq!(found.take_pods(Ok(look)).unwrap(), []);
}

#[test]
fn ports_of_the_bridge_are_pods_ends_once_the_programs_know_it() {
    let mut found = Found::new(UPLINK, BTreeMap::new());
    assert_eq!(found.host_ends(0), BTreeSet::new());
    let gateway: IpAddr = "10.244.1.1".parse().unwrap();
    let mut look = pods(&["10.244.1.5"]);
    look.bridge = Some(Bridge {
        index: 20,
        name: "cni0".into(),
        addresses: BTreeSet::from([gateway]),
        ports: BTreeSet::from([21, 22]),
    });
    found.take_pods(Ok(look)).unwrap();
    assert_eq!(found.host_ends(0), BTreeSet::from([7]));
    assert_eq!(found.host_ends(19), BTreeSet::from([7]));
    assert_eq!(found.host_ends(20), BTreeSet::from([7, 21, 22]));
    let facts = found.facts(&view(), "a", &uplink()).unwrap();
    assert!(
        facts.own_addresses.contains(&gateway),
        "the node answers there"
    );
}

#[test]
fn a_failed_question_keeps_the_last_hop_and_an_answer_does_not() {
    let node = |n: u8| Ipv4Addr::new(198, 51, 100, n);
    let gateway = Ipv4Addr::new(192, 0, 2, 254);
    let via = |ifindex| NextHop {
        via: gateway.into(),
        ifindex,
        source: None,
    };
    let former = (1..=6).map(|n| (node(n), gateway)).collect();
    let mut found = Found::new(UPLINK, former);
    let not_remote = NextHopError::NotRemote {
        node: node(4),
        kind: "local".into(),
    };
    let failed = found.take_hops(
        UPLINK,
        vec![
            (node(1), Ok(via(UPLINK))),
            (node(2), Err(refused(libc::ENETUNREACH).into())),
            (node(3), Ok(via(UPLINK + 1))),
            (node(4), Err(not_remote)),
            (node(5), Err(refused(libc::EHOSTUNREACH).into())),
            (node(9), Err(interrupted().into())),
        ],
    );
    assert_eq!(failed.len(), 4);
    let known: Vec<Ipv4Addr> = found.hops.keys().copied().collect();
    assert_eq!(known, [node(1), node(2)], "6 is no node any more");

    found.take_hops(UPLINK, vec![(node(2), Err(interrupted().into()))]);
    assert_eq!(found.hops.get(&node(2)), Some(&gateway), "a second time");
    found.take_hops(UPLINK + 1, vec![(node(2), Err(interrupted().into()))]);
    assert!(found.hops.is_empty(), "a hop of another uplink is no hop");
}
