//! What is in `deploy/`: Kubernetes takes it, its parts agree with each other, and with the agent.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod chart;
mod kustomize;
mod objects;
mod options;

use std::collections::BTreeSet;

use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use objects::{documents, fault, name, read, root, sorted, the};

/// The image's and the chart's version.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The annotation by which a change of the chart's options makes other pods.
const OPTIONS: &str = "tulle.io/options";

fn plain() -> Vec<Value> {
    documents(&read("deploy/manifests/tulle.yaml"))
}

fn removal() -> Vec<Value> {
    documents(&read("deploy/manifests/remove.yaml"))
}

/// Values that change everything that the chart can change.
fn all_changed() -> Value {
    json!({
        "image": { "repository": "registry.example/net/tulle", "tag": "v9", "pullPolicy": "Always" },
        "imagePullSecrets": [{ "name": "registry" }],
        "apiServers": ["192.0.2.10:6443", "[2001:db8::1]:6443"],
        "options": { "log": "debug", "uplink": "eth1", "max-flows": "1048576" },
        "sockets": false,
        "hostPorts": true,
        "updateStrategy": { "type": "OnDelete", "rollingUpdate": null },
        "priorityClassName": "system-cluster-critical",
        "tolerations": [],
        "nodeSelector": { "kubernetes.io/os": null, "net": "tulle" },
        "resources": { "limits": { "memory": "1Gi" } },
        "podAnnotations": { "example.com/a": "b" },
    })
}

fn pod(objects: &[Value]) -> PodSpec {
    the::<DaemonSet>(objects).spec.template.spec.unwrap()
}

fn container(objects: &[Value]) -> Container {
    let mut containers = pod(objects).containers;
    assert_eq!(containers.len(), 1);
    containers.remove(0)
}

fn added_capabilities(objects: &[Value]) -> Vec<String> {
    let context = container(objects).security_context.unwrap();
    context.capabilities.unwrap().add.unwrap()
}

#[test]
fn kubernetes_knows_every_field() {
    let overlay = kustomize::build(&root().join("deploy/overlay-example"));
    let charts = [json!({}), all_changed()].map(|values| chart::render(&values, "net"));
    for objects in charts.iter().chain([&plain(), &overlay]) {
        assert_eq!(objects.len(), 5);
    }
    let rest = [plain(), overlay, removal()];
    for object in charts.iter().chain(&rest).flatten() {
        assert_eq!(fault(object), None);
    }
}

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let objects = plain();
    let daemon = objects
        .iter()
        .find(|object| object["kind"] == "DaemonSet")
        .unwrap();
    for (place, value) in [
        ("/spec/template/spec/hostNetwork", json!("yes")),
        (
            "/spec/template/spec/containers/0/volumeMounts/0/mountpropagation",
            json!("None"),
        ),
        ("/spec/template/spec/hostPid", json!(true)),
        ("/apiVersion", json!("apps/v1beta1")),
    ] {
        let mut changed = daemon.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() {
            &mut changed
        } else {
            changed.pointer_mut(parent).unwrap()
        };
        parent[key] = value;
        assert!(fault(&changed).is_some(), "{place}");
    }
}

