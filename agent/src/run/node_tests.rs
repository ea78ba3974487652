use clap::Parser;

use super::*;
use crate::args::{Args, RunArgs, Verb};
use crate::kernel::AttachKind;

fn args(more: &[&str]) -> RunArgs {
    let base = ["tulle-agent", "run", "--state", "/s", "--node", "node-1"];
    match Args::parse_from(base.iter().chain(more)).verb {
        Verb::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn uplink() -> Uplink {
    Uplink {
        name: "eth0".into(),
        index: 3,
        mac: Mac::new([2, 0, 0, 0, 0, 9]),
        mtu: 1500,
        addresses4: vec![
            "192.0.2.1".parse().unwrap(),
            "198.51.100.1".parse().unwrap(),
        ],
        addresses6: vec!["fe80::1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        carrier: true,
        kind: String::new(),
        vlans: false,
    }
}

fn kernel(decap_6_in_4: bool) -> Kernel {
    Kernel {
        version: (6, 12),
        attach: AttachKind::Tcx,
        decap_6_in_4,
        calls: false,
        tells_mptcp: false,
        features: Vec::new(),
        warnings: Vec::new(),
    }
}

fn node() -> Node {
    Node {
        pod_cidrs: vec![
            "10.244.1.7/24".parse().unwrap(),
            "fd00:1::/64".parse().unwrap(),
        ],
        internal_ips: vec!["198.51.100.1".parse().unwrap()],
        ..Node::new("node-1")
    }
}

fn view(node: &Node, uplink: &Uplink, more: &[&str]) -> NodeView {
    NodeView::new(node, uplink, &args(more).overlay)
}

#[test]
fn the_config_follows_node_and_uplink() {
    let args = args(&[
        "--vni",
        "7",
        "--vxlan-port",
        "4789",
        "--flows-per-second",
        "0",
        "--snat-ports",
        "1024-2023",
    ]);
    let view = NodeView::new(&node(), &uplink(), &args.overlay);
    assert_eq!(view.notes, [""; 0]);
    let config = view.config(&uplink(), &args, 9, &kernel(true));
    let wanted = Config {
        node_ip4: Ipv4Addr::new(198, 51, 100, 1).into(),
        pod_net4: Ipv4Addr::new(10, 244, 1, 0).into(),
        pod_mask4: Ipv4Addr::new(255, 255, 255, 0).into(),
        router_ip4: Ipv4Addr::new(198, 51, 100, 1).into(),
        pod_net6: "fd00:1::".parse::<Ipv6Addr>().unwrap().into(),
        pod_mask6: "ffff:ffff:ffff:ffff::".parse::<Ipv6Addr>().unwrap().into(),
        router_ip6: "2001:db8::1".parse::<Ipv6Addr>().unwrap().into(),
        node_ip6: "2001:db8::1".parse::<Ipv6Addr>().unwrap().into(),
        uplink: 3,
        vtep: 9,
        loopback: 1,
        bridge: 0,
        snat_first: 1024,
        snat_ports: 1000,
        vni: 7,
        vxlan_port: 4789,
        overlay_mtu: 1450,
        vtep_mac: derived_vtep_mac([198, 51, 100, 1].into()),
        uplink_mac: Mac::new([2, 0, 0, 0, 0, 9]),
        stripped_mac: Mac::new([0; 6]),
        reserved: 0,
        features: Feature::OVERLAY
            | Feature::DECAP_6_IN_4
            | Feature::ICMP_ERRORS
            | Feature::HOLD_FRAGMENTS
            | Feature::UPLINK_SERVICES
            | Feature::XDP_SERVICES
            | Feature::COUNT_SERVICES
            | Feature::MASQUERADE,
        flows_per_tick: 0,
        errors_per_tick: 1073,
        idle: IdleTicks::DEFAULT,
        netns: [0; 2],
    };
    assert_eq!(config, wanted);
    let plain = self::args(&[
        "--uplink-services=false",
        "--masquerade=false",
        "--count-services=false",
        "--service-cidr=10.96.0.0/12",
    ]);
    let old = view.config(&uplink(), &plain, 0, &kernel(false));
    let features = Feature::OVERLAY
        | Feature::ICMP_ERRORS
        | Feature::HOLD_FRAGMENTS
        | Feature::SERVICE_NETWORKS;
    assert_eq!((old.features, old.vtep), (features, 0));
}

#[test]
fn a_node_without_pod_networks_owns_no_address() {
    let mut node = node();
    node.pod_cidrs.clear();
    let view = view(&node, &uplink(), &[]);
    assert!(view.notes[0].contains("spec.podCIDRs"), "{:?}", view.notes);
    let args = args(&[]);
    let config = view.config(&uplink(), &args, 9, &kernel(true));
    let none = Config::EMPTY;
    assert_eq!(
        (config.pod_net4, config.pod_mask4),
        (none.pod_net4, none.pod_mask4)
    );
    assert_eq!(
        (config.pod_net6, config.pod_mask6),
        (none.pod_net6, none.pod_mask6)
    );
}

#[test]
fn icmpv6_errors_have_a_source_without_ipv6_on_the_underlay() {
    let mut uplink = uplink();
    uplink.addresses6.truncate(1);
    let args = args(&[]);
    let view = NodeView::new(&node(), &uplink, &args.overlay);
    assert_eq!(view.ip6, None);
    let config = view.config(&uplink, &args, 9, &kernel(true));
    assert_eq!(
        config.router_ip6,
        "fd00:1::".parse::<Ipv6Addr>().unwrap().into()
    );
}

#[test]
fn an_address_that_the_uplink_lacks_is_told() {
    let mut node = node();
    node.public_ip = Some("203.0.113.5".parse().unwrap());
    let view = view(&node, &uplink(), &[]);
    assert_eq!(view.ip4.to_string(), "192.0.2.1");
    assert!(view.notes[0].contains("203.0.113.5"), "{:?}", view.notes);
    assert_eq!(
        view.vtep_mac,
        derived_vtep_mac([203, 0, 113, 5].into()),
        "as the other nodes derive it"
    );
    node.vtep_mac = Some(Mac::new([6; 6]));
    assert_eq!(
        super::tests::view(&node, &uplink(), &[]).vtep_mac,
        Mac::new([6; 6])
    );
}

#[test]
fn the_mtu_fits_the_uplink() {
    let mut uplink = uplink();
    assert_eq!(view(&node(), &uplink, &["--mtu", "1400"]).mtu, 1400);
    let large = view(&node(), &uplink, &["--mtu", "1451"]);
    assert_eq!(large.mtu, 1450);
    assert!(large.notes[0].contains("--mtu 1451"), "{:?}", large.notes);
    uplink.mtu = 1300;
    let small = view(&node(), &uplink, &[]);
    assert_eq!(small.mtu, 1250);
    assert!(small.notes[0].contains("1280"), "{:?}", small.notes);
    uplink.mtu = 65_536;
    assert_eq!(view(&node(), &uplink, &[]).mtu, 65_486);
    uplink.mtu = u32::MAX;
    assert_eq!(view(&node(), &uplink, &[]).mtu, u16::MAX);
}

#[test]
fn only_pods_behind_veths_are_the_datapaths() {
    let pod = |ip: &str, ifindex, veth| net::LocalPod {
        ip: ip.parse().unwrap(),
        ifindex,
        host_mac: Mac::new([2; 6]),
        pod_mac: Mac::new([4; 6]),
        mtu: 1450,
        pod_mtu: None,
        veth,
    };
    let pods = [pod("10.244.1.5", 5, true), pod("10.244.1.6", 6, false)];
    let facts = view(&node(), &uplink(), &[]).facts("node-1", &uplink(), &pods, &BTreeMap::new());
    let known: Vec<String> = facts.local_pods.keys().map(ToString::to_string).collect();
    assert_eq!(known, ["10.244.1.5"]);
    let own: Vec<String> = facts
        .own_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(own, ["192.0.2.1", "198.51.100.1", "2001:db8::1", "fe80::1"]);
    assert!(facts.overlay);
}

#[test]
fn a_next_hop_elsewhere_is_the_kernels() {
    let hop = |via: &str, ifindex| NextHop {
        via: via.parse().unwrap(),
        ifindex,
        source: None,
    };
    assert_eq!(
        usable_hop(&hop("192.0.2.9", 3), 3),
        Some([192, 0, 2, 9].into())
    );
    assert_eq!(usable_hop(&hop("192.0.2.9", 4), 3), None);
    assert_eq!(usable_hop(&hop("fe80::1", 3), 3), None);
}
