//! What Prometheus is told by a real agent with traffic. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers")]

mod exposition;
mod run_support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, SystemTime};

use datapath_common::{Reason, maps};
use exposition::Exposition;
use k8s_openapi::jiff::Timestamp;
use run_support::ask::{Answer, ask, get_path};
use run_support::{LIMIT, World, addresses};
use serde_json::Value;
use testkit::ClusterBuilder;
use testkit::http::get;
use testkit::manifests::{Protocol, Service};

const PORT: u16 = 10_249;
const WRITTEN: &str = "kubeproxy_network_programming_duration_seconds_count";

/// One node of two pods, whose flow tables are walked each second.
fn world(label: &str, args: &[&str]) -> World {
    let mut world = World::idle_of(ClusterBuilder::unique(label).nodes(1));
    world.options = world.options.args(&["--gc-interval", "1"]).args(args);
    world.start_agents();
    world
}

fn own(world: &World, ip: impl Into<IpAddr>, path: &str) -> std::io::Result<Answer> {
    let at = SocketAddr::new(ip.into(), PORT);
    get_path(world.cluster.nodes()[0].ns(), at, path)
}

fn local(world: &World, path: &str) -> Answer {
    own(world, Ipv4Addr::LOCALHOST, path).unwrap()
}

fn scrape(world: &World) -> Exposition {
    let answer = local(world, "/metrics");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.headers["Content-Type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    Exposition::parse(&answer.body, false)
}

/// Scrapes until it holds.
fn wait_for(world: &World, what: &str, holds: impl Fn(&Exposition) -> bool) -> Exposition {
    testkit::wait::until(what, LIMIT, || {
        std::thread::sleep(Duration::from_millis(200));
        let seen = scrape(world);
        Ok(holds(&seen).then_some(seen))
    })
    .unwrap()
}

/// The first pod asks; whatever comes of it.
fn request(world: &World, at: SocketAddr) -> bool {
    let (_, pod) = world.cluster.pods().next().unwrap();
    get(pod.ns(), at, "/", LIMIT).is_ok_and(|answer| answer.status == 200)
}

/// A service as text whose slices say when what caused them happened.
fn triggered(service: &Service, at: SystemTime) -> String {
    let at = Timestamp::try_from(at).unwrap();
    let mut text = service.to_string();
    for family in ["ipv4", "ipv6"] {
        let name = format!("name: {}-{family}\n", service.name);
        let with = format!(
            "{name}  annotations: {{endpoints.kubernetes.io/last-change-trigger-time: \"{at}\"}}\n"
        );
        assert!(text.contains(&name), "{text}");
        text = text.replace(&name, &with);
    }
    text
}

/// Name → type and labels, of every row of the tables in `docs/metrics.md`.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut metrics = BTreeMap::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, kind, labels, _, ""] = cells[..] else {
            continue;
        };
        let is_metric = ["counter", "gauge", "histogram"].contains(&kind);
        let name = name.strip_prefix('`').and_then(|n| n.strip_suffix('`'));
        let Some(name) = name.filter(|_| is_metric) else {
            continue;
        };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned);
        let row = (kind.to_owned(), labels.collect());
        assert!(
            metrics.insert(name.to_owned(), row).is_none(),
            "{name} has two rows"
        );
    }
    metrics
}

#[test]
fn kp160_what_is_told_is_documented_and_what_is_documented_is_told() {
    let world = world("mdoc", &["--service-metrics", "true"]);
    world.write(&world.web());
    assert!(
        addresses(&world.web())
            .into_iter()
            .all(|at| request(&world, at))
    );
    let told = wait_for(&world, "flows to be counted", |seen| {
        seen.of("tulle_flow_rows", &[]).sum::<f64>() > 0.0
    });
    let told: BTreeMap<String, (String, BTreeSet<String>)> = told
        .0
        .into_iter()
        .map(|(name, metric)| {
            assert!(!metric.samples.is_empty(), "{name} has no sample");
            let labels = metric.labels();
            (name, (metric.kind, labels))
        })
        .collect();
    let documented = documented();
    assert!(documented.len() > 40, "{}", documented.len());
    assert_eq!(told, documented);
    // The other text says the same.
    let request = "GET /metrics HTTP/1.1\r\nHost: node\r\n\
                   Accept: application/openmetrics-text;version=1.0.0\r\n\r\n";
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let answer = ask(world.cluster.nodes()[0].ns(), at, request).unwrap();
    assert!(answer.headers["Content-Type"].starts_with("application/openmetrics-text"));
    let open = Exposition::parse(&answer.body, true);
    let names: Vec<&String> = open.0.keys().collect();
    assert_eq!(names, documented.keys().collect::<Vec<_>>());
}

