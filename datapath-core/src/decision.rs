//! What the pipeline decided. The shell of each program carries it out.
//!
//! Every field of a decision always has a value: the bytes of an enum's other
//! variants would be undefined, and the verifier refuses a program that moves
//! undefined bytes about.

use datapath_common::{Address, Backend, Reason, Via};

use crate::{Family, Headers, flow::is_same, icmp::IcmpError};

/// Where a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// On to the node's own stack.
    Kernel,
    /// Nowhere.
    Drop,
    /// To the pod of this node behind `via`; TTL decremented.
    Deliver,
    /// To another node through VXLAN, by `via`; TTL decremented.
    Encapsulate,
    /// The same, as the packet came: to a backend that the node there is to give it to, by its `via` and
    /// named by the destination of `rewrite`, which changes nothing here (direct server return).
    Forward,
    /// Out of the uplink by the kernel's routing; TTL decremented.
    Route,
    /// To a pod of this node behind the bridge, by the kernel's neighbours; TTL
    /// decremented.
    Bridge,
    /// Back into this node, as if it had come from the uplink.
    TurnBack,
    /// Into this node, as if it had come from the VTEP device.
    ToVtep,
    /// Into this node, by the loopback device: for a process, or for the kernel to forward.
    ToLoopback,
    /// Nowhere; the sender gets `error`.
    Refuse,
}

/// Addresses and ports (host order) that the packet is to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite<A> {
    /// Whether anything is to change; otherwise the packet keeps what it has.
    pub any: bool,
    /// Source address.
    pub src: A,
    /// Source port.
    pub sport: u16,
    /// Destination address.
    pub dst: A,
    /// Destination port.
    pub dport: u16,
}

/// A verdict, why, and what changes in the packet before it is carried out.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Decision<'a, A> {
    /// Where it goes.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// How it gets there ([`Verdict::Deliver`], [`Verdict::Encapsulate`]).
    pub via: Option<&'a Via>,
    /// Outer source port ([`Verdict::Encapsulate`]).
    pub outer_port: u16,
    /// The answer ([`Verdict::Refuse`]).
    pub error: IcmpError,
    /// What changes.
    pub rewrite: Rewrite<A>,
}

impl<A: Copy> Rewrite<A> {
    /// Nothing changes.
    #[inline(always)]
    pub const fn none(h: &Headers<A>) -> Self {
        Self {
            any: false,
            src: h.src,
            sport: h.sport,
            dst: h.dst,
            dport: h.dport,
        }
    }
}

impl<A: Address> Decision<'_, A> {
    /// What names the backend that the packet does not name itself.
    #[inline(always)]
    pub fn name<F: Family<Addr = A>>(&self) -> Option<[u32; 3]> {
        let to = &self.rewrite;
        (self.verdict == Verdict::Forward).then(|| F::name(to.dst, to.dport))
    }

    /// Whether the packet gets another source address.
    #[inline(always)]
    pub fn has_other_source(&self, h: &Headers<A>) -> bool {
        !is_same(self.rewrite.src, h.src)
    }
}

impl<'a, A: Copy> Decision<'a, A> {
    #[inline(always)]
    const fn new(verdict: Verdict, reason: Reason, h: &Headers<A>) -> Self {
        Self {
            verdict,
            reason,
            via: None,
            outer_port: 0,
            error: IcmpError::PortUnreachable,
            rewrite: Rewrite::none(h),
        }
    }

    /// Leaves the packet to the kernel.
    #[inline(always)]
    pub const fn kernel(reason: Reason, h: &Headers<A>) -> Self {
        Self::new(Verdict::Kernel, reason, h)
    }

    /// Drops the packet.
    #[inline(always)]
    pub const fn drop(reason: Reason, h: &Headers<A>) -> Self {
        Self::new(Verdict::Drop, reason, h)
    }

    /// Answers the packet with an error.
    #[inline(always)]
    pub const fn refuse(error: IcmpError, reason: Reason, h: &Headers<A>) -> Self {
        let mut decision = Self::new(Verdict::Refuse, reason, h);
        decision.error = error;
        decision
    }

    /// Sends the packet out of the uplink by the kernel's routing.
    #[inline(always)]
    pub const fn route(reason: Reason, h: &Headers<A>) -> Self {
        Self::new(Verdict::Route, reason, h)
    }

    /// Delivers the packet to a pod of this node behind the bridge.
    #[inline(always)]
    pub const fn bridge(reason: Reason, h: &Headers<A>) -> Self {
        Self::new(Verdict::Bridge, reason, h)
    }

    /// Gives the packet back to this node.
    #[inline(always)]
    pub const fn turn_back(reason: Reason, h: &Headers<A>) -> Self {
        Self::new(Verdict::TurnBack, reason, h)
    }

    /// Gives the packet to the VTEP device.
    #[inline(always)]
    pub const fn to_vtep(h: &Headers<A>) -> Self {
        Self::new(Verdict::ToVtep, Reason::OverlayToKernel, h)
    }

    /// Gives the packet to a process of this node by the loopback device.
    #[inline(always)]
    pub const fn to_loopback(reason: Reason, h: &Headers<A>) -> Self {
        Self::new(Verdict::ToLoopback, reason, h)
    }

    /// Delivers the packet to a pod of this node.
    #[inline(always)]
    pub const fn deliver(via: &'a Via, reason: Reason, h: &Headers<A>) -> Self {
        let mut decision = Self::new(Verdict::Deliver, reason, h);
        decision.via = Some(via);
        decision
    }

    /// Sends the packet to another node.
    #[inline(always)]
    pub const fn encapsulate(via: &'a Via, outer_port: u16, h: &Headers<A>) -> Self {
        let mut decision = Self::new(Verdict::Encapsulate, Reason::Encapsulated, h);
        decision.via = Some(via);
        decision.outer_port = outer_port;
        decision
    }

    /// Sends the packet to a backend's node as it came.
    #[inline(always)]
    pub const fn forward(backend: &'a Backend<A>, outer_port: u16, h: &Headers<A>) -> Self {
        let mut decision = Self::encapsulate(&backend.via, outer_port, h);
        decision.verdict = Verdict::Forward;
        (decision.rewrite.dst, decision.rewrite.dport) = (backend.addr, backend.port);
        decision
    }

    /// The same, counted under another reason.
    #[inline(always)]
    pub const fn counted(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }

    /// The same with this translation.
    #[inline(always)]
    pub const fn translated(mut self, rewrite: Rewrite<A>) -> Self {
        self.rewrite = rewrite;
        self
    }
}
