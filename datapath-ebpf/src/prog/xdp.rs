//! `tulle_xdp`: packets that arrive at the uplink, before an skb is made.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, macros::xdp, programs::XdpContext};
use datapath_common::{Hook, Mac, Reason};
use datapath_core::{
    ETH_LEN, Frame as Inner, Packet as _,
    overlay::{Arrival, OVERHEAD, arrival},
    wire::Be16,
};

use crate::{
    ctx::Frame,
    exit::{Origin, XdpExit},
    tables::{Maps, config},
};

/// XDP of the uplink: takes packets for local pods out of the overlay.
#[xdp]
pub fn tulle_xdp(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(ctx);
    let origin = Origin {
        hook: Hook::Xdp,
        ifindex: frame.ifindex(),
        len: frame.length(),
    };
    let maps = Maps::new(origin);
    match arrival(&frame, &maps) {
        Arrival::Other => origin.leave_xdp(XdpExit::Pass, Reason::NotOurs),
        Arrival::Kernel(reason) => origin.leave_xdp(XdpExit::Pass, reason),
        Arrival::Drop(reason) => origin.leave_xdp(XdpExit::Drop, reason),
        // `tulle_nic_in` looks whether it is a reply.
        Arrival::ForVtep(_) => origin.leave_xdp(XdpExit::Pass, Reason::OverlayToKernel),
        Arrival::ForPod(_, inner) => match strip(&mut frame, inner) {
            Ok(()) => origin.leave_xdp(XdpExit::Pass, Reason::Decapsulated),
            Err(reason) => origin.leave_xdp(XdpExit::Drop, reason),
        },
    }
}

/// Moves the frame's start to the inner Ethernet header and addresses it to
/// the uplink, so that the stack takes it for its own. The sender tells `tulle_nic_in`
/// whence it came.
#[inline(always)]
fn strip(frame: &mut Frame, inner: Inner) -> Result<(), Reason> {
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(frame.raw(), (OVERHEAD as u32).cast_signed()) } != 0 {
        return Err(Reason::RewriteFailed);
    }
    frame.look();
    let ethertype = match inner {
        Inner::V4 => 0x0800,
        Inner::V6 => 0x86dd,
    };
    let ([a, b, c], [d, e, f]) = (pairs(config().uplink_mac), pairs(config().stripped_mac));
    // In words, as the stack reads it next: smaller pieces would have to be in the cache first.
    frame.write(0, [a | b << 16, c | d << 16, e | f << 16])?;
    frame.write(ETH_LEN - 2, Be16::new(ethertype))
}

/// A MAC address in pairs of octets as they lie in memory (the target is little-endian).
#[inline(always)]
fn pairs(mac: Mac) -> [u32; 3] {
    let [a, b, c]: [u16; 3] = bytemuck::cast(mac);
    [a as u32, b as u32, c as u32]
}
