//! The only way out of a program: count, perhaps tell a watcher, return.

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    },
    helpers::generated::bpf_ktime_get_coarse_ns,
};
use datapath_common::{Address, Event, EventKind, Hook, Reason, counter_index};
use datapath_core::{Headers, Packet as _};

use crate::{ctx::Skb, maps, tables::is_watched};

/// Where a packet leaves to, at a TC hook: the code that the program returns.
#[derive(Clone, Copy)]
#[must_use]
pub struct TcExit(i32);

impl TcExit {
    /// To the next program and the stack.
    pub const NEXT: Self = Self(TC_ACT_UNSPEC);
    /// Nowhere.
    pub const DROP: Self = Self(TC_ACT_SHOT);

    /// What a redirecting helper returned.
    #[inline(always)]
    pub fn redirect(code: i64) -> Self {
        Self(code as i32)
    }
}

/// Where a packet leaves to, at the XDP hook.
#[derive(Clone, Copy)]
#[must_use]
pub enum XdpExit {
    /// To the stack.
    Pass,
    /// Nowhere.
    Drop,
    /// Out by the interface that it came by.
    Transmit,
}

/// Where and how long: what a program knows of a packet before it parses it.
#[derive(Clone, Copy)]
pub struct Origin {
    /// The program.
    pub hook: Hook,
    /// The interface.
    pub ifindex: u32,
    /// Octets from the Ethernet header on, as the packet came in.
    pub len: u32,
}

impl Origin {
    /// Of a packet at a TC hook.
    #[inline(always)]
    pub fn of(hook: Hook, skb: &Skb) -> Self {
        Self {
            hook,
            ifindex: skb.ifindex(),
            len: skb.length(),
        }
    }

    /// Leaves a TC program.
    #[inline(always)]
    pub fn leave<A: Address>(
        self,
        exit: TcExit,
        reason: Reason,
        headers: Option<&Headers<A>>,
    ) -> i32 {
        self.account(reason, headers);
        exit.0
    }

    /// Leaves the XDP program.
    #[inline(always)]
    pub fn leave_xdp<A: Address>(
        self,
        exit: XdpExit,
        reason: Reason,
        headers: Option<&Headers<A>>,
    ) -> u32 {
        self.account(reason, headers);
        match exit {
            XdpExit::Pass => XDP_PASS,
            XdpExit::Drop => XDP_DROP,
            XdpExit::Transmit => XDP_TX,
        }
    }

    #[inline(always)]
    fn account<A: Address>(self, reason: Reason, headers: Option<&Headers<A>>) {
        if let Some(counter) = maps::COUNTS.get_ptr_mut(counter_index(self.hook, reason)) {
            // SAFETY: the row is this CPU's own; a packet that interrupts
            // another on the same CPU can at worst hide one from the count.
            unsafe {
                (*counter).packets += 1;
                (*counter).bytes += self.len as u64;
            }
        }
        if reason.group().is_loss() && is_watched(EventKind::Drop) {
            self.tell(EventKind::Drop, reason, headers);
        } else if is_traced() {
            self.tell(EventKind::Trace, reason, headers);
        }
    }

    #[inline(always)]
    fn tell<A: Address>(self, kind: EventKind, reason: Reason, headers: Option<&Headers<A>>) {
        self.emit(kind, reason, |event| {
            if let Some(h) = headers {
                event.version = A::VERSION;
                event.src = h.src.to_16();
                event.dst = h.dst.to_16();
                event.sport = h.sport;
                event.dport = h.dport;
                event.proto = h.proto;
            }
        });
    }

    /// Puts an event on the ring, completed by `fill`. A full ring loses it:
    /// events never hold a packet up. Built in place, for the stack has no room
    /// to spare.
    #[inline(always)]
    pub fn emit(self, kind: EventKind, reason: Reason, fill: impl FnOnce(&mut Event)) {
        let Some(mut entry) = maps::EVENTS.reserve_untyped::<Event>(0) else {
            return;
        };
        fill(entry.write(Event {
            // SAFETY: the helper takes nothing.
            time: unsafe { bpf_ktime_get_coarse_ns() },
            ifindex: self.ifindex,
            len: self.len,
            src: [0; 16],
            dst: [0; 16],
            backend: [0; 16],
            sport: 0,
            dport: 0,
            backend_port: 0,
            kind: kind as u8,
            hook: self.hook as u8,
            reason: reason as u8,
            version: 0,
            proto: 0,
            reserved: [0; 5],
        }));
        entry.submit(0);
    }
}

/// Leaves a TC program with a packet that the parser did not take: to the
/// kernel or nowhere, as the reason's group says.
#[inline(always)]
pub fn leave_unparsed<A: Address>(origin: Origin, reason: Reason) -> i32 {
    let exit = if reason.group().is_loss() {
        TcExit::DROP
    } else {
        TcExit::NEXT
    };
    origin.leave::<A>(exit, reason, None)
}

/// Whether every packet is to be told. Read from the row alone while nobody
/// ever asked: the usual case costs one load.
#[inline(always)]
fn is_traced() -> bool {
    match maps::MONITOR.get(0) {
        Some(control) if control.traces_until != 0 => is_watched(EventKind::Trace),
        _ => false,
    }
}
