//! An API server for a cluster of test hosts, at the router's address, which every host reaches.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::cluster::{Cluster, Node, ROUTER4, ROUTER6};
use crate::error::Result;
use crate::netns::NetNs;

use super::shared::lock;
use super::{ApiServer, Follower, Kubeconfig, Options};

/// Its port.
pub const PORT: u16 = 6443;

/// An API server that has the objects of a directory.
#[derive(Debug)]
pub struct ClusterApi {
    // Before the server that it writes to.
    follower: Follower,
    server: ApiServer,
    kubeconfig: Kubeconfig,
}

/// Servers that run, by the switch's namespace and the directory.
static RUNNING: Mutex<Vec<(String, PathBuf, Weak<ClusterApi>)>> = Mutex::new(Vec::new());

impl ApiServer {
    /// Serves at the address of a cluster's router, port [`PORT`]. The certificate also names its
    /// IPv6 address, for [`ApiServer::listen`].
    pub fn for_cluster(cluster: &Cluster) -> Result<Self> {
        Self::at_router(cluster.switch())
    }

    fn at_router(switch: &NetNs) -> Result<Self> {
        let router: Ipv4Addr = ROUTER4;
        let names = [ROUTER6.to_string()];
        Self::start(switch, Options::at((router, PORT)).names(names))
    }
}

impl ClusterApi {
    /// The server of a node's cluster that has a directory's objects; the same for all nodes as
    /// long as one of them holds it.
    pub fn of(node: &Node, state: &Path) -> Result<Arc<Self>> {
        let mut running = lock(&RUNNING);
        running.retain(|(.., api)| api.strong_count() > 0);
        let switch = node.switch();
        let found = running
            .iter()
            .find(|(ns, dir, _)| ns == switch && dir == state);
        if let Some(api) = found.and_then(|(.., api)| api.upgrade()) {
            return Ok(api);
        }
        let server = ApiServer::at_router(&NetNs::adopt(switch)?)?;
        let follower = server.follow_directory(state)?;
        let kubeconfig = server.kubeconfig(&node.cluster_directory().join("api"))?;
        let api = Arc::new(Self {
            follower,
            server,
            kubeconfig,
        });
        running.push((switch.to_owned(), state.to_owned(), Arc::downgrade(&api)));
        Ok(api)
    }

    /// Waits until every client that watches has been sent what the directory says now.
    pub fn wait_delivered(&self, limit: Duration) -> Result<()> {
        self.follower.wait(limit)?;
        self.server.wait_delivered(limit)
    }

    /// The server.
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Files for its clients.
    pub fn kubeconfig(&self) -> &Kubeconfig {
        &self.kubeconfig
    }
}
