//! Fragmented datagrams: ports, remembered from the first fragment, and fragments
//! that came before it.

use crate::{Ip4, Ip6};

/// Key of `tulle_frag_v4` and `tulle_frag_v6` (RFC 791 §2.3, RFC 8200 §4.5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification as on the wire, zero-extended for IPv4.
    pub id: u32,
    /// IP protocol number, zero-extended.
    pub proto: u32,
}

/// Value of `tulle_frag_v4` and `tulle_frag_v6`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FragmentPorts {
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// When the first fragment was seen, in ticks.
    pub seen: u32,
    /// Octets of the first fragment, IP header included.
    pub first_octets: u32,
}

/// Octets of the longest frame that is held: later fragments on links with an MTU
/// up to 2,034.
pub const HELD_OCTETS: usize = 2048;

/// Later fragments of a datagram that are held.
pub const HELD_FRAGMENTS: u32 = 8;

/// Key of `tulle_held_v4` and `tulle_held_v6`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct HeldKey<A> {
    /// Which datagram.
    pub datagram: FragmentKey<A>,
    /// 0 to [`HELD_FRAGMENTS`] - 1, in the order of arrival.
    pub slot: u32,
}

/// Value of `tulle_held_v4` and `tulle_held_v6`: a later fragment that came before
/// the first one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Held {
    /// When it came, in ticks.
    pub seen: u32,
    /// Octets of it, from the Ethernet header on.
    pub len: u32,
    /// Identification as in the key: whose the row is.
    pub id: u32,
    /// Always zero.
    pub reserved: u32,
    /// The frame.
    pub frame: [u8; HELD_OCTETS],
}

pod! {
    HeldKey<Ip4> = 20 [FragmentKey<Ip4>, u32];
    HeldKey<Ip6> = 44 [FragmentKey<Ip6>, u32];
    Held = 2064 [u32, u32, u32, u32, [u8; HELD_OCTETS]];
    FragmentKey<Ip4> = 16 [Ip4, Ip4, u32, u32];
    FragmentKey<Ip6> = 40 [Ip6, Ip6, u32, u32];
    FragmentPorts = 12 [u16, u16, u32, u32];
}
