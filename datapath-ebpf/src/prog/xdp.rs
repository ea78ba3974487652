//! `tulle_xdp`: packets that arrive at the uplink, before an skb is made.

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_head, macros::xdp, programs::XdpContext};
use datapath_common::{Hook, Reason};
use datapath_core::{
    Frame as Inner, Packet as _,
    overlay::{Arrival, OVERHEAD, arrival},
    wire::{Be16, Ethernet},
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
        Arrival::ForPod(_, inner) => match strip(&mut frame, inner) {
            Ok(()) => origin.leave_xdp(XdpExit::Pass, Reason::Decapsulated),
            Err(reason) => origin.leave_xdp(XdpExit::Drop, reason),
        },
    }
}

/// Moves the frame's start to the inner Ethernet header and addresses it to
/// the uplink, so that the stack takes it for its own.
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
    frame.write(
        0,
        Ethernet {
            dst: config().uplink_mac,
            src: config().vtep_mac,
            ethertype: Be16::new(ethertype),
        },
    )
}
