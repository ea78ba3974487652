//! What a node makes of Services: one fixture for each behaviour of kube-proxy,
//! named after its ID. A fixture is manifests and, in comments, what follows:
//!
//! - `# here: NODE [masquerade-all]`: on which node the next expectations hold (n0 if it is
//!   not said); its zone and addresses are those of the Node object, if there is one;
//! - `# expect: KIND ADDRESS:PORT/PROTOCOL -> BACKENDS[; …]`: a frontend; all are listed.
//!   `inside` and `outside` where pods and the node itself are sent elsewhere than others;
//! - `# expect: health PORT FAMILY -> N`: ready endpoints that load balancers hear of;
//! - `# warning: OBJECT: FIELD`: what is said about an object of this stage;
//! - `# then: …`: the next stage, whose manifests come on top; `# delete: KIND NAMESPACE/NAME`
//!   takes an object away before.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use datapath_common::FrontendFlags;
use tulle_agent::model::{
    Dirty, Family, Kind, Model, NamespacedName, Node, ObjectKey, Policy, Protocol, ready_here,
};
use tulle_agent::plan::compile::{Here, compile};
use tulle_agent::plan::{BackendKey, Desired, Kind as Front, Wanted};
use tulle_agent::source::{Change, parse};

/// Slots of Maglev tables.
const MAGLEV: usize = 251;

macro_rules! cases {
    ($($name:ident)+) => {
        $(#[test] fn $name() { case(stringify!($name)); })+

        #[test]
        fn every_fixture_is_a_case_and_cites_an_id() {
            let mut named = vec![$(stringify!($name).to_owned()),+];
            let mut found: Vec<String> = std::fs::read_dir(fixtures())
                .unwrap()
                .map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
                .collect();
            named.sort();
            found.sort();
            assert_eq!(named, found);
            for name in found {
                let digits = name.strip_prefix("kp").and_then(|rest| rest.split('_').next());
                let id = digits.and_then(|digits| digits.parse::<u16>().ok());
                // kube-proxy leaves host ports to others.
                let cites = id.is_some() || name.starts_with("host_port_");
                assert!(cites, "{name} begins with no ID such as kp54_");
            }
        }
    };
}

cases! {
    host_port_beside_services
    host_port_of_a_sidecar
    host_port_of_no_running_pod
    host_port_on_its_own_node
    host_port_on_one_address
    kp01_label_comes_and_goes
    kp02_headless_with_everything
    kp03_type_flips
    kp04_frontends_whatever_the_type
    kp04_load_balancer_without_node_port
    kp05_nothing_without_a_cluster_ip_of_the_family
    kp06_lists_by_family
    kp07_sloppy_external_addresses
    kp106_masquerade_all
    kp106_matrix_cluster
    kp106_matrix_external_local
    kp106_matrix_internal_local
    kp111_direct_return
    kp13_named_ports_of_slices
    kp144_node_addresses
    kp14_protocols_on_one_number
    kp155_health_count
    kp161_schedulers
    kp165_weights
    kp194_live_edits
    kp20_local_by_node_name
    kp22_slices_leave
    kp24_shared_pods_and_node_ports
    kp25_cluster_ip_is_not_taken
    kp25_shared_external_ip
    kp28_only_cluster_ips_refuse_other_ports
    kp31_external_ip
    kp32_local_without_external_frontend
    kp32_policy_of_external_ips
    kp33_bad_node_port
    kp33_node_port_on_the_nodes_addresses
    kp38_exact_address_before_node_port
    kp38_exact_address_before_own_node_port
    kp41_vips
    kp42_proxy_and_hostname
    kp45_source_ranges_scope
    kp47_node_allowance
    kp48_normalisation
    kp49_source_ranges_without_endpoints
    kp51_health_port
    kp53_nothing_refuses_everywhere
    kp54_internal_local
    kp55_external_local
    kp56_remote_terminating
    kp67_internal_policy_scope
    kp68_bad_policies
    kp68_external_policy_scope
    kp76_serving_is_not_ready
    kp77_cluster_fallback
    kp78_local_fallback
    kp80_no_mixing_local
    kp81_dead_terminating
    kp82_health_signal_differs
    kp83_recovery
    kp84_hints_alone
    kp85_node_hints_first
    kp86_zone_hints
    kp87_no_narrowing
    kp88_only_ready_ones_are_asked
    kp89_several_zones
    kp90_where_topology_applies
    kp91_node_moves
    kp94_affinity_of_every_frontend
    kp95_affinity_timeout
    kp95_bad_affinity
}

fn fixtures() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "services"]
        .iter()
        .collect()
}

