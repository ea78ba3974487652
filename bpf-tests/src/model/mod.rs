//! The reference model: what docs/datapath.md says, as a slow and plain
//! program over owned frames and ordinary collections. It shares nothing with
//! the programs but the layouts.
//!
//! Where the rules leave something to the program (the hash, the outer source
//! port, identifications), [`check`] takes what was observed and holds it
//! against what the rules do say.

pub mod check;
mod client;
pub mod direct;
pub mod flow;
mod forward;
mod icmp;
mod icmp_errors;
mod leaving;
mod node;
mod overlay;
pub mod parse;
mod pod;
pub mod rewrite;
mod service;
pub mod snat;
mod traffic;
pub mod world;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr};

use datapath_common::{Group, Hook, Reason};

pub use check::{Memory, met_frame, sent_packet};
pub use node::nic_out;
pub use overlay::{nic_in, xdp};
pub use pod::{pod_from, pod_to};
pub use world::{
    AffinityId, AffinityRow, BackendRow, FlowId, FlowRow, FragmentId, FragmentRow, FrontendId,
    Tuple, World,
};

/// What comes with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ctx {
    /// Interface that the packet is at.
    pub ifindex: u32,
    /// Interface that it came in by; 0 if this node sends it.
    pub ingress: u32,
    /// Payload of each segment of an offload packet; 0 for others.
    pub gso_size: u32,
    /// A VLAN tag beside the frame.
    pub vlan: bool,
    /// What the hash is taken to be.
    pub hash: Hash,
}

/// The hash over a packet's tuple, which the rules leave to the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hash {
    /// This number.
    Is(u32),
    /// One that does what was seen.
    Seen {
        /// Slot that it selects, modulo the segment's length.
        slot: usize,
        /// Port that it gives to a masqueraded flow; `None` if it finds none.
        port: Option<u16>,
    },
}

impl Hash {
    /// The slot that it selects in a segment of this length.
    fn slot(self, length: usize) -> usize {
        match self {
            Self::Is(hash) => ((u64::from(hash) * length as u64) >> 32) as usize,
            Self::Seen { slot, .. } => slot % length.max(1),
        }
    }
}

impl Hash {
    /// The one over the client's address alone.
    fn of_source(self, src: IpAddr) -> Self {
        match self {
            Self::Is(_) => {
                let mut hasher = DefaultHasher::new();
                src.hash(&mut hasher);
                Self::Is((hasher.finish() >> 32) as u32)
            }
            seen @ Self::Seen { .. } => seen,
        }
    }
}

impl Default for Ctx {
    fn default() -> Self {
        Self {
            ifindex: 1,
            ingress: 0,
            gso_size: 0,
            vlan: false,
            hash: Hash::Is(0),
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The node's stack goes on with it (TC "next").
    Kernel,
    /// XDP passes it on.
    Pass,
    /// It is gone.
    Drop,
    /// Into the pod behind this veth.
    RedirectPeer {
        /// Host side of the veth.
        ifindex: u32,
    },
    /// Out by a pod's veth, past `tulle_pod_to`.
    Redirect {
        /// Host side of the veth.
        ifindex: u32,
    },
    /// Out by an interface, by the kernel's routing and neighbours ("route").
    Route {
        /// The uplink.
        ifindex: u32,
    },
    /// In by an interface: the uplink ("turn back"), the loopback or the VTEP device.
    RedirectIngress {
        /// The interface.
        ifindex: u32,
    },
    /// Out by an interface, to a neighbour.
    RedirectNeigh {
        /// The uplink.
        ifindex: u32,
        /// The neighbour.
        next_hop: Ipv4Addr,
    },
    /// The frame is an answer that goes back where the refused packet came from.
    RedirectBack {
        /// The veth or the uplink.
        ifindex: u32,
    },
    /// The frame is an answer to the node's own stack: in where it left.
    AnswerNode {
        /// The uplink or the loopback device.
        ifindex: u32,
    },
}

impl Verdict {
    /// What the program returns: TC's `TCX_NEXT`, `TC_ACT_SHOT`,
    /// `TC_ACT_REDIRECT` or XDP's `XDP_DROP`, `XDP_PASS`.
    pub fn code(self, hook: Hook) -> i32 {
        match (self, hook) {
            (Self::Drop, Hook::Xdp) => 1,
            (Self::Drop | Self::Pass, _) | (Self::Kernel, Hook::Xdp) => 2,
            (Self::Kernel, _) => -1,
            (
                Self::RedirectPeer { .. }
                | Self::Redirect { .. }
                | Self::Route { .. }
                | Self::RedirectIngress { .. }
                | Self::RedirectNeigh { .. }
                | Self::RedirectBack { .. }
                | Self::AnswerNode { .. },
                _,
            ) => 7,
        }
    }

    /// Whether the frame is an answer of the program's own making.
    pub fn is_answer(self) -> bool {
        matches!(self, Self::RedirectBack { .. } | Self::AnswerNode { .. })
    }
}

/// What the hash that selects a slot is over.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Hashed {
    /// Addresses, ports and protocol.
    Flow(Tuple),
    /// The client's address.
    Source(IpAddr),
}

/// A slot that was taken.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Choice {
    /// What was hashed.
    pub hashed: Hashed,
    /// The ids of the segment or of its table, slot by slot.
    pub segment: Vec<u32>,
    /// The id that the slot held.
    pub backend: u32,
    /// Whether another packet that hashes so takes the slot of this one.
    pub repeats: bool,
}

/// All that a program does to one packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Why it left as it did.
    pub reason: Reason,
    /// Where to.
    pub verdict: Verdict,
    /// The frame after the program.
    pub frame: Vec<u8>,
    /// The flow that it opened.
    pub opened_flow: Option<FlowId>,
    /// The backend that the hash selected, if the segment was asked.
    pub choice: Option<Choice>,
    /// IP version, service port and backend that it was given.
    pub given: Option<(u8, u32, u32)>,
}

impl Outcome {
    fn new(reason: Reason, verdict: Verdict, frame: Vec<u8>) -> Self {
        Self {
            reason,
            verdict,
            frame,
            opened_flow: None,
            choice: None,
            given: None,
        }
    }

    fn drop(reason: Reason, frame: &[u8]) -> Self {
        Self::new(reason, Verdict::Drop, frame.to_vec())
    }

    fn kernel(reason: Reason, frame: &[u8]) -> Self {
        Self::new(reason, Verdict::Kernel, frame.to_vec())
    }

    /// Leaves the program as the reason's group says.
    fn leave(reason: Reason, frame: &[u8]) -> Self {
        match reason.group() {
            Group::Dropped => Self::drop(reason, frame),
            Group::Passed | Group::Forwarded | Group::Refused => Self::kernel(reason, frame),
        }
    }
}

/// Runs one hook.
pub fn run(world: &mut World, hook: Hook, frame: &[u8], ctx: &Ctx) -> Outcome {
    world.answered = None;
    let early = match hook {
        // What arrives may have to come out of the overlay first.
        Hook::NicIn | Hook::Xdp => None,
        Hook::PodFrom | Hook::PodTo | Hook::NicOut => {
            icmp_errors::icmp_error(world, hook, frame, ctx)
        }
    };
    let outcome = early.unwrap_or_else(|| match hook {
        Hook::PodFrom => pod_from(world, frame, ctx),
        Hook::PodTo => pod_to(world, frame, ctx),
        Hook::NicOut => nic_out(world, frame, ctx),
        Hook::NicIn => nic_in(world, frame, ctx),
        Hook::Xdp => xdp(world, frame, ctx),
    });
    traffic::count(world, frame, &outcome);
    outcome
}
