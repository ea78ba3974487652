//! Removing every trace of the slow path.

use std::path::Path;

use netlink_packet_route::AddressFamily;

use super::link;
use super::netlink::{Netlink, NetlinkError};
use super::overlay::device_name;
use super::routes::{self, Which};
use super::sysctl::{SysctlError, Sysctls};

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A switch could not be put back.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// Removes our routes, the overlay's device (and with it neighbours, forwarding
/// entries and addresses), and puts back the sysctls that `record` names. What was
/// done, as sentences: nothing, if nothing was there. Needs no running agent.
pub async fn cleanup(
    netlink: &Netlink,
    vni: u32,
    record: &Path,
) -> Result<Vec<String>, CleanupError> {
    let mut done = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        for row in routes::list(netlink, family, Which::Ours).await? {
            let what = format!("remove route {row}");
            match netlink.execute(&what, row.removal(), 0).await {
                Ok(()) => done.push(format!("removed route {row}")),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let name = device_name(vni);
    match link::by_name(netlink, &name).await? {
        Some(link) if link.vxlan.is_some() => {
            let what = format!("delete {name}");
            match netlink.execute(&what, link::delete(link.index), 0).await {
                Ok(()) => done.push(format!("deleted {name}")),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Some(link) => done.push(format!(
            "left {name}: it is a {} device, not ours",
            link.kind
        )),
        None => {}
    }
    done.extend(Sysctls::new(record).restore()?);
    Ok(done)
}