#[test]
fn kp160_changes_of_endpoints_are_timed_until_they_are_written() {
    let world = world("mtime", &[]);
    let (start, full) = (
        scrape(&world),
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count",
    );
    let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count";
    let all = "kubeproxy_sync_proxy_rules_duration_seconds_count";
    let v4 = [("ip_family", "IPv4")];
    // Not unless it is asked for: series without end in a large cluster.
    let by_port = "tulle_service_port_";
    assert!(!start.0.keys().any(|name| name.starts_with(by_port)));
    assert!(documented().keys().any(|name| name.starts_with(by_port)));
    assert_eq!(start.sum(full, &v4), 1.0, "the first plan");
    assert_eq!(start.sum(WRITTEN, &[]), 0.0);
    // What happened before the agent started says nothing of the agent.
    let mut service = world.web();
    let before = world.syncs();
    let text = triggered(&service, SystemTime::now() - Duration::from_hours(1));
    world.state.put(&service.file(), &text).unwrap();
    world.wait_synced(&before);
    let seen = scrape(&world);
    assert_eq!(seen.sum(WRITTEN, &[]), 0.0);
    assert_eq!(seen.sum(full, &v4), 1.0);
    let once = seen.sum(partial, &v4);
    assert!(once >= 1.0);
    assert_eq!(seen.sum(all, &v4), once + 1.0);
    assert_eq!(
        seen.sum("kubeproxy_sync_proxy_rules_service_changes_total", &[]),
        1.0
    );
    assert_eq!(
        seen.sum("kubeproxy_sync_proxy_rules_endpoint_changes_total", &[]),
        2.0
    );
    for pending in ["service", "endpoint"] {
        let name = format!("kubeproxy_sync_proxy_rules_{pending}_changes_pending");
        assert_eq!(seen.sum(&name, &[]), 0.0);
    }
    let last = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    let queued = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
    assert!(seen.sum(last, &v4) >= seen.sum(queued, &v4));
    assert!(seen.sum(last, &v4) > start.sum(last, &v4));
    // Three seconds ago a pod became ready, and the agent ran.
    std::thread::sleep(Duration::from_secs(4));
    let gone = world.cluster.pods().next().unwrap().1.name().to_owned();
    service.remove_endpoint(&gone).unwrap();
    let text = triggered(&service, SystemTime::now() - Duration::from_secs(3));
    world.state.put(&service.file(), &text).unwrap();
    let seen = wait_for(&world, "the change to be timed", |seen| {
        seen.sum(WRITTEN, &[]) == 2.0
    });
    for family in ["IPv4", "IPv6"] {
        let family = ("ip_family", family);
        assert_eq!(seen.sum(WRITTEN, &[family]), 1.0);
        let sum = "kubeproxy_network_programming_duration_seconds_sum";
        let took = seen.sum(sum, &[family]);
        assert!((3.0..30.0).contains(&took), "{took}");
        let bucket = "kubeproxy_network_programming_duration_seconds_bucket";
        assert_eq!(seen.sum(bucket, &[family, ("le", "2")]), 0.0);
        assert_eq!(seen.sum(bucket, &[family, ("le", "300")]), 1.0);
    }
    assert!(seen.sum("tulle_sync_duration_seconds_count", &[]) >= 2.0);
    assert!(seen.sum("tulle_map_writes_total", &[]) > start.sum("tulle_map_writes_total", &[]));
    // Another time alone changes nothing (KP-131), nor does a slice that goes say anything.
    let partials = seen.sum(partial, &v4);
    let text = triggered(&service, SystemTime::now());
    let other = Service::dual_stack("other", 11).port(Protocol::Tcp, 80, 8080);
    world.state.put(&service.file(), &text).unwrap();
    world.state.put("other.yaml", &other.to_string()).unwrap();
    wait_for(&world, "the other service to be written", |seen| {
        seen.sum("tulle_services", &[]) == 2.0
    });
    let seen = scrape(&world);
    assert_eq!(
        (seen.sum(partial, &v4), seen.sum(WRITTEN, &v4)),
        (partials + 1.0, 1.0)
    );
    world.state.remove_service(&service).unwrap();
    let seen = wait_for(&world, "the service to be gone", |seen| {
        seen.sum("tulle_services", &[]) == 1.0
    });
    assert_eq!(seen.sum(WRITTEN, &v4), 1.0);
}

