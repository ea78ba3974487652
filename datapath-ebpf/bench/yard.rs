//! Primitives of known cost, [`TIMES`] times each: what the machine is worth
//! at the moment.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::XDP_PASS,
    btf_maps::{Array, HashMap, LruHashMap},
    helpers::generated::{bpf_ktime_get_ns, bpf_xdp_adjust_head},
    macros::{btf_map, xdp},
    programs::XdpContext,
};

use crate::scene::{TIMES, YARD_KEY};

#[btf_map(name = "bench_array")]
static ARRAY: Array<u64, 16> = Array::new();
#[btf_map(name = "bench_hash")]
static HASH: HashMap<u64, u64, 1024> = HashMap::new();
#[btf_map(name = "bench_lru16")]
static LRU_16: LruHashMap<[u64; 2], u64, 1024> = LruHashMap::new();
#[btf_map(name = "bench_lru40")]
static LRU_40: LruHashMap<[u64; 5], u64, 1024> = LruHashMap::new();

/// Counts what `look_up` finds, so that the compiler leaves it in.
#[inline(always)]
fn found(look_up: impl Fn(u64) -> bool) -> u32 {
    let mut found = 0;
    let mut round = 0;
    while round < TIMES {
        found += look_up(round) as u32;
        round += 1;
    }
    // The result has to depend on it and be the same in any case.
    if found > TIMES as u32 { 0 } else { XDP_PASS }
}

/// Inlined look-ups in an array.
#[xdp]
pub fn bench_y_array(_: XdpContext) -> u32 {
    found(|round| ARRAY.get(round as u32).is_some_and(|value| *value == 0))
}

/// Misses in a hash with keys of 8 octets.
#[xdp]
pub fn bench_y_miss(_: XdpContext) -> u32 {
    // SAFETY: nothing is written while the programs run.
    found(|round| unsafe { HASH.get(&round) }.is_some())
}

/// Hits in an LRU hash with keys of 16 octets.
#[xdp]
pub fn bench_y_lru16(_: XdpContext) -> u32 {
    // SAFETY: nothing is written while the programs run.
    found(|_| unsafe { LRU_16.get(&[YARD_KEY; 2]) }.is_some())
}

/// Hits in an LRU hash with keys of 40 octets.
#[xdp]
pub fn bench_y_lru40(_: XdpContext) -> u32 {
    // SAFETY: nothing is written while the programs run.
    found(|_| unsafe { LRU_40.get(&[YARD_KEY; 5]) }.is_some())
}

/// Readings of the clock.
#[xdp]
pub fn bench_y_ktime(_: XdpContext) -> u32 {
    // SAFETY: the helper takes nothing.
    found(|_| unsafe { bpf_ktime_get_ns() } == 0)
}

/// A function that the compiler calls.
#[inline(never)]
fn step(mut round: u64) -> u64 {
    // SAFETY: one addition. It keeps the compiler from seeing the result.
    unsafe { asm!("{round} += 1", round = inout(reg) round) };
    round
}

/// Calls of a function of the program's own.
#[xdp]
pub fn bench_y_call(_: XdpContext) -> u32 {
    found(|round| step(round) == 0)
}

/// Moves of the frame's start, there and back.
#[xdp]
pub fn bench_y_head(ctx: XdpContext) -> u32 {
    let raw = ctx.as_ptr().cast();
    // SAFETY: the context is the program's own.
    found(|round| unsafe { bpf_xdp_adjust_head(raw, if round % 2 == 0 { 50 } else { -50 }) } == 0)
}
