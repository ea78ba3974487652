//! Sends packets on before an skb is made: route and neighbour by the kernel's tables,
//! translation, encapsulation.

use core::mem;

use aya_ebpf::{
    bindings::{BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup},
    helpers::generated::bpf_fib_lookup as look_up_route,
};
use datapath_common::{
    Ip4, Mac, NextHop, Reason, Via, counter_index,
    maps::{LIMIT_NEXT_HOPS, NEXT_HOP_ROWS},
    proto,
};
use datapath_core::{
    Decision, ETH_LEN, Headers, Packet as _, Rewrite,
    checksum::{changed, is_partial},
    overlay,
};

use crate::{
    apply::identification,
    ctx::{Bytes as _, Frame},
    exit::Origin,
    maps,
    shape::Shape,
    tables::{config, is_first, now},
    translate::words,
};

/// The next hop as the kernel knows it.
#[derive(Clone, Copy)]
struct Hop {
    /// Destination and source of the Ethernet header.
    macs: [Mac; 2],
    /// Largest IP packet in bytes that fits the way; 0 if the kernel did not say.
    mtu: u16,
}

/// The next hop to another node, as [`next_hop`] says. The kernel is asked once in a tick on each CPU: its answer
/// costs more than all else that is done to a packet. Functions of their own, these two, for their stack.
#[inline(never)]
fn hop_to_node(frame: &Frame, node: Ip4, octets: u32) -> Option<[Mac; 2]> {
    let row = u32::from_be(node.word()) % NEXT_HOP_ROWS;
    let row = maps::HOPS.get_ptr_mut(row)?;
    let now = now();
    // SAFETY: the row is this CPU's own; programs are not preempted by programs of the same kind.
    unsafe {
        if (*row).node == node && (*row).tick == now {
            let fits = (*row).mtu == 0 || octets <= (*row).mtu as u32;
            return fits.then_some([(*row).dst_mac, (*row).src_mac]);
        }
    }
    let hop = next_hop::<datapath_core::V4>(frame, config().node_ip4, node, octets)?;
    let [dst_mac, src_mac] = hop.macs;
    let heard = NextHop {
        node,
        tick: now,
        dst_mac,
        src_mac,
        mtu: hop.mtu,
        reserved: 0,
    };
    // SAFETY: as above.
    unsafe { *row = heard };
    Some(hop.macs)
}

/// The next hop to a client, as [`next_hop`] says; there are too many of these to remember them.
#[inline(never)]
fn hop_to_client<F: Shape>(
    frame: &Frame,
    rewrite: &Rewrite<F::Addr>,
    octets: u32,
) -> Option<[Mac; 2]> {
    next_hop::<F>(frame, rewrite.src, rewrite.dst, octets).map(|hop| hop.macs)
}

/// The next hop between two addresses, if it is behind the uplink and known, but for one packet
/// in each tick; `octets`: of the IP packet, which has to fit the way.
#[inline(always)]
fn next_hop<F: Shape>(frame: &Frame, src: F::Addr, dst: F::Addr, octets: u32) -> Option<Hop> {
    // SAFETY: plain integers and unions of them.
    let mut fib: bpf_fib_lookup = unsafe { mem::zeroed() };
    F::ask_route(&mut fib, src, dst);
    fib.ifindex = config().uplink;
    fib.__bindgen_anon_1.tot_len = octets as u16;
    // SAFETY: `fib` lives on the stack and has the size given.
    let told = unsafe {
        look_up_route(
            frame.raw().cast(),
            &raw mut fib,
            (size_of::<bpf_fib_lookup>() as u32).cast_signed(),
            BPF_FIB_LOOKUP_OUTPUT,
        )
    };
    // Before Linux 6.3 a neighbour that nobody answers for was known, too.
    let known = told == 0 && fib.ifindex == config().uplink && fib.dmac != [0; 6];
    // A neighbour that was not heard of lately is used by the look-up, and asked by nobody. The
    // kernel asks where it sends itself: a packet now and then.
    let row = LIMIT_NEXT_HOPS + (fib.dmac[4] ^ fib.dmac[5]) as u32 % NEXT_HOP_ROWS;
    let hop = Hop {
        macs: [Mac::new(fib.dmac), Mac::new(fib.smac)],
        // SAFETY: the kernel leaves the way's MTU where it found the length (Linux 5.12).
        mtu: unsafe { fib.__bindgen_anon_1.mtu_result },
    };
    (known && !is_first(row)).then_some(hop)
}