#[test]
fn kp160_services_that_lack_a_local_endpoint() {
    let world = world("mlocal", &[]);
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let internal = [("traffic_policy", "internal"), ("ip_family", "IPv4")];
    let external = [("traffic_policy", "external"), ("ip_family", "IPv4")];
    let text = |endpoint: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
             spec: {{clusterIP: 10.96.0.9, externalIPs: [198.51.100.9], internalTrafficPolicy: Local, \
             externalTrafficPolicy: Local, ports: [{{port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-4, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: IPv4\nports: [{{name: \"\", port: 80}}]\nendpoints: [{endpoint}]\n"
        )
    };
    let far = "{addresses: [10.244.9.9], nodeName: elsewhere}";
    let near = "{addresses: [10.244.1.2], nodeName: node-1}";
    for (endpoint, counts) in [(far, 1.0), (near, 0.0), (far, 1.0), ("", 0.0)] {
        world.state.put("web.yaml", &text(endpoint)).unwrap();
        let seen = wait_for(&world, "the counts", |seen| {
            seen.sum(name, &internal) == counts
        });
        assert_eq!(seen.sum(name, &external), counts, "{endpoint:?}");
    }
    world.state.put("web.yaml", &text(far)).unwrap();
    wait_for(&world, "it to lack one", |seen| {
        seen.sum(name, &internal) == 1.0
    });
    world.state.remove("web.yaml").unwrap();
    wait_for(&world, "it to be gone", |seen| seen.sum(name, &[]) == 0.0);
}

#[test]
fn packets_drops_flows_and_maps_move_with_traffic() {
    let world = world("mmove", &["--service-metrics", "true"]);
    let front4 = [("map", maps::FRONT_V4)];
    let before = scrape(&world);
    world.write(&world.web());
    let web = addresses(&world.web());
    for at in &web {
        assert!(request(&world, *at));
        // A port that the service does not have is refused.
        assert!(!request(&world, SocketAddr::new(at.ip(), 81)));
    }
    let seen = wait_for(&world, "everything to be counted", |seen| {
        seen.of("tulle_flow_rows", &[("ip_family", "IPv6")])
            .sum::<f64>()
            > 0.0
            && seen.of("tulle_map_entries", &front4).sum::<f64>() >= 2.0
    });
    let drops = |of: &Exposition, reason: Reason| {
        of.sum(
            "tulle_drops_total",
            &[("direction", "from_pod"), ("reason", reason.label())],
        )
    };
    for reason in Reason::ALL.iter().filter(|reason| reason.group().is_loss()) {
        let more = drops(&seen, *reason) - drops(&before, *reason);
        let expected = if *reason == Reason::NoSuchPort {
            2.0
        } else {
            0.0
        };
        assert_eq!(more, expected, "{}", reason.label());
    }
    let reason = [
        ("program", "pod_from"),
        ("reason", Reason::NoSuchPort.label()),
    ];
    assert_eq!(seen.sum("tulle_packets_total", &reason), 2.0);
    for reason in Reason::ALL {
        assert_eq!(
            seen.of("tulle_packets_total", &[("reason", reason.label())])
                .count(),
            5
        );
    }
    let forwarded = [("program", "pod_from"), ("outcome", "forwarded")];
    for name in ["tulle_packets_total", "tulle_bytes_total"] {
        assert!(
            seen.sum(name, &forwarded) > before.sum(name, &forwarded),
            "{name}"
        );
    }
    assert_eq!(seen.sum("tulle_service_flows_opened_total", &[]), 2.0);
    for direction in ["to_backend", "to_client"] {
        let direction = ("direction", direction);
        let all = seen.sum("tulle_service_bytes_total", &[direction]);
        let labels = [direction, ("service", "web"), ("namespace", "default")];
        assert!(all > 0.0);
        assert_eq!(seen.sum("tulle_service_port_bytes_total", &labels), all);
        let one = seen.of("tulle_service_port_packets_total", &labels).count();
        assert_eq!(one, 2, "a row for each family");
    }
    for (name, map, count) in [
        ("tulle_map_entries", maps::FRONT_V4, 2.0),
        ("tulle_map_entries", maps::PODS_V4, 2.0),
        ("tulle_map_max_entries", maps::FRONT_V4, 65_536.0),
    ] {
        assert_eq!(seen.sum(name, &[("map", map)]), count, "{name} {map}");
    }
    // What a full map does is told of each, as the kernel has it.
    let limits = &seen.0["tulle_map_max_entries"].samples;
    let evict = limits.iter().filter(|(_, l, _)| l["when_full"] == "evicts");
    let evict: BTreeSet<&str> = evict.map(|(_, labels, _)| labels["map"].as_str()).collect();
    let lru = [
        maps::FLOW_V4,
        maps::FLOW_V6,
        maps::FRAG_V4,
        maps::FRAG_V6,
        maps::HELD_V4,
        maps::HELD_V6,
        maps::AFFIN_V4,
        maps::AFFIN_V6,
        maps::SK_AFFIN,
        maps::SOCKS_V4,
        maps::SOCKS_V6,
    ];
    assert_eq!(evict, BTreeSet::from(lru));
    let refuses = ("when_full", "refuses");
    for map in [
        maps::FRONT_V4,
        maps::SEGMENTS,
        maps::SRCS_V6,
        maps::CONNS_V4,
    ] {
        assert_eq!(
            seen.of("tulle_map_entries", &[("map", map), refuses])
                .count(),
            1
        );
    }
    let flows = seen.sum("tulle_map_entries", &[("map", maps::FLOW_V6)]);
    assert_eq!(flows, seen.sum("tulle_flow_rows", &[("ip_family", "IPv6")]));
    assert!(seen.sum("tulle_map_memory_bytes", &[("map", maps::FLOW_V4)]) > 1e6);
    assert_eq!(seen.sum("tulle_ready", &[]), 1.0);
    assert_eq!(seen.sum("tulle_local_pods", &[]), 2.0);
    assert_eq!(
        seen.sum("tulle_attachments", &[("program", "tulle_pod_from")]),
        2.0
    );
    assert_eq!(seen.sum("tulle_objects", &[("kind", "EndpointSlice")]), 2.0);
    assert_eq!(seen.sum("tulle_frontends", &[("ip_family", "IPv4")]), 2.0);
    assert_eq!(seen.sum("tulle_backends", &[("ip_family", "IPv4")]), 2.0);
    assert_eq!(seen.sum("tulle_faults", &[]), 0.0);
    assert_eq!(seen.sum("tulle_source_connected", &[]), 1.0);
    assert!(seen.sum("process_resident_memory_bytes", &[]) > 1e6);
    assert!(seen.sum("process_cpu_seconds_total", &[]) > 0.0);
    assert!(seen.sum("process_open_fds", &[]) > 10.0);
}

#[test]
fn faults_and_repairs_are_told() {
    let mut world = world("mfault", &[]);
    let repairs = [("part", "slow_path")];
    let before = scrape(&world).sum("tulle_drift_repairs_total", &repairs);
    let node = &world.cluster.nodes()[0];
    let mut ip = node.ns().command("ip").unwrap();
    let changed = ip
        .args(["link", "set", "flannel.1", "mtu", "1200"])
        .status();
    assert!(changed.unwrap().success());
    wait_for(&world, "a repair", |seen| {
        seen.sum("tulle_drift_repairs_total", &repairs) > before
    });
    let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 10_256));
    world.agents[0].terminate(LIMIT).unwrap();
    let taken = world.cluster.nodes()[0]
        .ns()
        .run(|| TcpListener::bind(at))
        .unwrap();
    world.agents[0].spawn().unwrap();
    world.agents[0].wait_ready(LIMIT).unwrap();
    let http = [("part", "http")];
    let seen = wait_for(&world, "the fault", |seen| {
        seen.sum("tulle_faults", &http) == 1.0
    });
    assert_eq!(seen.sum("tulle_faults", &[]), 1.0);
    drop(taken);
    wait_for(&world, "no fault", |seen| {
        seen.sum("tulle_faults", &http) == 0.0
    });
    // What probes are told is counted.
    for path in ["/healthz", "/livez", "/livez"] {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_256));
        assert_eq!(
            get_path(world.cluster.nodes()[0].ns(), at, path)
                .unwrap()
                .status,
            200
        );
    }
    let seen = scrape(&world);
    for (name, code, count) in [
        ("kubeproxy_proxy_healthz_total", "200", 1.0),
        ("kubeproxy_proxy_healthz_total", "503", 0.0),
        ("kubeproxy_proxy_livez_total", "200", 2.0),
    ] {
        assert_eq!(seen.sum(name, &[("code", code)]), count, "{name} {code}");
    }
}

#[test]
fn kp157_other_paths_and_who_may_ask_them() {
    let world = world(
        "mpaths",
        &["--metrics-address", "0.0.0.0:10249", "--vxlan-port", "8472"],
    );
    assert_eq!(local(&world, "/healthz").body, "ok");
    assert_eq!(local(&world, "/proxyMode").body, "ebpf");
    let settings: Value = serde_json::from_str(&local(&world, "/configz").body).unwrap();
    let settings = &settings["tulle-agent"];
    assert_eq!(settings["vxlan-port"]["values"][0], "8472");
    assert_eq!(settings["vxlan-port"]["from"], "command line");
    assert_eq!(settings["max-flows"]["from"], "default");
    let status: Value = serde_json::from_str(&local(&world, "/debug/status").body).unwrap();
    assert_eq!(status["ready"], true);
    assert_eq!(local(&world, "/debug/faults").body, "[]\n");
    // Who comes by another address than loopback is told metrics only.
    let ip = world.cluster.nodes()[0].ip4();
    assert_eq!(own(&world, ip, "/metrics").unwrap().status, 200);
    for path in ["/debug/status", "/debug/faults", "/debug/log"] {
        assert_eq!(own(&world, ip, path).unwrap().status, 404, "{path}");
    }
    assert_eq!(local(&world, "/debug/log").body, "info\n");
    let put = |filter: &str| {
        let request = format!(
            "PUT /debug/log HTTP/1.1\r\nHost: node\r\nContent-Length: {}\r\n\r\n{filter}",
            filter.len()
        );
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        ask(world.cluster.nodes()[0].ns(), at, &request).unwrap()
    };
    assert!(
        !world.agents[0]
            .log()
            .unwrap()
            .contains("walked over the flow tables")
    );
    assert_eq!(put("tulle_agent=debug").status, 200);
    testkit::wait::until("a word of the walks", LIMIT, || {
        let log = world.agents[0].log()?;
        Ok(log.contains("walked over the flow tables").then_some(()))
    })
    .unwrap();
    assert_eq!(put("tulle_agent=loud").status, 400);
    assert_eq!(local(&world, "/debug/log").body, "tulle_agent=debug\n");
}

#[test]
fn kp141_an_api_server_that_is_gone_is_told_and_takes_nothing_away() {
    let mut world = World::idle_of(ClusterBuilder::unique("mapi").nodes(1));
    world.options.through_api = true;
    world.start_agents();
    let age = "tulle_source_last_event_age_seconds";
    let restarts = "tulle_source_watch_restarts_total";
    let seen = scrape(&world);
    for kind in ["Service", "EndpointSlice", "Node"] {
        assert!(seen.sum(age, &[("kind", kind)]) < 60.0, "{kind}");
    }
    assert_eq!(
        (
            seen.sum(restarts, &[]),
            seen.sum("tulle_source_connected", &[])
        ),
        (0.0, 1.0)
    );
    let service = world.web();
    let text = triggered(&service, SystemTime::now());
    world.state.put(&service.file(), &text).unwrap();
    wait_for(&world, "the change to be timed", |seen| {
        ["IPv4", "IPv6"]
            .iter()
            .all(|family| seen.sum(WRITTEN, &[("ip_family", family)]) == 1.0)
    });
    let listener = world.agents[0].api().unwrap().listener().clone();
    listener.shut();
    let of_services = [("kind", "Service")];
    let silent = wait_for(&world, "a silence to be told", |seen| {
        seen.sum(age, &of_services) > 2.0
    });
    assert!(silent.sum(age, &[("kind", "Node")]) > 2.0);
    let seen = wait_for(&world, "the outage to be told", |seen| {
        seen.sum("tulle_source_connected", &[]) == 0.0
    });
    assert!(seen.sum(restarts, &[("reason", "broken")]) > 0.0);
    assert_eq!(seen.sum("tulle_faults", &[("part", "source")]), 1.0);
    for path in ["/healthz", "/livez", "/readyz"] {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_256));
        let answer = get_path(world.cluster.nodes()[0].ns(), at, path).unwrap();
        assert_eq!(answer.status, 200, "{path}");
    }
    assert!(
        addresses(&service)
            .into_iter()
            .all(|at| request(&world, at))
    );
    listener.open().unwrap();
    let seen = wait_for(&world, "the server to be there again", |seen| {
        seen.sum("tulle_source_connected", &[]) == 1.0
    });
    assert!(
        seen.sum(age, &of_services) > 2.0,
        "nobody has spoken of any"
    );
    world.state.remove_service(&service).unwrap();
    wait_for(&world, "a word of Services", |seen| {
        seen.sum(age, &of_services) < 2.0
    });
}
