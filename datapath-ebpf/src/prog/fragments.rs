//! `tulle_frags4`, `tulle_frags6`: fragments for a service that come in another order than they were sent in: a
//! later one says nothing of ports, so it is held until the first one comes, which
//! is then put before it.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_ANY, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, TC_ACT_UNSPEC},
    helpers::generated::{
        bpf_clone_redirect, bpf_ktime_get_coarse_ns, bpf_skb_change_tail, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
    macros::classifier,
    programs::TcContext,
};
use datapath_common::{
    Address, FragmentKey, FrontendKey, HELD_FRAGMENTS, HELD_OCTETS, Held, HeldKey, Ip4, Ip6,
    Reason, TICK_SHIFT, proto,
};
use datapath_core::{ETH_LEN, Fragment, Headers, Tables, V4, V6, knows_ports};

use crate::{
    ctx::Skb,
    exit::{Origin, TcExit},
    maps,
    parts::{Note, go_on_from},
    shape::Shape,
    tables::Maps,
};

/// Ticks after which a fragment that is held belongs to a datagram of former times:
/// an identification comes round again.
const HELD_TICKS: u32 = 2;

/// The fragments that are held, of one family.
pub trait HeldRows: Address {
    /// A row, in place.
    fn held(key: &HeldKey<Self>) -> Option<*const Held>;
    /// Writes a row. False if the table did not take it.
    fn hold(key: &HeldKey<Self>, row: &Held) -> bool;
    /// Removes a row.
    fn forget(key: &HeldKey<Self>);
}

macro_rules! held_rows {
    ($addr:ty, $map:ident) => {
        impl HeldRows for $addr {
            #[inline(always)]
            fn held(key: &HeldKey<Self>) -> Option<*const Held> {
                maps::$map.get_ptr(key)
            }
            #[inline(always)]
            fn hold(key: &HeldKey<Self>, row: &Held) -> bool {
                maps::$map.insert(key, row, BPF_ANY as u64).is_ok()
            }
            #[inline(always)]
            fn forget(key: &HeldKey<Self>) {
                // It is not there any more in any case.
                let _ = maps::$map.remove(key);
            }
        }
    };
}

held_rows!(Ip4, HELD_V4);
held_rows!(Ip6, HELD_V6);

/// Fragments over IPv4 at a hook of ingress.
#[classifier]
pub fn tulle_frags4(ctx: TcContext) -> i32 {
    run::<V4>(ctx, false)
}

/// The same over IPv6.
#[classifier]
pub fn tulle_frags6(ctx: TcContext) -> i32 {
    run::<V6>(ctx, true)
}

/// Holds a later fragment of which no first one was seen, puts a first one before
/// what is held of its datagram; what is in order goes the way of all packets.
#[inline(always)]
fn run<F: Shape>(ctx: TcContext, v6: bool) -> i32
where
    Maps: Tables<F::Addr>,
    F::Addr: HeldRows,
{
    let raw = Skb::new(ctx).raw();
    let Some(hook) = Note::read(raw).hook() else {
        return TC_ACT_UNSPEC;
    };
    let skb = &mut Skb::open(raw);
    let origin = Origin::of(hook, skb);
    let maps = Maps::new(origin);
    let mut headers = Headers::EMPTY;
    if F::parse(skb, ETH_LEN, &mut headers).is_err()
        || !matches!(headers.proto, proto::TCP | proto::UDP | proto::SCTP)
    {
        return go_on_from(raw, hook, v6);
    }
    let reason = match headers.fragment {
        Fragment::First if release(raw, &headers, origin.ifindex) != 0 => {
            Reason::FragmentsReordered
        }
        // A copy of what may be for the kernel or a pod as well: it goes its way at once.
        Fragment::Later
            if !knows_ports(&maps, &headers)
                && hold(raw, &headers) != 0
                && maps.frontend(&FrontendKey::address(headers.dst)).is_some() =>
        {
            Reason::FragmentHeld
        }
        Fragment::First | Fragment::Later | Fragment::No => return go_on_from(raw, hook, v6),
    };
    origin.leave(TcExit::DROP, reason, Some(&headers))
}

