//! One pass over the slow path: look, compare, write the difference.

use std::collections::HashSet;
use std::path::Path;

use futures::{StreamExt, stream};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::device::{self, DeviceConflict, DeviceStep};
use super::diff::{Cause, Change, History, Observed, diff};
use super::link::{self, Link};
use super::netlink::{IN_FLIGHT, Netlink, NetlinkError};
use super::overlay::{Item, Overlay, desired};
use super::report::Report;
use super::routes::{self, Which};
use super::rows;
use super::sysctl::{SysctlError, Sysctls};

/// Why a pass could not be made at all. Single rows that fail are in [`Report::failed`].
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Something foreign is where our device belongs.
    #[error(transparent)]
    Conflict(#[from] DeviceConflict),
    /// The device vanished between being made and being used.
    #[error("interface {name} was removed while it was set up")]
    Vanished {
        /// Its name.
        name: String,
    },
    /// The uplink is gone.
    #[error("the uplink (interface index {index}) does not exist any more; check `--uplink`")]
    NoUplink {
        /// Its index.
        index: u32,
    },
}

/// The slow path of one overlay, and what the last pass left in the kernel.
#[derive(Debug)]
pub struct SlowPath {
    netlink: Netlink,
    sysctls: Sysctls,
    applied: HashSet<Item>,
    /// The overlay of the last pass, without its peers.
    last: Option<Overlay>,
}

impl SlowPath {
    /// `record` is the JSON file that remembers changed sysctls for
    /// [`super::cleanup`].
    pub fn new(netlink: Netlink, record: &Path) -> Self {
        Self {
            netlink,
            sysctls: Sysctls::new(record),
            applied: HashSet::new(),
            last: None,
        }
    }

    /// Makes the device, and nothing else, if no interface has its name: its
    /// index is in the programs, which then need not be loaded a second time.
    /// Gives the index if it was made.
    pub async fn make_device(&mut self, overlay: &Overlay) -> Result<Option<u32>, ReconcileError> {
        let links = link::all(&self.netlink).await?;
        if links.iter().any(|link| link.name == overlay.device) {
            return Ok(None);
        }
        let (index, _) = self.device(overlay, &links, &mut Report::default()).await?;
        Ok(Some(index))
    }

    /// Deletes an interface, such as a device that was made for nothing.
    pub async fn delete_device(&self, index: u32) -> Result<(), NetlinkError> {
        let what = format!("delete the interface of index {index}");
        self.netlink.execute(&what, link::delete(index), 0).await
    }

    /// Makes the kernel hold what `overlay` says; writes only differences.
    /// A [`super::Watcher`] hears these writes too: the pass that follows is clean.
    pub async fn reconcile(&mut self, overlay: &Overlay) -> Result<Report, ReconcileError> {
        let mut report = Report::default();
        let links = link::all(&self.netlink).await?;
        let uplink = links
            .iter()
            .find(|link| link.index == overlay.uplink)
            .ok_or(ReconcileError::NoUplink {
                index: overlay.uplink,
            })?;
        self.forwarding(overlay, &uplink.name, &mut report);
        let (device, rebuilt) = self.device(overlay, &links, &mut report).await?;
        report.device = device;

        let mut wanted = desired(overlay);
        report.failed.append(&mut wanted.notes);
        if let Some(reason) = self.quiet_ipv6(&overlay.device, &mut report)
            && wanted.items.iter().any(Item::is_ipv6)
        {
            wanted.items.retain(|item| !item.is_ipv6());
            report.say(|| reason);
        }

        let observed = self.observe(device).await?;
        let plan = diff(
            &wanted.items,
            &observed,
            device,
            &History {
                applied: &self.applied,
                any: self.last.is_some(),
                rebuilt,
            },
        );
        report.unchanged += plan.unchanged.len();
        report.failed.extend(plan.conflicts);
        self.applied = plan.unchanged.into_iter().collect();
        self.write(plan.changes, device, &mut report).await;
        self.last = Some(without_peers(overlay));
        Ok(report)
    }

