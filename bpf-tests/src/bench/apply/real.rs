//! A real agent on a node, which reads its cluster from files of YAML: from a file to a row
//! of a map, and the memory that this takes.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use datapath_common::{Frontend, FrontendKey, Ip4, maps};
use testkit::agent::{Agent, AgentOptions};
use testkit::manifests::StateDir;
use testkit::{Cluster, ClusterBuilder};

use super::api::Api;
use super::memory::{BACKENDS, FRONTENDS, key};
use super::objects::{self, Shape};

/// How long an agent may take to start, and to read a large cluster.
const LIMIT: Duration = Duration::from_mins(2);
/// An agent that has had nothing to do for so long is idle.
const IDLE: Duration = Duration::from_secs(8);

/// A node with an agent.
pub struct Host {
    // Ends before the cluster that it runs in.
    agent: Agent,
    fronts: Fronts,
    state: StateDir,
    /// Beside it, so that files get into it by renames.
    beside: PathBuf,
    pins: PathBuf,
    _cluster: Cluster,
}

/// Memory of an idle agent, in octets.
pub struct Memory {
    /// Its heap and stacks.
    pub anonymous: f64,
    /// All that is resident, the program's text too.
    pub resident: f64,
    /// The most that was resident since it began.
    pub most: f64,
    /// What the maps take in the kernel.
    pub maps: f64,
}

impl Host {
    /// An agent that knows Nodes and no Service.
    pub fn start(binary: &Path) -> Result<Self> {
        let cluster = ClusterBuilder::unique("benchapply")
            .nodes(1)
            .pods_per_node(1)
            .build()?;
        let state = StateDir::create(cluster.directory().join("state"))?;
        state.write_nodes(&cluster)?;
        state.put("others.yaml", &objects::nodes())?;
        let beside = cluster.directory().join("beside");
        fs::create_dir(&beside).with_context(|| format!("make {}", beside.display()))?;
        let options = Self::sized(AgentOptions::new(binary, state.path()));
        let (agent, fronts, pins) = serving(&cluster, &options)?;
        Ok(Self {
            agent,
            fronts,
            state,
            beside,
            pins,
            _cluster: cluster,
        })
    }

    /// With room for the clusters that are measured.
    pub fn sized(options: AgentOptions) -> AgentOptions {
        options.args(&[
            "--max-frontends",
            &FRONTENDS.to_string(),
            "--max-backends",
            &BACKENDS.to_string(),
        ])
    }

    /// Has the agent read these files. Nanoseconds from the first rename to the last row of
    /// the cluster in the maps.
    pub fn sync(&mut self, shape: Shape, files: &[(String, String)]) -> Result<f64> {
        for (name, text) in files {
            self.lay_out(name, text)?;
        }
        let last = FrontendKey {
            port: 0,
            proto: 0,
            ..key(Shape::address(shape.services - 1))
        };
        let began = Instant::now();
        for (name, _) in files {
            self.move_in(name)?;
        }
        // Addresses are marked after all frontends are there, in ascending order.
        self.wait(began, Duration::from_micros(200), |fronts| {
            fronts.get(&last, 0).is_ok()
        })?;
        let took = began.elapsed();
        for number in 0..shape.services {
            let row = self.fronts.get(&key(Shape::address(number)), 0);
            let len = row.map_or(0, |row| row.len);
            ensure!(
                len == shape.endpoints,
                "service {number} has {len} backends when the last row is there"
            );
        }
        Ok(took.as_nanos() as f64)
    }

    /// Has a service another number of endpoints. Nanoseconds from the rename of its file to
    /// its row.
    pub fn change(&mut self, shape: Shape, number: u32, endpoints: u32) -> Result<f64> {
        let service = shape.service(number, endpoints);
        self.lay_out(&service.file(), &service.to_string())?;
        let key = key(Shape::address(number));
        let began = Instant::now();
        self.move_in(&service.file())?;
        self.wait(began, Duration::ZERO, |fronts| {
            fronts.get(&key, 0).is_ok_and(|row| row.len == endpoints)
        })?;
        Ok(began.elapsed().as_nanos() as f64)
    }

    /// Reads the memory of the agent once it is idle.
    pub fn memory(&self) -> Result<Memory> {
        std::thread::sleep(IDLE);
        memory(&self.agent, &self.pins)
    }

    fn lay_out(&self, name: &str, text: &str) -> Result<()> {
        let path = self.beside.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn move_in(&self, name: &str) -> Result<()> {
        let to = self.state.path().join(name);
        fs::rename(self.beside.join(name), &to).with_context(|| format!("write {}", to.display()))
    }

    fn wait(&self, began: Instant, pause: Duration, holds: impl Fn(&Fronts) -> bool) -> Result<()> {
        while !holds(&self.fronts) {
            if began.elapsed() > LIMIT {
                let log = self.agent.log().unwrap_or_default();
                bail!("no row after {LIMIT:?}; the agent's log:\n{log}");
            }
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }
}

/// Rows of frontends.
type Fronts = HashMap<MapData, FrontendKey<Ip4>, Frontend>;

/// Starts an agent on the first node and waits until it serves.
fn serving(cluster: &Cluster, options: &AgentOptions) -> Result<(Agent, Fronts, PathBuf)> {
    let node = cluster.nodes().first().context("the cluster has no node")?;
    let pins = node.bpffs();
    let mut agent = Agent::start(node, options)?;
    agent.wait_ready(LIMIT)?;
    let pin = pins.join(maps::FRONT_V4);
    let map = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
    Ok((agent, Map::HashMap(map).try_into()?, pins))
}

/// Starts an agent that reads a whole cluster from an API server. Nanoseconds from its start until
/// it serves all of it, and its memory when it is idle then.
pub fn by_api(api: &Api, shape: Shape) -> Result<(f64, Memory)> {
    let began = Instant::now();
    let (agent, fronts, pins) = serving(&api.cluster, &api.options)?;
    let took = began.elapsed();
    for number in 0..shape.services {
        let row = fronts.get(&key(Shape::address(number)), 0);
        let len = row.map_or(0, |row| row.len);
        ensure!(
            len == shape.endpoints,
            "service {number} has {len} backends when the agent says that it is ready"
        );
    }
    std::thread::sleep(IDLE);
    Ok((took.as_nanos() as f64, memory(&agent, &pins)?))
}

fn memory(agent: &Agent, pins: &Path) -> Result<Memory> {
    let pid = agent.pid().context("no agent runs")?;
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(Memory {
        anonymous: 1024.0 * field(&status, "RssAnon")? as f64,
        resident: 1024.0 * field(&status, "VmRSS")? as f64,
        most: 1024.0 * field(&status, "VmHWM")? as f64,
        maps: maps_memory(pins)?,
    })
}

fn maps_memory(pins: &Path) -> Result<f64> {
    let mut octets = 0.0;
    for map in maps::ALL {
        let pin = pins.join(map.name);
        let data = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        let path = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
        let info = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        octets += field(&info, "memlock")? as f64;
    }
    Ok(octets)
}

/// The first number behind a name in one of procfs' lists.
fn field(text: &str, name: &str) -> Result<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("the kernel says no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_procfs_are_read() {
        let text = "VmRSS:\t   12 kB\nRssAnon:\t    7 kB\nmemlock:\t4096\n";
        assert_eq!(field(text, "RssAnon").unwrap(), 7);
        assert_eq!(field(text, "memlock").unwrap(), 4096);
        assert!(field(text, "Rss").is_err());
    }
}