#[inline(always)]
fn now() -> u32 {
    // SAFETY: the helper takes nothing.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}

#[inline(always)]
fn first_key<A: HeldRows>(headers: &Headers<A>) -> HeldKey<A> {
    HeldKey {
        datagram: FragmentKey {
            src: headers.src,
            dst: headers.dst,
            id: headers.fragment_id,
            proto: headers.proto as u32,
        },
        slot: 0,
    }
}

// Functions of their own: they are seldom needed, and need much of the stack.

/// Holds a copy of the fragment. 1 if it did.
#[inline(never)]
fn hold<A: HeldRows>(raw: *mut __sk_buff, headers: &Headers<A>) -> u32 {
    let Some(work) = maps::HELD_WORK.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the program's own context.
    let len = unsafe { (*raw).len };
    if len <= ETH_LEN as u32 || len > HELD_OCTETS as u32 {
        return 0;
    }
    // SAFETY: this CPU's own row; no program interrupts another at these hooks of
    // the same CPU. The frame has room for `len` octets.
    let work = unsafe { &mut *work };
    let to = work.frame.as_mut_ptr().cast();
    // SAFETY: as above.
    if unsafe { bpf_skb_load_bytes(raw.cast(), 0, to, len) } != 0 {
        return 0;
    }
    (work.seen, work.len) = (now(), len);
    let mut key = first_key(headers);
    while key.slot < HELD_FRAGMENTS {
        // SAFETY: the map's look-up returned the pointer.
        let taken = A::held(&key).is_some_and(|row| is_fresh(unsafe { (*row).seen }));
        if !taken {
            return A::hold(&key, work) as u32;
        }
        key.slot += 1;
    }
    0
}

#[inline(always)]
fn is_fresh(seen: u32) -> bool {
    now().wrapping_sub(seen) <= HELD_TICKS
}

/// Puts the first fragment, and what is held of its datagram, back into the
/// interface's ingress, in this order. Returns how many were held. The packet
/// itself is used up unless that is 0.
#[inline(never)]
fn release<A: HeldRows>(raw: *mut __sk_buff, headers: &Headers<A>, ifindex: u32) -> u32 {
    let mut key = first_key(headers);
    while key.slot < HELD_FRAGMENTS {
        let Some(row) = A::held(&key) else {
            break;
        };
        // SAFETY: the map's look-up returned the pointer; rows stay readable until
        // the program ends.
        let row = unsafe { &*row };
        if !is_fresh(row.seen) {
            break;
        }
        if key.slot == 0 {
            // SAFETY: the context is the program's own.
            if unsafe { bpf_clone_redirect(raw, ifindex, BPF_F_INGRESS as u64) } != 0 {
                return 0;
            }
        }
        put_back(raw, row, ifindex);
        A::forget(&key);
        key.slot += 1;
    }
    key.slot
}

/// Makes the packet what is held, behind its own Ethernet header, and puts a clone
/// into the ingress. What fails is lost, as the network loses fragments.
#[inline(always)]
fn put_back(raw: *mut __sk_buff, row: &Held, ifindex: u32) {
    let len = row.len;
    if len <= ETH_LEN as u32 || len > HELD_OCTETS as u32 {
        return;
    }
    let from = row.frame.as_ptr();
    // SAFETY: the context is the program's own; the frame has `len` octets.
    unsafe {
        let failed = bpf_skb_change_tail(raw, len, 0) != 0
            || bpf_skb_store_bytes(
                raw,
                ETH_LEN as u32,
                from.add(ETH_LEN).cast(),
                len - ETH_LEN as u32,
                BPF_F_RECOMPUTE_CSUM as u64,
            ) != 0;
        if !failed {
            bpf_clone_redirect(raw, ifindex, BPF_F_INGRESS as u64);
        }
    }
}
