//! `tulle_xdp`: packets that arrive at the uplink, before an skb is made.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use datapath_common::{Address, Direction, Feature, Hook, Ip4, Mac, Reason, XdpPart};
use datapath_core::{
    ETH_LEN, Frame as Inner, Headers, Packet as _, Tables, V4, V6, Verdict, answer_at_driver,
    overlay::{Arrival, INNER_IP, OVERHEAD, arrival},
    serve_at_driver,
    wire::Be16,
};

use crate::{
    ctx::{Bytes as _, Frame},
    driver::{Sent, answer, encapsulate, is_whole},
    exit::{Origin, XdpExit},
    parts::go_on_xdp,
    shape::Shape,
    tables::{Maps, config},
};

/// Where a frame is, and how long.
#[inline(always)]
fn origin(frame: &Frame) -> Origin {
    Origin {
        hook: Hook::Xdp,
        ifindex: frame.ifindex(),
        len: frame.length(),
    }
}

/// Leaves with a packet that was not parsed.
#[inline(always)]
fn leave(origin: Origin, exit: XdpExit, reason: Reason) -> u32 {
    origin.leave_xdp::<Ip4>(exit, reason, None)
}

/// XDP of the uplink: takes packets for local pods out of the overlay, and goes on with the
/// parts for services of other nodes' pods.
#[xdp]
pub fn tulle_xdp(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(ctx);
    let origin = origin(&frame);
    let maps = Maps::new(origin);
    match arrival(&frame, &maps) {
        Arrival::Other => {
            if serves() {
                match frame.ethertype() {
                    0x0800 => go_on_xdp::<{ XdpPart::Serve4 as u32 }>(frame.raw()),
                    0x86dd => go_on_xdp::<{ XdpPart::Serve6 as u32 }>(frame.raw()),
                    _ => {}
                }
            }
            leave(origin, XdpExit::Pass, Reason::NotOurs)
        }
        Arrival::Kernel(reason) => leave(origin, XdpExit::Pass, reason),
        Arrival::Drop(reason) => leave(origin, XdpExit::Drop, reason),
        Arrival::ForVtep(inner) => {
            if serves() {
                match inner {
                    Inner::V4 => go_on_xdp::<{ XdpPart::Answer4 as u32 }>(frame.raw()),
                    Inner::V6 => go_on_xdp::<{ XdpPart::Answer6 as u32 }>(frame.raw()),
                }
            }
            // `tulle_nic_in` looks whether it is a reply.
            leave(origin, XdpExit::Pass, Reason::OverlayToKernel)
        }
        // The rows of its flow are written with an skb.
        Arrival::Forwarded(..) => leave(origin, XdpExit::Pass, Reason::LeftByXdp),
        Arrival::ForPod(_, inner) => match strip(&mut frame, inner) {
            Ok(()) => leave(origin, XdpExit::Pass, Reason::Decapsulated),
            Err(reason) => leave(origin, XdpExit::Drop, reason),
        },
    }
}

/// Moves the frame's start to the inner Ethernet header and addresses it to
/// the uplink, so that the stack takes it for its own. The sender tells `tulle_nic_in`
/// whence it came.
#[inline(always)]
fn strip(frame: &mut Frame, inner: Inner) -> Result<(), Reason> {
    if !frame.move_start((OVERHEAD as u32).cast_signed()) {
        return Err(Reason::RewriteFailed);
    }
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

/// Whether services are served here.
#[inline(always)]
fn serves() -> bool {
    config().features & Feature::XDP_SERVICES != 0
}

/// The part for IPv4 packets that may be for a service.
#[xdp]
pub fn tulle_xdp_svc4(ctx: XdpContext) -> u32 {
    serve::<V4>(ctx)
}

/// The same for IPv6.
#[xdp]
pub fn tulle_xdp_svc6(ctx: XdpContext) -> u32 {
    serve::<V6>(ctx)
}

/// Sends on what is for a service with a backend on another node; the stack has the rest.
#[inline(always)]
fn serve<F: Shape>(ctx: XdpContext) -> u32
where
    Maps: Tables<F::Addr>,
{
    let frame = &mut Frame::new(ctx);
    let origin = origin(frame);
    let maps = &Maps::new(origin);
    let mut empty = Headers::EMPTY;
    let headers = &mut empty;
    if F::parse_plain(frame, ETH_LEN, headers).is_err() || !is_whole::<F>(frame, headers) {
        return leave(origin, XdpExit::Pass, Reason::NotOurs);
    }
    let Some(decision) = serve_at_driver::<F, _, _>(frame, maps, headers) else {
        return leave(origin, XdpExit::Pass, Reason::NotOurs);
    };
    if decision.verdict == Verdict::Drop {
        return origin.leave_xdp(XdpExit::Drop, decision.reason, Some(headers));
    }
    let sent = match decision.via {
        Some(via) => encapsulate::<F>(frame, origin, headers, &decision, via),
        None => Sent::Not,
    };
    leave_sent(
        origin,
        maps,
        sent,
        Direction::Forward,
        decision.reason,
        headers,
    )
}

/// Leaves with a packet that was to be sent on, for `reason`.
#[inline(always)]
fn leave_sent<A: Address>(
    origin: Origin,
    maps: &Maps,
    sent: Sent,
    direction: Direction,
    reason: Reason,
    headers: &Headers<A>,
) -> u32 {
    let (exit, reason) = match sent {
        Sent::Ready => (XdpExit::Transmit, reason),
        Sent::Not => (XdpExit::Pass, Reason::LeftByXdp),
        Sent::Broken => (XdpExit::Drop, Reason::RewriteFailed),
    };
    if sent == Sent::Ready {
        maps.count_noted(A::VERSION == 6, direction);
    }
    origin.leave_xdp(exit, reason, Some(headers))
}

/// Where the checksum of the overlay's UDP header lies.
const OUTER_CHECKSUM: usize = ETH_LEN + 20 + 6;

/// The part for IPv4 packets inside the overlay that may answer somebody outside.
#[xdp]
pub fn tulle_xdp_ans4(ctx: XdpContext) -> u32 {
    send_back::<V4>(ctx)
}

/// The same for IPv6.
#[xdp]
pub fn tulle_xdp_ans6(ctx: XdpContext) -> u32 {
    send_back::<V6>(ctx)
}

/// Sends an answer out of the overlay to a client outside; the stack has the rest.
#[inline(always)]
fn send_back<F: Shape>(ctx: XdpContext) -> u32
where
    Maps: Tables<F::Addr>,
{
    let frame = &mut Frame::new(ctx);
    let origin = origin(frame);
    let maps = &Maps::new(origin);
    let mut empty = Headers::EMPTY;
    let headers = &mut empty;
    // An outer checksum may be one that a device was to complete.
    let outer = frame.read::<u16>(OUTER_CHECKSUM);
    if outer != Ok(0)
        || F::parse_plain(frame, INNER_IP, headers).is_err()
        || !is_whole::<F>(frame, headers)
    {
        return leave(origin, XdpExit::Pass, Reason::OverlayToKernel);
    }
    let Some(decision) = answer_at_driver::<F, _, _>(frame, maps, headers) else {
        return leave(origin, XdpExit::Pass, Reason::OverlayToKernel);
    };
    let sent = answer::<F>(frame, origin, headers, &decision.rewrite);
    leave_sent(
        origin,
        maps,
        sent,
        Direction::Reply,
        decision.reason,
        headers,
    )
}
