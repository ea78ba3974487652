//! Addresses. Bytes are in network order, as on the wire and as `bpftool`
//! prints them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address as map keys and values hold it.
pub trait Address: Copy + Eq + bytemuck::Pod {
    /// The address family's number as people write it: 4 or 6.
    const VERSION: u8;
    /// The unspecified address (`0.0.0.0` or `::`).
    const UNSPECIFIED: Self;
    /// Length of an address in bits.
    const BITS: u32;
    /// The address as 32-bit words in memory order, zero-extended.
    fn words(self) -> [u32; 4];
    /// The address in 16 bytes, left-aligned, zero-extended (for events).
    fn to_16(self) -> [u8; 16];
    /// The address as the standard library's type.
    fn to_ip(self) -> IpAddr;
}

/// An IPv4 address, network order, aligned for whole-word access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
#[repr(C, align(4))]
pub struct Ip4 {
    octets: [u8; 4],
}

/// An IPv6 address, network order, aligned for whole-word access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
#[repr(C, align(4))]
pub struct Ip6 {
    octets: [u8; 16],
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
#[repr(C)]
pub struct Mac {
    octets: [u8; 6],
}

pod! {
    Ip4 = 4 [[u8; 4]];
    Ip6 = 16 [[u8; 16]];
    Mac = 6 [[u8; 6]];
}

impl Ip4 {
    /// From octets in network order.
    #[inline(always)]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self { octets }
    }
    /// Octets in network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.octets
    }
    /// The four octets read as one native word, for masks and sums.
    #[inline(always)]
    pub fn word(self) -> u32 {
        bytemuck::cast(self)
    }
}

impl Ip6 {
    /// From octets in network order.
    #[inline(always)]
    pub const fn new(octets: [u8; 16]) -> Self {
        Self { octets }
    }
    /// Octets in network order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        self.octets
    }
}

impl Mac {
    /// From octets in wire order.
    #[inline(always)]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self { octets }
    }
    /// Octets in wire order.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 6] {
        self.octets
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (i, octet) in self.octets.iter().enumerate() {
            let separator = if i == 0 { "" } else { ":" };
            write!(f, "{separator}{octet:02x}")?;
        }
        Ok(())
    }
}

impl Address for Ip4 {
    const VERSION: u8 = 4;
    const UNSPECIFIED: Self = Self { octets: [0; 4] };
    const BITS: u32 = 32;
    #[inline(always)]
    fn words(self) -> [u32; 4] {
        [self.word(), 0, 0, 0]
    }
    #[inline(always)]
    fn to_16(self) -> [u8; 16] {
        let [a, b, c, d] = self.octets;
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }
    fn to_ip(self) -> IpAddr {
        IpAddr::V4(self.into())
    }
}

impl Address for Ip6 {
    const VERSION: u8 = 6;
    const UNSPECIFIED: Self = Self { octets: [0; 16] };
    const BITS: u32 = 128;
    #[inline(always)]
    fn words(self) -> [u32; 4] {
        // In words at once: octet by octet it would cost dozens of instructions in BPF.
        bytemuck::cast(self)
    }
    #[inline(always)]
    fn to_16(self) -> [u8; 16] {
        self.octets
    }
    fn to_ip(self) -> IpAddr {
        IpAddr::V6(self.into())
    }
}

impl From<Ipv4Addr> for Ip4 {
    fn from(a: Ipv4Addr) -> Self {
        Self::new(a.octets())
    }
}
impl From<Ip4> for Ipv4Addr {
    fn from(a: Ip4) -> Self {
        a.octets.into()
    }
}
impl From<Ipv6Addr> for Ip6 {
    fn from(a: Ipv6Addr) -> Self {
        Self::new(a.octets())
    }
}
impl From<Ip6> for Ipv6Addr {
    fn from(a: Ip6) -> Self {
        a.octets.into()
    }
}
