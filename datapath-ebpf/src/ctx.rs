//! The packet of a program, and all access to its bytes.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_csum_update, bpf_skb_pull_data, bpf_xdp_adjust_head},
    programs::{TcContext, XdpContext},
};
use bytemuck::Pod;
use datapath_common::Reason;
use datapath_core::{ETH_LEN, Packet};

use crate::maps;

/// Octets that hold the headers of nearly every packet: Ethernet, IPv4, TCP.
const USUAL_HEADERS: usize = 54;
/// Octets that are made reachable when those are not.
const PULL: u32 = 192;

/// The reachable bytes of a packet.
#[derive(Clone, Copy)]
struct Window {
    start: usize,
    end: usize,
    len: u32,
}

// What lies in a packet is read and written as what it is, in whole words, as
// the machine does it at once. The words are not aligned: BPF code runs only
// where the kernel has efficient unaligned access (x86-64, arm64), and the
// verifier checks each access that is really made. Octet-wise access, which the
// compiler emits for what it knows to be unaligned, costs three times as much
// for each packet.

impl Window {
    #[inline(always)]
    fn read<T: Pod>(&self, at: usize) -> Result<T, Reason> {
        let from = self.start + at;
        if from + size_of::<T>() > self.end {
            let ends_before = at as u32 + size_of::<T>() as u32 > self.len;
            return Err(if ends_before {
                Reason::Truncated
            } else {
                Reason::SlowPath
            });
        }
        // SAFETY: before the packet's end, as just checked, and plain data. For
        // alignment see above.
        Ok(unsafe { *(from as *const T) })
    }

    #[inline(always)]
    fn write<T: Pod>(&self, at: usize, value: T) -> Result<(), Reason> {
        let to = self.start + at;
        if to + size_of::<T>() > self.end {
            return Err(Reason::RewriteFailed);
        }
        // SAFETY: before the packet's end, as just checked, and plain data. For
        // alignment see above.
        unsafe { *(to as *mut T) = value };
        Ok(())
    }
}

/// A packet that can be written.
pub trait Bytes: Packet {
    /// Writes at `at`; it must have been reachable when the bytes were found last.
    fn write<T: Pod>(&self, at: usize, value: T) -> Result<(), Reason>;
    /// Tells the kernel that the sum over the whole packet changed by so much, where it
    /// knows one (`CHECKSUM_COMPLETE`).
    fn balance(&self, change: u32);
}

/// A packet at a TC hook.
pub struct Skb {
    ctx: TcContext,
    window: Window,
}

impl Skb {
    /// Takes the program's packet; what it holds is not known yet.
    #[inline(always)]
    pub fn new(ctx: TcContext) -> Self {
        Self {
            window: Window {
                start: 0,
                end: 0,
                len: ctx.len(),
            },
            ctx,
        }
    }

    /// Takes the program's packet; makes its usual headers reachable.
    #[inline(always)]
    pub fn open(raw: *mut __sk_buff) -> Self {
        let mut skb = Self::new(TcContext::new(raw));
        let len = skb.window.len;
        skb.look();
        if skb.window.start + USUAL_HEADERS > skb.window.end && len > USUAL_HEADERS as u32 {
            // SAFETY: the context is the program's own.
            unsafe { bpf_skb_pull_data(skb.raw(), PULL.min(len)) };
            skb.look();
        }
        skb
    }

    /// Finds the packet's bytes anew: every helper that changes the packet
    /// makes what was known of them void.
    #[inline(always)]
    pub fn look(&mut self) {
        self.window.start = self.ctx.data();
        self.window.end = self.ctx.data_end();
    }

    /// Finds the bytes anew after `octets` were taken away.
    #[inline(always)]
    pub fn shrunk(&mut self, octets: u32) {
        self.window.len = self.window.len.wrapping_sub(octets);
        self.look();
    }

    /// The kernel's structure.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.ctx.as_ptr().cast()
    }

    /// The interface that the packet is at.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { (*self.raw()).ifindex }
    }

    /// The interface that the packet came in by; 0 for what this node sends itself.
    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { (*self.raw()).ingress_ifindex }
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn write<T: Pod>(&self, at: usize, value: T) -> Result<(), Reason> {
        self.window.write(at, value)
    }
    #[inline(always)]
    fn balance(&self, change: u32) {
        // SAFETY: the context is the program's own; other packets are left alone.
        unsafe { bpf_csum_update(self.raw(), change) };
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn read<T: Pod>(&self, at: usize) -> Result<T, Reason> {
        self.window.read(at)
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        self.window.len
    }
    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { (*self.raw()).gso_size }
    }
    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: the context is the program's own. The field is in network order.
        u16::from_be(unsafe { (*self.raw()).protocol } as u16)
    }
    #[inline(always)]
    fn opaque(&self, value: u64) -> u64 {
        opaque(value)
    }
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: the context is the program's own.
        unsafe { (*self.raw()).vlan_present != 0 }
    }
}

/// A packet at the XDP hook.
pub struct Frame {
    ctx: XdpContext,
    window: Window,
}

impl Frame {
    /// Takes the program's packet.
    #[inline(always)]
    pub fn new(ctx: XdpContext) -> Self {
        let (start, end) = (ctx.data(), ctx.data_end());
        let len = (end - start) as u32;
        Self {
            ctx,
            window: Window { start, end, len },
        }
    }

    /// Finds the packet's bytes anew.
    #[inline(always)]
    fn look(&mut self) {
        self.window.start = self.ctx.data();
        self.window.end = self.ctx.data_end();
    }

    /// The kernel's structure.
    #[inline(always)]
    pub fn raw(&self) -> *mut xdp_md {
        self.ctx.as_ptr().cast()
    }

    /// The interface that the packet is at.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { (*self.raw()).ingress_ifindex }
    }

    /// Moves the frame's start by so many octets, and finds its bytes anew. False if it cannot
    /// be moved; the frame is as it was.
    #[must_use]
    #[inline(always)]
    pub fn move_start(&mut self, by: i32) -> bool {
        // SAFETY: the context is the program's own.
        let failed = unsafe { bpf_xdp_adjust_head(self.raw(), by) };
        self.look();
        failed == 0
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn write<T: Pod>(&self, at: usize, value: T) -> Result<(), Reason> {
        self.window.write(at, value)
    }
    #[inline(always)]
    fn balance(&self, _: u32) {}
}

impl Packet for Frame {
    #[inline(always)]
    fn read<T: Pod>(&self, at: usize) -> Result<T, Reason> {
        self.window.read(at)
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        self.window.len
    }
    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }
    #[inline(always)]
    fn ethertype(&self) -> u16 {
        self.read(ETH_LEN - 2).map_or(0, u16::from_be)
    }
    #[inline(always)]
    fn opaque(&self, value: u64) -> u64 {
        opaque(value)
    }
    #[inline(always)]
    fn is_tagged(&self) -> bool {
        false
    }
}

/// A value of which the verifier knows nothing any more.
#[inline(always)]
fn opaque(value: u64) -> u64 {
    let Some(work) = maps::WORK_V4.get_ptr_mut(0) else {
        return value;
    };
    // SAFETY: this CPU's own row; no program interrupts another at these
    // hooks of the same CPU.
    unsafe {
        ptr::write_volatile(&raw mut (*work).facts, value);
        ptr::read_volatile(&raw const (*work).facts)
    }
}
