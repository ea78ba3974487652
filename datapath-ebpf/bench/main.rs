//! The benchmark's scaffold: what is repeated by `BPF_PROG_TEST_RUN`, which
//! itself does not restore the packet between two rounds. It restores the
//! frame and calls the program under test; and the empty programs that
//! everything is compared with.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)] // for one locked addition

#[allow(dead_code, reason = "the twin uses a few of them")]
#[path = "../src/maps.rs"]
mod maps;
mod scene;
mod twin;
mod yard;

use core::arch::asm;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_UNSPEC,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        xdp_action::{XDP_PASS, XDP_TX},
    },
    btf_maps::{Array, ProgramArray},
    helpers::generated::{bpf_skb_adjust_room, bpf_skb_change_tail, bpf_xdp_adjust_head},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use scene::{
    FLOWS, FRAME, FRAME_WORDS, MASK, RESTORE, RESTORE_HEAD, RESTORE_TAIL, ROUNDS, VARY,
    VARY_NOTHING, VARY_V4, WORDS,
};

#[btf_map(name = "bench_scene")]
static SCENE: Array<[u64; WORDS], 1> = Array::new();
#[btf_map(name = "bench_skb_next")]
static SKB_NEXT: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "bench_xdp_next")]
static XDP_NEXT: ProgramArray<1> = ProgramArray::new();

/// What the scaffolds return when they cannot do their work: no program under
/// test returns it.
const BROKEN: i32 = 99;

/// Does nothing, at TC.
#[classifier]
pub fn bench_skb_empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Does nothing, at XDP.
#[xdp]
pub fn bench_xdp_empty(_: XdpContext) -> u32 {
    XDP_PASS
}

/// One round at TC.
#[classifier]
pub fn bench_skb(ctx: TcContext) -> i32 {
    let Some(scene) = SCENE.get_ptr_mut(0) else {
        return BROKEN;
    };
    // SAFETY: the row lives as long as the map; one thread measures.
    let restore = unsafe { (*scene)[RESTORE] };
    // The helpers are called also where nothing is to be restored, so that the
    // round of the empty program costs the same.
    let failed = if restore == RESTORE_HEAD {
        let lost = (FRAME as u32).wrapping_sub(ctx.len()) as i32;
        // SAFETY: the context is the program's own.
        unsafe {
            bpf_skb_adjust_room(
                ctx.as_ptr().cast(),
                lost,
                BPF_ADJ_ROOM_MAC,
                BPF_F_ADJ_ROOM_FIXED_GSO as u64,
            )
        }
    } else if restore == RESTORE_TAIL {
        // SAFETY: the context is the program's own.
        unsafe { bpf_skb_change_tail(ctx.as_ptr().cast(), FRAME as u32, 0) }
    } else {
        0
    };
    if failed != 0 || !restore_bytes(scene, ctx.data(), ctx.data_end()) {
        return BROKEN;
    }
    // SAFETY: the call does not come back; nothing here waits to be dropped.
    unsafe { SKB_NEXT.tail_call(&ctx, 0) };
    BROKEN
}

/// One round at XDP.
#[xdp]
pub fn bench_xdp(ctx: XdpContext) -> u32 {
    let Some(scene) = SCENE.get_ptr_mut(0) else {
        return BROKEN as u32;
    };
    let gained = (ctx.data_end() - ctx.data()) as i32 - FRAME as i32;
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), gained) } != 0
        || !restore_bytes(scene, ctx.data(), ctx.data_end())
    {
        return BROKEN as u32;
    }
    // SAFETY: the call does not come back; nothing here waits to be dropped.
    unsafe { XDP_NEXT.tail_call(&ctx, 0) };
    BROKEN as u32
}

/// The number of a round's flow: its own, or any of so many.
#[inline(always)]
fn flow_of(round: u64, flows: u64) -> u64 {
    if flows == 0 {
        return round;
    }
    // Neighbouring rounds are far apart, as a finaliser of MurmurHash3 has them.
    let mut mixed = round as u32;
    mixed = (mixed ^ mixed >> 16).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ mixed >> 13).wrapping_mul(0xc2b2_ae35);
    ((mixed ^ mixed >> 16) as u64 * flows) >> 32
}

/// The least that sending a packet through the overlay takes: a header that is always the same,
/// and no look at the packet.
#[xdp]
pub fn bench_xdp_constant(ctx: XdpContext) -> u32 {
    /// Ethernet, IPv4, UDP and VXLAN.
    const HEADER: usize = 14 + 20 + 8 + 8;
    const WORDS: usize = HEADER / 2;
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(HEADER as i32)) } != 0
        || ctx.data() + HEADER > ctx.data_end()
    {
        return BROKEN as u32;
    }
    let header = ctx.data() as *mut u16;
    let mut at = 0;
    while at < WORDS {
        // SAFETY: inside the packet, as was just checked; the program has it alone. Whoever
        // reads the octets finds them, so that the compiler leaves the writes in.
        unsafe {
            header
                .add(at)
                .write_volatile(0x0845_u16.wrapping_add(at as u16))
        };
        at += 1;
    }
    XDP_TX
}

/// Writes the frame anew. False if it does not have its length.
#[inline(always)]
fn restore_bytes(scene: *mut [u64; WORDS], start: usize, end: usize) -> bool {
    if start + FRAME > end {
        return false;
    }
    let frame = start as *mut u64;
    // SAFETY: the frame's words were just checked against the packet's end; BPF
    // code runs where unaligned words are fine. The row is this thread's.
    unsafe {
        let (mask, round) = ((*scene)[MASK], (*scene)[ROUNDS]);
        let first = if round & mask == mask { 0 } else { FRAME_WORDS };
        let mut at = 0;
        while at < FRAME_WORDS {
            *frame.add(at) = (*scene)[first + at];
            at += 1;
        }
        if (*scene)[VARY] != VARY_NOTHING {
            // Octets of the source address's last half-word, and of the source port.
            let (addr, port) = if (*scene)[VARY] == VARY_V4 {
                (28, 34)
            } else {
                (36, 54)
            };
            let flow = flow_of(round, (*scene)[FLOWS]);
            *((start + addr) as *mut u16) = (flow >> 16) as u16;
            *((start + port) as *mut u16) = flow as u16;
        }
        // Counts, and as a locked operation waits until the writes are done:
        // a program that reads across two of them would be held up otherwise.
        let count = &raw mut (*scene)[ROUNDS];
        asm!("lock *(u64 *)({count} + 0) += {one}", count = in(reg) count, one = in(reg) 1_u64);
    }
    true
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics once compiled; the verifier would refuse this loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
