//! API servers of clusters of test hosts, and agents that are told of them. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod apiserver_support;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use apiserver_support::{LIMIT, client_of};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Api, ListParams};
use testkit::agent::{Agent, AgentOptions, Source};
use testkit::apiserver::{ApiServer, PORT, TOKEN};
use testkit::cluster::ROUTER6;
use testkit::manifests::{Protocol, Service as Manifest, StateDir};
use testkit::{Cluster, ClusterBuilder, NetNs};

fn cluster(label: &str) -> Cluster {
    ClusterBuilder::unique(label)
        .pods_per_node(1)
        .build()
        .unwrap()
}

/// Names of the nodes and services that a client in a namespace is told.
fn names(ns: &NetNs, kubeconfig: &Path) -> Vec<String> {
    let list = async {
        let client = client_of(kubeconfig).await;
        let nodes: Api<Node> = Api::all(client.clone());
        let services: Api<Service> = Api::all(client);
        let params = ListParams::default();
        let nodes = nodes.list(&params).await.unwrap().items;
        let services = services.list(&params).await.unwrap().items;
        let nodes = nodes.into_iter().map(|n| n.metadata.name.unwrap());
        nodes
            .chain(services.into_iter().map(|s| s.metadata.name.unwrap()))
            .collect()
    };
    let runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { tokio::time::timeout(LIMIT, list).await.unwrap() })
    };
    ns.run(runtime).unwrap()
}

#[test]
fn every_host_of_a_cluster_reaches_its_servers() {
    let mut cluster = cluster("api");
    cluster.add_outsider("client").unwrap();
    let server = ApiServer::for_cluster(&cluster).unwrap();
    server
        .apply_yaml("{apiVersion: v1, kind: Node, metadata: {name: n1}}")
        .unwrap();
    let second = SocketAddr::new(ROUTER6.into(), PORT);
    let second = server.listen(Some(cluster.switch()), second).unwrap();
    let files = tempfile::tempdir().unwrap();
    let hosts = cluster.nodes().iter().map(testkit::Node::ns);
    for ns in hosts.chain([cluster.outsiders()[0].ns()]) {
        for listener in [server.listener(), &second] {
            let written = server
                .kubeconfig_for(files.path(), listener, TOKEN)
                .unwrap();
            assert_eq!(
                names(ns, &written.path),
                ["n1"],
                "{} {}",
                ns.name(),
                listener.url()
            );
        }
    }
    // Each is shut by itself, and opened again in its own namespace.
    second.shut();
    let written = server.kubeconfig(files.path()).unwrap();
    let ns = cluster.nodes()[0].ns();
    assert_eq!(names(ns, &written.path), ["n1"]);
    second.open().unwrap();
    let written = server.kubeconfig_for(files.path(), &second, TOKEN).unwrap();
    assert_eq!(names(ns, &written.path), ["n1"]);
}

/// A program that tells its arguments and stays.
fn program(cluster: &Cluster) -> std::path::PathBuf {
    let path = cluster.directory().join("program");
    std::fs::write(
        &path,
        "#!/bin/sh\necho \"arguments: $*\"\nexec sleep 1000\n",
    )
    .unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// The argument after `flag`, once the agent has told it.
fn argument(agent: &mut Agent, flag: &str) -> String {
    let told = |agent: &Agent| Ok(agent.log()?.contains("arguments: "));
    agent.wait_until("heard", LIMIT, told).unwrap();
    let log = agent.log().unwrap();
    let mut words = log.split_whitespace().skip_while(|word| *word != flag);
    words
        .nth(1)
        .unwrap_or_else(|| panic!("no {flag} in {log}"))
        .to_owned()
}

#[test]
fn agents_get_the_objects_of_a_directory_through_the_api() {
    let cluster = cluster("through");
    let state = StateDir::create(cluster.directory().join("state")).unwrap();
    state.write_nodes(&cluster).unwrap();
    let mut options = AgentOptions::new(program(&cluster), state.path()).args(&["--vni", "7"]);
    options.through_api = true;
    let mut agents: Vec<Agent> = cluster
        .nodes()
        .iter()
        .map(|node| Agent::start(node, &options).unwrap())
        .collect();
    let configs: Vec<String> = agents
        .iter_mut()
        .map(|a| argument(a, "--kubeconfig"))
        .collect();
    assert_eq!(configs[0], configs[1], "one server for the cluster");
    let log = agents[0].log().unwrap();
    assert!(
        !log.contains("--state") && log.contains("--host-ports --vni 7"),
        "{log}"
    );
    let lib = argument(&mut agents[0], "--lib-dir");
    assert!(
        Path::new(&lib).starts_with(cluster.nodes()[0].directory()),
        "{lib}"
    );
    let service = Manifest::dual_stack("web", 10).port(Protocol::Tcp, 80, 8080);
    state.write_service(&service).unwrap();
    let server = agents[1].api().unwrap();
    let there = || {
        server
            .get("Service", "default", "web")
            .map(|s| s.is_some().then_some(()))
    };
    testkit::wait::until("no service", LIMIT, there).unwrap();
    let seen = names(cluster.nodes()[1].ns(), Path::new(&configs[1]));
    assert_eq!(seen, ["node-1", "node-2", "web"]);
    // The server lives as long as one agent that has its objects from it.
    drop(agents.remove(0));
    assert_eq!(
        names(cluster.nodes()[0].ns(), Path::new(&configs[1])).len(),
        3
    );
    drop(agents);
    let mut again = Agent::start(&cluster.nodes()[0], &options).unwrap();
    let config = argument(&mut again, "--kubeconfig");
    assert_eq!(names(cluster.nodes()[0].ns(), Path::new(&config)).len(), 3);
}

#[test]
fn an_agent_is_told_a_kubeconfig() {
    let cluster = cluster("config");
    let server = ApiServer::for_cluster(&cluster).unwrap();
    let written = server
        .kubeconfig(&cluster.directory().join("mine"))
        .unwrap();
    let options = AgentOptions::of(program(&cluster), Source::Kubeconfig(written.path.clone()));
    let mut agent = Agent::start(&cluster.nodes()[0], &options).unwrap();
    assert_eq!(
        Path::new(&argument(&mut agent, "--kubeconfig")),
        written.path
    );
    assert!(agent.api().is_none());
    assert!(!agent.log().unwrap().contains("--host-ports"));
}
