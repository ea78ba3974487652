//! Carries out a decision: translation, MAC addresses, encapsulation, ICMP errors.

use core::{mem, ptr};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_redir_neigh,
    },
    helpers::generated::{
        bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room,
    },
};
use datapath_common::{Mac, Reason, Via, counter_index, proto};
use datapath_core::{
    Decision, ETH_LEN, Frame, Grant, Headers, Packet as _, Tables, Verdict,
    icmp::{self, IcmpError},
    overlay, reset,
    wire::{self, Be16},
};

use crate::{
    ctx::{Bytes as _, Skb},
    exit::TcExit,
    maps,
    parsed::number,
    shape::{AF_INET, Shape},
    tables::Maps,
    translate::translate,
};

/// Which way the packets of a hook go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Into the node: TC ingress.
    Ingress,
    /// Out of the node: TC egress.
    Egress,
}

/// The loopback device's address.
const LOOPBACK_MAC: Mac = Mac::new([0; 6]);

/// Sends the packet to an interface: out of it, or into the node as if it had come from it.
#[inline(always)]
fn redirect(ifindex: u32, side: Side) -> TcExit {
    let flags = match side {
        Side::Ingress => BPF_F_INGRESS as u64,
        Side::Egress => 0,
    };
    // SAFETY: the helper takes an interface index, which it checks.
    TcExit::redirect(unsafe { bpf_redirect(ifindex, flags) })
}

/// Carries out a decision about a packet at a TC hook.
#[inline(always)]
pub fn carry_out<F: Shape>(
    skb: &mut Skb,
    maps: &Maps,
    headers: &Headers<F::Addr>,
    decision: &Decision<'_, F::Addr>,
    side: Side,
) -> (TcExit, Reason)
where
    Maps: Tables<F::Addr>,
{
    let config = maps.config();
    let hops = match decision.verdict {
        Verdict::Drop => return (TcExit::DROP, decision.reason),
        Verdict::Refuse => {
            let failed = refuse::<F>(skb.raw(), maps, headers, decision.error, side);
            return match Reason::from_u8(failed as u8) {
                // Back to where it came from: that is this node itself at egress.
                None => (
                    match side {
                        Side::Ingress => redirect(maps.ifindex(), Side::Egress),
                        Side::Egress => redirect(maps.ifindex(), Side::Ingress),
                    },
                    decision.reason,
                ),
                Some(reason) => (TcExit::DROP, reason),
            };
        }
        Verdict::Kernel | Verdict::TurnBack | Verdict::ToVtep | Verdict::ToLoopback => 0,
        Verdict::Deliver
        | Verdict::Encapsulate
        | Verdict::Forward
        | Verdict::Route
        | Verdict::Bridge => 1,
    };
    if let Err(reason) = translate::<F>(skb, headers, &decision.rewrite, hops) {
        return (TcExit::DROP, reason);
    }
    let inwards = match decision.verdict {
        Verdict::TurnBack => Some((config.uplink_mac, config.uplink)),
        Verdict::ToVtep => Some((config.vtep_mac, config.vtep)),
        Verdict::ToLoopback => Some((LOOPBACK_MAC, config.loopback)),
        _ => None,
    };
    if let Some((mac, ifindex)) = inwards {
        return turn_in(skb, mac, ifindex, decision.reason);
    }
    if decision.verdict == Verdict::Route {
        return (route(config.uplink), decision.reason);
    }
    if decision.verdict == Verdict::Bridge {
        return (route(config.bridge), decision.reason);
    }
    let Some(via) = decision.via else {
        return (TcExit::NEXT, decision.reason);
    };
    if decision.verdict == Verdict::Deliver {
        skb.look();
        if let Err(reason) = skb.write(0, overlay::macs(via)) {
            return (TcExit::DROP, reason);
        }
        // The helper that skips the veth is for packets that come in.
        let exit = if side == Side::Ingress {
            // SAFETY: the helper takes an interface index, which it checks.
            TcExit::redirect(unsafe { bpf_redirect_peer(via.ifindex, 0) })
        } else {
            redirect(via.ifindex, Side::Egress)
        };
        return (exit, decision.reason);
    }
    if let Err(reason) = encapsulate::<F>(skb, maps, via, decision) {
        return if reason.group().is_loss() {
            (TcExit::DROP, reason)
        } else if decision.verdict == Verdict::Forward {
            // It is addressed to the frontend: the kernel here would refuse it, or send it round.
            (TcExit::DROP, Reason::RewriteFailed)
        } else if side == Side::Egress || decision.has_other_source(headers) {
            // Here it would leave as it is, or its source would be no stranger's.
            turn_in(skb, LOOPBACK_MAC, config.loopback, reason)
        } else {
            (TcExit::NEXT, reason)
        };
    }
    let exit = match side {
        Side::Ingress => redirect_to_next_hop(via),
        // A packet that waits for its neighbour goes by the route that it has, which
        // is that of what it was; this way it gets another.
        Side::Egress => route(via.ifindex),
    };
    (exit, decision.reason)
}

