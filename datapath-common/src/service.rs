//! Services: frontends, segments of backend ids, backends.

use crate::{Address, Ip4, Ip6, Via};

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
    /// living flow's backend equals what the segment selects. Set by the programs too,
    /// where they change a client's port: only the flow table has it.
    pub const FLOWS_DECIDE: u16 = 1;
    /// Rows of living flows may be missing (evicted, flushed, left behind by a
    /// rebuild): every packet asks the flow table, and a row that is gone is written anew.
    pub const FLOWS_MAY_BE_LOST: u16 = 128;
    /// The row that marks a service address (port 0, protocol 0).
    pub const ADDRESS: u16 = 2;
    /// An empty list for clients inside drops: there are endpoints, but none
    /// that they may use (KP-54). Without it an empty list refuses (KP-53).
    pub const DROP_INSIDE: u16 = 4;
    /// The same of the list for clients outside (KP-55).
    pub const DROP_OUTSIDE: u16 = 8;
    /// Pods of this node are masqueraded (KP-106, KP-111).
    pub const MASQUERADE_PODS: u16 = 16;
    /// Clients outside are masqueraded (KP-106, KP-109, KP-111).
    pub const MASQUERADE_OUTSIDE: u16 = 32;
    /// Only sources with a row in `tulle_srcs_*` may open flows (KP-45, KP-46).
    pub const SOURCE_RANGES: u16 = 64;
    /// The client's address alone selects the slot, whatever the ports (KP-161: `sh`).
    pub const SOURCE_HASH: u16 = 256;
    /// New flows take the slots in turn, by a counter of `tulle_turns` (KP-161: `rr`, `wrr`).
    pub const ROUND_ROBIN: u16 = 512;
    /// With `ROUND_ROBIN`: the list for clients inside is that of endpoints on this node, which
    /// has turns of its own.
    pub const LOCAL_INSIDE: u16 = 1024;
    /// The same of the list for clients outside.
    pub const LOCAL_OUTSIDE: u16 = 2048;
    /// A new flow has the better of two backends: the one with fewer living flows for its weight
    /// (KP-161: `lc`, `wlc`, `sed`). Ids ascend in a table too: how often one is there is its weight.
    pub const LEAST_FLOWS: u16 = 4096;
    /// Direct server return for clients outside, where the way to the backend has
    /// [`Via::DIRECT`]: its node gets the packet as it came and answers the client itself. A backend
    /// of this node sees the client's address too. Other backends are as `MASQUERADE_OUTSIDE` says.
    pub const DIRECT_RETURN: u16 = 8192;

    /// Those by which the flow table alone knows where a flow goes.
    pub const BY_HISTORY: u16 = Self::ROUND_ROBIN | Self::LEAST_FLOWS;
}

/// Value of `tulle_front_v4` and `tulle_front_v6`: the segments of
/// `tulle_segments` that hold the backend ids for clients inside (pods of this
/// node and the node itself) and outside. They are one and the same unless
/// `externalTrafficPolicy: Local` parts them (KP-70, KP-71, KP-72). In each the
/// ids ascend, once each. A *table* may lie directly behind the ids of a segment: slots
/// with the same ids in another order, as often as weights or Maglev say. Where there is one,
/// new flows are given a backend by it, otherwise by the segment itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Frontend {
    /// Number of the service port, unique among living ones.
    pub service: u32,
    /// First slot of the segment for clients inside.
    pub start: u32,
    /// Slots in it; 0 means that there is no endpoint for them.
    pub len: u32,
    /// First slot of the segment for clients outside.
    pub out_start: u32,
    /// Slots in it.
    pub out_len: u32,
    /// Session affinity in seconds, 0 for none.
    pub affinity_secs: u32,
    /// Bits of [`FrontendFlags`].
    pub flags: u16,
    /// Slots in the table behind the segment for clients inside; 0 for none.
    pub table: u16,
    /// Slots in the table behind the segment for clients outside; 0 for none.
    pub out_table: u16,
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
    Frontend = 32 [u32, u32, u32, u32, u32, u32, u16, u16, u16, u16];
    AffinityKey<Ip4> = 8 [Ip4, u32];
    AffinityKey<Ip6> = 20 [Ip6, u32];
    Affinity = 12 [u32, u32, u32];
    SourceKey<Ip4> = 12 [u32, SourceNet<Ip4>];
    SourceKey<Ip6> = 24 [u32, SourceNet<Ip6>];
    SourceNet<Ip4> = 8 [u32, Ip4];
    SourceNet<Ip6> = 20 [u32, Ip6];
    Traffic = 40 [u64, u64, u64, u64, u64];
    Backend<Ip4> = 40 [Ip4, u16, u8, u8, u32, Via];
    Backend<Ip6> = 52 [Ip6, u16, u8, u8, u32, Via];
}

