//! From wanted rows and the kernel's rows to changes, as data (pure).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use datapath_common::Mac;
use ipnet::IpNet;
use netlink_packet_route::route::RouteType;

use super::overlay::{Item, ROUTE_PROTOCOL, UNREACHABLE_METRIC};
use super::routes::{MAIN, RouteRow};
use super::rows::{AddressRow, ForwardRow, NeighbourRow, host_net};

/// Metric that an IPv6 route gets if none is asked for (`IP6_RT_PRIO_USER`).
const DEFAULT_METRIC_V6: u32 = 1024;
/// `RTPROT_BOOT`, which flannel's routes carry.
const BOOT: u8 = 3;

/// The kernel's rows: routes of the main table, everything else of the device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) addresses: Vec<AddressRow>,
    pub(crate) neighbours: Vec<NeighbourRow>,
    pub(crate) forwards: Vec<ForwardRow>,
    pub(crate) routes: Vec<RouteRow>,
}

/// Why a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It was never there.
    Created,
    /// It had been there as wanted, or something of ours stood wrong.
    Repaired,
    /// What is wanted has changed.
    Updated,
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Write a row; `replace` if one with its key stands there.
    Put {
        item: Item,
        replace: bool,
        cause: Cause,
    },
    /// Remove an address of the device.
    RemoveAddress { ip: IpAddr, prefix: u8 },
    /// Remove a neighbour of the device.
    RemoveNeighbour { ip: IpAddr },
    /// Remove what the device has for a MAC.
    RemoveForward { mac: Mac },
    /// Remove a route.
    RemoveRoute(RouteRow),
}

impl Change {
    /// Changes are made in the order of their stage, so that a route never
    /// points to a neighbour that is not there.
    pub(crate) fn stage(&self) -> u8 {
        match self {
            Self::RemoveAddress { .. } => 0,
            Self::Put { item, .. } => match item {
                Item::Address(_) => 1,
                Item::Neighbour { .. } | Item::Forward { .. } => 2,
                Item::Route { .. } | Item::Unreachable { .. } => 3,
            },
            Self::RemoveRoute(_) => 4,
            Self::RemoveNeighbour { .. } | Self::RemoveForward { .. } => 5,
        }
    }
    /// Number of stages.
    pub(crate) const STAGES: u8 = 6;
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Put { item, .. } => item.fmt(f),
            Self::RemoveAddress { ip, prefix } => write!(f, "address {ip}/{prefix}"),
            Self::RemoveNeighbour { ip } => write!(f, "neighbour {ip}"),
            Self::RemoveForward { mac } => write!(f, "forwarding entry {mac}"),
            Self::RemoveRoute(row) => write!(f, "route {row}"),
        }
    }
}

/// What to do, and what stands in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Change>,
    pub(crate) unchanged: Vec<Item>,
    pub(crate) conflicts: Vec<String>,
}

/// What an earlier pass left.
#[derive(Clone, Debug)]
pub(crate) struct History<'a> {
    /// Rows that were confirmed then.
    pub(crate) applied: &'a HashSet<Item>,
    /// There was an earlier pass.
    pub(crate) any: bool,
    /// The device was made anew because what is wanted changed: missing rows are no drift.
    pub(crate) rebuilt: bool,
}

impl History<'_> {
    fn cause(&self, item: &Item, stood_wrong: bool) -> Cause {
        match (self.any, self.applied.contains(item)) {
            (true, true) if self.rebuilt => Cause::Updated,
            (true, true) => Cause::Repaired,
            (true, false) if stood_wrong => Cause::Updated,
            (false, _) if stood_wrong => Cause::Repaired,
            _ => Cause::Created,
        }
    }
}

/// The changes that lead from `observed` to `desired` on the device with index `device`.
pub(crate) fn diff(
    desired: &[Item],
    observed: &Observed,
    device: u32,
    history: &History<'_>,
) -> Plan {
    let mut differ = Differ {
        history,
        plan: Plan::default(),
    };
    differ.addresses(desired, &observed.addresses);
    differ.neighbours(desired, &observed.neighbours);
    differ.forwards(desired, &observed.forwards);
    differ.routes(desired, &observed.routes, device);
    differ.plan
}

struct Differ<'a> {
    history: &'a History<'a>,
    plan: Plan,
}

