//! Tulle's packet pipeline: packets in, decisions out.
//!
//! Pure, safe and `no_std`, over two seams: [`Packet`] (what a packet holds)
//! and [`Tables`] (what the maps hold). The eBPF programs are one
//! implementation of both, the tests' plain memory the other. What each
//! function decides is described in `docs/datapath.md`.
#![no_std]
#![forbid(unsafe_code)]

pub mod checksum;
mod decision;
mod direct;
mod driver;
mod family;
pub mod flow;
mod hash;
mod hooks;
pub mod icmp;
mod masquerade;
mod open;
pub mod overlay;
mod packet;
mod parse;
mod pick;
mod ports;
pub mod quoted;
mod reply;
pub mod reset;
mod room;
mod service;
pub mod socket;
pub mod states;
mod straight;
mod tables;
pub mod wire;

pub use decision::{Decision, Rewrite, Verdict};
pub use direct::{Named, to_named};
pub use driver::{answer_at_driver, serve_at_driver};
pub use family::{Family, V4, V6};
pub use flow::{is_translated, knows_ports, remember_ports};
pub(crate) use hash::source_hash;
pub use hash::{flow_hash, reduce};
pub use hooks::{
    Entry, error_on_its_way, is_own_source, nic_in, nic_out, pod_from, pod_to, sender, to_bridge,
    to_pod,
};
pub use packet::{ETH_LEN, Packet};
pub use parse::{Fragment, Frame, Headers, MAX_L4, Signal, frame};
pub use pick::{below, pick};
pub use ports::{claim, claim_port};
pub use service::{Client, holds};
pub use tables::{FlowRow, Grant, Put, Tables};