/// Where the transport header's checksum lies.
#[inline(always)]
const fn checksum_at<A>(h: &Headers<A>, l4: usize) -> usize {
    l4 + if h.proto == proto::TCP { 16 } else { 6 }
}

/// Whether the checksum of a plain packet of TCP or UDP can be changed here: it is whole.
#[inline(always)]
pub fn is_whole<F: Shape>(frame: &Frame, h: &Headers<F::Addr>) -> bool {
    let field = frame.read::<u16>(checksum_at(h, h.l4));
    field.is_ok_and(|field| !is_partial(h, field))
}

/// Translates a plain packet of TCP or UDP whose header lies at `ip` now, one hop on.
#[inline(always)]
fn translate<F: Shape>(
    frame: &Frame,
    ip: usize,
    h: &Headers<F::Addr>,
    new: &Rewrite<F::Addr>,
) -> Result<(), Reason> {
    let ttl = h.ttl.wrapping_sub(1);
    if !new.any {
        return F::write_ttl(frame, ip, ttl);
    }
    let addresses = F::write_header(frame, ip, h, new, ttl)?;
    let l4 = ip + F::HEADER;
    let (was, is) = (words(h.sport, h.dport), words(new.sport, new.dport));
    frame.write(l4, is)?;
    let at = checksum_at(h, l4);
    let field: u16 = frame.read(at).map_err(|_| Reason::RewriteFailed)?;
    let change = addresses.sub(was).add(is);
    frame.write(at, changed(field, change, h.proto == proto::UDP))
}

/// What became of a packet that was to be sent on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is ready to be transmitted.
    Ready,
    /// It is as it came.
    Not,
    /// It is spoilt.
    Broken,
}

impl Sent {
    #[inline(always)]
    fn of(written: Result<(), Reason>) -> Self {
        match written {
            Ok(()) => Self::Ready,
            Err(_) => Self::Broken,
        }
    }
}

/// Translates the frame and puts it into the overlay, towards the node behind `via`.
#[inline(always)]
pub fn encapsulate<F: Shape>(
    frame: &mut Frame,
    origin: Origin,
    h: &Headers<F::Addr>,
    decision: &Decision<'_, F::Addr>,
    via: &Via,
) -> Sent {
    const GROWTH: u32 = overlay::OVERHEAD as u32;
    let inner = origin.len.wrapping_sub(ETH_LEN as u32);
    let Some(hop) = hop_to_node(frame, via.node, inner + GROWTH) else {
        return Sent::Not;
    };
    if !frame.move_start(-GROWTH.cast_signed()) {
        return Sent::Not;
    }
    let port = decision.outer_port;
    let id = identification(counter_index(origin.hook, decision.reason), port);
    let header = overlay::header::<F>(via, decision.name::<F>(), config(), port, inner, id);
    let written = frame
        .write(0, hop)
        .and_then(|()| frame.write(overlay::HEADER_AT, header))
        .and_then(|()| translate::<F>(frame, ETH_LEN + overlay::OVERHEAD, h, &decision.rewrite));
    Sent::of(written)
}

/// Takes the packet out of the overlay, translates it and addresses it to its client. `h` is that
/// of the packet inside.
#[inline(always)]
pub fn answer<F: Shape>(
    frame: &mut Frame,
    origin: Origin,
    h: &Headers<F::Addr>,
    rewrite: &Rewrite<F::Addr>,
) -> Sent {
    const SHRINKAGE: u32 = overlay::OVERHEAD as u32;
    let octets = origin.len.wrapping_sub(SHRINKAGE + ETH_LEN as u32);
    let Some(hop) = hop_to_client::<F>(frame, rewrite, octets) else {
        return Sent::Not;
    };
    if !frame.move_start(SHRINKAGE.cast_signed()) {
        return Sent::Not;
    }
    // The inner Ethernet header has the inner type already.
    let written = frame
        .write(0, hop)
        .and_then(|()| translate::<F>(frame, ETH_LEN, h, rewrite));
    Sent::of(written)
}
