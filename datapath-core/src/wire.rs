//! Headers as they lie in a packet. Multi-octet numbers are in network order,
//! read through the methods.

use bytemuck::{Pod, Zeroable};
use datapath_common::{Ip4, Ip6, Mac};

/// A 16-bit number in network order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }
    /// In host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
    /// As it lies in memory, for sums.
    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }
}

/// A 32-bit number in network order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct Be32(u32);

impl Be32 {
    /// From host order.
    #[inline(always)]
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }
    /// In host order.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }
}

/// IPv4 without options (RFC 791 §3.1).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the field names are the RFC's")]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total: Be16,
    pub id: Be16,
    pub fragment: Be16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub src: Ip4,
    pub dst: Ip4,
}

/// IPv6's fixed header (RFC 8200 §3).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the field names are the RFC's")]
pub struct Ipv6 {
    pub version_class: u8,
    pub flow_label: [u8; 3],
    pub payload: Be16,
    pub next: u8,
    pub hop_limit: u8,
    pub src: Ip6,
    pub dst: Ip6,
}

/// IPv6's fragment header (RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the field names are the RFC's")]
pub struct Ipv6Fragment {
    pub next: u8,
    pub reserved: u8,
    pub offset: Be16,
    pub id: Be32,
}

/// Ports as every transport header begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Ports {
    /// Source.
    pub src: Be16,
    /// Destination.
    pub dst: Be16,
}

/// The part of TCP that is looked at (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the field names are the RFC's")]
pub struct Tcp {
    pub ports: Ports,
    pub sequence: Be32,
    pub acknowledgement: Be32,
    pub offset: u8,
    pub flags: u8,
    pub window: Be16,
}

/// Control bits in [`Tcp::flags`].
#[expect(missing_docs, reason = "the names are the RFC's")]
impl Tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// SCTP's common header and the first chunk's type (RFC 9260 §3).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the field names are the RFC's")]
pub struct Sctp {
    pub ports: Ports,
    pub tag: Be32,
    pub checksum: u32,
    pub chunk: u8,
    pub chunk_flags: u8,
    pub chunk_length: Be16,
}

/// Ethernet (IEEE 802.3) as inside VXLAN.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the field names are the standard's")]
pub struct Ethernet {
    pub dst: Mac,
    pub src: Mac,
    pub ethertype: Be16,
}

/// UDP and VXLAN (RFC 768, RFC 7348 §5).
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
#[expect(missing_docs, reason = "the field names are the RFCs'")]
pub struct UdpVxlan {
    pub ports: Ports,
    pub length: Be16,
    pub checksum: u16,
    pub flags: u8,
    pub reserved: [u8; 3],
    pub vni: Be32,
}

const _: () = {
    assert!(size_of::<Ipv4>() == 20);
    assert!(size_of::<Ipv6>() == 40);
    assert!(size_of::<Ipv6Fragment>() == 8);
    assert!(size_of::<Tcp>() == 16);
    assert!(size_of::<Sctp>() == 16);
    assert!(size_of::<Ethernet>() == 14);
    assert!(size_of::<UdpVxlan>() == 16);
};
