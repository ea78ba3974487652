//! Records of the event ring.

/// What an [`Event`] tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// A packet was dropped or refused.
    Drop = 1,
    /// A flow was opened.
    FlowOpened = 2,
    /// A packet left a program (only while tracing is asked for).
    Trace = 3,
}

impl EventKind {
    /// The kind of a record, if its number is one.
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Drop),
            2 => Some(Self::FlowOpened),
            3 => Some(Self::Trace),
            _ => None,
        }
    }
}

/// A record of `tulle_events`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// Interface that the packet came in by.
    pub ifindex: u32,
    /// Length of the packet in bytes.
    pub len: u32,
    /// Source address, 16 bytes, IPv4 left-aligned.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// The backend's address (`FlowOpened`).
    pub backend: [u8; 16],
    /// Source port, host order.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
    /// The backend's port, host order (`FlowOpened`).
    pub backend_port: u16,
    /// An [`EventKind`].
    pub kind: u8,
    /// A [`crate::Hook`].
    pub hook: u8,
    /// A [`crate::Reason`].
    pub reason: u8,
    /// 4 or 6; 0 if the packet was not parsed so far.
    pub version: u8,
    /// IP protocol number.
    pub proto: u8,
    /// Always zero.
    pub reserved: [u8; 5],
}

/// Value of `tulle_monitor`, one row: what watchers want to see. The lease
/// makes events stop by themselves when the watcher dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct MonitorControl {
    /// Tick until which drops are recorded.
    pub drops_until: u32,
    /// Tick until which opened flows are recorded.
    pub flows_until: u32,
    /// Tick until which every packet is recorded.
    pub traces_until: u32,
    /// Always zero.
    pub reserved: u32,
}

pod! {
    Event = 80 [u64, u32, u32, [u8; 16], [u8; 16], [u8; 16], u16, u16, u16, u8, u8, u8, u8, u8, [u8; 5]];
    MonitorControl = 16 [u32, u32, u32, u32];
}
