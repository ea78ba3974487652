//! The demo's cluster: namespaces, servers, manifests, agents.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use admin_api::{Client, DEFAULT_TIMEOUT, LinkAttachment, Status};
use anyhow::{Context, Result, bail};
use datapath_common::Frontend;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use testkit::agent::{Agent, AgentOptions};
use testkit::http::{Load, LoadOptions, get};
use testkit::manifests::{Protocol, Service, StateDir};
use testkit::process::Process;
use testkit::server::{HTTP_PORT, PodServer};
use testkit::{Cluster, ClusterBuilder, Node, Pod, wait};

use crate::args::Options;
use crate::frontends::NodeFrontends;
use crate::text::bars::NodePods;

/// Port of the demo's services.
pub const PORT: u16 = 80;
/// The program at a pod's interface that knows services.
const POD_PROGRAM: &str = "tulle_pod_from";
/// Services in the manifests: `web` and `idle`.
const SERVICES: usize = 2;
/// Longest for an agent or a server to be ready.
const READY: Duration = Duration::from_secs(30);
/// Longest for a load while something is shown.
const LOAD: Duration = Duration::from_mins(1);
/// Requests before, between and after the steps of what is shown.
pub const SOME: usize = 200;
/// Longest for that many.
const PATIENCE: Duration = Duration::from_secs(20);

/// The cluster and what runs in it. Dropping it leaves all of that: the
/// supervisor removes it.
pub struct World {
    /// Nodes and pods.
    pub cluster: Cluster,
    /// The manifests.
    pub state: StateDir,
    /// The service that all pods are behind.
    pub web: Service,
    /// A service without endpoints.
    pub idle: Service,
    /// The agents, in the order of nodes.
    pub agents: Vec<Agent>,
    tulle: PathBuf,
}

/// `tulle-agent` and `tulle`.
struct Programs {
    agent: PathBuf,
    tulle: PathBuf,
}

impl World {
    /// Builds the cluster and starts the pods' servers. No agent runs yet.
    pub fn build(options: &Options) -> Result<Self> {
        let programs = Programs::find(options.programs.as_deref())?;
        let mut cluster = ClusterBuilder::new(&options.name)
            .nodes(options.nodes)
            .pods_per_node(options.pods)
            .build()?;
        cluster.keep()?;
        let state = StateDir::create(cluster.directory().join("state"))?;
        state.write_nodes(&cluster)?;
        let web = Service::dual_stack("web", 10)
            .port(Protocol::Tcp, PORT, HTTP_PORT)
            .endpoints(cluster.pods());
        let idle = Service::dual_stack("idle", 20).port(Protocol::Tcp, PORT, HTTP_PORT);
        state.write_service(&web)?;
        state.write_service(&idle)?;
        let agent_options = AgentOptions::new(programs.agent, state.path());
        let agents = cluster
            .nodes()
            .iter()
            .map(|node| Agent::new(node, &agent_options));
        let mut world = Self {
            agents: agents.collect::<Result<_, _>>()?,
            cluster,
            state,
            web,
            idle,
            tulle: programs.tulle,
        };
        world.start_servers()?;
        Ok(world)
    }

