//! `tulle_frags4`, `tulle_frags6`: fragments that come in another order than they
//! were sent in. A later one says nothing of ports, so a copy is held until the
//! first one comes, and is then put behind it.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST, TC_ACT_UNSPEC},
    helpers::generated::{
        bpf_clone_redirect, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    macros::classifier,
    programs::TcContext,
};
use datapath_common::{
    Address, FragmentKey, FrontendKey, HELD_FRAGMENTS, HELD_OCTETS, Held, HeldKey, Ip4, Ip6,
    Reason, maps::LIMIT_HELD, proto,
};
use datapath_core::{
    ETH_LEN, Fragment, Headers, Tables, V4, V6, is_translated, knows_ports, remember_ports,
};

use crate::{
    ctx::Skb,
    exit::{Origin, TcExit},
    maps,
    parsed::parse_rare,
    parts::{Note, go_on_from},
    shape::Shape,
    tables::{Maps, config, grant, now},
};

/// Ticks after which a fragment that is held belongs to a datagram of former times:
/// an identification comes round again.
const HELD_TICKS: u32 = 2;
/// Fragments that a CPU holds in a tick: a copy costs more than most packets.
const HELD_PER_TICK: u32 = 1024;

/// The fragments that are held, of one family.
pub trait HeldRows: Address {
    /// A row, in place.
    fn held(key: &HeldKey<Self>) -> Option<*const Held>;
    /// Writes a row that is not there. False if it is, or the table did not take it.
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
                maps::$map.insert(key, row, BPF_NOEXIST as u64).is_ok()
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

/// Holds a later fragment of which no first one was seen; puts what is held of a
/// first one's datagram behind it. All but what is held and for a service alone
/// goes the way of all packets.
#[inline(always)]
fn run<F: Shape>(ctx: TcContext, v6: bool) -> i32
where
    Maps: Tables<F::Addr>,
    F::Addr: HeldRows,
{
    let raw = Skb::new(ctx).raw();
    let note = Note::read(raw);
    let Some(hook) = note.hook() else {
        return TC_ACT_UNSPEC;
    };
    let skb = &mut Skb::open(raw);
    let origin = Origin::of(hook, skb);
    let maps = &Maps::new(origin);
    let mut room = MaybeUninit::uninit();
    let headers = match parse_rare::<F>(skb, &mut room) {
        Ok(headers) if matches!(headers.proto, proto::TCP | proto::UDP | proto::SCTP) => headers,
        _ => return go_on_from(raw, hook, v6),
    };
    if headers.fragment == Fragment::First {
        // From here on nothing of this datagram is held any more: what is put back
        // below does not come to be held again.
        remember_ports(maps, headers);
        release(raw, maps, headers, note.tunneled());
    } else if headers.fragment == Fragment::Later && !knows_ports(maps, headers) {
        let slot = hold(raw, headers);
        // The first one may have passed on another CPU meanwhile.
        if slot < HELD_FRAGMENTS && knows_ports(maps, headers) {
            F::Addr::forget(&HeldKey {
                slot,
                ..first_key(headers)
            });
        } else if slot < HELD_FRAGMENTS
            && maps.frontend(&FrontendKey::address(headers.dst)).is_some()
        {
            return origin.leave(TcExit::DROP, Reason::FragmentHeld, Some(headers));
        }
    }
    go_on_from(raw, hook, v6)
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

#[inline(always)]
fn is_fresh(seen: u32) -> bool {
    now().wrapping_sub(seen) <= HELD_TICKS
}

/// Copies the packet to this CPU's row for that. `None` if it is too long.
#[inline(always)]
fn copy(raw: *mut __sk_buff) -> Option<&'static mut Held> {
    let work = maps::HELD_WORK.get_ptr_mut(0)?;
    // SAFETY: the program's own context.
    let len = unsafe { (*raw).len };
    if len <= ETH_LEN as u32 || len > HELD_OCTETS as u32 {
        return None;
    }
    // SAFETY: this CPU's own row; no program interrupts another at these hooks of
    // the same CPU. The frame has room for `len` octets.
    let work = unsafe { &mut *work };
    let to = work.frame.as_mut_ptr().cast();
    // SAFETY: as above.
    if unsafe { bpf_skb_load_bytes(raw.cast(), 0, to, len) } != 0 {
        return None;
    }
    (work.seen, work.len, work.reserved) = (now(), len, 0);
    Some(work)
}

// Functions of their own: they are seldom needed, and need much of the stack.

/// Holds a copy of the fragment. Returns its slot, [`HELD_FRAGMENTS`] if it did not.
#[inline(never)]
fn hold<A: HeldRows>(raw: *mut __sk_buff, headers: &Headers<A>) -> u32 {
    if !grant(LIMIT_HELD, HELD_PER_TICK) {
        return HELD_FRAGMENTS;
    }
    let Some(work) = copy(raw) else {
        return HELD_FRAGMENTS;
    };
    work.id = headers.fragment_id;
    let mut key = first_key(headers);
    while key.slot < HELD_FRAGMENTS {
        // SAFETY: the map's look-up returned the pointer.
        if A::held(&key).is_some_and(|row| !is_fresh(unsafe { (*row).seen })) {
            A::forget(&key);
        }
        if A::hold(&key, work) {
            break;
        }
        key.slot += 1;
    }
    key.slot
}

/// Puts what is held of the first fragment's datagram into the interface's ingress,
/// where it comes by after the first one, if that is translated; what is not has gone
/// its own way as well. `tunneled`: the first one came out of the overlay here. What
/// fails is lost, as the network loses fragments.
#[inline(never)]
fn release<A: HeldRows>(raw: *mut __sk_buff, maps: &Maps, headers: &Headers<A>, tunneled: bool)
where
    Maps: Tables<A>,
{
    let mut key = first_key(headers);
    let mut own: Option<&Held> = None;
    while key.slot < HELD_FRAGMENTS {
        if let Some(row) = A::held(&key) {
            // SAFETY: the map's look-up returned the pointer; the memory stays the
            // table's. Another CPU may give it to another row meanwhile, see below.
            let row = unsafe { &*row };
            if is_fresh(row.seen) && is_translated(maps, headers) {
                if own.is_none() {
                    own = copy(raw).map(|own| &*own);
                    if own.is_none() {
                        return;
                    }
                }
                put_back(raw, row, maps.ifindex(), tunneled);
            }
            A::forget(&key);
        }
        key.slot += 1;
    }
    if let Some(own) = own {
        // The packet becomes the first fragment again. If that fails its length or
        // checksum is wrong, and the receiver drops it.
        let _ = turn_into(raw, own);
    }
}

/// Makes the packet a clone of what is held and puts that into the ingress.
#[inline(always)]
fn put_back(raw: *mut __sk_buff, row: &Held, ifindex: u32, tunneled: bool) {
    let (seen, id, len) = whose(row);
    if turn_into(raw, row).is_err() {
        return;
    }
    // The table may have given the row to another fragment while it was copied.
    if whose(row) != (seen, id, len) {
        return;
    }
    // What this program took out of the overlay is told by its sender's address, as
    // what `tulle_xdp` took out.
    let sender = config().stripped_mac;
    // SAFETY: the context is the program's own; the address lives on the stack.
    unsafe {
        if tunneled && bpf_skb_store_bytes(raw, 6, (&raw const sender).cast(), 6, 0) != 0 {
            return;
        }
        bpf_clone_redirect(raw, ifindex, BPF_F_INGRESS as u64);
    }
}

/// When a row was written, for which identification, and its octets, as they are now.
#[inline(always)]
fn whose(row: &Held) -> (u32, u32, u32) {
    // SAFETY: a reference; another CPU may write whole words meanwhile.
    unsafe {
        (
            ptr::read_volatile(&raw const row.seen),
            ptr::read_volatile(&raw const row.id),
            ptr::read_volatile(&raw const row.len),
        )
    }
}

/// Gives the packet a row's octets.
#[inline(always)]
fn turn_into(raw: *mut __sk_buff, row: &Held) -> Result<(), ()> {
    let len = row.len;
    if len <= ETH_LEN as u32 || len > HELD_OCTETS as u32 {
        return Err(());
    }
    let (from, eth) = (row.frame.as_ptr(), ETH_LEN as u32);
    // SAFETY: the context is the program's own; the frame has `len` octets. A sum
    // over the packet begins behind the Ethernet header.
    let failed = unsafe {
        bpf_skb_change_tail(raw, len, 0) != 0
            || bpf_skb_store_bytes(raw, 0, from.cast(), eth, 0) != 0
            || bpf_skb_store_bytes(
                raw,
                eth,
                from.add(ETH_LEN).cast(),
                len - eth,
                BPF_F_RECOMPUTE_CSUM as u64,
            ) != 0
    };
    if failed { Err(()) } else { Ok(()) }
}