/// Takes the stages of a fixture one after the other.
fn case(name: &str) {
    let file = fixtures().join(format!("{name}.yaml"));
    let text = std::fs::read_to_string(&file).unwrap();
    let mut model = Model::default();
    for (number, stage) in text.split("\n# then:").enumerate() {
        let what = format!("{name}, stage {number}");
        // The head of a later stage is a comment still.
        let (mut changes, warnings) = parse(&file, &format!("#{stage}"));
        for line in tagged(stage, "# delete:") {
            changes.insert(0, Change::Delete(object_key(line)));
        }
        for change in changes {
            model.apply(change, &mut Dirty::default());
        }

        let mut said: Vec<String> = warnings
            .iter()
            .inspect(|w| assert!(!w.problem.is_empty() && !w.mend.is_empty(), "{w}"))
            .map(|w| format!("{}: {}", w.object, w.field))
            .collect();
        said.sort();
        let mut want: Vec<&str> = tagged(stage, "# warning:").collect();
        want.sort_unstable();
        assert_eq!(said, want, "{what}");

        for (here, mut want) in expectations(stage) {
            let mut got = rows(&model, &node(&model, here));
            got.sort();
            want.sort_unstable();
            assert_eq!(got, want, "{what}, on {here}");
        }
    }
}

fn tagged<'a>(stage: &'a str, tag: &str) -> impl Iterator<Item = &'a str> {
    stage
        .lines()
        .filter_map(move |line| line.strip_prefix(tag))
        .map(str::trim)
}

/// Node and what is expected there; the first is n0 unless it is named.
fn expectations(stage: &str) -> Vec<(&str, Vec<&str>)> {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in stage.lines() {
        if let Some(here) = line.strip_prefix("# here:") {
            all.push((here.trim(), Vec::new()));
        } else if let Some(row) = line.strip_prefix("# expect:") {
            if all.is_empty() {
                all.push(("n0", Vec::new()));
            }
            all.last_mut().unwrap().1.push(row.trim());
        }
    }
    if all.is_empty() {
        all.push(("n0", Vec::new()));
    }
    all
}

fn object_key(line: &str) -> ObjectKey {
    let (kind, name) = line.split_once(' ').unwrap();
    let (namespace, name) = name.split_once('/').unwrap();
    let kind = match kind {
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::EndpointSlice,
        "Pod" => Kind::Pod,
        other => panic!("{other} cannot be deleted here"),
    };
    ObjectKey {
        kind,
        name: NamespacedName::new(namespace, name),
    }
}

/// What `line` says of a node, and what its Node object does.
fn node(model: &Model, line: &str) -> Here {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap();
    let masquerade_all = match words.next() {
        None => false,
        Some("masquerade-all") => true,
        Some(other) => panic!("{other}"),
    };
    let object = model.node(name);
    let addresses = object.map(Node::addresses).unwrap_or_default();
    Here {
        node: name.to_owned(),
        zone: object.and_then(|node| node.zone.clone()),
        node_port_addresses: addresses.clone(),
        node_ips: addresses,
        masquerade_all,
        maglev_slots: MAGLEV as u16,
        ..Here::default()
    }
}

/// All frontends that a node has, in the fixtures' words.
fn rows(model: &Model, here: &Here) -> Vec<String> {
    let mut desired = Desired::default();
    let (mut wanted, mut rows) = (Vec::new(), Vec::new());
    for owner in model.owners() {
        let compiled = compile(model, owner, here);
        desired.update(owner, compiled.clone(), &mut BTreeSet::new());
        wanted.extend(compiled);
    }
    for service in model.services() {
        if let Some(port) = service.health_port() {
            assert_eq!(service.external_policy, Policy::Local);
            for family in service.cluster_ips.iter().map(|ip| Family::of(*ip)) {
                let ready = ready_here(model.slices_of(&service.name), family, &here.node);
                rows.push(format!("health {port} {} -> {ready}", family.name()));
            }
        }
    }
    // Only who has a contested frontend counts.
    let has = |w: &&Wanted| {
        desired
            .frontend(&w.front)
            .is_some_and(|(p, _)| *p == w.port)
    };
    rows.extend(wanted.iter().filter(has).map(row));
    rows
}

