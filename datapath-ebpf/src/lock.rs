//! Locks that the programs of all CPUs share: words of `tulle_locks`, 0 while nobody has
//! them. All hooks run with bottom halves off (softirq, or `local_bh_disable` on the way
//! out), without `PREEMPT_RT`: a CPU that has a lock is not interrupted by another program
//! at these hooks, so it has it for a microsecond or less, unless its host takes the CPU
//! away. No lock stays taken: the kernel lets every program run to its end, also one that
//! was detached meanwhile, and pins do not outlive the kernel. So nobody clears the words,
//! which would give a lock away that an old program has.

use datapath_common::{Address, FlowKey, maps::LOCK_WORDS};
use datapath_core::flow_hash;

use crate::maps;

/// How often a lock is tried.
const TRIES: u32 = 256;

/// The lock of a flow row's key: its number.
#[inline(always)]
pub fn word<A: Address>(key: &FlowKey<A>) -> u32 {
    flow_hash(key.src, key.dst, key.sport, key.dport, key.proto) & (LOCK_WORDS - 1)
}

/// Takes a lock. False if another CPU has it all the time.
#[inline(always)]
pub fn take(word: u32) -> bool {
    let Some(lock) = maps::LOCKS.get_ptr_mut(word) else {
        return false;
    };
    let mut tries = 0;
    while tries < TRIES {
        // SAFETY: rows of an array stay; only atomic operations touch them.
        if unsafe { compare_exchange(lock, 0, 1) } == 0 {
            return true;
        }
        tries += 1;
    }
    false
}

/// Gives a lock back.
#[inline(always)]
pub fn give_back(word: u32) {
    if let Some(lock) = maps::LOCKS.get_ptr_mut(word) {
        // SAFETY: as above.
        unsafe { exchange(lock, 0) };
    }
}

// Core has no such operations for this target, though it has the instructions. Those that
// return what was there are full barriers (Linux, Documentation/bpf/standardization and
// `arch/*/net/bpf_jit_comp*.c`): nothing before or after them is moved past them, neither by
// the CPU nor, since they may touch any memory, by the compiler.

/// Writes `new` if the word is `old`; returns what it was.
///
/// # Safety
/// `word` is valid for atomic operations.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    let was;
    // SAFETY: the caller's. `BPF_CMPXCHG` (Linux 5.12) compares with, and returns in, r0.
    unsafe {
        core::arch::asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => was,
        );
    }
    was
}

/// Writes `new`.
///
/// # Safety
/// As above.
#[cfg(target_arch = "bpf")]
#[inline(always)]
unsafe fn exchange(word: *mut u64, new: u64) {
    // SAFETY: the caller's.
    unsafe {
        core::arch::asm!(
            "{new} = xchg_64({word} + 0, {new})",
            word = in(reg) word,
            new = inout(reg) new => _,
        );
    }
}

/// Sets `bits`, and leaves all others alone. No barrier.
///
/// # Safety
/// As above.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn or(word: *mut u32, bits: u32) {
    // SAFETY: the caller's. `BPF_OR | BPF_ATOMIC` of 32 bits (Linux 5.12).
    unsafe {
        core::arch::asm!(
            "lock *(u32 *)({word} + 0) |= w2",
            word = in(reg) word,
            in("r2") bits as u64,
        );
    }
}

/// Adds; returns what was there.
///
/// # Safety
/// As above.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, more: u64) -> u64 {
    let was;
    // SAFETY: the caller's. `BPF_ADD | BPF_FETCH` (Linux 5.12).
    unsafe {
        core::arch::asm!(
            "{more} = atomic_fetch_add((u64 *)({word} + 0), {more})",
            word = in(reg) word,
            more = inout(reg) more => was,
        );
    }
    was
}

#[cfg(not(target_arch = "bpf"))]
pub unsafe fn fetch_add(word: *mut u64, more: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    // SAFETY: the caller's.
    unsafe { AtomicU64::from_ptr(word) }.fetch_add(more, Relaxed)
}

/// Leaves only `bits`; returns what was there.
///
/// # Safety
/// As above.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn fetch_and(word: *mut u32, bits: u32) -> u32 {
    let was: u64;
    // SAFETY: the caller's. `BPF_AND | BPF_FETCH` of 32 bits (Linux 5.12).
    unsafe {
        core::arch::asm!(
            "w2 = atomic_fetch_and((u32 *)({word} + 0), w2)",
            word = in(reg) word,
            inout("r2") bits as u64 => was,
        );
    }
    was as u32
}

#[cfg(not(target_arch = "bpf"))]
pub unsafe fn fetch_and(word: *mut u32, bits: u32) -> u32 {
    use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
    // SAFETY: the caller's.
    unsafe { AtomicU32::from_ptr(word) }.fetch_and(bits, SeqCst)
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    // SAFETY: the caller's.
    let word = unsafe { AtomicU64::from_ptr(word) };
    word.compare_exchange(old, new, SeqCst, SeqCst)
        .unwrap_or_else(|was| was)
}

#[cfg(not(target_arch = "bpf"))]
unsafe fn exchange(word: *mut u64, new: u64) {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    // SAFETY: the caller's.
    unsafe { AtomicU64::from_ptr(word) }.store(new, SeqCst);
}

#[cfg(not(target_arch = "bpf"))]
pub unsafe fn or(word: *mut u32, bits: u32) {
    use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
    // SAFETY: the caller's.
    unsafe { AtomicU32::from_ptr(word) }.fetch_or(bits, Relaxed);
}