#[test]
fn the_chart_is_the_manifests_unless_it_is_told_otherwise() {
    let mut rendered = chart::render(&json!({}), "kube-system");
    let daemon = rendered
        .iter_mut()
        .find(|object| object["kind"] == "DaemonSet")
        .unwrap();
    let metadata = daemon
        .pointer_mut("/spec/template/metadata")
        .unwrap()
        .as_object_mut()
        .unwrap();
    let annotations = metadata.remove("annotations").unwrap();
    assert_eq!(
        annotations,
        json!({ OPTIONS: r#"{"log":"info"} [] false"# })
    );
    assert_eq!(sorted(rendered), sorted(plain()));
}

#[test]
fn the_charts_values_arrive() {
    let objects = chart::render(&all_changed(), "net");
    for object in &objects {
        let kind = object["kind"].as_str().unwrap();
        let namespace = (!kind.starts_with("Cluster")).then_some("net");
        assert_eq!(
            object["metadata"]["namespace"].as_str(),
            namespace,
            "{kind}"
        );
    }
    let binding: ClusterRoleBinding = the(&objects);
    assert_eq!(
        binding.subjects.unwrap()[0].namespace.as_deref(),
        Some("net")
    );
    let config = the::<ConfigMap>(&objects).data.unwrap();
    let config: Vec<(&str, &str)> = config
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        config,
        [
            ("TULLE_API_SERVERS", "192.0.2.10:6443,[2001:db8::1]:6443"),
            ("TULLE_HOST_PORTS", "true"),
            ("TULLE_LOG", "debug"),
            ("TULLE_MAX_FLOWS", "1048576"),
            ("TULLE_SOCKET_SERVICES", "off"),
            ("TULLE_UPLINK", "eth1"),
        ]
    );
    let daemon = the::<DaemonSet>(&objects).spec;
    let strategy = daemon.update_strategy.unwrap();
    assert_eq!(strategy.type_.as_deref(), Some("OnDelete"));
    let annotations = daemon.template.metadata.unwrap().annotations.unwrap();
    assert_eq!(annotations["example.com/a"], "b");
    assert!(annotations[OPTIONS].contains("\"max-flows\":\"1048576\""));
    let pod = pod(&objects);
    assert_eq!((pod.host_pid, pod.host_network), (None, Some(true)));
    assert_eq!(
        pod.priority_class_name.as_deref(),
        Some("system-cluster-critical")
    );
    assert_eq!(pod.tolerations, None);
    assert_eq!(pod.image_pull_secrets.unwrap()[0].name, "registry");
    assert_eq!(pod.node_selector.unwrap()["net"], "tulle");
    let container = container(&objects);
    assert_eq!(
        container.image.as_deref(),
        Some("registry.example/net/tulle:v9")
    );
    assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
    assert_eq!(
        container.resources.unwrap().limits.unwrap()["memory"].0,
        "1Gi"
    );
}

#[test]
fn without_sockets_nothing_of_the_host_is_open_that_packets_do_not_need() {
    let with = chart::render(&json!({}), "net");
    let without = chart::render(&json!({ "sockets": false }), "net");
    assert_eq!(
        (pod(&with).host_pid, pod(&without).host_pid),
        (Some(true), None)
    );
    let fewer = added_capabilities(&without);
    assert!(
        !fewer.iter().any(|c| c == "SYS_ADMIN" || c == "SYS_PTRACE"),
        "{fewer:?}"
    );
    let more = added_capabilities(&with);
    assert!(fewer.iter().all(|capability| more.contains(capability)));
    let volumes = |objects: &[Value]| pod(objects).volumes.unwrap().len();
    assert_eq!(volumes(&with), volumes(&without) + 1);
}

#[test]
fn the_kustomization_is_the_manifests_and_the_overlay_changes_what_it_says() {
    let base = kustomize::build(&root().join("deploy/manifests"));
    assert_eq!(base, plain());
    let overlay = kustomize::build(&root().join("deploy/overlay-example"));
    let names = |objects: &[Value]| objects.iter().map(name).collect::<Vec<_>>();
    assert_eq!(names(&base), names(&overlay));
    assert_eq!(
        container(&overlay).image,
        Some(format!("registry.example/net/tulle:{VERSION}"))
    );
    let data = the::<ConfigMap>(&overlay).data.unwrap();
    assert_eq!(data["TULLE_LOG"], "info", "of the base");
    assert_eq!(data["TULLE_UPLINK"], "eth1");
    let strategy = the::<DaemonSet>(&overlay).spec.update_strategy.unwrap();
    assert_eq!(
        strategy.type_.as_deref(),
        Some("RollingUpdate"),
        "of the base"
    );
    let most = strategy.rolling_update.unwrap().max_unavailable;
    assert_eq!(most, Some(IntOrString::Int(1)));
    options::check(&overlay);
}

#[test]
fn every_name_leads_somewhere() {
    for objects in [plain(), chart::render(&all_changed(), "net")] {
        let account: ServiceAccount = the(&objects);
        let role: ClusterRole = the(&objects);
        let binding: ClusterRoleBinding = the(&objects);
        assert_eq!(Some(binding.role_ref.name), role.metadata.name);
        assert_eq!(binding.role_ref.kind, ClusterRole::KIND);
        assert_eq!(
            binding.role_ref.api_group.as_deref(),
            Some(ClusterRole::GROUP)
        );
        let [subject] = &binding.subjects.unwrap()[..] else {
            panic!("one subject")
        };
        assert_eq!(Some(&subject.name), account.metadata.name.as_ref());
        assert_eq!(subject.namespace, account.metadata.namespace);

        let daemon: DaemonSet = the(&objects);
        assert_eq!(daemon.metadata.namespace, account.metadata.namespace);
        let spec = daemon.spec;
        let labels = spec.template.metadata.unwrap().labels.unwrap();
        for (key, value) in spec.selector.match_labels.unwrap() {
            assert_eq!(labels.get(&key), Some(&value));
        }
        let pod = spec.template.spec.unwrap();
        assert_eq!(pod.service_account_name, account.metadata.name);
        let agent = &pod.containers[0];
        let config: ConfigMap = the(&objects);
        assert_eq!(config.metadata.namespace, account.metadata.namespace);
        let from = &agent.env_from.as_ref().unwrap()[0];
        assert_eq!(
            Some(&from.config_map_ref.as_ref().unwrap().name),
            config.metadata.name.as_ref()
        );

        let volumes: BTreeSet<String> = pod.volumes.unwrap().into_iter().map(|v| v.name).collect();
        let mounts = agent.volume_mounts.clone().unwrap();
        let mounted: BTreeSet<String> = mounts.into_iter().map(|mount| mount.name).collect();
        assert_eq!(volumes, mounted);
        let ports: Vec<&str> = agent
            .ports
            .iter()
            .flatten()
            .filter_map(|port| port.name.as_deref())
            .collect();
        for probe in [&agent.readiness_probe, &agent.liveness_probe] {
            let asks = probe.as_ref().unwrap().http_get.as_ref().unwrap();
            let IntOrString::String(port) = &asks.port else {
                panic!("{asks:?}")
            };
            assert!(ports.contains(&port.as_str()));
        }
    }
}

#[test]
fn the_agent_takes_every_option_and_finds_its_places() {
    for objects in [plain(), chart::render(&all_changed(), "net")] {
        options::check(&objects);
    }
}

#[test]
fn the_image_is_the_one_that_is_built() {
    assert_eq!(
        container(&plain()).image,
        Some(format!("localhost/tulle:{VERSION}"))
    );
    let remove: DaemonSet = the(&removal());
    let remove = remove.spec.template.spec.unwrap();
    let before = remove.init_containers.iter().flatten();
    for (container, stays) in before.chain(&remove.containers).zip([false, true]) {
        assert_eq!(container.image, Some(format!("localhost/tulle:{VERSION}")));
        let args = options::cleanup(container.args.as_ref().unwrap());
        assert_eq!(args.stay, stays);
    }
    let chart = chart::description();
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&json!(VERSION), &json!(VERSION))
    );
}

