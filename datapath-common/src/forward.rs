//! How a packet reaches a pod: everything that forwarding needs, computed
//! beforehand by the agent.

use crate::{Ip4, Ip6, Mac};

/// What a [`Via`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ViaKind {
    /// Leave the packet to the kernel's routing.
    Kernel = 0,
    /// A pod of this node, behind the veth `ifindex`.
    Local = 1,
    /// A pod of another node, through VXLAN.
    Vxlan = 2,
    /// This node itself: one of its own addresses.
    Host = 3,
}

/// How an address is reached. Value of `tulle_pods_*` and `tulle_peers_*`, part of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Via {
    /// A [`ViaKind`].
    pub kind: u8,
    /// [`Via::DIRECT`] or 0.
    pub flags: u8,
    /// Checksum of the outer IPv4 header with total length and identification
    /// zero, not complemented, folded, native order (`Vxlan`).
    pub outer_sum: u16,
    /// Host side of the pod's veth (`Local`) or the uplink (`Vxlan`).
    pub ifindex: u32,
    /// Address of the other node on the underlay (`Vxlan`).
    pub node: Ip4,
    /// Next hop towards `node`: `node` itself on one link, else the gateway (`Vxlan`).
    pub next_hop: Ip4,
    /// The pod's address (`Local`) or the other node's VTEP address (`Vxlan`).
    pub dst_mac: Mac,
    /// The host side's address (`Local`) or this node's VTEP address (`Vxlan`).
    pub src_mac: Mac,
}

/// Key of `tulle_peers_v4` and `tulle_peers_v6` as the LPM trie wants it:
/// prefix length in bits, then the address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct PeerKey<A> {
    /// Prefix length in bits.
    pub prefix_len: u32,
    /// Network address.
    pub addr: A,
}

/// Bits of a value of `tulle_direct_v4` and `tulle_direct_v6`. The longest
/// network that holds an address counts alone; no bit is as good as no row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network;

impl Network {
    /// Pods reach it with their own addresses.
    pub const DIRECT: u32 = 1;
    /// Services have their addresses from it: nothing else is there (KP-29).
    pub const SERVICES: u32 = 2;
}

/// Value of `tulle_nodes_v4`, keyed by the node's underlay address: a node
/// whose overlay packets are accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Node {
    /// The node's VTEP address.
    pub vtep_mac: Mac,
    /// Always zero.
    pub reserved: u16,
}

/// Value of `tulle_hops`, for each CPU: where the kernel sends what goes to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct NextHop {
    /// The node's underlay address.
    pub node: Ip4,
    /// The tick in which the kernel was asked; the row says nothing in any other.
    pub tick: u32,
    /// The neighbour's address on the link.
    pub dst_mac: Mac,
    /// The uplink's.
    pub src_mac: Mac,
    /// Largest IP packet in bytes that fits the way; 0 if the kernel did not say.
    pub mtu: u16,
    /// Always zero.
    pub reserved: u16,
}

pod! {
    NextHop = 24 [Ip4, u32, Mac, Mac, u16, u16];
    Via = 28 [u8, u8, u16, u32, Ip4, Ip4, Mac, Mac];
    PeerKey<Ip4> = 8 [u32, Ip4];
    PeerKey<Ip6> = 20 [u32, Ip6];
    Node = 8 [Mac, u16];
}

impl Via {
    /// Bit of `flags` (`Vxlan`): the node there takes packets as clients sent them, and answers
    /// these itself (direct server return).
    pub const DIRECT: u8 = 1;

    /// Leave it to the kernel.
    pub const KERNEL: Self = Self {
        kind: ViaKind::Kernel as u8,
        flags: 0,
        outer_sum: 0,
        ifindex: 0,
        node: Ip4::new([0; 4]),
        next_hop: Ip4::new([0; 4]),
        dst_mac: Mac::new([0; 6]),
        src_mac: Mac::new([0; 6]),
    };
}
