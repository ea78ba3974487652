//! The flow table: one row for each direction of a flow through a service.

use crate::{FragmentKey, Ip4, Ip6};

/// A tick is 2^30 ns (about 1.07 s) of `CLOCK_MONOTONIC`: coarse enough that a
/// refresh is rare, and had from nanoseconds without a division.
pub const TICK_SHIFT: u32 = 30;
/// Nanoseconds in a tick.
pub const TICK_NANOS: u64 = 1 << TICK_SHIFT;

/// Which way the packets of a row go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Direction {
    /// Client to frontend.
    Forward = 0,
    /// Backend to client.
    Reply = 1,
}

/// Key of `tulle_flow_v4` and `tulle_flow_v6`: the packet's own addresses and
/// ports as they are before translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct FlowKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// Always zero.
    pub reserved: u16,
}

/// State of a flow. The order matters: later states outrank earlier ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// Packets one way only: TCP SYN, SCTP INIT, first UDP datagrams.
    Opening = 1,
    /// Both ends have spoken.
    Established = 2,
    /// A FIN, RST, SHUTDOWN or ABORT was seen.
    Closing = 3,
}

/// Whether a flow's client is a process of this node, and where its packets meet the
/// programs: answers are given back to the node there. And whether another node has a part in it
/// (direct server return).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum NodeClient {
    /// It is none.
    No = 0,
    /// Where they leave by the uplink.
    Uplink = 1,
    /// At the loopback device: the frontend has an address of this node.
    Loopback = 2,
    /// It is outside, and the backend's node answers it: there is a forward row only.
    Direct = 3,
    /// It is outside, and another node chose the backend: rows with backend 0 that are
    /// translated all the same.
    Forwarded = 4,
}

/// Value of `tulle_flow_v4` and `tulle_flow_v6`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Flow<A> {
    /// Forward: the backend's address. Reply: the frontend's.
    pub addr: A,
    /// Where the source is translated too (`nat_port` is not 0): forward, the
    /// address that the backend sees; reply, the client's own.
    pub nat_addr: A,
    /// Forward: the backend's port. Reply: the frontend's. Host order.
    pub port: u16,
    /// The port that goes with `nat_addr`, host order; 0 if the source stays.
    pub nat_port: u16,
    /// A [`FlowState`].
    pub state: u8,
    /// 1 if the client is its own backend (the source is translated to the
    /// frontend, and back).
    pub hairpin: u8,
    /// A [`NodeClient`].
    pub node: u8,
    /// 1 in a forward row while the flow is counted in `tulle_live_*`: not before it opens, nor
    /// once either end closes.
    pub counted: u8,
    /// Backend id; 0 for a flow of no service that is masqueraded.
    pub backend: u32,
    /// Generation of the backend's row when the flow opened.
    pub generation: u32,
    /// Number of the service port.
    pub service: u32,
    /// When the flow opened, in ticks.
    pub opened: u32,
    /// When a packet was last seen, in ticks; at most 2 ticks behind.
    pub seen: u32,
}

/// Value of `tulle_work_v4` and `tulle_work_v6`, for each CPU: keys and values
/// that the programs build here because their stack of 512 bytes is too small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Work<A> {
    /// A word that the verifier is to know nothing of.
    pub facts: u64,
    /// Key of a flow row that is being written.
    pub key: FlowKey<A>,
    /// Value of a flow row that is being written.
    pub flow: Flow<A>,
    /// Key of a fragment row.
    pub fragment: FragmentKey<A>,
    /// Always zero.
    pub reserved: u32,
}

pod! {
    Work<Ip4> = 80 [u64, FlowKey<Ip4>, Flow<Ip4>, FragmentKey<Ip4>, u32];
    Work<Ip6> = 152 [u64, FlowKey<Ip6>, Flow<Ip6>, FragmentKey<Ip6>, u32];
    FlowKey<Ip4> = 16 [Ip4, Ip4, u16, u16, u8, u8, u16];
    FlowKey<Ip6> = 40 [Ip6, Ip6, u16, u16, u8, u8, u16];
    Flow<Ip4> = 36 [Ip4, Ip4, u16, u16, u8, u8, u8, u8, u32, u32, u32, u32, u32];
    Flow<Ip6> = 60 [Ip6, Ip6, u16, u16, u8, u8, u8, u8, u32, u32, u32, u32, u32];
}

impl NodeClient {
    /// From a row, if its number is one.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::No),
            1 => Some(Self::Uplink),
            2 => Some(Self::Loopback),
            3 => Some(Self::Direct),
            4 => Some(Self::Forwarded),
            _ => None,
        }
    }
}

impl FlowState {
    /// The state of a row, if its number is one.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Opening),
            2 => Some(Self::Established),
            3 => Some(Self::Closing),
            _ => None,
        }
    }

    /// The state's name as the CLI prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::Closing => "closing",
        }
    }
}
