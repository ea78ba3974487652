//! The contract between Tulle's eBPF programs and user space: every map key,
//! map value, event and reason, and nothing else.
//!
//! Both sides compile this crate. Layout types are `#[repr(C)]`, free of
//! padding, and asserted so at compile time. Types that hold an address are
//! generic over it ([`Ip4`] or [`Ip6`]); only those two instantiations exist.
#![no_std]

#[macro_use]
mod layout;
mod addr;
mod config;
mod counter;
mod event;
mod flow;
mod forward;
mod fragment;
pub mod maps;
mod part;
mod reason;
mod service;
mod socket;

pub use addr::{Address, Ip4, Ip6, Mac};
pub use config::{Config, Feature, IdleTicks};
pub use counter::{COUNTERS, Counter, Hook, Limit, counter_index};
pub use event::{Event, EventKind, MonitorControl};
pub use flow::{Direction, Flow, FlowKey, FlowState, NodeClient, TICK_NANOS, TICK_SHIFT, Work};
pub use forward::{Network, NextHop, Node, PeerKey, Via, ViaKind};
pub use fragment::{FragmentKey, FragmentPorts, HELD_FRAGMENTS, HELD_OCTETS, Held, HeldKey};
pub use part::{PARTS, Part, XDP_PARTS, XdpPart};
pub use reason::{Group, Reason};
pub use service::{
    Affinity, AffinityKey, Backend, BackendState, Frontend, FrontendFlags, FrontendKey, Scope,
    SourceKey, SourceNet, Traffic,
};
pub use socket::{Connection, SocketClient, SocketHook, SocketId, SocketKey, SocketPeer};

/// IP protocol numbers that the datapath knows (IANA).
pub mod proto {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}
