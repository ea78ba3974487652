use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::CommandFactory;

use super::*;
use crate::args::{Args, RunArgs, Verb};

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// `run` with a file of this text, and with these words.
fn run_with(text: &str, more: &[&str]) -> Result<RunArgs, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let mut line = vec!["tulle-agent", "run", "--config", path];
    line.extend(more);
    match Args::of(&words(&line)) {
        Ok(args) => match args.verb {
            Verb::Run(run) => Ok(*run),
            other => panic!("{other:?}"),
        },
        Err(problem) => Err(problem.to_string().replace(path, "c.yaml")),
    }
}

const HEAD: &str = "apiVersion: tulle.io/v1alpha1\nkind: AgentConfiguration\n";

fn own(fields: &str, more: &[&str]) -> Result<RunArgs, String> {
    run_with(&format!("{HEAD}{fields}"), more)
}

#[test]
fn fields_are_options() {
    let run = own(
        "node: node-7\nstate: /s\nvni: 7\nxdp: off\nmasquerade: false\nhostPorts: true\n\
         masqueradeAll: true\nmasqueradeExclude: [10.0.0.0/8, 'fd00::/8']\n\
         nodePortAddresses: [192.0.2.0/24]\nminSyncPeriod: 20ms\nuplink: ~\n",
        &[],
    )
    .unwrap();
    assert_eq!(run.node, "node-7");
    assert_eq!(run.cluster.state.as_deref(), Some(Path::new("/s")));
    assert_eq!(run.overlay.vni, 7);
    assert!(matches!(run.overlay.xdp, crate::args::Xdp::Off));
    assert!(!run.services.masquerade && run.services.masquerade_all && run.cluster.host_ports);
    assert_eq!(run.services.masquerade_exclude.len(), 2);
    assert_eq!(run.limits.min_sync_period.as_millis(), 20);
    assert_eq!(run.uplink, None);
    assert!(
        run.settings["vni"].from.ends_with("c.yaml:5: vni"),
        "{:?}",
        run.settings["vni"]
    );
    assert_eq!(run.settings["max-flows"].from, "default");
}

#[test]
fn the_command_line_counts_before_the_file() {
    let run = own("vni: 7\nvxlanPort: 9\nstate: /s\n", &["--vni", "8"]).unwrap();
    assert_eq!((run.overlay.vni, run.overlay.vxlan_port), (8, 9));
    assert_eq!(run.settings["vni"].from, "command line");
    // What goes not with what counts more is left out.
    let run = own("state: /s\n", &["--kubeconfig", "/k"]).unwrap();
    assert_eq!(run.cluster.state, None);
    assert!(
        run.notes[0].contains("does not count: --kubeconfig was said elsewhere"),
        "{:?}",
        run.notes
    );
    let both = own("state: /s\nkubeconfig: /k\n", &[]).unwrap_err();
    assert!(
        both.contains("c.yaml:4: kubeconfig: goes not together with state"),
        "{both}"
    );
    let flag = own("node: a\n", &["--hostname-override", "B"]).unwrap();
    assert_eq!(flag.node, "b");
    assert_eq!(flag.settings["node"].from, "--hostname-override");
}

#[test]
fn the_mode_of_a_flag_counts_for_the_file() {
    let proxy = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                 ipvs: {scheduler: lc}\n";
    let plain = run_with(proxy, &[]).unwrap();
    assert_eq!(plain.settings["scheduler"].from, "default");
    let ipvs = run_with(proxy, &["--proxy-mode", "ipvs"]).unwrap();
    assert_eq!(ipvs.settings["scheduler"].values, ["lc"]);
    let period = run_with(
        &format!("{proxy}mode: ipvs\n"),
        &["--ipvs-min-sync-period=7ms"],
    );
    assert_eq!(period.unwrap().settings["min-sync-period"].values, ["7ms"]);
    let later = proxy.replace("v1alpha1", "v1beta1");
    assert!(
        run_with(&later, &[])
            .unwrap_err()
            .contains("no configuration of the agent")
    );
}

#[test]
fn numbers_are_not_taken_for_names() {
    let float = own("node: 1.10\n", &[]).unwrap_err();
    assert!(
        float.contains("c.yaml:3: node: is a number where a text"),
        "{float}"
    );
    assert_eq!(own("node: '1.10'\n", &[]).unwrap().node, "1.10");
}