    /// Switches of forwarding and of the loopback device; a failure is reported and the rest goes on.
    fn forwarding(&self, overlay: &Overlay, uplink: &str, report: &mut Report) {
        let cidrs = || {
            overlay
                .own_pod_cidrs
                .iter()
                .chain(overlay.peers.iter().flat_map(|peer| &peer.pod_cidrs))
        };
        let cause = match self.last {
            Some(_) => Cause::Repaired,
            None => Cause::Created,
        };
        let mut note = |result: Result<Vec<String>, SysctlError>| match result {
            Ok(done) => {
                for sentence in done {
                    report.count(cause);
                    report.say(|| sentence);
                }
            }
            Err(error) => report.failed.push(error.to_string()),
        };
        if cidrs().any(|cidr| cidr.addr().is_ipv4()) {
            note(self.sysctls.forward4());
        }
        if cidrs().any(|cidr| cidr.addr().is_ipv6()) {
            note(self.sysctls.forward6(uplink));
        }
        if overlay.answers_by_loopback {
            note(self.sysctls.accept_local());
        }
    }

    /// Makes the device right; its index, and whether it was made anew
    /// because the overlay changed.
    async fn device(
        &self,
        overlay: &Overlay,
        links: &[Link],
        report: &mut Report,
    ) -> Result<(u32, bool), ReconcileError> {
        let changed = self
            .last
            .as_ref()
            .is_some_and(|last| !same_device(last, overlay));
        if let Some(old) = self
            .last
            .as_ref()
            .filter(|last| last.device != overlay.device)
            .and_then(|last| links.iter().find(|link| link.name == last.device))
        {
            let what = format!("delete {}", old.name);
            self.netlink
                .execute(&what, link::delete(old.index), 0)
                .await?;
            report.removed += 1;
            report.say(|| format!("deleted {}: the overlay's VNI changed", old.name));
        }

        let existing = links.iter().find(|link| link.name == overlay.device);
        let steps = device::plan(overlay, existing)?;
        if steps.is_empty() {
            report.unchanged += 1;
        }
        let made = steps.contains(&DeviceStep::Create);
        let mut index = existing.map_or(0, |link| link.index);
        for step in &steps {
            match device::take(&self.netlink, overlay, step, index).await {
                Err(error)
                    if *step == DeviceStep::Create && error.errno() == Some(libc::EEXIST) =>
                {
                    return Err(match device::occupant(overlay, links) {
                        Some(conflict) => conflict.into(),
                        None => error.into(),
                    });
                }
                // What is wrong in place is tried again; the rest can go on meanwhile.
                Err(error @ NetlinkError::Refused { .. })
                    if !matches!(step, DeviceStep::Create | DeviceStep::Delete { .. }) =>
                {
                    report.failed.push(error.to_string());
                    continue;
                }
                result => result?,
            }
            if *step == DeviceStep::Create {
                index = link::by_name(&self.netlink, &overlay.device)
                    .await?
                    .ok_or_else(|| ReconcileError::Vanished {
                        name: overlay.device.clone(),
                    })?
                    .index;
                // Before it is up, so that it solicits no router. Checked again below.
                let _ = self.sysctls.set(&accept_ra(&overlay.device), "0");
            }
            report.say(|| step.sentence(overlay));
            // A device made anew is one thing, whatever it took.
            if *step == DeviceStep::Create || !made {
                report.count(if changed {
                    Cause::Updated
                } else if self.last.is_none() && made && existing.is_none() {
                    Cause::Created
                } else {
                    Cause::Repaired
                });
            }
        }
        Ok((index, made && changed))
    }

    /// Keeps router advertisements off the device; the reason if it has no IPv6.
    fn quiet_ipv6(&self, device: &str, report: &mut Report) -> Option<String> {
        let disabled = format!("net/ipv6/conf/{device}/disable_ipv6");
        match self.sysctls.get(&disabled) {
            Ok(Some(value)) if value == "0" => {}
            Ok(None) => {
                return Some("IPv6 pod networks have no slow path: the kernel has no IPv6".into());
            }
            Ok(Some(_)) => {
                return Some(format!(
                    "IPv6 pod networks have no slow path: disable_ipv6 is set on {device}; set \
                     net.ipv6.conf.default.disable_ipv6 and the device's to 0"
                ));
            }
            Err(error) => return Some(error.to_string()),
        }
        let key = accept_ra(device);
        match self.sysctls.get(&key) {
            Ok(Some(value)) if value != "0" => match self.sysctls.set(&key, "0") {
                Ok(()) => {
                    report.repaired += 1;
                    report.say(|| format!("switched router advertisements off on {device}"));
                }
                Err(error) => report.failed.push(error.to_string()),
            },
            Ok(_) => {}
            Err(error) => report.failed.push(error.to_string()),
        }
        None
    }