impl Differ<'_> {
    fn put(&mut self, item: &Item, replace: bool) {
        self.plan.changes.push(Change::Put {
            item: item.clone(),
            replace,
            cause: self.history.cause(item, replace),
        });
    }

    fn addresses(&mut self, desired: &[Item], rows: &[AddressRow]) {
        let wanted: HashSet<IpAddr> = desired
            .iter()
            .filter_map(|item| match item {
                Item::Address(ip) => Some(*ip),
                _ => None,
            })
            .collect();
        for row in rows.iter().filter(|row| !row.link_scope) {
            let host = row.prefix == host_net(row.ip).prefix_len();
            let stale = if wanted.contains(&row.ip) {
                !host
            } else {
                // Ours from an earlier configuration; others' addresses stay.
                self.history.applied.contains(&Item::Address(row.ip))
                    || desired.iter().any(|item| match item {
                        Item::Route { destination, .. } | Item::Unreachable { destination } => {
                            destination.contains(&row.ip)
                        }
                        _ => false,
                    })
            };
            if stale {
                self.plan.changes.push(Change::RemoveAddress {
                    ip: row.ip,
                    prefix: row.prefix,
                });
            }
        }
        for ip in wanted {
            let item = Item::Address(ip);
            let there = |row: &AddressRow| row.ip == ip && row.prefix == host_net(ip).prefix_len();
            if rows.iter().any(there) {
                self.plan.unchanged.push(item);
            } else {
                self.put(&item, false);
            }
        }
    }

    fn neighbours(&mut self, desired: &[Item], rows: &[NeighbourRow]) {
        let mut there: HashMap<IpAddr, &NeighbourRow> =
            rows.iter().map(|row| (row.ip, row)).collect();
        for item in desired {
            let Item::Neighbour { ip, mac } = item else {
                continue;
            };
            match there.remove(ip) {
                Some(row) if row.permanent && row.mac == Some(*mac) => {
                    self.plan.unchanged.push(item.clone());
                }
                // One that the kernel made while ours was missing is no earlier row of ours.
                Some(row) => {
                    self.put(item, true);
                    if !row.permanent
                        && !self.history.any
                        && let Some(Change::Put { cause, .. }) = self.plan.changes.last_mut()
                    {
                        *cause = Cause::Created;
                    }
                }
                None => self.put(item, false),
            }
        }
        let mut stale: Vec<IpAddr> = there
            .into_values()
            .filter(|row| row.permanent)
            .map(|row| row.ip)
            .collect();
        stale.sort_unstable();
        self.plan
            .changes
            .extend(stale.into_iter().map(|ip| Change::RemoveNeighbour { ip }));
    }

    fn forwards(&mut self, desired: &[Item], rows: &[ForwardRow]) {
        let mut there: HashMap<Mac, Vec<&ForwardRow>> = HashMap::new();
        for row in rows {
            there.entry(row.mac).or_default().push(row);
        }
        for item in desired {
            let Item::Forward { mac, node } = item else {
                continue;
            };
            let right = |row: &ForwardRow| {
                row.permanent && !row.special && row.node == Some(Ipv4Addr::into(*node))
            };
            match there.remove(mac).as_deref() {
                Some([row]) if right(row) => self.plan.unchanged.push(item.clone()),
                Some(_) => self.put(item, true),
                None => self.put(item, false),
            }
        }
        let mut stale: Vec<Mac> = there.into_keys().collect();
        stale.sort_unstable();
        self.plan
            .changes
            .extend(stale.into_iter().map(|mac| Change::RemoveForward { mac }));
    }

    fn routes(&mut self, desired: &[Item], rows: &[RouteRow], device: u32) {
        let mut there: HashMap<(IpNet, u32), Vec<&RouteRow>> = HashMap::new();
        for row in rows.iter().filter(|r| r.table == MAIN && r.tos == 0) {
            there
                .entry((row.destination, row.metric))
                .or_default()
                .push(row);
        }
        for item in desired {
            let Some(key) = route_key(item) else {
                continue;
            };
            let same_key = there.remove(&key).unwrap_or_default();
            if same_key.iter().any(|row| is_route(item, row, device)) {
                self.plan.unchanged.push(item.clone());
            } else if let Some(foreign) = same_key
                .iter()
                .find(|row| !is_ours(row, device) && !is_flannels(row))
            {
                self.plan.conflicts.push(format!(
                    "{item} is missing: route {foreign} of protocol {} stands in its place; remove \
                     it with `ip route del {}` if nothing needs it",
                    foreign.protocol, foreign.destination
                ));
            } else {
                self.put(item, !same_key.is_empty());
            }
        }
        let mut stale: Vec<&RouteRow> = there
            .into_values()
            .flatten()
            .filter(|row| {
                row.protocol == ROUTE_PROTOCOL || (row.index == Some(device) && is_flannels(row))
            })
            .collect();
        stale.sort_unstable_by_key(|row| (row.destination, row.metric));
        self.plan
            .changes
            .extend(stale.into_iter().cloned().map(Change::RemoveRoute));
    }
}

/// Destination and metric: the kernel holds one route for each.
fn route_key(item: &Item) -> Option<(IpNet, u32)> {
    match item {
        Item::Route { destination, .. } if destination.addr().is_ipv4() => Some((*destination, 0)),
        Item::Route { destination, .. } => Some((*destination, DEFAULT_METRIC_V6)),
        Item::Unreachable { destination } => Some((*destination, UNREACHABLE_METRIC)),
        _ => None,
    }
}

/// `row` is what `item` asks for.
fn is_route(item: &Item, row: &RouteRow, device: u32) -> bool {
    row.protocol == ROUTE_PROTOCOL
        && match item {
            Item::Route { gateway, mtu, .. } => {
                row.kind == RouteType::Unicast
                    && row.gateway == Some(*gateway)
                    && row.index == Some(device)
                    && row.mtu == Some(*mtu)
                    && row.onlink
            }
            Item::Unreachable { .. } => row.kind == RouteType::Unreachable,
            _ => false,
        }
}

/// Ours to replace: by protocol, or by being on our device.
fn is_ours(row: &RouteRow, device: u32) -> bool {
    row.protocol == ROUTE_PROTOCOL || row.index == Some(device)
}

/// As flannel's VXLAN backend writes a route (FL-50): onlink, through the
/// network's own first address.
fn is_flannels(row: &RouteRow) -> bool {
    row.protocol == BOOT
        && row.onlink
        && row.kind == RouteType::Unicast
        && row.gateway == Some(row.destination.addr())
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