#[test]
fn a_document_of_options_becomes_a_file_that_moves_no_probe() {
    let document = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "healthzBindAddress": "127.0.0.1:9999",
        "iptables": { "masqueradeAll": true },
    });
    let rendered = chart::render(&json!({ "config": document }), "123");
    let (files, rest): (Vec<Value>, Vec<Value>) = rendered
        .into_iter()
        .partition(|object| object["metadata"]["name"] == "tulle-config");
    assert_eq!(files[0]["metadata"]["namespace"], "123");
    let text = files[0]["data"]["config.yaml"].as_str().unwrap();
    let variables = the::<ConfigMap>(&rest).data.unwrap();
    assert_eq!(variables["TULLE_CONFIG"], "/etc/tulle/config.yaml");
    let container = container(&rest);
    let mount = container
        .volume_mounts
        .iter()
        .flatten()
        .find(|m| m.name == "config");
    assert_eq!(mount.unwrap().mount_path, "/etc/tulle");
    let volumes = pod(&rest).volumes.unwrap();
    let volume = volumes
        .iter()
        .find(|volume| volume.name == "config")
        .unwrap();
    assert_eq!(volume.config_map.as_ref().unwrap().name, "tulle-config");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, text).unwrap();
    let fixed = container.env.unwrap();
    let fixed = fixed
        .iter()
        .find(|v| v.name == "TULLE_HEALTH_ADDRESS")
        .unwrap();
    let health = format!("--health-address={}", fixed.value.as_ref().unwrap());
    let words = [
        "tulle-agent",
        "run",
        &health,
        "--config",
        file.to_str().unwrap(),
    ];
    let words: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
    let tulle_agent::args::Verb::Run(run) = tulle_agent::args::Args::of(&words).unwrap().verb
    else {
        panic!("it is `run`");
    };
    assert!(run.services.masquerade_all);
    assert_eq!(run.http.health_address.to_string(), "0.0.0.0:10256");
}

/// Each thing that a role allows: group, resource, verb.
fn allowed(objects: &[Value]) -> BTreeSet<[String; 3]> {
    let role: ClusterRole = the(objects);
    let mut allowed = BTreeSet::new();
    for rule in role.rules.unwrap() {
        assert!(rule.non_resource_urls.is_none() && rule.resource_names.is_none());
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    let new = [group, resource, verb].map(String::to_owned);
                    assert!(allowed.insert(new), "{group}/{resource} {verb} twice");
                }
            }
        }
    }
    allowed
}

/// What the agent asks the API server for.
const CALLS: [(&str, &str, &[&str]); 5] = [
    ("", "services", &["get", "list", "watch"]),
    ("", "nodes", &["get", "list", "watch"]),
    (
        "discovery.k8s.io",
        "endpointslices",
        &["get", "list", "watch"],
    ),
    (
        "networking.k8s.io",
        "servicecidrs",
        &["get", "list", "watch"],
    ),
    ("events.k8s.io", "events", &["create", "patch"]),
];