    async fn observe(&self, device: u32) -> Result<Observed, NetlinkError> {
        let netlink = &self.netlink;
        let mut observed = Observed {
            addresses: rows::addresses(netlink, device).await?,
            forwards: rows::forwards(netlink, device).await?,
            ..Observed::default()
        };
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            observed
                .neighbours
                .append(&mut rows::neighbours(netlink, family, device).await?);
            observed
                .routes
                .append(&mut routes::list(netlink, family, Which::Main).await?);
        }
        Ok(observed)
    }

    async fn write(&mut self, changes: Vec<Change>, device: u32, report: &mut Report) {
        let mut stages: Vec<Vec<Change>> = (0..Change::STAGES).map(|_| Vec::new()).collect();
        for change in changes {
            stages[usize::from(change.stage())].push(change);
        }
        for stage in stages {
            let netlink = &self.netlink;
            let mut results = stream::iter(stage)
                .map(|change| async move {
                    let result = make(netlink, &change, device).await;
                    (change, result)
                })
                .buffer_unordered(IN_FLIGHT);
            while let Some((change, result)) = results.next().await {
                if let Err(error) = result {
                    report.failed.push(error.to_string());
                    continue;
                }
                if let Change::Put { item, cause, .. } = change {
                    report.count(cause);
                    report.say(|| match cause {
                        Cause::Created => format!("added {item}"),
                        Cause::Repaired => format!("repaired {item}"),
                        Cause::Updated => format!("changed to {item}"),
                    });
                    self.applied.insert(item);
                } else {
                    report.removed += 1;
                    report.say(|| format!("removed {change}"));
                }
            }
        }
    }
}

/// Makes one change; the removal of what is gone is none.
async fn make(netlink: &Netlink, change: &Change, device: u32) -> Result<(), NetlinkError> {
    let (message, flags) = message(change, device);
    let removal = !matches!(change, Change::Put { .. });
    let what = format!("{} {change}", if removal { "remove" } else { "set" });
    match netlink.execute(&what, message, flags).await {
        Err(error) if removal && error.is_absent() => Ok(()),
        result => result,
    }
}

fn message(change: &Change, device: u32) -> (RouteNetlinkMessage, u16) {
    use RouteNetlinkMessage::{DelAddress, DelNeighbour, NewAddress, NewNeighbour, NewRoute};
    match change {
        Change::Put { item, replace, .. } => {
            let message = match *item {
                Item::Address(ip) => {
                    let prefix = rows::host_net(ip).prefix_len();
                    NewAddress(rows::address_message(device, ip, prefix))
                }
                Item::Neighbour { ip, mac } => {
                    NewNeighbour(rows::neighbour_message(device, ip, Some(mac)))
                }
                Item::Forward { mac, node } => {
                    NewNeighbour(rows::forward_message(device, mac, Some(node)))
                }
                Item::Route {
                    destination,
                    gateway,
                    mtu,
                } => NewRoute(routes::peer(destination, gateway, device, mtu)),
                Item::Unreachable { destination } => NewRoute(routes::unreachable(destination)),
            };
            // A neighbour may come into being, unresolved, between look and write.
            let replace =
                *replace || !matches!(item, Item::Route { .. } | Item::Unreachable { .. });
            let flags = if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
            (message, NLM_F_CREATE | flags)
        }
        Change::RemoveAddress { ip, prefix } => {
            (DelAddress(rows::address_message(device, *ip, *prefix)), 0)
        }
        Change::RemoveNeighbour { ip } => {
            (DelNeighbour(rows::neighbour_message(device, *ip, None)), 0)
        }
        Change::RemoveForward { mac } => {
            (DelNeighbour(rows::forward_message(device, *mac, None)), 0)
        }
        Change::RemoveRoute(row) => (row.removal(), 0),
    }
}

fn accept_ra(device: &str) -> String {
    format!("net/ipv6/conf/{device}/accept_ra")
}

fn without_peers(overlay: &Overlay) -> Overlay {
    Overlay {
        peers: Vec::new(),
        ..overlay.clone()
    }
}

/// Both want the same of the device.
fn same_device(a: &Overlay, b: &Overlay) -> bool {
    let facts = |o: &Overlay| {
        (
            o.device.clone(),
            o.vni,
            o.port,
            o.local,
            o.uplink,
            o.mtu,
            o.mac,
        )
    };
    facts(a) == facts(b)
}
