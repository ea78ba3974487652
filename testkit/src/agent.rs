//! A real `tulle-agent` process on a node of a cluster.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use admin_api::{Client, ClientError, Status};

use crate::apiserver::{ApiServer, ClusterApi};
use crate::cluster::{Node, UPLINK, XDP};
use crate::error::{Context, Error, Result};
use crate::netns::NetNs;
use crate::process::Process;
use crate::wait;

/// With this variable agents that are given a directory of manifests get its objects from an API
/// server of the cluster instead.
const API: &str = "TULLE_TEST_API";

/// How long an agent applies nothing that has applied all it was sent.
const SETTLE: Duration = Duration::from_millis(100);

/// Where an agent has the cluster's objects from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A directory of manifests.
    State(PathBuf),
    /// The API server that a kubeconfig names.
    Kubeconfig(PathBuf),
}

/// How agents are started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The program `tulle-agent`.
    pub binary: PathBuf,
    /// Where the objects are.
    pub source: Source,
    /// Whether a directory's objects come through an API server of the cluster.
    pub through_api: bool,
    /// Further arguments of `run`.
    pub args: Vec<OsString>,
    /// Further variables of its environment.
    pub env: Vec<(OsString, OsString)>,
}

/// An agent of a node, running or not. A running one is killed on drop.
#[derive(Debug)]
pub struct Agent {
    node: String,
    ns: NetNs,
    bpffs: PathBuf,
    run_dir: PathBuf,
    lib_dir: PathBuf,
    cgroup: Option<PathBuf>,
    log: PathBuf,
    options: AgentOptions,
    process: Option<Process>,
    /// The API server that has the directory's objects. After the process, which uses it.
    api: Option<Arc<ClusterApi>>,
}

impl AgentOptions {
    /// With a directory of manifests, without further arguments.
    pub fn new(binary: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        Self::of(binary, Source::State(state.into()))
    }

