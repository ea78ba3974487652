//! Nodes, pods, manifests; and how a kept cluster is entered.

use std::path::Path;

use anyhow::{Context, Result};
use testkit::{Node, Pod};

use super::Output;
use crate::args::Options;
use crate::text::topology::{NodeView, picture};
use crate::text::{count, excerpt};
use crate::world::World;

/// The cluster before its agents run.
pub fn show(page: &mut Output, world: &World) -> Result<()> {
    page.heading("The cluster")?;
    page.text(
        "Network namespaces, joined by veth pairs. A switch joins the nodes; each has its own uplink, \
         its own agent and its own BPF file system. Each pod runs an HTTP server that answers with \
         the pod's name.",
    )?;
    page.gap()?;
    let nodes: Vec<NodeView> = world.cluster.nodes().iter().map(view).collect();
    page.block(&picture("switch  192.168.77.1  fd77::1", &nodes))?;
    page.gap()?;
    let state = world.state.path();
    page.text(&format!(
        "The cluster's state is a directory of Kubernetes YAML that all agents watch: {}",
        listed(state)?
    ))?;
    page.command(&format!("cat {}", state.join(world.web.file()).display()))?;
    page.quote(&excerpt::manifests(&world.web.to_string()))?;
    Ok(())
}

/// That the agents run, and what they chose.
pub fn agents(page: &mut Output, world: &World) -> Result<()> {
    page.gap()?;
    let agents = world.agents.len();
    page.promise(
        true,
        &format!(
            "{} and in sync: nodes, services and pods are in the maps of each node.",
            if agents == 1 {
                "1 agent runs".to_owned()
            } else {
                format!("{agents} agents run")
            }
        ),
    )?;
    let mut warnings = Vec::new();
    for n in 0..agents {
        warnings.extend(world.status(n)?.warnings.iter().cloned());
    }
    if !warnings.is_empty() {
        page.promise(
            false,
            &format!("the agents warn of the manifests: {warnings:?}"),
        )?;
    }
    let status = world.status(0)?;
    let chosen: Vec<String> = status
        .features
        .iter()
        .map(|feature| format!("{}: {}", feature.name, feature.chosen))
        .collect();
    if !chosen.is_empty() {
        page.text(&format!("{} chose {}.", status.node, chosen.join("; ")))?;
    }
    Ok(())
}

/// Commands to copy.
pub fn entrances(page: &mut Output, world: &World, options: &Options) -> Result<()> {
    let (node, pod) = world.client()?;
    page.text(&format!(
        "The cluster stays up: {}, each agent and server a process of its own. Enter it:",
        count(world.cluster.nodes().len(), "node")
    ))?;
    page.gap()?;
    for ip in &world.web.ips {
        let host = if ip.is_ipv6() {
            format!("[{ip}]")
        } else {
            ip.to_string()
        };
        page.command(&format!(
            "ip netns exec {} curl -s 'http://{host}/'",
            pod.ns().name()
        ))?;
    }
    let tulle = world.tulle_command(node);
    page.command(&format!("{tulle} services"))?;
    page.command(&format!("{tulle} monitor"))?;
    page.command(&format!(
        "$EDITOR {}",
        world.state.path().join(world.web.file()).display()
    ))?;
    if let Some(agent) = world.agents.first() {
        page.command(&format!("tail -f {}", agent.log_path().display()))?;
    }
    page.gap()?;
    page.text("Remove it:")?;
    page.command(&options.down_command())?;
    Ok(())
}

fn view(node: &Node) -> NodeView {
    NodeView {
        name: node.name().to_owned(),
        rows: rows(&[
            ("eth0", Some(node.ip4().to_string())),
            ("", node.ip6().map(|ip| ip.to_string())),
            ("pods", Some(node.pod_cidr4().to_string())),
            ("", node.pod_cidr6().map(|cidr| cidr.to_string())),
        ]),
        pods: node.pods().iter().map(pod_rows).collect(),
    }
}

fn pod_rows(pod: &Pod) -> Vec<(String, String)> {
    rows(&[
        (&format!("pod-{}", pod.index()), Some(pod.ip4().to_string())),
        ("", pod.ip6().map(|ip| ip.to_string())),
    ])
}

fn rows(rows: &[(&str, Option<String>)]) -> Vec<(String, String)> {
    rows.iter()
        .filter_map(|(what, value)| Some(((*what).to_owned(), value.clone()?)))
        .collect()
}

/// The directory and its files.
fn listed(directory: &Path) -> Result<String> {
    let what = || format!("list {}", directory.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(what)? {
        files.push(
            entry
                .with_context(what)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    files.sort();
    Ok(format!("{} ({})", directory.display(), files.join(", ")))
}