#[test]
fn all_that_is_wrong_is_told_with_line_and_mend() {
    let error = own(
        "vni: 0\nmaxflows: 1\nxdp: [a]\nmasquerade: maybe\nhostPorts:\n  a: 1\n",
        &[],
    );
    let error = error.unwrap_err();
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 5, "{error}");
    assert!(lines[0].starts_with("c.yaml:3: vni: \"0\": "), "{error}");
    assert_eq!(
        lines[1],
        "c.yaml:4: maxflows: there is no such field; it is written maxFlows"
    );
    assert!(
        lines[2].starts_with("c.yaml:5: xdp: there is a list"),
        "{error}"
    );
    assert!(lines[3].starts_with("c.yaml:6: masquerade: "), "{error}");
    assert!(lines[4].starts_with("c.yaml:7: hostPorts: "), "{error}");
    for (text, wanted) in [
        ("vni: 7\n", "c.yaml:1: apiVersion is missing"),
        (
            "apiVersion: v1\nkind: ConfigMap\n",
            "c.yaml:1: ConfigMap of v1 is no configuration",
        ),
        ("", "c.yaml is empty"),
        ("a: [1\n", "c.yaml: line "),
    ] {
        let error = run_with(text, &[]).unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    let twice = run_with(&format!("{HEAD}---\n{HEAD}"), &[]).unwrap_err();
    assert!(twice.contains("c.yaml:4: there are two"), "{twice}");
    let none = Args::of(&words(&["tulle-agent", "run", "--config", "/nowhere"]));
    let none = none.unwrap_err().to_string();
    assert!(
        none.contains("/nowhere: No such file") && none.contains("--config"),
        "{none}"
    );
}

#[test]
fn kube_proxy_s_file_is_read_behind_the_own() {
    let proxy = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                 hostnameOverride: n1\nclusterCIDR: 10.0.0.0/8\nmetricsBindAddress: 0.0.0.0:9\n";
    let run = run_with(&format!("{proxy}---\n{HEAD}node: n2\n"), &[]).unwrap();
    assert_eq!(run.node, "n2");
    assert_eq!(run.settings["metrics-address"].values, ["0.0.0.0:9"]);
    assert_eq!(run.notes.len(), 2, "{:?}", run.notes);
    assert!(
        run.notes[0].contains("c.yaml:4: clusterCIDR means nothing here"),
        "{:?}",
        run.notes
    );
    // As JSON.
    let json = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","hostnameOverride":"n3"}"#;
    assert_eq!(run_with(json, &[]).unwrap().node, "n3");
}

#[test]
fn every_verb_takes_of_the_file_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(
        &path,
        format!("{HEAD}vni: 9\nxdp: off\nrunDir: /r\nnode: n1\n"),
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let cleanup = Args::of(&words(&["tulle-agent", "cleanup", "--config", path])).unwrap();
    let Verb::Cleanup(cleanup) = cleanup.verb else {
        panic!("it is `cleanup`");
    };
    assert_eq!(
        (cleanup.vni, &*cleanup.places.run_dir),
        (9, Path::new("/r"))
    );
    let takeover = words(&["tulle-agent", "takeover", "kube-proxy", "--config", path]);
    let Verb::Takeover(crate::args::TakenFrom::KubeProxy(takeover)) =
        Args::of(&takeover).unwrap().verb
    else {
        panic!("it is `takeover`");
    };
    assert_eq!(&*takeover.places.run_dir, Path::new("/r"));
}

/// What the options have as defaults, written as a file, is taken by the agent and by the
/// schema, and changes nothing.
#[test]
fn the_schema_has_every_option_and_its_default() {
    let command = Args::command();
    let run = command.find_subcommand("run").unwrap();
    let schema = schema::schema();
    let properties = schema["properties"].as_object().unwrap();
    let fields: Vec<String> = options::of(run)
        .map(|arg| options::field(arg.get_long().unwrap()))
        .collect();
    assert_eq!(properties.len(), fields.len() + 2);
    let none = Args::of(&words(&["tulle-agent", "run"])).unwrap();
    let Verb::Run(none) = none.verb else {
        panic!("it is `run`");
    };
    let document = schema::document(run, |arg| {
        let values = none.settings[arg.get_long().unwrap()].values.clone();
        (!values.is_empty()).then_some(values)
    })
    .unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let value = serde_json::to_value(&document).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|e| e.to_string())
        .collect();
    assert_eq!(errors, [""; 0]);
    for (name, value) in value.as_object().unwrap() {
        let default = properties[name].get("default");
        assert!(
            default.is_none_or(|default| default == value),
            "{name}: {default:?} {value}"
        );
        assert!(
            properties[name].get("const").is_some() || properties[name]["description"] != "",
            "{name}"
        );
    }
    let again = run_with(&serde_norway::to_string(&document).unwrap(), &[]).unwrap();
    for (name, setting) in &again.settings {
        if name != "config" {
            assert_eq!(
                setting.values.join(","),
                none.settings[name].values.join(","),
                "{name}"
            );
        }
    }
    for bad in [
        serde_json::json!({"apiVersion": API_VERSION, "kind": KIND, "vnii": 1}),
        serde_json::json!({"apiVersion": API_VERSION, "kind": KIND, "vni": "x"}),
        serde_json::json!({"apiVersion": API_VERSION, "kind": KIND, "xdp": "fast"}),
        serde_json::json!({"kind": KIND}),
    ] {
        assert!(!validator.is_valid(&bad), "{bad}");
    }
}

#[test]
fn the_published_schema_is_that_of_the_options() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = path.join("../deploy/agent-configuration.schema.json");
    let published: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(
        published,
        schema::schema(),
        "options changed: `cargo run -p tulle-agent -- config schema > deploy/agent-configuration.schema.json`"
    );
}
