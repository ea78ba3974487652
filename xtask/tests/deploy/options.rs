//! The DaemonSet's options beside the agent's own.

use std::path::Path;

use clap::{ArgAction, CommandFactory, Parser};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::Value;
use tulle_agent::args::{Args, CleanupArgs, RunArgs, Verb};

use crate::objects::the;

/// `run` with options given by variables, on the command line.
pub fn run(arguments: &[String], variables: &[(String, String)]) -> RunArgs {
    let command = Args::command();
    let of_run = command.find_subcommand("run").unwrap();
    let mut words: Vec<String> = vec!["tulle-agent".into()];
    words.extend(arguments.iter().cloned());
    for (variable, value) in variables {
        let option = of_run
            .get_arguments()
            .find(|argument| {
                argument
                    .get_env()
                    .is_some_and(|env| env == variable.as_str())
            })
            .unwrap_or_else(|| panic!("the agent does not know {variable}"));
        let long = option.get_long().unwrap();
        match option.get_action() {
            ArgAction::SetTrue if value == "true" => words.push(format!("--{long}")),
            ArgAction::SetTrue => panic!("{variable} is {value}"),
            _ => words.push(format!("--{long}={value}")),
        }
    }
    match Args::try_parse_from(&words)
        .unwrap_or_else(|error| panic!("{words:?}: {error}"))
        .verb
    {
        Verb::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

/// `cleanup` with these arguments.
pub fn cleanup(arguments: &[String]) -> CleanupArgs {
    let words = ["tulle-agent"]
        .into_iter()
        .chain(arguments.iter().map(String::as_str));
    match Args::try_parse_from(words)
        .unwrap_or_else(|error| panic!("{error}"))
        .verb
    {
        Verb::Cleanup(args) => *args,
        other => panic!("{other:?}"),
    }
}

/// The agent takes the options, listens where the probes ask, and its directories are the host's.
pub fn check(objects: &[Value]) {
    let spec = the::<DaemonSet>(objects).spec.template.spec.unwrap();
    let agent = &spec.containers[0];
    let mut variables: Vec<(String, String)> = the::<ConfigMap>(objects)
        .data
        .unwrap()
        .into_iter()
        .collect();
    for variable in agent.env.iter().flatten() {
        let value = match &variable.value_from {
            // The name of any node.
            Some(from) => {
                assert_eq!(from.field_ref.as_ref().unwrap().field_path, "spec.nodeName");
                "node-1".to_owned()
            }
            None => variable.value.clone().unwrap(),
        };
        variables.push((variable.name.clone(), value));
    }
    let args = run(agent.args.as_ref().unwrap(), &variables);

    let port = agent.ports.as_ref().unwrap()[0].container_port;
    let health = args.http.health_address.address().expect("probes ask it");
    assert_eq!(i32::from(health.port()), port);
    assert!(
        health.ip().is_unspecified(),
        "probes come to the node's address"
    );

    let volumes = spec.volumes.unwrap();
    let host_path = |inside: &Path| {
        let mounts = agent.volume_mounts.iter().flatten();
        let mount = mounts
            .filter(|mount| inside.starts_with(&mount.mount_path))
            .max_by_key(|mount| mount.mount_path.len())
            .unwrap_or_else(|| panic!("{} is lost with the container", inside.display()));
        let volume = volumes
            .iter()
            .find(|volume| volume.name == mount.name)
            .unwrap();
        volume.host_path.as_ref().unwrap().path.clone()
    };
    assert_eq!(host_path(&args.places.bpffs), "/sys/fs/bpf");
    assert_eq!(host_path(&args.places.run_dir), "/run/tulle");
    assert_eq!(host_path(&args.cluster.lib_dir), "/var/lib/tulle");
    // The agent looks for switches there, too (`net::sysctl`).
    assert_eq!(host_path(Path::new("/host/proc/sys/net")), "/proc/sys/net");
}