#[test]
fn the_role_allows_the_calls_and_nothing_else() {
    let mut calls = BTreeSet::new();
    for (group, resource, verbs) in CALLS {
        calls.extend(
            verbs
                .iter()
                .map(|verb| [group, resource, verb].map(str::to_owned)),
        );
    }
    assert_eq!(allowed(&plain()), calls);
    let pods = ["get", "list", "watch"].map(|verb| ["", "pods", verb].map(str::to_owned));
    calls.extend(pods);
    assert_eq!(
        allowed(&chart::render(&json!({ "hostPorts": true }), "net")),
        calls
    );
}

#[test]
fn every_value_is_described_and_checked() {
    let (values, schema) = (chart::values(), chart::schema());
    let readme = read("deploy/chart/tulle/README.md");
    let described = schema["properties"].as_object().unwrap();
    for (key, value) in values.as_object().unwrap() {
        let of_key = described
            .get(key)
            .unwrap_or_else(|| panic!("{key} is not in the schema"));
        let rows: Vec<String> = match of_key.get("properties") {
            Some(parts) => parts
                .as_object()
                .unwrap()
                .keys()
                .map(|p| format!("{key}.{p}"))
                .collect(),
            None => vec![key.clone()],
        };
        for row in rows {
            assert!(
                readme.contains(&format!("| `{row}` |")),
                "{row} is not in the README's table"
            );
        }
        assert!(!value.is_null(), "{key} has no value");
    }
    for key in described.keys().filter(|key| *key != "global") {
        assert!(values.get(key).is_some(), "values.yaml does not have {key}");
    }

    let validator = jsonschema::validator_for(&schema).unwrap();
    let changed = json!({ "options": { "log": "debug" }, "sockets": false, "tolerations": [] });
    for good in [
        values.clone(),
        chart::merged(&values, &changed),
        chart::merged(&values, &all_changed()),
    ] {
        let faults: Vec<String> = validator
            .iter_errors(&good)
            .map(|e| e.to_string())
            .collect();
        assert!(faults.is_empty(), "{faults:?}");
    }
    for bad in [
        json!({ "option": { "log": "debug" } }),
        json!({ "options": { "max-flows": 1_048_576 } }),
        json!({ "options": { "node": "node-1" } }),
        json!({ "options": { "MTU": "1400" } }),
        json!({ "apiServers": ["10.0.0.1"] }),
        json!({ "apiServers": "10.0.0.1:6443" }),
        json!({ "sockets": "off" }),
        json!({ "image": { "name": "tulle" } }),
        json!({ "image": { "pullPolicy": "Sometimes" } }),
    ] {
        assert!(!validator.is_valid(&chart::merged(&values, &bad)), "{bad}");
    }
}

/// Values of a key in a systemd unit.
fn of_unit<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines()
        .filter_map(|line| line.split_once('='))
        .filter_map(|(name, value)| (name == key).then_some(value))
        .collect()
}

#[test]
fn the_unit_runs_the_agent_with_the_rights_of_the_daemonset() {
    let unit = read("deploy/systemd/tulle-agent.service");
    let [start] = of_unit(&unit, "ExecStart")[..] else {
        panic!("one ExecStart")
    };
    let words: Vec<String> = start.split(' ').map(str::to_owned).collect();
    assert_eq!(words[0], "/usr/local/bin/tulle-agent");
    let environment = read("deploy/systemd/agent.env");
    let variables: Vec<(String, String)> = environment
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(variables.len(), 2);
    let args = options::run(&words[1..], &variables);
    for (place, key) in [
        (&args.places.run_dir, "RuntimeDirectory"),
        (&args.cluster.lib_dir, "StateDirectory"),
    ] {
        let above = if key == "StateDirectory" {
            "/var/lib"
        } else {
            "/run"
        };
        let [name] = of_unit(&unit, key)[..] else {
            panic!("one {key}")
        };
        assert_eq!(place, &std::path::Path::new(above).join(name));
    }
    let [rights] = of_unit(&unit, "CapabilityBoundingSet")[..] else {
        panic!("one set")
    };
    let of_manifest = added_capabilities(&plain()).into_iter();
    let of_manifest: Vec<String> = of_manifest.map(|name| format!("CAP_{name}")).collect();
    assert_eq!(rights, of_manifest.join(" "));
}

#[test]
fn the_documents_name_files_that_are_there() {
    for document in [
        "docs/install.md",
        "deploy/chart/tulle/README.md",
        "README.md",
    ] {
        let text = read(document);
        let of_path = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        let words = text
            .split(|c: char| !of_path(c))
            .map(|word| word.trim_end_matches('.'));
        for word in words.filter(|word| word.starts_with("deploy/")) {
            assert!(root().join(word).exists(), "{document} names {word}");
        }
    }
    let install = read("docs/install.md");
    let name = format!("tulle-{VERSION}-amd64.tar");
    assert!(
        install.contains(&name),
        "docs/install.md does not name {name}"
    );
    assert!(install.contains(&format!("localhost/tulle:{VERSION}")));
}