    /// With an API server, without further arguments.
    pub fn of(binary: impl Into<PathBuf>, source: Source) -> Self {
        Self {
            binary: binary.into(),
            source,
            through_api: std::env::var_os(API).is_some(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// Adds arguments of `run`.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(OsString::from));
        self
    }
}

impl Agent {
    /// An agent for a node, not yet started. Its log is `agent.log` in the
    /// node's directory.
    pub fn new(node: &Node, options: &AgentOptions) -> Result<Self> {
        let api = match &options.source {
            Source::State(state) if options.through_api => Some(ClusterApi::of(node, state)?),
            _ => None,
        };
        Ok(Self {
            api,
            lib_dir: node.directory().join("lib"),
            node: node.name().to_owned(),
            ns: NetNs::adopt(node.ns().name())?,
            bpffs: node.bpffs(),
            run_dir: node.run_dir(),
            cgroup: node.cgroup().map(Path::to_owned),
            log: node.directory().join("agent.log"),
            options: options.clone(),
            process: None,
        })
    }

    /// Starts an agent for a node.
    pub fn start(node: &Node, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::new(node, options)?;
        agent.spawn()?;
        Ok(agent)
    }

    /// Starts it again after its end.
    pub fn spawn(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process
            && process.status()?.is_none()
        {
            let pid = process.pid();
            return Err(Error::Invalid(format!(
                "agent of {} runs already (pid {pid})",
                self.node
            )));
        }
        // What an earlier process left would look like readiness.
        match std::fs::remove_file(self.socket()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).trying(|| format!("remove {}", self.socket().display()));
            }
            _ => {}
        }
        let mut command = self.command("run")?;
        let kubeconfig = self.api.as_ref().map(|api| &api.kubeconfig().path);
        match (&self.options.source, kubeconfig) {
            (Source::State(state), None) => command.arg("--state").arg(state),
            (Source::State(_), Some(path)) => {
                // A directory's pods are always served, those of an API server on demand.
                self.connect(&mut command, path).arg("--host-ports")
            }
            (Source::Kubeconfig(path), _) => self.connect(&mut command, path),
        };
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
            // Options of a test may say otherwise.
            command.env("TULLE_SOCKET_SERVICES", "auto");
        }
        if let Some(mode) = std::env::var_os(XDP) {
            command.env("TULLE_XDP", mode);
        }
        command.args(&self.options.args);
        let what = format!("agent of {}", self.node);
        self.process = Some(Process::spawn(&what, command, &self.log)?);
        Ok(())
    }

    /// The API server that it has a directory's objects from, if that is so.
    pub fn api(&self) -> Option<&ApiServer> {
        self.api.as_ref().map(|api| api.server())
    }

    /// Name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The socket that it answers on.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(admin_api::SOCKET_NAME)
    }

    /// Its log file.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it has logged, over its restarts.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(&self.log).trying(|| format!("read {}", self.log.display()))
    }

    /// Process id, if it has been started.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Waits until it serves what the first full list of objects says, slow
    /// path included.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        self.wait_until("ready", limit, |agent| {
            Ok(agent.status().is_ok_and(|status| status.ready))
        })
    }

    /// Waits until it has applied more than `before` changes, and, where they come through an API
    /// server, all that was said before: a Service and its slices come in watches of their own.
    pub fn wait_synced(&self, before: u64, limit: Duration) -> Result<()> {
        let what = format!("no sync of the agent of {}", self.node);
        let syncs = || self.status().map_or(0, |status| status.syncs);
        if let Some(api) = &self.api {
            api.wait_delivered(limit)?;
        }
        let (mut last, mut since) = (0, Instant::now());
        wait::until(&what, limit, || {
            let now = syncs();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            let settled = self.api.is_none() || since.elapsed() >= SETTLE;
            Ok((now > before && settled).then_some(()))
        })
    }

    /// What it says of itself.
    pub fn status(&self) -> std::result::Result<Status, ClientError> {
        Client::connect(&self.socket(), admin_api::DEFAULT_TIMEOUT)?.status()
    }

    /// Waits until `holds`; fails at once, with the end of its log, if it ends
    /// before. `what` completes "agent of X is not …".
    pub fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let what = format!("agent of {} is not {what}", self.node);
        let waited = wait::until(&what, limit, || {
            if let Some(process) = &mut self.process {
                process.check_running()?;
            }
            Ok(holds(self)?.then_some(()))
        });
        waited.map_err(|error| match error {
            Error::Timeout { what, limit, .. } => {
                let tail = self
                    .process
                    .as_ref()
                    .map_or(String::new(), Process::log_tail);
                let now = match self.status() {
                    Ok(status) => format!("it says {status:?}"),
                    Err(error) => error.to_string(),
                };
                let detail = format!("; now {now}; the end of its log:\n{tail}");
                Error::Timeout {
                    what,
                    limit,
                    detail,
                }
            }
            other => other,
        })
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.running()?.kill()
    }

    /// Ends it with SIGTERM; waits at most `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.running()?.terminate(limit)
    }

    /// SIGTERM, start, ready again; `limit` is for each.
    pub fn restart(&mut self, limit: Duration) -> Result<()> {
        self.terminate(limit)?;
        self.spawn()?;
        self.wait_ready(limit)
    }

    /// Lets it outlive this value and this process.
    pub fn keep(&mut self) {
        if let Some(process) = &mut self.process {
            process.keep();
        }
    }

    /// Runs `tulle-agent cleanup` for the node to its end.
    pub fn cleanup(&self) -> Result<Output> {
        let output = self
            .command("cleanup")?
            .output()
            .trying(|| format!("run cleanup on {}", self.node))?;
        if output.status.success() {
            return Ok(output);
        }
        Err(Error::Command {
            command: format!(
                "[{}] {} cleanup",
                self.ns.name(),
                self.options.binary.display()
            ),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }

    /// The program with `verb` and what tells it its node.
    fn command(&self, verb: &str) -> Result<Command> {
        let mut command = self.ns.command(&self.options.binary)?;
        command.args([verb, "--node", &self.node, "--uplink", UPLINK]);
        command.arg("--bpffs").arg(&self.bpffs);
        command.arg("--run-dir").arg(&self.run_dir);
        command.envs(self.options.env.iter().cloned());
        Ok(command)
    }

    /// Objects come from an API server.
    fn connect<'a>(&self, command: &'a mut Command, kubeconfig: &Path) -> &'a mut Command {
        command.arg("--kubeconfig").arg(kubeconfig);
        command.arg("--lib-dir").arg(&self.lib_dir)
    }

    fn running(&mut self) -> Result<&mut Process> {
        let node = &self.node;
        self.process
            .as_mut()
            .ok_or_else(|| Error::Invalid(format!("agent of {node} was not started")))
    }
}