    /// Starts all agents and waits until each has the whole cluster in its maps.
    pub fn start_agents(&mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.spawn()?;
            agent.keep();
        }
        for n in 0..self.agents.len() {
            self.await_agent(n)?;
        }
        Ok(())
    }

    /// Waits until an agent answers and has the whole cluster in its maps.
    pub fn await_agent(&mut self, n: usize) -> Result<()> {
        let nodes = self.cluster.nodes().len();
        let node = &self.cluster.nodes()[n];
        let ips = &self.web.ips;
        let mut last = String::new();
        let agent = &mut self.agents[n];
        agent.wait_ready(READY)?;
        let waited = agent.wait_until("in sync with the manifests", READY, |agent| {
            let missing = status_at(&agent.socket()).and_then(|status| {
                let rows = NodeFrontends::open(node.name(), &node.bpffs(), ips, PORT)?.read()?;
                let filled = |row: &Option<Frontend>| row.is_some_and(|row| row.len > 0);
                let missing = missing(&status, nodes, node.pods().len());
                Ok(missing
                    .or((!rows.iter().all(filled)).then(|| "backends in the maps".to_owned())))
            });
            last = missing
                .unwrap_or_else(|e| Some(format!("{e:#}")))
                .unwrap_or_default();
            Ok(last.is_empty())
        });
        waited.with_context(|| format!("missing: {last}"))
    }

    /// What an agent says about itself.
    pub fn status(&self, n: usize) -> Result<Status> {
        status_at(&self.agents[n].socket())
    }

    /// The frontends of `web` on every node.
    pub fn frontends(&self) -> Result<Vec<NodeFrontends>> {
        let nodes = self.cluster.nodes().iter();
        nodes
            .map(|node| NodeFrontends::open(node.name(), &node.bpffs(), &self.web.ips, PORT))
            .collect()
    }

    /// The first pod of the first node, which sends all requests.
    pub fn client(&self) -> Result<(&Node, &Pod)> {
        self.cluster.pods().next().context("a cluster without pods")
    }

    /// A stream of requests from the client to `web` over both families, some
    /// of which have ended.
    pub fn start_load(&self) -> Result<Load> {
        let servers: Vec<SocketAddr> = self
            .web
            .ips
            .iter()
            .map(|ip| SocketAddr::new(*ip, PORT))
            .collect();
        let options = LoadOptions::steady(LOAD);
        let load = Load::start(self.client()?.1.ns(), servers.as_slice(), &options)?;
        await_some(&load)?;
        Ok(load)
    }

    /// Names of the pods behind `web`, by node.
    pub fn backends(&self) -> Vec<NodePods> {
        let nodes = self.cluster.nodes().iter().map(|node| NodePods {
            node: node.name().to_owned(),
            pods: self
                .web
                .endpoints
                .iter()
                .filter(|endpoint| endpoint.node == node.name())
                .map(|endpoint| endpoint.pod.clone())
                .collect(),
        });
        nodes.collect()
    }

    /// `tulle` for a node, with the options that find it.
    pub fn tulle(&self, node: &Node, verb: &str) -> Result<Command> {
        let mut command = node.ns().command(&self.tulle)?;
        command.arg("--bpffs").arg(node.bpffs());
        command.arg("--run-dir").arg(node.run_dir()).arg(verb);
        Ok(command)
    }

    /// What a user types to run `tulle` for a node.
    pub fn tulle_command(&self, node: &Node) -> String {
        format!(
            "ip netns exec {} {} --bpffs {} --run-dir {}",
            node.ns().name(),
            self.tulle.display(),
            node.bpffs().display(),
            node.run_dir().display()
        )
    }

    /// A process in each pod, and all of them answering.
    fn start_servers(&mut self) -> Result<()> {
        let program = std::env::current_exe().context("find this program's file")?;
        for (node, pod) in self.cluster.pods() {
            let mut command = pod.ns().command(&program)?;
            command.arg("pod").arg(pod.name());
            let log = node.directory().join(format!("{}.log", pod.name()));
            Process::spawn(&format!("server of {}", pod.name()), command, &log)?.keep();
        }
        for (node, pod) in self.cluster.pods() {
            let address = SocketAddr::new(IpAddr::V4(pod.ip4()), HTTP_PORT);
            let what = format!("no answer of the server in {}", pod.name());
            wait::until(&what, READY, || {
                let answer = get(node.ns(), address, "/", Duration::from_secs(1));
                Ok(answer.is_ok_and(|a| a.pod == pod.name()).then_some(()))
            })?;
        }
        Ok(())
    }
}

impl Programs {
    /// In `directory`, or beside this program.
    fn find(directory: Option<&Path>) -> Result<Self> {
        let own = std::env::current_exe().context("find this program's file")?;
        let directory = directory
            .or_else(|| own.parent())
            .context("this program is in no directory")?;
        let find = |name: &str| {
            let path = directory.join(name);
            if !path.is_file() {
                bail!(
                    "{} is missing: `cargo xtask demo` builds it, or name its directory with \
                     --programs DIR",
                    path.display()
                );
            }
            Ok(path)
        };
        Ok(Self {
            agent: find("tulle-agent")?,
            tulle: find("tulle")?,
        })
    }
}

/// What an agent has not done yet, by its own word.
fn missing(status: &Status, nodes: usize, pods: usize) -> Option<String> {
    let objects = status.objects;
    let attached = |link: &&LinkAttachment| link.program == POD_PROGRAM;
    let counts = [
        ("nodes", objects.nodes as usize, nodes),
        ("services", objects.services as usize, SERVICES),
        ("local pods", objects.local_pods as usize, pods),
        (
            "pods with a program",
            status.links.iter().filter(attached).count(),
            pods,
        ),
    ];
    let short = counts.iter().find(|(_, is, due)| is < due);
    let short = short.map(|(what, is, due)| format!("{what}: {is} of {due}"));
    let fault = status.map_errors.first();
    short.or_else(|| fault.map(|fault| format!("{}: {}", fault.map, fault.message)))
}

/// Waits until [`SOME`] requests more of a load have ended.
pub fn await_some(load: &Load) -> Result<()> {
    Ok(load.wait_for_more(SOME, PATIENCE)?)
}

fn status_at(socket: &Path) -> Result<Status> {
    let mut client = Client::connect(socket, DEFAULT_TIMEOUT)?;
    Ok(client.status()?)
}

/// Serves in this process's namespace until it is asked to end.
pub fn serve_pod(name: &str) -> Result<ExitCode> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("hear signals")?;
    let server = PodServer::start_here(name)?;
    signals.forever().next();
    drop(server);
    Ok(ExitCode::SUCCESS)
}