/// Gives the packet to this node, as if it had come from an interface.
#[inline(always)]
fn turn_in(skb: &mut Skb, mac: Mac, ifindex: u32, reason: Reason) -> (TcExit, Reason) {
    skb.look();
    match skb.write(0, mac) {
        Ok(()) => (redirect(ifindex, Side::Ingress), reason),
        Err(reason) => (TcExit::DROP, reason),
    }
}

/// Writes the Ethernet addresses.
#[inline(always)]
pub fn write_macs(skb: &Skb, dst: Mac, src: Mac) -> Result<(), Reason> {
    skb.write(0, [dst, src])
}

/// Puts the packet into the overlay.
#[inline(always)]
fn encapsulate<F: Shape>(
    skb: &mut Skb,
    maps: &Maps,
    via: &Via,
    decision: &Decision<'_, F::Addr>,
) -> Result<(), Reason>
where
    Maps: Tables<F::Addr>,
{
    const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
        | (ETH_LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
    let (config, port) = (maps.config(), decision.outer_port);
    let inner = skb.length().wrapping_sub(ETH_LEN as u32);
    // SAFETY: the context is the program's own.
    let failed = unsafe {
        bpf_skb_adjust_room(
            skb.raw(),
            (overlay::OVERHEAD as u32).cast_signed(),
            BPF_ADJ_ROOM_MAC,
            FLAGS,
        )
    };
    if failed != 0 {
        // The packet is a tunnel's already, or of an offload kind that the helper
        // does not know. The kernel takes both apart; it counts one hop more.
        return Err(Reason::SlowPath);
    }
    skb.look();
    let id = identification(counter_index(maps.hook(), decision.reason), port);
    let header = overlay::header::<F>(via, decision.name::<F>(), config, port, inner, id);
    skb.write(overlay::HEADER_AT, header)
}

/// The outer identification. A router with a smaller MTU may fragment the outer packet, and
/// fragments of two packets must not be taken for one's (RFC 6864 §4.3): each CPU counts, from
/// where its flows say. The count is that of the packet's own counter, which is written anyway; a
/// random number is two calls.
#[inline(always)]
pub fn identification(row: u32, port: u16) -> u16 {
    let count = maps::COUNTS.get_ptr(row).map_or(0, |counter| {
        // SAFETY: the row is this CPU's own.
        unsafe { (*counter).packets }
    });
    (count as u16).wrapping_add(port.wrapping_mul(ID_SPREAD))
}

/// Odd, so that neighbouring ports begin far from each other: 2^16 over the golden ratio.
const ID_SPREAD: u16 = 40_503;

/// Sends the packet towards another node; the kernel resolves the next hop.
#[inline(always)]
fn redirect_to_next_hop(via: &Via) -> TcExit {
    // SAFETY: plain integers and a union of them.
    let mut hop: bpf_redir_neigh = unsafe { mem::zeroed() };
    hop.nh_family = AF_INET as u32;
    hop.__bindgen_anon_1.ipv4_nh = via.next_hop.word();
    // SAFETY: `hop` lives on the stack and has the size given.
    TcExit::redirect(unsafe {
        bpf_redirect_neigh(
            via.ifindex,
            &raw mut hop,
            (size_of::<bpf_redir_neigh>() as u32).cast_signed(),
            0,
        )
    })
}

/// Sends the packet out of an interface; the kernel finds route and next hop.
#[inline(always)]
fn route(ifindex: u32) -> TcExit {
    // SAFETY: without a next hop the helper asks the routing table.
    TcExit::redirect(unsafe { bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) })
}