/// Key of `tulle_affin_v4` and `tulle_affin_v6`: a client of a service port (KP-94).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct AffinityKey<A> {
    /// The client's address as it was before any translation.
    pub client: A,
    /// Number of the service port.
    pub service: u32,
}

/// Value of `tulle_affin_v4` and `tulle_affin_v6`: where the client's last new flow went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Affinity {
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend's row then.
    pub generation: u32,
    /// When the last flow was opened, in ticks (KP-95).
    pub seen: u32,
}

/// Key of `tulle_srcs_v4` and `tulle_srcs_v6` as the LPM trie wants it: a
/// network that may use a service port. The value is 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct SourceKey<A> {
    /// Prefix length in bits, the 32 of the service included.
    pub prefix_len: u32,
    /// What the prefix is of.
    pub net: SourceNet<A>,
}

/// The part of a [`SourceKey`] that is compared bit by bit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct SourceNet<A> {
    /// Number of the service port, in network order.
    pub service: u32,
    /// Network address.
    pub addr: A,
}

/// Value of `tulle_svc_stats`, `tulle_bk_stats4` and `tulle_bk_stats6`, for each CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Traffic {
    /// Flows opened.
    pub flows: u64,
    /// Packets from clients; a segmentation-offload packet counts once.
    pub packets: u64,
    /// Their bytes from the Ethernet header on.
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

impl Traffic {
    /// What `by` makes of the two, field by field.
    #[must_use]
    pub fn combined(&self, other: &Self, by: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            flows: by(self.flows, other.flows),
            packets: by(self.packets, other.packets),
            bytes: by(self.bytes, other.bytes),
            reply_packets: by(self.reply_packets, other.reply_packets),
            reply_bytes: by(self.reply_bytes, other.reply_bytes),
        }
    }

    /// Both together; counters wrap.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.combined(other, u64::wrapping_add)
    }
}

impl Frontend {
    /// Row of `tulle_turns` by which new flows of clients inside or outside take turns.
    /// All frontends of a service port share it as far as they have the same list.
    #[inline(always)]
    pub const fn turns(&self, outside: bool) -> u32 {
        let local = if outside {
            FrontendFlags::LOCAL_OUTSIDE
        } else {
            FrontendFlags::LOCAL_INSIDE
        };
        let apart = (self.flags & local != 0) as u32;
        self.service.wrapping_mul(2).wrapping_add(apart)
    }

    /// First slot and number of slots of all that the row names: both segments
    /// lie side by side with their tables, those for clients inside first.
    pub const fn slots(&self) -> (u32, u32) {
        let inside = self.len.saturating_add(self.table as u32);
        let outside = self.out_len.saturating_add(self.out_table as u32);
        if self.out_start == self.start {
            let longer = if inside > outside { inside } else { outside };
            (self.start, longer)
        } else {
            (self.start, inside.saturating_add(outside))
        }
    }
}

impl<A: Address> SourceNet<A> {
    /// Bits of the service's number, which every prefix includes.
    pub const SERVICE_BITS: u32 = 32;

    /// A network that may use `service`.
    #[inline(always)]
    pub const fn new(service: u32, addr: A) -> Self {
        Self {
            service: service.to_be(),
            addr,
        }
    }
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
