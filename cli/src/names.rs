//! Names that the agent tells, and what to say without them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use admin_api::{ClientError, Peer};

use crate::context::Context;

/// Names of services and nodes; empty without an agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    /// Full names by service number.
    pub services: BTreeMap<u32, String>,
    /// Full names of the services by a backend's family and id.
    pub backends: BTreeMap<(u8, u32), Vec<String>>,
    /// Other nodes.
    pub peers: Vec<Peer>,
    /// What the reader should know: that names are missing, and why.
    pub notes: Vec<String>,
}

/// What names are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// Names of services.
    Services,
    /// Names of services by backend.
    Backends,
    /// Names of nodes.
    Nodes,
}

impl Names {
    /// Asks the agent; without it there are no names but a note.
    pub fn load(context: &Context, wanted: &[Wanted]) -> Self {
        let mut names = Self::default();
        if let Err(error) = names.fill(context, wanted) {
            names.notes.push(note(&error));
        }
        names
    }

    fn fill(&mut self, context: &Context, wanted: &[Wanted]) -> Result<(), ClientError> {
        let mut agent = context.agent()?;
        for wanted in wanted {
            match wanted {
                Wanted::Services => {
                    let services = agent.services()?;
                    self.services = services.iter().map(|s| (s.number, s.full_name())).collect();
                }
                Wanted::Backends => {
                    let backends = agent.backends()?;
                    self.backends = backends
                        .into_iter()
                        .map(|b| ((b.family, b.id), b.services))
                        .collect();
                }
                Wanted::Nodes => self.peers = agent.overlay()?,
            }
        }
        Ok(())
    }

    /// Full name of a service.
    pub fn service(&self, number: u32) -> Option<&str> {
        self.services.get(&number).map(String::as_str)
    }

    /// Name of the node with this underlay address.
    pub fn node(&self, address: IpAddr) -> Option<&str> {
        self.peers
            .iter()
            .find(|peer| peer.address == address)
            .map(|peer| peer.node.as_str())
    }
}

/// The parts of a full name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FullName<'a> {
    /// Namespace of the Service.
    pub namespace: &'a str,
    /// Name of the Service.
    pub name: &'a str,
    /// Name of its port; empty if it has none.
    pub port: &'a str,
}

impl<'a> FullName<'a> {
    /// From `namespace/name:port`. Neither sign is in a namespace or a port's name (RFC 1123).
    pub fn of(full: &'a str) -> Self {
        let (namespace, rest) = full.split_once('/').unwrap_or(("", full));
        let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
        Self {
            namespace,
            name,
            port,
        }
    }

    /// Whether it is a Pod's, which has host ports: its name is behind a `pod/`, as no
    /// object's own name can be.
    pub fn is_pod(&self) -> bool {
        self.name.starts_with("pod/")
    }
}

/// What flows are called that go through no service.
pub const NO_SERVICE: &str = "(no service)";
/// What stands for the service of a flow for which another node chose the backend.
pub const OTHER_NODES: &str = "(another node's)";

/// A service by name, or by number where the name is not known.
///
/// Number 0 is no service's.
pub fn service_text(name: Option<&str>, number: u32) -> String {
    if number == 0 && name.is_none() {
        return NO_SERVICE.into();
    }
    name.map_or_else(|| format!("#{number}"), str::to_owned)
}

/// The error where a filter takes nothing: `what` should have been there, `verb` lists it all.
pub fn nothing_matches(what: &str, verb: &str, names: &Names) -> anyhow::Error {
    let hint = if names.notes.is_empty() {
        format!("`tulle {verb}` lists all of them")
    } else {
        // A filter by name takes nothing then.
        names.notes.join("; ")
    };
    anyhow::anyhow!("no {what} matches; {hint}")
}

/// The one line that says why names are missing.
fn note(error: &ClientError) -> String {
    match error {
        ClientError::NotRunning { .. } => "agent not running: names are not shown".into(),
        other => format!("names are not shown: {other}"),
    }
}
