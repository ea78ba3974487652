//! Services: frontends, segments of backend ids, backends.

use crate::{Ip4, Ip6, Via};

/// Who a frontend row answers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Scope {
    /// Every client.
    Any = 0,
}

/// Key of `tulle_front_v4` and `tulle_front_v6`.
///
/// The row with port 0 and protocol 0 says that the address belongs to a
/// service: what is sent there and meets no other row is refused (KP-28).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct FrontendKey<A> {
    /// Service address.
    pub addr: A,
    /// Service port, host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// A [`Scope`].
    pub scope: u8,
}

/// Flags of a [`Frontend`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrontendFlags;

impl FrontendFlags {
    /// The segment changed while flows may be alive that were opened before:
    /// the flow table has the last word on where a flow goes. Without it every
    /// living flow's backend equals what the segment selects.
    pub const FLOWS_DECIDE: u16 = 1;
    /// Rows of living flows may be missing (evicted, flushed, left behind by a
    /// rebuild): every packet asks the flow table, and a row that is gone is written anew.
    pub const FLOWS_MAY_BE_LOST: u16 = 128;
    /// The row that marks a service address (port 0, protocol 0).
    pub const ADDRESS: u16 = 2;
}

/// Value of `tulle_front_v4` and `tulle_front_v6`: the segment of
/// `tulle_segments` that holds the service's backend ids.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Frontend {
    /// Number of the service port, unique among living ones.
    pub service: u32,
    /// First slot of the segment.
    pub start: u32,
    /// Slots in the segment; 0 means that the service has no endpoint.
    pub len: u32,
    /// Session affinity in seconds, 0 for none.
    pub affinity_secs: u32,
    /// Bits of [`FrontendFlags`].
    pub flags: u16,
    /// Always zero.
    pub reserved: u16,
}

/// State of a [`Backend`] row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum BackendState {
    /// The row is free.
    Free = 0,
    /// In at least one segment.
    Active = 1,
    /// In no segment; open TCP and SCTP flows may finish, UDP flows move on (KP-61, KP-117).
    Draining = 2,
}

/// Value of `tulle_back_v4` and `tulle_back_v6`, indexed by backend id. Id 0 is never used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Backend<A> {
    /// Address of the endpoint.
    pub addr: A,
    /// Port of the endpoint, host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// A [`BackendState`].
    pub state: u8,
    /// Incremented when the row is reused, so that a flow of the former
    /// backend does not follow the new one.
    pub generation: u32,
    /// How the endpoint is reached.
    pub via: Via,
}

pod! {
    FrontendKey<Ip4> = 8 [Ip4, u16, u8, u8];
    FrontendKey<Ip6> = 20 [Ip6, u16, u8, u8];
    Frontend = 20 [u32, u32, u32, u32, u16, u16];
    Backend<Ip4> = 40 [Ip4, u16, u8, u8, u32, Via];
    Backend<Ip6> = 52 [Ip6, u16, u8, u8, u32, Via];
}

impl<A> FrontendKey<A> {
    /// The row that marks `addr` as a service address.
    #[inline(always)]
    pub const fn address(addr: A) -> Self {
        Self {
            addr,
            port: 0,
            proto: 0,
            scope: Scope::Any as u8,
        }
    }
}

impl<A> Backend<A> {
    /// Whether new flows may go here.
    #[inline(always)]
    pub const fn is_active(&self) -> bool {
        self.state == BackendState::Active as u8
    }
}