fn row(wanted: &Wanted) -> String {
    let kind = match wanted.kind {
        Front::ClusterIp => "ClusterIP",
        Front::Vip => "VIP",
        Front::ExternalIp => "externalIP",
        Front::NodePort => "NodePort",
        Front::HostPort => "hostPort",
    };
    assert_eq!(wanted.marks_address, kind == "ClusterIP", "{wanted:?}");
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|p| p.number() == wanted.front.proto)
        .unwrap();
    assert_eq!(protocol, wanted.port.protocol);
    assert_eq!(Family::of(wanted.front.addr), wanted.port.family);
    let at = SocketAddr::new(wanted.front.addr, wanted.front.port);

    let has = |flag: u16| wanted.flags & flag != 0;
    let inside = list(&wanted.inside, has(FrontendFlags::DROP_INSIDE));
    let outside = list(&wanted.outside, has(FrontendFlags::DROP_OUTSIDE));
    let to = if inside == outside {
        inside
    } else {
        format!("inside {inside}, outside {outside}")
    };
    let mut parts = vec![format!("{kind} {at}/{} -> {to}", protocol.name())];
    let masqueraded = [
        ("pods", FrontendFlags::MASQUERADE_PODS),
        ("outside", FrontendFlags::MASQUERADE_OUTSIDE),
    ];
    let who: Vec<&str> = masqueraded
        .iter()
        .filter(|(_, flag)| has(*flag))
        .map(|(who, _)| *who)
        .collect();
    if !who.is_empty() {
        parts.push(format!("masquerade {}", who.join(", ")));
    }
    if has(FrontendFlags::DIRECT_RETURN) {
        parts.push("direct return".to_owned());
    }
    if wanted.affinity_secs > 0 {
        parts.push(format!("sticky {} s", wanted.affinity_secs));
    }
    if has(FrontendFlags::SOURCE_HASH) {
        parts.push("by client".to_owned());
    }
    if has(FrontendFlags::LEAST_FLOWS) {
        parts.push("fewest flows".to_owned());
    }
    if has(FrontendFlags::ROUND_ROBIN) {
        let apart = [
            (" inside", FrontendFlags::LOCAL_INSIDE),
            (" outside", FrontendFlags::LOCAL_OUTSIDE),
        ];
        let apart = apart.iter().filter(|(_, flag)| has(*flag));
        let apart: String = apart.map(|(who, _)| *who).collect();
        parts.push(format!("in turn{apart}"));
    }
    match wanted.out_table.len() {
        0 => {}
        MAGLEV => parts.push("by Maglev".to_owned()),
        _ => {
            let table = &wanted.out_table;
            let slots = |at| table.iter().filter(|p| usize::from(**p) == at).count();
            let shares = (0..wanted.outside.len()).map(slots);
            parts.push(format!("shares {:?}", shares.collect::<Vec<_>>()));
        }
    }
    let filters = has(FrontendFlags::SOURCE_RANGES);
    assert_eq!(filters, !wanted.sources.is_empty(), "{wanted:?}");
    if filters {
        let nets: Vec<String> = wanted.sources.iter().map(ToString::to_string).collect();
        parts.push(format!("only from {}", nets.join(", ")));
    }
    parts.join("; ")
}

fn list(backends: &[BackendKey], drops: bool) -> String {
    match (backends, drops) {
        ([], true) => "dropped".to_owned(),
        ([], false) => "refused".to_owned(),
        (_, true) => panic!("what is not empty does not drop: {backends:?}"),
        (_, false) => {
            let at = |b: &BackendKey| SocketAddr::new(b.addr, b.port).to_string();
            backends.iter().map(at).collect::<Vec<_>>().join(" ")
        }
    }
}
