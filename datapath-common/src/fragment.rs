//! Ports of fragmented datagrams, remembered from the first fragment.

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
}

pod! {
    FragmentKey<Ip4> = 16 [Ip4, Ip4, u32, u32];
    FragmentKey<Ip6> = 40 [Ip6, Ip6, u32, u32];
    FragmentPorts = 8 [u16, u16, u32];
}
