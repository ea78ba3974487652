//! A table of nftables that keeps the kernel's translation of flows alive. The kernel translates
//! the packets of open flows only while somebody has a NAT chain and somebody asks connection
//! tracking; kube-proxy's rules may have been the only ones.

use std::io;

use super::nfnl::{NFTABLES, Nfnl};
use super::nft;
use super::writing::{Hook, chain, flow, no_table, rule, table};

/// Its name.
pub const TABLE: &str = "tulle-keeps-nat";
const CHAIN: &str = "postrouting";
/// Where source NAT is done (`NF_INET_POST_ROUTING`, `NF_IP_PRI_NAT_SRC`).
const HOOK: Hook = Hook {
    kind: "nat",
    number: 4,
    priority: 100,
};
/// `NFT_CT_STATUS`.
const STATUS: u32 = 2;

/// Makes it, if it is not there.
pub fn make(netlink: &mut Nfnl) -> io::Result<()> {
    let made = netlink.batch(
        NFTABLES,
        vec![
            table(TABLE, false),
            chain(TABLE, CHAIN, HOOK),
            // Reads a flow's status and does nothing with it.
            rule(TABLE, CHAIN, &[flow(STATUS)]),
        ],
    );
    match made {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        made => made,
    }
}

/// Removes it. False if it is not there.
pub fn remove(netlink: &mut Nfnl) -> io::Result<bool> {
    match netlink.batch(NFTABLES, vec![no_table(TABLE)]) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) if nft::is_without_nftables(&error) => Ok(false),
        Err(error) => Err(error),
    }
}
