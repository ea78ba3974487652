//! Counters and limits, for each CPU.

use crate::reason::REASONS;

/// The places where a program counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Hook {
    /// `tulle_pod_from`: packets that come from a pod.
    PodFrom = 0,
    /// `tulle_pod_to`: packets that the kernel delivers to a pod.
    PodTo = 1,
    /// `tulle_nic_in`: packets that arrive at the uplink, after XDP.
    NicIn = 2,
    /// `tulle_xdp`: packets that arrive at the uplink.
    Xdp = 3,
    /// `tulle_nic_out`: packets that leave by the uplink.
    NicOut = 4,
}

impl Hook {
    /// Every hook, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::PodFrom,
        Self::PodTo,
        Self::NicIn,
        Self::Xdp,
        Self::NicOut,
    ];

    /// The hook with this number.
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::PodFrom),
            1 => Some(Self::PodTo),
            2 => Some(Self::NicIn),
            3 => Some(Self::Xdp),
            4 => Some(Self::NicOut),
            _ => None,
        }
    }

    /// The program's name without its prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodFrom => "pod_from",
            Self::PodTo => "pod_to",
            Self::NicIn => "nic_in",
            Self::Xdp => "xdp",
            Self::NicOut => "nic_out",
        }
    }
}

/// Value of `tulle_counters`, for each CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Counter {
    /// Packets; a segmentation-offload packet counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on.
    pub bytes: u64,
}

/// Value of `tulle_limits`, for each CPU: what was granted in a tick.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Limit {
    /// The tick that the count is for.
    pub tick: u32,
    /// Grants in that tick.
    pub count: u32,
}

pod! {
    Counter = 16 [u64, u64];
    Limit = 8 [u32, u32];
}

/// Entries of `tulle_counters`.
pub const COUNTERS: u32 = Hook::ALL.len() as u32 * REASONS;

/// Index into `tulle_counters`.
#[inline(always)]
pub const fn counter_index(hook: Hook, reason: crate::Reason) -> u32 {
    hook as u32 * REASONS + reason as u32
}