/// Takes the packet out of the overlay: what follows the outer Ethernet header
/// is then the inner IP packet.
#[inline(always)]
pub fn decapsulate(skb: &mut Skb, inner: Frame) -> Result<(), Reason> {
    let flags = BPF_F_ADJ_ROOM_FIXED_GSO as u64
        | match inner {
            Frame::V4 => 0,
            Frame::V6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6 as u64,
        };
    // SAFETY: the context is the program's own.
    let failed = unsafe {
        bpf_skb_adjust_room(
            skb.raw(),
            -((overlay::OVERHEAD as u32).cast_signed()),
            BPF_ADJ_ROOM_MAC,
            flags,
        )
    };
    if failed != 0 {
        return Err(Reason::RewriteFailed);
    }
    skb.shrunk(overlay::OVERHEAD as u32);
    if inner == Frame::V6 {
        skb.write(ETH_LEN - 2, Be16::new(0x86dd))?;
    }
    Ok(())
}

/// Turns the packet into the ICMP error or TCP reset that answers it, if it may
/// be answered. Returns the number of the reason why not, 0 if it was.
#[inline(always)]
fn refuse<F: Shape>(
    raw: *mut __sk_buff,
    maps: &Maps,
    headers: &Headers<F::Addr>,
    error: IcmpError,
    side: Side,
) -> u32
where
    Maps: Tables<F::Addr>,
{
    if !icmp::is_answerable::<F>(headers) {
        return Reason::Unanswerable as u32;
    }
    if error == IcmpError::PortUnreachable && headers.proto == proto::TCP {
        reset_apart::<F>(raw, maps, headers)
    } else {
        answer_apart::<F>(raw, maps, headers, error, side)
    }
}

// Functions of their own: each needs much of the stack.

/// Answers with an ICMP error.
#[inline(never)]
fn answer_apart<F: Shape>(
    raw: *mut __sk_buff,
    maps: &Maps,
    headers: &Headers<F::Addr>,
    error: IcmpError,
    side: Side,
) -> u32
where
    Maps: Tables<F::Addr>,
{
    if !maps.grant(Grant::IcmpError) {
        return Reason::ErrorLimit as u32;
    }
    // The node takes no packet from its own address: whom it wanted answers.
    let from = if side == Side::Ingress {
        F::router(maps.config())
    } else {
        headers.dst
    };
    number(F::answer(
        &mut Skb::open(raw),
        from,
        maps.config().overlay_mtu,
        error,
    ))
}

/// Answers with a TCP reset.
#[inline(never)]
fn reset_apart<F: Shape>(raw: *mut __sk_buff, maps: &Maps, headers: &Headers<F::Addr>) -> u32
where
    Maps: Tables<F::Addr>,
{
    let skb = &mut Skb::open(raw);
    let Ok(refused) = skb.read::<wire::Tcp>(headers.l4) else {
        return Reason::Unanswerable as u32;
    };
    // Asked before the limit: what is not answered takes no grant.
    if !reset::is_answerable(&refused) {
        return Reason::Unanswerable as u32;
    }
    if !maps.grant(Grant::IcmpError) {
        return Reason::ErrorLimit as u32;
    }
    number(F::reset(skb, headers, &refused))
}
