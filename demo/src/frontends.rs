//! A service's frontend rows in the pinned maps of all nodes, watched for the
//! moment at which they change.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};
use datapath_common::{Frontend, FrontendKey, Ip4, Ip6, Scope, maps};

/// Between two looks at all rows.
const INTERVAL: Duration = Duration::from_micros(50);
/// IANA's number of TCP.
const TCP: u8 = 6;

/// The rows of one service port on one node.
pub struct NodeFrontends {
    /// Name of the node.
    pub node: String,
    rows: Vec<Row>,
}

enum Row {
    V4(
        HashMap<MapData, FrontendKey<Ip4>, Frontend>,
        FrontendKey<Ip4>,
    ),
    V6(
        HashMap<MapData, FrontendKey<Ip6>, Frontend>,
        FrontendKey<Ip6>,
    ),
}

impl NodeFrontends {
    /// Of the TCP service at these addresses, in the maps pinned under `bpffs`.
    pub fn open(node: &str, bpffs: &Path, ips: &[IpAddr], port: u16) -> Result<Self> {
        let rows = ips.iter().map(|ip| match ip {
            IpAddr::V4(ip) => {
                let key = key(Ip4::new(ip.octets()), port);
                Ok(Row::V4(pinned(bpffs, maps::FRONT_V4)?, key))
            }
            IpAddr::V6(ip) => {
                let key = key(Ip6::new(ip.octets()), port);
                Ok(Row::V6(pinned(bpffs, maps::FRONT_V6)?, key))
            }
        });
        Ok(Self {
            node: node.to_owned(),
            rows: rows.collect::<Result<_>>()?,
        })
    }

    /// The rows as they are now; absent ones are `None`.
    pub fn read(&self) -> Result<Vec<Option<Frontend>>> {
        let rows = self.rows.iter().map(|row| match row {
            Row::V4(map, key) => get(map, key),
            Row::V6(map, key) => get(map, key),
        });
        rows.collect::<Result<_>>()
            .with_context(|| format!("read the frontends of {}", self.node))
    }
}

/// Waits until every row of every node differs from `before`. Returns for each
/// node when the last of its rows was seen changed.
pub fn await_change(
    nodes: &[NodeFrontends],
    before: &[Vec<Option<Frontend>>],
    limit: Duration,
) -> Result<Vec<Instant>> {
    let deadline = Instant::now() + limit;
    let mut changed: Vec<Option<Instant>> = vec![None; nodes.len()];
    loop {
        for (n, node) in nodes.iter().enumerate() {
            if changed[n].is_none() {
                let now = node.read()?;
                if now
                    .iter()
                    .zip(&before[n])
                    .all(|(now, before)| now != before)
                {
                    changed[n] = Some(Instant::now());
                }
            }
        }
        if let Some(all) = changed.iter().copied().collect::<Option<Vec<Instant>>>() {
            return Ok(all);
        }
        if Instant::now() > deadline {
            let late: Vec<&str> = nodes
                .iter()
                .zip(&changed)
                .filter(|(_, changed)| changed.is_none())
                .map(|(node, _)| node.node.as_str())
                .collect();
            bail!(
                "no change of the frontends within {limit:?} on {}",
                late.join(", ")
            );
        }
        std::thread::sleep(INTERVAL);
    }
}

fn key<A>(addr: A, port: u16) -> FrontendKey<A> {
    FrontendKey {
        addr,
        port,
        proto: TCP,
        scope: Scope::Any as u8,
    }
}

fn pinned<K: Pod>(bpffs: &Path, name: &str) -> Result<HashMap<MapData, K, Frontend>> {
    let path = bpffs.join(name);
    let what = || format!("open the map pinned at {}", path.display());
    let data = MapData::from_pin(&path).with_context(what)?;
    HashMap::try_from(Map::HashMap(data)).with_context(what)
}

fn get<K: Pod>(map: &HashMap<MapData, K, Frontend>, key: &K) -> Result<Option<Frontend>> {
    match map.get(key, 0) {
        Ok(row) => Ok(Some(row)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
