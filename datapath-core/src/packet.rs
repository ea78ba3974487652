//! The one way to packet bytes.

use bytemuck::Pod;
use datapath_common::Reason;

/// Length of an Ethernet header without tags.
pub const ETH_LEN: usize = 14;

/// A packet that starts with its Ethernet header.
pub trait Packet {
    /// What lies at `at`. [`Reason::Truncated`] if the packet ends before its
    /// end, [`Reason::SlowPath`] if it does not but the octets are out of reach
    /// (not in the linear part of an skb).
    fn read<T: Pod>(&self, at: usize) -> Result<T, Reason>;

    /// Length in octets from the Ethernet header on, all of it.
    fn length(&self) -> u32;

    /// Payload octets in each segment of a segmentation-offload packet, else 0.
    fn gso_size(&self) -> u32;

    /// The EtherType, host order.
    fn ethertype(&self) -> u16;

    /// The same value, but unknown to the verifier. It follows a program once
    /// for each combination of values that it knows; this makes them one.
    fn opaque(&self, value: u64) -> u64;

    /// Whether a VLAN tag is kept beside the packet.
    fn is_tagged(&self) -> bool;
}
